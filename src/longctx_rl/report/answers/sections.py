"""The section of one suite on the page."""

from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.summary import percent
from longctx_rl.report.answers import charts, evaluation_folder, markup
from longctx_rl.report.answers.evaluation_folder import DEPTHS, EFFECTIVE, SuiteRecords
from longctx_rl.report.answers.markup import text
from longctx_rl.stats import Estimate

ABOUT = {
    "heldout": "The tasks of the training data, on held-out documents.",
    "longreason": "Multiple choice. original: the facts alone; expanded: each fact in a passage; context: these "
    "passages among distractors of the same kind.",
    "ruler": "RULER's tasks, generated. The score is strict and penalises superfluous output; RULER's own recall, "
    "which does not, is shown beside it.",
    "code": "A function that needs helpers, graded by running it. closed: without their definitions; short: with them; "
    "pad, pad_near: with prose after or before them; bury: among other modules; hard: with look-alikes too.",
}
MEASURES = {
    **{f"pass@{2**power}": f"probability that at least one of {2**power} samples is right" for power in range(1, 11)},
    "parsed": "code that parses and defines the function",
    "API recall": "share of the required helpers that the code names",
    "invented API": "code that imports or calls names that do not exist",
    "attacks": "code that shows signs of an attack on the grader",
    "RULER's recall": "share of the right answers that occur anywhere in the output",
    "unparsed": "outputs without a final answer, which count as wrong",
    "majority floor": "score of always answering with the most frequent letter",
}
OUTPUT = 800
"""Characters of an example's output that are shown."""
NONE = "-"
TOGETHER = "all tasks"
RULER_TASKS = 13


def section(suite: SuiteRecords) -> str:
    """The HTML of one suite's tables, figures and examples, or a note that it has no answers yet."""
    name = text(suite.name)
    about = f"<p>{text(ABOUT[suite.name])}</p>\n" if suite.name in ABOUT else ""
    parts = (_cells, _retention, _by_length, _maps, _examples)
    content = "".join(part(suite) for part in parts) if suite.records else "<p>No answers yet.</p>\n"
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{name}</h2>\n{about}{content}</section>\n'


def share(value: float) -> str:
    """Format a share as percent, without an interval."""
    return f"{100 * value:.1f}"


def _cells(suite: SuiteRecords) -> str:
    measured = {key: evaluation_folder.measures(group) for key, group in suite.groups.items() if group}
    columns = [name for name in MEASURES if any(name in shares for shares in measured.values())]
    rows: list[list[str]] = []
    for (task, length), group in suite.groups.items():
        cell, more = suite.cells.get((task, length)), measured.get((task, length), {})
        requested = suite.requested.get((task, length), 0)
        rows.append(
            [
                task,
                str(length) if length else NONE,
                str(len(group)) if len(group) >= requested else f"{len(group)} of {requested}",
                percent(cell.score) if cell else NONE,
                share(cell.truncated) if cell else NONE,
                *(share(more[name]) if name in more else NONE for name in columns),
            ]
        )
    notes = ["truncated: answers at the token limit", *(f"{name}: {MEASURES[name]}" for name in columns)]
    head = ["task", "length", "n", "score", "truncated", *columns]
    return (
        markup.table("Score by task and prompt length in tokens, in percent.", head, rows)
        + f'<p class="soft">{text("; ".join(notes))}.</p>\n'
    )


def _variants(suite: SuiteRecords) -> dict[str, SuiteRecords]:
    """Name to suite for the scores that are shown side by side."""
    if suite.name != "ruler":
        return {"score": suite}
    return {"RULER's recall": evaluation_folder.by_part(suite, "recall"), "strict": suite}


def _effective_length(suite: SuiteRecords, means: dict[str, dict[int, Estimate]]) -> str:
    rows = [
        [str(length), *(percent(by_length[length]) if length in by_length else NONE for by_length in means.values())]
        for length in suite.lengths
    ]
    tasks = {task for task, length in suite.cells if length}
    tested = "all tasks" if len(tasks) == RULER_TASKS else f"the {len(tasks)} evaluated tasks"
    lengths = []
    for name, by_length in means.items():
        longest = evaluation_folder.effective_length(by_length)
        none = "none of these lengths" if by_length else "unknown, since no length is complete"
        lengths.append(f"{name}: {none if longest is None else f'{longest} tokens'}")
    return (
        f"<h3>Effective length</h3>\n<p><strong>{text('; '.join(lengths))}.</strong> The effective length is "
        f"the longest length at which the mean of {tested} is at least {share(EFFECTIVE)} %. RULER defines it by its "
        f"own recall over thirteen tasks, from 4096 tokens up.</p>\n"
        f"{markup.table(f'Mean of {tested}, in percent.', ['length', *means], rows)}"
    )


