"""Files that are whole or not there, and locks."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when the block ends without an error.

    A reader sees the old content or the new one, never a part, whenever the writer is killed. An OSError
    of a full disk or a missing folder names ``path``.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        # without a number the error is all in its words, which a file name would hide
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(part)):
            error.filename = str(path)
        raise


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock ``path``, which is ours then until the block or the process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError:  # a file system without locks
            free = True
        yield free


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
