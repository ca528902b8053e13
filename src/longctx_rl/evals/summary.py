"""Summaries of item records: accuracy by task and length, metrics, and the comparison before and after training."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from statistics import fmean

from longctx_rl.evals.records import ItemRecord
from longctx_rl.stats import Estimate, bootstrap_mean, detectable, paired_difference, pass_at_k, wilson

SEED = 0
"""Seed of every bootstrap, so that the same records give the same interval."""
MDD_NOTE = "MDD: minimum detectable difference, the smallest true difference that is significant with 80 % power"
"""Footer of the comparison table."""


@dataclass(frozen=True, slots=True)
class CellSummary:
    """Accuracy on one task at one nominal prompt length; ``length`` is 0 where prompts are not fitted to one."""

    task: str
    length: int
    n: int
    score: Estimate
    """Mean score with a 95 % confidence interval: see ``score``."""
    truncated: float
    """Share of answers that reached the token limit."""
    unparsed: float | None = None
    """Share of outputs without a final answer, which score 0; None: not recorded for every item."""
    passes: Mapping[str, float] = field(default_factory=dict)
    """See ``pass_rates``."""
    floor: float | None = None
    """Score of always giving the most frequent answer; None: not multiple choice."""


def cells(records: Iterable[ItemRecord], *, pooled: bool = False) -> list[CellSummary]:
    """One cell per task and length, sorted; with ``pooled``, one cell per length. Pass the records of one step."""
    grouped: dict[tuple[str, int], list[ItemRecord]] = defaultdict(list)
    for record in records:
        grouped["all" if pooled else record.task, record.length].append(record)
    return [
        CellSummary(
            task,
            length,
            len(group),
            score(group),
            fmean(record.truncated for record in group),
            _mean([1 - record.parts["format"] if "format" in record.parts else None for record in group]),
            pass_rates(group),
            _mean([record.floor for record in group]),
        )
        for (task, length), group in sorted(grouped.items())
    ]


def score(records: Sequence[ItemRecord]) -> Estimate:
    """Mean score of the records with a 95 % confidence interval.

    The interval is Wilson's if all scores are 0 or 1 and no family occurs twice, since it assumes independent items;
    otherwise it is a bootstrap over families.
    """
    values, families = [record.score for record in records], [_family(record) for record in records]
    if set(values) <= {0.0, 1.0} and len(set(families)) == len(families):
        return wilson(int(sum(values)), len(values))
    return bootstrap_mean(values, families, seed=SEED)


def pass_rates(records: Sequence[ItemRecord]) -> dict[str, float]:
    """Unbiased estimates of ``pass@2``, ``pass@4``, ..., up to the number of samples; empty for single answers."""
    most = min(record.samples for record in records)
    ks = [2**power for power in range(1, most.bit_length()) if 2**power <= most]
    return {f"pass@{k}": fmean(pass_at_k(record.samples, record.right or 0, k) for record in records) for k in ks}


def metrics(records: Sequence[ItemRecord], suite: str = "heldout") -> dict[str, float]:
    """``eval/<suite>/<task>/<length>`` for each cell, and ``eval/<suite>/mean``, their unweighted mean."""
    summaries = cells(records)
    result = {f"eval/{suite}/{cell.task}/{cell.length}": cell.score.value for cell in summaries}
    result[f"eval/{suite}/mean"] = fmean(cell.score.value for cell in summaries)
    return result


def table(records: Sequence[ItemRecord], *, means: bool = False) -> str:
    """One row per cell as aligned plain text, in percent with 95 % confidence intervals.

    Columns: ``pass@k``, the probability that at least one of k samples is right; ``truncated``, answers at the token
    limit; ``unparsed``, outputs without a final answer; ``floor``, the score of the most frequent option in multiple
    choice.

    Args:
        means: add a row over all tasks of each length.
    """
    summaries = cells(records) + (cells(records, pooled=True) if means else [])
    choice = any(cell.floor is not None for cell in summaries)
    passes = sorted({name for cell in summaries for name in cell.passes}, key=lambda name: int(name.partition("@")[2]))
    head = ("task", "length", "n", "score", *passes, "truncated", "unparsed", *["floor"] * choice)
    rows: list[tuple[str, ...]] = [head]
    for cell in summaries:
        length = str(cell.length) if cell.length else "-"
        unparsed = "-" if cell.unparsed is None else f"{100 * cell.unparsed:.1f}"
        floor = "-" if cell.floor is None else f"{100 * cell.floor:.1f}"
        more = [f"{100 * cell.passes[name]:.1f}" if name in cell.passes else "-" for name in passes]
        scores = percent(cell.score), *more, f"{100 * cell.truncated:.0f}", unparsed
        rows.append((cell.task, length, str(cell.n), *scores, *[floor] * choice))
    alone = [f"{cell.task} at {cell.length}" for cell in summaries if isnan(cell.score.low)]
    return aligned(rows) + _too_few(alone)


def comparison(before: Sequence[ItemRecord], after: Sequence[ItemRecord]) -> str:
    """Scores before and after training as aligned plain text: one row per cell and one over all items, in percent.

    Differences are paired by item and resampled by family; brackets are 95 % confidence intervals. ``MDD`` is the
    minimum detectable difference: the smallest true difference that is significant with 80 % power.

    Raises:
        ValueError: the two sides hold different items.
    """
    earlier = {record.id: record for record in before}
    if earlier.keys() != {record.id for record in after}:
        raise ValueError("before and after hold different items: compare evaluations of one suite and size")
    grouped: dict[tuple[str, str], list[ItemRecord]] = {}
    for record in sorted(after, key=lambda record: (record.task, record.length)):
        grouped.setdefault((record.task, str(record.length)), []).append(record)
    if len(grouped) > 1:
        grouped["all", "all"] = list(after)
    rows = [("task", "length", "n", "before", "after", "difference", "MDD")]
    for (task, length), late in grouped.items():
        early = [earlier[record.id] for record in late]
        difference = paired_difference(
            [record.score for record in early],
            [record.score for record in late],
            [_family(record) for record in late],
            seed=SEED,
        )
        least = detectable(difference)
        scores = percent(score(early)), percent(score(late)), percent(difference, "+")
        rows.append((task, length, str(len(late)), *scores, "-" if isnan(least) else f"{100 * least:.1f}"))
    return f"{aligned(rows)}\n{MDD_NOTE}" + _too_few([f"{row[0]} at {row[1]}" for row in rows[1:] if row[-1] == "-"])


def _too_few(cells: Sequence[str]) -> str:
    return (
        f"\nno interval for {', '.join(cells)}: it needs more than one family, set eval.items to 2 or more"
        if cells
        else ""
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _family(record: ItemRecord) -> str:
    return record.family_id or record.id


def percent(estimate: Estimate, sign: str = "") -> str:
    """Format an estimate as ``62.5 [48.4, 74.8]``, or the value alone if it has no interval."""
    if isnan(estimate.low):
        return f"{100 * estimate.value:{sign}.1f}"
    low, high = (f"{100 * bound:{sign}.1f}" for bound in (estimate.low, estimate.high))
    return f"{100 * estimate.value:{sign}.1f} [{low}, {high}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as plain text, the first one as heading: columns two spaces apart, the first column left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
