"""Plain data across the process boundary, and whether two values are the same. The trusted side."""

import json
import math
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 80
MAX_KEYS = 2_000
"""Of a set or dictionary: keys can be chosen so that all of them collide."""
RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""Tolerances of floating-point results."""


class NotPlain(Exception):
    """What came back is not a value in the agreed form."""


def encode(value: Any) -> Any:
    """A value as JSON data: containers other than lists are tagged. See ``worker.plain``."""
    if isinstance(value, list):
        return [encode(one) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(one) for one in value]}
    if isinstance(value, set | frozenset):
        return {"set": [encode(one) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(one)] for key, one in value.items()]}
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


def parse(text: bytes) -> Any:
    """JSON from an untrusted process. Raises NotPlain for whatever is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers with thousands of digits, and broken UTF-8
        raise NotPlain(str(error)[:80]) from error


def decode(data: Any, depth: int = 0) -> Any:
    """The reverse of ``encode``, of untrusted data. Raises NotPlain."""
    if depth > MAX_DEPTH:
        raise NotPlain("nested too deeply")
    if isinstance(data, list):
        return [decode(one, depth + 1) for one in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise NotPlain("no tagged container")
    ((name, items),) = data.items()
    if not isinstance(items, list) or (name != "tuple" and len(items) > MAX_KEYS):
        raise NotPlain("no tagged container, or too large a one")
    try:
        match name:
            case "tuple":
                return tuple(decode(one, depth + 1) for one in items)
            case "set":
                return frozenset(decode(one, depth + 1) for one in items)
            case "dict":
                return {decode(key, depth + 1): decode(one, depth + 1) for key, one in items}
    except (TypeError, ValueError) as error:  # not hashable, not pairs
        raise NotPlain(str(error)[:80]) from error
    raise NotPlain("no tagged container")


def same(found: Any, expected: Any) -> bool:
    """Whether a returned value is the expected one: same shape, numbers within tolerance, nan like nan.

    Integers and floats of one value are the same (2 and 2.0); booleans are no numbers, tuples no lists. Tolerance is
    for floats against floats alone.
    """
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        if isinstance(found, int) or isinstance(expected, int):
            return found == expected
        if math.isnan(found) or math.isnan(expected):
            return math.isnan(found) and math.isnan(expected)
        return math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if isinstance(found, set | frozenset) and isinstance(expected, set | frozenset):
        return _marked(found) == _marked(expected)
    if type(found) is not type(expected):
        return False
    if isinstance(found, list | tuple):
        return len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(found, dict):
        alike = _marked(found) == _marked(expected)
        return alike and all(same(found[key], expected[key]) for key in found)
    return bool(found == expected)


def _marked(keys: Iterable[Any]) -> set[tuple[bool, Any]]:
    """Keys with a mark on booleans, which Python counts as 0 and 1."""
    return {(isinstance(key, bool), key) for key in keys}
