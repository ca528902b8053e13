"""RULER's original sources of hay and questions, read from local files if they are given: essays, SQuAD, HotpotQA.

Each file is read once and cached. Questions are in a fixed shuffled order, so that the first families are a random
sample.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from longctx_rl.files import BYTE_ORDER_MARK, mismatch, parsed_unicode

QA = {"question": str, "answers": [{"text": str}], "is_impossible": bool | None}
SQUAD = {"data": [{"paragraphs": [{"context": str, "qas": [QA]}]}]}
HOTPOT = [
    {
        "question": str,
        "answer": str,
        "context": list[tuple[str, list[str]]],
        "supporting_facts": list[tuple[str, int]],
    }
]
WORDS = 60
"""Maximum words in a line of an essay; longer sentences are split."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Paths of local files; None: generated text is used instead."""

    essays: str | None = None
    """A .txt file, a folder of them, or the JSON that RULER's script writes: an object with ``text``."""
    squad: str | None = None
    """SQuAD 2.0, ``dev-v2.0.json``: questions of ``qa_1``."""
    hotpot: str | None = None
    """HotpotQA, ``hotpot_dev_distractor_v1.json``: questions of ``qa_2``."""


@dataclass(frozen=True, slots=True)
class ReadingQuestion:
    question: str
    answers: tuple[str, ...]
    """Each is correct on its own."""
    paragraphs: tuple[str, ...]
    """The question's paragraphs, which the document contains."""
    evidence: tuple[str, ...]
    """The paragraphs that answer the question."""


@dataclass(frozen=True, slots=True)
class Questions:
    questions: tuple[ReadingQuestion, ...]
    paragraphs: tuple[str, ...]
    """The paragraphs of all questions."""

    def of(self, family: int) -> ReadingQuestion:
        return self.questions[family % len(self.questions)]

    def others(self, rng: Random, question: ReadingQuestion) -> Iterator[str]:
        """Yield paragraphs of other questions endlessly."""
        others = [paragraph for paragraph in self.paragraphs if paragraph not in question.paragraphs]
        while True:
            yield from rng.sample(others, len(others))


def essay_lines(path: str, rng: Random) -> Iterator[str]:
    """Yield sentences in order, endlessly, from a random position in the essays."""
    lines = _lines(path)
    start = rng.randrange(len(lines))
    while True:
        yield from chain(lines[start:], lines[:start])


@lru_cache(maxsize=4)
def _lines(path: str) -> tuple[str, ...]:
    files = sorted(Path(path).glob("[!.]*.txt")) if Path(path).is_dir() else [Path(path)]
    try:
        texts = [
            str(_json(str(file), {"text": str})["text"])
            if file.suffix == ".json"
            else file.read_text(encoding="utf-8-sig")
            for file in files
        ]
        words = [sentence.split() for text in texts for sentence in re.split(r"(?<=[.!?])\s+", text)]
    except (OSError, ValueError) as error:
        raise _unreadable(
            "essays", path, error, "a .txt file, a folder of them, or a .json file with a text"
        ) from error
    lines = tuple(
        " ".join(sentence[start : start + WORDS]) for sentence in words for start in range(0, len(sentence), WORDS)
    )
    if not lines:
        raise ValueError(f"eval.suites.ruler.essays={path} holds no text: give a .txt file, or a folder of them")
    return lines


@lru_cache(maxsize=4)
def squad(path: str) -> Questions:
    """Return SQuAD's answerable questions, each with its paragraph.

    Raises:
        ValueError: the file cannot be read, or is not SQuAD 2.0.
    """
    try:
        paragraphs = [paragraph for article in _json(path, SQUAD)["data"] for paragraph in article["paragraphs"]]
        questions = [
            ReadingQuestion(
                qa["question"],
                tuple(dict.fromkeys(answer["text"] for answer in qa["answers"])),
                (_line(paragraph["context"]),),
                (_line(paragraph["context"]),),
            )
            for paragraph in paragraphs
            for qa in paragraph["qas"]
            if qa["answers"] and not qa.get("is_impossible")
        ]
        texts = [_line(paragraph["context"]) for paragraph in paragraphs]
    except (OSError, ValueError) as error:
        raise _unreadable("squad", path, error, "SQuAD 2.0's dev-v2.0.json") from error
    return _questions("squad", path, questions, texts)


@lru_cache(maxsize=4)
def hotpot(path: str) -> Questions:
    """Return HotpotQA's questions, each with its ten paragraphs, of which two answer it.

    Raises:
        ValueError: the file cannot be read, or is not HotpotQA.
    """
    try:
        questions = []
        for row in _json(path, HOTPOT):
            paragraphs = {title: _line(f"{title}: {''.join(sentences)}") for title, sentences in row["context"]}
            titles = dict.fromkeys(title for title, _ in row["supporting_facts"])
            evidence = tuple(paragraphs[title] for title in titles if title in paragraphs)
            questions.append(ReadingQuestion(row["question"], (row["answer"],), tuple(paragraphs.values()), evidence))
    except (OSError, ValueError) as error:
        raise _unreadable("hotpot", path, error, "HotpotQA's hotpot_dev_distractor_v1.json") from error
    return _questions("hotpot", path, questions, [text for question in questions for text in question.paragraphs])


def _questions(name: str, path: str, questions: list[ReadingQuestion], texts: list[str]) -> Questions:
    paragraphs = tuple(dict.fromkeys(texts))
    if not questions or all(len(question.paragraphs) == len(paragraphs) for question in questions):
        raise ValueError(f"eval.suites.ruler.{name}={path} has too few questions or paragraphs: give the whole set")
    Random(name).shuffle(questions)
    return Questions(tuple(questions), paragraphs)


def _json(path: str, kind: Any) -> Any:
    value, problem = parsed_unicode(Path(path).read_bytes().removeprefix(BYTE_ORDER_MARK))
    if problem := problem or mismatch(value, kind):
        raise ValueError(f"it is {problem}")
    return value


def _line(text: str) -> str:
    return " ".join(text.split())


def _unreadable(name: str, path: str, error: Exception, expected: str) -> ValueError:
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"eval.suites.ruler.{name}={path} cannot be read ({cause}): give {expected}")
