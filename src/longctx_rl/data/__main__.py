"""``python -m longctx_rl.data``: look at training data before a run.

    inspect     rows by source, language, task and length; what is dropped and why
                python -m longctx_rl.data inspect data=longblocks data.longblocks.path=FOLDER

Everything else is as for ``python -m longctx_rl``. The first look prepares the rows, which a run then finds.
"""

import sys

from longctx_rl import process
from longctx_rl.__main__ import composed


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        sys.exit(0 if arguments else process.UNUSABLE)
    command, *overrides = arguments
    try:
        if command != "inspect":
            raise ValueError(f"unknown command {command}: choose inspect")
        config = composed(overrides)
        from longctx_rl.data.inspection import inspect  # transformers loads here, behind every check

        print(inspect(config))
    except ValueError as error:
        process.complain(error)
        sys.exit(process.UNUSABLE)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(process.INTERRUPTED)


if __name__ == "__main__":
    main()
