"""Objectives without a meaning are refused before a model is loaded; the documented settings are accepted."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from longctx_rl.config import Config, load

ROOT = Path(__file__).parents[2]


def configured(*overrides: str) -> Config:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return load(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("anchor", ["kd", "ref"])
def test_k1_as_a_loss_is_refused_and_the_valid_choice_named(anchor):
    overrides = ["+algo=dgrpo", f"algo.weights.{anchor}=0.5", f"algo.{anchor}.estimator=k1"]
    with pytest.raises(ValueError, match=f"does not depend on the anchor: set algo.{anchor}.placement=advantage"):
        configured(*overrides)
    assert configured(*overrides, f"algo.{anchor}.placement=advantage")


@pytest.mark.parametrize("estimator", ["exact", "topk", "k2", "k3"])
def test_only_k1_may_enter_the_advantage(estimator):
    with pytest.raises(ValueError, match="placement=advantage works with algo.kd.estimator=k1 only"):
        configured("+algo=dgrpo", "algo.kd.placement=advantage", f"algo.kd.estimator={estimator}")


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_sampled_estimators_need_the_students_own_tokens_and_the_reverse_kl(estimator):
    placement = "algo.kd.placement=advantage" if estimator == "k1" else "algo.kd.placement=loss"
    chosen = [f"algo.kd.estimator={estimator}", placement]
    with pytest.raises(ValueError, match="needs tokens drawn from the policy"):
        configured("+algo=kd", "algo.kd.direction=reverse", *chosen)
    with pytest.raises(ValueError, match="estimates the reverse KL only"):
        configured("+algo=opd", "algo.kd.direction=forward", *chosen)
    assert configured("+algo=opd", *chosen)


DOCUMENTED = re.findall(r"python -m longctx_rl (\+algo=.*)", (ROOT / "docs" / "algorithms.md").read_text())


def test_the_document_shows_settings():
    assert len(DOCUMENTED) >= 3


@pytest.mark.parametrize("arguments", DOCUMENTED)
def test_documented_settings_compose(arguments):
    assert configured(*arguments.split())
