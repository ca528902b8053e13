"""Where a model's files are on this disk, and a hash that says whether its weights are still the same.

Imports neither torch nor transformers, so that reports can use it.
"""

import hashlib
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_rl import cli
from longctx_rl.files import built, parsed_json, read_object

SHIPPED = Path(__file__).parent.parent / "shipped_models"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""What transformers loads from a folder: the single file, else the shards that the index names."""
HEADER = 8
"""Bytes at the start of a safetensors file that hold the length of its header."""
LONGEST_HEADER = 100_000_000
"""Bytes that safetensors allows it."""
GIT_LFS = b"version https://git-lfs.github.com"
"""Start of the file that Git leaves in the place of a large one."""
PIECE = 1 << 24
"""Bytes read at a time."""
LONGEST_CAUSE = 240
"""Characters of another library's error that a message repeats."""
COMPLETE = "copy or download the model again"
"""What to do about damaged or missing files."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """An entry of a safetensors file's header."""

    dtype: str
    """As safetensors spells it, such as BF16."""
    shape: list[int]
    data_offsets: list[int]
    """First byte and end, counted from the end of the header."""


def locate(name: str) -> str:
    """Return the folder of a shipped model, an existing directory, or a Hub id unchanged.

    Raises:
        ValueError: the name looks like a path that does not exist, or is a directory without a model.
    """
    if (SHIPPED / name / "tokenizer.json").is_file():
        return str(SHIPPED / name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "tokenizer.json").is_file():
            raise ValueError(no_config(name, path))
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(
            f"model {name} not found: give a directory, a Hub id (owner/name), mini-student or mini-teacher"
        )
    return name


def no_config(name: str, folder: Path) -> str:
    """What to tell a user whose folder is there, but is not that of a model."""
    if (folder / "adapter_config.json").is_file():
        return (
            f"{name} is an adapter (adapter_config.json), not a model: merge it into its base model with peft's "
            "merge_and_unload(), save that with save_pretrained(FOLDER), and give FOLDER without adapter_config.json"
        )
    for run in (folder, *folder.absolute().parents[:2]):
        if (run / "environment.json").is_file() and (run / "config.yaml").is_file():
            first = "" if (run / "export" / "config.json").is_file() else "finish the run with resume=true, and "
            return f"{name} is a folder of a run and not its exported model: {first}give {run / 'export'}"
    return f"{name} is not a model directory (no config.json): give the export/ folder of a run"


@contextmanager
def explained(name: str, path: str) -> Iterator[None]:
    """Turn what is raised while a model at ``path`` is loaded, except for lack of memory, into a ValueError with it."""
    try:
        yield
    except Exception as error:  # parsers of others' files raise what they like; tokenizers even a bare Exception
        if cli.is_out_of_memory(error):
            raise
        if not Path(path).is_dir() and isinstance(error, OSError):
            raise ValueError(
                f"model {name} is neither a directory nor in the local Hub cache, and the Hub could not be reached: "
                f"download it first (hf download {name}) or give a directory"
            ) from error
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} needs the code that its auto_map names, which is never run: choose a model without such code"
            ) from error
        raise ValueError(
            f"{name} cannot be loaded ({cause_of(error)}): give a folder with config.json, tokenizer.json and complete "
            ".safetensors weights, such as the export/ folder of a finished run"
        ) from error


def cause_of(error: Exception) -> str:
    """Return another library's error in one line for the parentheses of a message."""
    kind = "" if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: "
    return textwrap.shorten(f"{kind}{error}", LONGEST_CAUSE, placeholder=" ...").rstrip(".: ") or type(error).__name__


def local_folder(name: str) -> Path | None:
    """Return the folder of a model's files; for a Hub id the snapshot of ``main`` in the local cache, without network.

    None if the cache does not hold the model's config.json.

    Raises:
        ValueError: see ``locate``.
    """
    location = locate(name)
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import try_to_load_from_cache  # commands answer before they import it

    config = try_to_load_from_cache(location, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def weights_hash(model: str | Path) -> str | None:
    """Return a hash of a model's weights: blake2b over the names and bytes of all tensors, sorted by name.

    How the tensors are spread over files does not matter, and neither does anything but the weights. The number type
    does: the same weights in bfloat16 have another hash. All bytes are read, about a second per GB.

    Args:
        model: a name (see ``locate``), or a folder as a Path.

    Returns:
        32 hexadecimal digits, or None where the weights are not, or not all, on this disk.

    Raises:
        ValueError: a file is truncated; see also ``locate``.
    """
    folder = local_folder(model) if isinstance(model, str) else model
    places: dict[str, tuple[Path, int, int]] = {}
    files = [] if folder is None else weight_files(folder)
    for path in files if all(path.is_file() for path in files) else []:
        begin, tensors = read_header(path)
        for name, tensor in tensors.items():
            start, end = tensor.data_offsets
            places[name] = (path, begin + start, end - start)
    digest = hashlib.blake2b(digest_size=16)
    for name, (path, start, size) in sorted(places.items()):
        digest.update(name.encode())
        with path.open("rb") as file:
            file.seek(start)
            while size:
                piece = file.read(min(PIECE, size))
                if not piece:
                    raise ValueError(f"{path} was truncated while it was read: {COMPLETE}")
                digest.update(piece)
                size -= len(piece)
    return digest.hexdigest() if places else None


def config_hash(name: str) -> str | None:
    """Return a hash of a model's config.json as it is on this disk; None if it is not there.

    Raises:
        ValueError: see ``locate``.
    """
    folder = local_folder(name)
    if folder is None or not (folder / "config.json").is_file():
        return None
    return hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=16).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads, or all of them if it would load none.

    Raises:
        ValueError: the index of the shards cannot be read, or names a file outside of the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    shards = set(
        read_object(folder / INDEX, COMPLETE, metadata=dict[str, Any], weight_map=dict[str, str])["weight_map"].values()
    )
    for name in shards:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{folder / INDEX} names {name}, which is outside of the folder: {COMPLETE}")
    return [folder / name for name in sorted(shards)]


def read_header(path: Path) -> tuple[int, dict[str, StoredTensor]]:
    """Read the header of a safetensors file.

    Returns:
        The length of the header in bytes, and the tensors by name.

    Raises:
        ValueError: it is not a safetensors file, or ends before its last tensor.
    """
    try:
        with path.open("rb") as file:
            length = file.read(HEADER)
            size = int.from_bytes(length, "little")
            header, problem = parsed_json(file.read(min(size, LONGEST_HEADER)))
            available = file.seek(0, 2) - HEADER - size
        if length == GIT_LFS[:HEADER]:
            raise ValueError("it is a pointer of Git LFS: run git lfs pull in its folder")
        if problem or not isinstance(header, dict):
            raise ValueError(f"its header is {problem or 'not a JSON object'}")
        header.pop("__metadata__", None)
        tensors = {name: built(StoredTensor, tensor) for name, tensor in header.items()}
        for tensor in tensors.values():
            start, end = tensor.data_offsets
            if not 0 <= start <= end <= available:
                raise ValueError("it ends before its last tensor")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}): {COMPLETE}") from error
    return HEADER + size, tensors
