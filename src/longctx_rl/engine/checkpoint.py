"""Checkpoints on disk: complete or absent, verifiable, and limited to the last few.

A checkpoint is written to ``checkpoints/.tmp-step-000010`` and renamed to ``checkpoints/step-000010`` once everything
is on disk, so that earlier checkpoints stay intact if the process is killed at any moment. ``manifest.json`` lists
every file with its size and checksum.
"""

import base64
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from longctx_rl.engine import distributed
from longctx_rl.files import read_object

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
FORMAT = 2
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(
    run_dir: Path, step: int, write: Callable[[Path], None], trainer_state: Mapping[str, Any], keep: int
) -> Path:
    """Write checkpoint ``step``, remove all but the last ``keep``, and return its directory. Every rank calls it.

    ``write`` is ``Engine.save``. ``trainer_state`` is plain data, taken from the main rank. A complete checkpoint of
    the same step is left untouched. Raises ValueError on every rank if the disk is full or not writable; the partial
    checkpoint is then removed and earlier ones stay.
    """
    folder = run_dir / "checkpoints"
    final, temporary = folder / f"step-{step:06d}", folder / f".tmp-step-{step:06d}"
    try:
        distributed.on_main(lambda: _clear(folder, final))
        if distributed.broadcast_flag(final.exists()):
            return final
        distributed.on_main(temporary.mkdir)
        write(temporary)
        distributed.on_main(lambda: _complete(temporary, final, step, trainer_state))
    except OSError as error:
        if distributed.is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        latest = latest_checkpoint(run_dir)
        raise ValueError(
            f"checkpoint {final} could not be written ({error.strerror or error}): free space or fix the permissions; "
            f"resume=true then continues from {latest.name if latest else 'the start, as there is no other checkpoint'}"
        ) from error
    distributed.on_main(lambda: _prune(folder, keep))
    return final


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint with the highest step; remains of a killed save do not count. None if there is none."""
    checkpoints = _checkpoints(run_dir / "checkpoints")
    return checkpoints[-1] if checkpoints else None


def verify(checkpoint: Path) -> None:
    """Raise ValueError if a file of the checkpoint is missing, truncated or modified."""
    advice = f"remove {checkpoint} to continue from the checkpoint before it"
    manifest = read_object(checkpoint / MANIFEST, advice, format=int, files=dict[str, dict[str, int]])
    if manifest["format"] != FORMAT:
        raise ValueError(f"{checkpoint} has format {manifest['format']}, expected {FORMAT}: {advice}")
    for name, entry in manifest["files"].items():
        file, size = checkpoint / name, entry.get("bytes")
        if not file.is_file():
            raise ValueError(f"{file} is missing: {advice}")
        if file.stat().st_size != size:
            raise ValueError(f"{file} is truncated ({file.stat().st_size} of {size} bytes): {advice}")
        if _crc32(file) != entry.get("crc32"):
            raise ValueError(f"{file} was modified after it was written (checksum mismatch): {advice}")


def read_trainer_state(checkpoint: Path) -> dict[str, Any]:
    """Return the trainer state of a verified checkpoint."""
    return read_object(checkpoint / TRAINER_STATE, f"remove {checkpoint} to continue from the checkpoint before it")


def rng_states() -> list[dict[str, str]]:
    """Return the states of all ranks' torch generators, in rank order, as plain data. Every rank calls it."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return distributed.gather([{name: base64.b64encode(bytes(s.tolist())).decode() for name, s in states.items()}])


def restore_rng(states: Sequence[Mapping[str, str]]) -> None:
    """Restore this rank's entry of ``rng_states``. A rank without an entry keeps its generators unchanged."""
    if distributed.rank() >= len(states):
        return
    own_states = {
        name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
        for name, text in states[distributed.rank()].items()
    }
    torch.set_rng_state(own_states["cpu"])
    if "cuda" in own_states and torch.cuda.is_available():
        torch.cuda.set_rng_state(own_states["cuda"])


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    checkpoints = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(checkpoints, key=lambda path: int(path.name.removeprefix("step-")))


def _clear(folder: Path, final: Path) -> None:
    """Remove the remains of killed saves, and a damaged checkpoint of this step."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".tmp-step-*"):
        shutil.rmtree(leftover)
    if final.exists():
        try:
            verify(final)
        except ValueError:
            shutil.rmtree(final)


def _complete(temporary: Path, final: Path, step: int, trainer_state: Mapping[str, Any]) -> None:
    (temporary / TRAINER_STATE).write_text(json.dumps(trainer_state, indent=1))
    files = {file.name: {"bytes": file.stat().st_size, "crc32": _crc32(file)} for file in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    for path in [*temporary.iterdir(), temporary]:
        _sync(path)
    temporary.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, keep: int) -> None:
    for path in _checkpoints(folder)[:-keep]:
        path.rename(folder / f".tmp-{path.name}")  # half removed, it must not be taken for a checkpoint
        shutil.rmtree(folder / f".tmp-{path.name}")


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
