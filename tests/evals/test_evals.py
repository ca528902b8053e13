"""Records on disk, cells and tables, and the evaluation itself on a tiny model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from evals.tables import rows
from longctx_rl.data.generators import generate
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.evals import records, summary
from longctx_rl.evals.evaluation import answer
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import ItemRecord
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rollout import SampleRequest
from longctx_rl.stats import wilson
from longctx_rl.types import Completion, Example, Reward


def record(number: int, score: float, *, task: str = "multihop", length: int = 256, step: int = 0) -> ItemRecord:
    return ItemRecord(
        step=step,
        id=f"{task}-{length}-{number}",
        family_id=f"{task}-{number}",
        task=task,
        length=length,
        prompt_tokens=length - 1,
        output="Answer: KesDal\nü",
        score=score,
        parts={"answer": score},
        truncated=number == 0,
    )


def test_records_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "evals" / "heldout.jsonl"
    first, second = [record(i, i % 2) for i in range(3)], [record(i, 1.0, step=20) for i in range(3)]
    records.append(path, first)
    records.append(path, second)
    assert records.read(path) == first + second
    records.drop_after(path, 19)
    assert records.read(path) == first
    assert [entry.name for entry in path.parent.iterdir()] == ["heldout.jsonl"]
    records.drop_after(tmp_path / "absent.jsonl", 0)


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "heldout.jsonl"
    records.append(path, [record(0, 1.0)])
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert records.read(path) == [record(0, 1.0)]
    records.drop_after(path, 0)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "line",
    ["{", '{"step": 1}', "[1]", "", "[" * 100_000, "9" * 5_000],
    ids=["half", "fields", "list", "empty", "deep", "huge"],
)
def test_a_foreign_line_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1 is not an evaluation record"):
        records.read(path)
    with pytest.raises(ValueError, match="line 1 is not an evaluation record"):
        records.drop_after(path, 0)
    assert path.read_text() == line + "\n"


def test_cells_and_metrics() -> None:
    data = [record(i, float(i < 3), length=256) for i in range(4)]
    data += [record(i, 0.25 * i, task="longform", length=1024) for i in range(5)]
    multihop, longform = summary.cells(reversed(data))[::-1]
    assert (multihop.task, multihop.length, multihop.n, multihop.truncated) == ("multihop", 256, 4, 0.25)
    assert multihop.score == wilson(3, 4)
    assert longform.score.value == 0.5 and 0 < longform.score.low < 0.5 < longform.score.high < 1
    assert summary.metrics(data) == {
        "eval/heldout/longform/1024": 0.5,
        "eval/heldout/multihop/256": 0.75,
        "eval/heldout/mean": 0.625,
    }


def test_a_family_at_two_lengths_is_not_two_independent_items() -> None:
    data = [record(i, float(i % 2), length=length) for i in range(20) for length in (256, 512)]
    assert summary.score(data).low < wilson(20, 40).low


def test_one_family_has_no_interval_and_the_table_says_so() -> None:
    table = summary.table([replace(record(0, 1.0), score=0.5)])
    assert [row["score"] for row in rows(table)] == ["50.0"]
    assert "multihop at 256" in table and "set eval.items to 2 or more" in table


def test_pass_at_k_of_several_samples() -> None:
    """Two items, four samples each: one of them right for the first, none for the second."""
    found = [replace(record(i, 0.0), right=1 - i, more=("",) * 3, score=(1 - i) / 4) for i in range(2)]
    assert summary.pass_rates(found) == pytest.approx({"pass@2": 0.25, "pass@4": 0.5})  # 1 - C(3, 2) / C(4, 2) = 1/2
    (row,) = rows(summary.table(found))
    assert (row["score"].split()[0], row["pass@2"], row["pass@4"]) == ("12.5", "25.0", "50.0")
    assert summary.pass_rates([record(0, 1.0)]) == {}


def test_the_table_is_aligned_and_paired() -> None:
    before = [record(i, float(i % 2), length=length) for length in (256, 1024) for i in range(40)]
    after = [replace(item, step=5, score=1.0) for item in before]
    table = summary.comparison(before, after[::-1])
    assert "MDD: minimum detectable difference" in table
    assert len({len(line) for line in table.splitlines() if not line.startswith("MDD:")}) == 1
    short, long, pooled = rows(table)
    assert [(row["task"], row["length"], row["n"]) for row in (short, long, pooled)] == [
        ("multihop", "256", "40"), ("multihop", "1024", "40"), ("all", "all", "80"),
    ]  # fmt: skip
    assert short["before"].startswith("50.0 ") and pooled["difference"] == "+50.0 [+35.0, +65.0]"
    # (z_0.975 + z_0.8) standard errors, from the interval's half width of 15 points, which is rounded.
    assert float(pooled["MDD"]) == pytest.approx(15 * (1 + 0.8416 / 1.96), abs=0.1)
    with pytest.raises(ValueError, match="different items"):
        summary.comparison(before, after[1:])


@dataclass
class Oracle:
    """Answers every second request correctly."""

    tokenizer: PreTrainedTokenizerBase
    items: Sequence[Example]
    requests: Sequence[SampleRequest] = ()

    def sample(self, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        self.requests = requests
        return [
            (Completion((1,), item.target if number % 2 else "no idea", "stop" if number else "length"),)
            for number, item in enumerate(self.items)
        ]


def test_evaluate_grades_each_item_and_shares_documents() -> None:
    tokenizer = load_tokenizer("mini-student")
    items = generate("multihop", 0, split="test", length=256, tokenizer=tokenizer, questions=2)
    items += generate("grounding", 1, split="test", length=256, tokenizer=tokenizer)
    oracle = Oracle(tokenizer, items)

    def right(answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        return [Reward(float(text == example.target), {"answer": 1.0}) for text, example in answered]

    found = answer(oracle, tokenizer, [Item(one.task, one) for one in items], right, step=7)
    assert [(one.step, one.id, one.score, one.truncated) for one in found] == [
        (7, item.id, float(number % 2), number == 0) for number, item in enumerate(items)
    ]
    assert found[0].family_id == items[0].family_id and found[0].parts == {"answer": 1.0}
    for item, request, one in zip(items, oracle.requests, found, strict=True):
        document, question = encode_prompt(tokenizer, item)
        assert request.prompt_ids == document + question and request.prefix_len == len(document)
        assert one.prompt_tokens == len(request.prompt_ids)
