"""The order of rows in the endless training stream: a function of the seed and the position only.

A cursor is therefore all that a resumed or re-sharded run needs to continue at the right row of every pool.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

FINEST = 1000
"""Maximum cycle length of an interleaving; shares that need a longer cycle are rounded to thousandths."""


class Interleaving:
    """Interleaves pools in exact shares: after each cycle the counts match the shares exactly, and closely within it.

    Args:
        shares: positive share of each pool, relative to their sum.

    Raises:
        ValueError: a share is below half a thousandth of the sum.
    """

    def __init__(self, shares: Sequence[float | Fraction]) -> None:
        parts = [Fraction(str(share)) for share in shares]
        parts = [part / sum(parts) for part in parts]
        cycle = math.lcm(*(part.denominator for part in parts))
        self._counts = [round(part * min(cycle, FINEST)) for part in parts]
        if min(self._counts) < 1:
            raise ValueError(f"a share of {float(min(parts)):.2g} is too small to be drawn: remove it")
        common = math.gcd(*self._counts)
        self._counts = [count // common for count in self._counts]
        total = sum(self._counts)
        self._slots: list[tuple[int, int]] = []
        given = [0] * len(parts)
        for place in range(1, total + 1):
            pool = max(range(len(parts)), key=lambda i: (self._counts[i] * place - given[i] * total, -i))
            self._slots.append((pool, given[pool]))
            given[pool] += 1

    def at(self, place: int) -> tuple[int, int]:
        """Return the pool at a position, and how often that pool occurred before."""
        cycle, slot = divmod(place, len(self._slots))
        pool, before = self._slots[slot]
        return pool, cycle * self._counts[pool] + before


@lru_cache(maxsize=32)
def permutation(seed: str, size: int) -> tuple[int, ...]:
    """Return a shuffled ``range(size)``."""
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return tuple(order)


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows that are drawn without replacement in every epoch."""

    name: str
    store: str
    """Name of the store that holds the rows."""
    rows: tuple[int, ...]
    """Row indices in the store."""
    lengths: tuple[int, ...]
    """Prompt tokens of each row."""


class TrainingOrder:
    """The training stream over several pools.

    Args:
        pools: pairs of share and pool.
        bucket: number of positions that are sorted by length together, so that the prompts of a step have similar
            lengths; the sorted bucket is split into batches of ``batch``, which are then shuffled. 0: no sorting.
        batch: prompts per step.
    """

    def __init__(self, pools: Sequence[tuple[float | Fraction, Pool]], *, seed: int, bucket: int, batch: int) -> None:
        self.pools = [pool for _, pool in pools]
        self._interleaving = Interleaving([share for share, _ in pools])
        self._seed, self._batch = seed, batch
        self._bucket = bucket // batch * batch
        self._block: tuple[int, list[tuple[Pool, int]]] = (-1, [])

    def at(self, place: int) -> tuple[Pool, int]:
        """Return the pool and the row index at a position of the stream."""
        if not self._bucket:
            pool, within = self._position(place)
            return pool, pool.rows[within]
        block, slot = divmod(place, self._bucket)
        if self._block[0] != block:
            self._block = (block, self._sorted_block(block))
        return self._block[1][slot]

    def _position(self, place: int) -> tuple[Pool, int]:
        number, before = self._interleaving.at(place)
        pool = self.pools[number]
        epoch, within = divmod(before, len(pool.rows))
        return pool, permutation(f"{pool.name} {self._seed} {epoch}", len(pool.rows))[within]

    def _sorted_block(self, block: int) -> list[tuple[Pool, int]]:
        places = range(block * self._bucket, (block + 1) * self._bucket)
        positions = [self._position(place) for place in places]
        positions.sort(key=lambda position: position[0].lengths[position[1]])
        batches = [positions[start : start + self._batch] for start in range(0, self._bucket, self._batch)]
        random.Random(f"bucket {self._seed} {block}").shuffle(batches)
        return [(pool, pool.rows[within]) for batch in batches for pool, within in batch]
