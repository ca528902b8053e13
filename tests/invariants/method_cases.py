"""Groups of random tokens, methods, and the anchors that a small random teacher gives them."""

from longctx_rl.objective.spec import ANCHORS, Divergence, Objective, Weights
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.scoring import Anchor
from longctx_rl.policy.shape import ModelShape
from longctx_rl.training.anchors import FrozenAnchor, anchor_signal
from longctx_rl.types import PackedGroups
from packed_builders import group, head_weight, tiny_model

TEMPERATURE = 0.9
MAX_LENGTH = 16
"""Length of ``aggregate="constant"``, in tokens."""

SAMPLED = [
    group(prompt, lens, seed, advantages=True, sampler=True, masked=seed % 2 == 0)
    for seed, (prompt, lens) in enumerate([(5, (4, 9, 2)), (11, (1, 3, 3)), (3, (7, 8, 1)), (8, (2, 2, 12))])
]
RECORDED = [group(prompt, (length,), seed) for seed, (prompt, length) in enumerate([(5, 9), (11, 1), (3, 4), (8, 6)])]

DGRPO = Weights(pg=1.0, kd=0.5)
METHODS = {
    "sft": (RECORDED, Objective(weights=Weights(ce=1.0))),
    "kd": (RECORDED, Objective(weights=Weights(kd=1.0, ce=0.2), kd=Divergence(direction="forward"))),
    "grpo": (SAMPLED, Objective(weights=Weights(pg=1.0, ref=0.04), ref=Divergence(estimator="k3"), importance_cap=1.5)),
    "opd": (SAMPLED, Objective(weights=Weights(kd=1.0))),
    "dgrpo": (SAMPLED, Objective(weights=DGRPO)),
    "dgrpo-topk": (SAMPLED, Objective(weights=DGRPO, kd=Divergence(direction="js", estimator="topk", top_k=5))),
    "dgrpo-k1": (SAMPLED, Objective(weights=DGRPO, kd=Divergence(estimator="k1", placement="advantage"))),
}
"""Groups and objective of each method."""


class Teacher:
    """A frozen random model that serves as teacher and as reference."""

    def __init__(self) -> None:
        model = tiny_model(1)
        self._head, self._shape = head_weight(model), ModelShape.of(model)
        self._scorer = FrozenScorer(model, chunk=7).freeze()

    def anchors(self, spec: Objective, packed: PackedGroups) -> dict[str, Anchor]:
        """Return the anchors that have a weight in ``spec``, for a row."""
        frozen = {
            name: FrozenAnchor(self._scorer, spec.divergence(name), self._head, self._shape)
            for name in ANCHORS
            if spec.weight(name)
        }
        return {name: anchor_signal(anchor, packed, TEMPERATURE) for name, anchor in frozen.items()}
