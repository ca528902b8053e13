"""Command lines of runs and sweeps: what each run becomes, and how text is quoted."""

import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_rl.config.compose import CommandLine, command_line, composed, composed_evaluate, composed_harness
from longctx_rl.config.convert import setting

SWEEPS = {
    "+algo=grpo,dgrpo algo.group_size=4": 2,
    "+algo=sft,kd,dgrpo algo.clip_low=0.1 seed=0,1": 6,
    "model=mini,mini_fresh +algo=sft model.scoring_chunk=8": 2,
    "task=mix,copy +algo=sft ++task.mixture.copy=1": 2,
    "engine=local,zero3 +algo=sft engine.threads=1": 2,
    "reward=exact,rules +algo=grpo reward.evidence_beta=2": 2,
    "eval=heldout,code +algo=sft eval.items=3": 2,
    "data=long50,long90 +algo=sft data.short.share=0.2": 2,
    "+experiment=smoke +algo=sft,dgrpo algo.clip_low=0.1 resume=True,False": 4,
    "+experiment=smoke,table1 +algo=sft algo.clip_low=0.1": 6,
    "+experiment=table2_beta,table2_mix seed=0": 8,
    "+algo=glob(*grpo) seed=range(0,2)": 4,
    "+algo=sft 'model.student=\"/x=y\",\"a b\"' 'data.lengths=[256],[300,400]'": 4,
    "+algo=sft 'run_dir=a/${hydra:job.num}' seed=3": 1,
}
"""Sweeps over every kind of group, with values of keys that only the chosen files have; and their numbers of runs."""


def line(arguments: str, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setattr(sys, "argv", ["longctx_rl", *shlex.split(arguments)])
    return command_line()


@pytest.mark.parametrize("arguments", SWEEPS)
def test_each_run_of_a_sweep_is_what_its_own_command_starts(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = line(f"-m {arguments}", monkeypatch).requests
    assert len(requests) == SWEEPS[arguments]
    assert len({request.command for request in requests}) == len(requests)
    for request in requests[:1] + requests[-1:]:
        (single,) = line(request.command.removeprefix("python -m longctx_rl "), monkeypatch).requests
        assert (single.config, str(single.problem)) == (request.config, str(request.problem))
        assert single.command == request.command


def test_options_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [request.command for request in line("+algo=sft -m seed=0,1", monkeypatch).requests] == [
        "python -m longctx_rl +algo=sft seed=0",
        "python -m longctx_rl +algo=sft seed=1",
    ]


def test_jobs_of_a_cluster_write_below_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "-m +algo=sft seed=0,1 hydra/launcher=submitit_local hydra.launcher.timeout_min=9 runs_root=elsewhere"
    launcher = line(arguments, monkeypatch).launcher
    assert launcher is not None
    name, settings = launcher
    assert (name, settings["timeout_min"]) == ("submitit_local", 9)
    assert str(settings["submitit_folder"]).startswith("elsewhere/.submitit")


def test_files_of_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sweeps find them, too, and so does the command of each run."""
    folder = tmp_path_factory.mktemp("own conf")
    (folder / "experiment").mkdir()
    content = '# @package _global_\nseed: 7\nhydra: {sweeper: {params: {+algo: "sft,kd"}}}\n'
    (folder / "experiment" / "mine.yaml").write_text(content)
    requests = line(f"-m --config-dir '{folder}' +experiment=mine", monkeypatch).requests
    assert [request.config and request.config.run_dir[-11:] for request in requests] == ["-mini-mix-s7"[1:]] * 2
    (single,) = line(requests[1].command.removeprefix("python -m longctx_rl "), monkeypatch).requests
    assert single.config == requests[1].config and single.config and single.config.algo.name == "kd"


@pytest.mark.parametrize("typed", ["model.student=~/x", "'model.student=\"~/x\"'"])
def test_home_directories(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a b=c")
    (request,) = line(f"+algo=sft runs_root=~/r {typed}", monkeypatch).requests
    assert request.config and request.config.run_dir == "/home/a b=c/r/default/sft-mini-mix-s0"
    assert "~" not in request.command.partition("model.student")[0]
    assert composed(["runs_root=~/r"]).runs_root == "/home/a b=c/r"
    assert composed_evaluate(["checkpoint=x", "out=~/r"]).out == "/home/a b=c/r"
    harness = composed_harness(["checkpoint=x", "out='~/r'", "tasks=[a]", "include=~/t"])
    assert (harness.out, harness.include) == ("/home/a b=c/r", "/home/a b=c/t")


@pytest.mark.parametrize("folder", ["", "--config-dir CONF "])
def test_home_directories_are_printed(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    assert not line(
        f"{folder.replace('CONF', str(tmp_path))}+algo=sft model.student=~/x --cfg job", monkeypatch
    ).requests
    assert "student: /home/a/x\n" in capsys.readouterr().out


TEXTS = st.text(
    st.one_of(st.sampled_from("\\\"'$ {}[]()=,:~#+-./0e"), st.characters(codec="utf-8", exclude_categories=["Cc"]))
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.one_of(TEXTS, st.sampled_from(["NULL", "true", "-inf", "nan", "1e4", ".5", "./a", "../x", "/a+b"])))
def test_a_setting_reads_back_as_its_text(text: str) -> None:
    (word,) = shlex.split(setting("model.student", text))
    assert OverridesParser.create().parse_overrides([word])[0].value() == text


@settings(derandomize=True, max_examples=40, deadline=None)
@given(TEXTS)
def test_a_text_that_cannot_be_read_is_shown_quoted(text: str) -> None:
    """Either Hydra accepts it, or the message says how to write it, in one line without Hydra's own words."""
    try:
        composed([f"model.tokenizer={text}"])
    except ValueError as error:
        sentence = str(error)
        assert "Exception" not in sentence and "expecting" not in sentence
        if "quote the value, " in sentence and text[:1] not in ("'", '"'):
            (word,) = shlex.split(sentence.partition("quote the value, ")[2])
            assert OverridesParser.create().parse_overrides([word])[0].value() == text
