"""The held-out suite of a run: kept records, metrics, the table, and what an interrupted run leaves behind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from longctx_rl.evals import records
from longctx_rl.evals.heldout import HeldOut
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rollout import SampleRequest
from longctx_rl.types import Completion
from packed_builders import tiny_model


class Parrot:
    """Gives one text to every prompt."""

    def __init__(self) -> None:
        self.text = "no idea"

    def sample(self, model: PreTrainedModel, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        return [(Completion((1,), self.text, "stop"),) for _ in requests]


class Engine:
    """As much of an engine as evaluation needs."""

    @contextmanager
    def full_weights(self) -> Iterator[nn.Module]:
        policy = nn.Module()
        policy.model = tiny_model(dtype=torch.float32)
        yield policy


@pytest.fixture
def heldout(tmp_path: Path) -> HeldOut:
    config = SimpleNamespace(eval=SimpleNamespace(tasks=("multihop", "longform"), lengths=(256, 512), first=0))
    return HeldOut(config, load_tokenizer("mini-student"), Parrot(), tmp_path)


def test_a_run_of_evaluations(heldout: HeldOut) -> None:
    assert heldout.size(3) == 12
    assert heldout.kept(0, 3) is None
    assert heldout.before_after(0) == heldout.before_after(4) == ""
    metrics = heldout.evaluate(Engine(), 0, 3)
    assert metrics == dict.fromkeys(
        ["eval/heldout/mean", *(f"eval/heldout/{task}/{n}" for task in ("multihop", "longform") for n in (256, 512))],
        0.0,
    )
    assert heldout.kept(0, 3) == metrics and heldout.kept(0, 4) is None and heldout.kept(4, 3) is None

    answer = heldout._examples(3)[0].target
    heldout.sampler.text = answer
    assert heldout.evaluate(Engine(), 4, 2)["eval/heldout/multihop/256"] >= 0.5
    table = heldout.before_after(4)
    # Two of the three items were asked again; only they are compared.
    assert [line.split()[:3] for line in table.splitlines()[2:]] == [
        ["longform", "256", "2"],
        ["longform", "512", "2"],
        ["multihop", "256", "2"],
        ["multihop", "512", "2"],
        ["all", "all", "8"],
    ]


def test_an_evaluation_replaces_its_own_and_later_records(heldout: HeldOut) -> None:
    for step in (0, 2, 4):
        heldout.evaluate(Engine(), step, 1)
    heldout.evaluate(Engine(), 2, 3)
    kept = records.read(heldout.path)
    assert [record.step for record in kept] == [0] * 4 + [2] * 12
    assert len({record.id for record in kept if record.step == 2}) == 12
