"""The reward of a run: a grader for each task's answers, and parts weighed as the configuration says.

    score = sum of weight * part / sum of the weights that are no penalty's

Parts: ``answer`` in [0, 1] by the task's grader; ``evidence`` in [0, 1], F-beta of the restated evidence; ``grounded``,
answer times evidence (with weights 1, eta and 1 - eta of answer, evidence and grounded this is LongRLVR's reward, arXiv
2603.02146); ``format``, whether a final answer was found; ``unclear``, the judge said neither yes nor no, which counts
as not right and has no weight; of code ``passed``, ``recall``, ``hallucinated`` and ``suspicious``, see code.py, which
have none either; the penalties ``overlong`` (DAPO's soft one, arXiv 2503.14476) and ``repetition``, in
[-1, 0].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longctx_rl.config.reward import PENALTIES, RewardConfig
from longctx_rl.rewards import text as rules
from longctx_rl.rewards.answers import ANSWER_MARK, Grader, final_answer, grade_continuation, grade_exact
from longctx_rl.rewards.answers import grade_ordered_list as ordered_list
from longctx_rl.rewards.evidence import evidence_score
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rewards.judge import Judge, JudgeQuestion
from longctx_rl.types import Example, Reward

JUDGE, EXECUTION = "judge", "execution"
WHOLE: dict[str, Grader] = {"exact": grade_exact, "ordered_list": ordered_list, "continuation": grade_continuation}
"""Graders of a whole completion."""
FINAL: dict[str, Callable[[str, str], float]] = {
    "match": rules.match,
    "token_f1": rules.token_f1,
    "set_f1": rules.set_f1,
    "choice": rules.choice,
    "math": rules.mathematical,
}
"""Graders of the final answer against the reference."""
LONG: dict[str, Callable[[str, str], float]] = {"rouge_l": rules.rouge_l}
"""Graders of an answer of several lines: all that follows the last ``Answer:``, or everything."""
GRADER_NAMES = (*WHOLE, *FINAL, *LONG, JUDGE, EXECUTION)
PARTS = ("answer", "evidence", "grounded", "format", *PENALTIES)
REPEATED_WORDS = 8
"""Length of the word sequences whose repetition counts."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A completion to grade."""

    text: str
    tokens: int
    example: Example


class Rewarder:
    """Grades completions as configured. Rules are pure; the judge is asked for all completions at once.

    Args:
        max_tokens: the sampler's limit, for the penalty on length.
        code: runs answers that are code; None: no task's are.
    """

    def __init__(self, config: RewardConfig, max_tokens: int, code: CodeGrader | None = None) -> None:
        self._config, self._max_tokens, self._code = config, max_tokens, code
        self._judge = Judge(config.judge) if config.judge is not None else None

    def __call__(self, answered: Sequence[Answered]) -> list[Reward]:
        """Scores with their parts.

        Raises:
            GraderUnavailable: no score can be had from the judge, or no code can be run.
        """
        rewards = [self._by_rule(one) for one in answered]
        waiting = [index for index, one in enumerate(answered) if self._grader(one.example) == JUDGE]
        if waiting:
            assert self._judge is not None
            asked = [
                JudgeQuestion(one.example.question, one.example.answer, long_answer(one.text))
                for one in (answered[index] for index in waiting)
            ]
            for index, score in zip(waiting, self._judge.scores(asked), strict=True):
                unclear = {"unclear": float(score is None)}
                rewards[index] = {**rewards[index], **unclear, "answer": score or 0.0}
        running = [index for index, one in enumerate(answered) if self._grader(one.example) == EXECUTION]
        if running:
            assert self._code is not None
            found = self._code([(answered[index].text, answered[index].example) for index in running])
            for index, reward in zip(running, found, strict=True):
                rewards[index] = {**rewards[index], **reward.parts}
        return [self._weighed(parts) for parts in rewards]

    def _grader(self, example: Example) -> str:
        graders = self._config.graders
        return graders[example.task] if example.task in graders else graders["other"]

    def _by_rule(self, one: Answered) -> dict[str, float]:
        name, example = self._grader(one.example), one.example
        final = final_answer(one.text)
        parts = {"answer": 0.0, "format": float(final is not None)}
        if name in WHOLE:
            parts |= WHOLE[name](one.text, example).parts
        elif name in FINAL:
            parts["answer"] = FINAL[name](final or "", example.answer)
        elif name in LONG:
            parts["answer"] = LONG[name](long_answer(one.text), example.answer)
        parts["evidence"] = evidence_score(one.text, example, self._config.evidence_beta)
        weights = self._config.weights
        if weights.get("overlong"):
            parts["overlong"] = overlong(one.tokens, self._max_tokens, self._config.overlong_tokens)
        if weights.get("repetition"):
            parts["repetition"] = repetition(one.text)
        return parts

    def _weighed(self, parts: dict[str, float]) -> Reward:
        weights = self._config.weights
        if weights.get("grounded"):
            parts["grounded"] = parts["answer"] * parts["evidence"]
        total = sum(weight for name, weight in weights.items() if name not in PENALTIES)
        score = sum(weight * parts[name] for name, weight in weights.items() if weight)
        return Reward(score / total, parts)


def long_answer(text: str) -> str:
    """What follows the last ``Answer:``, over several lines; the whole text without its reasoning if there is none."""
    text = text.rpartition("</think>")[2]
    return text.rpartition(ANSWER_MARK)[2].strip()


def overlong(tokens: int, limit: int, buffer: int) -> float:
    """0 up to ``limit - buffer`` tokens, then a straight line to -1 at the limit."""
    return -min(1.0, max(0.0, (tokens - (limit - buffer)) / buffer)) if buffer else 0.0


def repetition(text: str) -> float:
    """Minus the share of sequences of ``REPEATED_WORDS`` words that occurred before."""
    tokens = text.split()
    windows = [tuple(tokens[i : i + REPEATED_WORDS]) for i in range(len(tokens) - REPEATED_WORDS + 1)]
    return len(set(windows)) / len(windows) - 1.0 if windows else 0.0


def check_reward(config: RewardConfig, tasks: Sequence[str]) -> None:
    """Raise ValueError for the first thing that is wrong with a configuration."""
    for task, name in config.graders.items():
        if name not in GRADER_NAMES:
            raise ValueError(f"reward.graders.{task}={name}: choose one of {', '.join(GRADER_NAMES)}")
        if name == JUDGE and config.judge is None:
            raise ValueError(f"reward.graders.{task}=judge, but reward.judge is null: choose reward=judge")
    for part, weight in config.weights.items():
        if part not in PARTS:
            raise ValueError(f"unknown key reward.weights.{part}: choose from {', '.join(PARTS)}")
        if weight < 0:
            raise ValueError(
                f"reward.weights.{part}={weight}: set it to 0 or more; penalties are negative without a sign"
            )
    if config.evidence_beta <= 0:
        raise ValueError(f"reward.evidence_beta={config.evidence_beta}: set it above 0")
    if config.weights.get("overlong") and not config.overlong_tokens > 0:
        raise ValueError("reward.weights.overlong needs reward.overlong_tokens above 0, such as 512")
    if not sum(weight for name, weight in config.weights.items() if name not in PENALTIES):
        raise ValueError("reward.weights gives nothing for an answer: set reward.weights.answer=1")
    for task in tasks:
        if task not in config.graders and "other" not in config.graders:
            raise ValueError(f"reward={config.name} has no grader for task {task}: choose reward=rules or judge")
