"""Objectives without a meaning are refused before a model is loaded; the documented settings are accepted."""

import re
from pathlib import Path

import pytest

from config.composing import config_with
from longctx_rl.config.schema import ALGORITHMS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("anchor", ["kd", "ref"])
def test_k1_as_a_loss_is_refused_and_the_valid_choice_named(anchor: str) -> None:
    overrides = ["+algo=dgrpo", f"algo.weights.{anchor}=0.5", f"algo.{anchor}.estimator=k1"]
    with pytest.raises(
        ValueError, match=rf"algo\.{anchor}\.estimator=k1 .*set algo\.{anchor}\.placement=advantage .*estimator=k2"
    ):
        config_with(*overrides)
    assert config_with(*overrides, f"algo.{anchor}.placement=advantage")


@pytest.mark.parametrize("estimator", ["exact", "topk", "k2", "k3"])
def test_only_k1_may_enter_the_advantage(estimator: str) -> None:
    with pytest.raises(
        ValueError, match=f"algo.kd.placement=advantage .*{estimator}: set .*placement=loss or .*estimator=k1"
    ):
        config_with("+algo=dgrpo", "algo.kd.placement=advantage", f"algo.kd.estimator={estimator}")


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_sampled_estimators_need_the_students_own_tokens_and_the_reverse_kl(estimator: str) -> None:
    placement = "algo.kd.placement=advantage" if estimator == "k1" else "algo.kd.placement=loss"
    chosen = [f"algo.kd.estimator={estimator}", placement]
    with pytest.raises(
        ValueError, match=f"algo.kd.estimator={estimator} .*algo.source=dataset: set algo.kd.estimator=exact or topk"
    ):
        config_with("+algo=kd", "algo.kd.direction=reverse", *chosen)
    with pytest.raises(ValueError, match=f"algo.kd.estimator={estimator} .*set algo.kd.direction=reverse"):
        config_with("+algo=opd", "algo.kd.direction=forward", *chosen)
    assert config_with("+algo=opd", *chosen)


DOCUMENT = (ROOT / "docs" / "algorithms.md").read_text()
COMMANDS = re.findall(r"python -m longctx_rl (\+algo=.*)", DOCUMENT)
METHODS = re.findall(r"^\| `(\w+)` \| (?:dataset|policy) .*$", DOCUMENT, re.MULTILINE)


def test_the_document_shows_all_methods_and_some_settings() -> None:
    assert tuple(METHODS) == ALGORITHMS
    assert len(COMMANDS) > len(ALGORITHMS)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_documented_settings_compose(arguments: str) -> None:
    assert config_with(*arguments.split())


@pytest.mark.parametrize("name", METHODS)
def test_documented_coefficients_are_the_presets(name: str) -> None:
    (line,) = re.findall(rf"^\| `{name}` \| (?:dataset|policy) .*$", DOCUMENT, re.MULTILINE)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    algo = config_with(f"+algo={name}").algo
    weights = algo.weights
    divergence = f"{algo.kd.direction}, {algo.kd.estimator}" if weights.kd else "–"  # noqa: RUF001
    numbers = [str(value) for value in (weights.ce, weights.pg, weights.kd, weights.ref)]
    assert cells[:8] == [f"`{name}`", algo.source, str(algo.group_size), *numbers, divergence]
