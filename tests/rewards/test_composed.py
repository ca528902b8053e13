"""Parts, weights and graders as configured, and a run whose judge goes down."""

from dataclasses import replace
from pathlib import Path

import pytest

from config.composing import config_with
from longctx_rl import cli
from longctx_rl.config.reward import RewardConfig
from longctx_rl.launch import rank
from longctx_rl.rewards.answers import long_answer
from longctx_rl.rewards.composed import Answered, Rewarder, check_reward, overlong, repetition
from longctx_rl.types import Evidence, Example
from openai_server import Reply, serving
from small_runs import rows_of, smoke

STEP = "the mentor of TorVin is KesDal"
HOP = Example(
    id="1", document="", question="?", answer="KesDal", task="multihop", evidence=(Evidence(f"{STEP}.", STEP, 0.5),)
)


def config(graders: dict[str, str] | None = None, **weights: float) -> RewardConfig:
    return RewardConfig(
        name="test",
        graders=graders or {"other": "match"},
        weights=weights or {"answer": 1.0},
        evidence_beta=1.0,
        overlong_tokens=20,
        normalize_per_task=False,
        judge=None,
    )


def score(settings: RewardConfig, text: str, tokens: int = 10, example: Example = HOP) -> float:
    (reward,) = Rewarder(settings, max_tokens=100)([Answered(text, tokens, example)])
    return reward.score


def test_longrlvr_s_reward_is_three_weights() -> None:
    """r = answer + eta F + (1 - eta) answer F, at eta = 0.1; divided by 2, its maximum."""
    settings = config(answer=1.0, evidence=0.1, grounded=0.9)
    assert score(settings, f"{STEP}.\nAnswer: KesDal") == pytest.approx(1.0)
    assert score(settings, "Answer: KesDal") == pytest.approx(0.5)
    assert score(settings, f"{STEP}.\nAnswer: BelMar") == pytest.approx(0.05)


def test_beta_weighs_missing_evidence() -> None:
    """One of two facts and no other statement: precision 1, recall 1/2."""
    two = replace(HOP, evidence=(*HOP.evidence, Evidence("", "the rival of TorVin is BelMar", 0.7)))
    for beta in (0.5, 1.0, 2.0):
        settings = replace(config(answer=1.0, evidence=1.0), evidence_beta=beta)
        expected = (1 + beta**2) * 0.5 / (beta**2 + 0.5)
        assert score(settings, f"{STEP}.\nAnswer: BelMar", example=two) == pytest.approx(expected / 2)


def test_penalties_are_subtracted_undivided() -> None:
    settings = config(answer=1.0, overlong=0.5)
    assert score(settings, "Answer: KesDal", tokens=80) == 1.0
    assert score(settings, "Answer: KesDal", tokens=90) == pytest.approx(0.75)
    assert score(settings, "Answer: KesDal", tokens=100) == pytest.approx(0.5)
    assert score(config(answer=1.0, repetition=1.0), "one two three four five six seven eight " * 9) < -0.8


@pytest.mark.parametrize(("tokens", "penalty"), [(0, 0), (80, 0), (85, -0.25), (100, -1), (200, -1)])
def test_overlong(tokens: int, penalty: float) -> None:
    assert overlong(tokens, 100, 20) == pytest.approx(penalty)


def test_repetition_of_nothing() -> None:
    assert repetition("") == 0.0 == repetition("a b c")


def test_format_is_a_part() -> None:
    settings = config(answer=1.0, format=1.0)
    assert score(settings, "Answer: BelMar") == 0.5 and score(settings, "BelMar") == 0.0


@pytest.mark.parametrize(
    ("grader", "text", "answer", "expected"),
    [
        ("exact", "Answer: kesdal", "KesDal", 0),
        ("match", "Answer: kesdal", "KesDal", 1),
        ("match", "kesdal", "KesDal", 0),
        ("match", "**Answer\uff1a** $-5$", "\u22125", 1),
        ("match", "Answer: 5", "\u22125", 0),
        ("token_f1", "Answer: red", "red house", 2 / 3),
        ("set_f1", "Answer: b; a", "a; b", 1),
        ("choice", "The options are A, B, C.\nAnswer: B", "B", 1),
        ("choice", "Answer: B\nAnswer: A, B, C, D", "B", 0),
        ("choice", "**Answer: B**", "B", 1),
        ("choice", "Answer: $\\boxed{\\text{B}}$", "B", 1),
        ("choice", "Answer: \\boxed{A} \\boxed{B}", "B", 0),
        ("math", "Answer: 1/2", "0.5", 1),
        ("rouge_l", "<think>no</think>\nAnswer: one two\nthree four", "one two three four", 1),
    ],
)
def test_graders(grader: str, text: str, answer: str, expected: float) -> None:
    example = Example(id="1", document="", question="?", answer=answer, task="any")
    assert score(config({"other": grader}), text, example=example) == pytest.approx(expected)


