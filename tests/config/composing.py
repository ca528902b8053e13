"""Configurations as a command line would give them, without a process."""

from hydra import compose, initialize_config_dir

from longctx_rl.config import load
from longctx_rl.config.compose import config_directory
from longctx_rl.config.schema import Config


def composed(*overrides: str) -> Config:
    """The checked configuration of ``python -m longctx_rl <overrides>``."""
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return load.load(compose("config", list(overrides)))
