"""The group step on one GPU with Qwen3 shapes and random initialisation: exactness first, then time and memory.

    PYTHONPATH=src python experiments/bench/gpu/group_step.py --out results.jsonl
    PYTHONPATH=src python experiments/bench/gpu/group_step.py --device cpu --shapes tiny --prompts 256  # to try it

Needs only torch, transformers and this repository. Each line of the output is one measurement: the GPU's copy and
matmul ceilings; attention of a packed row against a naive softmax; then, per shape and prompt length, the update and
teacher scoring, packed and separate, and decoding with shared and with repeated prompts: median seconds, tokens per
second, model FLOPs utilisation and peak memory. A case that does not fit in memory is a line that says so.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from longctx_rl.data.packing import count, pack
from longctx_rl.objective.spec import Divergence, Objective, Weights
from longctx_rl.objective.terms import objective
from longctx_rl.policy.attention.group import group_attention
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import Anchor
from longctx_rl.policy.shape import TRAINING, ModelShape
from longctx_rl.rollout import SampleRequest
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.types import Completion, Example, GroupSpan, RolloutGroup

EXAMPLE = Example(id="bench", document="", question="", answer="", task="bench")
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512},
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936},
}  # fmt: skip
GROUP, COMPLETION = 8, 256


Variant = tuple[Callable[[], object], float]
"""What to run, and its model FLOPs."""


class Bench:
    """One device, one output file."""

    def __init__(self, device: str, dtype: torch.dtype, repeats: int, out: Path | None) -> None:
        self.device, self.dtype, self.repeats, self.out = torch.device(device), dtype, repeats, out
        self.flops = 0.0
        """FLOPs per second of a large product."""

    def line(self, **values: Any) -> None:
        text = json.dumps({"date": date.today().isoformat(), **values})
        print(text, flush=True)
        if self.out is not None:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        """Median seconds after a warm-up, and the peak of allocated memory above that at the start."""
        cuda = self.device.type == "cuda"
        before, times = torch.cuda.memory_allocated() if cuda else 0, []
        for _ in range(1 + self.repeats):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if cuda else float("nan")
        return {"seconds": round(statistics.median(times[1:]), 5), "peak_gib": round(peak, 3)}

    def compare(
        self, what: str, where: dict[str, Any], variants: dict[str, tuple[Callable[[], object], float]]
    ) -> None:
        """One line per variant: time, memory, tokens per second, share of the matmul ceiling. The first is ours."""
        base = None
        for name, (work, flops) in variants.items():
            try:
                measured: dict[str, Any] = self.measure(work)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                self.line(what=what, variant=name, **where, out_of_memory=True)
                continue
            base = base or measured["seconds"]
            measured |= {
                "ratio": round(measured["seconds"] / base, 3),
                "mfu": round(flops / measured["seconds"] / self.flops, 4),
            }
            self.line(what=what, variant=name, **where, **measured)

    def ceilings(self) -> None:
        size = 8192 if self.device.type == "cuda" else 1024
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        x = torch.empty(size * size * 4, device=self.device)
        y = torch.empty_like(x)
        self.flops = 2 * size**3 / self.measure(lambda: a @ b)["seconds"]
        copied = 2 * x.nbytes / self.measure(lambda: y.copy_(x))["seconds"]
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.line(
            what="ceilings", card=card, tflops=self.flops / 1e12, gbytes_per_s=copied / 1e9, torch=torch.__version__
        )

    def exactness(self) -> None:
        """Attention of a packed row against a naive softmax in float64, output and gradients."""
        spans = (GroupSpan(0, 600, (40, 300, 3)), GroupSpan(943, 90, (33, 64)), GroupSpan(1130, 70, (5,)))
        length = spans[-1].end
        allowed = torch.zeros(length, length, dtype=torch.bool, device=self.device)
        for span in spans:
            start = span.completions_start
            allowed[span.start : start, span.start : start] = True
            for size in span.completion_lens:
                allowed[start : start + size, span.start : span.completions_start] = True
                allowed[start : start + size, start : start + size] = True
                start += size
        allowed &= torch.ones_like(allowed).tril()
        for dtype, limit in ((torch.float32, 1e-4), (self.dtype, 3e-2 if self.dtype != torch.float32 else 1e-4)):
            torch.manual_seed(0)
            ours = [
                torch.randn(1, length, heads, 64, device=self.device, dtype=dtype).transpose(1, 2).requires_grad_()
                for heads in (8, 2, 2)
            ]
            reference = [x.detach().double().requires_grad_() for x in ours]
            output = group_attention(*ours, spans, None)
            key, value = (x.repeat_interleave(4, 1) for x in reference[1:])
            scores = (reference[0] @ key.transpose(2, 3) / 8).masked_fill(~allowed, -torch.inf)
            expected = scores.softmax(-1) @ value
            weight = torch.randn_like(expected)
            actual = (output, *torch.autograd.grad(output, ours, weight.to(dtype)))
            desired = (expected, *torch.autograd.grad(expected, reference, weight))
            wrong = max(
                ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, desired, strict=True)
            )
            self.line(what="attention against naive", dtype=str(dtype), largest_relative_difference=wrong, limit=limit)
            if not wrong < limit:
                sys.exit("packed attention is wrong on this device: nothing else is measured")

    def shape(self, name: str, prompt_len: int) -> None:
        sizes = SHAPES[name]
        where = {
            "shape": name,
            "prompt": prompt_len,
            "completion": COMPLETION,
            "group": GROUP,
            "dtype": str(self.dtype),
        }
        student, teacher = (self._model(sizes, prompt_len, seed) for seed in range(2))
        generator = torch.Generator().manual_seed(0)

        def tokens(number: int) -> tuple[int, ...]:
            return tuple(torch.randint(3, sizes["vocab_size"], (number,), generator=generator).tolist())

        completions = tuple(Completion(tokens(COMPLETION), "", "stop") for _ in range(GROUP))
        advantages = tuple(torch.linspace(-1, 1, GROUP).tolist())
        group = RolloutGroup(EXAMPLE, tokens(prompt_len), completions, advantages=advantages)
        apart = [
            RolloutGroup(EXAMPLE, group.prompt_ids, (completion,), advantages=(value,))
            for completion, value in zip(completions, advantages, strict=True)
        ]
        policy, scorer = Policy(student, chunk=256), FrozenScorer(teacher, chunk=256).freeze()
        shared, single = pack([group], self.device), [pack([alone], self.device) for alone in apart]
        cost = ModelShape.of(student)
        flops = cost.forward(shared.spans, shared.num_loss_tokens)
        head = teacher.get_output_embeddings().weight.detach()
        options: dict[str, Any] = {"estimator": "exact", "temperature": 1.0, "top_k": 1, "head": head}

        def update(rows: list[Any]) -> None:
            for row in rows:
                anchors = {"kd": Anchor(Divergence(), scorer(row, **options))}
                scores = policy(row, temperature=1.0, anchors=anchors)
                spec = Objective(weights=Weights(pg=1.0, kd=0.5))
                torch.autograd.backward(objective(spec, scores, row, count([group]), max_length=1).loss)
            policy.zero_grad()

        self.compare("teacher and update", where, {
            "packed": (lambda: update([shared]), (TRAINING + 1) * flops),
            "apart": (lambda: update(single), (TRAINING + 1) * flops),
        })  # fmt: skip
        self.compare("teacher", where, {
            "packed": (lambda: scorer(shared, **options), flops),
            "apart": (lambda: [scorer(row, **options) for row in single], flops),
        })  # fmt: skip
        self._decoding(student.eval(), group, where, flops)

    def _decoding(self, student: PreTrainedModel, group: RolloutGroup, where: dict[str, Any], flops: float) -> None:
        never = int(student.config.vocab_size)
        sampler = HFSampler(
            _no_text(), temperature=0.0, max_new_tokens=COMPLETION, batch_tokens=10**9, eos_ids=(never,)
        )
        request = SampleRequest(group.prompt_ids, tuple(range(GROUP)))
        ids = torch.tensor([group.prompt_ids], device=self.device)

        @torch.no_grad()
        def repeated() -> Tensor:
            cache = DynamicCache(config=student.config)
            student.base_model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(GROUP)
            rows = ids.expand(GROUP, -1)
            settings = GenerationConfig(
                max_new_tokens=COMPLETION, do_sample=False, pad_token_id=0, disable_compile=True
            )
            output: Tensor = student.generate(
                input_ids=rows, attention_mask=torch.ones_like(rows), past_key_values=cache, generation_config=settings
            )
            return output[:, ids.shape[1] :]

        self.compare("prefill and decoding", where, {
            "shared": (lambda: sampler.sample(student, [request]), flops),
            "repeated": (repeated, flops),
        })  # fmt: skip
        (ours,) = sampler.sample(student, [request])
        same = [list(completion.token_ids) for completion in ours] == repeated().tolist()
        self.line(what="decoding token-identical", **where, identical=same)

    def _model(self, sizes: dict[str, int], prompt_len: int, seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        config = Qwen3Config(
            **sizes, tie_word_embeddings=True, max_position_embeddings=prompt_len + 2 * COMPLETION, pad_token_id=0
        )
        with self.device:
            model = Qwen3ForCausalLM(config).to(self.dtype)
        if self.device.type == "cuda":
            model.train()
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model


def _no_text() -> PreTrainedTokenizerFast:
    """The sampler decodes completions to text, which is not used here."""
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), unk_token="?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="0.6b,1.7b")
    parser.add_argument("--prompts", default="4096,16384,65536")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: --device cpu --shapes tiny --prompts 256 checks the script")
    bench = Bench(
        options.device, torch.bfloat16 if options.device == "cuda" else torch.float32, options.repeats, options.out
    )
    bench.ceilings()
    bench.exactness()
    for name in options.shapes.split(","):
        for prompt in options.prompts.split(","):
            bench.shape(name, int(prompt))


if __name__ == "__main__":
    main()
