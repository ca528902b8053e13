"""The suites of a run: kept records, metrics, the table, and continuing after an interruption."""

from pathlib import Path

import pytest

from evals.parrot import Parrot
from evals.tables import rows
from longctx_rl.config.eval import EvalConfig, SuiteConfig
from longctx_rl.evals import records
from longctx_rl.evals.evaluation import Evaluation, RunSuite
from longctx_rl.evals.items import WITHOUT_LENGTH
from longctx_rl.evals.suites import SUITES, check_suite
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards.execution import CodeGrader, ExactGrader
from longctx_rl.sandbox import probe


@pytest.fixture
def heldout(tmp_path: Path) -> RunSuite:
    config = SuiteConfig(labels=("multihop", "longform"), lengths=(256, 512), max_new_tokens=32)
    return RunSuite("heldout", config, 0, load_tokenizer("mini-student"), Parrot(), tmp_path)


def test_a_run_of_evaluations(heldout: RunSuite) -> None:
    assert heldout.size(3) == 12
    assert heldout.kept(0, 3) is None
    assert heldout.before_after(0) == heldout.before_after(4) == ""
    metrics = heldout.evaluate(0, 3)
    assert metrics == dict.fromkeys(
        ["eval/heldout/mean", *(f"eval/heldout/{task}/{n}" for task in ("multihop", "longform") for n in (256, 512))],
        0.0,
    )
    assert heldout.kept(0, 3) == metrics and heldout.kept(0, 4) is None and heldout.kept(4, 3) is None

    answer = heldout._items(3)[0].example.target
    heldout.sampler.text = answer
    assert heldout.evaluate(4, 2)["eval/heldout/multihop/256"] >= 0.5
    table = heldout.before_after(4)
    # Only the two items of each cell that were evaluated at both steps are compared.
    assert [(row["task"], row["length"], row["n"]) for row in rows(table)] == [
        ("longform", "256", "2"),
        ("longform", "512", "2"),
        ("multihop", "256", "2"),
        ("multihop", "512", "2"),
        ("all", "all", "8"),
    ]


def test_an_evaluation_replaces_its_own_and_later_records(heldout: RunSuite) -> None:
    for step in (0, 2, 4):
        heldout.evaluate(step, 1)
    heldout.evaluate(2, 3)
    kept = records.read(heldout.path)
    assert [record.step for record in kept] == [0] * 4 + [2] * 12
    assert len({record.id for record in kept if record.step == 2}) == 12


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_generated_evaluated_and_graded(name: str, tmp_path: Path) -> None:
    """Through the same path as in a run: reference answers score 1, uninformative answers score 0."""
    known, _ = SUITES[name]
    labels = tuple(label for label in known if label not in ("copy", "lookup", "pairs", "drill"))
    config = SuiteConfig(labels=labels, lengths=(1024, 2048), max_new_tokens=32)
    code = CodeGrader("rlimit" if probe.failure("bwrap") else "bwrap") if name == "code" else None
    tokenizer = load_tokenizer("mini-student")
    sampler = Parrot()
    suite = RunSuite(name, config, 0, tokenizer, sampler, tmp_path, code)
    metrics = suite.evaluate(0, 1)
    assert set(metrics.values()) == {0.0}
    assert set(metrics) == {f"eval/{name}/mean", *(f"eval/{name}/{a}/{b}" for a, b in suite.plan(1).cells())}
    items = suite._items(1)
    right = ExactGrader(code)([(one.example.target, one.example) for one in items])
    assert [one.score for one in right] == [1.0] * len(items)
    kept = records.read(suite.path)
    assert (
        len({one.id for one in kept})
        == len({one.prompt_hash for one in kept} | {""}) - 1
        == len(items)
        == suite.size(1)
    )
    assert all(one.length == 0 for one in kept if one.task in WITHOUT_LENGTH)
    if code is not None:
        code.close()


def test_suites_and_labels_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"eval\.suites\.rular .*heldout, "):
        check_suite("rular", ())
    with pytest.raises(ValueError, match=r"eval\.suites\.code\.labels=buried .*closed, "):
        check_suite("code", ("bury", "buried"))


def test_an_evaluation_is_all_its_suites(tmp_path: Path) -> None:
    def config(*labels: str) -> SuiteConfig:
        return SuiteConfig(labels=labels, lengths=(512,), max_new_tokens=8)

    suites = {"heldout": config("multihop"), "longreason": config("original", "context")}
    settings = EvalConfig(
        name="x", every=0, at_start=True, at_end=True, items=2, during_items=1, first=0, suites=suites
    )
    limits = []

    def sampler(limit: int) -> Parrot:
        limits.append(limit)
        return Parrot()

    evaluation = Evaluation(settings, load_tokenizer("mini-student"), sampler, tmp_path)
    assert limits == [8, 8] and evaluation.size(2) == 6
    assert evaluation.kept(0, 2) is None
    metrics = evaluation.evaluate(0, 2)
    assert evaluation.kept(0, 2) == metrics and {"eval/heldout/mean", "eval/longreason/context/512"} <= set(metrics)
    evaluation.evaluate(3, 2)
    assert [line for line in evaluation.before_after(3).splitlines() if line in suites] == list(suites)
    evaluation.drop_after(0)
    assert evaluation.before_after(3) == "" and evaluation.kept(0, 2) == metrics


def test_without_an_evaluation_at_the_start_the_end_stands_alone(heldout: RunSuite) -> None:
    heldout.evaluate(4, 2)
    assert [(row["task"], row["length"], row["n"]) for row in rows(heldout.before_after(4))] == [
        (task, length, "2") for task in ("longform", "multihop") for length in ("256", "512")
    ]
