"""The estimate of memory against measured peaks, and for sizes that no test could load."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3Config

from config.composing import config_with
from longctx_rl.policy.loading import load_model
from longctx_rl.policy.memory import GIB, Workload, estimate, sampling, update, view_length
from longctx_rl.policy.shape import DecoderSizes

BENCH = Path(__file__).parents[2] / "experiments" / "bench"

LOAD = Workload(
    prompt=2048, completion=64, group=8, prompts_per_step=1, batch_tokens=10**9, row_tokens=10**9, chunk=1024, ranks=1,
    engine="local", bytes=4, checkpointing=False, one_at_a_time=False, sampled=True, served=False, reference=False,
    exact=True, resident=0, replicated=True, gather=True, offload=False,
)  # fmt: skip


UPDATES: dict[str, tuple[dict[str, Any], DecoderSizes]] = {
    name: (changes, DecoderSizes(layers, width, 3 * width, width, width, vocabulary, tied=True, context=4096))
    for name, changes, width, layers, vocabulary in (
        ("long prompt", {"prompt": 1024}, 128, 4, 4096),
        ("long completions", {"prompt": 256, "completion": 128}, 128, 4, 1024),
        ("large vocabulary", {"prompt": 256, "completion": 32}, 64, 3, 20_000),
        ("one at a time", {"prompt": 1024, "one_at_a_time": True, "group": 16}, 128, 4, 4096),
    )
}
DECODED = {"prompt": 4096, "group": 16}
SCORED_TOKENS, SCORED_VOCABULARY, SCORED_CHUNK = 2048, 8192, 32

MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import group_cases
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["group_cases.py", *arguments]
    group_cases.main()
"""
"""Runs measurements one after the other, so that torch is imported once. Each prints a line of JSON."""


