"""Held-out documents of a data set in LongBlocks' columns, graded by a reward's graders."""

from pathlib import Path

import pytest

from evals.parrot import Parrot
from longctx_rl.config.compose import composed, composed_evaluate
from longctx_rl.config.eval import EvalConfig
from longctx_rl.data.longblocks_source import LongBlocksSource
from longctx_rl.evals.evaluation import RunSuite
from longctx_rl.evals.grading import grader_of
from longctx_rl.evals.items import Item
from longctx_rl.evals.suites import Plan, items_of
from longctx_rl.policy.loading import load_tokenizer

ROWS = Path(__file__).parents[1] / "data" / "fixture" / "rows"
TOKENIZER = load_tokenizer("mini-student")
KEY = "eval.suites.longblocks"


def overrides(cache: Path, *more: str) -> list[str]:
    data = f"{KEY}.data.longblocks"
    return ["eval=longblocks", f"{data}.path={ROWS}", f"{data}.cache={cache}", f"{data}.test=0.6",
            f"{data}.validation=0.1", f"{KEY}.lengths=[512,2048]",
            f"{KEY}.labels=[multihop,grounding]", *more]  # fmt: skip


def config(cache: Path, *more: str) -> EvalConfig:
    return composed_evaluate(["checkpoint=mini-student", "out=x", *overrides(cache, *more)]).eval


def items_in(settings: EvalConfig, items: int = 500) -> list[Item]:
    return items_of("longblocks", Plan(settings.suites["longblocks"], items), TOKENIZER)


def test_only_held_out_documents_are_evaluated(tmp_path: Path) -> None:
    items = items_in(config(tmp_path))
    cells = {(one.label, one.example.length) for one in items}
    assert {label for label, _ in cells} == {"multihop", "grounding"} and {n for _, n in cells} == {
        512,
        2048,
    }
    training = composed(["data=longblocks", f"data.longblocks.path={ROWS}", f"data.longblocks.cache={tmp_path}",
                         "data.longblocks.test=0.6", "data.longblocks.validation=0.1", "data.longblocks.short=null",
                         "task=any", "eval=none"])  # fmt: skip
    source = LongBlocksSource(training, TOKENIZER)
    trained = {source.example("long", row).document for pool in source.order.pools for row in pool.rows}
    held_out = {one.example.document for one in items}
    assert trained and held_out and not trained & held_out
    assert len({one.example.id for one in items}) == len(items)
    assert all(one.example.question.endswith('"Answer: " and the answer alone.') for one in items)
    few = items_in(config(tmp_path), items=1)
    assert len(few) == len(cells) and {one.example.id for one in few} <= {one.example.id for one in items}


def test_the_rewards_graders_grade(tmp_path: Path) -> None:
    settings = config(tmp_path)
    grade = grader_of("longblocks", settings.suites["longblocks"], None)
    items = items_in(settings)
    assert [one.score for one in grade([(f"Answer: {one.example.answer}", one.example) for one in items])] == [
        1.0
    ] * len(items)
    assert {one.score for one in grade([("Answer: 31 of another", one.example) for one in items])} == {0.0}
    suite = RunSuite("longblocks", settings.suites["longblocks"], 0, TOKENIZER, Parrot(), tmp_path)
    metrics = suite.evaluate(0, 2)
    assert suite.kept(0, 2) == metrics and metrics["eval/longblocks/mean"] < 0.1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (f"{KEY}.data.longblocks.test=0", rf"multihop .*raise {KEY}\.data\.longblocks\.test"),
        (f"{KEY}.lengths=[16]", rf"multihop .*raise .*{KEY}\.lengths"),
        (f"{KEY}.data.longblocks.path=/nowhere", "/nowhere"),
        (f"{KEY}.labels=[short]", "labels=short .*multihop, grounding, longform, code"),
        (f"{KEY}.data.longblocks=null", r"longblocks\.data .*/data@.*=longblocks"),
    ],
)
def test_refused_settings(tmp_path: Path, more: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        items_in(config(tmp_path, more))


def test_rewards_that_cannot_grade(tmp_path: Path) -> None:
    for more, sentence in (
        (
            f"+{KEY}.reward.graders.multihop=execution",
            r"graders\.multihop=execution: .*set match",
        ),
        (f"{KEY}.reward.graders.other=judge", r"reward\.judge is null: choose reward=judge"),
        (f"{KEY}.reward=null", r"longblocks\.reward is null"),
    ):
        with pytest.raises(ValueError, match=sentence):
            grader_of("longblocks", config(tmp_path, more).suites["longblocks"], None)


def test_training_and_evaluation_hold_out_the_same(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give both the same"):
        composed(["data=longblocks", f"data.longblocks.path={ROWS}", *overrides(tmp_path)])
