"""The closing text of a finished run: accuracy before and after, costs, and what to try next."""

from pathlib import Path

from longctx_rl.config.convert import setting
from longctx_rl.config.schema import ALGORITHMS, Config
from longctx_rl.evals.evaluation import Evaluation
from longctx_rl.training.state import TrainState


def render(config: Config, evaluation: Evaluation, state: TrainState, reason: str) -> str:
    """Render the closing text, for the terminal and log.txt."""
    lines = [f"finished after {state.step} steps: {reason}", ""]
    table = evaluation.before_after(state.step)
    if table:
        lines += [table, ""]
    lines += [
        "cost: "
        f"{state.sampled_tokens:,} tokens sampled, {state.trained_tokens:,} trained, "
        f"{state.teacher_tokens:,} scored by the teacher, {state.flops:.3g} model FLOPs, "
        f"{state.wall_seconds:.0f} s in steps",
        f"run:  {config.run_dir}  (weights in {config.run_dir}/export)",
        "",
        "try next:",
        *(f"  {command}" for command in next_commands(config)),
    ]
    return "\n".join(lines)


def next_commands(config: Config) -> list[str]:
    """Return two commands that build on this run."""
    others = ",".join(name for name in ALGORITHMS if name != config.algo.name)
    follow = "dgrpo" if config.algo.source == "dataset" else config.algo.name
    student = setting("model.student", f"{config.run_dir}/export")
    trained = "mini" if config.model.architecture else config.model.name
    task = "mix" if set(config.task.mixture) & {"copy", "lookup", "pairs", "drill"} else config.task.name
    same = f"model={trained} task={task} seed={config.seed}"
    name = setting("experiment_name", f"after-{Path(config.run_dir).name}")
    return [
        f"python -m longctx_rl -m +algo={others} {same}",
        f"python -m longctx_rl +algo={follow} {same} {student} {name}",
    ]
