"""``python -m longctx_rl.report.answers.page FOLDER``: an evaluation's results as one HTML file, FOLDER/index.html.

    python -m longctx_rl.report.answers.page runs/mini-student

It is made from FOLDER/evaluation.json and FOLDER/evals/*.jsonl alone, the same file for the same records, and shows
what there is of an evaluation that was stopped. It asks no network and needs no scripts. ``longctx_rl.evaluate`` writes
it too.
"""

import sys
from pathlib import Path
from statistics import fmean

from longctx_rl import cli
from longctx_rl.evals import summary
from longctx_rl.report.answers import evaluation_folder
from longctx_rl.report.answers.evaluation_folder import Results
from longctx_rl.report.answers.markup import definitions, table, text
from longctx_rl.report.answers.sections import NONE, section, share
from longctx_rl.runs.directory import write_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the page may load: nothing. Its own styles alone apply."""
INTERVALS = (
    "Scores are in percent, with 95 % intervals in brackets: Wilson's where every score is 0 or 1, otherwise a "
    "bootstrap of item families."
)


def write(folder: Path) -> str:
    """Write ``folder/index.html`` and say where it is, and what is missing in it.

    Raises:
        ValueError: the folder is not an evaluation's.
    """
    found = evaluation_folder.load(folder)
    path = folder / "index.html"
    write_text(path, render(found))
    return f"page: {path}" + (f"\nnot finished: {found.missing()}" if found.missing() else "")


def render(found: Results) -> str:
    """The whole page."""
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = text(f"Evaluation of {found.checkpoint}")
    links = "".join(f'<li><a href="#{text(suite.name)}">{text(suite.name)}</a></li>' for suite in found.suites)
    about = {"hash of its weights": found.weights, "computed in": found.dtype}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{_notice(found.missing())}{definitions(about, css_class="about")}<nav aria-label="Suites"><ul>{links}</ul></nav>
</header>
<main>
{_overview(found)}<p class="soft">{text(INTERVALS)}</p>
{"".join(section(suite) for suite in found.suites)}</main>
</body>
</html>
"""


def _notice(missing: str) -> str:
    if not missing:
        return ""
    return (
        f'<p class="notice" role="note"><strong>Not finished.</strong> {text(missing)}. What is answered is shown; the '
        "command that was stopped goes on from there.</p>\n"
    )


def _overview(found: Results) -> str:
    rows = []
    for suite in found.suites:
        done, asked = suite.progress()
        records = suite.records
        mean = summary.metrics(records, suite.name)[f"eval/{suite.name}/mean"] if records else None
        rows.append(
            [
                suite.name,
                str(len(records)) if done == asked else f"{done} of {asked}",
                NONE if mean is None else share(mean),
                share(fmean(record.truncated for record in records)) if records else NONE,
            ]
        )
    head = ["suite", "items", "mean score", "cut off"]
    return table("What is answered, in percent. In a mean, each task at each length weighs the same.", head, rows)


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__)
        sys.exit(0 if {"-h", "--help"} & set(arguments) else cli.UNUSABLE)
    cli.command(lambda: write(Path(arguments[0])))


if __name__ == "__main__":
    main()
