"""What a run is made of. ``assembly.build_parts`` builds it once before the first step; every function of the step reads it."""

from dataclasses import asdict, dataclass

from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.data.source import TrainingSource
from longctx_rl.engine import Engine
from longctx_rl.evals.evaluation import Evaluation
from longctx_rl.policy.shape import ModelShape
from longctx_rl.rewards.composed import Rewarder
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rollout import Sampler
from longctx_rl.training.anchors import FrozenAnchor


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the loop uses; none of it knows the algorithm's name."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    anchors: dict[str, FrozenAnchor]
    shape: ModelShape
    context: int
    source: TrainingSource
    sampler: Sampler
    rewarder: Rewarder
    evaluation: Evaluation
    code: CodeGrader | None
    """Runs answers that are code; shared by rewarder and evaluation."""
    one_at_a_time: bool
    """Gradients are taken one completion at a time."""
    notes: tuple[str, ...]
    """What a person should know of this run, a line each: how memory is used, how teacher and student differ."""

    def sizes(self) -> dict[str, dict[str, int]]:
        """What FLOPs are counted with: of the student, the teacher (``kd``) and the reference (``ref``)."""
        shapes = {"student": self.shape} | {name: anchor.shape for name, anchor in self.anchors.items()}
        return {name: asdict(shape) for name, shape in shapes.items()}
