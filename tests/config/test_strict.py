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
    ("change", "problem", "fix"),
    [
        ({"cuont": 1}, "unknown key cuont=1:", "count?"),
        ({"inner": {"rate": 1, "rte": 2}}, "unknown key inner.rte=2:", "inner.rate?"),
        ({"inner": {}}, "missing key inner.rate:", "inner.rate=..."),
        ({"inner": None}, "inner=null:", "a group of keys"),
        ({"count": 1.5}, "count=1.5:", "a whole number"),
        ({"count": True}, "count=true:", "a whole number"),
        ({"count": "1"}, "count=1:", "not a text: leave out the quotes"),
        ({"count": 2**63}, "count=9223372036854775808:", "within 64 bits"),
        ({"inner": {"rate": 10**400}}, "inner.rate=1000", "a number, finite"),
        ({"inner": {"rate": float("nan")}}, "inner.rate=nan:", "a number, finite"),
        ({"names": [1e-4]}, "names[0]=0.0001:", "text, so quote it"),
        ({"flag": 1}, "flag=1:", "true or false"),
        ({"limit": "x"}, "limit=x:", "a whole number"),
        ({"names": "x"}, "names=x:", "names=[...]"),
        ({"names": [["x"]]}, "names[0]=['x']:", "text"),
        ({"shares": 1}, "shares=1:", "a group of keys"),
        ({"shares": {"x": None}}, "shares.x=null:", "a number"),
        ({"inner": {"rate": 1, "mode": "c"}}, "inner.mode=c:", "a, b"),
    ],
)
def test_bad_data(change: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(ValueError) as caught:
        convert(Outer, GOOD | change)
    sentence = str(caught.value)
    assert sentence.startswith(problem) and fix in sentence.removeprefix(problem) and "\n" not in sentence


def test_unknown_keys_are_followed_through_groups() -> None:
    for key, fix in (("other.rat", "other.rate?"), ("count.x", "count is a single value"), ("shares.y", "+shares.y=")):
        sentence = unknown_key(Outer, key)
        assert sentence.startswith(f"unknown key {key}:") and fix in sentence
