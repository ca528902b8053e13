"""The process of one rank: ``python -m longctx_rl.launch.rank CONFIG.yaml``, or the launcher's own process.

It owns everything around the training loop: the run directory, the exit code, and one line for each error.
"""

import errno
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from longctx_rl import cli
from longctx_rl.config.load import read
from longctx_rl.config.schema import Config
from longctx_rl.runs import directory

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a disk that the user can fix."""
MEMORY_ADVICE = "python -m longctx_rl.doctor with the run's settings says what to change"
HANDOVER = "LONGCTX_RL_HANDOVER"
"""Environment variable: the launcher's folder for its children, and the launcher's process id."""


def execute(config: Config) -> int:
    """Train in this process and return its exit code.

    The main rank owns the run directory. A ValueError addresses the user: it becomes one line and exit code 2.
    """
    die_with_launcher()
    main_rank = os.environ.get("RANK", "0") == "0"
    before = {number: signal.getsignal(number) for number in cli.stop_signals()}
    if main_rank:  # importing takes seconds, in which the run directory exists; then the loop handles the signals
        for number in before:
            signal.signal(number, cli.interrupt)
    try:
        if main_rank:
            cli.write(sys.stdout, f"{loading_line(config)}\n")
        with directory.opened(config) if main_rank else nullcontext():
            if main_rank:
                directory.append_log(config, loading_line(config))
            _train(config)
    except ValueError as error:
        cli.complain(error, main_rank)
        return cli.UNUSABLE
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        cli.complain(
            f"cannot write {error.filename or config.run_dir} ({os.strerror(error.errno)}): free space or fix the "
            f"permissions, then continue with {directory.resume_command(config)}",
            main_rank,
        )
        return cli.UNUSABLE
    except (MemoryError, RuntimeError) as error:
        if cli.is_out_of_memory(error):
            cli.complain(f"{cli.out_of_memory(error)}: {MEMORY_ADVICE}", main_rank)
            return cli.UNUSABLE
        from longctx_rl.engine.optimizer import TrainingDiverged  # torch is already loaded here

        if not isinstance(error, TrainingDiverged):
            raise
        cli.complain(str(error), main_rank)
        return cli.DIVERGED
    except KeyboardInterrupt:
        trained = main_rank and directory.trained(Path(config.run_dir))
        command = f"; continue with {directory.resume_command(config)}" if trained else ""
        cli.write(sys.stderr, f"interrupted before the step was saved{command}\n")
        return cli.INTERRUPTED
    except SystemExit as stop:
        if stop.code != cli.INTERRUPTED or HANDOVER not in os.environ:
            raise
        # If a rank exits with an error, torchrun ends the others, which may still be closing their files.
        Path(os.environ[HANDOVER].partition(":")[2], "interrupted").touch()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _train(config: Config) -> None:
    from longctx_rl.training import loop  # imports torch, so only after every check of the configuration

    loop.run(config)


def loading_line(config: Config) -> str:
    """Return the line that explains the seconds before the first step: libraries and models are being loaded."""
    model = config.model
    names = ["a randomly initialised student" if model.architecture else model.student]
    teacher = config.loaded_teacher
    if teacher is not None and teacher not in names:
        names.append(teacher)
    library = "torch, transformers and DeepSpeed" if config.engine.name == "zero3" else "torch and transformers"
    return f"loading {library}, then {' and '.join(names)}"


def die_with_launcher() -> None:
    """End this process when its launcher is killed, so that no rank keeps training alone."""
    if HANDOVER in os.environ:
        cli.die_with(int(os.environ[HANDOVER].partition(":")[0]))


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m longctx_rl.launch.rank CONFIG.yaml")
    cli.start()
    cli.leave(execute(read(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
