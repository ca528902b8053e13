"""Named tensors in safetensors files of bounded size, written and read by the main rank, one tensor at a time."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longctx_rl.engine import distributed
from longctx_rl.files import read_object

SHARD_BYTES = 4 * 2**30
"""Maximum size of a file. A single tensor may exceed it."""


def write_tensors(directory: Path, stem: str, tensors: Iterable[tuple[str, Tensor]], limit: int = SHARD_BYTES) -> None:
    """Write ``<stem>.safetensors``; beyond ``limit`` bytes, numbered shards and ``<stem>.safetensors.index.json``.

    Every rank calls it, because fetching the next tensor may be a collective; only the main rank writes. Raises
    OSError on every rank if the main rank cannot write.
    """
    writer = _Writer(directory, stem, limit)
    for name, tensor in tensors:
        if distributed.is_main():
            writer.add(name, tensor)
    if distributed.is_main():
        writer.close()
    problem = distributed.broadcast(writer.problem)
    if problem is not None:
        raise OSError(*problem)


def rust_errno(error: Exception) -> int:
    """Return the operating system's error number, which Rust code reports only in the message; 0 if there is none."""
    number = re.search(r"os error (\d+)", str(error))
    return int(number[1]) if number else 0


class _Writer:
    """Collects tensors into shards. After a failure it drops further tensors, so that the ranks stay in step."""

    def __init__(self, directory: Path, stem: str, limit: int) -> None:
        self.problem: tuple[int, str] | None = None
        self._directory, self._stem, self._limit = directory, stem, limit
        self._shards: list[list[str]] = []
        self._pending: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        if self._pending and self._bytes + tensor.nbytes > self._limit:
            self._flush()
        if self.problem is None:
            self._pending[name] = tensor.detach().to("cpu", copy=True).contiguous()
            self._bytes += tensor.nbytes

    def close(self) -> None:
        self._flush()
        if self.problem is not None:
            return
        try:
            self._name_shards()
        except OSError as error:
            self.problem = (error.errno or 0, str(error))

    def _part(self, index: int) -> Path:
        return self._directory / f".{self._stem}-{index:05d}.part"

    def _flush(self) -> None:
        if self.problem is None:
            try:
                save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
            except SafetensorError as error:
                self.problem = (rust_errno(error), str(error))
        self._shards.append(list(self._pending))
        self._pending.clear()
        self._bytes = 0

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self._directory / f"{self._stem}.safetensors")
            return
        weight_map = {}
        for index, names in enumerate(self._shards):
            file = f"{self._stem}-{index + 1:05d}-of-{count:05d}.safetensors"
            self._part(index).rename(self._directory / file)
            weight_map.update(dict.fromkeys(names, file))
        index_file = self._directory / f"{self._stem}.safetensors.index.json"
        index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1))


class TensorFiles:
    """Reads the files of ``write_tensors``. Raises ValueError if one is missing or not a safetensors file."""

    def __init__(self, directory: Path, stem: str) -> None:
        index, names = directory / f"{stem}.safetensors.index.json", [f"{stem}.safetensors"]
        if index.exists():
            content = read_object(index, "choose another checkpoint", weight_map=dict[str, str])
            names = sorted(set(content["weight_map"].values()))
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each tensor, by name."""
        self._file_of: dict[str, Path] = {}
        for name in names:
            self._open(directory / name)

    def _open(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dictionary)
                    self.shapes[name] = tuple(opened.get_slice(name).get_shape())
                    self._file_of[name] = file
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read ({error}): choose another checkpoint") from error

    def get(self, name: str) -> Tensor:
        """Return one tensor, on the CPU."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor
