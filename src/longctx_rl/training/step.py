"""From groups to an optimizer step: packed rows, signals of the anchors, the objective, the gradient."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longctx_rl.data.packing import count
from longctx_rl.engine import StepOutcome, distributed
from longctx_rl.objective.spec import Objective
from longctx_rl.objective.terms import LossOutput, objective
from longctx_rl.policy.scoring import Anchor, num_pieces
from longctx_rl.policy.shape import step_flops
from longctx_rl.rollout import agreement
from longctx_rl.training.anchors import anchor_signal, refreshed
from longctx_rl.training.groups import packed_in_step
from longctx_rl.training.one_at_a_time import OneAtATime, Piece, split
from longctx_rl.training.parts import Parts
from longctx_rl.training.state import Stopwatch, TrainState
from longctx_rl.types import Denominators, GroupSpan, PackedGroups, RolloutGroup, TokenScores


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """A packed row and everything that stays fixed while the policy is updated on it."""

    packed: PackedGroups
    anchors: dict[str, Anchor]
    pieces: tuple[Piece, ...] = ()
    """The completions of the row's group, if the gradient is computed one completion at a time."""
    viewed: PackedGroups | None = None
    """The row as the teacher reads it. None: it reads the student's."""

    def read_by(self, anchor: str) -> PackedGroups:
        """The row as the teacher (``kd``) or the reference (``ref``) reads it."""
        return self.packed if self.viewed is None or anchor != "kd" else self.viewed


def global_count(groups: Sequence[RolloutGroup]) -> Denominators:
    """Count sequences and loss tokens over all ranks."""
    local = count(groups)
    total = distributed.all_reduce_sum({"sequences": local.num_sequences, "tokens": local.num_tokens})
    return Denominators(int(total["sequences"]), int(total["tokens"]))


def prepare(parts: Parts, groups: Sequence[RolloutGroup], watch: Stopwatch) -> list[PreparedRow]:
    """Pack this rank's groups and score them once with every frozen model.

    All ranks return the same number of rows, padded with empty ones. If the gradient is computed one completion at a
    time, each group is a row of its own. Old log-probs are recorded only if the policy is updated more than once on the
    same rollouts; in the first update they equal the policy's own.
    """
    config, engine = parts.config, parts.engine
    row_tokens = 0 if parts.one_at_a_time else config.batch.micro_batch_tokens
    temperature = config.rollout.temperature
    with watch("teacher"):
        anchors = {name: refreshed(anchor, engine) for name, anchor in parts.anchors.items()}
    rows = []
    for packed, viewed in packed_in_step(groups, row_tokens, config.model.scoring_chunk, engine.device):
        signals: dict[str, Anchor] = {}
        for name, anchor in anchors.items():
            with watch("teacher"):
                signals[name] = anchor_signal(anchor, viewed or packed if name == "kd" else packed, temperature)
        if config.algo.updates_per_rollout > 1:
            with watch("policy"), torch.no_grad():
                old: TokenScores = engine.forward(packed, temperature=temperature)
            packed = replace(packed, old_logprobs=old.logprobs)
        pieces: tuple[Piece, ...] = ()
        if parts.one_at_a_time:
            # Every rank calls the head as often as the longest possible completion needs.
            calls = num_pieces(config.rollout.max_new_tokens, config.model.scoring_chunk)
            pieces = split(packed, signals, config.algo.group_size, calls)
        rows.append(PreparedRow(packed, signals, pieces, viewed))
    return rows


def update(
    parts: Parts,
    rows: Sequence[PreparedRow],
    denominators: Denominators,
    watch: Stopwatch,
    *,
    compare_terms: bool = False,
    spent: float = 0.0,
) -> tuple[StepOutcome, dict[str, float], Tensor | None]:
    """Take one optimizer step over all rows of all ranks.

    Args:
        compare_terms: compute the gradient term by term, in one pass over the rows for each, and measure the cosine of
            the policy gradient and the teacher's. The step is the same up to rounding.
        spent: spent share of the budget, for the learning-rate schedule.

    Returns:
        The engine's outcome; metrics reduced over rows and ranks; and log p(student) - log p(teacher) of each loss
        token of this rank, [T], in the order of ``rows``, or None without a teacher.
    """
    algo, max_length = parts.config.algo, parts.config.rollout.max_new_tokens
    sums: dict[str, float] = {}
    maxima: dict[str, float] = {}
    terms = algo.split() if compare_terms else (algo,)
    gradients: list[Tensor] = []
    gaps: list[Tensor] = []
    for term in terms:
        for index, row in enumerate(rows):
            last = index == len(rows) - 1
            for packed, scores, output in passes(parts, row, term, denominators, watch, last=last):
                if term is not terms[-1]:
                    continue
                if "logprob_gap" in scores.diagnostics:
                    gaps.append(-scores.diagnostics["logprob_gap"])
                if len(terms) > 1:
                    output = objective(algo, scores, packed, denominators, max_length=max_length)
                for name, value in (output.sums | score_sums(scores, denominators)).items():
                    sums[name] = sums.get(name, 0.0) + value.item()
                for name, value in output.maxima.items():
                    maxima[name] = max(maxima.get(name, value.item()), value.item())
        if len(terms) > 1:
            gradients.append(parts.engine.gradient())
    metrics = distributed.all_reduce_sum(sums) | distributed.all_reduce_max(maxima)
    if parts.config.rollout.name == "vllm" and parts.ahead is None and "policy/sampler_gap" in metrics:
        agreement.check_gap(metrics["policy/sampler_gap"], parts.config.largest_gap)
    with watch("backward"):
        outcome = parts.engine.step(spent)
    metrics |= term_agreement(gradients[0], gradients[1]) if gradients else {}
    return outcome, metrics, torch.cat(gaps) if gaps else None


