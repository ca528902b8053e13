"""What only a GPU can show."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longctx_rl.runs.metrics import read_metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("algo", ["sft", "kd", "grpo", "opd", "dgrpo"])
@pytest.mark.parametrize("engine", ["local", "zero3"])
def test_a_gpu_takes_the_steps_of_a_cpu(algo: str, engine: str, tmp_path: Path) -> None:
    """The shipped pair in float32. Samples may differ where two tokens are equally likely; recorded answers do not."""
    rows = {}
    for device in ("cpu", "cuda"):
        settings = ["+experiment=smoke", "eval=none", "logging=none", f"runs_root={tmp_path}"]
        settings += [f"experiment_name={device}", f"engine={engine}", f"engine.device={device}"]
        command = [sys.executable, "-m", "longctx_rl", f"+algo={algo}", *settings]
        subprocess.run(command, check=True, timeout=240)
        (metrics,) = tmp_path.glob(f"{device}/*/metrics.jsonl")
        rows[device] = [row for row in read_metrics(metrics) if "loss/total" in row]
    for cpu, cuda in zip(rows["cpu"], rows["cuda"], strict=True):
        assert cuda["grad/norm"] is not None
        if algo in ("sft", "kd"):
            assert cuda["loss/total"] == pytest.approx(cpu["loss/total"], rel=1e-4)
            assert cuda["grad/norm"] == pytest.approx(cpu["grad/norm"], rel=1e-3)
