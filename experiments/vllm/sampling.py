"""Tokens per second of sampling with transformers and with vLLM, side by side, and what the server costs beside them.

    python experiments/vllm/sampling.py         # about 30 minutes on 2 cores; after make vllm

Two models: the mini student, and a Llama of 135 million random parameters in the shape of SmolLM2-135M. Each is sampled
at two prompt lengths and two group sizes, 128 tokens each, with one thread on either side, in alternating rounds; the
best of the rounds counts. Writes sampling.jsonl.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from longctx_rl.config.compose import composed
from longctx_rl.engine.local import LocalEngine
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import SampleRequest
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.rollout.server import Servers
from longctx_rl.rollout.vllm import VllmSampler

HERE = Path(__file__).parent
RESULTS = HERE / "sampling.jsonl"
PYTHON = HERE.parents[1] / ".venv-vllm" / "bin" / "python"
PROMPTS, LENGTHS, GROUPS, TOKENS = 2, (1024, 3900), (4, 16), 128


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def seconds(sampler: Any, requests: list[SampleRequest], *before: Any) -> tuple[float, int]:
    start = time.perf_counter()
    groups = sampler.sample(*before, requests)
    return time.perf_counter() - start, sum(len(completion.token_ids) for group in groups for completion in group)


def measure(name: str, model: PreTrainedModel, rounds: int, root: Path) -> list[dict[str, Any]]:
    dispatch.install(model)
    settings = ("+algo=grpo", "rollout=vllm", "engine=local", f"rollout.python={PYTHON}", "eval=none", "logging=none")
    config = composed([*settings, f"run_dir={root}"])
    tokenizer, rows = load_tokenizer("mini-student"), model.config.vocab_size
    engine = LocalEngine(config, Policy(model, chunk=64), 10)
    start = time.perf_counter()
    rollout = replace(config.rollout, server_args=("--max-num-batched-tokens", "8192"))
    servers = Servers(rollout, engine, tokenizer, root, 4096)
    servers.sync()
    lines: list[dict[str, Any]] = [{"model": name, "start_seconds": round(time.perf_counter() - start, 1)}]
    syncs = []
    for number in range(1, 4):
        engine._progress.updates = number
        start = time.perf_counter()
        servers.sync()
        syncs.append(time.perf_counter() - start)
    lines[0]["weight_sync_seconds"] = round(min(syncs), 3)
    end = {"temperature": 1.0, "max_new_tokens": TOKENS, "eos_ids": (rows - 1,)}
    vllm = VllmSampler(servers, tokenizer, rows=rows, **end)
    hf = HFSampler(tokenizer, batch_tokens=10**6, **end)
    for length in LENGTHS:
        for group in GROUPS:
            best: dict[str, float] = {}
            for number in range(rounds):
                # Other prompts in each round, so that nothing is cached from the one before.
                draw = torch.Generator().manual_seed(1000 * number + length + group)
                prompts = torch.randint(5, 1000, (PROMPTS, length), generator=draw).tolist()
                requests = [
                    SampleRequest(tuple(ids), tuple(range(place * 10**6, place * 10**6 + group)))
                    for place, ids in enumerate(prompts)
                ]
                for sampler, (spent, tokens) in {
                    "hf": seconds(hf, requests, model),
                    "vllm": seconds(vllm, requests),
                }.items():
                    best[sampler] = max(best.get(sampler, 0.0), tokens / spent)
            line = {"model": name, "prompt": length, "group": group, "prompts": PROMPTS, "new_tokens": TOKENS}
            lines.append(line | {f"{key}_tokens_per_second": round(value, 1) for key, value in best.items()})
            lines[-1]["vllm_over_hf"] = round(best["vllm"] / best["hf"], 2)
            print(json.dumps(lines[-1]), flush=True)
    servers.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["mini-student", "llama-135m"])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the server
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model = llama() if name == "llama-135m" else load_model(name)
            lines += measure(name, model.eval(), options.rounds, Path(folder))
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