def options(**values: int) -> list[str]:
    return ["--threads", "1", *(part for name, value in values.items() for part in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    """Measured bytes of every case, with an allocator that returns freed memory to the system."""
    cases = {
        "decode": ["decode", "shared", *options(**DECODED)],
        "score": [
            "vocabulary", str(SCORED_CHUNK),
            *options(prompt=1, completion=SCORED_TOKENS // 8, width=16, vocabulary=SCORED_VOCABULARY),
        ],
    }  # fmt: skip
    for name, (changes, sizes) in UPDATES.items():
        load = replace(LOAD, **changes)
        shape = options(prompt=load.prompt, completion=load.completion, group=load.group)
        shape += options(layers=sizes.layers, width=sizes.hidden, vocabulary=sizes.vocabulary)
        # group_cases.py and its committed measurements call one completion at a time "scheduled".
        cases[name] = ["update", "scheduled" if load.one_at_a_time else "packed", *shape]
    command = [sys.executable, "-c", MEASURE, str(BENCH), json.dumps(list(cases.values()))]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        name: 2**20 * next(value for column, value in row.items() if column in ("update_mib", "decode_mib", "mib"))
        for name, row in zip(cases, rows, strict=True)
    }


@pytest.mark.parametrize("name", UPDATES)
def test_the_update_peaks_where_the_estimate_says(peaks: dict[str, float], name: str) -> None:
    changes, sizes = UPDATES[name]
    # The measurement starts before the gradients are allocated.
    expected = sum(update(sizes, sizes, replace(LOAD, **changes)).values()) + 4 * sizes.parameters
    assert peaks[name] == pytest.approx(expected, rel=0.2)


def test_sampling_peaks_where_the_estimate_says(peaks: dict[str, float]) -> None:
    load = replace(LOAD, **DECODED)  # type: ignore[arg-type]
    sizes = DecoderSizes(4, 128, 384, 128, 128, 4096, tied=True, context=8192)
    assert peaks["decode"] == pytest.approx(sum(sampling(sizes, load).values()), rel=0.2)


def test_scoring_holds_one_chunk_even_if_no_loss_reads_the_sampled_tokens(peaks: dict[str, float]) -> None:
    assert peaks["score"] < 0.25 * 4 * SCORED_TOKENS * SCORED_VOCABULARY


@pytest.mark.parametrize("name", ["mini-student", "mini-teacher"])
def test_parameters_are_counted(name: str) -> None:
    model = load_model(name)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert DecoderSizes.of(model.config).parameters == matrices


def test_sizes_of_a_large_model() -> None:
    """Qwen3-1.7B: 1.72 billion parameters with a tied head, as published."""
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    sizes = DecoderSizes.of(config)
    assert sizes.parameters == pytest.approx(1.72e9, rel=0.01)
    load = replace(LOAD, prompt=32_768, completion=2048, engine="zero3", bytes=2, ranks=8, checkpointing=True)
    one, eight = (estimate(sizes, sizes, replace(load, ranks=ranks)) for ranks in (1, 8))
    # Weights and gradients, float32 masters and two moments: 18 bytes per parameter, sharded over the ranks.
    states = ("policy weights", "gradients", "master weights", "optimizer")
    assert sum(one.always[name] for name in states) == pytest.approx(18 * sizes.parameters)
    assert sum(eight.always[name] for name in states) == pytest.approx(18 * sizes.parameters / 8)
    assert "gathered weights" in eight.phases["sampling"] and "gathered weights" not in one.phases["sampling"]
    # For 49,152 tokens checkpointing keeps the inputs of 28 layers, 2,048 values of 2 bytes, and one recomputed layer.
    kept = 28 * 2048 * 2 * (32_768 + 8 * 2048)
    assert kept < eight.phases["update"]["activations"] < 2 * kept


def test_what_saves_memory_saves_it() -> None:
    sizes = DecoderSizes(28, 2048, 6144, 2048, 1024, 151_936, tied=True, context=40_960)
    load = replace(LOAD, prompt=16_384, completion=1024, engine="zero3", bytes=2, ranks=2)
    base = estimate(sizes, sizes, load)
    for changed in (
        replace(load, checkpointing=True), replace(load, one_at_a_time=True), replace(load, chunk=128),
        replace(load, offload=True), replace(load, ranks=4), replace(load, replicated=False),
    ):  # fmt: skip
        assert estimate(sizes, sizes, changed).peak < base.peak - 0.1 * GIB
    sharded = replace(load, replicated=False)  # a replicated teacher's head is on every rank anyway
    assert estimate(sizes, sizes, replace(sharded, exact=False)).peak < estimate(sizes, sizes, sharded).peak - 0.1 * GIB
    # One completion at a time: G does not matter to the update.
    few, many = (update(sizes, None, replace(load, one_at_a_time=True, group=group)) for group in (2, 64))
    assert few == many


def test_servers_sample_outside_the_estimate() -> None:
    sizes = DecoderSizes(2, 64, 128, 64, 64, 1000, tied=True, context=4096)
    assert "sampling" in estimate(sizes, None, LOAD).phases
    assert "sampling" not in estimate(sizes, None, replace(LOAD, served=True)).phases


def test_a_teacher_that_reads_less_needs_less() -> None:
    sizes = DecoderSizes(2, 64, 128, 64, 64, 1000, tied=True, context=4096)
    lengths = {
        view: view_length(config_with("+algo=opsd", f"algo.kd.view={view}", "algo.kd.view_tokens=100"), 2048)
        for view in ("evidence", "retrieved", "answer")
    }
    assert lengths["evidence"] == lengths["retrieved"] == 100 and (lengths["answer"] or 0) > 2048
    assert view_length(config_with("+algo=opd"), 2048) is None
    whole, short = (estimate(sizes, sizes, replace(LOAD, view=view)).phases["teacher"] for view in (None, 100))
    assert short["activations"] < whole["activations"] / 2
    average = estimate(sizes, sizes, replace(LOAD, teacher="ema")).always
    assert average["averaged weights"] == 4 * sizes.parameters
    assert "averaged weights" not in estimate(sizes, sizes, replace(LOAD, teacher="ema", offload=True)).always
