"""One measurement of the group step in its own process, started by experiments/bench/group_step.py.

    python experiments/bench/group_cases.py KIND VARIANT [--prompt 4096 --completion 64 --group 8 ...]

Prints one JSON object. All variants of a kind use the same randomly initialised model, prompts, lengths and threads.
Memory is the peak of resident memory during the measured part, above that at its start, after free memory was returned.
"""

import argparse
import contextlib
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from longctx_rl.config import load as configuration
from longctx_rl.config.compose import config_directory
from longctx_rl.config.schema import Config
from longctx_rl.data.packing import pack
from longctx_rl.engine.local import LocalEngine
from longctx_rl.objective.advantages import group_advantages
from longctx_rl.objective.spec import Divergence
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import Anchor, score_tokens
from longctx_rl.policy.shape import ModelShape
from longctx_rl.rollout import SampleRequest, sample_seed
from longctx_rl.rollout.cache import DecodeCache, Prefill
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.training.anchors import FrozenAnchor
from longctx_rl.training.assembly import make_trainable
from longctx_rl.training.parts import Parts
from longctx_rl.training.state import Stopwatch
from longctx_rl.training.step import global_count, passes, prepare, update
from longctx_rl.types import Completion, Example, HiddenSignal, RolloutGroup

EXAMPLE = Example(id="bench", document="", question="", answer="", task="bench")


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement."""

    prompt: int
    completion: int
    group: int
    layers: int
    width: int
    vocabulary: int
    steps: int
    """Measured steps, after one warm-up step."""


def model(case: Case, seed: int) -> PreTrainedModel:
    """A randomly initialised model with heads of size 32 and an MLP of three times the width."""
    torch.manual_seed(seed)
    heads = max(1, case.width // 32)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=case.vocabulary,
            hidden_size=case.width,
            intermediate_size=3 * case.width,
            num_hidden_layers=case.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            max_position_embeddings=2 * (case.prompt + case.completion),
            tie_word_embeddings=True,
            initializer_range=0.1,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def settings(case: Case, variant: str) -> Config:
    """The program's own configuration of dGRPO for these sizes."""
    overrides = [
        "+algo=dgrpo",
        "engine=local",
        "optim.lr=1e-6",
        "batch.prompts_per_step=1",
        f"batch.micro_batch_tokens={case.prompt + case.completion if variant == 'separate' else 10**9}",
        f"batch.backward={'one_at_a_time' if variant == 'scheduled' else 'packed'}",
        f"rollout.max_new_tokens={case.completion}",
        f"algo.group_size={case.group}",
    ]
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return configuration.load(compose("config", overrides))


def tokens(case: Case, count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, case.vocabulary, (count,), generator=generator).tolist())


def reward(ids: tuple[int, ...]) -> float:
    """A reward that varies within a group."""
    return sum(ids) % 7 / 7


def fixed_group(case: Case) -> RolloutGroup:
    """A fixed group with advantages, which is not sampled."""
    completions = [Completion(tokens(case, case.completion, 1 + i), "", "stop") for i in range(case.group)]
    advantages = group_advantages(
        [reward(completion.token_ids) for completion in completions], baseline="mean", normalize_std=True
    )
    return RolloutGroup(EXAMPLE, tokens(case, case.prompt, 0), tuple(completions), advantages=tuple(advantages))


def apart(group: RolloutGroup) -> list[RolloutGroup]:
    """The group as G groups of one completion, without sharing."""
    return [
        replace(group, completions=(completion,), advantages=(advantage,))
        for completion, advantage in zip(group.completions, group.advantages, strict=True)
    ]


class Memory:
    """Peak resident memory of a block of code. Linux only."""

    def __enter__(self) -> "Memory":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        self.mib = (self._read("VmHWM") - self.before) / 1024

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])


