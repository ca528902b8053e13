"""What a teacher reads instead of the student's prompt: the evidence, a shorter document, or none.

A view is the prompt of the same question with other text in the document's place, through the same chat template. The
student never reads it. Some examples have no evidence; what their teacher reads then is part of the result, so that it
can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import regex

from longctx_rl.config.distillation import DistillationConfig
from longctx_rl.config.schema import Config
from longctx_rl.data.cutting import cut
from longctx_rl.data.generators import ruler, solver
from longctx_rl.data.generators.wording import HEADER
from longctx_rl.data.prompts import TokenIds, encode_text
from longctx_rl.data.source import MiniSource, TrainingSource, prompt_ids
from longctx_rl.types import UNANSWERABLE, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASSAGES = 8
"""Passages of a retrieved view, about: each has at most this share of its tokens."""
LEAST_PASSAGE = 32
"""Tokens of the smallest passage."""
NEIGHBOURS = 64
"""Examples after the own one that are tried as the source of wrong evidence."""
SENTENCE = re.compile(r"[^\n]*?(?:[.!?\u3002\uff01\uff1f]+[\"')\]]*(?:\s+|$)|\n+|$)", re.DOTALL)
TERM = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|\w+")
"""A term of BM25: a word, or a character of a script that is written without spaces."""
KINDS = ("document", "evidence", "short", "retrieved", "answer", "closed", "wrong", "slice")
"""What a view can turn out to be; see ``ViewPrompt.kind``."""
MODULE = re.compile(r"^# \w+\.py$", re.MULTILINE)
"""The line above a module in the documents of generated code tasks."""


@dataclass(frozen=True, slots=True)
class ViewPrompt:
    """The prompt that a teacher reads."""

    ids: TokenIds
    kind: str
    """The view that it is: the configured one, or what replaced it. ``slice``: a part of a generated
    document that does not answer the question, of a question without an answer; ``retrieved``: of another example
    without evidence, or with more than the context holds; ``document``: of text that asks nothing; ``closed``: where no
    example nearby has evidence that could be wrong."""


class Views:
    """Renders the configured view of training examples."""

    def __init__(
        self, config: Config, source: TrainingSource, tokenizer: PreTrainedTokenizerBase, context: int | None = None
    ) -> None:
        self._kd, self._source, self._tokenizer = config.algo.kd, source, tokenizer
        self._longest = None if context is None else context - config.rollout.max_new_tokens

    def prompt(self, example: Example, index: int) -> ViewPrompt:
        """Return the view of an example of document ``index`` of the source. A function of its arguments alone.

        Where the view leaves no room for an answer in the context, ``retrieved`` replaces it, and ``closed`` replaces
        ``wrong``: a data set's evidence and reference answers have any length.
        """
        document, question, kind = self._text(example, index)
        ids = prompt_ids(self._tokenizer, replace(example, document=document, question=question))
        if self._longest is not None and len(ids) > self._longest:
            text = "" if kind == "wrong" else retrieved_text(example, self._kd.view_tokens, self._tokenizer)
            kind = "closed" if kind == "wrong" else "retrieved"
            ids = prompt_ids(self._tokenizer, replace(example, document=text))
        return ViewPrompt(ids, kind)

    def _text(self, example: Example, index: int) -> tuple[str, str, str]:
        """Document, question and kind of the view."""
        view, question = self._kd.view, example.question
        if view == "answer":
            return example.document, f"{question}\n\n{answer_text(self._kd, example)}", view
        if not example.chat:  # text to continue
            return example.document, question, "document"
        if view == "closed":
            return "", question, view
        if view == "short":
            assert isinstance(self._source, MiniSource)
            return self._source.shortened(index, self._kd.view_tokens).document, question, view
        if view == "wrong":
            other = self._other(example, index)
            return ("", question, "closed") if other is None else (evidence_text(other), question, view)
        if view == "evidence" and example.evidence:
            return evidence_text(example), question, view
        if view == "evidence" and example.answer == UNANSWERABLE and example.document.startswith(HEADER):
            return unanswered_slice(example, self._kd.view_tokens, self._tokenizer), question, "slice"
        return retrieved_text(example, self._kd.view_tokens, self._tokenizer), question, "retrieved"

    def _other(self, example: Example, index: int) -> Example | None:
        """The next example of the same task that has evidence, of any task if there is none nearby."""
        usable = None
        for offset in range(1, NEIGHBOURS + 1):
            other = self._source.document(index + offset)[0]
            if other.evidence and other.family_id != example.family_id:
                if other.task == example.task:
                    return other
                usable = usable or other
        return usable


def answer_text(kd: DistillationConfig, example: Example) -> str:
    """Return what the view ``answer`` adds to the question."""
    return kd.answer_prompt.replace("{answer}", example.answer)


def evidence_text(example: Example) -> str:
    """Return the evidence in the document's order, with the opening that generated documents begin with.

    A definition keeps the line that names its module.
    """
    document = example.document
    found = {item.text: document.find(item.text) for item in example.evidence}
    pieces = dict.fromkeys(sorted(found, key=lambda text: (found[text] < 0, found[text])))
    if example.code is not None:
        pieces = dict.fromkeys(_with_module(document, piece) for piece in pieces)
    between = "\n\n" if any("\n" in piece for piece in pieces) else "\n" if "\n" in document else " "
    opening = _opening(example)
    return between.join([*([opening] if opening else []), *pieces])


def _opening(example: Example) -> str:
    """The words that say what a generated document is."""
    if example.source == ruler.SOURCE:
        return example.document.partition("\n")[0]
    return HEADER if example.document.startswith(HEADER) else ""


def _with_module(document: str, definition: str) -> str:
    names = list(MODULE.finditer(document, 0, max(document.find(definition), 0)))
    return f"{names[-1][0]}\n{definition}" if names else definition


def unanswered_slice(example: Example, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return neighbouring sentences of a generated document, up to ``tokens``, that do not answer the question either.

    They mention the question's subject, and the independent solver confirms that they hold no answer.
    """
    sentences = _sentences(example.document.removeprefix(HEADER))
    sizes = [len(encode_text(tokenizer, sentence)) for sentence in sentences]
    for first in range(len(sentences)):
        last, used = first, 0
        while last < len(sentences) and used + sizes[last] <= tokens:
            used += sizes[last]
            last += 1
        text = f"{HEADER} {''.join(sentences[first:last]).strip()}"
        try:
            if last > first and solver.solve(text, example.question) == UNANSWERABLE:
                return text
        except solver.AmbiguousError:  # nothing is said about the subject, or a journey was cut
            continue
    raise AssertionError(f"no part of the document of {example.id} mentions what its question is about")


