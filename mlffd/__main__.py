"""The command line: one verb, one function in mlffd/commands/. ``mlffd --help`` lists the verbs."""

import argparse
import os
import sys

from mlffd.commands import distillation, labelling, simulation, students
from mlffd.errors import MlffdError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 with one clear line on standard error if it cannot be done."""
    options = parser().parse_args(arguments)
    try:
        return options.verb(options) or 0
    except MlffdError as error:
        print(f"mlffd: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"mlffd: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mlffd: interrupted; what was begun goes on when the command is given again", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="mlffd", description=sys.modules["mlffd"].__doc__)
    verbs = top.add_subparsers(required=True, metavar="VERB")
    for module in (distillation, labelling, students, simulation):
        module.add_verbs(verbs)
    return top


if __name__ == "__main__":
    sys.exit(main())
