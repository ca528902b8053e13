"""Grading the final line, exactly.

Only the text after the last ``Answer:`` on the last line that is not empty counts. Naming the right answer anywhere
else, or among others, earns nothing. Running text (``copy``, ``lookup``) has no such line and is graded from its start.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile

from longctx_rl.rewards.evidence import evidence_score
from longctx_rl.rewards.ruler import recall, strict
from longctx_rl.rewards.text import letter, match
from longctx_rl.types import Example, Reward

ANSWER_MARK = "Answer:"
LIST_SEPARATOR = ";"

Grader = Callable[[str, Example], Reward]


def final_answer(text: str) -> str | None:
    """What the last line says after its last ``Answer:``, without spaces and full stop at its ends.

    None if the last line that is not empty holds no ``Answer:``, or nothing follows it.
    """
    lines = text.strip().splitlines()
    if not lines or ANSWER_MARK not in lines[-1]:
        return None
    return _clean(lines[-1].rpartition(ANSWER_MARK)[2]) or None


def grade(text: str, example: Example) -> Reward:
    """Score of a completion by its task's exact grader, in [0, 1]: the answer alone counts.

    Args:
        text: the completion, special tokens left out.

    Raises:
        ValueError: a task without a grader.
    """
    if example.task not in GRADERS:
        raise ValueError(f"no grader for task {example.task!r}: choose one of {', '.join(GRADERS)}")
    return GRADERS[example.task](text, example)


def grade_exact(text: str, example: Example) -> Reward:
    """1 if the final answer is the reference answer, word for word, else 0."""
    predicted = final_answer(text)
    correct = predicted is not None and predicted.split() == _clean(example.answer).split()
    return _reward(float(correct), predicted, text, example)


def grade_letter(text: str, example: Example) -> Reward:
    """1 if the last line's answer is the reference's letter; ``format``: it is a letter at all."""
    predicted = final_answer(text)
    chosen = letter(predicted) if predicted is not None else None
    return _reward(float(chosen == example.answer), chosen, text, example)


def grade_ordered_list(text: str, example: Example) -> Reward:
    """F1 of the longest common subsequence of predicted and reference items; repeated and surplus items count against.

    ``set_f1`` disregards the order.
    """
    predicted = final_answer(text)
    items = _items(predicted or "")
    reference = _items(example.answer)
    ordered = _f1(_common_subsequence(items, reference), len(items), len(reference))
    unordered = _f1(len(set(items) & set(reference)), len(items), len(reference))
    return _reward(ordered, predicted, text, example, set_f1=unordered)


def grade_continuation(text: str, example: Example) -> Reward:
    """Running text, which nothing ends: the share of the reference that is right before the first wrong letter."""
    reference = example.answer.strip()
    same = (a == b for a, b in zip(text.strip(), reference, strict=False))
    score = sum(1 for _ in takewhile(bool, same)) / len(reference)
    return Reward(score, {"answer": score, "format": 1.0, "evidence": 0.0})


def grade_ruler(text: str, example: Example) -> Reward:
    """Right minus wrong answers, so that dumping the text does not help; ``recall`` is RULER's own score."""
    wanted = example.answer.split("; ")
    score = strict(text, wanted, example.question)
    return _reward(score, text or None, text, example, recall=recall(text, wanted))


def grade_question(text: str, example: Example) -> Reward:
    """1 if what is said behind the last ``Answer:``, or at all, is one of the answers and next to nothing else
    (``text.match``); ``recall`` is RULER's own score."""
    wanted = example.answer.split("\n")
    said = text.rpartition("</think>")[2].rpartition(ANSWER_MARK)[2]
    score = max(match(said, answer) for answer in wanted)
    return _reward(score, text or None, text, example, recall=recall(text, wanted, any_answer=True))


GRADERS: dict[str, Grader] = {
    "multihop": grade_exact,
    "grounding": grade_exact,
    "longform": grade_ordered_list,
    "longreason": grade_letter,
    "longreason_hub": grade_letter,
    "ruler": grade_ruler,
    "ruler_question": grade_question,
    "copy": grade_continuation,
    "lookup": grade_continuation,
    "drill": grade_continuation,
    "pairs": grade_continuation,
}
"""Grader of each generated task but ``code``, which is run. ``composed`` adds evidence and more."""


def _reward(answer: float, predicted: str | None, text: str, example: Example, **parts: float) -> Reward:
    found = float(predicted is not None)
    return Reward(answer, {"answer": answer, "format": found, "evidence": evidence_score(text, example), **parts})


def _clean(answer: str) -> str:
    return answer.strip().rstrip(".").strip()


def _items(answer: str) -> list[str]:
    return [" ".join(item.split()) for item in _clean(answer).split(LIST_SEPARATOR) if item.strip()]


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for item in left:
        previous = row
        row = [0]
        for j, other in enumerate(right):
            row.append(previous[j] + 1 if item == other else max(previous[j + 1], row[j]))
    return row[-1]


def _f1(common: int, predicted: int, reference: int) -> float:
    return 2 * common / (predicted + reference) if common else 0.0
