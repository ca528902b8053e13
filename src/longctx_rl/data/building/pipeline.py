"""From documents to rows: each question is written, checked, and kept or rejected with a reason.

Every reply of a model is cached on disk as it arrives, so an interrupted build resumes without repeating a request.
"""

import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longctx_rl.config.build import BuildConfig
from longctx_rl.data.building.documents import Document, choose_passages, read_documents
from longctx_rl.data.building.rejection import Rejected, check_closed_book, check_evidence, is_repeated, parse
from longctx_rl.data.store import digest
from longctx_rl.rewards.endpoint import Endpoint, EndpointFailed
from longctx_rl.rewards.judge import parse_verdict
from longctx_rl.rewards.replies import Reply

STAGES = (
    "written", "parsed", "evidence found", "not known without the document", "supported", "not repeated", "balanced",
)  # fmt: skip


@dataclass(slots=True)
class BuiltRow:
    """The outcome of one question of the plan."""

    row: dict[str, Any] | None = None
    rejected: list[dict[str, str]] = field(default_factory=list)
    """Document, task, reason and the writer's reply of each failed attempt."""
    stages: Counter[str] = field(default_factory=Counter)
    """Number of attempts that passed each stage."""
    spent: Counter[str] = field(default_factory=Counter)
    """Replies, how many of them needed a request, and tokens."""


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A question of the plan."""

    document: Document
    task: str
    number: int


class Builder:
    """Writes and checks questions. Raises ValueError, before any request, for unusable documents or endpoints."""

    def __init__(self, config: BuildConfig) -> None:
        self.config = config
        self.documents, self.left_out = read_documents(Path(config.documents).expanduser(), config.minimum_characters)
        self.writer = Endpoint(config.writer, "writer")
        self.responder = Endpoint(config.responder, "responder") if config.responder is not None else None

    def plan(self) -> list[QuestionKind]:
        """Return all questions that the configuration requests."""
        return [
            QuestionKind(document, task, number)
            for document in self.documents
            for task, count in self.config.tasks.items()
            for number in range(count)
        ]

    def work(self, task: QuestionKind) -> BuiltRow:
        """Make attempts until a question passes every check or none are left. Raises EndpointFailed."""
        outcome = BuiltRow()
        for attempt in range(self.config.attempts):
            passages = self._passages(task, attempt)
            reply = self._ask(self._writing(task, passages), outcome, temperature=0.7 if attempt else 0.0)
            outcome.stages["written"] += not reply.problem
            try:
                _check_complete(reply, "the reply", "writer")
                outcome.row = self._checked(task, reply.text, passages, outcome)
                return outcome
            except Rejected as error:
                outcome.rejected.append(
                    {"document": task.document.name, "task": task.task, "reason": str(error), "reply": reply.text}
                )
        return outcome

    def respond(self, row: dict[str, Any]) -> tuple[Reply, str]:
        """Return the teacher's answer from the whole document, and why it cannot be used; empty if it can."""
        assert self.responder is not None
        prompt = self.config.prompts.response.format(document=row["document"], question=row["question"])
        reply = self.responder.ask(prompt)
        try:
            _check_complete(reply, "the reply", "responder")
        except Rejected as error:
            return reply, str(error)
        return reply, ""

    def _passages(self, task: QuestionKind, attempt: int) -> list[str]:
        config = self.config
        draw = random.Random(f"{config.seed} {task.document.name} {task.task} {task.number} {attempt}")
        passages = choose_passages(
            task.document.text,
            count=config.passages,
            characters=config.passage_characters,
            minimum_distance=config.minimum_distance,
            draw=draw,
        )
        return [passage for _, passage in passages]

    def _writing(self, task: QuestionKind, passages: list[str]) -> str:
        language = "the language of the passages" if self.config.language == "auto" else self.config.language
        return self.config.prompts.question[task.task].format(passages=_numbered(passages), language=language)

    def _ask(self, prompt: str, outcome: BuiltRow, temperature: float = 0.0) -> Reply:
        reply = self.writer.ask(prompt, temperature=temperature)
        outcome.spent += spent_on(reply)
        return reply

    def _checked(self, task: QuestionKind, text: str, passages: list[str], outcome: BuiltRow) -> dict[str, Any]:
        """Return the row of a reply that passes the checks. Raises Rejected."""
        prompts, document = self.config.prompts, task.document.text
        written = parse(text)
        outcome.stages["parsed"] += 1
        places = check_evidence(written, document, task.task)
        outcome.stages["evidence found"] += 1
        guess = self._ask(prompts.closed_book.format(question=written.question), outcome)
        _check_complete(guess, "the closed-book reply", "writer")
        check_closed_book(written, guess.text, task.task)
        outcome.stages["not known without the document"] += 1
        question = prompts.supported.format(
            passages=_numbered(passages), question=written.question, answer=written.answer
        )
        judged = self._ask(question, outcome)
        verdict = None if judged.problem else parse_verdict(judged.text)
        if verdict is None:
            _check_complete(judged, "the judge's reply", "writer")
            raise Rejected("the judge said neither yes nor no")
        if not verdict:
            raise Rejected("the judge says that the answer is not supported")
        outcome.stages["supported"] += 1
        evidence = [
            {"text": document[start:end], "statement": document[start:end], "depth": round(start / len(document), 4)}
            for start, end in places
        ]
        return {
            "id": digest(document, written.question)[:16],
            "document": document,
            "source": self.config.source,
            "language": task.document.programming_language
            or (written.language if self.config.language == "auto" else self.config.language),
            "question": written.question,
            "answer": written.answer,
            "task": task.task,
            "evidence": json.dumps(evidence, ensure_ascii=False),
            "family_id": digest(document)[:16],
        }