class Ours:
    """Student, teacher and engine as the program builds them."""

    def __init__(self, case: Case, variant: str) -> None:
        self.case, self.variant = case, variant.removesuffix("-gc")
        self.config = settings(case, self.variant)
        chunk = self.config.model.scoring_chunk
        self.policy = Policy(model(case, 0), chunk=chunk)
        make_trainable(self.policy.model, checkpointing=variant.endswith("-gc"))
        self.engine = LocalEngine(self.config, self.policy, 100)
        teacher = FrozenScorer(model(case, 1), chunk=chunk)
        head = teacher.model.get_output_embeddings().weight.detach()
        shape = ModelShape.of(teacher.model)
        self.anchors = {"kd": FrozenAnchor(self.engine.freeze(teacher), Divergence(), head, shape)}
        # The end token is never sampled, so all completions have their full length.
        self.sampler = HFSampler(
            load_tokenizer("mini-student"),
            temperature=1.0,
            max_new_tokens=case.completion,
            batch_tokens=10**9,
            eos_ids=(case.vocabulary,),
        )

    def parts(self) -> Parts:
        """The inputs of a step on given groups."""
        read = {
            "config": self.config,
            "engine": self.engine,
            "anchors": self.anchors,
            "one_at_a_time": self.variant == "scheduled",
        }
        return Parts(**{field.name: read.get(field.name) for field in fields(Parts)})

    def sample(self, step: int) -> RolloutGroup:
        seeds = tuple(sample_seed(0, step, 0, i) for i in range(self.case.group))
        request = SampleRequest(tokens(self.case, self.case.prompt, step), seeds)
        with self.engine.full_weights() as policy:
            (completions,) = self.sampler.sample(policy.model, [request])
        rewards = [reward(completion.token_ids) for completion in completions]
        advantages = group_advantages(rewards, baseline="mean", normalize_std=True)
        return RolloutGroup(EXAMPLE, request.prompt_ids, completions, advantages=tuple(advantages))

    def train(self, group: RolloutGroup, watch: Stopwatch) -> tuple[float, dict[str, float]]:
        """Teacher and update; peak memory of both in MiB."""
        groups, parts = apart(group) if self.variant == "separate" else [group], self.parts()
        with Memory() as memory:
            rows = prepare(parts, groups, watch)
            _, metrics, _ = update(parts, rows, global_count(groups), watch)
        return memory.mib, metrics


def ours_step(case: Case, variant: str) -> dict[str, Any]:
    """Whole steps: sample, reward, teacher, update."""
    ours = Ours(case, variant)
    rows = []
    for step in range(1 + case.steps):
        watch, start = Stopwatch(), time.perf_counter()
        with watch("rollout"):
            group = ours.sample(step)
        mib, _ = ours.train(group, watch)
        rows.append(phases(watch) | {"step": time.perf_counter() - start, "update_mib": mib})
    return means(rows[1:])


def ours_update(case: Case, variant: str) -> dict[str, Any]:
    """Updates on a fixed group, without sampling."""
    ours = Ours(case, variant)
    group, rows = fixed_group(case), []
    for _ in range(1 + case.steps):
        watch = Stopwatch()
        mib, _ = ours.train(group, watch)
        rows.append(phases(watch) | {"update_mib": mib})
    return means(rows[1:])


def costs(case: Case, variant: str) -> dict[str, Any]:
    """Seconds of the most expensive operations of an update on a fixed group, from torch's profiler."""
    ours = Ours(case, variant)
    group = fixed_group(case)
    ours.train(group, Stopwatch())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        watch = Stopwatch()
        ours.train(group, watch)
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in profile.key_averages()}
    largest = sorted(spent, key=lambda name: -spent[name])[:10]
    return phases(watch) | {"total": sum(spent.values()), "operations": {name: spent[name] for name in largest}}


