"""An evaluation by several processes: each answers whole families into its own files, which are merged at the end.

Merged records are never evaluated again, so processes and evaluations can be killed at any time and continued by
another number of processes. This file imports no torch, so that a process follows its parent from the first moment.
"""

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from longctx_rl import cli
from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.evals import records
from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.suites import ProgressCallback, Share, plan_of


def answer_in_processes(config: EvaluateConfig, progress: ProgressCallback) -> dict[str, list[ItemRecord]]:
    """The records of every suite, answered by ``config.processes`` processes.

    Raises:
        ValueError: the error of a process, or its exit code and last line if it ended unexpectedly.
    """
    out = Path(config.out)
    context = multiprocessing.get_context("spawn")
    children: dict[Connection, tuple[SpawnProcess, Path]] = {}
    try:
        for index in range(config.processes):
            receiver, sender = context.Pipe(duplex=False)
            log = out / f"process-{index}.log"
            arguments = (config, Share(index, config.processes), sender, log, os.getpid())
            child = context.Process(target=_answer_share, args=arguments, daemon=True)
            child.start()
            sender.close()
            children[receiver] = child, log
        ids = _receive(children, progress)
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
    """Move the records of all processes into their suites' files, each item once, and drop incomplete last lines."""
    for path in (out / "evals").glob("*.jsonl"):
        records.drop_after(path, 0)
    for part in sorted((out / "evals").glob("*.*.jsonl")):
        whole = part.with_name(f"{part.name.split('.')[0]}.jsonl")
        known = {record.id for record in records.read(whole)} if whole.exists() else set()
        records.append(whole, [record for record in records.read(part) if record.id not in known])
        part.unlink()


def _receive(children: dict[Connection, tuple[SpawnProcess, Path]], progress: ProgressCallback) -> dict[str, set[str]]:
    """Forward the progress of the processes until all are done, and return the ids of each suite's items."""
    ids: dict[str, set[str]] = {}
    waiting = set(children)
    while waiting:
        for connection in wait(list(waiting)):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except EOFError:
                raise ValueError(_unexpected_end(*children[connection])) from None
            match message:
                case ("progress", str(suite), int(count)):
                    progress(suite, count)
                case ("failed", str(problem)):
                    raise ValueError(problem)
                case ("done", dict(ids_of_share)):
                    waiting.remove(connection)
                    for suite, of_suite in ids_of_share.items():
                        ids.setdefault(suite, set()).update(of_suite)
    return ids


def _unexpected_end(child: SpawnProcess, log: Path) -> str:
    child.join()
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return (
        f"a process of the evaluation ended with exit code {child.exitcode} ({last}); see {log}. Answers so far are "
        "kept: the same command continues from there"
    )


def _in_order(config: EvaluateConfig, name: str, ids: set[str]) -> list[ItemRecord]:
    """A suite's records in the order of its items: by label, length and family."""
    cells = {cell: number for number, cell in enumerate(plan_of(config.eval, name).cells())}
    kept = [record for record in records.read(Path(config.out) / "evals" / f"{name}.jsonl") if record.id in ids]
    return sorted(kept, key=lambda record: (cells[record.task, record.length], record.id))


def _answer_share(config: EvaluateConfig, share: Share, connection: Connection, log: Path, parent: int) -> None:
    """The main function of a process: answer one share, and report progress to the parent."""
    cli.die_with(parent)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(cli.INTERRUPTED))
    import torch  # takes seconds: a parent that is killed meanwhile takes this process along

    from longctx_rl.evals.answering import answer_suites
    from longctx_rl.policy.loading import load_model, load_tokenizer

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.threads or max(1, cores // share.count))
    try:
        model = load_model(config.checkpoint, config.yarn).eval()
        tokenizer = load_tokenizer(config.tokenizer or config.checkpoint)
        answered = answer_suites(
            config, model, tokenizer, share, lambda suite, count: connection.send(("progress", suite, count))
        )
    except ValueError as error:
        connection.send(("failed", str(error)))
    else:
        connection.send(
            ("done", {suite: {record.id for record in suite_records} for suite, suite_records in answered.items()})
        )
