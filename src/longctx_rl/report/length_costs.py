"""Training costs at each context length, from the formula behind ``progress/flops``.

A step mixes prompts of several lengths, so runs record neither seconds nor FLOPs by length. The FLOPs counter is a
formula of lengths, however. It is evaluated here at each length, with the models, completions per prompt and mean
completion length of the runs.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from longctx_rl.policy.shape import ModelShape, step_flops
from longctx_rl.report.readings import Groups, last_step
from longctx_rl.report.results import Result
from longctx_rl.report.tables import NOTHING, Table

CAPTION = (
    "FLOPs of training on one prompt of each length in tokens, including its completions, sampling, teacher and "
    "reference; and the same per trained token. Computed as progress/flops is, with the models, completions per prompt "
    "and mean completion length of the runs; means over runs. Recorded / computed: the FLOPs per prompt that the runs "
    "counted, over those computed at the lengths they trained on, where all lengths are known. Seconds are not known "
    "by length, because a step mixes lengths."
)


@dataclass(frozen=True, slots=True)
class PromptCost:
    """FLOPs of training on prompts of some length."""

    prompt: float
    """FLOPs per prompt."""
    token: float
    """FLOPs per trained token."""


VIEWS_OF_DOCUMENT = ("document", "answer")
"""Views whose prompt grows with the document; another one costs the same, as measured, at every length."""


@dataclass(frozen=True, slots=True)
class _Group:
    prompt_len: float
    completion_lens: tuple[float, ...]


def cost_at(run: Result, length: float) -> PromptCost | None:
    """The costs of a run at one length.

    None if it did not record its models, has several questions per prompt, or drew prompts that it did not train on.
    """
    spent, models = run.costs.get(last_step(run) or 0, {}), run.origin.get("models")
    updates = run.config.get("algo.updates_per_rollout")
    if not (models and spent.get("prompts") and updates and run.config.get("data.questions_per_document") == 1):
        return None
    if run.config.get("algo.draws", 1) > 1:
        return None
    sampled = run.config.get("algo.source") == "policy"
    completions = run.config["algo.group_size"] if sampled else 1
    trained = spent["trained_tokens"] / spent["prompts"]
    answer = trained / (completions * updates)
    shapes = {name: ModelShape(**sizes) for name, sizes in models.items()}
    student = shapes.pop("student")
    group = _Group(length, (answer,) * completions)
    read = group
    if run.config.get("algo.kd.view", "document") not in VIEWS_OF_DOCUMENT:
        read = replace(group, prompt_len=spent["teacher_tokens"] / spent["prompts"] - completions * answer)
    frozen = [(shape, [read if name == "kd" else group]) for name, shape in shapes.items()]
    flops = step_flops(student, frozen, [group], completions * answer, updates=updates, sampled=sampled)
    return PromptCost(flops, flops / trained)


def costs_at(runs: Sequence[Result], length: float) -> PromptCost | None:
    """Mean costs over runs; None if they are known for none of them."""
    known = [cost for run in runs if (cost := cost_at(run, length))]
    return PromptCost(fmean(cost.prompt for cost in known), fmean(cost.token for cost in known)) if known else None


def lengths_of(groups: Groups) -> list[int]:
    """Every context length that the runs were trained or evaluated on."""
    runs = [run for group in groups.values() for run in group]
    evaluated = {length for run in runs for _, _, length in run.cells}
    return sorted({*evaluated, *(length for run in runs for length in _trained_on(run))} - {0})


def table(groups: Groups) -> Table | None:
    """A table with two rows for each method; None if no run recorded its models."""
    lengths = lengths_of(groups)
    rows: dict[str, list[tuple[str, tuple[str, ...]]]] = {"prompt": [], "token": []}
    for row, runs in groups.items():
        known = [cost for length in lengths if (cost := costs_at(runs, length))]
        if not known:
            continue
        compared = _recorded_over_computed(runs)
        rows["prompt"].append((f"{row}, per prompt", (*(f"{cost.prompt:.3g}" for cost in known), compared)))
        rows["token"].append((f"{row}, per trained token", (*(f"{cost.token:.3g}" for cost in known), "")))
    headings = ("", *map(str, lengths), "recorded / computed")
    ordered = (*rows["prompt"], *rows["token"])
    return Table("scaling_costs", CAPTION, headings, ordered) if ordered else None


def _trained_on(run: Result) -> dict[int, float]:
    """Nominal prompt lengths and their shares; empty for prompts of a data set, whose lengths are not nominal."""
    if any(key.startswith("data.longblocks.") for key in run.config):
        return {}
    short = float(run.config.get("data.short.share") or 0.0)
    shares: dict[int, float] = defaultdict(float)
    for key, share in (("data.lengths", 1.0 - short), ("data.short.lengths", short)):
        lengths = run.config.get(key) or []
        for length in lengths:
            shares[int(length)] += share / len(lengths)
    return shares


def _recorded_over_computed(runs: Sequence[Result]) -> str:
    """Mean ratio of recorded to computed FLOPs per prompt, over the runs whose prompt lengths are all known."""
    ratios = []
    for run in runs:
        costs = [(cost, share) for length, share in _trained_on(run).items() if (cost := cost_at(run, length))]
        if costs and 0 not in _trained_on(run):  # 0: prompts of their natural length, which is not recorded
            spent = run.costs[last_step(run) or 0]
            ratios.append(spent["flops"] / spent["prompts"] / sum(cost.prompt * share for cost, share in costs))
    return f"{fmean(ratios):.3f}" if ratios else NOTHING
