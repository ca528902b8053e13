"""What all commands share: one line per error, and exit codes."""

from pathlib import Path

import pytest

from longctx_rl import cli


def test_a_file_that_cannot_be_read_or_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing" / "file"
    for work in (missing.read_text, lambda: str(missing.write_text("text"))):
        with pytest.raises(SystemExit) as stopped:
            cli.command(work)
        printed = capsys.readouterr().err
        assert stopped.value.code == cli.UNUSABLE and printed.count("\n") == 1
        assert printed.startswith(f"error: {missing} cannot be read or written (No such file")
