"""Strict conversion of plain nested data into typed dataclasses.

Nothing is coerced silently: an unknown key, a missing key, a wrong type or a value outside a ``Literal`` raises
``ValueError`` with one sentence that names the key, the value and the fix.
"""

import dataclasses
import difflib
import re
import shlex
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def convert(cls: type[T], data: Any, path: str = "") -> T:
    """Build the dataclass ``cls`` from a mapping. ``path`` is the dotted key of ``data``, for messages.

    Raises:
        ValueError: a key is unknown or missing, or a value does not have the type of its field.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{path or 'config'}={_short(data)}: expected a group of keys, not a single value")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            name = f"{_join(path, str(key))}={_short(data[key])}"
            raise ValueError(f"unknown key {name}: {_hint(path, str(key), fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"missing key {_join(path, name)}: give it a value, {_join(path, name)}=...")
    return cls(**values)


def plain(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested dictionaries and lists, the inverse of ``convert``."""

    def simple(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: simple(item) for key, item in value.items()}
        return [simple(item) for item in value] if isinstance(value, tuple | list) else value

    result: dict[str, Any] = simple(dataclasses.asdict(config))
    return result


def setting(key: str, text: str) -> str:
    """Return ``key=text`` as it is written in a shell, with quotes where the shell or Hydra needs them."""
    word = re.fullmatch(r"(?!(null|true|false|nan|inf)$)(\w|\.?/)[\w./+-]*", text, re.ASCII | re.IGNORECASE)
    return f"{key}={text}" if word and not text[0].isdigit() else shlex.quote(f"{key}={quoted(text)}")


def quoted(text: str) -> str:
    r"""Return a text in the quotes of Hydra's grammar. Backslashes are doubled only before a quotation mark."""
    return (
        '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), text, flags=re.S) + '"'
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of nested mappings with their values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unknown_key(cls: type, key: str) -> str:
    """Describe what is wrong with a dotted key that ``cls`` does not have, and suggest what was probably meant."""
    path, kind = "", typing.cast(Any, cls)
    for part in key.split("."):
        if typing.get_origin(kind) is dict:  # any name is valid at this level
            path, kind = _join(path, part), typing.get_args(kind)[1]
            continue
        if not dataclasses.is_dataclass(kind):
            return f"unknown key {key}: {path} is a single value"
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if part not in fields:
            return f"unknown key {key}: {_hint(path, part, fields)}"
        path, kind = _join(path, part), typing.get_type_hints(kind)[part]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next((option for option in typing.get_args(kind) if dataclasses.is_dataclass(option)), kind)
    return f"unknown key {key}: to add what the chosen files do not set, write +{key}=..."


def _hint(path: str, key: str, fields: Iterable[str]) -> str:
    names = list(fields)
    close = difflib.get_close_matches(key.lower(), names, n=1)
    return f"did you mean {_join(path, close[0])}?" if close else f"choose from {', '.join(names)}"


def _value(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return convert(typing.cast(type, kind), value, path)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if value is None:
            return None
        return _value(options[0], value, path)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"{path}={_short(value)}: choose one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{path}={_short(value)}: expected a list, such as {path}=[...]")
        return tuple(_value(typing.get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, float]):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}={_short(value)}: expected a group of keys")
        return {str(key): _value(typing.get_args(kind)[1], item, _join(path, str(key))) for key, item in value.items()}
    return _scalar(kind, value, path)


def _scalar(kind: type, value: Any, path: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind is int and (whole or (isinstance(value, float) and value.is_integer())) and abs(value) < 2**63:
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is str and whole:
        return str(value)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    hint = ""
    if kind is str and isinstance(value, float):  # how it was typed is lost: 1e-4 is 0.0001 now
        hint = f", so quote it: '{path}=\"...\"'"
    elif kind in (int, float) and (whole or isinstance(value, float)) and not abs(value) < 2**63:
        hint = ", finite and within 64 bits"
    elif kind in (int, float) and isinstance(value, str) and re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", value):
        hint = f", not a text: leave out the quotes, or read a variable with '{path}=${{oc.decode:${{oc.env:NAME}}}}'"
    raise ValueError(f"{path}={_short(value)}: expected {names[kind]}{hint}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _short(value: Any) -> str:
    """Return a value as it is written on the command line, shortened to 60 characters."""
    words = {None: "null", True: "true", False: "false"}
    known = value is None or isinstance(value, bool)
    text = words[value] if known else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
