"""The wandb mirror of a run: the same metrics, tables of rollouts, and the final artifacts.

A training run has the job type ``train``; the evaluation of a fixed checkpoint has the job type ``eval``.

The mirror runs in its own thread, so that a failure or a hang of wandb costs a warning and nothing else.
"""

import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx_rl import cli
from longctx_rl.config import convert
from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.config.logging import LoggingConfig
from longctx_rl.config.schema import Config
from longctx_rl.files import json_values, write_text
from longctx_rl.runs.environment import git_state
from longctx_rl.runs.metrics import Row, read_metrics

SUMMARIES = {
    "progress": "last",
    "loss": "last,min",
    "policy": "last",
    "teacher": "last",
    "rollout": "last,max",
    "grad": "last,max",
    "optim": "last",
    "perf": "last,mean",
    "time": "last,mean",
    "eval": None,
}
"""Maps a group of metrics to its summary in wandb's table of runs: last value, and best value or mean. None: the last
value as a plain number under the metric's own name, which bar panels need."""
ROLLOUT_COLUMNS = (
    "id",
    "task",
    "prompt_tail",
    "answer",
    "completion",
    "tokens",
    "finish_reason",
    "reward",
    "advantage",
)

IDENTITY = Path("wandb", "id")
"""File in the run's folder with its wandb id, written once wandb has accepted the id."""
Work = Callable[[Any, Any], None]
"""A task that takes the wandb module and the wandb run."""


def training_settings(config: Config, run_dir: Path, resumed: bool) -> dict[str, Any]:
    """Return the arguments of ``wandb.init`` for a training run."""
    return _settings(config.logging, run_dir, resumed) | {
        "group": config.experiment_name,
        "job_type": "train",
        "tags": _tags(config.logging, config.algo.name, config.model.name, config.task.name),
        "config": convert.plain(config),
    }


