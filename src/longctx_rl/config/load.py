"""Conversion of composed or stored YAML into a checked ``Config``, and back."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from longctx_rl.config import checks, convert
from longctx_rl.config.schema import ALGORITHMS, Config


def load(composed: DictConfig) -> Config:
    """Convert and check a composed configuration. Raises ValueError, one sentence with key, value and fix."""
    if OmegaConf.is_missing(composed, "algo"):
        raise ValueError(f"choose an algorithm: +algo={'|'.join(ALGORITHMS)}")
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"a value is missing or cannot be resolved: {str(error).splitlines()[0]}") from error
    config = convert.convert(Config, plain)
    config = replace(config, eval=config.eval.with_files())
    checks.check(config)
    return config


def read(path: Path) -> Config:
    """Read the config.yaml of a run. Raises ValueError if the file is not one."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, DictConfig) or "algo" not in loaded:
        raise ValueError(f"{path} is not a run's config.yaml")
    return load(loaded)


def dump(config: Config) -> str:
    """Return the configuration as YAML text, which ``read`` converts back."""
    return OmegaConf.to_yaml(OmegaConf.create(convert.plain(config)))
