"""LongReason (Ling et al., arXiv 2501.15089), as its authors published it: 794 questions, each in seven lengths.

Every split has the same values of ``example_idx``, which identify the family. The splits carry the labels of the
generated suite: ``original``, ``expanded``, and ``context`` at 8192 tokens for the split ``8k``, up to 131072 for
``128k``. The prompt is the data set's own, followed by an instruction on how to end the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_rl.config.eval import SuiteConfig
from longctx_rl.evals.items import WITHOUT_LENGTH, Item
from longctx_rl.files import json_lines
from longctx_rl.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "longreason_hub"
LABELS = ("original", "expanded", "context")
LENGTHS = (8192, 16384, 32768, 65536, 131072)
COLUMNS = ("example_idx", "prompt", "answer")
INSTRUCTION = 'End with a line of its own: "Answer: " and the letter of the right option alone.'
KEY = "eval.suites.longreason_hub"


def read_items(config: SuiteConfig, first: int, count: int, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """At most ``count`` families of each requested split, ordered by ``example_idx``.

    Raises:
        ValueError: the data set is not downloaded; a split or column is missing; an answer is not a letter; splits hold
            different questions; there are at most ``first`` questions.
    """
    del tokenizer
    folder, commit = find(config)
    cells = [
        (label, length) for label in config.labels for length in ((0,) if label in WITHOUT_LENGTH else config.lengths)
    ]
    splits = {cell: read_split(folder, *cell) for cell in cells}
    (label, length), rows = next(iter(splits.items()))
    for (other, at), others in splits.items():
        if others.keys() != rows.keys():
            raise ValueError(
                f"{folder}: {split_name(other, at)} has different questions from {split_name(label, length)}: "
                "download it again"
            )
    chosen = sorted(rows)[first : first + count]
    if not chosen:
        raise ValueError(f"{KEY} has {len(rows)} questions: set eval.first below that")
    return [
        _item(label, length, splits[label, length][name], commit, floor)
        for (label, length) in cells
        for floor in [majority([row["answer"] for row in splits[label, length].values()])]
        for name in chosen
    ]


def find(config: SuiteConfig) -> tuple[Path, str]:
    """The folder of the data set, and its commit if it comes from the Hub's cache. Nothing is downloaded.

    Raises:
        ValueError: no path is set, or it is neither a folder nor in the cache.
    """
    if config.path is None:
        raise ValueError(f"{KEY}.path is null: give a folder, or the Hub id lz1bytedance/LongReason")
    local = Path(config.path).expanduser()
    if local.is_dir():
        return local, ""
    if config.path.startswith((".", "/", "~")):
        raise ValueError(f"{config.path} is not a folder: set {KEY}.path")
    from huggingface_hub import snapshot_download  # a command that is refused does not wait for it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(config.path, repo_type="dataset", revision=config.revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        revision = f" --revision {config.revision}" if config.revision else ""
        raise ValueError(
            f"{config.path} is not in the Hub's local cache: hf download --repo-type dataset {config.path}{revision}"
        ) from error
    return Path(folder), Path(folder).name


def split_name(label: str, length: int) -> str:
    """The data set's name of a split. Raises ValueError for a length without a split."""
    if label in WITHOUT_LENGTH:
        return label
    if length not in LENGTHS:
        raise ValueError(f"{KEY}.lengths={length} does not exist: choose from {', '.join(map(str, LENGTHS))}")
    return f"{length // 1024}k"


def read_split(folder: Path, label: str, length: int) -> dict[str, Mapping[str, Any]]:
    """The rows of a split by ``example_idx``, from files named ``8k.jsonl`` or ``8k-00000-of-00001.parquet``.

    Raises:
        ValueError: no such file, or one that does not hold LongReason's rows.
    """
    name = split_name(label, length)
    named = re.compile(rf"{name}(?:-\d+-of-\d+)?\.(?:parquet|jsonl)")
    files = sorted(path for path in folder.rglob("*") if named.fullmatch(path.name))
    if not files:
        raise ValueError(
            f"{folder} has no file of the split {name}: download it again, or remove {label} from {KEY}.labels"
        )
    rows: dict[str, Mapping[str, Any]] = {}
    for path in files:
        for row in _rows(path):
            if missing := [column for column in COLUMNS if not isinstance(row.get(column), str)]:
                raise ValueError(f"{path} has a row without {missing[0]}: set {KEY}.path to a copy of LongReason")
            if not re.fullmatch("[A-Z]", row["answer"]) or row["example_idx"] in rows:
                raise ValueError(
                    f"{path}: the answer of {row['example_idx']} is not a letter, or the question occurs twice: "
                    "download it again"
                )
            rows[row["example_idx"]] = row
    return rows


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            yield from pyarrow.parquet.read_table(path).to_pylist()
            return
        lines = [line for line in json_lines(path) if not line.blank]
        if not lines:
            raise ValueError("it is empty")
        for line in lines:
            if not isinstance(line.checked(), dict):
                raise ValueError(f"line {line.number} is not a JSON object: {line.start!r}")
            yield line.value
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({cause}): download it again") from error


def majority(letters: list[str]) -> float:
    """Score of always giving the most frequent answer."""
    return max(Counter(letters).values()) / len(letters)


def _item(label: str, length: int, row: Mapping[str, Any], commit: str, floor: float) -> Item:
    name = row["example_idx"]
    version = f"@{commit[:12]}" if commit else ""
    example = Example(
        id=f"longreason-{name}-{split_name(label, length)}{version}",
        document=row["prompt"],
        question=INSTRUCTION,
        answer=row["answer"],
        task=TASK,
        source="LongReason",
        family_id=f"longreason-{name}",
        length=length,
    )
    return Item(label, example, floor)
