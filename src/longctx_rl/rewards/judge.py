"""A language model as judge of answers that no rule finds right, behind any OpenAI-compatible endpoint.

Binary, as in the dGRPO paper. The judge sees question, reference and answer, not the document. Rules come first: an
answer in the reference's own words is right, and one without content, or one of the phrases that are known to fool
judges ("master keys", arXiv 2507.08794), is wrong without asking. An unclear verdict is asked for once more.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from longctx_rl.config.reward import JudgeConfig
from longctx_rl.rewards.endpoint import Endpoint, EndpointFailed, RequestRefused
from longctx_rl.rewards.text import same, words

MASTER_KEYS = frozenset(
    tuple(words(key))
    for key in (
        "Thought process:", "Let's solve this problem step by step.", "Let's think step by step", "Solution", "Answer",
        "The answer is", "The correct answer", "Yes", "Correct", "解", "解答", "かいせつ", "Respuesta", "Lösung",
    )
)  # fmt: skip
"""Answers that are never sent to the judge, unless the reference is just that."""
UNCLEAR_LIMIT = 0.2
"""Share of verdicts that may be neither yes nor no before a judge is given up."""
MARKS = re.compile(r"\[(?:question|reference|answer|end)\]", re.IGNORECASE)
"""The prompt's own marks, which no answer may set."""


class GraderUnavailable(Exception):
    """What grades cannot be used: the endpoint, or the sandbox. Nothing that it was asked has a score."""


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """What the judge is asked."""

    question: str
    reference: str
    answer: str


class Judge:
    """Verdicts, each asked for once and kept on disk. Raises ValueError if the client's package is not installed."""

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._endpoint = Endpoint(config, "reward.judge")

    def scores(self, questions: Sequence[JudgeQuestion]) -> list[float | None]:
        """1 or 0 for each, asked concurrently; None where the judge said neither yes nor no, twice.

        Raises:
            GraderUnavailable: the endpoint fails after all retries, or too many verdicts are unclear.
        """
        decided = [by_rule(one) for one in questions]
        open_ones = [index for index, score in enumerate(decided) if score is None]
        try:
            verdicts = self._endpoint.each(self._verdict, [questions[index] for index in open_ones])
        except EndpointFailed as error:
            raise GraderUnavailable(f"the judge {error}") from error
        unclear = sum(verdict is None for verdict in verdicts)
        if unclear > UNCLEAR_LIMIT * max(len(verdicts), 5):
            raise GraderUnavailable(
                f"the judge {self._config.model} answered neither yes nor no to {unclear} of {len(verdicts)} "
                "questions: choose another model or mend reward.judge.prompt"
            )
        for index, verdict in zip(open_ones, verdicts, strict=True):
            decided[index] = None if verdict is None else float(verdict)
        return decided

    def _verdict(self, one: JudgeQuestion) -> bool | None:
        """Whether the judge says yes; None if it says neither, or the endpoint refuses this one request."""
        texts = {name: MARKS.sub("", text) for name, text in asdict(one).items()}
        prompt = self._config.prompt.format(**texts)
        for temperature in (0.0, 1.0):
            try:
                reply = self._endpoint.ask(prompt, temperature=temperature, keep=lambda t: parse_verdict(t) is not None)
            except RequestRefused:
                return None
            if (verdict := parse_verdict(reply.text)) is not None:
                return verdict
        return None


def by_rule(one: JudgeQuestion) -> float | None:
    """A score that needs no judge; None if one is needed."""
    found = words(one.answer)
    if not found:
        return 0.0
    if same(one.answer, one.reference):
        return 1.0
    return 0.0 if tuple(found) in MASTER_KEYS else None


def parse_verdict(reply: str) -> bool | None:
    """The first word after any reasoning: yes or no. None if it is neither."""
    said = words(reply.rpartition("</think>")[2])
    return {"yes": True, "no": False}.get(said[0]) if said else None
