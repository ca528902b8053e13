"""The training loop. Five methods, one loop: groups in, one objective, one engine.

groups -> rows -> signals of the frozen anchors -> token scores -> objective -> gradient -> step
"""

import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from longctx_rl import cli
from longctx_rl.config.schema import Config
from longctx_rl.data.prompts import token_texts
from longctx_rl.data.source import check_lengths
from longctx_rl.engine import checkpoint, distributed, startup
from longctx_rl.policy.weights import weights_hash
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.rollout import RolloutFailed
from longctx_rl.runs import directory
from longctx_rl.runs.recorder import Recorder, build_recorder
from longctx_rl.training import closing, view_gap
from longctx_rl.training.assembly import build_parts, peak_gib
from longctx_rl.training.groups import (
    recorded_groups,
    rollout_metrics,
    rollout_sums,
    sampled_groups,
    view_metrics,
    view_sums,
    with_teacher_gaps,
)
from longctx_rl.training.parts import Parts
from longctx_rl.training.state import Stopwatch, TrainState, parts_spent, spent, spent_share
from longctx_rl.training.step import add_costs, global_count, prepare, update
from longctx_rl.types import RolloutGroup


class Interrupt:
    """Makes Ctrl-C, SIGTERM and a closed terminal end the loop after its step.

    A second one, or one before the loop, ends the process.
    """

    def __init__(self) -> None:
        self.requested = False
        self.training = False
        for number in cli.stop_signals():
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self.training:
            return cli.interrupt(number, frame)
        self.requested = True


def run(config: Config) -> None:
    """Train as configured, starting from the latest checkpoint if there is one.

    Raises:
        ValueError: the configuration or the checkpoint cannot be used.
        SystemExit: status 130 after Ctrl-C, once the step is finished and saved.
    """
    interrupt = Interrupt()
    startup.init(config)
    with ExitStack() as cleanup:
        cleanup.callback(distributed.shutdown)
        parts = build_parts(config)
        cleanup.callback(parts.close)
        check_lengths(config, parts.context)
        state = restore(parts)
        if parts.servers is not None:  # here, because the wait belongs to no step
            parts.servers.sync()
            check_lengths(config, parts.servers.context)
        interrupt.training = True
        parts.evaluation.drop_after(state.step if state else -1)
        recorder = build_recorder(
            config,
            Path(config.run_dir),
            resume_step=state.step if state else None,
            evaluated=state is not None and state.evaluated_step == state.step,
        )
        for note in parts.notes:
            recorder.say(note)
        try:
            path = Path(config.run_dir)
            described = (parts.source.describe(), parts.sizes())
            distributed.on_main(lambda: directory.record_parts(path, *described, weights(config)))
            state = state or TrainState()
            reason = train(parts, state, recorder, interrupt)
        finally:
            recorder.close()
        outcome = (config, state.step, reason, state.wall_seconds)
        distributed.on_main(lambda: directory.record_finished(*outcome))


def weights(config: Config) -> dict[str, str | None]:
    """Return hashes of the student's and teacher's weights on disk; None for a randomly initialised student."""
    names = {"student": None if config.model.architecture else config.model.student}
    if config.loaded_teacher is not None:
        names["teacher"] = config.loaded_teacher
    return {role: name and weights_hash(name) for role, name in names.items()}


def restore(parts: Parts) -> TrainState | None:
    """Load the latest checkpoint into the engine and return its state, or None before the first checkpoint."""
    run_dir = Path(parts.config.run_dir)
    on_disk: list[tuple[Path, dict[str, Any]]] = []

    def look() -> None:
        if (latest := checkpoint.latest_checkpoint(run_dir)) is not None:
            checkpoint.verify(latest)
            on_disk.append((latest, checkpoint.read_trainer_state(latest)))

    distributed.on_main(look)  # other ranks may be on machines without access to this disk
    for latest, trainer_state in distributed.broadcast(on_disk):
        checkpoint.restore_rng(trainer_state.pop("rng"))
        parts.engine.load(latest)
        ahead = trainer_state.pop("ahead", None)
        if parts.ahead is not None and ahead is not None:
            parts.ahead.restore(ahead)
        return TrainState.from_dict(trainer_state)
    return None


def train(parts: Parts, state: TrainState, recorder: Recorder, interrupt: Interrupt) -> str:
    """Train until a budget is spent, then evaluate, export the weights and print the closing text.

    Returns:
        The reason why the run ended: the budget that is spent, or the metric that was reached.
    """
    config = parts.config
    try:
        reason = steps(parts, state, recorder, interrupt)
        if reason is None:
            resume = directory.resume_command(config)
            recorder.say(f"interrupted after step {state.step}; continue with:\n  {resume}")
            raise SystemExit(cli.INTERRUPTED)
        if config.eval.at_end and (state.evaluated_step, state.evaluated_items) != (state.step, config.eval.items):
            evaluate(parts, state, recorder, config.eval.items)
    except (GraderUnavailable, RolloutFailed) as error:
        if state.saved_step != state.step:
            save(parts, state)
        resume = directory.resume_command(config)
        raise ValueError(f"{error}. Step {state.step} is saved; continue with: {resume}") from error
    export = Path(config.run_dir) / "export"
    parts.engine.export(export, parts.tokenizer)
    recorder.keep(export)
    if distributed.is_main():
        recorder.say(closing.render(config, parts.evaluation, state, reason))
    return reason


