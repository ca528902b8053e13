"""The page of an evaluation: its numbers are those of the summary, it is valid HTML, and it reports missing items."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evals.tables import rows
from longctx_rl.evals import records, summary
from longctx_rl.evals.records import ItemRecord
from longctx_rl.report.answers import evaluation_folder, page
from longctx_rl.stats import Estimate, wilson

ITEMS = 8
CELLS = {
    "code": [("closed", 0), ("short", 0), ("bury", 512), ("bury", 1024)],
    "longreason": [("original", 0), ("context", 512)],
    "ruler": [("vt", 512), ("vt", 1024), ("cwe", 512), ("cwe", 1024)],
}
NASTY = '</pre><script>alert("x")</script> & \x00\u202e http://example.org'


def record(suite: str, task: str, length: int, number: int) -> ItemRecord:
    """Right at short length, less often at long length; RULER's recall is higher than its strict score."""
    score = float(number >= 2 * length // 512 + (task == "closed") * 7)
    parts = {"answer": score, "format": float(number > 0)}
    if suite == "code":
        parts |= {"recall": 0.5, "hallucinated": float(number == 1)}
    if suite == "ruler":
        score, parts = score / 2, parts | {"recall": float(length == 512 or number > 5)}
    return ItemRecord(
        step=0,
        id=f"{suite}-{number}-{task}-L{length}",
        family_id=f"{suite}-{number}-{task if suite == 'ruler' else ''}",
        task=task,
        length=length,
        prompt_tokens=length or 99,
        output=NASTY,
        score=score,
        parts=parts,
        truncated=number == 0,
        depth=None if suite == "ruler" or task == "closed" else number / ITEMS,
        question=f"which <{number}>?",
        expected="ABBCBDBA"[number] if suite == "longreason" else "x = 1",
    )


def fill(folder: Path) -> Path:
    for suite, cells in CELLS.items():
        found = [record(suite, task, length, number) for number in range(ITEMS) for task, length in cells]
        records.append(folder / "evals" / f"{suite}.jsonl", found)
    asked = {suite: [(*cell, ITEMS) for cell in cells] for suite, cells in CELLS.items()}
    about = {"checkpoint": "a <b>", "weights": "0123", "dtype": "float32", "asked": asked}
    (folder / "evaluation.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its page, for tests that change neither."""
    folder = fill(tmp_path_factory.mktemp("written"))
    assert page.write(folder) == f"page: {folder / 'index.html'}"
    return folder


class Page(HTMLParser):
    """Tables by caption, as rows of texts; ids, references, and whether every element is closed."""

    VOID = frozenset({"meta", "br", "hr", "link", "img", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.caption = self.section = self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.tables[self.section, self.caption].append([])
        self.text = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "h2":
            self.section = self.text
        if tag == "caption":
            self.caption = self.text
            self.tables[self.section, self.caption] = []
        if tag in ("th", "td"):
            self.tables[self.section, self.caption][-1].append(self.text)

    def handle_data(self, data: str) -> None:
        self.text += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.attributes.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))

    def table(self, section: str, caption: str) -> list[dict[str, str]]:
        head, *rows = next(rows for key, rows in self.tables.items() if key[0] == section and caption in key[1])
        return [dict(zip(head, row, strict=True)) for row in rows]


def test_numbers_are_the_summarys(written: Path) -> None:
    found = Page(written / "index.html")
    for suite, cells in CELLS.items():
        shown = found.table(suite, "Score by task")
        assert [(row["task"], row["length"]) for row in shown] == [(task, str(length or "-")) for task, length in cells]
        printed = rows(summary.table(records.read(written / "evals" / f"{suite}.jsonl")))
        by_cell = {
            (row["task"], row["length"]): (row["n"], row["score"], f"{float(row['truncated']):.0f}") for row in shown
        }
        assert by_cell == {(row["task"], row["length"]): (row["n"], row["score"], row["truncated"]) for row in printed}
    overview = {row["suite"]: row["mean score"] for row in found.table("", "Overview")}
    mean = summary.metrics(records.read(written / "evals" / "ruler.jsonl"), "ruler")["eval/ruler/mean"]
    assert overview["ruler"] == f"{100 * mean:.1f}"


def test_diagnostics_beside_the_scores(written: Path) -> None:
    found = Page(written / "index.html")
    bury = found.table("code", "Score by task")[-1]
    assert [bury[name] for name in ("parsed", "API recall", "invented API")] == ["87.5", "50.0", "12.5"]
    context = found.table("longreason", "Score by task")[-1]
    assert [context[name] for name in ("unparsed", "majority floor")] == ["12.5", "50.0"]
    assert found.table("ruler", "Score by task")[1]["RULER's recall"] == "25.0"
    # Of the 8 items that are right at short length, 6 and 4 are right when buried.
    head = ("length", "n right when short", "P(pass | pass short)")
    kept = [tuple(row[name] for name in head) for row in found.table("code", "Retention")]
    assert kept == [("512", "8", summary.percent(wilson(6, 8))), ("1024", "8", summary.percent(wilson(4, 8)))]
    said = "<strong>RULER&#x27;s recall: 512 tokens; strict: none of these lengths.</strong>"
    assert said in (written / "index.html").read_text(encoding="utf-8")


def test_retention_counts_families_that_pass_when_short(folder: Path) -> None:
    path = folder / "evals" / "code.jsonl"
    kept = [replace(one, score=0.0) if one.task == "short" else one for one in records.read(path)]
    path.unlink()
    records.append(path, kept)
    (suite,) = (one for one in evaluation_folder.load(folder).suites if one.name == "code")
    assert [(one.n, one.score) for one in evaluation_folder.retention(suite)] == [(0, None), (0, None)]


def test_maps_place_items_by_depth_and_length(written: Path) -> None:
    code, _, ruler = evaluation_folder.load(written).suites
    found = evaluation_folder.depth_map(code, "bury")
    assert sum(count for _, count in found.values()) == 2 * ITEMS
    assert set(found) == {(length, part) for length in (512, 1024) for part in range(evaluation_folder.DEPTHS)}
    assert found[512, 0] == (0.0, 2) and found[512, 4] == (1.0, 1)
    assert not evaluation_folder.depth_map(code, "closed") and not evaluation_folder.depth_map(ruler, "vt")
    maps = [str(values["aria-label"]) for tag, values in Page(written / "index.html").attributes if tag == "svg"]
    said = "code, bury, score by prompt length and depth: 512 tokens, 0-20 % deep: 0.0 % of 2"
    assert any(said in one for one in maps)
    assert "No record has a depth" in (written / "index.html").read_text(encoding="utf-8")


def test_the_page_is_valid_and_loads_nothing_from_the_network(written: Path) -> None:
    text, found = (written / "index.html").read_text(encoding="utf-8"), Page(written / "index.html")
    assert len(set(found.ids)) == len(found.ids)
    tags = {tag for tag, _ in found.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object"} and "@import" not in text and "\x00" not in text
    for tag, values in found.attributes:
        for name in {"src", "href", "xlink:href"} & set(values):
            assert str(values[name])[0] == "#" and str(values[name])[1:] in found.ids
        assert tag != "th" or values["scope"] in ("row", "col")
        assert tag != "svg" or (values["role"] == "img" and values["aria-label"])
    assert all(one in found.ids for one in re.findall(r"url\(#([^)]+)\)", text)) and "url(h" not in text
    assert "&lt;/pre&gt;&lt;script&gt;" in text and "prefers-color-scheme: dark" in text


def test_the_same_records_make_the_same_bytes(written: Path, folder: Path) -> None:
    first = (written / "index.html").read_bytes()
    for path in (folder / "evals").iterdir():  # in another order, as another command may write them
        found = records.read(path)
        path.unlink()
        records.append(path, found[::-1])
    (folder / "matplotlibrc").write_text("axes.grid: True\nsvg.fonttype: path\n")
    code = "import atexit, sys; atexit.register(lambda: print('torch loaded:', 'torch' in sys.modules)); "
    code += "from longctx_rl.report.__main__ import main; main()"
    command = [sys.executable, "-c", code, "answers", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "page: index.html\n" in done.stdout and "torch loaded: False\n" in done.stdout
    assert (folder / "index.html").read_bytes() == first


def test_an_unfinished_evaluation_is_shown_and_called_that(folder: Path) -> None:
    path = folder / "evals" / "code.jsonl"
    kept = [one for one in records.read(path) if one.task != "bury" or (one.length == 512 and one.id < "code-3")]
    path.write_text("")
    records.append(path, kept)
    with path.open("a") as file:
        file.write('{"step": 0, "id": "cut')
    (folder / "evals" / "ruler.jsonl").unlink()
    assert "code: 19 of 32 items; ruler: 0 of 32 items" in page.write(folder)
    found, text = Page(folder / "index.html"), (folder / "index.html").read_text()
    assert "<strong>Not finished.</strong> code: 19 of 32 items; ruler: 0 of 32 items." in text
    shown = found.table("code", "Score by task")
    assert [row["n"] for row in shown] == ["8", "8", "3 of 8", "0 of 8"] and shown[3]["score"] == "-"
    assert "No answers yet." in text


def test_means_compare_complete_lengths_only(folder: Path) -> None:
    path = folder / "evals" / "ruler.jsonl"
    kept = [one for one in records.read(path) if one.length == 512 or one.task == "vt"]
    path.write_text("")
    records.append(path, kept)
    *_, ruler = evaluation_folder.load(folder).suites
    assert list(evaluation_folder.mean_by_length(ruler)) == [512]


def test_means_weigh_tasks_alike(folder: Path) -> None:
    """A task with more items, from another command, has no more weight."""

    def means() -> dict[int, Estimate]:
        (ruler,) = (suite for suite in evaluation_folder.load(folder).suites if suite.name == "ruler")
        return evaluation_folder.mean_by_length(ruler)

    before = means()
    more = [record("ruler", "vt", 512, number) for number in range(ITEMS, 3 * ITEMS)]
    records.append(folder / "evals" / "ruler.jsonl", more)
    assert means() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"evaluation\.json .*out= folder of python -m longctx_rl\.evaluate"),
        ("{", r"evaluation\.json .*run the evaluate command again"),
        ('{"checkpoint": "x"}', r"evaluation\.json .*run the evaluate command again"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        page.write(tmp_path)
    assert not (tmp_path / "index.html").exists()
