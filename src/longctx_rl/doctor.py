"""``python -m longctx_rl.doctor model=qwen3_1_7b context=32768``: check whether a run will fit into memory.

    context=TOKENS    prompt and completion together, such as 32768 or 32k; k is 1,024, as on model cards
    devices=N         default: the processes that the configuration asks for
    memory=GIB        of each device, such as 80 or 80GB, which vendors of GPUs write for GiB; default: this machine's

All other arguments are those of ``python -m longctx_rl``; without a method, +algo=dgrpo. The command reads the models'
config.json, not their weights. Exit code 0: the run fits; 1: it does not, and the last line says what to change; 2: the
arguments or the models cannot be used.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace

from longctx_rl import cli
from longctx_rl.config.compose import composed
from longctx_rl.config.schema import SMALL_MODEL_NUMEL, Config
from longctx_rl.policy.memory import (
    GIB,
    MARGIN,
    MemoryEstimate,
    Workload,
    choose,
    device_memory,
    estimate,
    has_gpu,
    workload,
)
from longctx_rl.policy.shape import DecoderSizes, model_sizes

UNITS: dict[str, tuple[str, dict[str, float]]] = {
    "context": ("tokens above 0, k for 1,024", {"": 1, "k": 2**10, "m": 2**20}),
    "devices": ("a number above 0", {"": 1}),
    "memory": (
        "GiB above 0",
        {"": 1, "g": 1, "gb": 1, "gib": 1, "mb": 2**-10, "mib": 2**-10, "tb": 2**10, "tib": 2**10},
    ),
}
"""The command's own arguments: what each counts, and the factors of its units."""


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        cli.run(lambda: cli.show(str(__doc__), 0 if arguments else cli.UNUSABLE))
    cli.run(lambda: 0 if diagnose(arguments) else 1)


def diagnose(arguments: list[str]) -> bool:
    """Print the estimate and the verdict; whether the run fits."""
    own = {name: value for name, _, value in (argument.partition("=") for argument in arguments) if name in UNITS}
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in UNITS]
    config = composed(overrides)
    context = whole(own, "context", None)
    student, teacher = model_sizes(config)
    completion = config.rollout.max_new_tokens
    if context <= completion:
        raise ValueError(
            f"context={context} leaves no room for a prompt with rollout.max_new_tokens={completion}: raise context"
        )
    check_context(context, config, student, teacher)
    ranks = whole(own, "devices", config.world_size)
    load = workload(config, prompt=context - completion, ranks=ranks, resident=SMALL_MODEL_NUMEL)
    memory = number(own, "memory", device_memory(config) / GIB)
    load, usage = choose(config, student, teacher, load, memory * GIB)
    print(render(usage, load, config, memory))
    if usage.peak * MARGIN <= memory * GIB:
        print(f"fits: {usage.peak / GIB:.1f} GiB of {memory:.1f} on each of {load.ranks}")
        return True
    needed = usage.peak / GIB
    print(f"does not fit: needs {needed:.1f} GiB, {MARGIN * needed:.1f} with a margin, but has {memory:.1f}")
    for names, changed in changes(student, teacher, load):
        peak = estimate(student, teacher, changed).peak
        if peak * MARGIN <= memory * GIB:
            print(f"would fit with {' '.join(names)}: {peak / GIB:.1f} GiB on each of {changed.ranks}")
            return False
    print("no setting makes it fit: shorten the context, or choose a smaller model")
    return False


def check_context(context: int, config: Config, student: DecoderSizes, teacher: DecoderSizes | None) -> None:
    """Raise ValueError for more tokens than student or teacher reads: the run would be refused."""
    models = ((config.model.student, student), (config.external_teacher, teacher if config.external_teacher else None))
    yarn = config.model.yarn
    for name, sizes in models:
        if sizes is None:
            continue
        reads = sizes.context if yarn is None else max(sizes.context, yarn.context)
        if context > reads:
            raise ValueError(
                f"context={context} is too long, {name} reads {reads} tokens: shorten it, or stretch the models (for "
                "Qwen3: model.yarn='{factor: 4.0, original_context: 32768}')"
            )


