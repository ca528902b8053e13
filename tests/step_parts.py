"""Parts of a run for tests of a step that build no run."""

from dataclasses import fields
from typing import Any

from longctx_rl.config.schema import Config
from longctx_rl.training.parts import Parts


def step_parts(config: Config, engine: Any) -> Parts:
    """Return parts with a configuration and an engine, which is all that the passes of a step read."""
    missing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Parts))
    return Parts(**missing | {"config": config, "engine": engine})
