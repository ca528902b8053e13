"""Results in the folder of an evaluation: all numbers of its page, computed from the records without torch."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from longctx_rl.evals import records, summary
from longctx_rl.evals.folder import read_description
from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.summary import CellSummary
from longctx_rl.stats import Estimate

Key = tuple[str, int]
"""A cell: task and nominal prompt length; length 0 for a task whose prompts are not fitted to one."""
EFFECTIVE = 0.856
"""RULER's threshold, Llama-2-7B's mean at 4k (Hsieh et al., arXiv 2404.06654, section 4)."""
DEPTHS = 5
"""Number of equal parts into which a document is divided by depth."""


@dataclass(frozen=True, slots=True)
class SuiteRecords:
    """A suite's records by cell, in the order of the evaluation's labels and lengths."""

    name: str
    requested: Mapping[Key, int]
    """Items that the latest evaluation requested; of a suite that is read, those that exist."""
    groups: Mapping[Key, list[ItemRecord]]
    """Records of every cell that was requested or answered; empty: not answered yet."""
    cells: Mapping[Key, CellSummary]
    """Summaries of the cells that have records."""

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
        """Number of answered items and of requested items."""
        done = sum(min(count, len(self.groups[key])) for key, count in self.requested.items())
        return done, sum(self.requested.values())


@dataclass(frozen=True, slots=True)
class Results:
    """The results in an evaluation's folder."""

    checkpoint: str
    weights: str
    dtype: str
    suites: tuple[SuiteRecords, ...]

    def missing(self) -> str:
        """Progress of the suites that are not complete, as text; empty if all are."""
        progress = {suite.name: suite.progress() for suite in self.suites}
        return "; ".join(f"{name}: {done} of {all_} items" for name, (done, all_) in progress.items() if done < all_)


@dataclass(frozen=True, slots=True)
class Conditional:
    """Score of one cell, restricted to families that pass in another cell."""

    task: str
    length: int
    n: int
    score: Estimate | None
    """None: no family passes in the other cell."""


def load(folder: Path) -> Results:
    """The results of ``python -m longctx_rl.evaluate out=folder``, complete or not.

    Raises:
        ValueError: the folder is not an evaluation's, or holds a file that cannot be read.
    """
    path = folder / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"{path} not found: give the out= folder of python -m longctx_rl.evaluate")
    about = read_description(path, "run the evaluate command again, answers are kept", needs=("asked", "dtype"))
    plans = {name: {(task, length): items for task, length, items in cells} for name, cells in about["asked"].items()}
    checkpoint, weights, dtype = (str(about.get(key)) for key in ("checkpoint", "weights", "dtype"))
    files = {file.stem: file for file in sorted((folder / "evals").glob("*.jsonl"))}
    suites = []
    for name in [*plans, *(name for name in files if name not in plans)]:
        kept = records.read(files[name]) if name in files else []
        suites.append(_suite(name, plans.get(name, {}), kept))
    return Results(checkpoint, weights, dtype, tuple(suites))


def _suite(name: str, requested: Mapping[Key, int], kept: Iterable[ItemRecord]) -> SuiteRecords:
    groups: dict[Key, list[ItemRecord]] = defaultdict(list)
    for record in sorted(kept, key=lambda record: record.id):
        groups[record.task, record.length].append(record)
    labels = list(dict.fromkeys(task for task, _ in requested)) + sorted({task for task, _ in groups})
    order = sorted(requested.keys() | groups.keys(), key=lambda key: (labels.index(key[0]), key[1]))
    return _with_cells(name, requested, {key: groups.get(key, []) for key in order})


def _with_cells(name: str, requested: Mapping[Key, int], groups: Mapping[Key, list[ItemRecord]]) -> SuiteRecords:
    cells = {key: cell for key, group in groups.items() for cell in summary.cells(group)}
    return SuiteRecords(name, requested, groups, cells)


