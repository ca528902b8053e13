"""Jobs of a cluster: what submitit is given, and what is made of its answers. No job is started."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from longctx_rl.config.compose import composed
from longctx_rl.config.schema import RunRequest
from longctx_rl.launch import single
from longctx_rl.launch.slurm import Job, Launcher, Work, launcher_from, submit

CONFIG = composed(["+algo=sft"])
COMMAND = "python -m longctx_rl +algo=sft"
SETTINGS = {
    "_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "submitit_folder": "jobs",
    "timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 8, "partition": "gpu", "max_num_timeout": 3,
}  # fmt: skip


class FakeJob:
    """A job as submitit describes it."""

    def __init__(self, number: int = 7, result: int | Exception | None = None) -> None:
        self.job_id, self._result = str(number), result
        self.paths = SimpleNamespace(stderr=Path(f"{number}.err"))

    def done(self) -> bool:
        return self._result is not None

    def result(self) -> int:
        assert self._result is not None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def stdout(self) -> str:
        return "step 1/1"

    def stderr(self) -> str | None:
        return None


class FakeExecutor:
    """An executor that records what it is given; it knows the partition ``gpu`` only."""

    def __init__(self, **starting: Any) -> None:
        self.starting, self.parameters = starting, dict[str, Any]()
        self.submitted: list[Work] = []
        self._array = False

    def update_parameters(self, **parameters: Any) -> None:
        if parameters["slurm_partition"] != "gpu":
            raise NameError("unknown\npartition")
        self.parameters |= parameters

    @contextmanager
    def batch(self) -> Iterator[None]:
        self._array = True
        yield
        self._array = False

    def submit(self, work: Work) -> FakeJob:
        assert self._array, "runs are one array of jobs"
        self.submitted.append(work)
        return FakeJob(len(self.submitted))


@pytest.fixture
def executors(monkeypatch: pytest.MonkeyPatch) -> list[FakeExecutor]:
    """The executors that were made."""
    made: list[FakeExecutor] = []

    def make(**starting: Any) -> FakeExecutor:
        made.append(FakeExecutor(**starting))
        return made[-1]

    monkeypatch.setattr(submitit, "AutoExecutor", make)
    return made


def test_runs_are_submitted_as_one_array(
    executors: list[FakeExecutor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [(replace(CONFIG, seed=seed), f"{COMMAND} seed={seed}") for seed in range(2)]
    jobs = submit(launcher_from("submitit_slurm", SETTINGS), runs)
    (executor,) = executors
    assert executor.starting == {"folder": tmp_path / "jobs", "cluster": "slurm", "slurm_max_num_timeout": 3}
    assert executor.parameters == {
        "timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 8, "slurm_partition": "gpu",
    }  # fmt: skip
    assert [(work.config, work.command) for work in executor.submitted] == runs
    assert [(job.name, job.log) for job in jobs] == [("job 1", Path("1.err")), ("job 2", Path("2.err"))]


@pytest.mark.usefixtures("executors")
def test_a_setting_that_the_cluster_refuses(tmp_path: Path) -> None:
    launcher = Launcher("slurm", {"submitit_folder": str(tmp_path), "partition": "typo"})
    with pytest.raises(ValueError, match=r"^hydra\.launcher: nothing was submitted \(unknown partition\)$"):
        submit(launcher, [(CONFIG, COMMAND)])


@pytest.mark.parametrize("key", ["nodes", "tasks_per_node"])
def test_launchers_that_would_start_a_run_twice_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"hydra\.launcher\.{key}=2: .*set hydra\.launcher\.{key}=1 and engine\.num_"):
        launcher_from("submitit_slurm", SETTINGS | {key: 2})


def test_other_launchers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hydra/launcher=joblib .*choose basic"):
        launcher_from("joblib", {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"})


@pytest.mark.parametrize(
    ("result", "code"), [(None, None), (0, 0), (2, 2), (FailedJobError("bug"), 1), (UncompletedJobError("killed"), 1)]
)
def test_exit_codes_of_jobs(result: int | Exception | None, code: int | None) -> None:
    assert Job(FakeJob(result=result)).code() == code  # type: ignore[arg-type]


def test_a_job_continues_without_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(FakeJob())  # type: ignore[arg-type]
    assert job.stop(1) is False
    assert "job 7 continues" in (printed := capsys.readouterr().out) and "`scancel 7`" in printed
    assert job.output() == "step 1/1"


@pytest.mark.parametrize(("ending", "code"), [(0, 0), (2, 2), (SystemExit(130), 130), (SystemExit("no"), 1)])
def test_exit_codes_of_the_work(ending: int | SystemExit, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[RunRequest] = []

    def run(request: RunRequest) -> int:
        requests.append(request)
        if isinstance(ending, SystemExit):
            raise ending
        return ending

    monkeypatch.setattr(single, "single", run)
    assert Work(CONFIG, COMMAND)() == code
    assert requests == [RunRequest(COMMAND, CONFIG)]


def test_a_preempted_job_resumes() -> None:
    assert not CONFIG.resume
    again = Work(CONFIG, COMMAND).checkpoint().function
    assert isinstance(again, Work)
    assert (again.config, again.command) == (replace(CONFIG, resume=True), COMMAND)
