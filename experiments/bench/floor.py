"""Lower bound on the time of a group step on a machine: FLOPs and bytes of each phase over its measured ceilings.

Every matrix product counts its FLOPs at the rate of the best large product, and its operands and results once through
memory; everything between products counts the bytes it must read and write. A phase's floor is the sum over its
operations of the larger of the two times (the roofline of each). It assumes that nothing is recomputed, that launches
and exponentials are free, that no temporary leaves the processor, and that the last layer computes only the outputs
that are used. All bytes are assumed to come from memory; data that a cache still holds can be faster.

Softmax's exponentials are not products, but every exact attention computes one for each pair and head, and another in
the backward pass, in the same arithmetic units. ``seconds(..., exponentials=True)`` adds them at their measured rate.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch

HEAD = 32
"""Size of an attention head."""


@dataclass(frozen=True)
class Machine:
    """Measured ceilings."""

    flops: float
    """FLOPs per second of a large float32 matrix product."""
    bytes: float
    """Bytes per second of a large copy, read plus written."""

    exponentials: float
    """Exponentials per second of float32 values in the processor's cache."""

    @classmethod
    def of(cls, found: dict[str, float]) -> "Machine":
        return cls(**found)

    def as_dict(self) -> dict[str, float]:
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


def machine() -> Machine:
    """Measure the ceilings: the best of several large products and copies."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    x = torch.randn(64 * 2**20)
    y = torch.empty_like(x)

    def best(work: Callable[[], object], repeats: int = 7) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    near = torch.rand(2**16)
    into = torch.empty_like(near)

    def exponentials() -> None:
        for _ in range(256):
            torch.exp(near, out=into)

    return Machine(
        flops=2 * 2048**3 / best(lambda: torch.mm(a, b)),
        bytes=2 * x.nbytes / best(lambda: y.copy_(x)),
        exponentials=256 * near.numel() / best(exponentials),
    )


@dataclass
class Work:
    """The operations of a phase with their FLOPs and bytes."""

    operations: list[tuple[float, float]] = field(default_factory=list)
    exponentials: float = 0.0

    def product(self, rows: float, inner: float, columns: float, *, backward: bool = False) -> None:
        """A product [rows, inner] x [inner, columns], with its two gradients if ``backward``."""
        moved = 4 * (rows * inner + inner * columns + rows * columns)
        for _ in range(3 if backward else 1):
            self.operations.append((2 * rows * inner * columns, moved))

    def pass_over(self, numbers: float) -> None:
        """Reads and writes of ``numbers`` float32 values in total."""
        self.operations.append((0.0, 4 * numbers))

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.operations)

    @property
    def bytes(self) -> float:
        return sum(moved for _, moved in self.operations)

    def seconds(self, ceilings: Machine, *, exponentials: bool = False) -> float:
        rooflines = sum(max(flops / ceilings.flops, moved / ceilings.bytes) for flops, moved in self.operations)
        return rooflines + exponentials * self.exponentials / ceilings.exponentials


def floor(case: dict[str, int], *, layers: int, width: int, vocabulary: int) -> dict[str, Work]:
    """Phases of a group step: ``rollout`` (prefill and decoding), ``teacher``, ``update``.

    The model is the bench's: heads of ``HEAD``, as many key-value heads, an MLP of three times the width, a tied head.
    """
    prompt, completion, group = case["prompt"], case["completion"], case["group"]
    answers = group * completion
    crossing = answers * prompt + group * completion * (completion + 1) / 2

    def layer(work: Work, asking: float, tokens: float, attended: float, *, backward: bool) -> None:
        """A layer for ``asking`` queries, in ``attended`` pairs with the keys and values of ``tokens``."""
        work.product(tokens, width, 2 * width, backward=backward)
        for inner, columns in ((width, width), (width, width), (width, 6 * width), (3 * width, width)):
            work.product(asking, inner, columns, backward=backward)
        # Scores and values: two products; four gradients.
        moved = 4 * width * (2 * asking + 2 * tokens)
        work.operations.append((4 * attended * width, moved))
        work.exponentials += (2 if backward else 1) * attended * width / HEAD
        if backward:
            work.operations.append((8 * attended * width, 2 * moved))
        # Two norms and two residual sums, norms and rotation of queries and keys, the gate: read and written once,
        # and as much again, with the gradient read besides, on the way back.
        numbers = asking * (4 * 2 * width + 2 * 2 * width + 9 * width) + tokens * 2 * 2 * width
        work.pass_over(2.5 * numbers if backward else numbers)

    def row(work: Work, *, backward: bool) -> None:
        """A packed row; of its last layer only the completions and the prompt's last token are used."""
        tokens = prompt + answers
        for _ in range(layers - 1):
            layer(work, tokens, tokens, prompt * (prompt + 1) / 2 + crossing, backward=backward)
        layer(work, answers + 1, tokens, prompt + crossing, backward=backward)

    rollout = Work()
    for _ in range(layers - 1):
        layer(rollout, prompt, prompt, prompt * (prompt + 1) / 2, backward=False)
    rollout.product(prompt, width, 2 * width)  # of the last layer: keys and values
    for token in range(completion):
        # The prompt's keys and values are read once, the rows' own once each; only the new token's are made.
        for _ in range(layers):
            layer(rollout, group, group, group * (prompt + token + 1), backward=False)
            rollout.pass_over(2 * width * (prompt + group * token))
        rollout.product(group, width, vocabulary)
    teacher, update = Work(), Work()
    row(teacher, backward=False)
    row(update, backward=True)
    # Student's logits with their gradient, and the teacher's.
    update.product(answers, width, vocabulary, backward=True)
    update.product(answers, width, vocabulary)
    parameters = layers * 13 * width * width + vocabulary * width
    update.pass_over(8 * parameters)  # AdamW: weight, gradient and two moments read, three of them written; norm
    return {"rollout": rollout, "teacher": teacher, "update": update}
