"""What all commands share: one line per error, exit codes, output that nobody reads, and stopping."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

import longctx_rl.__main__
import longctx_rl.doctor
import longctx_rl.evaluate
import longctx_rl.harness
from command_processes import SOURCE
from longctx_rl import cli


def refused(work: Callable[[], str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.command(work)
    printed = capsys.readouterr().err
    assert stopped.value.code == cli.UNUSABLE and printed.startswith("error: ") and printed.count("\n") == 1
    return printed.removeprefix("error: ")


def test_a_file_that_cannot_be_read_or_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing" / "file"
    for work in (missing.read_text, lambda: str(missing.write_text("text"))):
        assert refused(work, capsys).startswith(f"{missing} cannot be read or written (No such file")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "MemoryError"),
        (
            RuntimeError("alloc: can't allocate memory: 9 bytes\nsee above"),
            "alloc: can't allocate memory: 9 bytes see above",
        ),
    ],
)
def test_too_little_memory_is_one_line(error: Exception, cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> str:
        raise error

    assert refused(fail, capsys) == f"out of memory ({cause}): {cli.MORE_MEMORY}; finished work is kept\n"


@pytest.mark.parametrize(
    ("module", "work", "advice"),
    [
        (longctx_rl.__main__, "_train", "python -m longctx_rl.doctor with"),
        (longctx_rl.evaluate, "composed_evaluate", "lower rollout.batch_tokens;"),
        (longctx_rl.harness, "composed_harness", "lower batch_tokens;"),
        (longctx_rl.doctor, "diagnose", cli.MORE_MEMORY),
    ],
)
def test_the_advice_on_memory_names_a_setting_of_the_command(
    module: ModuleType, work: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(sys, "argv", ["command", "seed=1"])
    monkeypatch.setattr(module, work, fail)
    with pytest.raises(SystemExit):
        module.main()
    assert capsys.readouterr().err.startswith(f"error: out of memory (MemoryError): {advice}")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        cli.command(lambda: str((_ for _ in ()).throw(RuntimeError("shapes"))))


def started(code: str, redirect: str = "", **environment: str) -> "subprocess.Popen[str]":
    """Start Python code in a shell, whose ``redirect`` closes or fills its streams."""
    return subprocess.Popen(
        ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, code],
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # though pytest may ignore it
    )


WRITES = """
import sys; from longctx_rl import cli
def work():
    for _ in range(20000): cli.write(sys.stdout, "step\\n")
    with open(sys.argv[1] if len(sys.argv) > 1 else "/dev/null", "w") as file: number = file.fileno()
    return 0 if number > 2 else 5
cli.start(); code = work(); cli.leave(code)
"""


@pytest.mark.parametrize("redirect", ["| head -1", "> /dev/full", "2> /dev/full >&2", ">&-", "<&- >&- 2>&-"])
def test_work_goes_on_when_nobody_reads_its_output(redirect: str) -> None:
    """A reader that has gone, a full disk, and closed streams, whose numbers no other file may get."""
    code = WRITES.replace("cli.leave(code)", "import os; os.write(2, b'done') if code == 0 else 0; cli.leave(code)")
    if "2>" in redirect:
        code = WRITES
    shell = started(code, redirect)
    _, stderr = shell.communicate(timeout=60)
    assert shell.returncode == 0 and ("2>" in redirect or stderr == "done")


def test_a_command_ends_quietly_with_its_reader() -> None:
    code = "from longctx_rl import cli; cli.command(lambda: 'line\\n' * 99999)"
    shell = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{code}" | head -1'],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
    )
    assert (shell.returncode, shell.stdout, shell.stderr) == (128 + signal.SIGPIPE, "line\n", "")


def test_a_broken_pipe_to_another_process_is_an_error() -> None:
    code = (
        "import os; from longctx_rl import cli; r, w = os.pipe(); os.close(r); cli.command(lambda: os.write(w, b'x'))"
    )
    process = started(code)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (cli.UNUSABLE, "")
    assert stderr == "error: a file cannot be read or written (Broken pipe); finished work is kept\n"


def test_characters_that_the_terminal_lacks_are_escaped() -> None:
    code = "from longctx_rl import cli; cli.command(lambda: 'a\u00e9\u2192')"
    stdout, stderr = started(code, PYTHONIOENCODING="ascii").communicate(timeout=60)
    assert (stdout, stderr) == ("a\\xe9\\u2192\n", "")


def test_an_interruption_is_raised_after_the_import_that_it_meets(tmp_path: Path) -> None:
    """A library that swallows it would leave half of itself behind. Before a command starts, it is one word."""
    (tmp_path / "greedy.py").write_text(
        "import time; print('importing', flush=True)\n"
        "try: time.sleep(0.5)\nexcept KeyboardInterrupt: print('swallowed')\nprint('imported')\n"
    )
    (tmp_path / "hydra.py").write_text("import time; print('importing', flush=True); time.sleep(9)")
    doctor = "import runpy; runpy.run_module('longctx_rl.doctor', run_name='__main__', alter_sys=True)"
    work = "import greedy; import time; time.sleep(9)"
    for code, output, error, status in (
        (
            f"from longctx_rl import cli\ncli.command(lambda: exec({work!r}))",
            "importing\nimported\n",
            "interrupted: the same command",
            130,
        ),
        (doctor, "importing\n", "interrupted\n", -signal.SIGINT),
    ):
        process = started(code, PYTHONPATH=f"{tmp_path}:{SOURCE}")
        assert process.stdout and process.stdout.readline() == "importing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, "importing\n" + stdout) == (status, output)
        assert stderr.startswith(error) and stderr.count("\n") == 1


def test_a_program_that_imports_the_package_keeps_its_hook() -> None:
    code = "import sys; before = sys.excepthook; from longctx_rl.runs import progress; print(sys.excepthook is before)"
    assert started(code).communicate(timeout=60) == ("True\n", "")


def test_nohup_is_respected() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert cli.stop_signals() == [signal.SIGINT, signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert cli.stop_signals()[-1] == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)
