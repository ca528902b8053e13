"""What an evaluation's folder amounts to: all numbers of its page. Reads records; needs no torch."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from longctx_rl.evals import records, summary
from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.summary import CellSummary
from longctx_rl.stats import Estimate

Key = tuple[str, int]
"""A cell: task and nominal prompt length, 0 for a task whose prompts have the length that they have."""
EFFECTIVE = 0.856
"""RULER's threshold, Llama-2-7B's mean at 4k (Hsieh et al., arXiv 2404.06654, section 4)."""
DEPTHS = 5
"""Equal parts of a document in which evidence is looked for."""


@dataclass(frozen=True, slots=True)
class SuiteRecords:
    """A suite's records, by cell, in the order in which they were asked for."""

    name: str
    asked: Mapping[Key, int]
    """Items that the latest evaluation asked for; of a suite that is read, those that there are."""
    groups: Mapping[Key, list[ItemRecord]]
    """Of every cell that was asked for or answered; empty: not answered yet."""
    cells: Mapping[Key, CellSummary]
    """What is answered."""

    @property
    def records(self) -> list[ItemRecord]:
        return [record for group in self.groups.values() for record in group]

    @property
    def lengths(self) -> list[int]:
        return sorted({length for _, length in self.groups if length})

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.groups))

    def progress(self) -> tuple[int, int]:
        """Items that are answered, and items that were asked for."""
        done = sum(min(count, len(self.groups[key])) for key, count in self.asked.items())
        return done, sum(self.asked.values())


@dataclass(frozen=True, slots=True)
class Results:
    """An evaluation's folder."""

    checkpoint: str
    weights: str
    dtype: str
    suites: tuple[SuiteRecords, ...]

    def missing(self) -> str:
        """What was asked for and is not answered, suite by suite; empty if nothing is."""
        progress = {suite.name: suite.progress() for suite in self.suites}
        return "; ".join(f"{name}: {done} of {all_} items" for name, (done, all_) in progress.items() if done < all_)


@dataclass(frozen=True, slots=True)
class Conditional:
    """Score of one cell's items, of families that pass in another."""

    task: str
    length: int
    n: int
    score: Estimate | None
    """None: no family passes there."""


