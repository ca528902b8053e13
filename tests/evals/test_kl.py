"""KL to a base: against a whole-vocabulary float64 computation, and 0 between equals."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evals.tables import rows as rows_of
from longctx_rl.config.eval import KLConfig
from longctx_rl.data.source import prompt_ids
from longctx_rl.evals import kl
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rollout import SampleRequest
from longctx_rl.rollout.hf import HFSampler
from packed_builders import tiny_model

TOKENIZER = load_tokenizer("mini-student")
CONFIG = KLConfig(base="mini-student", items=2, length=256, max_new_tokens=7, chunk=5)


def model(seed: int, rows: int = len(TOKENIZER)) -> PreTrainedModel:
    return tiny_model(seed, vocab_size=rows, max_position_embeddings=512, initializer_range=0.5).eval()


def naive(
    student: PreTrainedModel, base: PreTrainedModel, prompt: tuple[int, ...], answer: tuple[int, ...]
) -> list[float]:
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logp, logq = (
            torch.log_softmax(one(ids).logits[0, len(prompt) - 1 : -1, : len(TOKENIZER)].double(), -1)
            for one in (student, base)
        )
    values: list[float] = (logp.exp() * (logp - logq)).sum(-1).tolist()
    return values


@pytest.mark.parametrize("rows", [len(TOKENIZER), len(TOKENIZER) + 64])
def test_it_is_the_exact_divergence_of_every_token(rows: int) -> None:
    """The base's vocabulary may be padded to another size: rows beyond the tokenizer's count for neither."""
    items = kl.prompts(CONFIG, TOKENIZER)
    assert [one.label for one in items[::2]] == ["multihop", "grounding", "longform", "original", "short"]
    found = kl.token_kl(model(1), model(2, rows), TOKENIZER, items, CONFIG, 65536)
    sampler = HFSampler(TOKENIZER, temperature=0.0, max_new_tokens=7, batch_tokens=65536, vocabulary=len(TOKENIZER))
    prompts = [prompt_ids(TOKENIZER, one.example) for one in items]
    answers = sampler.sample(model(2, rows), [SampleRequest(prompt_ids=ids, seeds=(0,)) for ids in prompts])
    expected = [
        naive(model(1), model(2, rows), ids, answer.token_ids) for ids, (answer,) in zip(prompts, answers, strict=True)
    ]
    assert [one.id for one in found] == [one.example.id for one in items]
    for one, values in zip(found, expected, strict=True):
        assert one.nats == pytest.approx(values, rel=1e-9) and min(one.nats) > 0.01
    every = [value for values in expected for value in values]
    value, tokens = kl.mean(found)
    assert tokens == len(every) and value.value == pytest.approx(sum(every) / len(every))
    assert value.low < value.value < value.high


def test_nothing_between_equals() -> None:
    found = kl.token_kl(model(1), model(1), TOKENIZER, kl.prompts(CONFIG, TOKENIZER)[:4], CONFIG, 65536)
    assert all(value < 1e-12 for one in found for value in one.nats)
    (overall,) = (row for row in rows_of(kl.table(found)) if row["task"] == "all")
    assert overall["nats per token"] == "0.0000 [0.0000, 0.0000]"


def test_a_measurement_is_kept_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evals" / "kl.json"

    def measured(**facts: object) -> str:
        return kl.measure(path, facts, model(1), model(2), TOKENIZER, CONFIG, 65536)

    table = measured(base="b")
    kept = json.loads(path.read_text())
    assert kept["tokens"] == sum(len(one["nats"]) for one in kept["items"]) and kept["facts"] == {"base": "b"}
    with monkeypatch.context() as patch:
        patch.setattr(kl, "token_kl", None)
        assert measured(base="b") == table
        with pytest.raises(TypeError):
            measured(base="c")


def test_bases_that_cannot_be_compared(tmp_path: Path) -> None:
    from dataclasses import replace

    other = load_tokenizer("mini-student")
    other.add_tokens(["<one more>"])
    with pytest.raises(ValueError, match=r"kl\.base=mini-student .*or kl\.base=null"):
        kl.base_model(CONFIG, other)
    with pytest.raises(ValueError, match=r"kl\.length=4096 .*mini-student, 4096: lower them"):
        kl.base_model(replace(CONFIG, length=4096), TOKENIZER)
    with pytest.raises(ValueError, match="nowhere"):
        kl.base_model(replace(CONFIG, base="nowhere"), TOKENIZER)
