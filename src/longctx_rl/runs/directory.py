"""The run directory: made once, by the main rank, under a lock, when a run is about to start.

A directory in which nothing was trained yet is never in the way: it is removed when its run fails, and taken over if it
could not be removed (``kill -9``). A directory that holds training is only continued, with the same configuration.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from longctx_rl.config import schema as configuration
from longctx_rl.runs import environment
from longctx_rl.config import convert
from longctx_rl.config.schema import Config

LOCK = ".lock"
FINISHED = "finished.json"
"""What a run writes when everything else is written."""
LOCK_PATIENCE = 2.0
"""Seconds that a process which was just killed may take to let go."""

OWN = re.compile(
    r"(config\.yaml|environment\.json|finished\.json|metrics\.jsonl|log\.txt|evals|rollouts|checkpoints|wandb|export)"
    r"|\.(lock|tmp-.*|[a-z]+\.[a-z]+\.\d+)"
)
"""Names of what a run writes into its directory. Nothing else is ever removed."""

MAY_CHANGE = (
    "resume",
    "sweep.",
    "runs_root",
    "run_dir",
    "budget.",
    "logging.",
    "checkpoint.",
    "engine.num_processes",
    "engine.num_nodes",
    "engine.rendezvous",
    "engine.threads",
    "engine.frozen_weights",
    "model.teacher_cache",
    # Where the same data lie; their content is compared.
    *(f"data.longblocks.{key}" for key in ("path", "cache", "books")),
    *(f"reward.judge.{key}" for key in ("base_url", "api_key_env", "concurrency", "timeout", "retries", "cache")),
)
"""What a resumed run may do differently without being another run."""


@contextmanager
def opened(config: Config) -> Iterator[Path]:
    """The run's directory, created or continued, locked until the block ends.

    If the block fails before anything was trained, a directory that was created here is removed.

    Raises:
        ValueError: it holds another run, is in use, or cannot be written.
    """
    path = Path(config.run_dir)
    check(config)
    with _explained(config):
        path.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    with lock:
        try:
            check(config)
            with _explained(config):
                _fill(path, config)
            yield path
        except BaseException:
            _discard(path, config)
            raise


def check(config: Config) -> None:
    """Raise ValueError if the run can neither start nor continue in its directory. Writes nothing."""
    path = Path(config.run_dir)
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir={path} is a file: choose another experiment_name or runs_root")
    if not path.is_dir():
        return
    if not trained(path):
        foreign = _foreign(path)
        if foreign:
            raise ValueError(
                f"run_dir={path} holds {foreign[0]}, which is not of a run: choose another experiment_name or run_dir"
            )
        return
    if not (path / "config.yaml").is_file():
        raise ValueError(f"run_dir={path} has no config.yaml, so it is not a run: choose another experiment_name")
    if not config.resume:
        raise ValueError(
            f"{path} exists already: continue it with resume=true, or start another run with "
            "experiment_name=<new name> or seed=<other seed>"
        )
    changes = _changes(configuration.read(path / "config.yaml"), config)
    if changes:
        raise ValueError(
            f"{path} was started with another configuration: {', '.join(changes)} (old -> new); "
            "resume with the old values, or start another run with experiment_name=<new name>"
        )


def trained(path: Path) -> bool:
    """True once a run directory holds at least one training step or a checkpoint."""
    checkpoints = path / "checkpoints"
    if checkpoints.is_dir() and any(not entry.name.startswith(".") for entry in checkpoints.iterdir()):
        return True
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        return False
    with metrics.open(encoding="utf-8") as lines:
        return any(line.startswith('{"step": ') and not line.startswith('{"step": 0,') for line in lines)


def discard_untrained(config: Config) -> None:
    """Remove what a failed run left behind, if nothing was trained and nobody uses it."""
    path = Path(config.run_dir)
    if not (path / LOCK).is_file():
        return
    try:
        lock = _locked(path, patience=0.0)
    except ValueError:
        return
    with lock:
        _discard(path, config)


def resume_command(config: Config) -> str:
    """The command that continues this run."""
    command = environment.command() or f"python -m longctx_rl +algo={config.algo.name} run_dir={config.run_dir}"
    return command if " resume=true" in command else f"{command} resume=true"


def write_text(path: Path, text: str) -> None:
    """Write a file in one move: readers see the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _fill(path: Path, config: Config) -> None:
    """Write config.yaml and environment.json; anything left of a run that never trained goes first."""
    described: dict[str, Any] = environment.describe()
    if trained(path):
        record = path / "environment.json"
        first = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        (path / FINISHED).unlink(missing_ok=True)
        described = first | {"resumed": [*first.get("resumed", []), described]}
    else:
        _empty(path)
    write_text(path / "environment.json", json.dumps(described, indent=2) + "\n")
    write_text(path / "config.yaml", configuration.dump(config))


