"""The gradient taken one completion at a time is the packed row's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config.composing import composed
from invariants.test_micro_batches import METHODS
from longctx_rl.data.packing import count, empty_row, pack
from longctx_rl.engine import distributed, startup
from longctx_rl.objective.terms import Objective
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import Anchor
from longctx_rl.training.groups import sampled_groups
from longctx_rl.training.one_at_a_time import split
from longctx_rl.training.parts import build_parts
from longctx_rl.training.state import Stopwatch
from longctx_rl.training.step import PreparedRow, global_count, objective_from, passes, prepare, update
from longctx_rl.types import PackedGroups, RolloutGroup
from packed_builders import CPU, gradients, group, head_weight, relative_difference, tiny_model

TEMPERATURE = 0.9


class PlainEngine:
    """What ``passes`` uses of an engine, without one."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.calls: list[bool] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.policy(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.calls.append(last)
        torch.autograd.backward(loss)


def gradient(
    rows: list[PackedGroups], method: str, policy: Policy, *, scheduled: int, groups: list[RolloutGroup]
) -> tuple[dict[str, Tensor], dict[str, float], list[bool]]:
    """Gradients and summed metrics over rows; ``scheduled`` is the number of completions, 0 for packed."""
    _, spec, divergences = METHODS[method]
    spec = Objective(**{name: getattr(spec, name) for name in spec.__slots__} | {"max_length": 16})
    teacher = tiny_model(1)
    head = head_weight(teacher)
    scorer = FrozenScorer(teacher, chunk=7).freeze()
    engine, sums = PlainEngine(policy), dict[str, float]()
    for index, packed in enumerate(rows):
        anchors = {
            name: Anchor(
                one, scorer(packed, estimator=one.estimator, temperature=TEMPERATURE, top_k=one.top_k, head=head)
            )
            for name, one in divergences.items()
        }
        pieces = split(packed, anchors, scheduled, score_pieces=2) if scheduled else ()
        row, last = PreparedRow(packed, anchors, pieces), index == len(rows) - 1
        for _, _, output in passes(engine, row, spec, count(groups), TEMPERATURE, Stopwatch(), last=last):
            for name, value in output.sums.items():
                sums[name] = sums.get(name, 0.0) + value.item()
    return gradients(policy), sums, engine.calls


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("method", ["grpo", "opd", "dgrpo", "dgrpo-topk", "dgrpo-k1"])
def test_scheduled_equals_packed(method: str, family: str, checkpointing: bool) -> None:
    groups, _, _ = METHODS[method]
    rows = [pack([one], CPU) for one in groups]
    found = []
    for scheduled in (0, 3):
        model = tiny_model(0, family=family)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.train()
        found.append(gradient(rows, method, Policy(model, chunk=7), scheduled=scheduled, groups=groups))
    (packed, sums, _), (one_by_one, scheduled_sums, calls) = found
    assert relative_difference(one_by_one, packed) < 1e-10
    assert scheduled_sums == pytest.approx(sums, rel=1e-9, abs=1e-12)
    assert calls == [False] * (4 * len(rows) - 1) + [True]


def test_an_empty_row_makes_the_same_passes() -> None:
    groups = [group(5, (3, 4, 2), 1, advantages=True)]
    rows = [pack(groups, CPU), empty_row(CPU)]
    expected, _, _ = gradient(rows[:1], "dgrpo", Policy(tiny_model(), chunk=7), scheduled=3, groups=groups)
    found, _, calls = gradient(rows, "dgrpo", Policy(tiny_model(), chunk=7), scheduled=3, groups=groups)
    assert relative_difference(found, expected) < 1e-12
    assert calls == [False] * 7 + [True]


def untied(root: Path) -> str:
    """The shipped student with an output head of its own."""
    model = load_model("mini-student")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(root / "untied")
    load_tokenizer("mini-student").save_pretrained(root / "untied")
    return f"model.student={root / 'untied'}"


SETTINGS = {
    "zero3": ("engine=zero3",),
    "offloaded": ("engine=zero3", "engine.offload_optimizer=true"),
    "bfloat16": ("engine=local", "model.dtype=bfloat16"),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_step_of_the_shipped_pair(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Through sampling, teacher and engine, with a head of its own: the same metrics, the same norm of the gradient."""
    # At 768 tokens student and teacher disagree, so that the gradient is far above bfloat16's rounding.
    smoke = ("+algo=dgrpo", "+experiment=smoke", "optim.lr=0", "data.lengths=[768]", f"runs_root={tmp_path}")
    config = composed(*smoke, untied(tmp_path), *settings)
    startup.init(config)
    try:
        parts, watch = build_parts(config), Stopwatch()
        groups = sampled_groups(
            config, parts.engine, parts.sampler, parts.source, parts.tokenizer, parts.rewarder, [0, 1], 0, watch
        )
        spec, denominators = objective_from(config), global_count(groups)
        (packed, expected, gaps), (one_by_one, found, found_gaps) = (
            update(
                parts.engine,
                prepare(config, parts.engine, parts.anchors, groups, watch, scheduled=scheduled),
                spec,
                denominators,
                1.0,
                watch,
                compare_terms=True,
            )
            for scheduled in (False, True)
        )
    finally:
        distributed.shutdown()
    exact = config.model.dtype == "float32"
    assert one_by_one.grad_norm == pytest.approx(packed.grad_norm, rel=1e-5 if exact else 2e-2)
    assert gaps is not None and found_gaps is not None
    assert found_gaps.tolist() == pytest.approx(gaps.tolist(), abs=1e-3 if exact else 0.5)
    assert found == pytest.approx(expected, rel=1e-4 if exact else 5e-2, abs=1e-7 if exact else 5e-3)
