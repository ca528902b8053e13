"""Imports run one way, and each heavy library has one door. Read from the files, without importing them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "longctx_rl"
LAYERS = """commands
launch report
training
evals
data rollout rewards runs
policy engine
objective sandbox
config
objective.spec types stats files cli shipped_models"""
"""From the top: a file imports from its own layer and from those below. Only commands import ``report``."""
LAYER = {room: number for number, rooms in enumerate(LAYERS.split("\n")) for room in rooms.split()}
DOORS = {
    "hydra": "config/compose",
    "omegaconf": "config/",
    "deepspeed": "engine/zero3",
    "wandb": "runs/wandb report/",
    "lm_eval": "evals/harness",
    "submitit": "launch/slurm",
}
"""Library to the beginnings of the paths that import it."""


def name(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix()


def room(module: str) -> str:
    """The room of a dotted name below the package. Files that start a process are commands."""
    parts = module.split(".")
    if parts[-1] == "__main__" or parts[0] in ("doctor", "evaluate", "harness"):
        return "commands"
    return "objective.spec" if parts[:2] == ["objective", "spec"] else parts[0]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", [*SOURCE.glob("*/**/*.py"), *SOURCE.glob("[!_]*.py")], ids=name)
def test_imports_run_down_and_through_the_doors(path: Path) -> None:
    mine, modules = room(name(path).replace("/", ".")), list(imported(path))
    rooms = {room(module.removeprefix("longctx_rl.")) for module in modules if module.startswith("longctx_rl.")}
    assert {other for other in rooms & LAYER.keys() if LAYER[other] < LAYER[mine]} == set()
    assert "report" not in rooms or mine in ("report", "commands")
    libraries = {module.split(".")[0] for module in modules}
    assert {one for one in libraries & DOORS.keys() if not name(path).startswith(tuple(DOORS[one].split()))} == set()
