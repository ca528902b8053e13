"""Names of the mini world: two syllables of one token each, so that a held-out name is a new pair of known tokens."""

import hashlib
from functools import cache
from random import Random
from typing import Literal

Split = Literal["train", "test"]

TEST_SHARE = 0.2
"""Share of all names that only the test split may use."""

MAX_DRAWS = 256
"""Of a name of two syllables, before a longer one is taken."""

_ONSETS = "BDFGHJKLMNPRSTVZ"
_VOWELS = "aeiou"
_CODAS = "lnrsmdkv"

SYLLABLES: tuple[str, ...] = tuple(
    onset + _VOWELS[(i + j) % len(_VOWELS)] + _CODAS[(3 * i + 2 * j) % len(_CODAS)]
    for i, onset in enumerate(_ONSETS)
    for j in range(4)
)


def split_of(name: str) -> Split:
    """Split that a name belongs to, by a hash that does not depend on process or platform."""
    digest = hashlib.sha256(name.encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"


def syllables(name: str) -> tuple[str, str]:
    """The two halves of a name: ``"TorVin" -> ("Tor", "Vin")``."""
    return name[:3], name[3:]


@cache
def names(split: Split) -> tuple[str, ...]:
    """All names of a split, in a fixed order."""
    pairs = (first + second for first in SYLLABLES for second in SYLLABLES if first != second)
    return tuple(name for name in pairs if split_of(name) == split)


@cache
def near_duplicates(name: str, split: Split) -> tuple[str, ...]:
    """Names of the split that share one syllable with ``name``, in the same place."""
    known, (firsts, seconds) = names(split), _places(split)
    first, second = syllables(name)
    return tuple(known[index] for index in sorted(firsts.get(first, set()) ^ seconds.get(second, set())))


@cache
def _places(split: Split) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Where the names of a split are that begin, and that end, with a syllable."""
    firsts: dict[str, set[int]] = {}
    seconds: dict[str, set[int]] = {}
    for index, name in enumerate(names(split)):
        first, second = syllables(name)
        firsts.setdefault(first, set()).add(index)
        seconds.setdefault(second, set()).add(index)
    return firsts, seconds


class Cast:
    """Hands out names of one document, none of them twice, keeping clear of blocked syllables."""

    def __init__(self, split: Split) -> None:
        self._split: Split = split
        self._used: set[str] = set()
        self._blocked: set[str] = set()

    def block(self, name: str) -> None:
        """No later name shares a syllable with ``name`` (unless it is asked for as a near-duplicate)."""
        self._blocked.update(syllables(name))

    def new(self, rng: Random) -> str:
        """A name that has not been handed out and has no blocked syllable; of three syllables once most are taken.

        Raises:
            ValueError: there is none.
        """
        pool = names(self._split)
        for _ in range(MAX_DRAWS):
            name = rng.choice(pool)
            if self._is_free(name, ()):
                self._used.add(name)
                return name
        for _ in range(16 * MAX_DRAWS):
            name, last = rng.choice(pool), rng.choice(SYLLABLES)
            longer = name + last
            known = last in self._blocked or longer in self._used or split_of(name[3:] + last) != self._split
            if not known and self._is_free(name, (), taken=True):
                self._used.add(longer)
                return longer
        raise ValueError("the mini world has no more names: choose a shorter context length")

    def protagonist(self, rng: Random) -> str:
        """A new name whose syllables are blocked from then on."""
        name = self.new(rng)
        self.block(name)
        return name

    def near(self, rng: Random, name: str) -> str:
        """A new name that shares one syllable with ``name``; any new name if all of those are taken."""
        shared = syllables(name)
        pool = near_duplicates(name, self._split)
        for other in rng.sample(pool, min(8, len(pool))):
            if self._is_free(other, shared):
                self._used.add(other)
                return other
        return self.new(rng)

    def _is_free(self, name: str, allowed: tuple[str, ...], *, taken: bool = False) -> bool:
        if name in self._used and not taken:
            return False
        return all(part in allowed or part not in self._blocked for part in syllables(name))
