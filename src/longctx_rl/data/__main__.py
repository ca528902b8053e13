"""``python -m longctx_rl.data COMMAND ...``: inspect, build or cache training data before a run.

    inspect         rows by source, language, task and length; which rows are dropped, and why
                    python -m longctx_rl.data inspect data=longblocks data.longblocks.path=FOLDER
    build           a data set in LongBlocks' columns from your own documents, written and checked by a model behind any
                    OpenAI-compatible endpoint; settings and prompts are in conf/build.yaml
                    python -m longctx_rl.data build documents=FOLDER out=FOLDER writer.model=NAME
    teacher-cache   query the teacher once for every recorded answer of a run, so that the run needs no teacher
                    python -m longctx_rl.data teacher-cache +algo=kd model.teacher_cache=FOLDER budget.steps=200

All other arguments of inspect and teacher-cache are those of ``python -m longctx_rl``. Prepared rows are kept and
reused by runs and by later commands.
"""

from pathlib import Path

from longctx_rl import cli
from longctx_rl.config.compose import composed, composed_build

# What each command needs beyond the configuration is imported once the configuration is accepted.


def inspected(overrides: list[str]) -> str:
    """Return tables of what the configured data sets hold."""
    config = composed(overrides)
    from longctx_rl.training.preflight import check_data_files

    check_data_files(config)
    from longctx_rl.data.inspection import inspect

    return inspect(config)


def built(overrides: list[str]) -> str:
    """Build a data set and return its summary."""
    config = composed_build(overrides)
    from longctx_rl.data.building.documents import check_folder

    check_folder(Path(config.documents).expanduser())
    from longctx_rl.data.building.writing import build

    return build(config)


def cached(overrides: list[str]) -> str:
    """Build a teacher cache; return how to use it."""
    config = composed(overrides)
    from longctx_rl.training.preflight import check_cache

    check_cache(config)
    from longctx_rl.training.cached_teacher import build

    return f"the teacher's signals are in {build(config)}; train with model.teacher_cache={config.model.teacher_cache}"


COMMANDS = {"inspect": inspected, "build": built, "teacher-cache": cached}


def run(arguments: list[str]) -> str:
    """Run a command. Raises ValueError if there is no such command."""
    command, *overrides = arguments
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command}: choose one of {', '.join(COMMANDS)}")
    return COMMANDS[command](overrides)


if __name__ == "__main__":
    cli.main(str(__doc__), run)