def whole(own: dict[str, str], name: str, default: int | None) -> int:
    """A positive whole number of the command line."""
    value = number(own, name, default)
    if value != int(value):
        raise ValueError(f"{name}={own[name]}: give a whole number")
    return int(value)


def number(own: dict[str, str], name: str, default: float | None) -> float:
    """A positive number of the command line, with its unit."""
    if name not in own and default is not None:
        return default
    unit, factors = UNITS[name]
    read = re.fullmatch(r"(\d+(?:_\d+)*\.?\d*(?:e\+?\d+)?) ?([a-z]*)", own.get(name, "").lower(), re.ASCII)
    if read is None or read[2] not in factors or not 0 < float(read[1]) < 1e12:
        given = f"{name}={own[name]}: " if name in own else ""
        raise ValueError(f"{given}give {name}=<{unit}>, such as context=32768 devices=8 memory=80")
    return float(read[1]) * factors[read[2]]


def changes(
    student: DecoderSizes, teacher: DecoderSizes | None, load: Workload
) -> Iterator[tuple[list[str], Workload]]:
    """Settings to change, each kept, if it saves anything, when the next is tried: the cheapest in time first."""
    names: list[str] = []
    steps: list[tuple[str, Workload]] = []
    if load.row_tokens > load.group_tokens and load.prompts > 1:
        steps.append(("batch.micro_batch_tokens=1", replace(load, row_tokens=1)))
    if load.chunk > 64:
        steps.append(("model.scoring_chunk=64", replace(load, chunk=64)))
    if not load.checkpointing:
        steps.append(("model.gradient_checkpointing=true", replace(load, checkpointing=True)))
    if load.batch_tokens > load.group_tokens and load.prompts > 1:
        steps.append(("rollout.batch_tokens=1", replace(load, batch_tokens=1)))
    if load.exact:
        steps.append(("algo.kd.estimator=topk", replace(load, exact=False)))
    if load.replicated and load.ranks > 1:  # configured: auto would have sharded them
        steps.append(("engine.frozen_weights=sharded", replace(load, replicated=False)))
    if load.sampled and not load.one_at_a_time:  # configured: auto would have chosen it
        steps.append(("batch.backward=one_at_a_time", replace(load, one_at_a_time=True)))
    if load.engine == "zero3" and not load.offload and has_gpu():
        steps.append(("engine.offload_optimizer=true", replace(load, offload=True)))
    if load.engine == "zero3":
        more = [load.ranks * factor for factor in (2, 4, 8) if load.ranks * factor <= load.prompts_per_step]
        steps += [(f"devices={ranks}", replace(load, ranks=ranks, replicated=False)) for ranks in more]
    current = load
    for name, changed in steps:
        different = {field: getattr(changed, field) for field in load.__slots__}
        different = {field: value for field, value in different.items() if value != getattr(load, field)}
        candidate = replace(current, **different)
        if estimate(student, teacher, candidate).peak >= estimate(student, teacher, current).peak:
            continue
        current = candidate
        names = [*(override for override in names if override.partition("=")[0] != name.partition("=")[0]), name]
        yield names, current


def render(found: MemoryEstimate, load: Workload, config: Config, memory: float) -> str:
    """The estimate as a table in GiB."""
    lines = [
        f"{config.algo.name} on {config.model.name}: prompt {load.prompt:,} tokens, {load.group} x {load.completion:,} "
        f"completion tokens, {load.ranks} x {memory:.1f} GiB, {config.engine.name}, {config.model.dtype}, "
        f"batch.backward={'one_at_a_time' if load.one_at_a_time else 'packed'}, "
        f"engine.frozen_weights={'replicated' if load.replicated else 'sharded'}",
        "",
    ]
    for title, parts in (("always", found.always), *found.phases.items()):
        lines.append(f"{title + ' (decides)' if title == found.worst else title:<34}{sum(parts.values()) / GIB:>10.2f}")
        lines += [f"  {name:<32}{value / GIB:>10.2f}" for name, value in parts.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
