"""Conversion of composed or stored YAML into a checked ``Config``, and back."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from longctx_rl.config import checks, convert
from longctx_rl.config.distillation import DistillationConfig
from longctx_rl.config.schema import ALGORITHMS, AlgoConfig, Config
from longctx_rl.objective.spec import Divergence

FORMER_VALUES = {
    ("batch.backward", "scheduled"): "one_at_a_time",
    ("engine.frozen_weights", "whole"): "replicated",
}
"""Values that runs of earlier versions have in their config.yaml, and what they are called now."""


def load(composed: DictConfig, *, complete: bool = True) -> Config:
    """Convert and check a composed configuration. Raises ValueError, one sentence with key, value and fix.

    Args:
        complete: refuse a method that leaves a key to a default of the code. A run of an earlier version lacks the keys
            that were added since, whose defaults are what it did.
    """
    if OmegaConf.is_missing(composed, "algo"):
        raise ValueError(f"choose an algorithm: +algo={'|'.join(ALGORITHMS)}")
    plain = resolved(composed)
    if complete:
        _check_complete(plain)
    config = convert.convert(Config, plain)
    places = {name: os.path.expanduser(getattr(config, name)) for name in ("runs_root", "run_dir")}
    config = replace(config, eval=config.eval.with_files(), **places)
    checks.check(config)
    return config


def resolved(composed: DictConfig) -> Any:
    """Return a composed configuration as plain data. Raises ValueError for a missing value or broken reference."""
    try:
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key, problem = error.full_key or "a value", str(error).splitlines()[0]
        raise ValueError(f"{key} is missing or cannot be resolved ({problem}): give it a value, {key}=...") from error


def _check_complete(plain: Any) -> None:
    """Raise ValueError for a method that leaves a key to a default of the code. Weights alone may, to 0."""
    algo = plain["algo"] if isinstance(plain["algo"], dict) else {}
    if "name" not in algo:
        raise ValueError(f"algo has no name: choose an algorithm, +algo={'|'.join(ALGORITHMS)}")
    for path, kind, values in (
        ("algo", AlgoConfig, algo),
        ("algo.kd", DistillationConfig, algo.get("kd")),
        ("algo.ref", Divergence, algo.get("ref")),
    ):
        for field in fields(kind):
            if isinstance(values, dict) and field.name not in values:
                raise ValueError(f"missing key {path}.{field.name}: give it a value, {path}.{field.name}=...")


def read(path: Path) -> Config:
    """Read the config.yaml of a run, of an earlier version too. Raises ValueError if the file is not one."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, DictConfig) or "algo" not in loaded:
        raise ValueError(f"{path} is not a run's config.yaml")
    for (key, former), value in FORMER_VALUES.items():
        if OmegaConf.select(loaded, key) == former:
            OmegaConf.update(loaded, key, value)
    try:
        return load(loaded, complete=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def dump(config: Config) -> str:
    """Return the configuration as YAML text, which ``read`` converts back."""
    return OmegaConf.to_yaml(OmegaConf.create(convert.plain(config)))
