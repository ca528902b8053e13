"""Rows: ours survive a round trip through JSON, and the Hub's columns are read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import longctx_rl.shipped_models
from longctx_rl.data.generators import generate
from longctx_rl.data.longblocks import from_row, to_row


@pytest.mark.parametrize("task", ["multihop", "grounding", "longform", "copy", "lookup", "pairs", "drill"])
def test_round_trip(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(longctx_rl.shipped_models.__file__).parent / "mini-student")
    for example in generate(task, 2, split="test", length=256, tokenizer=tokenizer, questions=2):
        assert from_row(json.loads(json.dumps(to_row(example)))) == example


def test_hub_row() -> None:
    row = {
        "id": "7",
        "document": "Text.",
        "source": "ArXiv",
        "language": "pt",
        "question": "Q?",
        "answer": "A",
        "response_Qwen3.5-27B": "R",
    }
    example = from_row(row)
    assert (example.task, example.language, example.response, example.target) == ("longblocks", "pt", None, "A")
    assert from_row(row, response_column="response_Qwen3.5-27B") == replace(example, response="R")


def test_missing_document_is_reported() -> None:
    with pytest.raises(ValueError, match=r"row '7' .*'document'.*restored"):
        from_row({"id": "7", "document": None, "question": "Q?", "answer": "A"})
