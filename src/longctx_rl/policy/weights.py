"""A hash of a model's weights, read from its files: to tell later whether a model is still the one that was used."""

import hashlib
import json
from pathlib import Path

HEADER = 8
"""Bytes at the beginning of a safetensors file that say how long its header is."""
PIECE = 1 << 24


def fingerprint(folder: Path) -> str | None:
    """Hash of the names and bytes of all tensors in a folder's safetensors files; None if there are none.

    Equal to ``evaluate.weights_hash`` of the loaded model where that keeps the files' number type.
    """
    places: dict[str, tuple[Path, int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
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
                digest.update(piece)
                size -= len(piece)
    return digest.hexdigest() if places else None
