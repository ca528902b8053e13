"""Packing of groups into rows, the batch layout of every method."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from longctx_rl.types import Completion, Denominators, GroupSpan, PackedGroups, RolloutGroup


def count(groups: Sequence[RolloutGroup]) -> Denominators:
    """Count the sequences and loss tokens of this rank's groups; sum over ranks before use."""
    lens = [completion.num_loss_tokens for group in groups for completion in group.completions]
    return Denominators(num_sequences=len(lens), num_tokens=sum(lens))


def plan_rows(groups: Sequence[RolloutGroup], budget: int) -> list[list[int]]:
    """Return the group indices of each row, in order: a row is closed before it would exceed ``budget`` tokens.

    A single group larger than the budget gets its own row. Groups are deliberately not reordered by length: their
    order, and hence the result, does not depend on the budget.
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
    """Concatenate groups in one row. See ``PackedGroups`` for the layout.

    Raises:
        ValueError: the first token of a completion is a loss token, but there is no prompt token before it.
    """
    row = _Row()
    for group in groups:
        row.add(group)

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    sampled = len(row.sampler_logprobs) == len(row.targets) and bool(row.targets)
    return PackedGroups(
        input_ids=integers(row.input_ids),
        position_ids=integers(row.positions),
        group_ids=integers(row.group_ids),
        segment_ids=integers(row.segments),
        spans=tuple(row.spans),
        source_index=integers(row.sources),
        target_ids=integers(row.targets),
        sequence_ids=integers(row.sequence_ids),
        sequence_lens=integers(row.sequence_lens),
        advantages=floats(row.advantages),
        sampler_logprobs=floats(row.sampler_logprobs) if sampled else None,
    )


def viewed(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Return the groups as the teacher reads them: the same loss tokens in the same order, after its own prompts.

    A completion that begins with its question, without loss, leaves it out, since its view contains it.
    """
    result: list[RolloutGroup] = []
    for group in groups:
        if len(group.views) <= 1:
            result.append(replace(group, prompt_ids=group.views[0]) if group.views else group)
            continue
        for prompt_ids, completion in zip(group.views, group.completions, strict=True):
            mask = completion.loss_mask
            asked = 0 if mask is None else mask.index(True)
            answer = replace(
                completion, token_ids=completion.token_ids[asked:], loss_mask=None if mask is None else mask[asked:]
            )
            result.append(RolloutGroup(group.example, prompt_ids, (answer,)))
    return result


@dataclass(slots=True)
class _Row:
    """The fields of a packed row as lists, in the order of ``PackedGroups``."""

    input_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    group_ids: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    spans: list[GroupSpan] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    sequence_ids: list[int] = field(default_factory=list)
    sequence_lens: list[int] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    sampler_logprobs: list[float] = field(default_factory=list)

    def add(self, group: RolloutGroup) -> None:
        """Append the prompt, then every completion."""
        start, prompt_len = len(self.input_ids), len(group.prompt_ids)
        self.spans.append(GroupSpan(start, prompt_len, tuple(len(c.token_ids) for c in group.completions)))
        self.input_ids += group.prompt_ids
        self.positions += range(prompt_len)
        self.segments += [0] * prompt_len
        for index, completion in enumerate(group.completions):
            advantage = group.advantages[index] if group.advantages else 0.0
            self._add_loss_tokens(completion, start, prompt_len, advantage, group.example.id)
            length = len(completion.token_ids)
            self.input_ids += completion.token_ids
            self.positions += range(prompt_len, prompt_len + length)
            self.segments += [index + 1] * length
            self.sequence_lens.append(completion.num_loss_tokens)
        self.group_ids += [len(self.spans) - 1] * (len(self.input_ids) - start)

    def _add_loss_tokens(
        self, completion: Completion, start: int, prompt_len: int, advantage: float, example_id: str
    ) -> None:
        """Append the loss tokens of a completion that starts at the current end of the row."""
        first = len(self.input_ids)
        for offset, token in enumerate(completion.token_ids):
            if completion.loss_mask is not None and not completion.loss_mask[offset]:
                continue
            if offset == 0 and prompt_len == 0:
                raise ValueError(f"example {example_id} has no prompt token to predict its first token from")
            self.sources.append(first + offset - 1 if offset else start + prompt_len - 1)
            self.targets.append(token)
            self.sequence_ids.append(len(self.sequence_lens))
            self.advantages.append(advantage)
            if completion.sampler_logprobs is not None:
                self.sampler_logprobs.append(completion.sampler_logprobs[offset])


def empty_row(device: torch.device) -> PackedGroups:
    """Return a row without loss tokens, which a rank with fewer rows than others runs so that collectives match."""
    span = GroupSpan(0, 1, ())
    token, empty = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    return PackedGroups(
        input_ids=token,
        position_ids=token,
        group_ids=token,
        segment_ids=token,
        spans=(span,),
        source_index=empty,
        target_ids=empty,
        sequence_ids=empty,
        sequence_lens=empty,
        advantages=torch.zeros(0, dtype=torch.float32, device=device),
    )