def evaluation_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Return the arguments of ``wandb.init`` for the evaluation of a fixed checkpoint.

    The evaluation is grouped with the training runs in sibling folders: runs/table1/base belongs to table1, as the
    method "base".
    """
    out = Path(config.out).resolve()
    return _settings(config.logging, out, resumed=True) | {
        "group": out.parent.name,
        "job_type": "eval",
        "tags": _tags(config.logging, config.eval.name),
        "config": convert.plain(config) | {"experiment_name": out.parent.name, "algo": {"name": out.name}},
    }


def _settings(logging: LoggingConfig, folder: Path, resumed: bool) -> dict[str, Any]:
    """Return the settings common to all runs. A resumed run keeps its id, so it stays one run in wandb."""
    identity = folder / IDENTITY
    known = resumed and identity.is_file()
    return {
        "mode": logging.mode,
        "dir": str(folder),
        "project": logging.project,
        "entity": logging.entity,
        "name": folder.name,
        "id": identity.read_text(encoding="utf-8") if known else os.urandom(6).hex(),
        **({"resume": "allow"} if known and logging.mode == "online" else {}),
    }


def _tags(logging: LoggingConfig, *names: str) -> list[str]:
    git = git_state(Path(__file__).resolve().parents[3])
    return [*names, *logging.tags, *([git["commit"][:10]] if git else [])]


class Mirror:
    """wandb in its own thread. After the first failure it warns once and does nothing more.

    wandb cannot resume an offline run. Each process therefore writes a complete run from the records on disk
    (``replay``), and moves earlier pieces to ``wandb/replaced/``, which is not uploaded. An online run is resumed; the
    steps after its last checkpoint before a crash appear there twice.
    """

    CLOSE_SECONDS = 60.0
    UPLOAD_SECONDS = 3600.0
    """Seconds that ``close`` waits if a model is uploaded."""
    ROWS_WAITING = 10_000

    def __init__(self, settings: dict[str, Any]) -> None:
        self._waiting: queue.Queue[Work | None] = queue.Queue(self.ROWS_WAITING)
        self._failed = False
        self._whole = False
        self._spent: dict[str, float] = {}
        self._patience = self.CLOSE_SECONDS
        provide_cache(Path(settings["dir"]))
        self._thread = threading.Thread(target=self._work, args=(settings,), name="wandb mirror", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Queue a row of metrics without waiting.

        The latest ``progress/`` metrics are added if the row lacks them: a panel takes both axes from one row, and
        evaluations have separate rows.
        """
        self._hand_over(lambda wandb, run: self._log(run, row))

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Queue saved completions as a table, without waiting."""
        self._hand_over(lambda wandb, run: _log_rollouts(wandb, run, step, rows))

    def replay(self, run_dir: Path) -> None:
        """Queue the earlier records of a resumed run, unless wandb has them. Does not wait. Call it first."""
        rows = read_metrics(run_dir / "metrics.jsonl")
        files = sorted((run_dir / "rollouts").glob("step-*.jsonl"))

        def work(wandb: Any, run: Any) -> None:
            if not self._whole:
                return
            for row in rows:
                self._log(run, row)
            for file in files:
                saved = list(json_values(file))
                _log_rollouts(wandb, run, int(file.stem.removeprefix("step-")), saved)

        self._hand_over(work)

    def keep(self, run_dir: Path, export: Path | None) -> None:
        """Queue the upload of the run's results, and of its model if ``export`` is given."""
        if export is not None:
            self._patience = self.UPLOAD_SECONDS
        name = re.sub(r"[^\w.-]", "-", f"{run_dir.parent.name}-{run_dir.name}")

        def work(wandb: Any, run: Any) -> None:
            results = wandb.Artifact(f"{name}-results", type="results")
            for file in (*sorted(run_dir.glob("*.yaml")), *sorted(run_dir.glob("*.json*"))):
                results.add_file(str(file), policy="immutable")
            for file in sorted((run_dir / "evals").glob("*.json*")):
                results.add_file(str(file), name=f"evals/{file.name}", policy="immutable")
            run.log_artifact(results)
            if export is not None:
                model = wandb.Artifact(f"{name}-model", type="model")
                model.add_dir(str(export), policy="immutable")
                run.log_artifact(model)

        self._hand_over(work)

    def close(self) -> None:
        """Wait for the queue to finish, for at most a minute, or an hour if a model is uploaded."""
        if self._failed:
            return
        self._waiting.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._give_up(f"it did not finish within {self._patience:.0f} s")

    def _log(self, run: Any, row: Row) -> None:
        known = {name: value for name, value in row.items() if value is not None}
        self._spent |= {name: value for name, value in known.items() if name.startswith("progress/")}
        run.log(self._spent | known)

    def _hand_over(self, work: Work) -> None:
        if self._failed:
            return
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self._give_up("it cannot keep up")

    def _work(self, settings: dict[str, Any]) -> None:
        try:
            folder = Path(settings["dir"])
            os.environ.setdefault("WANDB_SILENT", "true")
            import wandb

            earlier = sorted((folder / "wandb").glob("offline-run-*"))
            sent = any(any(piece.glob("*.wandb.synced")) for piece in earlier)
            run = wandb.init(**settings, settings=wandb.Settings(silent=True, console="off", init_timeout=60))
            run.define_metric("step", summary="last")
            for group, summary in SUMMARIES.items():  # including progress/, so that panels can use a cost as x-axis
                run.define_metric(f"{group}/*", step_metric="step", summary=summary)
            self._whole = "resume" not in settings or (bool(earlier) and not sent)
            (folder / IDENTITY).parent.mkdir(exist_ok=True)
            write_text(folder / IDENTITY, settings["id"])
            _set_aside(earlier)
            while (work := self._waiting.get()) is not None:
                work(wandb, run)
            run.finish()
        except Exception as error:  # a failure of the mirror must not stop the run
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            reason = " ".join(reason.split())
            cli.write(sys.stderr, f"warning: the wandb mirror stopped ({reason}); the files on disk are complete\n")


def provide_cache(folder: Path) -> None:
    """Give wandb a cache in the run's folder if its own cannot be written: it would print its log to stderr."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "wandb")
        logs = Path(os.environ.get("WANDB_CACHE_DIR") or home, "logs")
        logs.mkdir(parents=True, exist_ok=True)
        usable = os.access(logs, os.W_OK) and "HOME" in os.environ
    except (OSError, RuntimeError):  # the latter without a home
        usable = False
    if not usable:
        os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb" / "cache")


def _set_aside(pieces: Sequence[Path]) -> None:
    for piece in pieces:
        folder = piece.parent / "replaced"
        folder.mkdir(exist_ok=True)
        piece.rename(folder / piece.name)


def _log_rollouts(wandb: Any, run: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    data = [[row[column] for column in ROLLOUT_COLUMNS] for row in rows]
    run.log({"step": step, "rollouts": wandb.Table(list(ROLLOUT_COLUMNS), data)})
