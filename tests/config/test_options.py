"""Every file in conf/ composes and converts."""

from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path

import pytest
import yaml

from config.composing import composed_once, config_with
from longctx_rl.config import convert, load
from longctx_rl.config.compose import config_directory
from longctx_rl.config.distillation import DistillationConfig
from longctx_rl.config.schema import ALGORITHMS
from longctx_rl.objective.spec import Divergence, Weights

CONF = config_directory()
GROUPS = ("model", "task", "data", "engine", "rollout", "reward", "eval", "logging")
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix() for path in (CONF / "experiment").rglob("*.yaml")
)
OPTIONS = [[f"{group}={path.stem}" for path in sorted((CONF / group).glob("[!_]*.yaml"))] for group in GROUPS]
FOR_LONGBLOCKS = ("task=any",)
"""These options need a data set, because no generator makes such a task."""
COMBINED = [
    *zip_longest(*([option for option in options if option not in FOR_LONGBLOCKS] for options in OPTIONS)),
    *((option, "data=longblocks") for option in FOR_LONGBLOCKS),
]
"""Every option once, with options of the other groups beside it: one composition for all of them."""
PAPER = {
    "sft": ("dataset", 1, (1.0, 0.0, 0.0, 0.0)),
    "kd": ("dataset", 1, (0.0, 0.0, 1.0, 0.0)),
    "grpo": ("policy", 8, (0.0, 1.0, 0.0, 0.0)),
    "opd": ("policy", 8, (0.0, 0.0, 1.0, 0.0)),
    "dgrpo": ("policy", 8, (0.0, 1.0, 0.5, 0.0)),
    "opsd": ("policy", 8, (0.0, 0.0, 1.0, 0.0)),
    "dgrpo_self": ("policy", 8, (0.0, 1.0, 0.5, 0.0)),
}
SELF_TAUGHT = ("opsd", "dgrpo_self")


DIVERGENCE = {
    "direction": "reverse",
    "estimator": "exact",
    "placement": "loss",
    "top_k": 64,
    "js_mixture": 0.5,
    "entropy_scale": 1.0,
}
TEACHER = {"teacher": "external", "view": "document", "view_tokens": 256, "ema_half_life": None}
SHARED: dict[str, object] = {
    "updates_per_rollout": 1,
    "draws": 1,
    "ratio": "token",
    "surrogate": "clip",
    "unlikely_below": 0.1,
    "aggregate": "sequence",
    "baseline": "mean",
    "normalize_std": True,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "importance_cap": None,
    "importance_mask": None,
}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_each_method_resolves_to_its_row_of_the_table(algo: str) -> None:
    """Every resolved value, whichever file it comes from, so that earlier runs stay comparable."""
    source, group_size, weights = PAPER[algo]
    recorded = source == "dataset"
    resolved = convert.plain(config_with(f"+algo={algo}").algo)
    assert "{answer}" in resolved["kd"].pop("answer_prompt")
    own = {"teacher": "initial", "view": "evidence"} if algo in SELF_TAUGHT else {}
    assert resolved == {
        "name": algo,
        "source": source,
        "group_size": group_size,
        "weights": dict(zip(("ce", "pg", "kd", "ref"), weights, strict=True)) | {"unlikely": 0.0},
        "kd": DIVERGENCE | TEACHER | own | {"direction": "forward" if recorded else "reverse"},
        "ref": DIVERGENCE | {"estimator": "exact" if recorded else "k3"},
        **SHARED,
    }


def test_the_shared_file_of_the_methods_lists_every_weight_and_every_part_of_a_divergence() -> None:
    """Otherwise a new weight could not be set on the command line."""
    base = yaml.safe_load((CONF / "algo" / "_base.yaml").read_text())
    assert base["weights"] == asdict(Weights())
    assert base["kd"].keys() == asdict(DistillationConfig()).keys()
    assert base["ref"].keys() == asdict(Divergence()).keys()
    assert sorted(path.stem for path in (CONF / "algo").glob("[!_]*.yaml")) == sorted(ALGORITHMS)


@pytest.mark.parametrize("combined", COMBINED, ids=lambda combined: ",".join(filter(None, combined)))
def test_each_option_composes(combined: tuple[str | None, ...]) -> None:
    # Randomly initialised models have no teacher, and sft is the method that works with every option.
    options = [option for option in combined if option is not None]
    loaded = config_with("+algo=sft", *options)
    for group, _, name in (option.partition("=") for option in options):
        assert getattr(loaded, group).name == name


def test_the_combinations_contain_every_option() -> None:
    assert {option for combined in COMBINED for option in combined if option is not None} == {*chain(*OPTIONS)}


@pytest.mark.parametrize(
    ("name", "algo"),
    [(name, algo) for name in EXPERIMENTS for algo in (("sft",) if name.startswith("mini/") else ALGORITHMS)],
)
def test_each_experiment_composes(name: str, algo: str) -> None:
    """Each with every method it is for: the stages of the mini models learn from recorded answers.

    No other experiment changes the method, so one composition serves all methods, with the ``algo`` of each.
    """
    shared = composed_once("+algo=sft", f"+experiment={name}").copy()
    if not name.startswith("mini/"):
        assert shared.algo == composed_once("+algo=sft").algo
        shared.algo = composed_once(f"+algo={algo}").algo
    assert load.load(shared).algo.name == algo


def test_a_method_in_a_shared_composition_is_what_hydra_composes() -> None:
    shared = composed_once("+algo=sft", "+experiment=paper").copy()
    shared.algo = composed_once("+algo=opd").algo
    assert load.load(shared) == config_with("+algo=opd", "+experiment=paper")


def test_a_run_directory_names_what_was_chosen() -> None:
    chosen = config_with("+algo=kd", "task=copy", "seed=3", "experiment_name=table1")
    assert chosen.run_dir == "runs/table1/kd-mini-copy-s3"


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    for algo, model in (("dgrpo", "mini"), ("sft", "mini_fresh")):
        before = config_with(
            f"+algo={algo}", f"model={model}", "budget.until={metric: eval/heldout/mean, at_least: 0.9}"
        )
        path = tmp_path / "config.yaml"
        path.write_text(load.dump(before))
        assert load.read(path) == before


def test_values_of_earlier_versions_read_as_what_they_are_called_now(tmp_path: Path) -> None:
    """A run that was started with them can be resumed."""
    path = tmp_path / "config.yaml"
    written = load.dump(config_with("+algo=dgrpo"))
    former = written.replace("backward: auto", "backward: scheduled").replace(
        "frozen_weights: auto", "frozen_weights: whole"
    )
    assert former != written
    path.write_text(former)
    config = load.read(path)
    assert (config.batch.backward, config.engine.frozen_weights) == ("one_at_a_time", "replicated")


def test_each_section_of_config_yaml_stands_at_its_top_level() -> None:
    text = (CONF / "config.yaml").read_text()
    for section in ("optim:", "budget:", "batch:", "checkpoint:", "seed:", "resume:", "experiment_name:", "algo: ???"):
        assert f"\n{section}" in text
