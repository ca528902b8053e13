"""Plain data across the process boundary, and equality of values. The trusted side.

The untrusted side has its own encoder and decoder in worker.py, which imports nothing of this package.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 80
MAX_KEYS = 2_000
"""Size limit of a set or dictionary, whose keys can be chosen so that all of them collide."""
RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""Tolerances of floating-point results."""


class NotPlain(Exception):
    """Data from the untrusted side does not have the agreed form."""


def encode(value: Any) -> Any:
    """Return a value as JSON data, in which containers other than lists are tagged. See ``worker.plain``."""
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


def parse(text: bytes) -> Any:
    """Parse JSON from an untrusted process. Raises NotPlain if it is not valid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # including numbers with thousands of digits, and invalid UTF-8
        raise NotPlain(str(error)[:80]) from error


def decode(data: Any, depth: int = 0) -> Any:
    """Invert ``encode`` on untrusted data. Raises NotPlain if the data does not have the form of ``encode``."""
    if depth > MAX_DEPTH:
        raise NotPlain("nested too deeply")
    if isinstance(data, list):
        return [decode(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise NotPlain("not a tagged container")
    ((name, items),) = data.items()
    if not isinstance(items, list) or (name != "tuple" and len(items) > MAX_KEYS):
        raise NotPlain("not a tagged container, or too large")
    try:
        match name:
            case "tuple":
                return tuple(decode(item, depth + 1) for item in items)
            case "set":
                return frozenset(decode(item, depth + 1) for item in items)
            case "dict":
                return {decode(key, depth + 1): decode(item, depth + 1) for key, item in items}
    except (TypeError, ValueError) as error:  # not hashable, not pairs
        raise NotPlain(str(error)[:80]) from error
    raise NotPlain("not a tagged container")


def same(found: Any, expected: Any) -> bool:
    """Whether a returned value equals the expected one: same shape, floats within tolerance, nan equal to nan.

    An integer equals a float of the same value (2 and 2.0), but a boolean is not a number and a tuple is not a list.
    The tolerance applies only where both values are floats.
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
    """Mark the booleans among keys, which Python treats as equal to 0 and 1."""
    return {(isinstance(key, bool), key) for key in keys}
