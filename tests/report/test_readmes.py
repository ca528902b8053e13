"""Blocks of READMEs that are filled from tables, and estimates that prose quotes."""

from pathlib import Path

import pytest

from longctx_rl.report import readmes

ROOT = Path(__file__).resolve().parents[2]


def test_blocks_are_filled_for_their_experiment_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    other = "<!-- table2/beta -->\nkept\n<!-- end -->\n"
    readme.write_text(f"a\n<!-- table1/levels -->\nold\n<!-- end -->\nb\n{other}")
    text = readmes.filled(readme, "table1", {"levels": "| new |"})
    assert text == f"a\n<!-- table1/levels -->\n| new |\n<!-- end -->\nb\n{other}"
    readme.write_text(text)
    assert readmes.filled(readme, "table1", {"levels": "| new |"}) == text
    with pytest.raises(ValueError, match=r"<!-- table1/levels --> names a table .*: choose one of gains, costs"):
        readmes.filled(readme, "table1", {"gains": "", "costs": ""})
    readme.write_text("<!-- table1/levels -->\nold\n" + other)
    with pytest.raises(ValueError, match="<!-- table1/levels --> has no end: add a line <!-- end -->"):
        readmes.filled(readme, "table1", {"levels": ""})


def test_quoted_estimates_must_be_in_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    (folder / "tables.md").write_text("| sft | 5 | \u221228.6 [\u221233.2, \u221224.1]* |\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "paper.md").write_text("sft is lower: +28.6 points [+24.1, +33.2]\n")
    (tmp_path / "README.md").write_text("<!-- mine/gains -->\n| +1.0 [+0.5, +1.5] |\n<!-- end -->\n28.6 [24.1, 33.2]\n")
    assert readmes.unfounded(tmp_path) == []
    wrong = "\u221228.7 [\u221233.2, \u221224.1]"
    (folder / "README.md").write_text(f"{wrong}, a 5 [see](file)\n")
    (problem,) = readmes.unfounded(tmp_path)
    assert problem.startswith(f"{folder}/README.md quotes {wrong}, ")


def test_this_repository_quotes_its_tables() -> None:
    assert readmes.unfounded(ROOT) == []
