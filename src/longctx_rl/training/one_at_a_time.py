"""The gradient of a group, one completion at a time, in the memory of one completion. See ``prompt_states``."""

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from longctx_rl.data.packing import empty_row
from longctx_rl.engine import Engine
from longctx_rl.policy.attention.prompt_states import PromptPass, PromptStates, Role, add_gradient, leaf
from longctx_rl.policy.scoring import Anchor, part_of
from longctx_rl.types import GroupSpan, PackedGroups, TokenScores


@dataclass(frozen=True, slots=True)
class Piece:
    """One completion of a packed group, in the layout of ``PromptPass`` "read"."""

    packed: PackedGroups
    anchors: dict[str, Anchor]


def split(packed: PackedGroups, anchors: dict[str, Anchor], count: int, score_pieces: int) -> tuple[Piece, ...]:
    """Split a row of one group into its ``count`` completions, or an empty row into as many that score nothing.

    Args:
        score_pieces: number of calls of the head for each completion, the same on all ranks.
    """
    if not packed.num_sequences:
        nothing = replace(empty_row(packed.input_ids.device), score_pieces=score_pieces)
        none = {name: Anchor(anchor.divergence, part_of(anchor.signal, slice(0))) for name, anchor in anchors.items()}
        return (Piece(nothing, none),) * count
    (span,) = packed.spans
    assert len(span.completion_lens) == count and span.prompt_len
    token_ends = list(accumulate(packed.sequence_lens.tolist()))
    ends = [span.completions_start + end for end in accumulate(span.completion_lens)]
    pieces = []
    for index, length in enumerate(span.completion_lens):
        start, tokens = ends[index] - length, slice(token_ends[index - 1] if index else 0, token_ends[index])
        own, source = slice(start, start + length), packed.source_index[tokens]

        def of(x: Tensor | None, tokens: slice = tokens) -> Tensor | None:
            return None if x is None else x[tokens]

        piece = PackedGroups(
            input_ids=packed.input_ids[own],
            position_ids=packed.position_ids[own],
            group_ids=packed.group_ids[own],
            segment_ids=packed.segment_ids[own],
            spans=(GroupSpan(0, 0, (length,)),),
            # Index 0 is the prompt's last token; the completion's own tokens follow.
            source_index=torch.where(source < start, 0, source - start + 1),
            target_ids=packed.target_ids[tokens],
            sequence_ids=torch.zeros_like(packed.sequence_ids[tokens]),
            sequence_lens=packed.sequence_lens[index : index + 1],
            advantages=packed.advantages[tokens],
            sampler_logprobs=of(packed.sampler_logprobs),
            old_logprobs=of(packed.old_logprobs),
            score_pieces=score_pieces,
        )
        signals = {name: Anchor(anchor.divergence, part_of(anchor.signal, tokens)) for name, anchor in anchors.items()}
        pieces.append(Piece(piece, signals))
    return tuple(pieces)


def prompt_of(packed: PackedGroups) -> PackedGroups:
    """Return the prompt of a row of one group, without loss tokens."""
    if not packed.num_sequences:
        return packed
    (span,) = packed.spans
    own = slice(span.start, span.completions_start)
    return replace(
        empty_row(packed.input_ids.device),
        input_ids=packed.input_ids[own],
        position_ids=packed.position_ids[own],
        group_ids=packed.group_ids[own],
        segment_ids=packed.segment_ids[own],
        spans=(GroupSpan(0, span.prompt_len, ()),),
    )


class OneAtATime:
    """The passes over one group: for each piece, ``score`` and its backward pass; then that of ``prompt_loss``."""

    def __init__(self, engine: Engine, packed: PackedGroups, temperature: float) -> None:
        self.engine = engine
        self.temperature = temperature
        self.prompt = prompt_of(packed)
        self.states = PromptStates()
        with torch.no_grad():
            last = self._pass("record")
        self.states.hidden = leaf(last)

    def score(self, piece: Piece) -> TokenScores:
        """Score one completion. Its backward pass must come before the next completion is scored."""
        scores: TokenScores = self.engine.forward(
            piece.packed,
            temperature=self.temperature,
            anchors=piece.anchors,
            prompt=PromptPass("read", self.states),
        )
        return scores

    def prompt_loss(self) -> Tensor:
        """Return a zero whose backward pass adds the gradient that all completions send to the prompt.

        That gradient already passed through the engine's backward pass and has its scale, so it enters below the loss.
        """
        assert self.states.hidden is not None
        return 0.0 * add_gradient(self._pass("return"), self.states.hidden).sum()

    def _pass(self, role: Role) -> Tensor:
        last: Tensor = self.engine.forward(
            self.prompt, temperature=self.temperature, prompt=PromptPass(role, self.states)
        )
        return last
