"""A sweep of several runs, each in a process of its own, ``sweep.jobs`` at a time. A failed run does not stop the rest.

With ``resume=true`` finished runs are skipped and interrupted ones resume, so the same command continues a sweep after
any interruption. The output of a run goes to ``<experiment>/.sweep/<run>.txt``, which is kept if the run fails.
"""

import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from longctx_rl import cli
from longctx_rl.config.schema import Config, RunRequest, SweepConfig
from longctx_rl.launch import costs
from longctx_rl.launch.child import Child, Running, log_path, make_folder, remove_if_empty
from longctx_rl.launch.overview import Overview, Watched
from longctx_rl.launch.slurm import Launcher, submit
from longctx_rl.runs import directory
from longctx_rl.runs.progress import duration

POLL_SECONDS = 0.1
LAST_LINES = 5
"""Lines of a failed run's output that the closing list repeats."""


@dataclass(slots=True)
class StartedRun:
    """A run of the sweep that was started."""

    request: RunRequest
    running: Running
    watched: Watched


def sweep(
    requests: Sequence[RunRequest], launcher: Launcher | None = None, known: Sequence[costs.Measured] = ()
) -> int:
    """Start several runs, ``sweep.jobs`` at a time, or all of them as jobs of a launcher.

    Args:
        known: measured costs of runs without a directory on this machine, such as committed results.

    Returns:
        0 if all runs succeeded, 130 after Ctrl-C, 2 if the sweep cannot start, else 1.
    """
    configs = [request.config for request in requests if request.config]
    settings = configs[0].sweep if configs else SweepConfig()
    try:
        _check_distinct(configs)
        if settings.plan:
            for request in requests:
                if request.problem:
                    cli.complain(f"{request.problem} ({request.command})")
            print(costs.render(configs, settings.jobs, [*finished_runs(configs), *known]))
            return cli.UNUSABLE if len(configs) < len(requests) else 0
        return Sweep(requests, settings.jobs, launcher, known).run()
    except ValueError as problem:
        cli.complain(problem)
        return cli.UNUSABLE


def _check_distinct(configs: Sequence[Config]) -> None:
    for path, count in Counter(config.run_dir for config in configs).items():
        if count > 1:
            raise ValueError(
                f"several runs of this sweep share run_dir={path}: give each value once, or name what differs, such as "
                "'run_dir=${runs_root}/${experiment_name}/${algo.name}-lr${optim.lr}-s${seed}'"
            )


def finished_runs(configs: Sequence[Config]) -> list[costs.Measured]:
    """Return the finished runs beside these, with their costs."""
    return costs.measured({config.runs_root for config in configs})