def rows_of(builder: Builder) -> Iterator[BuiltRow]:
    """Yield all outcomes in the plan's order, block by block. Raises ValueError if the endpoint fails."""
    plan, block = builder.plan(), 4 * builder.config.writer.concurrency
    for start in range(0, len(plan), block):
        try:
            yield from builder.writer.each(builder.work, plan[start : start + block])
        except EndpointFailed as error:
            raise ValueError(f"{error}. All replies so far are kept: the same command resumes from there") from error


def without_repeats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without questions that repeat an earlier one about the same document."""
    questions: dict[str, list[tuple[str, str]]] = {}
    kept = []
    for row in rows:
        others = questions.setdefault(row["family_id"], [])
        if not is_repeated(row["question"], row["answer"], others):
            others.append((row["question"], row["answer"]))
            kept.append(row)
    return kept


def balanced(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Downsample each cell of task and length, at random, to three times the median cell size. The order is kept."""
    cells: dict[tuple[str, int], list[int]] = {}
    for index, row in enumerate(rows):
        cells.setdefault((row["task"], len(row["document"]).bit_length()), []).append(index)
    most = round(3 * statistics.median(map(len, cells.values()))) if cells else 0
    draw = random.Random(f"balance {seed}")
    kept = {index for cell in cells.values() for index in draw.sample(cell, min(len(cell), most))}
    return [row for index, row in enumerate(rows) if index in kept]


def _numbered(passages: list[str]) -> str:
    return "\n\n".join(f"[{number}]\n{passage}" for number, passage in enumerate(passages, 1))


def _check_complete(reply: Reply, name: str, key: str) -> None:
    """Raise Rejected if a reply has no answer, or only the start of one."""
    if reply.problem:
        raise Rejected(reply.problem)
    if reply.finish_reason == "length":
        raise Rejected(f"{name} was truncated: raise {key}.max_tokens")


def spent_on(reply: Reply) -> Counter[str]:
    """Return what a reply cost."""
    return Counter(
        replies=1,
        asked=int(not reply.cached),
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )
