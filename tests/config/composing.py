"""Configurations as a command line would give them, without a process."""

from functools import cache

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from longctx_rl.config import load
from longctx_rl.config.compose import config_directory, file_choices, with_values
from longctx_rl.config.schema import Config


def config_with(*overrides: str) -> Config:
    """Return the checked configuration of ``python -m longctx_rl <overrides>``, as ``config.compose.composed`` does.

    Unlike there, Hydra composes each choice of files once per process, and values are set in a copy of the result.
    """
    choices = overrides if any(item.startswith("~") for item in overrides) else file_choices(overrides)
    return load.load(with_values(composed_once(*choices), [item for item in overrides if item not in choices]))


@cache
def composed_once(*overrides: str) -> DictConfig:
    """Return what Hydra composes, unchecked and with references unresolved. Callers copy it before they change it."""
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return compose("config", list(overrides))
