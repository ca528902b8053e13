"""Where a model's files are on this disk, and a hash that says whether its weights are still the same.

Imports neither torch nor transformers, so that reports can use it.
"""

import hashlib
import json
from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "shipped_models"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""What transformers loads from a folder: the single file, else the shards that the index names."""
HEADER = 8
"""Bytes at the start of a safetensors file that hold the length of its header."""
PIECE = 1 << 24
"""Bytes read at a time."""


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
            raise ValueError(f"{name} is not a model directory (no config.json): give the export/ folder of a run")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(
            f"model {name} not found: give a directory, a Hub id (owner/name), mini-student or mini-teacher"
        )
    return name


def unavailable(name: str, path: str, error: Exception) -> str:
    """What to tell a user whose model, located at ``path``, could not be loaded."""
    if Path(path).is_dir():
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return (
            f"{name} cannot be loaded ({cause}): give a folder with config.json, tokenizer.json and complete "
            ".safetensors weights, such as the export/ folder of a finished run"
        )
    return (
        f"model {name} is neither a directory nor in the local Hub cache, and the Hub could not be reached: "
        f"download it first (hf download {name}) or give a directory"
    )


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
    for path in [] if folder is None else _weight_files(folder):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(HEADER), "little")
            header = json.loads(file.read(size))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                places[name] = (path, HEADER + size + start, end - start)
    digest = hashlib.blake2b(digest_size=16)
    for name, (path, start, size) in sorted(places.items()):
        digest.update(name.encode())
        with path.open("rb") as file:
            file.seek(start)
            while size:
                piece = file.read(min(PIECE, size))
                if not piece:
                    raise ValueError(f"{path} ends before its last tensor: copy or download it again")
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


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, or all of them if it would load none; empty if one is missing."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    shards = [folder / name for name in sorted(set(index["weight_map"].values()))]
    return shards if all(shard.is_file() for shard in shards) else []