class Sweep:
    """The loop over the runs of a sweep."""

    def __init__(
        self, requests: Sequence[RunRequest], jobs: int, launcher: Launcher | None, known: Sequence[costs.Measured]
    ) -> None:
        self._requests, self._jobs, self._launcher = requests, jobs, launcher
        self._waiting = list(enumerate(requests, 1))
        self._running: list[StartedRun] = []
        self._failures: list[str] = []
        self._finished = self._skipped = 0
        self._stop_requests = 0
        self._overview = Overview()
        self._known = known
        self._expected_end = self._estimate()

    def run(self) -> int:
        """Run everything. Raises ValueError if nothing can be written or jobs cannot be submitted."""
        logs = {log_path(request.config).parent for request in self._requests if request.config}
        try:
            for folder in logs:
                make_folder(folder)
            with self._signals():
                if self._launcher:
                    self._submit(self._launcher)
                while self._running or (self._waiting and not self._stop_requests):
                    self._step()
        finally:
            for folder in logs:
                remove_if_empty(folder)
        return self._close()

    def _step(self) -> None:
        while self._waiting and len(self._running) < self._jobs and not self._stop_requests:
            self._begin(*self._waiting.pop(0))
        for started in list(self._running):
            if self._stop_requests and not started.running.stop(self._stop_requests):
                self._running.remove(started)
            elif (code := started.running.code()) is not None:
                self._running.remove(started)
                self._end(started, code)
        if self._running and (self._jobs > 1 or self._launcher):
            self._overview.show(self._summary(), [started.watched for started in self._running])
        if self._running:
            time.sleep(POLL_SECONDS)

    def _begin(self, number: int, request: RunRequest) -> None:
        if not self._startable(number, request):
            return
        config = request.config
        assert config
        self._overview.say(f"[{number}/{len(self._requests)}] {request.command}")
        watched = Watched.starting(config)
        try:
            child = Child(config, request.command, log_path(config), self._jobs)
        except OSError as error:
            where = f"{tempfile.gettempdir()} or {log_path(config).parent}"
            return self._refuse(request, f"cannot write to {where} ({error.strerror}): free space, or set TMPDIR")
        self._running.append(StartedRun(request, child, watched))

    def _startable(self, number: int, request: RunRequest) -> bool:
        """Return whether a run has something to do. A run that cannot start is recorded as failed."""
        config, problem = request.config, request.problem
        if config and config.engine.num_nodes == 1:  # a run on several machines may have its directory on another one
            where = costs.standing(config)
            if where.kind == "finished":
                self._skipped += 1
                return False
            problem = ValueError(where.problem) if where.kind == "refused" else None
        if problem:
            self._overview.say(f"[{number}/{len(self._requests)}] {request.command}")
            self._refuse(request, problem)
        return problem is None

    def _refuse(self, request: RunRequest, problem: ValueError | str) -> None:
        cli.complain(problem)
        self._failures.append(f"  exit code {cli.UNUSABLE}: {request.command}\n    error: {problem}")

    def _submit(self, launcher: Launcher) -> None:
        ready = [request for number, request in self._waiting if self._startable(number, request)]
        self._waiting = []
        pairs = [(request.config, request.command) for request in ready if request.config]
        jobs = submit(launcher, pairs) if pairs else []
        for request, (config, _), job in zip(ready, pairs, jobs, strict=True):
            self._overview.say(f"{job.name}: {request.command}")
            self._running.append(StartedRun(request, job, Watched.starting(config)))

    def _end(self, started: StartedRun, code: int) -> None:
        name = Path(started.watched.config.run_dir).name
        took = duration(time.monotonic() - started.watched.began)
        if code in (0, cli.INTERRUPTED):
            self._finished += code == 0
            log_path(started.watched.config).unlink(missing_ok=True)
        else:
            last = [line for line in started.running.output().splitlines() if line.strip()][-LAST_LINES:]
            entry = [f"  exit code {code}: {started.request.command}", *last, f"full output: {started.running.log}"]
            self._failures.append("\n    ".join(entry))
        if self._jobs > 1 or self._launcher:
            words = {0: "finished", cli.INTERRUPTED: "interrupted"}.get(code, f"failed with exit code {code}")
            self._overview.say(f"{name} {words} after {took}")
        self._expected_end = self._estimate()

    def _estimate(self) -> float:
        """Estimate when the last run will end, on the monotonic clock; NaN without comparable finished runs."""
        configs = [started.watched.config for started in self._running]
        waiting = [request.config for _, request in self._waiting if request.config]
        configs += [config for config in waiting if not directory.finished(config)]
        known = [*finished_runs(configs), *self._known]
        left = [costs.remaining(config, known) for config in configs]
        if None in left:
            return float("nan")
        at_a_time = len(left) if self._launcher else self._jobs
        return time.monotonic() + costs.makespan([cost.seconds for cost in left if cost], at_a_time)

    def _summary(self) -> str:
        done = self._finished + self._skipped
        left = max(self._expected_end - time.monotonic(), 0.0)  # in this order, NaN stays NaN
        return (
            f"{done} of {len(self._requests)} done, {len(self._failures)} failed, {len(self._running)} running, "
            f"{duration(left)} left"
        )

    def _close(self) -> int:
        succeeded = self._finished + self._skipped
        before = f", {self._skipped} of them already finished" if self._skipped else ""
        lines = [f"sweep: {succeeded} of {len(self._requests)} runs succeeded{before}", *self._failures]
        self._overview.say("\n".join(lines))
        if self._stop_requests:
            self._overview.say("interrupted; the same command with resume=true continues where it stopped")
            return cli.INTERRUPTED
        return 1 if self._failures else 0

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Count how often the user requests a stop; the loop acts on it."""

        def count(number: int, frame: FrameType | None) -> None:
            self._stop_requests += 1

        before = {number: signal.signal(number, count) for number in cli.stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
