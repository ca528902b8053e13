"""The part of the configuration that says who the teacher is, and what it reads. See config/schema.py."""

from dataclasses import dataclass
from typing import Literal

from longctx_rl.objective.spec import Divergence

TeacherKind = Literal["external", "initial", "policy", "ema"]
View = Literal["document", "evidence", "short", "retrieved", "answer", "closed", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig(Divergence):
    """The divergence to the teacher, who the teacher is, and what it reads."""

    teacher: TeacherKind = "external"
    """``external``: model.teacher. ``initial``: the student's weights before training. ``policy``: the student as it is
    at each step. ``ema``: an exponential moving average of the student's weights."""
    ema_half_life: float | None = None
    """Updates after which an old value of a weight counts half as much in the average of ``teacher=ema``."""
    view: View = "document"
    """What the teacher reads before it scores the student's tokens. ``document``: the student's own prompt.
    ``evidence``: the parts of the document that the answer rests on, in the document's order. ``short``: generated data
    only, the same question about a document of view_tokens. ``retrieved``: the passages of the document that match
    question and reference answer best (BM25), up to view_tokens. ``answer``: the document, and the reference answer in
    answer_prompt. ``closed``: no document. ``wrong``: the evidence of another example."""
    view_tokens: int = 256
    """Tokens of the documents of ``short`` and ``retrieved``, and of what is shown where an example has no evidence."""
    answer_prompt: str = (
        "The reference answer is: {answer}\n"
        "Explain in your own words how the text leads to it, then give the answer as requested."
    )
    """Text with {answer} that follows the question in the view ``answer``."""

    @property
    def itself(self) -> bool:
        """Whether the teacher has the student's architecture and, in some version, its weights."""
        return self.teacher != "external"
