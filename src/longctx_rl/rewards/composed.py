"""The reward of a run: a grader for each task's answers, and a weighted sum of parts.

    score = sum of weight * part / sum of the weights of all parts except penalties

Parts:

- ``answer``, in [0, 1], from the task's grader;
- ``evidence``, in [0, 1], F-beta of the restated evidence;
- ``grounded``, answer times evidence: with the weights 1, eta and 1 - eta for answer, evidence and grounded, the score
  is LongRLVR's reward (arXiv 2603.02146). Examples whose answers restate no evidence are scored without these two;
- ``format``, whether there is a final answer;
- the penalties ``overlong`` (DAPO's soft penalty, arXiv 2503.14476) and ``repetition``, in [-1, 0].

Some parts are reported and take no weight: ``unclear``, whether the judge said neither yes nor no, which counts as
wrong; for code ``passed``, ``recall``, ``hallucinated`` and ``suspicious`` (see execution.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longctx_rl.config.reward import PENALTIES, RewardConfig
from longctx_rl.rewards import text as rules
from longctx_rl.rewards.answers import (
    Grader,
    evidence_score,
    final_answer,
    grade_continuation,
    grade_exact,
    grade_ordered_list,
    long_answer,
)
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rewards.judge import Judge, JudgeQuestion, check_judge
from longctx_rl.types import UNANSWERABLE, Example, Reward

JUDGE, EXECUTION = "judge", "execution"
WHOLE: dict[str, Grader] = {
    "exact": grade_exact,
    "ordered_list": grade_ordered_list,
    "continuation": grade_continuation,
}
"""Graders of the whole completion."""
FINAL: dict[str, Callable[[str, str], float]] = {
    "match": rules.match,
    "token_f1": rules.token_f1,
    "set_f1": rules.set_f1,
    "choice": rules.choice,
    "math": rules.mathematical,
}
"""Graders of the final answer against the reference."""
LONG: dict[str, Callable[[str, str], float]] = {"rouge_l": rules.rouge_l}
"""Graders of answers of several lines: all text after the last ``Answer:``, or the whole text if there is none."""
GRADER_NAMES = (*WHOLE, *FINAL, *LONG, JUDGE, EXECUTION)
PARTS = ("answer", "evidence", "grounded", "format", *PENALTIES)
CONTEXT = ("evidence", "grounded")
"""Parts that exist only for examples with evidence: LongRLVR's context reward."""
REPEATED_WORDS = 8
"""Length, in words, of the sequences whose repetition is penalised."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A completion to grade."""

    text: str
    tokens: int
    """Its length."""
    example: Example


class Rewarder:
    """Grades completions as configured. Rules are pure functions; the judge is queried for all completions at once.

    Args:
        max_tokens: the sampler's length limit, for the penalty ``overlong``.
        code: grades answers that are code; None: no task has such answers.
    """

    def __init__(self, config: RewardConfig, max_tokens: int, code: CodeGrader | None = None) -> None:
        self._config, self._max_tokens, self._code = config, max_tokens, code
        self._judge = Judge(config.judge) if config.judge is not None else None

    def __call__(self, answered: Sequence[Answered]) -> list[Reward]:
        """Return the reward of each completion.

        Raises:
            GraderUnavailable: the judge gives no scores, or code can no longer be run.
        """
        rewards = [self._by_rule(completion) for completion in answered]
        waiting = [index for index, completion in enumerate(answered) if self._grader(completion.example) == JUDGE]
        if waiting:
            assert self._judge is not None
            questions = [
                JudgeQuestion(completion.example.question, completion.example.answer, long_answer(completion.text))
                for completion in (answered[index] for index in waiting)
            ]
            for index, score in zip(waiting, self._judge.scores(questions), strict=True):
                unclear = {"unclear": float(score is None)}
                rewards[index] = {**rewards[index], **unclear, "answer": score or 0.0}
        running = [index for index, completion in enumerate(answered) if self._grader(completion.example) == EXECUTION]
        if running:
            assert self._code is not None
            code_rewards = self._code([(answered[index].text, answered[index].example) for index in running])
            for index, reward in zip(running, code_rewards, strict=True):
                rewards[index] = {**rewards[index], **reward.parts}
        return [self._weighed(parts, one.example) for parts, one in zip(rewards, answered, strict=True)]

    def _grader(self, example: Example) -> str:
        graders = self._config.graders
        return graders[example.task] if example.task in graders else graders["other"]

    def _by_rule(self, completion: Answered) -> dict[str, float]:
        name, example = self._grader(completion.example), completion.example
        final = final_answer(completion.text)
        parts = {"answer": 0.0, "format": float(final is not None)}
        if name in WHOLE:
            parts |= WHOLE[name](completion.text, example).parts
        elif name in FINAL:
            parts["answer"] = FINAL[name](final or "", example.answer)
        elif name in LONG:
            parts["answer"] = LONG[name](long_answer(completion.text), example.answer)
        parts["evidence"] = evidence_score(completion.text, example, self._config.evidence_beta)
        weights = self._config.weights
        if weights.get("overlong"):
            parts["overlong"] = overlong(completion.tokens, self._max_tokens, self._config.overlong_tokens)
        if weights.get("repetition"):
            parts["repetition"] = repetition(completion.text)
        return parts

    def _weighed(self, parts: dict[str, float], example: Example) -> Reward:
        weights = self._config.weights
        if not states_evidence(example):
            weights = {name: weight for name, weight in weights.items() if name not in CONTEXT}
        if weights.get("grounded"):
            parts["grounded"] = parts["answer"] * parts["evidence"]
        total = sum(weight for name, weight in weights.items() if name not in PENALTIES)
        score = sum(weight * parts[name] for name, weight in weights.items() if weight)
        return Reward(score / total, parts)


