"""What a teacher says about recorded answers, kept on disk: asked once, read in every run after.

A cache is a folder whose name is a hash of its identity: teacher, tokenizer, estimator, temperature, type. In it are
the identity (``identity.json``), the teacher's output weights for the exact divergence (``head.safetensors``), the
signals end to end (``signals.bin``, mapped into memory), and where each lies (``index.jsonl``, a line per group). A
group's key is a hash of its tokens, so another prompt, template or answer is another entry. An entry counts once its
line is written; what a killed build left behind the last one is cut away.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

import torch
from filelock import FileLock, Timeout
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longctx_rl.policy.frozen import SignalKind
from longctx_rl.policy.loading import locate
from longctx_rl.policy.shape import ModelShape
from longctx_rl.runs.directory import write_text
from longctx_rl.types import GroupSpan, HiddenSignal, PackedGroups, SampledSignal, TeacherSignal, TopKSignal

ALIGNMENT = 64
"""Bytes to whose multiples entries start."""
SAMPLES, SAMPLE_BYTES = 64, 2**16
"""Pieces of each weight file that are hashed: reading all of a large teacher would take minutes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """All that a signal depends on beside the tokens."""

    teacher: str | None
    """Hash of its configuration and weight files; None where they are not at hand, and the name has to do."""
    name: str
    """What the teacher is called in the configuration."""
    tokenizer: str
    estimator: str
    top_k: int
    """0 for the exact divergence."""
    temperature: float
    dtype: str
    vocabulary: int | None
    yarn: str | None = None
    """How the teacher's context is stretched."""

    @property
    def key(self) -> str:
        """Name of the folder."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()


def weights_fingerprint(name: str) -> str | None:
    """Hash of a model's files: sizes, configuration, samples of the weights. None if the weights are not on this disk.

    Of a Hub id its local copy is read; nothing is downloaded.
    """
    try:
        folder = Path(locate(name))
    except ValueError:
        return None
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"], local_files_only=True))
        except (OSError, ValueError):
            return None
    files = sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])
    if not any(file.suffix == ".safetensors" for file in files):
        return None
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for sample in range(SAMPLES):
                opened.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                found.update(opened.read(SAMPLE_BYTES))
    return found.hexdigest()


def group_key(packed: PackedGroups, span: GroupSpan) -> tuple[str, slice]:
    """A group's key in a cache, and its loss tokens in the row."""
    sources = packed.source_index
    inside = ((sources >= span.start) & (sources < span.end)).nonzero().flatten()
    tokens = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    found = hashlib.blake2b(digest_size=16)
    for part in (
        packed.input_ids[span.start : span.end],
        torch.tensor([span.prompt_len, *span.completion_lens]),
        sources[tokens] - span.start,
    ):
        found.update(part.cpu().contiguous().numpy().tobytes())
        found.update(b"|")
    return found.hexdigest(), tokens


