"""The run directory, which the main rank creates under a lock when a run is about to start.

An untrained directory never blocks a run: it is removed when its run fails, and reused if it could not be removed
(``kill -9``). A directory that contains training steps can only be resumed, with the same configuration.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longctx_rl.config import convert
from longctx_rl.config import load as configuration
from longctx_rl.config.schema import Config
from longctx_rl.files import InUse, json_lines, lock, read_object, write_text
from longctx_rl.runs import environment

LOCK = ".lock"
ENVIRONMENT = "environment.json"
RESTORE = "restore it, or remove it to continue without its records"
FINISHED = "finished.json"
"""The file that a run writes last, when everything else is on disk."""
LOCK_PATIENCE = 2.0
"""Seconds that a process may take to release the lock after it was killed."""

OWN = re.compile(
    r"(config\.yaml|environment\.json|finished\.json|metrics\.jsonl|log\.txt|evals|rollouts|checkpoints|wandb|export"
    r"|teacher\.sqlite(-journal)?|vllm\.log|longctx_rl-[0-9a-f]{8})"
    r"|\.(lock|tmp-.*|[a-z]+\.[a-z]+\.\d+)"
)
"""Names of the files and folders that a run writes. Nothing else is ever removed."""

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
    *(f"rollout.{key}" for key in ("server", "python", "devices", "weights_dir", "concurrency", "timeout")),
    *(f"rollout.{key}" for key in ("start_timeout", "max_gap")),
    # Location of the data; their content is compared instead.
    *(f"data.longblocks.{key}" for key in ("path", "cache", "books")),
    *(f"reward.judge.{key}" for key in ("base_url", "api_key_env", "concurrency", "timeout", "retries", "cache")),
)
"""Settings that may differ when a run is resumed."""


@contextmanager
def opened(config: Config) -> Iterator[Path]:
    """Create or reopen the run's directory and lock it until the block ends.

    If the block fails before the first training step, the directory is removed.

    Raises:
        ValueError: the directory holds another run, is in use, or cannot be written.
    """
    path = Path(config.run_dir)
    check(config)
    with _explained(config):
        path.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(path / LOCK, LOCK_PATIENCE)
        except InUse as error:
            raise ValueError(
                f"{path} is in use by {error.owner}: wait for it or end it, or choose another experiment_name or seed"
            ) from None
    with held:
        try:
            check(config)
            with _explained(config):
                _fill(path, config)
            yield path
        except BaseException:
            _discard(path, config)
            raise


def check(config: Config) -> None:
    """Raise ValueError if the run can neither start nor resume in its directory. Writes nothing."""
    path = Path(config.run_dir)
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir={path} is a file: choose another experiment_name or runs_root")
    if not path.is_dir():
        return
    if not trained(path):
        foreign = _foreign(path)
        if foreign:
            raise ValueError(
                f"run_dir={path} contains {foreign[0]}, which no run writes: choose another experiment_name or run_dir"
            )
        return
    if not (path / "config.yaml").is_file():
        raise ValueError(f"run_dir={path} has no config.yaml and is not a run: choose another experiment_name")
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
    """Whether a run directory holds at least one training step or a checkpoint."""
    checkpoints = path / "checkpoints"
    if checkpoints.is_dir() and any(not entry.name.startswith(".") for entry in checkpoints.iterdir()):
        return True
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        return False
    return any(not line.cut and not line.raw.startswith(b'{"step": 0,') for line in json_lines(metrics))


def discard_untrained(config: Config) -> None:
    """Remove the directory of a failed run if it is untrained and not in use."""
    path = Path(config.run_dir)
    if not (path / LOCK).is_file():
        return
    try:
        held = lock(path / LOCK)
    except InUse:
        return
    with held:
        _discard(path, config)


def append_log(config: Config, line: str) -> None:
    """Append a line to the run's log.txt, for the time before its recorder exists."""
    with Path(config.run_dir, "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")


def resume_command(config: Config) -> str:
    """Return the command that resumes this run."""
    command = environment.command() or f"python -m longctx_rl +algo={config.algo.name} run_dir={config.run_dir}"
    return command if " resume=true" in command else f"{command} resume=true"


def _fill(path: Path, config: Config) -> None:
    """Write config.yaml and environment.json, after removing the remains of an untrained run."""
    described: dict[str, Any] = environment.describe()
    if trained(path):
        first = read_environment(path, RESTORE)
        (path / FINISHED).unlink(missing_ok=True)
        described = first | {"resumed": [*(first.get("resumed") or []), described]}
    else:
        _empty(path, keep="teacher.sqlite")  # its signals have been paid for
    write_text(path / ENVIRONMENT, json.dumps(described, indent=2) + "\n")
    write_text(path / "config.yaml", configuration.dump(config))