def measures(group: Sequence[ItemRecord]) -> dict[str, float]:
    """Diagnostic shares of a cell beside its score, by name, as far as the records' parts provide them."""
    parts = set.intersection(*(set(record.parts) for record in group))

    def mean(part: str) -> float:
        return fmean(record.parts[part] for record in group)

    shares = summary.pass_rates(group)
    if {"format", "recall", "hallucinated"} <= parts:
        shares |= {"parsed": mean("format"), "API recall": mean("recall"), "invented API": mean("hallucinated")}
    elif "recall" in parts:
        shares["RULER's recall"] = mean("recall")
    elif "format" in parts:
        shares["unparsed"] = 1 - mean("format")
    if "suspicious" in parts:
        shares["attacks"] = mean("suspicious")
    if all(re.fullmatch("[A-Z]", record.expected) for record in group):
        shares["majority floor"] = Counter(record.expected for record in group).most_common(1)[0][1] / len(group)
    return shares


def by_part(suite: SuiteRecords, part: str) -> SuiteRecords:
    """The suite with one part as its score; records without that part are dropped."""
    groups = {
        key: [replace(record, score=record.parts[part]) for record in group if part in record.parts]
        for key, group in suite.groups.items()
    }
    return _with_cells(suite.name, suite.requested, groups)


def mean_by_length(suite: SuiteRecords) -> dict[int, Estimate]:
    """The mean over all tasks at each length at which all are complete, so that the means are comparable.

    All tasks have the same weight: of a task with more items, only the first by id count, as many as the others have.
    """
    means: dict[int, Estimate] = {}
    for length in suite.lengths:
        groups = {key: group for key, group in suite.groups.items() if key[1] == length}
        if all(len(group) >= suite.requested.get(key, 1) for key, group in groups.items()):
            fewest = min(len(group) for group in groups.values())
            means[length] = summary.score([record for group in groups.values() for record in group[:fewest]])
    return means


def effective_length(means: Mapping[int, Estimate]) -> int | None:
    """The longest length whose mean reaches RULER's threshold; None: no length does."""
    return max((length for length, mean in means.items() if mean.value >= EFFECTIVE), default=None)


def retention(suite: SuiteRecords, base: str = "short") -> list[Conditional]:
    """P(pass | pass in ``base``) of each cell with a length, paired by family: the effect of length alone.

    Families are independent, so the interval is Wilson's where all scores are 0 or 1. Families that lack one of the two
    answers are dropped.
    """
    passing = {record.family_id for record in suite.groups.get((base, 0), ()) if record.score == 1.0}
    rows = []
    for (task, length), group in suite.groups.items():
        if length:
            kept = [record for record in group if record.family_id in passing]
            rows.append(Conditional(task, length, len(kept), summary.score(kept) if kept else None))
    return rows


def depth_map(suite: SuiteRecords, task: str) -> dict[tuple[int, int], tuple[float, int]]:
    """Mean score and number of items by length and depth of the first evidence.

    Depth is the part of the document, 0 to ``DEPTHS - 1``. Items without evidence or without a length are dropped.
    """
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (name, length), group in suite.groups.items():
        for record in group if name == task and length else ():
            if record.depth is not None:
                cells[length, min(int(record.depth * DEPTHS), DEPTHS - 1)].append(record.score)
    return {key: (fmean(scores), len(scores)) for key, scores in sorted(cells.items())}


def examples(suite: SuiteRecords, task: str) -> tuple[ItemRecord | None, ItemRecord | None]:
    """One right item of a task and the one with the lowest score, each at the longest length that has one."""
    longest_first = [group for (name, _), group in reversed(list(suite.groups.items())) if name == task]
    ordered = [record for group in longest_first for record in group]
    right = next((record for record in ordered if record.score == 1.0), None)
    wrong = min((r for r in ordered if r.score < 1.0), key=lambda record: record.score, default=None)
    return right, wrong
