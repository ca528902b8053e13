"""The training stream: exact shares, every row once an epoch, the same after a restart."""

from collections import Counter

import pytest

from longctx_rl.data.order import Interleaving, Pool, TrainingOrder


def pool(name: str, size: int) -> Pool:
    return Pool(name, "long", tuple(range(size)), tuple(range(1, size + 1)))


@pytest.mark.parametrize("shares", [[0.9, 0.1], [0.3, 0.3, 0.3, 0.1], [1.0], [1, 1, 1], [0.37, 0.63]])
def test_shares_are_exact_in_every_cycle_and_close_at_every_position(shares: list[float]) -> None:
    order, given = Interleaving(shares), Counter[int]()
    for place in range(1000):
        number, before = order.at(place)
        assert before == given[number]
        given[number] += 1
        for i, share in enumerate(shares):
            assert abs(given[i] - (place + 1) * share / sum(shares)) < len(shares)
    assert [given[i] / 1000 for i in range(len(shares))] == pytest.approx([s / sum(shares) for s in shares], abs=1e-3)


def test_a_share_too_small_to_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share of 1e-06 .*remove it"):
        Interleaving([1.0, 1e-6])


@pytest.mark.parametrize("bucket", [0, 24])
def test_every_row_once_an_epoch(bucket: int) -> None:
    order = TrainingOrder([(0.75, pool("a", 18)), (0.25, pool("b", 6))], seed=0, bucket=bucket, batch=4)
    epochs = [Counter((p.name, row) for p, row in map(order.at, range(24 * e, 24 * e + 24))) for e in range(3)]
    assert all(len(epoch) == 24 for epoch in epochs)
    assert [order.at(i)[1] for i in range(24)] != [order.at(i)[1] for i in range(24, 48)]


def test_a_position_does_not_depend_on_earlier_requests() -> None:
    def fresh(seed: int = 0) -> TrainingOrder:
        return TrainingOrder([(0.9, pool("a", 50)), (0.1, pool("b", 7))], seed=seed, bucket=40, batch=8)

    stream = [fresh().at(place) for place in range(200)]
    late = fresh()
    assert [late.at(place) for place in reversed(range(200))] == stream[::-1]
    assert [fresh(1).at(place) for place in range(200)] != stream


def test_buckets_bring_similar_lengths_together() -> None:
    def spread(bucket: int) -> float:
        order = TrainingOrder([(1.0, pool("a", 400))], seed=0, bucket=bucket, batch=8)
        steps = [[order.at(i)[1] for i in range(s, s + 8)] for s in range(0, 400, 8)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    assert spread(200) < 0.2 * spread(0)
