"""Options declared once, as dataclass fields with help texts: on the command line, in a recipe, in Python."""

import argparse
import contextlib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from .errors import UserError
from .modeling.configuration_vitf import unknown_name_message

Options = TypeVar("Options")


def _default(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _shown(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def add_options(parser: argparse.ArgumentParser, *classes: type) -> None:
    """
    Adds one argument for each field of dataclasses, under the first line of each class's docstring.

    Values stay as they were typed, and what was not given is absent from the namespace, so that it can be laid over a
    recipe; `make_options` converts. A boolean field `x` becomes `--x` and `--no-x`; a list takes several words; a dict
    takes several `KEY=VALUE`.

    Args:
        classes: Dataclasses whose fields all have `metadata={"help": ...}`.
    """
    for cls in classes:
        group = parser.add_argument_group(cls.__doc__.strip().splitlines()[0].rstrip("."))
        hints = typing.get_type_hints(cls)
        for field in fields(cls):
            required = _default(field) is MISSING
            default = "required" if required else f"default: {_shown(_default(field))}"
            settings = {
                "default": argparse.SUPPRESS,
                "help": f"{field.metadata['help']} ({default})".replace("%", "%%"),
            }
            kind = member_type(hints[field.name])
            if kind is bool:
                settings["action"] = argparse.BooleanOptionalAction
            elif typing.get_origin(kind) in (list, dict):
                settings |= {
                    "nargs": "*",
                    "metavar": "KEY=VALUE" if typing.get_origin(kind) is dict else field.name.upper(),
                }
            elif typing.get_origin(kind) is Literal:
                settings["metavar"] = "{" + ",".join(map(str, typing.get_args(kind))) + "}"
            group.add_argument(f"--{field.name}", **settings)


def member_type(annotation: Any) -> Any:
    """`X` of `X | None`, otherwise the annotation itself; of `int | str` and the like, `str`."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
    return members[0] if len(members) == 1 else str


def _scalar(text: str) -> Any:
    """Reads a word as YAML 1.2 does: PyYAML follows 1.1, where 1e-3 is a string, and yes and no are booleans."""
    if "e" in text.lower():
        with contextlib.suppress(ValueError):
            return float(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, bool) and text.lower() not in ("true", "false") else value


def _convert(name: str, annotation: Any, value: Any) -> Any:
    """A value from the command line (a string) or from YAML, as the annotated type. Raises UserError."""
    kind = member_type(annotation)
    if value is None or (value == "none" and annotation is not kind):
        if annotation is kind:
            raise UserError(f"option {name!r} needs a value")
        return None
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UserError(f"option {name!r} is one of {', '.join(map(str, choices))}, not {value!r}")
        return value
    if origin is dict:
        if isinstance(value, list):
            words = [word.partition("=") for word in value]
            if not all(equals and key for key, equals, _ in words):
                raise UserError(f"option {name!r} takes words of the form KEY=VALUE, not {' '.join(value)!r}")
            return {key: _scalar(word) for key, _, word in words}
        if not isinstance(value, Mapping):
            raise UserError(f"option {name!r} takes keys with values, not {value!r}")
        return dict(value)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            value = [value]
        return [_convert(name, *typing.get_args(kind), member) for member in value]
    if origin is tuple:
        return tuple(value)
    if kind in (str, Path):
        return kind(value)
    try:
        if kind is bool and not isinstance(value, bool):
            raise ValueError
        number = kind(value)
        if kind is int and not isinstance(value, str) and number != value:
            raise ValueError
        if kind is float and not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        article = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"option {name!r} takes {article}, not {value!r}") from None
    return number


def check_names(classes: Iterable[type], names: Iterable[str], place: str = "") -> None:
    """Raises UserError for the first name that is a field of no class, with the nearest valid one."""
    valid = [field.name for cls in classes for field in fields(cls)]
    for name in names:
        if name not in valid:
            raise UserError(place + unknown_name_message("option", str(name), valid))


def make_options(classes: Iterable[type[Options]], values: Mapping[str, Any]) -> list[Options]:
    """
    One instance of each dataclass from values by field name, as typed by a user or read from YAML.

    Raises:
        UserError: for an unknown name, a missing required one, or a value that does not fit its field.
    """
    classes = list(classes)
    check_names(classes, values)
    made = []
    for cls in classes:
        hints = typing.get_type_hints(cls)
        own = {f.name: _convert(f.name, hints[f.name], values[f.name]) for f in fields(cls) if f.name in values}
        for field in fields(cls):
            if field.name not in own and _default(field) is MISSING:
                raise UserError(f"option {field.name!r} is missing: {field.metadata['help']}")
        made.append(cls(**own))
    return made
