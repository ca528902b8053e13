"""A language model as judge of answers that no rule can grade, behind an OpenAI-compatible endpoint.

Verdicts are binary, as in the dGRPO paper. The judge sees question, reference and answer, but not the document. Rules
come first, without a query: an answer in the reference's own words is right; an answer without content, or one of the
phrases known to fool judges ("master keys", arXiv 2507.08794), is wrong. An unclear verdict is requested once more.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from longctx_rl.config.reward import JudgeConfig
from longctx_rl.rewards.endpoint import Endpoint, EndpointFailed, check_endpoint, check_prompt
from longctx_rl.rewards.replies import REJECTED
from longctx_rl.rewards.text import same, words

MASTER_KEYS = frozenset(
    tuple(words(key))
    for key in (
        "Thought process:", "Let's solve this problem step by step.", "Let's think step by step", "Solution", "Answer",
        "The answer is", "The correct answer", "Yes", "Correct", "解", "解答", "かいせつ", "Respuesta", "Lösung",
    )
)  # fmt: skip
"""Answers that are wrong without a query to the judge, unless the reference is the same phrase."""
UNCLEAR_LIMIT = 0.2
"""Share of verdicts that may be neither yes nor no before the judge counts as unusable."""
MARKS = re.compile(
    r"\[(?:question|reference|answer|end|/?inst)\]|<([|\uff5c])[^<>\s]*\1>|</?(?:think|s|start_of_turn|end_of_turn)>",
    re.IGNORECASE,
)
"""The section marks of the prompt and the special tokens of chat templates, which become spaces in answers."""


class GraderUnavailable(Exception):
    """The judge's endpoint or the sandbox cannot be used. No answer of the failed call has a score."""


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """A question to the judge."""

    question: str
    reference: str
    answer: str


class Judge:
    """Gives verdicts, which are cached on disk. Raises ValueError if the client's package is not installed."""

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._endpoint = Endpoint(config, "reward.judge")

    def scores(self, questions: Sequence[JudgeQuestion]) -> list[float | None]:
        """Return 1 or 0 for each question, queried concurrently; None where the judge twice gave no verdict.

        Raises:
            GraderUnavailable: the endpoint fails after all retries, or too many questions have no verdict.
        """
        decided = [by_rule(question) for question in questions]
        undecided = [index for index, score in enumerate(decided) if score is None]
        try:
            verdicts = self._endpoint.each(self._verdict, [questions[index] for index in undecided])
        except EndpointFailed as error:
            raise GraderUnavailable(f"the judge {error}") from error
        reasons = [verdict for verdict in verdicts if isinstance(verdict, str)]
        if len(reasons) > UNCLEAR_LIMIT * max(len(verdicts), 5):
            reason = Counter(reasons).most_common(1)[0][0]
            missing = f"{len(reasons)} of {len(verdicts)} questions"
            raise GraderUnavailable(f"the judge {self._config.model} gave no verdict on {missing}: {reason}")
        for index, verdict in zip(undecided, verdicts, strict=True):
            decided[index] = None if isinstance(verdict, str) else float(verdict)
        return decided

    def _verdict(self, question: JudgeQuestion) -> bool | str:
        """Whether the judge says yes; or why it says neither yes nor no."""
        texts = {name: MARKS.sub(" ", text) for name, text in asdict(question).items()}
        prompt = self._config.prompt.format(**texts)
        reason = ""
        for temperature in (0.0, 1.0):
            reply = self._endpoint.ask(prompt, temperature=temperature, keep=lambda t: parse_verdict(t) is not None)
            if reply.problem:
                said = f'{reply.problem} ("{reply.text}")' if reply.text else reply.problem
                if reply.problem == REJECTED:
                    return f"{said}: change reward.judge accordingly"
                reason = f"{said}; if this persists, choose another reward.judge.model"
            elif (verdict := parse_verdict(reply.text)) is not None:
                return verdict
            elif reply.finish_reason == "length":
                reason = "its reply was truncated: raise reward.judge.max_tokens or set reward.judge.no_thinking=true"
            else:
                reason = "it said neither yes nor no: choose another reward.judge.model, or fix reward.judge.prompt"
        return reason


def check_judge(config: JudgeConfig) -> None:
    """Raise ValueError for the first setting that cannot be used."""
    check_endpoint(config, "reward.judge")
    check_prompt(config.prompt, ("question", "reference", "answer"), "reward.judge.prompt")


def by_rule(one: JudgeQuestion) -> float | None:
    """Return the score that a rule gives, or None if the judge has to decide."""
    tokens = words(one.answer)
    if not tokens:
        return 0.0
    if same(one.answer, one.reference):
        return 1.0
    return 0.0 if tuple(tokens) in MASTER_KEYS else None


def parse_verdict(reply: str) -> bool | None:
    """Return whether the first word after any reasoning is yes; None if it is neither yes nor no."""
    said = words(reply.rpartition("</think>")[2])
    return {"yes": True, "no": False}.get(said[0]) if said else None
