"""Runs as jobs of a cluster, through submitit: ``hydra/launcher=submitit_slurm``.

Hydra only composes. Its plugin supplies the settings (partition, timeout_min, gpus_per_node ...), which are passed to
submitit as the plugin would pass them. Each job starts one run on its node. The run directories and
hydra.launcher.submitit_folder must be on a disk that all nodes share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_rl.config.schema import Config, RunRequest
from longctx_rl.launch import single

if TYPE_CHECKING:
    import submitit

PLUGIN = "hydra_plugins.hydra_submitit_launcher.submitit_launcher."
CLUSTERS = {f"{PLUGIN}SlurmLauncher": "slurm", f"{PLUGIN}LocalLauncher": "local"}
FOR_ALL = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
)
"""Settings that exist for every cluster. In submitit, the others are prefixed with the cluster's name."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """The destination of jobs, and their settings."""

    cluster: str
    """``slurm``, or ``local``: processes on this machine, for trials."""
    settings: dict[str, Any]


def launcher_from(name: str, settings: dict[str, Any]) -> Launcher:
    """Return the launcher that a composed ``hydra.launcher`` describes.

    Raises:
        ValueError: the launcher is not supported, or a job would have several tasks.
    """
    settings = dict(settings)
    target = str(settings.pop("_target_"))
    if target not in CLUSTERS:
        raise ValueError(
            f"hydra/launcher={name} is not supported: choose basic (and sweep.jobs=N for several runs at a time), "
            "submitit_slurm or submitit_local"
        )
    for key in ("nodes", "tasks_per_node"):
        if settings[key] != 1:
            raise ValueError(
                f"hydra.launcher.{key}={settings[key]}: a job is one run on one machine, "
                f"set hydra.launcher.{key}=1 and engine.num_processes to its processes"
            )
    return Launcher(CLUSTERS[target], settings)


class Work:
    """The work of a job: one run, with the command that starts it alone."""

    def __init__(self, config: Config, command: str) -> None:
        self.config, self.command = config, command

    def __call__(self) -> int:
        """Train and return the exit code of the run."""
        try:
            return single.single(RunRequest(self.command, self.config))
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Resume from the newest checkpoint after a timeout or preemption, at most ``max_num_timeout`` times."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Work(replace(self.config, resume=True), self.command))


class Job:
    """A run that was submitted as a job."""

    def __init__(self, job: "submitit.Job[int]") -> None:
        self._job = job
        self.name = f"job {job.job_id}"
        self.log = job.paths.stderr

    def code(self) -> int | None:
        """Return the run's exit code, 1 if the job ended without one, or None while it waits or runs."""
        if not self._job.done():
            return None
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return self._job.result()
        except (FailedJobError, UncompletedJobError):
            return 1

    def stop(self, requests: int) -> bool:
        """Leave the job to the cluster, where it continues without the process that submitted it."""
        print(f"{self.name} continues; on Slurm, `scancel {self._job.job_id}` ends it after its current step")
        return False

    def output(self) -> str:
        """Return the job's standard output and standard error."""
        return "\n".join(filter(None, (self._job.stdout(), self._job.stderr())))


def submit(launcher: Launcher, runs: Sequence[tuple[Config, str]]) -> list[Job]:
    """Submit runs as one array of jobs.

    Args:
        runs: each run's configuration, with the command that starts it alone.

    Raises:
        ValueError: submitit does not know a setting, or this machine is not part of such a cluster.
    """
    import submitit

    settings = dict(launcher.settings)
    folder = Path(settings.pop("submitit_folder")).absolute()
    starting = {f"{launcher.cluster}_max_num_timeout": settings.pop("max_num_timeout", 0)}
    parameters = {key if key in FOR_ALL else f"{launcher.cluster}_{key}": value for key, value in settings.items()}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=launcher.cluster, **starting)
        executor.update_parameters(**parameters)
        with executor.batch():
            jobs = [executor.submit(Work(config, command)) for config, command in runs]
    except (RuntimeError, NameError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"hydra.launcher: nothing was submitted ({' '.join(str(error).split())})") from error
    return [Job(job) for job in jobs]