def phases(watch: Stopwatch) -> dict[str, float]:
    """Seconds: ``update`` is forward, backward and optimizer; ``scored_update`` adds the teacher."""
    seconds = {name.removeprefix("time/"): value for name, value in watch.metrics().items()}
    update = seconds["policy"] + seconds["backward"]
    return seconds | {"update": update, "scored_update": update + seconds["teacher"]}


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def trl_step(case: Case, variant: str) -> dict[str, Any]:
    """Whole steps of TRL's trainers. ``-nogc``: without the gradient checkpointing that is TRL's default. ``-batch``:
    the group in one batch, as in TRL's defaults; else one completion at a time, TRL's way to save memory. ``-compact``:
    TRL's loss projects only the completion's positions through the vocabulary if triton is available, and the prompt's
    as well if it is not; here the check for triton always succeeds, so that TRL behaves as it does on a GPU.

    ``update`` is the whole step except sampling; in distillation it includes the teacher's part.
    """
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "ACCELERATE_USE_CPU": "true"}
    import trl.trainer.utils
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    if "-compact" in variant:
        trl.trainer.utils._use_triton = lambda *_: True
    grpo, whole = variant.startswith("trl-grpo"), "-batch" in variant
    repeats = 1 if grpo else case.group
    prompts = [f"{step}" for step in range(1 + case.steps) for _ in range(repeats)]
    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": case.group if whole else 1,
        "gradient_accumulation_steps": 1 if whole else case.group,
        "max_completion_length": case.completion,
        "max_steps": 1 + case.steps,
        "learning_rate": 1e-6,
        "generation_kwargs": {"min_new_tokens": case.completion},
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "gradient_checkpointing": "-nogc" not in variant,
    }
    data = Dataset.from_dict({"prompt": prompts})
    tokenizer = load_tokenizer("mini-student")
    if grpo:
        trainer: Any = GRPOTrainer(
            model(case, 0),
            lambda completion_ids, **_: [reward(tuple(ids)) for ids in completion_ids],
            GRPOConfig(num_generations=case.group, beta=0.0, **options),
            train_dataset=data,
            processing_class=tokenizer,
        )
    else:
        trainer = DistillationTrainer(
            model(case, 0),
            model(case, 1),
            DistillationConfig(**options),
            train_dataset=data,
            processing_class=tokenizer,
        )

    # Prompts of exactly P tokens: the text is the step number, which is replaced by our token ids.
    def tokenize(prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(tokens(case, case.prompt, int(prompt))) for prompt in prompts], None, {}

    trainer._tokenize_prompts = tokenize
    rows: list[dict[str, float]] = []
    row: dict[str, float] = {}
    memory = Memory()
    sample = trainer._generate_and_score_completions

    def sampling(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = sample(*arguments)
        row["rollout"] = row.get("rollout", 0.0) + time.perf_counter() - start
        start = time.perf_counter()
        assert all(int(mask.sum()) == case.completion for mask in result["completion_mask"])
        assert result["prompt_ids"].shape[1] == case.prompt
        memory.__enter__()
        row["bench"] = row.get("bench", 0.0) + time.perf_counter() - start
        return result

    trainer._generate_and_score_completions = sampling

    class Times(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            row.clear()
            row["start"] = time.perf_counter()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            step = time.perf_counter() - row.pop("start") - row.pop("bench")
            memory.__exit__()
            rows.append({**row, "step": step, "update": step - row["rollout"], "update_mib": memory.mib})

    trainer.add_callback(Times())
    trainer.train()
    assert len(rows) == 1 + case.steps, rows
    return means(rows[1:])


def gradient(case: Case, variant: str) -> dict[str, Any]:
    """Loss and gradient of dGRPO on a fixed group, written to ``$GRADIENT_FILE``.

    ``naive``: transformers alone, one sequence at a time, with full logits; KL and policy gradient are written out.
    """
    group = fixed_group(case)
    if variant == "naive":
        student, teacher = model(case, 0), model(case, 1)
        loss = torch.zeros(())
        for completion, advantage in zip(group.completions, group.advantages, strict=True):
            ids = torch.tensor([[*group.prompt_ids, *completion.token_ids]])
            keep = case.completion + 1
            logp = student(ids, logits_to_keep=keep, use_cache=False).logits[0, :-1].log_softmax(-1)
            with torch.no_grad():
                logq = teacher(ids, logits_to_keep=keep, use_cache=False).logits[0, :-1].log_softmax(-1)
            drawn = logp.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            ratio = (drawn - drawn.detach()).exp()
            kl = (logp.exp() * (logp - logq)).sum(-1)
            part = (-ratio * advantage + 0.5 * kl).mean() / case.group
            torch.autograd.backward(part)
            loss += part.detach()
        flat = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        value = loss.item()
    else:
        ours = Ours(case, variant)
        groups, watch = apart(group) if variant == "separate" else [group], Stopwatch()
        parts, total, value = ours.parts(), global_count(groups), 0.0
        rows = prepare(parts, groups, watch)
        for row in rows:
            for _, _, output in passes(parts, row, ours.config.algo, total, watch, last=row is rows[-1]):
                value += output.sums["loss/total"].item()
        flat = ours.engine.gradient()
    torch.save(flat, os.environ["GRADIENT_FILE"])
    return {"loss": value, "norm": flat.norm().item()}


def decode(case: Case, variant: str) -> dict[str, Any]:
    """Greedy decoding of one group: ``shared`` is ours, ``repeated`` uses transformers' cache repeated G times."""
    student, prompt = model(case, 0).eval(), tokens(case, case.prompt, 0)
    rows: list[dict[str, Any]] = []
    for _ in range(1 + case.steps):
        with Memory() as memory, torch.no_grad():
            result = decode_shared(case, student, prompt) if variant == "shared" else repeated(case, student, prompt)
        rows.append({"decode_mib": memory.mib} | result)
    ids = rows[-1]["tokens"]
    return means([{k: v for k, v in row.items() if k != "tokens"} for row in rows[1:]]) | {"tokens": ids}


def decode_shared(case: Case, student: PreTrainedModel, prompt: tuple[int, ...]) -> dict[str, Any]:
    sampler = HFSampler(
        load_tokenizer("mini-student"),
        temperature=0.0,
        max_new_tokens=case.completion,
        batch_tokens=10**9,
        eos_ids=(case.vocabulary,),
    )
    spent, kept = [0.0], []
    prefill, init = Prefill.run, DecodeCache.__init__

    def timed(self: Prefill, request: SampleRequest) -> Any:
        start = time.perf_counter()
        result = prefill(self, request)
        spent[0] += time.perf_counter() - start
        return result

    def seen(self: DecodeCache, *arguments: Any) -> None:
        init(self, *arguments)
        kept.append(self)

    with patch.object(Prefill, "run", timed), patch.object(DecodeCache, "__init__", seen):
        start = time.perf_counter()
        (group,) = sampler.sample(student, [SampleRequest(prompt, tuple(range(case.group)))])
        whole = time.perf_counter() - start
    (cache,) = kept
    # The cache of the prefill is empty at this point.
    held = [x for states in cache.prompts for x in (states.keys, states.values)] + [
        x for layer in cache.layers for x in layer.room
    ]
    return {
        "prefill": spent[0],
        "decode": whole - spent[0],
        "kv_mib": sum(x.nbytes for x in held) / 2**20,
        "tokens": [list(completion.token_ids) for completion in group],
    }


def repeated(case: Case, student: PreTrainedModel, prompt: tuple[int, ...]) -> dict[str, Any]:
    start = time.perf_counter()
    cache = DynamicCache(config=student.config)
    student.base_model(input_ids=torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
    prefilled = time.perf_counter()
    cache.batch_repeat_interleave(case.group)
    ids = torch.tensor([prompt]).expand(case.group, -1)
    output: Any = student.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        generation_config=GenerationConfig(
            max_new_tokens=case.completion, do_sample=False, pad_token_id=0, disable_compile=True
        ),
    )
    done = time.perf_counter()
    held = [x for layer in cache.layers for x in (layer.keys, layer.values)]
    return {
        "prefill": prefilled - start,
        "decode": done - prefilled,
        "kv_mib": sum(x.nbytes for x in held if x is not None) / 2**20,
        "tokens": output[:, case.prompt :].tolist(),
    }


def teacher(case: Case, variant: str) -> dict[str, Any]:
    """Scores of a fixed group: ``packed``, or one full forward pass per completion."""
    group, frozen = fixed_group(case), model(case, 1)
    scorer = FrozenScorer(frozen, chunk=1024).freeze() if variant == "packed" else None
    rows, sums = [], Tensor()
    for _ in range(1 + case.steps):
        with Memory() as memory, torch.no_grad():
            start = time.perf_counter()
            if scorer is not None:
                row = pack([group], torch.device("cpu"))
                signal: Any = scorer(row, estimator="k3", temperature=1.0, top_k=1, head=None)
                sums = torch.stack([part.sum() for part in signal.logprobs.split(case.completion)])
            else:
                scores = []
                for completion in group.completions:
                    ids = torch.tensor([[*group.prompt_ids, *completion.token_ids]])
                    logits = frozen(ids, logits_to_keep=case.completion + 1, use_cache=False).logits[0, :-1]
                    logp = logits.log_softmax(-1)
                    scores.append(logp.gather(1, torch.tensor(completion.token_ids)[:, None]).sum())
                sums = torch.stack(scores)
            seconds = time.perf_counter() - start
        rows.append({"teacher": seconds, "teacher_mib": memory.mib})
    return means(rows[1:]) | {"logprobs": sums.tolist()}


def vocabulary(case: Case, variant: str) -> dict[str, Any]:
    """Exact reverse KL with gradient over ``group * completion`` loss tokens, chunk by chunk."""
    torch.manual_seed(0)
    count, width = case.group * case.completion, case.width
    head = torch.nn.Linear(width, case.vocabulary, bias=False)
    other = torch.randn(case.vocabulary, width) / width**0.5
    hidden, of_teacher = torch.randn(count, width, requires_grad=True), torch.randn(count, width)
    targets = torch.randint(case.vocabulary, (count,))
    with Memory() as memory:
        start = time.perf_counter()
        anchors = {"kd": Anchor(Divergence(), HiddenSignal(of_teacher, other))}
        scores = score_tokens(head, hidden, targets, temperature=1.0, chunk=int(variant), anchors=anchors)
        torch.autograd.backward(scores.divergences["kd"].mean())
        seconds = time.perf_counter() - start
    # Compare with the definition on some tokens.
    assert hidden.grad is not None
    some = torch.arange(0, count, max(1, count // 16))
    leaf = hidden.detach()[some].double().requires_grad_()
    logp = (leaf @ head.weight.detach().double().T).log_softmax(-1)
    logq = (of_teacher[some].double() @ other.double().T).log_softmax(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1)
    torch.autograd.backward(kl.sum() / count)
    assert leaf.grad is not None
    wrong = (hidden.grad[some].double() - leaf.grad).abs().max() / leaf.grad.abs().max()
    return {
        "seconds": seconds,
        "mib": memory.mib,
        "kl_error": (scores.divergences["kd"][some].detach().double() - kl.detach()).abs().max().item(),
        "gradient_error": wrong.item(),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send output of other libraries to stderr, because stdout carries the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("step", "update", "costs", "gradient", "decode", "teacher", "vocabulary"))
    parser.add_argument("variant")
    for name, value in (("prompt", 4096), ("completion", 64), ("group", 8), ("layers", 4), ("width", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = vars(parser.parse_args())
    kind, variant = options.pop("kind"), options.pop("variant")
    torch.set_num_threads(options.pop("threads"))
    case = Case(**options)
    run = {
        "step": trl_step if variant.startswith("trl") else ours_step,
        "update": ours_update,
        "costs": costs,
        "gradient": gradient,
        "decode": decode,
        "teacher": teacher,
        "vocabulary": vocabulary,
    }
    with quiet():
        result = run[kind](case, variant)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
