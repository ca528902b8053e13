"""Strict conversion of plain data."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from longctx_rl.config.convert import convert, unknown_key


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    count: int
    names: tuple[str, ...] = ()
    shares: dict[str, float]
    limit: int | None = None
    flag: bool = False
    other: Inner | None = None


GOOD: dict[str, Any] = {"inner": {"rate": 1}, "count": 2.0, "shares": {"x": 1}}


def test_good_data() -> None:
    assert convert(Outer, GOOD) == Outer(inner=Inner(rate=1.0), count=2, shares={"x": 1.0})
    assert convert(Outer, GOOD | {"other": {"rate": 2, "mode": "b"}, "limit": None}).other == Inner(rate=2.0, mode="b")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cuont": 1}, "unknown key cuont=1: did you mean count?"),
        ({"inner": {"rate": 1, "rte": 2}}, "unknown key inner.rte=2: did you mean inner.rate?"),
        ({"inner": {}}, "missing key inner.rate: give it a value, inner.rate=..."),
        ({"inner": None}, "inner=null: expected a group of keys, not a single value"),
        ({"count": 1.5}, "count=1.5: expected a whole number"),
        ({"count": True}, "count=true: expected a whole number"),
        ({"count": "1"}, "count=1: expected a whole number"),
        ({"flag": 1}, "flag=1: expected true or false"),
        ({"limit": "x"}, "limit=x: expected a whole number"),
        ({"names": "x"}, "names=x: expected a list, such as names=[...]"),
        ({"names": [["x"]]}, "names[0]=['x']: expected text"),
        ({"shares": 1}, "shares=1: expected a group of keys"),
        ({"shares": {"x": None}}, "shares.x=null: expected a number"),
        ({"inner": {"rate": 1, "mode": "c"}}, "inner.mode=c: choose one of a, b"),
    ],
)
def test_bad_data(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        convert(Outer, GOOD | change)
    assert str(caught.value) == sentence


def test_unknown_keys_are_followed_through_groups() -> None:
    assert unknown_key(Outer, "other.rat") == "unknown key other.rat: did you mean other.rate?"
    assert unknown_key(Outer, "count.x") == "unknown key count.x: count is a single value"
