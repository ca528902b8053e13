"""Configurations as a command line would give them, without a process."""

from hydra import compose, initialize_config_dir

from longctx_rl.__main__ import config_directory
from longctx_rl.config import schema
from longctx_rl.config.schema import Config


def composed(*overrides: str) -> Config:
    """The checked configuration of ``python -m longctx_rl <overrides>``."""
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return schema.load(compose("config", list(overrides)))
