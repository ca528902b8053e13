"""The output folder of an evaluation: one writer at a time, one checkpoint, described by ``evaluation.json``."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.suites import plan_of
from longctx_rl.files import InUse, lock, read_object, write_text

DESCRIPTION = "evaluation.json"
LOCK = ".lock"
LIMITS = {
    "max_new_tokens": "token limit",
    "answer_slack": "token limit",
    "samples": "number of samples",
    "temperature": "temperature",
}
"""Settings of a suite that must be equal for all of its answers in a folder."""
DEFAULTS = {"samples": 1, "temperature": 0.0}
"""Their values in folders whose description lacks them."""
OTHER_FOLDER = "choose another out=FOLDER"
WEIGHTS_OF = "files"
"""What the hash of the weights was taken of. Older versions took it of the loaded model, in float32."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Create the folder if necessary, and exclude other evaluations from it.

    Folders that were created here are removed again if the evaluation fails before its first answer.

    Raises:
        ValueError: another evaluation writes to it, it cannot be written, or it belongs to a training run.
    """
    if not (out / DESCRIPTION).exists() and ((out / "config.yaml").exists() or (out / "evals").exists()):
        raise ValueError(f"{out} is a training run's folder, whose records would be lost: {OTHER_FOLDER}")
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = lock(out / LOCK)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): {OTHER_FOLDER}") from error
    except InUse as error:
        raise ValueError(f"another evaluation ({error.owner}) writes to {out}: {OTHER_FOLDER}") from None
    with held, ExitStack() as failure:
        if created:
            failure.callback(_remove_unanswered, created)
        yield
        failure.pop_all()


def check(out: Path, config: EvaluateConfig) -> None:
    """Raise ValueError if the folder contains answers with a different number type or limits.

    Greedy answers can be continued with another sampler, which the description records; others cannot.
    """
    kept = _description(out)
    if not kept:
        return
    _check_equal(out, kept, {"dtype": config.dtype})
    if kept.get("limits") is None:
        raise ValueError(
            f"{out} was written by an older version, which did not record the limits of answers: {OTHER_FOLDER}"
        )
    limits = _limits(config)
    for name, of_suite in kept["limits"].items():
        for key, value in {**DEFAULTS, **of_suite}.items():
            if name in limits and limits[name][key] != value:
                setting = f"eval.suites.{name}.{key}={'null' if value is None else value}"
                raise ValueError(
                    f"{out} contains answers with a different {LIMITS[key]}: set {setting}, or {OTHER_FOLDER}"
                )
    for name, suite in config.eval.suites.items():
        samplers = _samplers(out, kept, name)
        if suite.temperature and samplers and config.rollout.name not in samplers:
            raise ValueError(
                f"{out} contains answers to {name} that were sampled with rollout={samplers[0]}, whose random numbers "
                f"are its own: set rollout={samplers[0]}, or {OTHER_FOLDER}"
            )


def claim(
    out: Path, config: EvaluateConfig, *, weights: str | None, positions: Mapping[str, Any] | None, backend: str | None
) -> None:
    """Make ``out`` this checkpoint's folder, and write its description. Call it after ``check``.

    Args:
        weights: hash of the checkpoint's weights.
        positions: rotary position settings of the loaded model; None: it has none.
        backend: sandbox of generated code; None: no suite runs code.

    Raises:
        ValueError: the folder contains answers with different weights or positions.
    """
    kept = _description(out)
    if kept and kept.get("weights_of") != WEIGHTS_OF and kept.get("weights") != weights:
        raise ValueError(
            f"{out} contains answers with different weights, or was written by an older version, which hashed weights "
            f"that are not float32 differently: {OTHER_FOLDER}"
        )
    _check_equal(out, kept, {"weights": weights, "positions": positions})
    requested = {
        name: [(*cell, plan.each) for cell in plan.cells()]
        for name, plan in ((name, plan_of(config.eval, name)) for name in config.eval.suites)
    }
    limits = {name: each for name, each in (kept.get("limits") or {}).items() if name not in config.eval.suites}
    description = {
        "checkpoint": config.checkpoint,
        "tokenizer": config.tokenizer or config.checkpoint,
        "weights": weights,
        "weights_of": WEIGHTS_OF,
        "dtype": config.dtype,
        "positions": positions,
        "sandbox": backend,
        "samplers": kept.get("samplers") or {},
        "limits": _limits(config) | limits,
        "asked": (kept.get("asked") or {}) | requested,
    }
    write_text(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def record_counts(out: Path, answered: Mapping[str, Sequence[ItemRecord]]) -> None:
    """Replace the requested numbers of items by the actual ones: a suite that is read may hold fewer."""
    description = _description(out)
    for name, of_suite in answered.items():
        counts = Counter((record.task, record.length) for record in of_suite)
        description["asked"][name] = [(*cell, count) for cell, count in counts.items()]
    write_text(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def note_sampler(out: Path, name: str, sampler: str) -> None:
    """Record that ``sampler``, hf or vllm, answers items of a suite. Call it before the answers are written."""
    description = _description(out)
    samplers = _samplers(out, description, name)
    if sampler not in samplers:
        description["samplers"][name] = [*samplers, sampler]
        write_text(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _samplers(out: Path, description: Mapping[str, Any], name: str) -> list[str]:
    """Who has answered items of a suite: hf, where the description of an older version does not say."""
    recorded: list[str] | None = (description.get("samplers") or {}).get(name)
    return recorded or (["hf"] if (out / "evals" / f"{name}.jsonl").exists() else [])


def _remove_unanswered(created: Sequence[Path]) -> None:
    """Remove an output folder without answers, and the folders above it that were created with it."""
    out, *above = created
    if {path.name for path in out.iterdir()} <= {LOCK, DESCRIPTION}:
        shutil.rmtree(out)
        for folder in above:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def read_description(path: Path, fix: str, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The description of an evaluation.

    Args:
        fix: see ``files.read_object``.
        needs: fields that must exist. Older versions did not write all of them.

    Raises:
        ValueError: it cannot be read, or a field is missing or of another type.
    """
    fields = {
        "weights": str,
        "dtype": str,
        "limits": dict[str, dict[str, float | None]],
        "asked": dict[str, list[tuple[str, int, int]]],
        "samplers": dict[str, list[str]],
    }
    kinds = {name: kind if name in needs else kind | None for name, kind in fields.items()}
    return read_object(path, fix, checkpoint=str, **kinds)


def _description(out: Path) -> dict[str, Any]:
    """The folder's description; empty for a new folder."""
    path = out / DESCRIPTION
    return read_description(path, f"restore it, or {OTHER_FOLDER}") if path.exists() else {}


def _limits(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    return {name: {key: getattr(suite, key) for key in LIMITS} for name, suite in config.eval.suites.items()}


def _check_equal(out: Path, kept: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if kept.get(key, value) != value:
            raise ValueError(
                f"{out} contains answers with different {key} ({kept['checkpoint']}, {kept[key]}): {OTHER_FOLDER}"
            )
