"""Every file in conf/ composes and converts."""

from pathlib import Path

import pytest
import yaml

from config.composing import composed
from longctx_rl.__main__ import config_directory
from longctx_rl.config import schema

CONF = config_directory()
GROUPS = ("model", "task", "data", "engine", "rollout", "reward", "eval", "logging")
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix() for path in (CONF / "experiment").rglob("*.yaml")
)
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
FOR_LONGBLOCKS = ("task=any",)
"""For rows as they come: no generator makes such a task."""
PAPER = {
    "sft": ("dataset", 1, (1.0, 0.0, 0.0, 0.0)),
    "kd": ("dataset", 1, (0.0, 0.0, 1.0, 0.0)),
    "grpo": ("policy", 8, (0.0, 1.0, 0.0, 0.0)),
    "opd": ("policy", 8, (0.0, 0.0, 1.0, 0.0)),
    "dgrpo": ("policy", 8, (0.0, 1.0, 0.5, 0.0)),
}


@pytest.mark.parametrize("algo", schema.ALGORITHMS)
def test_each_method_is_its_row_of_the_table(algo: str) -> None:
    method = composed(f"+algo={algo}").algo
    weights = (method.weights.ce, method.weights.pg, method.weights.kd, method.weights.ref)
    assert (method.source, method.group_size, weights) == PAPER[algo]
    assert method.name == algo
    assert method.kd.direction == ("forward" if algo in ("sft", "kd") else "reverse")
    assert (method.kd.estimator, method.kd.placement) == ("exact", "loss")
    assert (method.clip_low, method.clip_high, method.aggregate, method.normalize_std) == (0.2, 0.2, "sequence", True)


def test_all_methods_have_the_same_keys() -> None:
    def keys(value: object) -> object:
        return {name: keys(item) for name, item in value.items()} if isinstance(value, dict) else None

    files = sorted((CONF / "algo").glob("*.yaml"))
    assert [file.stem for file in files] == sorted(schema.ALGORITHMS)
    shapes = [keys(yaml.safe_load(file.read_text())) for file in files]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_composes(option: str) -> None:
    # Without a teacher in the fresh models, sft is the method that all of them allow.
    loaded = composed("+algo=sft", option, *(["data=longblocks"] if option in FOR_LONGBLOCKS else []))
    group, _, name = option.partition("=")
    assert getattr(loaded, group).name == name


@pytest.mark.parametrize(
    ("name", "algo"),
    [(name, algo) for name in EXPERIMENTS for algo in (("sft",) if name.startswith("mini/") else schema.ALGORITHMS)],
)
def test_each_experiment_composes(name: str, algo: str) -> None:
    """Each with every method it is for: the stages of the mini models learn from recorded answers."""
    composed(f"+algo={algo}", f"+experiment={name}")


def test_a_run_directory_names_what_was_chosen() -> None:
    chosen = composed("+algo=kd", "task=copy", "seed=3", "experiment_name=table1")
    assert chosen.run_dir == "runs/table1/kd-mini-copy-s3"


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    for algo, model in (("dgrpo", "mini"), ("sft", "mini_fresh")):
        before = composed(f"+algo={algo}", f"model={model}", "budget.until={metric: eval/heldout/mean, at_least: 0.9}")
        path = tmp_path / "config.yaml"
        path.write_text(schema.dump(before))
        assert schema.read(path) == before


def test_each_section_of_config_yaml_stands_at_its_top_level() -> None:
    text = (CONF / "config.yaml").read_text()
    for section in ("optim:", "budget:", "batch:", "checkpoint:", "seed:", "resume:", "experiment_name:", "algo: ???"):
        assert f"\n{section}" in text
