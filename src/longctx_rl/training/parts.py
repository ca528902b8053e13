"""The parts of a run: built once by ``assembly.build_parts`` and read by every function of a step."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.data.source import TrainingSource
from longctx_rl.data.views import Views
from longctx_rl.engine import Engine
from longctx_rl.evals.evaluation import Evaluation
from longctx_rl.policy.shape import ModelShape
from longctx_rl.rewards.composed import Rewarder
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rollout import Sampler
from longctx_rl.rollout.server import Servers
from longctx_rl.training.ahead import Ahead
from longctx_rl.training.anchors import FrozenAnchor


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that the loop uses. None of it depends on the algorithm's name."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    anchors: dict[str, FrozenAnchor]
    shape: ModelShape
    context: int
    source: TrainingSource
    views: Views | None
    """Renders the prompts that the teacher reads. None: it reads the student's."""
    sampler: Sampler
    ahead: Ahead | None
    """Draws the next step's rollouts during this one. None: they are drawn when they are needed."""
    greedy: Callable[[nn.Module | None], Sampler]
    """A sampler at temperature 0 of the policy, or of a frozen scorer on the engine."""
    rewarder: Rewarder
    evaluation: Evaluation
    code: CodeGrader | None
    """Executes answers that are code; shared by rewarder and evaluation."""
    servers: Servers | None
    """Sample from the policy; None: the policy does so itself."""
    one_at_a_time: bool
    """Whether the gradient is computed one completion at a time."""
    notes: tuple[str, ...]
    """Lines for the log: how memory is used, how teacher and student differ, which sandbox runs code."""

    def close(self) -> None:
        """End the processes that the run has started."""
        for started in (self.code, self.servers):
            if started is not None:
                started.close()

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return the shapes that FLOPs are counted with: student, teacher (``kd``) and reference (``ref``)."""
        shapes = {"student": self.shape} | {name: anchor.shape for name, anchor in self.anchors.items()}
        return {name: asdict(shape) for name, shape in shapes.items() if shape is not None}