def _retention(suite: SuiteRecords) -> str:
    if not suite.groups.get(("short", 0)):
        return ""
    rows = [
        [retained.task, str(retained.length), str(retained.n), percent(retained.score) if retained.score else NONE]
        for retained in evaluation_folder.retention(suite)
    ]
    note = "The share of items right at short length that are also right at this length: the effect of length alone."
    head = ["task", "length", "n right when short", "P(pass | pass short)"]
    return f"<h3>Retention</h3>\n<p>{note}</p>\n{markup.table('Retention, in percent.', head, rows)}"


def _by_length(suite: SuiteRecords) -> str:
    """Curves by length, preceded by the effective length for RULER."""
    variants = _variants(suite)
    means = {name: evaluation_folder.mean_by_length(variant) for name, variant in variants.items()}
    series: dict[str, dict[str, dict[int, Estimate]]] = {}
    """Task to score variant to length to mean."""
    if any(means.values()) and len({task for task, length in suite.cells if length}) > 1:
        series[TOGETHER] = means
    for name, variant in variants.items():
        for (task, length), cell in variant.cells.items():
            if length:
                series.setdefault(task, {}).setdefault(name, {})[length] = cell.score
    drawn = [_curve(suite, task, points) for task, points in series.items()]
    effective = _effective_length(suite, means) if suite.name == "ruler" else ""
    return effective + markup.figures(
        "By length", "Percent by prompt length. Bars are 95 % confidence intervals.", drawn
    )


def _curve(suite: SuiteRecords, task: str, series: dict[str, dict[int, Estimate]]) -> str:
    references = {name: cell.score.value for (name, length), cell in suite.cells.items() if not length}
    if suite.name == "ruler":
        references["RULER's threshold"] = EFFECTIVE
    for (group_task, _), group in suite.groups.items():
        if group_task == task and group and "majority floor" in (shares := evaluation_folder.measures(group)):
            references["majority floor"] = shares["majority floor"]
    readings = [
        f"{name} " + ", ".join(f"{percent(point)} % at {length} tokens" for length, point in points.items())
        for name, points in series.items()
    ]
    dashed = ", ".join(f"{line} {share(value)}" for line, value in references.items())
    drawing = charts.length_curves(
        [charts.Series(name, points) for name, points in series.items()],
        suite.lengths,
        list(references.values()),
        name=f"{suite.name} curve {task}",
        alt=f"{suite.name}, {task}, score by prompt length: {'; '.join(readings)}",
    )
    return markup.figure(task, drawing, f"dashed: {dashed}" if dashed else "")


def _maps(suite: SuiteRecords) -> str:
    parts = [f"{100 * part // DEPTHS}-{100 * (part + 1) // DEPTHS} %" for part in range(DEPTHS)]
    lengths, drawn = suite.lengths, []
    for task in suite.tasks:
        depth_scores = evaluation_folder.depth_map(suite, task)
        readings = [
            f"{length} tokens, {parts[part]} deep: {share(score)} % of {count}"
            for (length, part), (score, count) in depth_scores.items()
        ]
        if depth_scores:
            drawing = charts.heat_map(
                {(lengths.index(length), part): value for (length, part), value in depth_scores.items()},
                [charts.tokens(length) for length in lengths],
                parts,
                labels=("prompt tokens", "depth of evidence"),
                name=f"{suite.name} map {task}",
                alt=f"{suite.name}, {task}, score by prompt length and depth: {'; '.join(readings)}",
            )
            drawn.append(markup.figure(task, drawing))
    if not drawn:
        return "<p>No record has a depth of evidence, so there is no map by depth.</p>\n" if lengths else ""
    drawn.append(markup.figure("colours", charts.colour_scale(name=f"{suite.name} colours")))
    note = (
        "Percent and number of items. Depth is the position of the first piece of evidence; 0 % is the beginning of "
        "the document. Dotted: no items."
    )
    return markup.figures("By length and depth", note, drawn)


def _examples(suite: SuiteRecords) -> str:
    blocks = []
    for task in suite.tasks:
        right, wrong = evaluation_folder.examples(suite, task)
        both = _example("✓ Right", "right", right) + _example("✗ Wrong", "wrong", wrong)
        blocks.append(f'<details>\n<summary>{text(task)}</summary>\n<div class="pair">\n{both}</div>\n</details>\n')
    return f"<h3>Examples</h3>\n<p>One right and one wrong answer for each task.</p>\n{''.join(blocks)}"


def _example(title: str, kind: str, record: ItemRecord | None) -> str:
    if record is None:
        return f"<article>\n<h4>{title}</h4>\n<p>No answer is {kind}.</p>\n</article>\n"
    facts = [record.id, f"score {share(record.score)} %", f"{record.prompt_tokens} + {record.tokens} tokens"]
    if record.depth is not None:
        facts.append(f"evidence at {100 * record.depth:.0f} %")
    if record.truncated:
        facts.append("truncated at the token limit")
    shown = record.output if len(record.output) <= OUTPUT else record.output[:OUTPUT] + " […]"
    quoted = markup.quotations(
        {"end of the question": record.question, "output": shown or "(empty)", "expected": record.expected}
    )
    return f'<article>\n<h4>{title}</h4>\n<p class="soft">{text(", ".join(facts))}</p>\n{quoted}</article>\n'
