"""Objectives by their weights, as formulas name them."""

from typing import Any

from longctx_rl.objective.spec import Divergence, Objective, Weights


def method(
    *,
    ce: float = 0.0,
    pg: float = 0.0,
    kd: float = 0.0,
    ref: float = 0.0,
    unlikely: float = 0.0,
    in_advantage: str | None = None,
    **options: Any,
) -> Objective:
    """An objective with these weights. ``in_advantage`` names the anchor whose k1 enters the advantage."""
    inside = {in_advantage: Divergence(estimator="k1", placement="advantage")} if in_advantage else {}
    return Objective(weights=Weights(ce=ce, pg=pg, kd=kd, ref=ref, unlikely=unlikely), **inside, **options)
