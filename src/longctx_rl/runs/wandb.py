"""The wandb mirror of a run: the same rows, tables of rollouts, and what the run leaves behind.

A training is a wandb run of job type ``train``; answers of fixed weights are one of job type ``eval``.

It works in a thread of its own, so that a mirror which fails or hangs costs a warning and nothing else.
"""

import json
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx_rl.config import convert
from longctx_rl.config.schema import Config
from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.config.logging import LoggingConfig
from longctx_rl.runs.environment import git_state
from longctx_rl.runs.metrics import Row, read_metrics
from longctx_rl.runs.directory import write_text

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
"""Group of metrics to what of each stands in wandb's table of runs: its end, and its best or mean. None: its end as a
plain number under the metric's own name, which bar panels need."""
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
"""Where in a run's folder its id stands, once wandb has taken it."""
Work = Callable[[Any, Any], None]
"""Something to do with the wandb module and its run."""


def training_settings(config: Config, run_dir: Path, resumed: bool) -> dict[str, Any]:
    """Arguments of ``wandb.init``: how a training appears there."""
    return _settings(config.logging, run_dir, resumed) | {
        "group": config.experiment_name,
        "job_type": "train",
        "tags": _tags(config.logging, config.algo.name, config.model.name, config.task.name),
        "config": convert.plain(config),
    }


def evaluation_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Arguments of ``wandb.init`` for the answers of fixed weights.

    They are compared with the trainings whose folders lie beside theirs: runs/table1/base belongs to table1, as the
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
    """Where a wandb run is kept. It keeps its id for as long as it is resumed, so it is one run there."""
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
    """wandb in a thread of its own. After its first failure it says so once and does nothing more.

    wandb cannot go on with an offline run. So each process writes a whole one, from what was recorded (``replay``), and
    sets earlier pieces aside in ``wandb/replaced/``, where no upload looks. An online run is continued; steps that a
    crash left behind the last checkpoint stand there twice.
    """

    CLOSE_SECONDS = 60.0
    UPLOAD_SECONDS = 3600.0
    """How long ``close`` waits where a model is uploaded."""
    ROWS_WAITING = 10_000

    def __init__(self, settings: dict[str, Any]) -> None:
        self._waiting: queue.Queue[Work | None] = queue.Queue(self.ROWS_WAITING)
        self._failed = False
        self._whole = False
        self._spent: dict[str, float] = {}
        self._patience = self.CLOSE_SECONDS
        self._thread = threading.Thread(target=self._work, args=(settings,), name="wandb mirror", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Hand over a row of metrics. Never waits.

        A row gets what had been spent by then, if it does not say: a panel takes both axes from one row, and
        evaluations are rows of their own.
        """
        self._hand_over(lambda wandb, run: self._log(run, row))

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand over saved completions, as a table. Never waits."""
        self._hand_over(lambda wandb, run: _log_rollouts(wandb, run, step, rows))

    def replay(self, run_dir: Path) -> None:
        """Hand over what a resumed run recorded before, if wandb does not have it. Never waits. Call it first."""
        rows = read_metrics(run_dir / "metrics.jsonl")
        files = sorted((run_dir / "rollouts").glob("step-*.jsonl"))

        def work(wandb: Any, run: Any) -> None:
            if not self._whole:
                return
            for row in rows:
                self._log(run, row)
            for file in files:
                saved = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                _log_rollouts(wandb, run, int(file.stem.removeprefix("step-")), saved)

        self._hand_over(work)

    def keep(self, run_dir: Path, export: Path | None) -> None:
        """Hand over the run's results, and its model if there is one to upload."""
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
        """Finish, unless it takes more than a minute; an hour where a model is uploaded."""
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
            self._give_up("it does not keep up")

    def _work(self, settings: dict[str, Any]) -> None:
        try:
            os.environ.setdefault("WANDB_SILENT", "true")
            import wandb

            folder = Path(settings["dir"])
            earlier = sorted((folder / "wandb").glob("offline-run-*"))
            sent = any(any(piece.glob("*.wandb.synced")) for piece in earlier)
            run = wandb.init(**settings, settings=wandb.Settings(silent=True, console="off", init_timeout=60))
            run.define_metric("step", summary="last")
            for group, summary in SUMMARIES.items():  # progress/ among them: every panel can be drawn over a cost
                run.define_metric(f"{group}/*", step_metric="step", summary=summary)
            self._whole = "resume" not in settings or (bool(earlier) and not sent)
            (folder / IDENTITY).parent.mkdir(exist_ok=True)
            write_text(folder / IDENTITY, settings["id"])
            _set_aside(earlier)
            while (work := self._waiting.get()) is not None:
                work(wandb, run)
            run.finish()
        except Exception as error:  # whatever a mirror dies of, the run goes on
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            print(f"warning: the wandb mirror stopped ({reason}); the files on disk are complete", file=sys.stderr)


def _set_aside(pieces: Sequence[Path]) -> None:
    for piece in pieces:
        folder = piece.parent / "replaced"
        folder.mkdir(exist_ok=True)
        piece.rename(folder / piece.name)


def _log_rollouts(wandb: Any, run: Any, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    data = [[row[column] for column in ROLLOUT_COLUMNS] for row in rows]
    run.log({"step": step, "rollouts": wandb.Table(list(ROLLOUT_COLUMNS), data)})
