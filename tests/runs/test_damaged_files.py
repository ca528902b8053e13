"""Every file that a run, an evaluation, a teacher cache or a prepared data set left behind may come back damaged: the
commands that read it are right, or refuse it in one sentence."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from longctx_rl import cli, evaluate
from longctx_rl.config.compose import composed, composed_evaluate
from longctx_rl.config.schema import Config
from longctx_rl.data import __main__ as data
from longctx_rl.launch import rank
from longctx_rl.report import __main__ as report
from small_runs import save_models, smoke, train

ROWS = Path(__file__).parents[1] / "data" / "fixture" / "rows"
RUN = "runs/smoke/dgrpo-mini-mix-s0"
CHECKPOINT = f"{RUN}/checkpoints/step-000002"
NOISE = bytes(range(255, 0, -1)) * 3 + b"\n"


class Workplace:
    """The commands of someone who trains, evaluates and reports in one folder."""

    def __init__(self, root: Path, models: Sequence[str]) -> None:
        self.root, self.models = root, models

    def config(self, *overrides: str) -> Config:
        return smoke(self.root / "runs", "+algo=dgrpo", *self.models, *overrides)

    def resume(self) -> int:
        return rank.execute(self.config("resume=true"))

    def evaluate(self) -> int:
        student, teacher = (override.partition("=")[2] for override in self.models)
        settings = ["eval=heldout", "eval.items=1", "eval.suites.heldout.lengths=[192]"]
        settings += ["eval.suites.heldout.max_new_tokens=4", f"kl.base={teacher}", "kl.items=1", "kl.length=192"]
        settings += [f"checkpoint={student}", f"out={self.root / 'eval'}", "kl.max_new_tokens=4"]
        return _code(lambda: evaluate.evaluate(composed_evaluate(settings)))

    def cache_settings(self) -> list[str]:
        where = [f"model.teacher_cache={self.root / 'cache'}", f"runs_root={self.root / 'from_cache'}"]
        settings = ["+algo=kd", "+experiment=smoke", "engine=local", "eval=none", "logging=none", *self.models]
        return [*settings, *where, "budget.steps=1"]

    def cache(self) -> int:
        return _code(lambda: data.run(["teacher-cache", *self.cache_settings()]))

    def distill(self) -> int:
        return rank.execute(composed(self.cache_settings()))

    def inspect(self) -> int:
        where = [f"data.longblocks.path={ROWS}", f"data.longblocks.cache={self.root / 'store'}"]
        settings = ["data=longblocks", "data.longblocks.short=null", "task=any", "data.longblocks.max_tokens=500"]
        return _code(lambda: data.run(["inspect", *settings, *where, self.models[0]]))

    def collect(self) -> int:
        return self._report("collect", "smoke")

    def tables(self) -> int:
        return self._report("tables", "smoke")

    def page(self) -> int:
        return self._report("page", "--runs", str(self.root / "runs"))

    def answers(self) -> int:
        return self._report("answers", str(self.root / "eval"))

    def _report(self, *arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.chdir(self.root)
            patch.setattr(sys, "argv", ["report", *arguments])
            report.main()
        return int(stopped.value.code or 0)


def _code(work: Callable[[], str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.command(work)
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace in which every command has succeeded."""
    made = Workplace(tmp_path_factory.mktemp("made"), save_models(tmp_path_factory.mktemp("models")))
    train(made.config())
    assert [made.evaluate(), made.cache(), made.inspect()] == [0, 0, 0]
    (made.root / "experiments" / "smoke").mkdir(parents=True)
    shutil.copytree(made.root / "eval", made.root / "runs" / "smoke" / "base")
    assert made.collect() == 0
    return made


READERS = {
    f"{RUN}/metrics.jsonl": ("resume", "collect"),
    f"{RUN}/environment.json": ("resume", "collect"),
    f"{RUN}/config.yaml": ("resume", "collect"),
    f"{RUN}/evals/heldout.jsonl": ("resume", "collect"),
    f"{RUN}/rollouts/step-000001.jsonl": ("page",),
    f"{RUN}/finished.json": ("resume",),
    **{f"{CHECKPOINT}/{name}": ("resume",) for name in ("manifest.json", "engine.json", "trainer_state.json")},
    f"{CHECKPOINT}/weights.safetensors": ("resume",),
    "runs/smoke/base/evaluation.json": ("collect",),
    "eval/evaluation.json": ("evaluate", "answers"),
    "eval/evals/heldout.jsonl": ("evaluate", "answers"),
    "eval/evals/kl.json": ("evaluate",),
    **{f"cache/*/{name}": ("distill",) for name in ("identity.json", "index.jsonl", "signals.bin", "head.safetensors")},
    "store/*/report.json": ("inspect",),
    "store/*/part-00000.arrow": ("inspect",),
    "experiments/smoke/results/dgrpo-mini-mix-s0.jsonl": ("tables",),
}
"""Every file that a program wrote, to the commands that read it."""


