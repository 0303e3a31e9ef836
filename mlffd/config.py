"""Tables of a TOML file turned into dataclasses, with unknown keys refused by name."""

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import TypeVar

from mlffd.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Settings = TypeVar("Settings")


def read_toml(path: Path) -> dict:
    """The content of a TOML file.

    Raises:
        ConfigError: missing, or not TOML (with the line).
    """
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def settings_from(table: dict, kind: type[Settings], where: str) -> Settings:
    """An instance of the dataclass ``kind`` from a table; ``where`` names the table in errors.

    Raises:
        ConfigError: unknown key (with the nearest known one), missing key, or wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    check_keys(table, fields, where)
    try:
        settings = kind(**table)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).split('__init__() ')[-1]}") from error
    for name, field in fields.items():
        check_type(getattr(settings, name), field, where)
    return settings


def check_keys(table: dict, known, where: str) -> None:
    """Refuse what is no table, and keys that are not known, naming the nearest.

    Raises:
        ConfigError: naming the first unknown key.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table, not {table!r}")
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")


# what an annotation admits, and what it is called in TOML
KINDS = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "bool": ((bool,), "true or false"),
    "list": ((list,), "a list"),
    "dict": ((dict,), "a table"),
    "None": ((type(None),), ""),
}


def check_type(value, field: dataclasses.Field, where: str) -> None:
    """Refuse a value that the field's annotation, a plain type or a union of them, does not admit.

    Raises:
        ConfigError: naming the field and what it takes.
    """
    annotation = (
        field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    )
    kinds = [KINDS[name.strip()] for name in annotation.split("|")]
    admitted = tuple(kind for types, _ in kinds for kind in types)
    # True is an int to Python
    if not isinstance(value, admitted) or (isinstance(value, bool) and bool not in admitted):
        words = " or ".join(words for _, words in kinds if words)
        raise ConfigError(f"{where}: {field.name} must be {words}, not {value!r}")