def record_finished(config: Config, step: int, reason: str, seconds: float) -> None:
    """Note that the run is finished: after how many steps, why, and the seconds that its steps took."""
    found = {"step": step, "reason": reason, "seconds": seconds, "budget": convert.plain(config.budget)}
    write_text(Path(config.run_dir, FINISHED), json.dumps(found, indent=2) + "\n")


def finished(config: Config) -> dict[str, Any] | None:
    """What ``record_finished`` noted, if the run asked for is finished; a larger budget makes it unfinished."""
    record = Path(config.run_dir, FINISHED)
    if not record.is_file():
        return None
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found if found["budget"] == convert.plain(config.budget) else None


def record_parts(path: Path, data: dict[str, Any], models: dict[str, Any], weights: dict[str, str | None]) -> None:
    """Note in environment.json what the run trains on, the sizes of its models, and what weights they have.

    Raises:
        ValueError: the run continues, and its data or weights are others than when it began.
    """
    record = path / "environment.json"
    environment = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    before = environment.get("data", data)
    if before.get("content_hash") != data.get("content_hash"):
        raise ValueError(
            f"the training data of {path} have changed since the run began ({before['content_hash']} is now "
            f"{data['content_hash']}): restore them, or choose another experiment_name"
        )
    weights_before = environment.get("weights", {})
    for role, its in weights_before.items():
        if its != weights.get(role, its):
            raise ValueError(
                f"the {role} of {path} has other weights than when the run began: restore them, or choose another "
                "experiment_name"
            )
    noted = {"data": data, "models": models, "weights": weights | weights_before}
    write_text(record, json.dumps(environment | noted, indent=2) + "\n")


def _discard(path: Path, config: Config) -> None:
    """Remove an untrained run directory, and its experiment's folder if that is empty then."""
    if trained(path) or _foreign(path):
        return
    _empty(path)
    (path / LOCK).unlink(missing_ok=True)
    path.rmdir()
    if Path(config.runs_root) in path.parent.parents and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _empty(path: Path) -> None:
    """Remove what a run wrote, the lock left out."""
    for entry in path.iterdir():
        if entry.name == LOCK or not OWN.fullmatch(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _foreign(path: Path) -> list[str]:
    """Names in a directory that no run writes. ``config.yaml`` alone is common: a run's has environment.json beside."""
    names = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in names if not OWN.fullmatch(name)]
    if not foreign and "config.yaml" in names and "environment.json" not in names:
        foreign = ["a config.yaml without environment.json"]
    return foreign


def _locked(path: Path, patience: float = LOCK_PATIENCE) -> IO[str]:
    """The open lock file. The kernel frees it when its process ends, however it ends."""
    deadline = time.monotonic() + patience
    while True:
        lock = (path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise ValueError(
                f"{path} is in use by {owner}: wait for it or end it, or choose another experiment_name or seed"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        return lock


@contextmanager
def _explained(config: Config) -> Iterator[None]:
    """Turn a file system's refusal into a sentence with the fix."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write run_dir={config.run_dir} ({error.strerror}): set runs_root=<a directory you can write to>"
        ) from error


def _changes(old: Config, new: Config) -> list[str]:
    """``key old -> new`` for each difference that makes it another run."""
    before, after = (dict(convert.flat(convert.plain(config))) for config in (old, new))
    return [
        f"{key} {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in before | after
        if not _same(before.get(key), after.get(key)) and not key.startswith(MAY_CHANGE)
    ]


def _same(old: Any, new: Any) -> bool:
    """Equal, or two names of one folder or file: a model under ``runs_root``, which may be said in another way."""
    if old == new or not (isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    return os.path.exists(old) and os.path.exists(new) and os.path.samefile(old, new)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