def damaged(content: bytes, how: str) -> bytes:
    if how == "half":
        return content[: len(content) // 2]
    return NOISE if how == "noise" else b'[{"step": null}]\n'


@pytest.mark.parametrize("how", ["half", "noise", "other"])
@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_sentence_or_no_problem(
    made: Workplace, name: str, how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in READERS[name]:
        room = Workplace(tmp_path / command, made.models)
        for top in {name.split("/")[0], *({"experiments", "runs"} if command in ("collect", "tables") else ())}:
            shutil.copytree(made.root / top, room.root / top)
        config = room.root / RUN / "config.yaml"
        if config.is_file():
            config.write_text(config.read_text().replace(str(made.root), str(room.root)))
        (file,) = room.root.glob(name)
        file.write_bytes(damaged(file.read_bytes(), how))
        capfd.readouterr()
        code, lines = getattr(room, command)(), capfd.readouterr().err.split("\n")
        errors = [line for line in lines if line.startswith("error: ")]
        assert "Traceback (most recent call last):" not in lines
        assert (code, len(errors)) in ((0, 0), (2, 1)), (command, errors)
        if errors:
            assert str(file.parent.relative_to(room.root)) in errors[0], errors


def test_every_written_file_is_damaged_above(made: Workplace) -> None:
    written = {path.relative_to(made.root) for path in made.root.rglob("*.*") if path.is_file()}
    ends = (".json", ".jsonl", ".yaml", ".arrow", ".bin", ".safetensors")
    left = {path for path in written if path.suffix in ends and "export" not in path.parts}
    for name in READERS:
        left -= {path for path in left if path.match(name)}
    alike = ("adam_exp_avg.safetensors", "adam_exp_avg_sq.safetensors", "step-000002.jsonl", "base.jsonl")
    assert {path for path in left if path.name not in alike and path.parts[:3] != ("runs", "smoke", "base")} == set()


def test_a_repeated_record_counts_once(made: Workplace, tmp_path: Path) -> None:
    """As a folder has it into which two evaluations were copied."""
    folder = tmp_path / "eval"
    shutil.copytree(made.root / "eval", folder)
    records = folder / "evals" / "heldout.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    worse = json.dumps(json.loads(lines[0]) | {"score": 0.25}) + "\n"
    records.write_text("".join([*lines, worse]))
    from longctx_rl.report.answers.evaluation_folder import load

    (suite,) = load(folder).suites
    assert len(suite.records) == len(lines)
    assert sorted(record.score for record in suite.records)[-1:] == [0.25]


def test_a_damaged_cache_is_built_again_and_keeps_the_rest(made: Workplace, tmp_path: Path) -> None:
    room = Workplace(tmp_path, made.models)
    shutil.copytree(made.root / "cache", room.root / "cache")
    (folder,) = (room.root / "cache").iterdir()
    before = {name: (folder / name).read_bytes() for name in ("signals.bin", "head.safetensors", "identity.json")}
    for name, content in before.items():
        middle = len(content) // 2
        (folder / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert room.distill() == 2 and room.cache() == 0 and room.distill() == 0
    assert all((folder / name).read_bytes() == before[name] for name in ("head.safetensors", "identity.json"))


def test_a_row_that_has_changed_on_disk_is_refused(made: Workplace, tmp_path: Path) -> None:
    from longctx_rl.data.store import Store

    (folder,) = (made.root / "store").iterdir()
    copy = Path(shutil.copytree(folder, tmp_path / "store"))
    row = Store(copy).row(3)
    part = copy / "part-00000.arrow"
    text = row["document"].encode()
    part.write_bytes(part.read_bytes().replace(text, text[:-2] + b"?" + text[-1:]))
    with pytest.raises(ValueError, match=r"part-00000\.arrow is damaged \(a row has changed\): remove .* to prepare"):
        Store(copy).row(3)
    (copy / "report.json").write_text((copy / "report.json").read_text().replace('"kept": 36', '"kept": 37'))
    with pytest.raises(ValueError, match=r"has 36 of its 37 rows: remove"):
        Store(copy)
