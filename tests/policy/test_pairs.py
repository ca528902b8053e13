"""A teacher whose tokens are not the student's is refused, with the reason and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.composing import config_with
from longctx_rl.policy.loading import check_pair, load_tokenizer, pair_note
from longctx_rl.policy.weights import SHIPPED


def changed(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> str:
    """A copy of the shipped teacher with one of its JSON files changed."""
    shutil.copytree(SHIPPED / "mini-teacher", folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return str(folder)


def checked(teacher: str, *overrides: str) -> int | None:
    config = config_with("+algo=opd", f"model.teacher={teacher}", *overrides)
    return check_pair(config.model, load_tokenizer(config.model.student))


def test_the_shipped_pair_fits() -> None:
    assert checked("mini-teacher") is None


def test_other_tokens(tmp_path: Path) -> None:
    def swap(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        first, second = list(vocabulary)[300:302]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    with pytest.raises(ValueError, match=r"different tokenizers.*model\.teacher=\.\.\."):
        checked(changed(tmp_path / "teacher", "tokenizer.json", swap))


def test_the_same_vocabulary_merged_otherwise(tmp_path: Path) -> None:
    def forget_merges(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]

    with pytest.raises(ValueError, match=r"same vocabulary.*model\.teacher=\.\.\."):
        checked(changed(tmp_path / "teacher", "tokenizer.json", forget_merges))


def test_another_end_token(tmp_path: Path) -> None:
    def end_differently(settings: dict[str, Any]) -> None:
        settings["eos_token"] = "<|endoftext|>"

    with pytest.raises(ValueError, match=r"<\|im_end\|> and <\|endoftext\|>.*choose both base or both chat models"):
        checked(changed(tmp_path / "teacher", "tokenizer_config.json", end_differently))


def test_padded_vocabularies(tmp_path: Path) -> None:
    def pad(settings: dict[str, Any]) -> None:
        settings["vocab_size"] = 1088

    teacher = changed(tmp_path / "teacher", "config.json", pad)
    with pytest.raises(ValueError, match=r"padded to 1024 and 1088: set model\.slice_vocabulary=true"):
        checked(teacher)
    assert checked(teacher, "model.slice_vocabulary=true") == 1024


def test_another_chat_template_is_said(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(SHIPPED / "mini-teacher", teacher)
    config = config_with("+algo=opd", f"model.teacher={teacher}").model
    tokenizer = load_tokenizer(config.student)
    assert pair_note(config, tokenizer) is None
    template = teacher / "chat_template.jinja"
    template.write_text(template.read_text().replace("\n", " "))
    assert "model.tokenizer=<teacher>" in (pair_note(config, tokenizer) or "")