def states_evidence(example: Example) -> bool:
    """Whether an answer is expected to restate what it rests on: code and continued text are not.

    Without evidence, only a question without an answer is, if its worked target says what is missing.
    """
    missing = example.answer == UNANSWERABLE and "\n" in example.target.strip()
    return example.code is None and example.chat and bool(example.evidence or missing)


def overlong(tokens: int, limit: int, buffer: int) -> float:
    """Return 0 up to ``limit - buffer`` tokens, then linearly down to -1 at the limit."""
    return -min(1.0, max(0.0, (tokens - (limit - buffer)) / buffer)) if buffer else 0.0


def repetition(text: str) -> float:
    """Return minus the share of sequences of ``REPEATED_WORDS`` words that occur earlier in the text."""
    tokens = text.split()
    windows = [tuple(tokens[i : i + REPEATED_WORDS]) for i in range(len(tokens) - REPEATED_WORDS + 1)]
    return len(set(windows)) / len(windows) - 1.0 if windows else 0.0


def check_reward(config: RewardConfig, tasks: Sequence[str]) -> None:
    """Raise ValueError for the first setting of a configuration that is wrong."""
    for task, name in config.graders.items():
        if name not in GRADER_NAMES:
            raise ValueError(f"reward.graders.{task}={name}: choose one of {', '.join(GRADER_NAMES)}")
        if name == JUDGE and config.judge is None:
            raise ValueError(f"reward.graders.{task}=judge, but reward.judge is null: choose reward=judge")
    if config.judge is not None:
        check_judge(config.judge)
    for part, weight in config.weights.items():
        if part not in PARTS:
            raise ValueError(f"unknown key reward.weights.{part}: choose from {', '.join(PARTS)}")
        if weight < 0:
            raise ValueError(
                f"reward.weights.{part}={weight}: set it to 0 or more; a penalty's values are already negative"
            )
    if config.evidence_beta <= 0:
        raise ValueError(f"reward.evidence_beta={config.evidence_beta}: set it above 0")
    if config.weights.get("overlong") and not config.overlong_tokens > 0:
        raise ValueError("reward.weights.overlong needs reward.overlong_tokens above 0, such as 512")
    if not sum(weight for name, weight in config.weights.items() if name not in (*PENALTIES, *CONTEXT)):
        raise ValueError(
            "reward.weights gives no weight to any part except penalties and evidence, which not every example has: "
            "set reward.weights.answer=1"
        )
    for task in tasks:
        if task not in config.graders and "other" not in config.graders:
            raise ValueError(f"reward={config.name} has no grader for task {task}: choose reward=rules or judge")
