"""Tables as Markdown, CSV and LaTeX, with the same numbers in each."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from longctx_rl.report.study import Value

Entry = Value | str | None
"""A number with its uncertainty, text, or None."""
NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table with named rows. Values are shares of items, and are shown in percent."""

    name: str
    caption: str
    columns: tuple[str, ...]
    """Headings, including the one of the row names."""
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    signed: bool = False
    """Whether values are differences and are shown with their sign."""


def markdown(table: Table) -> str:
    """A Markdown table with its caption below."""
    lines = [_line(table.columns), _line(["---", *["---:"] * (len(table.columns) - 1)])]
    lines += [_line([name, *(shown(entry, table.signed) for entry in entries)]) for name, entries in table.rows]
    return "\n".join([*lines, "", table.caption])


def comma_separated(table: Table) -> str:
    """CSV with a line for each entry and all that is known about it; values are shares."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "value", "low", "high", "runs", "families", "p_holm", "detectable", "star"])
    for name, entries in table.rows:
        for column, entry in zip(table.columns[1:], entries, strict=True):
            if isinstance(entry, Value):
                bounds = (entry.estimate.value, entry.estimate.low, entry.estimate.high)
                tested = [_number(entry.p_value), _number(entry.detectable), "yes" if entry.starred else ""]
                writer.writerow([name, column, *map(_number, bounds), entry.runs, entry.families, *tested])
            else:
                writer.writerow([name, column, entry or "", *[""] * 7])
    return text.getvalue()


def latex(table: Table) -> str:
    """A booktabs tabular with the caption as a comment."""
    heading = " & ".join(map(_escaped, table.columns))
    lines = [f"% {table.caption}", rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [rf"{heading} \\", r"\midrule"]
    for name, entries in table.rows:
        cells = " & ".join([_escaped(name), *(_escaped(shown(entry, table.signed)) for entry in entries)])
        lines.append(rf"{cells} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def shown(entry: Entry, signed: bool = False) -> str:
    """An entry for readers: percent with the 95 % interval, and a star if the difference is significant."""
    if not isinstance(entry, Value):
        return entry or NOTHING
    value = percent(entry.estimate.value, signed)
    if math.isnan(entry.estimate.low):
        return f"{value} (one run)"
    low, high = percent(entry.estimate.low, signed), percent(entry.estimate.high, signed)
    return f"{value} [{low}, {high}]{'*' if entry.starred else ''}"


def percent(share: float, signed: bool = False) -> str:
    """A share in percent with one decimal and a true minus sign, which negative shares keep even if they round to 0."""
    share = round(share, 9) + 0.0  # a zero with rounding error has no sign
    return f"{100 * share:{'+' if signed else ''}.1f}".replace("-", MINUS)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    """Six significant digits; empty for an unknown value."""
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _escaped(text: str) -> str:
    for letter in "&%_#$":
        text = text.replace(letter, rf"\{letter}")
    return text.replace(MINUS, "$-$").replace(NOTHING, "--")
