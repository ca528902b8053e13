"""From groups to packed rows: the one batch layout of all methods."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longctx_rl.types import Denominators, GroupSpan, PackedGroups, RolloutGroup


def count(groups: Sequence[RolloutGroup]) -> Denominators:
    """Sequences and loss tokens of this rank's groups; add over ranks before use."""
    lens = [completion.num_loss_tokens for group in groups for completion in group.completions]
    return Denominators(num_sequences=len(lens), num_tokens=sum(lens))


def plan_rows(groups: Sequence[RolloutGroup], budget: int) -> list[list[int]]:
    """Which groups share a row, in order: a row is closed before it would exceed ``budget`` tokens.

    A single group larger than the budget gets a row of its own. Long and short groups are not mixed on purpose:
    order, and with it the result, stays independent of the budget.
    """
    rows: list[list[int]] = []
    used = 0
    for index, group in enumerate(groups):
        if not rows or used + group.num_tokens > budget:
            rows.append([])
            used = 0
        rows[-1].append(index)
        used += group.num_tokens
    return rows


def pack(groups: Sequence[RolloutGroup], device: torch.device) -> PackedGroups:
    """Lay groups end to end in one row. See ``PackedGroups`` for the layout.

    Raises:
        ValueError: a completion whose first token is trained on has no prompt token before it.
    """
    input_ids: list[int] = []
    positions: list[int] = []
    group_ids: list[int] = []
    segments: list[int] = []
    spans: list[GroupSpan] = []
    sources: list[int] = []
    targets: list[int] = []
    sequence_ids: list[int] = []
    sequence_lens: list[int] = []
    advantages: list[float] = []
    sampler_logprobs: list[float] = []
    for number, group in enumerate(groups):
        start, prompt_len = len(input_ids), len(group.prompt_ids)
        lens = tuple(len(completion.token_ids) for completion in group.completions)
        spans.append(GroupSpan(start, prompt_len, lens))
        input_ids += group.prompt_ids
        positions += range(prompt_len)
        segments += [0] * prompt_len
        for index, completion in enumerate(group.completions):
            first = len(input_ids)
            for offset, token in enumerate(completion.token_ids):
                if completion.loss_mask is not None and not completion.loss_mask[offset]:
                    continue
                if offset == 0 and prompt_len == 0:
                    raise ValueError(f"example {group.example.id} has no prompt token to predict its first token from")
                sources.append(first + offset - 1 if offset else start + prompt_len - 1)
                targets.append(token)
                sequence_ids.append(len(sequence_lens))
                advantages.append(group.advantages[index] if group.advantages else 0.0)
                if completion.sampler_logprobs is not None:
                    sampler_logprobs.append(completion.sampler_logprobs[offset])
            input_ids += completion.token_ids
            positions += range(prompt_len, prompt_len + lens[index])
            segments += [index + 1] * lens[index]
            sequence_lens.append(completion.num_loss_tokens)
        group_ids += [number] * (len(input_ids) - start)

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    sampled = len(sampler_logprobs) == len(targets) and bool(targets)
    return PackedGroups(
        input_ids=integers(input_ids),
        position_ids=integers(positions),
        group_ids=integers(group_ids),
        segment_ids=integers(segments),
        spans=tuple(spans),
        source_index=integers(sources),
        target_ids=integers(targets),
        sequence_ids=integers(sequence_ids),
        sequence_lens=integers(sequence_lens),
        advantages=floats(advantages),
        sampler_logprobs=floats(sampler_logprobs) if sampled else None,
    )


def empty_row(device: torch.device) -> PackedGroups:
    """A row without loss tokens: what a rank runs when it has fewer rows than another, so that collectives match."""
    span = GroupSpan(0, 1, ())
    one, none = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    return PackedGroups(
        input_ids=one,
        position_ids=one,
        group_ids=one,
        segment_ids=one,
        spans=(span,),
        source_index=none,
        target_ids=none,
        sequence_ids=none,
        sequence_lens=none,
        advantages=torch.zeros(0, dtype=torch.float32, device=device),
    )