def steps(parts: Parts, state: TrainState, recorder: Recorder, interrupt: Interrupt) -> str | None:
    """Take steps, with evaluations and checkpoints between them. Returns why the run ended; None if interrupted."""
    config = parts.config
    if (
        state.saved_step < 0
        and parts.views is not None
        and config.teacher_server is None
        and config.algo.source == "policy"
        and config.logging.gap_prompts
    ):
        recorder.log(0, {"progress/step": 0} | view_gap.measure(parts))
    if state.step == 0 and config.eval.at_start and state.evaluated_step < 0:
        evaluate(parts, state, recorder, config.eval.items)
    reason = spent(state, config.budget)
    if reason is None and state.step and evaluation_due(config, state):
        evaluate(parts, state, recorder, config.eval.during_items)  # the run was stopped before this evaluation
        reason = spent(state, config.budget)
    while reason is None and not distributed.any_rank(interrupt.requested):
        train_step(parts, state, recorder)
        reason = spent(state, config.budget)
        if reason is None and evaluation_due(config, state):
            evaluate(parts, state, recorder, config.eval.during_items)
            reason = spent(state, config.budget)
        if config.checkpoint.every and state.step % config.checkpoint.every == 0:
            save(parts, state)
    if state.saved_step != state.step:
        save(parts, state)
    return reason


def evaluation_due(config: Config, state: TrainState) -> bool:
    """Return whether ``eval.every`` or ``eval.times`` schedules an evaluation at this step that is still missing."""
    every, times = config.eval.every, config.eval.times
    if times:
        return parts_spent(state, config.budget, times) > state.evaluated_part
    return bool(every) and state.step % every == 0 and state.evaluated_step != state.step


def train_step(parts: Parts, state: TrainState, recorder: Recorder) -> None:
    """Take one step: collect groups, prepare rows, update the policy, record metrics."""
    config = parts.config
    start, watch = time.perf_counter(), Stopwatch()
    sampled = config.algo.source == "policy"
    if sampled:
        drawn = sampled_groups(parts, state.prompts, state.step, watch)
        groups = drawn.groups
    else:
        indices = range(state.prompts, state.prompts + config.batch.prompts_per_step)
        own = indices[distributed.rank() :: distributed.world_size()]
        groups = recorded_groups(parts.source, parts.tokenizer, own, parts.views)
    denominators = global_count(groups)
    rows = prepare(parts, groups, watch)
    every = config.optim.pg_kd_cosine_every
    compare = bool(every) and state.step % every == 0
    share = spent_share(state, config.budget)
    for _ in range(config.algo.updates_per_rollout):
        outcome, metrics, gaps = update(parts, rows, denominators, watch, compare_terms=compare, spent=share)
        state.skipped += outcome.skipped

    state.step += 1
    state.prompts += drawn.prompts if sampled else config.batch.prompts_per_step
    tokens = add_costs(parts, state, rows, drawn.dropped if sampled else [])
    if parts.views is not None:
        assert gaps is not None
        metrics |= view_metrics(distributed.all_reduce_sum(view_sums(groups, gaps, parts.tokenizer)))
    if sampled:
        sums = distributed.all_reduce_sum(rollout_sums(groups))
        state.sampled_tokens += int(sums["tokens"])
        metrics |= rollout_metrics(sums)
        if config.algo.draws > 1:
            metrics["rollout/draws"] = drawn.prompts / config.batch.prompts_per_step
    seconds = distributed.broadcast(time.perf_counter() - start)  # all ranks must agree when budget.seconds is spent
    state.wall_seconds += seconds
    metrics |= {"grad/norm": outcome.grad_norm, "optim/lr": outcome.lr, "optim/skipped": state.skipped}
    metrics |= {"perf/step_seconds": seconds, "perf/tokens_per_second": tokens / seconds, "perf/peak_gib": peak_gib()}
    recorder.log(state.step, state.metrics() | metrics | watch.metrics())
    if sampled:
        save_rollouts(parts, state.step, groups, gaps, recorder)


def save_rollouts(parts: Parts, step: int, groups: list[RolloutGroup], gaps: Tensor | None, recorder: Recorder) -> None:
    """Save some of the main rank's groups every ``logging.rollouts_every`` steps. ``gaps`` are those of ``update``."""
    every, kept = parts.config.logging.rollouts_every, parts.config.logging.rollouts_kept
    if groups and every and step % every == 0:
        recorder.save_rollouts(
            step,
            groups[:kept] if gaps is None else with_teacher_gaps(groups, gaps, kept),
            lambda token_ids: token_texts(parts.tokenizer, token_ids),
        )


def evaluate(parts: Parts, state: TrainState, recorder: Recorder, items: int) -> None:
    """Measure the held-out accuracy of the current policy and record it at the current step.

    If the run was stopped after an evaluation but before the next checkpoint, the recorded answers are reused.
    """
    config = parts.config
    start = time.perf_counter()
    if parts.ahead is not None:
        parts.ahead.finish()  # the servers get this step's weights
    metrics = parts.evaluation.kept(state.step, items)
    if metrics is None:
        recorder.say(f"evaluating {parts.evaluation.size(items)} items at step {state.step}")
        metrics = parts.evaluation.evaluate(state.step, items)
    state.evaluated, state.evaluated_step, state.evaluated_items = metrics, state.step, items
    state.evaluated_part = parts_spent(state, config.budget, config.eval.times)
    recorder.log(state.step, {"progress/step": state.step, "time/eval": time.perf_counter() - start} | metrics)


def save(parts: Parts, state: TrainState) -> None:
    """Save a checkpoint of the current step."""
    config = parts.config
    trainer_state = replace(state, saved_step=state.step).as_dict() | {"rng": checkpoint.rng_states()}
    if parts.ahead is not None:
        trainer_state["ahead"] = parts.ahead.state(state.step)
    checkpoint.save_checkpoint(
        Path(config.run_dir), state.step, parts.engine.save, trainer_state, config.checkpoint.keep
    )
    state.saved_step = state.step
