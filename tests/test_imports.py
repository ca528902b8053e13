"""Imports run one way, and each heavy library has one door. Read from the source, without importing it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "longctx_rl"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = (
    {"doctor", "evaluate", "harness"},
    {"__main__"},
    {"sweep"},
    {"cells", "submission"},
    {"launch"},
    {"train"},
    {"training", "models"},
    {"evals", "recorder", "report"},
    {"overview"},
    {"plan"},
    {"data", "rollout", "rewards", "engine", "progress", "process", "mirror"},
    {"policy", "run_directory", "sandbox"},
    {"objective", "environment", "fingerprint", "stats", "endpoint", "metrics_file"},
    {"config", "types"},
    {
        "strict",
        "validation",
        "config_data",
        "config_reward",
        "config_build",
        "config_eval",
        "config_logging",
        "config_model",
    },
)
"""From the top. A file imports from its own layer and from those below."""

DOORS = {
    "hydra": {"__main__"},
    "omegaconf": {"__main__", "config"},
    "deepspeed": {"engine/zero3"},
    "wandb": {"mirror", "report"},
    "lm_eval": {"harness", "evals/harness_model"},
    "vllm": {"rollout/vllm"},
    "submitit": {"submission"},
}
"""Library to the only files, or folders, that import it."""

NEVER = {
    "objective": {"config", "engine", "policy", "transformers"},
    "policy": {"engine", "training", "train"},
    "engine": {"objective", "rollout", "data"},
}


def name(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix()


def room(path: Path) -> str:
    """The folder of a file. A command line inside a folder, such as ``data/__main__``, stands above all of them."""
    return "doctor" if name(path).endswith("/__main__") else name(path).split("/")[0]


def imported(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    """Rooms of this package that a file imports from."""
    parts = (module.split(".") for module in imported(path))
    return {part[1] for part in parts if part[0] == "longctx_rl" and len(part) > 1}


def layer(room_name: str) -> int:
    return next(index for index, rooms in enumerate(LAYERS) if room_name in rooms)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_imports_a_layer_above_it(path: Path) -> None:
    if room(path) == "__init__":
        return
    rooms = {entry.stem for entry in SOURCE.iterdir()}
    above = {other for other in own(path) & rooms if layer(other) < layer(room(path))}
    if name(path) == "validation":
        above -= {"config"}  # for type checkers only
    assert not above


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_door(library: str) -> None:
    users = {name(path) for path in FILES if any(module.split(".")[0] == library for module in imported(path))}
    assert {user for user in users if user not in DOORS[library] and user.split("/")[0] not in DOORS[library]} == set()


@pytest.mark.parametrize("folder", NEVER)
def test_pure_parts_stay_pure(folder: str) -> None:
    for path in (SOURCE / folder).rglob("*.py"):
        external = {module.split(".")[0] for module in imported(path)}
        assert not (own(path) | external) & NEVER[folder], name(path)


def test_the_objective_imports_torch_and_types_only() -> None:
    standard = {"collections", "dataclasses", "typing", "math"}
    for path in (SOURCE / "objective").rglob("*.py"):
        external = {module.split(".")[0] for module in imported(path)} - {"longctx_rl"}
        assert external <= standard | {"torch"}, name(path)
        assert own(path) <= {"objective", "types"}, name(path)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{name(path)}: {node.name}"