def passes(
    parts: Parts, row: PreparedRow, term: Objective, denominators: Denominators, watch: Stopwatch, *, last: bool
) -> Iterator[tuple[PackedGroups, TokenScores, LossOutput]]:
    """Add a row's gradient, in one pass or one completion at a time, and yield the scores after each backward pass."""
    engine = parts.engine
    temperature, max_length = parts.config.rollout.temperature, parts.config.rollout.max_new_tokens
    if not row.pieces:
        with watch("policy"):
            scores: TokenScores = engine.forward(row.packed, temperature=temperature, anchors=row.anchors)
            output = objective(term, scores, row.packed, denominators, max_length=max_length)
        with watch("backward"):
            engine.backward(output.loss, last=last)
        yield row.packed, scores, output
        return
    with watch("policy"):
        group = OneAtATime(engine, row.packed, temperature)
    for piece in row.pieces:
        with watch("policy"):
            scores = group.score(piece)
            output = objective(term, scores, piece.packed, denominators, max_length=max_length)
        with watch("backward"):
            engine.backward(output.loss, last=False)
        yield piece.packed, scores, output
    with watch("policy"):
        loss = group.prompt_loss()
    with watch("backward"):
        engine.backward(loss, last=last)


def term_agreement(policy_gradient: Tensor, with_teacher: Tensor) -> dict[str, float]:
    """Return ``grad/pg_kd_cosine`` from this rank's part of the gradient after the first and after the second term."""
    teacher = with_teacher - policy_gradient
    products = {
        "pg": policy_gradient.dot(policy_gradient),
        "kd": teacher.dot(teacher),
        "both": policy_gradient.dot(teacher),
    }
    total = distributed.all_reduce_sum({name: value.item() for name, value in products.items()})
    norms = math.sqrt(total["pg"]) * math.sqrt(total["kd"])
    # Groups with equal rewards have no policy gradient, so there is no angle.
    return {"grad/pg_kd_cosine": total["both"] / norms} if norms > 0 else {}


def score_sums(scores: TokenScores, denominators: Denominators) -> dict[str, Tensor]:
    """Return this row's share of the token means that compare the policy with teacher and initial policy."""
    known = {f"teacher/{name}": values for name, values in scores.diagnostics.items()}
    if "ref" in scores.divergences:
        known["policy/kl_initial"] = scores.divergences["ref"].detach()
    return {name: values.sum() / denominators.num_tokens for name, values in known.items()}


def add_costs(parts: Parts, state: TrainState, rows: Sequence[PreparedRow], dropped: Sequence[RolloutGroup]) -> int:
    """Add the cost of one step over the ``rows`` of all ranks to ``state``, and return the number of tokens in them.

    ``dropped`` groups were sampled only.
    """
    algo = parts.config.algo
    cost = dict.fromkeys(("row", "trained", "teacher", "flops", "dropped"), 0.0)
    for group in dropped:
        lengths = tuple(len(completion.token_ids) for completion in group.completions)
        cost["dropped"] += sum(lengths)
        cost["flops"] += parts.shape.forward([GroupSpan(0, len(group.prompt_ids), lengths)], sum(lengths))
    updates, sampled = algo.updates_per_rollout, algo.source == "policy"
    for row in rows:
        packed = row.packed
        tokens, loss_tokens = packed.input_ids.numel(), packed.num_loss_tokens
        if not loss_tokens:
            continue
        cost["row"] += tokens
        cost["trained"] += loss_tokens * updates
        known = [(anchor.shape, row.read_by(name).spans) for name, anchor in parts.anchors.items()]
        frozen = [(shape, spans) for shape, spans in known if shape is not None]
        cost["teacher"] += row.read_by("kd").input_ids.numel() * ("kd" in parts.anchors)
        cost["flops"] += step_flops(parts.shape, frozen, packed.spans, loss_tokens, updates=updates, sampled=sampled)
    total = distributed.all_reduce_sum(cost)
    state.trained_tokens += int(total["trained"])
    state.teacher_tokens += int(total["teacher"])
    state.sampled_tokens += int(total["dropped"])
    state.flops += total["flops"]
    return int(total["row"])