def test_long_answers() -> None:
    assert long_answer("<think>x</think> a\nAnswer: b\nc") == "b\nc"
    assert long_answer("a\nb") == "a\nb"
    assert long_answer("**Answer\uff1a** b\nc") == "b\nc"
    assert long_answer("<think>Answer: b") == ""  # truncated


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (config({"other": "magic"}), r"reward\.graders\.other=magic: choose one of exact, "),
        (config({"other": "judge"}), r"reward\.graders\.other=judge.*choose reward=judge"),
        (config({"code": "match"}), "multihop: choose reward=rules or judge"),
        (config(answer=1.0, style=1.0), r"reward\.weights\.style: choose from answer, "),
        (config(answer=1.0, overlong=-1.0), r"reward\.weights\.overlong=-1\.0: set it to 0 or more"),
        (config(answer=0.0, overlong=1.0), r"set reward\.weights\.answer=1"),
    ],
)
def test_bad_configurations(settings: RewardConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_reward(settings, ["multihop"])


@pytest.mark.parametrize("down", [Reply(status=500), Reply(message=None, usage=None)], ids=["error", "no message"])
def test_a_run_whose_judge_goes_down_is_saved_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], down: Reply
) -> None:
    """Two steps of 2 prompts with 2 completions each; the judge fails in the second."""
    dead = [False]

    def script(number: int, prompt: str) -> Reply:
        # Steps have the same number of prompts; the judge is down from the second step's first question on.
        dead[0] = dead[0] or len(asked) > 3
        asked.append(prompt)
        return down if dead[0] and not mended else Reply("yes" if number % 2 else "no")

    asked: list[str] = []
    mended = False
    with serving(script) as server:
        config = smoke(
            tmp_path / "runs", "+algo=grpo", "eval=none", "reward=judge", "reward.judge.retries=0",
            f"reward.judge.cache={tmp_path / 'judge.sqlite'}", f"reward.judge.base_url={server.url}",
            "rollout.max_new_tokens=8", "optim.max_skipped=99", "budget.steps=3", "algo.group_size=2",
        )  # fmt: skip
        assert rank.execute(config) == cli.UNUSABLE
        stopped = capsys.readouterr().err
        assert "resume=true" in stopped and "the judge Qwen/Qwen3-4B" in stopped and stopped.count("error:") == 1
        before = [row["step"] for row in rows_of(Path(config.run_dir))]
        mended = True
        assert rank.execute(replace(config, resume=True)) == 0
    steps = [row["step"] for row in rows_of(Path(config.run_dir))]
    assert before and steps[: len(before)] == before and steps[-1] == 3 and len(set(steps)) == len(steps)


def test_the_preset_of_the_context_reward_is_longrlvrs() -> None:
    settings = config_with("+algo=grpo", "reward=evidence").reward
    assert settings.evidence_beta == 2.0
    assert score(settings, f"{STEP}.\nAnswer: KesDal") == pytest.approx(1.0)
    assert score(settings, f"{STEP}.\nAnswer: BelMar") == pytest.approx(0.05)
    assert score(settings, "Answer: KesDal") == pytest.approx(0.5)


def test_examples_without_evidence_are_scored_by_their_answer() -> None:
    settings = config(answer=1.0, evidence=0.1, grounded=0.9)
    assert score(settings, "Answer: KesDal", example=replace(HOP, evidence=())) == 1.0
    unknown = replace(HOP, evidence=(), answer="unknown")
    assert score(settings, "Answer: unknown", example=replace(unknown, response=None)) == 1.0
    missing = replace(unknown, response="The mentor is not stated.\nAnswer: unknown")
    assert score(settings, "Answer: unknown", example=missing) == 0.5
    assert score(settings, missing.target, example=missing) == 1.0