class TeacherCache:
    """Signals by group. Open it with ``create`` to add, with ``open`` to read.

    Attributes:
        shape: the teacher's, for counting its FLOPs.
        context: tokens the teacher was made for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
        self.identity = Identity(**facts["identity"])
        self.shape = ModelShape(**facts["shape"])
        self.context: int = facts["context"]
        self.width: int = facts["width"]
        self._entries: dict[str, tuple[int, int]] = {}
        index, data = folder / "index.jsonl", folder / "signals.bin"
        size = data.stat().st_size if data.exists() else 0
        for line in index.read_text(encoding="utf-8").splitlines() if index.exists() else []:
            try:
                key, start, tokens = json.loads(line)
            except json.JSONDecodeError:
                break  # the last line of a killed build
            if start + self._entry_bytes(tokens) > size:
                break  # its line was on disk before the signals were
            self._entries[key] = (start, tokens)
        self._bytes: Tensor | None = None
        self._writing: tuple[BinaryIO, TextIO, FileLock] | None = None

    @classmethod
    def create(
        cls, root: Path, identity: Identity, head: Tensor | None, shape: ModelShape, context: int, width: int
    ) -> "TeacherCache":
        """Open for adding; begin it if it is not there.

        Raises:
            ValueError: another build is adding to it.
        """
        folder = root.expanduser() / f"teacher-{identity.key}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"{folder} is being written by another build: wait for it") from error
        if not (folder / "identity.json").exists():
            if head is not None:
                save_file({"head": head.contiguous().cpu()}, folder / "head.safetensors")
            facts = {"identity": asdict(identity), "shape": asdict(shape), "context": context, "width": width}
            write_text(folder / "identity.json", json.dumps(facts, indent=2) + "\n")
        cache = cls(folder)
        end = max((start + cache._entry_bytes(tokens) for start, tokens in cache._entries.values()), default=0)
        lines = [json.dumps([key, *entry]) + "\n" for key, entry in cache._entries.items()]
        write_text(folder / "index.jsonl", "".join(lines))
        data = (folder / "signals.bin").open("ab")
        data.truncate(end)
        data.seek(0, 2)
        cache._writing = data, (folder / "index.jsonl").open("a", encoding="utf-8"), lock
        return cache

    @classmethod
    def open(cls, root: Path, identity: Identity, command: str) -> "TeacherCache":
        """Open for reading. Without the teacher's weights at hand, its name and the rest must agree.

        Raises:
            ValueError: there is none with this identity; names what is different in the others.
        """
        wanted, others = asdict(identity), []
        for file in sorted(root.expanduser().glob("teacher-*/identity.json")):
            found = json.loads(file.read_text(encoding="utf-8"))["identity"]
            ignored = "teacher" if identity.teacher is None else "name"
            different = [name for name, value in wanted.items() if name != ignored and found.get(name) != value]
            if not different:
                return cls(file.parent)
            others.append(f"{file.parent.name} has another {', '.join(different)}")
        raise ValueError(
            f"model.teacher_cache={root} has nothing of this teacher and these settings"
            f"{' (' + '; '.join(others) + ')' if others else ''}: build it with {command}"
        )

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: str, signal: TeacherSignal) -> None:
        """Keep a group's signal. Raises OSError when the disk is full; entries before it stay."""
        assert self._writing is not None
        data, index, _ = self._writing
        assert not isinstance(signal, SampledSignal)  # of drawn tokens, which no cache can know
        columns = [signal.hidden] if isinstance(signal, HiddenSignal) else [signal.ids.to(torch.int32), signal.logprobs]
        content = b"".join(column.cpu().contiguous().view(torch.uint8).numpy().tobytes() for column in columns)
        start, tokens = data.tell(), len(columns[0])
        assert [column.shape[1] for column in columns] == [width for _, width in self._columns()]
        data.write(content.ljust(self._entry_bytes(tokens), b"\0"))
        data.flush()
        index.write(json.dumps([key, start, tokens]) + "\n")
        index.flush()
        self._entries[key] = (start, tokens)

    def read(self, key: str) -> tuple[Tensor, ...]:
        """[T, H] hidden states; or [T, K] ids and log-probabilities."""
        if self._bytes is None:
            path = self.folder / "signals.bin"
            self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        start, tokens = self._entries[key]
        columns = []
        for dtype, width in self._columns():
            size = tokens * width * dtype.itemsize
            columns.append(self._bytes[start : start + size].view(dtype).view(tokens, width))
            start += size
        return tuple(columns)

    def head(self) -> Tensor | None:
        """[V, H] output weights of the teacher, if the estimator is exact."""
        file = self.folder / "head.safetensors"
        return load_file(file)["head"] if file.exists() else None

    def close(self) -> None:
        if self._writing is not None:
            data, index, lock = self._writing
            data.close()
            index.close()
            lock.release()

    def _columns(self) -> list[tuple[torch.dtype, int]]:
        if self.identity.estimator == "exact":
            return [(getattr(torch, self.identity.dtype), self.width)]
        return [(torch.int32, self.identity.top_k), (torch.float32, self.identity.top_k)]

    def _entry_bytes(self, tokens: int) -> int:
        size = sum(tokens * width * dtype.itemsize for dtype, width in self._columns())
        return -(-size // ALIGNMENT) * ALIGNMENT


class CachedScorer(nn.Module):
    """Stands where a frozen teacher would: its signals come from a cache."""

    def __init__(self, cache: TeacherCache, command: str) -> None:
        super().__init__()
        self._cache, self._command = cache, command

    def forward(
        self, packed: PackedGroups, *, estimator: SignalKind, temperature: float, top_k: int, head: Tensor | None
    ) -> TeacherSignal:
        """The signal for a row's groups. See ``FrozenScorer``.

        Raises:
            ValueError: the cache does not know a group.
        """
        del temperature, top_k  # of the cache's identity
        found = []
        for span in packed.spans:
            key, tokens = group_key(packed, span)
            if tokens.start == tokens.stop:
                continue
            if key not in self._cache:
                raise ValueError(
                    f"{self._cache.folder} does not hold a prompt of this run (of {len(self._cache)} that it has): "
                    f"its data, template or answers differ; build it with {self._command}"
                )
            found.append(self._cache.read(key))
        device = packed.input_ids.device
        if not found:
            found.append(tuple(torch.empty(0, width, dtype=dtype) for dtype, width in self._cache._columns()))
        columns = [torch.cat(column).to(device) for column in zip(*found, strict=True)]
        if estimator == "exact":
            assert head is not None
            return HiddenSignal(columns[0], head)
        return TopKSignal(columns[0].long(), columns[1])
