"""The GPU benchmark needs only torch, transformers and the repository. Here it runs on the CPU, on a small shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = """
import runpy, sys
sys.argv = ["group_step.py", "--device", "cpu", "--shapes", "tiny", "--prompts", "64", "--repeats", "1"]
runpy.run_path("experiments/bench/gpu/group_step.py", run_name="__main__")
assert not {"hydra", "omegaconf", "deepspeed", "wandb", "datasets"} & set(sys.modules)
"""


@pytest.mark.slow
def test_gpu_bench_on_a_small_shape() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = {(line["what"], line.get("variant")) for line in lines}
    for what, variants in (("teacher and update", "packed apart"), ("prefill and decoding", "shared repeated")):
        assert {(what, variant) for variant in variants.split()} <= kinds
    exact = [line for line in lines if line["what"] == "attention against naive"]
    assert exact and all(line["largest_relative_difference"] < line["limit"] for line in exact)
    assert [line["identical"] for line in lines if line["what"] == "decoding token-identical"] == [True]
