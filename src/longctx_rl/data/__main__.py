"""``python -m longctx_rl.data COMMAND ...``: training data before a run.

    inspect         rows by source, language, task and length; what is dropped and why
                    python -m longctx_rl.data inspect data=longblocks data.longblocks.path=FOLDER
    build           a data set in LongBlocks' columns from your own documents, written and checked by a model behind any
                    OpenAI-compatible endpoint; settings and prompts are in conf/build.yaml
                    python -m longctx_rl.data build documents=FOLDER out=FOLDER writer.model=NAME
    teacher-cache   ask the teacher once about every recorded answer of a run, so that the run needs no teacher
                    python -m longctx_rl.data teacher-cache +algo=kd model.teacher_cache=FOLDER budget.steps=200

Everything else of inspect and teacher-cache is as for ``python -m longctx_rl``. What was prepared is found again by a
run, and by the next command.
"""

import sys

from longctx_rl import cli
from longctx_rl.__main__ import composed, composed_build


def inspected(overrides: list[str]) -> str:
    """Tables of what is there."""
    config = composed(overrides)
    from longctx_rl.data.inspection import inspect  # transformers loads here, behind every check

    return inspect(config)


def built(overrides: list[str]) -> str:
    """Builds a data set; what came of it."""
    config = composed_build(overrides)
    from longctx_rl.data.building.writing import build

    return build(config)


def cached(overrides: list[str]) -> str:
    """Builds the cache; how to use it."""
    config = composed(overrides)
    from longctx_rl.training.cached_teacher import build

    if config.model.teacher_cache is None:
        raise ValueError("give the folder of the cache: model.teacher_cache=FOLDER")
    return f"{build(config)} holds what the teacher says; train with model.teacher_cache={config.model.teacher_cache}"


COMMANDS = {"inspect": inspected, "build": built, "teacher-cache": cached}


def run(command: str, overrides: list[str]) -> str:
    """What a command has to say. Raises ValueError if there is no such command."""
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command}: choose one of {', '.join(COMMANDS)}")
    return COMMANDS[command](overrides)


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        sys.exit(0 if arguments else cli.UNUSABLE)
    command, *overrides = arguments
    cli.command(lambda: run(command, overrides))


if __name__ == "__main__":
    main()
