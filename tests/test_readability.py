"""The source stays readable: names found once, sizes, few parameters, and experiments that only the report knows."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from source_files import FILES, SOURCE, name


def test_only_the_report_knows_of_experiments() -> None:
    named = {name(path) for path in FILES if '"experiments"' in path.read_text(encoding="utf-8")}
    assert {user for user in named if not user.startswith("report/")} == {
        "__main__"
    }  # which hands on what report reads


def test_a_name_is_found_once() -> None:
    """A module or a class of one name with two meanings sends a reader to the wrong file."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    classes = [node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)]
    modules = [path.stem for path in FILES if not path.stem.startswith("__")]
    assert {one: count for one, count in Counter(classes + modules).items() if count > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, f"{name(path)}: {node.name}"


@pytest.mark.parametrize("path", sorted((SOURCE / "training").glob("*.py")), ids=name)
def test_a_function_of_the_step_takes_few_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(taken) <= 6, f"{node.name} takes {len(taken)}"
