"""Ranks with sharded weights: different requests, equally many forward passes, the same results."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rollout import SampleRequest, sample_seed
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.types import Completion
from packed_builders import tiny_model
from rank_processes import run_ranks

Groups = list[tuple[Completion, ...]]


def request(number: int, length: int, prefix_len: int = 0) -> SampleRequest:
    prompt = (*range(10, 10 + prefix_len), *((7 * number + i) % 30 + 4 for i in range(length - prefix_len)))
    return SampleRequest(prompt, tuple(sample_seed(0, 0, number, i) for i in range(2)), prefix_len)


REQUESTS: tuple[tuple[list[SampleRequest], ...], ...] = (
    # One rank with many prompts, one with none; then prefixes against single tokens; then no rank has any.
    ([request(i, 5 + i) for i in range(5)], []),
    ([request(5, 1)], [request(i, 12, prefix_len=8) for i in range(6, 9)]),
    ([], []),
)


def draw(rank: int, synced: bool) -> tuple[list[Groups], int]:
    """Return a rank's completions in each call, and its number of forward passes."""
    torch.set_num_threads(1)
    model = tiny_model(dtype=torch.float32, vocab_size=64).eval()
    sampler = HFSampler(
        load_tokenizer("mini-student"),
        temperature=1.5,
        max_new_tokens=10,
        batch_tokens=80,
        eos_ids=range(20, 26),
        synced_gpus=synced,
    )
    passes: list[None] = []
    model.base_model.register_forward_pre_hook(lambda module, arguments: passes.append(None))
    return [sampler.sample(model, both[rank]) for both in REQUESTS], len(passes)


def completions(groups: list[Groups]) -> list[Completion]:
    return [one for call in groups for group in call for one in group]


def work(folder: str) -> None:
    dist.init_process_group("gloo")
    torch.save(draw(dist.get_rank(), synced=True), f"{folder}/{dist.get_rank()}.pt")
    dist.destroy_process_group()


def test_two_ranks_in_step(tmp_path: Path) -> None:
    run_ranks(work, str(tmp_path))
    passes = []
    for rank in range(2):
        groups, count = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        alone, fewer = draw(rank, synced=False)
        # A peer's idle passes change no token. Alone, ended rows leave the batch, which changes the last bits.
        for ours, theirs in zip(completions(groups), completions(alone), strict=True):
            assert ours.token_ids == theirs.token_ids
            assert ours.sampler_logprobs == pytest.approx(theirs.sampler_logprobs, abs=1e-5)
        assert [len(part) for part in groups] == [len(both[rank]) for both in REQUESTS]
        assert count >= fewer
        passes.append(count)
    assert passes[0] == passes[1]
