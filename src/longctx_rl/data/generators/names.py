"""Names of the mini world: two single-token syllables, so that a held-out name is a new pair of known tokens."""

import hashlib
from functools import cache
from random import Random
from typing import Literal

Split = Literal["train", "test"]

TEST_SHARE = 0.2
"""Share of names that are reserved for the test split."""

MAX_DRAWS = 256
"""Attempts to draw a two-syllable name before a longer one is used."""

_ONSETS = "BDFGHJKLMNPRSTVZ"
_VOWELS = "aeiou"
_CODAS = "lnrsmdkv"

SYLLABLES: tuple[str, ...] = tuple(
    onset + _VOWELS[(i + j) % len(_VOWELS)] + _CODAS[(3 * i + 2 * j) % len(_CODAS)]
    for i, onset in enumerate(_ONSETS)
    for j in range(4)
)


def split_of(name: str) -> Split:
    """Return the split of a name, from a hash that does not depend on process or platform."""
    digest = hashlib.sha256(name.encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"


def syllables(name: str) -> tuple[str, str]:
    """Split a name into its two syllables: ``"TorVin" -> ("Tor", "Vin")``."""
    return name[:3], name[3:]


@cache
def names(split: Split) -> tuple[str, ...]:
    """Return all names of a split, in a fixed order."""
    pairs = (first + second for first in SYLLABLES for second in SYLLABLES if first != second)
    return tuple(name for name in pairs if split_of(name) == split)


@cache
def near_duplicates(name: str, split: Split) -> tuple[str, ...]:
    """Return the names of the split that share exactly one syllable with ``name``, in the same position."""
    known, (firsts, seconds) = names(split), _places(split)
    first, second = syllables(name)
    return tuple(known[index] for index in sorted(firsts.get(first, set()) ^ seconds.get(second, set())))


@cache
def _places(split: Split) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Return, by syllable, the indices of the split's names that begin with it, and of those that end with it."""
    firsts: dict[str, set[int]] = {}
    seconds: dict[str, set[int]] = {}
    for index, name in enumerate(names(split)):
        first, second = syllables(name)
        firsts.setdefault(first, set()).add(index)
        seconds.setdefault(second, set()).add(index)
    return firsts, seconds


class Cast:
    """Draws the names of one document without repetition, avoiding blocked syllables."""

    def __init__(self, split: Split) -> None:
        self._split: Split = split
        self._used: set[str] = set()
        self._blocked: set[str] = set()

    def block(self, name: str) -> None:
        """Exclude the syllables of ``name`` from later names, except from its own near-duplicates."""
        self._blocked.update(syllables(name))

    def new(self, rng: Random) -> str:
        """Draw an unused name without blocked syllables; it has three syllables once most names are taken.

        Raises:
            ValueError: no name is left.
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
        """Draw a new name and block its syllables."""
        name = self.new(rng)
        self.block(name)
        return name

    def near(self, rng: Random, name: str) -> str:
        """Draw a new name that shares one syllable with ``name``, or any new name if those are taken."""
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