def retrieved_text(example: Example, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the passages of a document that match question and reference answer best, in the document's order.

    Of passages with equal scores the earlier one is better. The document as a whole is returned if it has no more than
    ``tokens``. Generated documents keep their opening.
    """
    if len(encode_text(tokenizer, example.document)) <= tokens:
        return example.document
    opening = _opening(example)
    tokens -= len(encode_text(tokenizer, opening))
    passages, sizes = _passages(example.document, max(LEAST_PASSAGE, tokens // PASSAGES), tokenizer)
    scores = bm25([_terms(passage) for passage in passages], _terms(f"{example.question}\n{example.answer}"))
    chosen, used = set(), 0
    for best in sorted(range(len(passages)), key=lambda place: (-scores[place], place)):
        if used + sizes[best] <= tokens:
            chosen.add(best)
            used += sizes[best]
    text = "".join(passages[place] for place in sorted(chosen)).strip()
    return text if text.startswith(opening) else f"{opening} {text}"


def bm25(passages: Sequence[Sequence[str]], query: Sequence[str]) -> list[float]:
    """Return the BM25 score of each passage, in Lucene's variant."""
    from bm25s import BM25  # commands answer before they import it

    index = BM25(method="lucene")
    index.index([list(passage) for passage in passages], show_progress=False)
    known = [term for term in dict.fromkeys(query) if term in index.vocab_dict]
    return [float(score) for score in index.get_scores(known)] if known else [0.0] * len(passages)


def _terms(text: str) -> list[str]:
    terms: list[str] = TERM.findall(text.casefold())
    return terms


def _sentences(text: str) -> list[str]:
    """Sentences and lines of a text, each with the blanks that follow it; together they are the text."""
    return [piece for piece in SENTENCE.findall(text) if piece]


def _passages(document: str, most: int, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[int]]:
    """Neighbouring sentences joined to passages of at most ``most`` tokens, and the tokens of each.

    A sentence that is longer is truncated in its middle.
    """
    passages: list[str] = []
    sizes: list[int] = []
    for sentence in _sentences(document):
        size = len(encode_text(tokenizer, sentence))
        if size > most:
            sentence = cut(sentence, most, tokenizer, answer=None)
            size = len(encode_text(tokenizer, sentence))
        if passages and sizes[-1] + size <= most:
            passages[-1] += sentence
            sizes[-1] += size
        else:
            passages.append(sentence)
            sizes.append(size)
    return passages, sizes
