"""How many tokens the last layer's MLP sees. That its results are right is what test_packed_groups.py shows."""

import pytest
import torch
from torch import Tensor, nn

from longctx_rl.data.packing import empty_row, pack
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.attention.last_layer import tokens_read
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import SampleRequest
from longctx_rl.rollout.cache import Prefill
from packed_builders import CPU, group, tiny_model

GROUPS = [group(9, [4, 7, 2], 1), group(3, [5], 2)]


def mlp_tokens(model: nn.Module, layer: int) -> list[int]:
    """Filled with the tokens of each call of a layer's MLP."""
    seen: list[int] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].shape[1])

    model.model.layers[layer].mlp.gate_proj.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_last_layer_runs_on_completions_and_last_prompt_tokens(checkpointing: bool) -> None:
    model = tiny_model().train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model, chunk=4)
    Policy(model, chunk=4)  # a model is wrapped more than once: the hooks are there once
    first, last = mlp_tokens(model, 0), mlp_tokens(model, -1)
    policy(pack(GROUPS, CPU), temperature=1.0).logprobs.sum().backward()
    calls = 1 + checkpointing
    assert first == [9 + 13 + 3 + 5] * calls
    assert last == [1 + 13 + 1 + 5] * calls


def test_prefill_leaves_the_last_mlp_out() -> None:
    model = tiny_model()
    dispatch.install(model)
    first, last = mlp_tokens(model, 0), mlp_tokens(model, -1)
    with torch.no_grad():
        Prefill(model).run(SampleRequest(tuple(range(1, 8)), (0,)))
    assert (sum(first), sum(last)) == (6, 0)


def test_plain_forward_sees_every_token() -> None:
    model = tiny_model()
    dispatch.install(model)
    last = mlp_tokens(model, -1)
    Policy(model, chunk=4).hidden(pack(GROUPS, CPU))
    model(torch.arange(1, 8)[None])
    assert last == [20, 7]


def test_an_empty_row_meets_every_parameter() -> None:
    """A sharded backward pass waits for the gradient of each."""
    assert tokens_read(empty_row(CPU).spans) == (slice(0, 1),)
