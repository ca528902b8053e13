"""Imports run one way, and each heavy library has one door. Read from the files, without importing them."""

from pathlib import Path

import pytest

from source_files import FILES, SOURCE, libraries, name, own

LAYERS = """commands
launch report
training
evals
data rollout rewards runs
policy engine
objective sandbox
config
objective.spec types stats files cli shipped_models __version__"""
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
STRANGERS = {"policy": "engine", "engine": "objective"}
"""Rooms that must not know another one, though imports would run down."""


def room(module: str) -> str:
    """The room of a dotted name below the package. Files that start a process are commands."""
    parts = module.split(".")
    if parts[-1] == "__main__" or parts[0] in ("doctor", "evaluate", "harness"):
        return "commands"
    return "objective.spec" if parts[:2] == ["objective", "spec"] else parts[0]


@pytest.mark.parametrize("path", [path for path in FILES if path != SOURCE / "__init__.py"], ids=name)
def test_imports_run_down_and_through_the_doors(path: Path) -> None:
    mine, rooms = room(name(path).replace("/", ".")), {room(module) for module in own(path)}
    assert {other for other in rooms if LAYER[other] < LAYER[mine]} == set()
    assert "report" not in rooms or mine in ("report", "commands")
    assert STRANGERS.get(mine) not in rooms
    heavy = libraries(path) & DOORS.keys()
    assert {one for one in heavy if not name(path).startswith(tuple(DOORS[one].split()))} == set()


@pytest.mark.parametrize("path", sorted((SOURCE / "objective").glob("*.py")), ids=name)
def test_the_objective_is_pure_tensors(path: Path) -> None:
    standard = {"collections", "dataclasses", "typing", "math"}
    assert libraries(path) <= (standard if path.stem == "spec" else standard | {"torch"})
    assert {room(module) for module in own(path)} <= {"objective", "objective.spec", "types"}