def record_finished(config: Config, step: int, reason: str, seconds: float) -> None:
    """Record that the run is finished: after which step, why, and the seconds that its steps took."""
    content = {"step": step, "reason": reason, "seconds": seconds, "budget": convert.plain(config.budget)}
    write_text(Path(config.run_dir, FINISHED), json.dumps(content, indent=2) + "\n")


def finished(config: Config) -> dict[str, Any] | None:
    """Return the record of a finished run. None if it is unfinished, which a changed budget makes it."""
    record = Path(config.run_dir, FINISHED)
    if not record.is_file():
        return None
    content = read_object(record, "remove it, then continue with resume=true", budget=dict[str, Any])
    return content if content["budget"] == convert.plain(config.budget) else None


def record_parts(path: Path, data: dict[str, Any], models: dict[str, Any], weights: dict[str, str | None]) -> None:
    """Record in environment.json the run's training data, and the sizes and weight hashes of its models.

    Raises:
        ValueError: the run is resumed, and its data or weights differ from those it started with.
    """
    environment = read_environment(path, RESTORE)
    before = environment.get("data") or data
    if before.get("content_hash") != data.get("content_hash"):
        raise ValueError(
            f"the training data of {path} have changed since the run began ({before.get('content_hash')} is now "
            f"{data.get('content_hash')}): restore them, or choose another experiment_name"
        )
    weights_before = environment.get("weights") or {}
    known = {role: digest for role, digest in weights_before.items() if digest is not None}
    for role, digest in known.items():
        if digest != weights.get(role, digest):
            raise ValueError(
                f"the {role} of {path} has different weights than when the run began: restore them, or choose another "
                "experiment_name"
            )
    noted = {"data": data, "models": models, "weights": weights_before | weights | known}
    write_text(path / ENVIRONMENT, json.dumps(environment | noted, indent=2) + "\n")


def read_environment(path: Path, fix: str) -> dict[str, Any]:
    """Return a run's environment.json; empty if it has none. Raises ValueError: see ``read_object``."""
    if not (path / ENVIRONMENT).is_file():
        return {}
    return read_object(
        path / ENVIRONMENT,
        fix,
        command=str | None,
        directory=str | None,
        longctx_rl=str | None,
        git=dict[str, Any] | None,
        host=dict[str, Any] | None,
        data=dict[str, Any] | None,
        weights=dict[str, str | None] | None,
        resumed=list[Any] | None,
    )


def _discard(path: Path, config: Config) -> None:
    """Remove an untrained run directory, and its experiment's folder if that becomes empty."""
    if trained(path) or _foreign(path):
        return
    _empty(path)
    (path / LOCK).unlink(missing_ok=True)
    path.rmdir()
    if Path(config.runs_root) in path.parent.parents and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _empty(path: Path, keep: str = LOCK) -> None:
    """Remove everything that a run wrote except the lock, and what begins with ``keep``."""
    for entry in path.iterdir():
        if entry.name == LOCK or entry.name.startswith(keep) or not OWN.fullmatch(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _foreign(path: Path) -> list[str]:
    """Return names that no run writes. ``config.yaml`` is a common name; only a run has environment.json beside it."""
    names = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in names if not OWN.fullmatch(name)]
    if not foreign and "config.yaml" in names and "environment.json" not in names:
        foreign = ["a config.yaml without environment.json"]
    return foreign


@contextmanager
def _explained(config: Config) -> Iterator[None]:
    """Turn an OSError of the file system into a ValueError that names the fix."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write run_dir={config.run_dir} ({error.strerror}): set runs_root=<a directory you can write to>"
        ) from error


def _changes(old: Config, new: Config) -> list[str]:
    """Return ``key old -> new`` for each difference that must not change on resume."""
    before, after = (dict(convert.flat(convert.plain(config))) for config in (old, new))
    return [
        f"{key} {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in before | after
        if not _same(before.get(key), after.get(key))
        and not key.startswith(MAY_CHANGE)
        and not (key == "model.teacher" and all("://" in str(values.get(key)) for values in (before, after)))
    ]


def _same(old: Any, new: Any) -> bool:
    """Whether two values are equal, or paths of one file or folder."""
    if old == new or not (isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    return os.path.exists(old) and os.path.exists(new) and os.path.samefile(old, new)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
