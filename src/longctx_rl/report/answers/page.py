"""``python -m longctx_rl.report answers FOLDER``: the results of an evaluation as one HTML file, FOLDER/index.html.

The page is made from FOLDER/evaluation.json and FOLDER/evals/*.jsonl alone: the same records give the same file. It
shows the answers so far of an interrupted evaluation, loads nothing from the network and needs no scripts.
``python -m longctx_rl.evaluate`` writes it too.
"""

from pathlib import Path
from statistics import fmean

from longctx_rl.evals import summary
from longctx_rl.files import write_text
from longctx_rl.report.answers import evaluation_folder
from longctx_rl.report.answers.evaluation_folder import Results
from longctx_rl.report.answers.markup import definitions, table, text
from longctx_rl.report.answers.sections import NONE, section, share

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page may load nothing; only its own styles apply."""
INTERVALS = (
    "Scores are in percent, with 95 % confidence intervals in brackets: Wilson's where every score is 0 or 1, "
    "otherwise a bootstrap over item families."
)


def write(folder: Path) -> str:
    """Write ``folder/index.html``, and return a line with its path and one with the suites that are not complete.

    Raises:
        ValueError: the folder is not an evaluation's.
    """
    loaded = evaluation_folder.load(folder)
    path = folder / "index.html"
    write_text(path, render(loaded))
    return f"page: {path}" + (f"\nnot finished: {loaded.missing()}" if loaded.missing() else "")


def render(loaded: Results) -> str:
    """The page as HTML text."""
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = text(f"Evaluation of {loaded.checkpoint}")
    links = "".join(f'<li><a href="#{text(suite.name)}">{text(suite.name)}</a></li>' for suite in loaded.suites)
    about = {"hash of the weights": loaded.weights, "number type": loaded.dtype}
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
{_notice(loaded.missing())}{definitions(about, css_class="about")}<nav aria-label="Suites"><ul>{links}</ul></nav>
</header>
<main>
{_overview(loaded)}<p class="soft">{text(INTERVALS)}</p>
{"".join(section(suite) for suite in loaded.suites)}</main>
</body>
</html>
"""


def _notice(missing: str) -> str:
    if not missing:
        return ""
    return (
        f'<p class="notice" role="note"><strong>Not finished.</strong> {text(missing)}. The page shows the answers so '
        "far; running the same command again continues from there.</p>\n"
    )


def _overview(loaded: Results) -> str:
    rows = []
    for suite in loaded.suites:
        done, requested = suite.progress()
        records = suite.records
        mean = summary.metrics(records, suite.name)[f"eval/{suite.name}/mean"] if records else None
        rows.append(
            [
                suite.name,
                str(len(records)) if done == requested else f"{done} of {requested}",
                NONE if mean is None else share(mean),
                share(fmean(record.truncated for record in records)) if records else NONE,
            ]
        )
    head = ["suite", "items", "mean score", "truncated"]
    caption = "Overview, in percent. The mean score weights every task at every length equally."
    return table(caption, head, rows)
