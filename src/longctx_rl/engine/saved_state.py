"""The saved state of an engine: float32 weights, Adam's moments and step counts, unsharded and under plain names.

The files depend neither on the engine nor on the number of ranks that wrote them, and nothing is pickled.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from longctx_rl.engine import distributed
from longctx_rl.engine.optimizer import AVERAGE, MOMENTS, UpdateCounter, full_shape
from longctx_rl.engine.tensors import TensorFiles, write_tensors
from longctx_rl.files import built, read_object

FORMAT = 1
WEIGHTS = "weights"
STEMS = {WEIGHTS: "weights", **{moment: f"adam_{moment}" for moment in MOMENTS}, AVERAGE: "average"}
"""Kind of value stored for each parameter, and the stem of its file; averages only where they are maintained."""

Read = Callable[[Tensor, str], Tensor]
"""Maps (parameter, key of STEMS) to its full float32 tensor. A collective where parameters are sharded."""
Write = Callable[[Tensor, str, Tensor], None]
"""Sets the value of (parameter, key of STEMS) from a full float32 tensor."""


def stems(averaged: bool) -> dict[str, str]:
    """Return the kinds of values, and the stems of their files, of an engine with or without averages."""
    return {key: stem for key, stem in STEMS.items() if averaged or key != AVERAGE}


def save(directory: Path, module: nn.Module, progress: UpdateCounter, read: Read, *, averaged: bool) -> None:
    """Write the state of ``module`` into an existing directory. Every rank calls it; OSError is raised on all."""

    def tensors(key: str) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in module.named_parameters():  # a tied weight is listed once
            yield name, read(parameter, key)

    for key, stem in stems(averaged).items():
        write_tensors(directory, stem, tensors(key))
    content = {"format": FORMAT, "torch": torch.__version__, "progress": dataclasses.asdict(progress)}
    text = json.dumps(content, indent=1)

    def write_progress() -> None:
        (directory / "engine.json").write_text(text)

    distributed.on_main(write_progress)


def load(directory: Path, module: nn.Module, write: Write, *, averaged: bool) -> UpdateCounter:
    """Load the state in ``directory`` into ``module`` and return its counters. All ranks call it; the main rank reads.

    Raises ValueError on every rank if the files are missing or belong to another model.
    """
    files: dict[str, TensorFiles] = {}
    progress: UpdateCounter | None = None
    problem: str | None = None
    if distributed.is_main():
        try:
            progress = _read_progress(directory)
            files = {key: TensorFiles(directory, stem) for key, stem in stems(averaged).items()}
            for tensors in files.values():
                _compare(directory, module, tensors)
        except ValueError as error:
            problem = str(error)
    progress, problem = distributed.broadcast((progress, problem))
    if problem is not None:
        raise ValueError(problem)
    assert progress is not None
    device = next(module.parameters()).device
    for name, parameter in module.named_parameters():
        for key in stems(averaged):
            value = torch.empty(full_shape(parameter), device=device)
            if distributed.is_main():
                value.copy_(files[key].get(name))
            if distributed.world_size() > 1:
                torch.distributed.broadcast(value, src=0)
            write(parameter, key, value)
    return progress


def _read_progress(directory: Path) -> UpdateCounter:
    file = directory / "engine.json"
    advice = "choose another checkpoint"
    content = read_object(file, advice, format=int, progress=UpdateCounter)
    if content["format"] != FORMAT:
        raise ValueError(f"{file} has format {content['format']}, expected {FORMAT}: {advice}")
    return built(UpdateCounter, content["progress"])


def _compare(directory: Path, module: nn.Module, files: TensorFiles) -> None:
    expected = {name: tuple(full_shape(parameter)) for name, parameter in module.named_parameters()}
    if expected == files.shapes:
        return
    for name in sorted(expected.keys() | files.shapes.keys()):
        if expected.get(name) != files.shapes.get(name):
            raise ValueError(
                f"{directory} belongs to another model ({name} has shape {files.shapes.get(name)}, this model needs "
                f"{expected.get(name)}): set the model of the checkpoint, or choose another checkpoint"
            )
