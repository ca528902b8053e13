"""From documents to rows: each question is written, checked, and kept or rejected with its reason.

Every reply of a model is kept on disk as it comes, so a build that was killed goes on without asking, or paying, twice.
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
from longctx_rl.data.building.checks import Rejected, check_closed_book, check_evidence, is_repeated, parse
from longctx_rl.data.building.documents import Document, read_documents
from longctx_rl.data.building.excerpts import choose_passages
from longctx_rl.data.store import digest
from longctx_rl.rewards.endpoint import Endpoint, EndpointFailed, Reply, RequestRefused
from longctx_rl.rewards.judge import parse_verdict

STAGES = (
    "written", "parsed", "evidence found", "not known without the document", "supported", "not repeated", "balanced",
)  # fmt: skip


@dataclass(slots=True)
class BuiltRow:
    """What one place in the plan came to."""

    row: dict[str, Any] | None = None
    rejected: list[dict[str, str]] = field(default_factory=list)
    """Reason and reply of each attempt that failed."""
    stages: Counter[str] = field(default_factory=Counter)
    spent: Counter[str] = field(default_factory=Counter)
    """Replies, how many of them were asked for now, and tokens."""


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A question to be had."""

    document: Document
    task: str
    number: int


class Builder:
    """Asks and checks. Raises ValueError for what cannot be used before anything is asked."""

    def __init__(self, config: BuildConfig) -> None:
        self.config = config
        self.documents, self.left_out = read_documents(Path(config.documents).expanduser(), config.minimum_characters)
        self.writer = Endpoint(config.writer, "writer")
        self.responder = Endpoint(config.responder, "responder") if config.responder is not None else None

    def plan(self) -> list[QuestionKind]:
        """All questions that are asked for."""
        return [
            QuestionKind(document, task, number)
            for document in self.documents
            for task, count in self.config.tasks.items()
            for number in range(count)
        ]

    def work(self, task: QuestionKind) -> BuiltRow:
        """Attempts until one question withstands every check. Raises EndpointFailed."""
        outcome = BuiltRow()
        for attempt in range(self.config.attempts):
            reply_text = ""
            try:
                passages = self._passages(task, attempt)
                reply = self._ask(self._writing(task, passages), outcome, temperature=0.7 if attempt else 0.0)
                reply_text = reply.text
                outcome.stages["written"] += 1
                if reply.finish_reason == "length":
                    raise Rejected("the reply was cut off: raise writer.max_tokens")
                outcome.row = self._checked(task, reply.text, passages, outcome)
                return outcome
            except (Rejected, RequestRefused) as error:
                reason = str(error) if isinstance(error, Rejected) else "the endpoint refuses the request"
                outcome.rejected.append(
                    {"document": task.document.name, "task": task.task, "reason": reason, "reply": reply_text}
                )
        return outcome

    def respond(self, row: dict[str, Any]) -> tuple[str | None, Counter[str]]:
        """The teacher's answer from the whole document; None if it is refused, empty or cut off."""
        assert self.responder is not None
        prompt = self.config.prompts.response.format(document=row["document"], question=row["question"])
        try:
            reply = self.responder.ask(prompt)
        except RequestRefused:
            return None, Counter(refused=1)
        whole = reply.finish_reason != "length" and bool(reply.text)
        return (reply.text if whole else None), _spent(reply) + Counter(cut_off=int(not whole))

    def _passages(self, task: QuestionKind, attempt: int) -> list[str]:
        config = self.config
        draw = random.Random(f"{config.seed} {task.document.name} {task.task} {task.number} {attempt}")
        found = choose_passages(
            task.document.text,
            count=config.passages,
            characters=config.passage_characters,
            minimum_distance=config.minimum_distance,
            draw=draw,
        )
        return [passage for _, passage in found]

    def _writing(self, task: QuestionKind, passages: list[str]) -> str:
        language = "the language of the passages" if self.config.language == "auto" else self.config.language
        return self.config.prompts.question[task.task].format(passages=_numbered(passages), language=language)

    def _ask(self, prompt: str, outcome: BuiltRow, temperature: float = 0.0) -> Reply:
        reply = self.writer.ask(prompt, temperature=temperature)
        outcome.spent += _spent(reply)
        return reply

    def _checked(self, task: QuestionKind, text: str, passages: list[str], outcome: BuiltRow) -> dict[str, Any]:
        """The row of a reply that withstands the checks. Raises Rejected."""
        prompts, document = self.config.prompts, task.document.text
        written = parse(text)
        outcome.stages["parsed"] += 1
        places = check_evidence(written, document, task.task)
        outcome.stages["evidence found"] += 1
        guess = self._ask(prompts.closed_book.format(question=written.question), outcome)
        if guess.finish_reason == "length":
            raise Rejected("the closed-book reply was cut off: raise writer.max_tokens")
        check_closed_book(written, guess.text, task.task)
        outcome.stages["not known without the document"] += 1
        question = prompts.supported.format(
            passages=_numbered(passages), question=written.question, answer=written.answer
        )
        verdict = parse_verdict(self._ask(question, outcome).text)
        if verdict is None:
            raise Rejected("the judge said neither yes nor no")
        if not verdict:
            raise Rejected("the judge finds the answer not supported")
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
    """All outcomes, in the plan's order, some at a time. Raises ValueError when the endpoint fails."""
    plan, block = builder.plan(), 4 * builder.config.writer.concurrency
    for start in range(0, len(plan), block):
        try:
            yield from builder.writer.each(builder.work, plan[start : start + block])
        except EndpointFailed as error:
            raise ValueError(f"{error}. All replies so far are kept: the same command goes on from there") from error


def without_repeats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of the questions about a document that ask the same."""
    asked: dict[str, list[tuple[str, str]]] = {}
    kept = []
    for row in rows:
        others = asked.setdefault(row["family_id"], [])
        if not is_repeated(row["question"], row["answer"], others):
            others.append((row["question"], row["answer"]))
            kept.append(row)
    return kept


def balanced(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """At most three times as many rows of a task and length as the median has, drawn at random; the order is kept."""
    cells: dict[tuple[str, int], list[int]] = {}
    for index, row in enumerate(rows):
        cells.setdefault((row["task"], len(row["document"]).bit_length()), []).append(index)
    most = round(3 * statistics.median(map(len, cells.values()))) if cells else 0
    draw = random.Random(f"balance {seed}")
    kept = {index for cell in cells.values() for index in draw.sample(cell, min(len(cell), most))}
    return [row for index, row in enumerate(rows) if index in kept]


def _numbered(passages: list[str]) -> str:
    return "\n\n".join(f"[{number}]\n{passage}" for number, passage in enumerate(passages, 1))


def _spent(reply: Reply) -> Counter[str]:
    return Counter(
        replies=1,
        asked=int(not reply.cached),
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )
