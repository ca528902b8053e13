"""Several processes share an evaluation: whole families each, every answer in a file of its own until all are merged.

What is merged is never asked again, whoever answered it, so processes and evaluations can be killed at any time and
another number of them can go on.
"""

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from longctx_rl import cli
from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.evals import records
from longctx_rl.evals.asking import Share, Told, ask, plan_of
from longctx_rl.evals.records import ItemRecord
from longctx_rl.policy.loading import load_model, load_tokenizer

GOES_ON = "answers so far are kept: the same command goes on from there"


def ask_together(config: EvaluateConfig, told: Told) -> dict[str, list[ItemRecord]]:
    """The records of every suite, answered by ``config.processes`` processes.

    Raises:
        ValueError: what one of them could not do, or with which last words it ended.
    """
    out = Path(config.out)
    context = multiprocessing.get_context("spawn")
    children: dict[Connection, tuple[SpawnProcess, Path]] = {}
    try:
        for number in range(config.processes):
            ours, theirs = context.Pipe(duplex=False)
            log = out / f"process-{number}.log"
            arguments = (config, Share(number, config.processes), theirs, log, os.getpid())
            child = context.Process(target=_work, args=arguments, daemon=True)
            child.start()
            theirs.close()
            children[ours] = child, log
        ids = _listen(children, told)
    finally:
        for child, _ in children.values():
            child.terminate()
        for child, _ in children.values():
            child.join()
        merge(out)
    for _, log in children.values():
        log.unlink(missing_ok=True)
    return {name: _in_order(config, name, of_suite) for name, of_suite in ids.items()}


def merge(out: Path) -> None:
    """Move what processes have answered into their suites' files, each answer once, without lines that were cut off."""
    for path in (out / "evals").glob("*.jsonl"):
        records.drop_after(path, 0)
    for part in sorted((out / "evals").glob("*.*.jsonl")):
        whole = part.with_name(f"{part.name.split('.')[0]}.jsonl")
        known = {record.id for record in records.read(whole)} if whole.exists() else set()
        records.append(whole, [record for record in records.read(part) if record.id not in known])
        part.unlink()


def _listen(children: dict[Connection, tuple[SpawnProcess, Path]], told: Told) -> dict[str, set[str]]:
    """Hand on how far the processes are, until all are done; the ids of each suite's items."""
    ids: dict[str, set[str]] = {}
    waiting = set(children)
    while waiting:
        for connection in wait(list(waiting)):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except EOFError:
                raise ValueError(_last_words(*children[connection])) from None
            match message:
                case ("told", str(suite), int(count)):
                    told(suite, count)
                case ("failed", str(why)):
                    raise ValueError(why)
                case ("done", dict(found)):
                    waiting.remove(connection)
                    for suite, of_suite in found.items():
                        ids.setdefault(suite, set()).update(of_suite)
    return ids


def _last_words(child: SpawnProcess, log: Path) -> str:
    child.join()
    said = log.read_text(errors="replace").split("\n") if log.exists() else []
    words = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    return f"a process of the evaluation ended with exit code {child.exitcode} ({words}); see {log}; {GOES_ON}"


def _in_order(config: EvaluateConfig, name: str, ids: set[str]) -> list[ItemRecord]:
    """A suite's records by label, length and family, as its items are."""
    cells = {cell: number for number, cell in enumerate(plan_of(config, name).cells())}
    found = [one for one in records.read(Path(config.out) / "evals" / f"{name}.jsonl") if one.id in ids]
    return sorted(found, key=lambda one: (cells[one.task, one.length], one.id))


def _work(config: EvaluateConfig, share: Share, connection: Connection, log: Path, parent: int) -> None:
    """What a process does: its share, told to the parent as it goes."""
    cli.die_with(parent)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(cli.INTERRUPTED))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.threads or max(1, cores // share.of))
    try:
        model, tokenizer = (
            load_model(config.checkpoint, config.yarn).eval(),
            load_tokenizer(config.tokenizer or config.checkpoint),
        )
        found = ask(config, model, tokenizer, share, lambda suite, count: connection.send(("told", suite, count)))
    except ValueError as error:
        connection.send(("failed", str(error)))
    else:
        connection.send(("done", {suite: {one.id for one in of_suite} for suite, of_suite in found.items()}))
