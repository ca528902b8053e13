"""Starts one run from a checked configuration: in this process, or as several children of a torchrun agent.

Children never compose: they read the configuration from a file in their launcher's temporary folder, so that machines
need not share a disk. The main rank creates the run directory.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from longctx_rl import cli
from longctx_rl.config import load as configuration
from longctx_rl.config.schema import Config, RunRequest
from longctx_rl.launch import rank
from longctx_rl.runs import directory
from longctx_rl.runs.environment import command, cores

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def single(request: RunRequest) -> int:
    """Start one run, in this process if it needs no other, and return its exit code."""
    config = request.config
    if config is None:
        assert request.problem is not None
        cli.complain(request.problem)
        return cli.UNUSABLE
    os.environ["LONGCTX_RL_COMMAND"] = request.command
    try:
        if config.engine.num_nodes == 1:
            directory.check(config)
            if config.resume and (done := directory.finished(config)):
                print(f"{config.run_dir} is finished after {done['step']} steps ({done['reason']}): nothing to do")
                return 0
        from longctx_rl.training.preflight import preflight  # imports generators and graders, unlike the checks above

        preflight(config)
        if config.world_size > 1:
            return _children(config)
    except ValueError as problem:
        cli.complain(problem)
        return cli.UNUSABLE
    return rank.execute(config)


def _children(config: Config) -> int:
    """Run the training processes of this machine and return their exit code."""
    with tempfile.TemporaryDirectory(prefix="longctx_rl-") as folder, _environment(config, folder):
        path = Path(folder, "config.yaml")
        path.write_text(configuration.dump(config), encoding="utf-8")
        code = _agent(config, ["-m", "longctx_rl.launch.rank", str(path)], folder)
        if Path(folder, "interrupted").exists():
            code = cli.INTERRUPTED
    if code:
        directory.discard_untrained(config)
    return code


def _agent(config: Config, arguments: list[str], folder: str) -> int:
    """Run torchrun's agent in this process: it starts this machine's ranks and connects them with those of others."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its errors are reported below
    several = config.engine.num_nodes > 1
    settings = LaunchConfig(
        min_nodes=config.engine.num_nodes,
        max_nodes=config.engine.num_nodes,
        nproc_per_node=config.engine.num_processes,
        run_id=Path(config.run_dir).name,
        rdzv_backend="c10d",
        rdzv_endpoint=str(config.engine.rendezvous) if several else "localhost:0",
        local_addr=None if several else "localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle="SIGQUIT",  # other signals are forwarded below, so that ranks can finish their step
    )
    with _forwarded_signals() as received:
        try:
            elastic_launch(settings, sys.executable)(*arguments)
        except ChildFailedError as error:
            return _failure(error.failures, received)
        except RendezvousError as error:
            raise ValueError(
                f"engine.rendezvous={config.engine.rendezvous}: the {config.engine.num_nodes} machines could not "
                f"connect, or one of them ended and printed the reason ({error}); start the same command on each, with "
                "a host and port of the first machine that all of them can reach"
            ) from error
    return _shell_code(0, received)


def _failure(failures: "dict[int, ProcessFailure]", received: list[int]) -> int:
    """Return the exit code of the rank that failed first, rather than of one that was ended because of it."""
    number, failure = min(failures.items(), key=lambda item: (item[1].exitcode <= 0, item[1].timestamp))
    code = _shell_code(failure.exitcode, received)
    if code not in (cli.UNUSABLE, cli.INTERRUPTED):
        cli.complain(f"rank {number} ended with exit code {code}; its output is above")
    return code


def _shell_code(code: int, received: list[int]) -> int:
    """Return an exit code by the shells' convention: 128 + signal for a process that a signal ended."""
    if received and code:
        return cli.INTERRUPTED
    return code if code >= 0 else 128 - code


def for_children(config: Config, folder: str, at_once: int = 1) -> dict[str, str]:
    """Return environment variables for child processes. ``at_once``: number of runs that share the cores."""
    added = {
        rank.HANDOVER: f"{os.getpid()}:{folder}",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if "OMP_NUM_THREADS" not in os.environ:
        share = max(1, cores() // (config.engine.num_processes * at_once))
        added["OMP_NUM_THREADS"] = str(config.engine.threads or share)
    return added


@contextmanager
def _environment(config: Config, folder: str) -> Iterator[None]:
    added = for_children(config, folder)
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _forwarded_signals() -> Iterator[list[int]]:
    """Forward Ctrl-C and its like to the children, which finish their step and save; a second signal kills them."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        import psutil

        received.append(number)
        family = psutil.Process()
        children = family.children(recursive=len(received) > 1)
        if not children:
            raise KeyboardInterrupt
        for child in children:
            if len(received) == 1:
                child.send_signal(number)
            elif not cli.is_guard(child.cmdline()):
                child.kill()

    before = {number: signal.signal(number, forward) for number in cli.stop_signals()}
    try:
        yield received
    except KeyboardInterrupt:
        raise SystemExit(cli.INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Entry point of one run of a sweep: ``python -m longctx_rl.launch.single CONFIG.yaml``."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m longctx_rl.launch.single CONFIG.yaml")
    cli.start()
    rank.die_with_launcher()
    config = configuration.read(Path(sys.argv[1]))
    cli.leave(single(RunRequest(command() or f"python -m longctx_rl.launch.single {sys.argv[1]}", config)))


if __name__ == "__main__":
    main()
