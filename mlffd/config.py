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
    """Refuse keys that are not known, naming the nearest.

    Raises:
        ConfigError: naming the first unknown key.
    """
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")


def check_type(value, field: dataclasses.Field, where: str) -> None:
    """Refuse a value of the wrong type where the field is a plain int, float, str or bool."""
    wanted = {"int": int, "float": (int, float), "str": str, "bool": bool}.get(type_name(field.type))
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
        raise ConfigError(f"{where}: {field.name} must be of type {type_name(field.type)}, not {value!r}")


def type_name(annotation) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