def load(folder: Path) -> Results:
    """The results of ``python -m longctx_rl.evaluate out=folder``, also while some are missing.

    Raises:
        ValueError: the folder is not one, or holds a file that cannot be read as one of its.
    """
    path = folder / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"{path} not found: give the out= folder of python -m longctx_rl.evaluate")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        plans = {
            name: {(str(task), int(length)): int(items) for task, length, items in cells}
            for name, cells in about["asked"].items()
        }
        checkpoint, weights, dtype = (str(about[key]) for key in ("checkpoint", "weights", "dtype"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not say what was asked ({error!r}): give the evaluate command again, answers are kept"
        ) from error
    files = {file.stem: file for file in sorted((folder / "evals").glob("*.jsonl"))}
    suites = []
    for name in [*plans, *(name for name in files if name not in plans)]:
        found = records.read(files[name]) if name in files else []
        suites.append(_suite(name, plans.get(name, {}), found))
    return Results(checkpoint, weights, dtype, tuple(suites))


def _suite(name: str, asked: Mapping[Key, int], found: Iterable[ItemRecord]) -> SuiteRecords:
    groups: dict[Key, list[ItemRecord]] = defaultdict(list)
    for record in sorted(found, key=lambda record: record.id):
        groups[record.task, record.length].append(record)
    labels = list(dict.fromkeys(task for task, _ in asked)) + sorted({task for task, _ in groups})
    order = sorted(asked.keys() | groups.keys(), key=lambda key: (labels.index(key[0]), key[1]))
    return _with_cells(name, asked, {key: groups.get(key, []) for key in order})


def _with_cells(name: str, asked: Mapping[Key, int], groups: Mapping[Key, list[ItemRecord]]) -> SuiteRecords:
    cells = {key: cell for key, group in groups.items() for cell in summary.cells(group)}
    return SuiteRecords(name, asked, groups, cells)


def measures(group: Sequence[ItemRecord]) -> dict[str, float]:
    """Shares beside the score that say why a cell is what it is, by name: those that the records' parts hold."""
    parts = set.intersection(*(set(record.parts) for record in group))

    def mean(part: str) -> float:
        return fmean(record.parts[part] for record in group)

    found = summary.pass_rates(group)
    if {"format", "recall", "hallucinated"} <= parts:
        found |= {"parsed": mean("format"), "API recall": mean("recall"), "invented API": mean("hallucinated")}
    elif "recall" in parts:
        found["RULER's recall"] = mean("recall")
    elif "format" in parts:
        found["unparsed"] = 1 - mean("format")
    if "suspicious" in parts:
        found["attacks"] = mean("suspicious")
    if all(re.fullmatch("[A-Z]", record.expected) for record in group):
        found["majority floor"] = Counter(record.expected for record in group).most_common(1)[0][1] / len(group)
    return found


def by_part(suite: SuiteRecords, part: str) -> SuiteRecords:
    """The same suite with one part as its score; records that lack it are left out."""
    groups = {
        key: [replace(record, score=record.parts[part]) for record in group if part in record.parts]
        for key, group in suite.groups.items()
    }
    return _with_cells(suite.name, suite.asked, groups)


def mean_by_length(suite: SuiteRecords) -> dict[int, Estimate]:
    """The mean of all tasks at each length at which all are complete, so that lengths compare like with like.

    Tasks weigh the same: of one that was asked more, the first items by id, as many as the others have.
    """
    found: dict[int, Estimate] = {}
    for length in suite.lengths:
        groups = {key: group for key, group in suite.groups.items() if key[1] == length}
        if all(len(group) >= suite.asked.get(key, 1) for key, group in groups.items()):
            fewest = min(len(group) for group in groups.values())
            found[length] = summary.score([record for group in groups.values() for record in group[:fewest]])
    return found


def effective_length(means: Mapping[int, Estimate]) -> int | None:
    """The longest length whose mean reaches RULER's threshold; None: no length does."""
    return max((length for length, mean in means.items() if mean.value >= EFFECTIVE), default=None)


def retention(suite: SuiteRecords, base: str = "short") -> list[Conditional]:
    """P(pass | pass ``base``) of each cell with a length, item by item: what length alone takes away.

    Families are independent, so where all scores are 0 or 1 the interval is Wilson's. Families that lack one of the two
    answers do not count.
    """
    passing = {record.family_id for record in suite.groups.get((base, 0), ()) if record.score == 1.0}
    found = []
    for (task, length), group in suite.groups.items():
        if length:
            kept = [record for record in group if record.family_id in passing]
            found.append(Conditional(task, length, len(kept), summary.score(kept) if kept else None))
    return found


def depth_map(suite: SuiteRecords, task: str) -> dict[tuple[int, int], tuple[float, int]]:
    """Mean score and number of items by length and part of the document, 0 to ``DEPTHS - 1``, in which the first
    evidence lies. Items without evidence, or without length, are left out."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (name, length), group in suite.groups.items():
        for record in group if name == task and length else ():
            if record.depth is not None:
                cells[length, min(int(record.depth * DEPTHS), DEPTHS - 1)].append(record.score)
    return {key: (fmean(scores), len(scores)) for key, scores in sorted(cells.items())}


def examples(suite: SuiteRecords, task: str) -> tuple[ItemRecord | None, ItemRecord | None]:
    """One item of a task that is right and the one that is most wrong, each of the longest prompts that have one."""
    longest_first = [group for (name, _), group in reversed(list(suite.groups.items())) if name == task]
    ordered = [record for group in longest_first for record in group]
    right = next((record for record in ordered if record.score == 1.0), None)
    wrong = min((r for r in ordered if r.score < 1.0), key=lambda record: record.score, default=None)
    return right, wrong
