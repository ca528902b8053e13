"""Train a mini teacher of twice the depth, which otherwise equals mini-teacher.

    python experiments/mini_models/larger_teacher.py [--root runs]     # make larger-teacher

It starts as the shipped student with each layer followed by a copy that initially adds nothing, and is trained by the
stage that made the shipped teacher (conf/experiment/mini/teacher.yaml). An interrupted run continues, and a finished
one is not repeated.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import longctx_rl.shipped_models

STUDENT = Path(longctx_rl.shipped_models.__file__).parent / "mini-student"
START, RUN = Path("mini-models", "deeper-student"), Path("mini-models", "larger-teacher")


def deepen(model: PreTrainedModel) -> PreTrainedModel:
    """A model of twice the layers and the same function.

    A copied layer writes nothing to the residual stream, because the last projections of its attention and its MLP are
    zero. Training changes these first.
    """
    kinds = [kind for kind in model.config.layer_types for _ in range(2)]
    config = model.config.to_dict() | {"num_hidden_layers": len(kinds), "layer_types": kinds}
    deeper: PreTrainedModel = AutoModelForCausalLM.from_config(type(model.config).from_dict(config))
    weights = {}
    for name, value in model.state_dict().items():
        before, separator, after = name.partition("layers.")
        if not separator:
            weights[name] = value
            continue
        layer, _, part = after.partition(".")
        last = part in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
        weights[f"{before}layers.{2 * int(layer)}.{part}"] = value
        weights[f"{before}layers.{2 * int(layer) + 1}.{part}"] = torch.zeros_like(value) if last else value
    deeper.load_state_dict(weights)
    return deeper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs", type=Path, help="folder of the runs")
    parser.add_argument("overrides", nargs="*", help="settings, such as engine.threads=1")
    arguments = parser.parse_args()
    start, run = arguments.root / START, arguments.root / RUN
    AutoTokenizer.from_pretrained(STUDENT).save_pretrained(start)
    deepen(AutoModelForCausalLM.from_pretrained(STUDENT)).save_pretrained(start)
    command = [sys.executable, "-m", "longctx_rl", "+algo=sft", "+experiment=mini/teacher", f"model.student={start}"]
    command += [f"runs_root={arguments.root}", f"run_dir={run}", "resume=true", *arguments.overrides]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
