"""Whether a run fits, before it is started: ``python -m longctx_rl.doctor model=qwen3_1_7b context=32768``.

    context=TOKENS    prompt and completion together
    devices=N         default: the processes that the configuration asks for
    memory=GIB        of each device; default: this machine's

Everything else is as for ``python -m longctx_rl`` (+algo=dgrpo if no method is given). Reads the models' config.json,
not their weights. Exit code 0: fits; 1: does not, and what to change; 2: cannot tell.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from longctx_rl import config as configuration
from longctx_rl import process
from longctx_rl.__main__ import config_directory, sentence
from longctx_rl.config import Config
from longctx_rl.engine.zero3 import SMALL_MODEL_NUMEL
from longctx_rl.policy.loading import load_config
from longctx_rl.policy.memory import GIB, MARGIN, Estimate, Sizes, Workload, choose, device_memory, estimate, workload

OWN = ("context", "devices", "memory")


def main() -> None:
    """Entry point."""
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] else process.UNUSABLE)
    try:
        sys.exit(0 if diagnose(sys.argv[1:]) else 1)
    except (HydraException, OmegaConfBaseException) as error:
        process.complain(sentence(error))
    except ValueError as error:
        process.complain(error)
    sys.exit(process.UNUSABLE)


def diagnose(arguments: list[str]) -> bool:
    """Print the estimate and the verdict; whether the run fits."""
    own = {name: value for name, _, value in (one.partition("=") for one in arguments) if name in OWN}
    overrides = [one for one in arguments if one.partition("=")[0] not in OWN]
    if not any(one.startswith("+algo=") for one in overrides):
        overrides.append("+algo=dgrpo")
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = configuration.load(compose("config", overrides))
    context = int(number(own, "context", None))
    student, teacher = shapes(config)
    completion = config.rollout.max_new_tokens
    if context <= completion:
        raise ValueError(
            f"context={context} leaves no room beside rollout.max_new_tokens={completion}: give more tokens"
        )
    ranks = int(number(own, "devices", config.world_size))
    load = workload(config, prompt=context - completion, ranks=ranks, resident=SMALL_MODEL_NUMEL)
    memory = number(own, "memory", device_memory(config) / GIB)
    load, found = choose(student, teacher, load, config.batch.backward, memory * GIB)
    print(render(found, load, config, memory))
    if found.peak * MARGIN <= memory * GIB:
        print(f"fits: {found.peak / GIB:.1f} GiB of {memory:.1f} on each of {load.ranks}")
        return True
    print(f"does not fit: {found.peak / GIB:.1f} GiB, with a margin {MARGIN * found.peak / GIB:.1f}, of {memory:.1f}")
    for names, changed in changes(load):
        peak = estimate(student, teacher, changed).peak
        if peak * MARGIN <= memory * GIB:
            print(f"would fit with {' '.join(names)}: {peak / GIB:.1f} GiB on each of {changed.ranks}")
            return False
    print("nothing that can be set makes it fit: shorten the context, or take a smaller model")
    return False


def number(own: dict[str, str], name: str, default: float | None) -> float:
    """A positive number of the command line."""
    if name not in own and default is not None:
        return default
    try:
        value = float(own.get(name, ""))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ValueError(f"give {name}=<a number above 0>, such as context=32768 devices=8 memory=80")
    return value


def shapes(config: Config) -> tuple[Sizes, Sizes | None]:
    """Student and teacher, as far as they are loaded."""
    model = config.model
    if (shape := model.architecture) is not None:
        student = Sizes(
            layers=shape.num_layers,
            hidden=shape.hidden_size,
            intermediate=shape.intermediate_size,
            attention=shape.num_heads * shape.head_dim,
            key_value=shape.num_kv_heads * shape.head_dim,
            vocabulary=load_config(model.student).vocab_size,
            tied=True,
        )
    else:
        student = Sizes.of(load_config(model.student))
    return student, Sizes.of(load_config(model.teacher)) if config.needs_teacher and model.teacher else None


def changes(load: Workload) -> Iterator[tuple[list[str], Workload]]:
    """Settings to change, each kept when the next is tried: the cheapest in time first."""
    names: list[str] = []
    steps: list[tuple[str, Workload]] = []
    if load.row_tokens > load.group_tokens and load.prompts > 1:
        steps.append(("batch.micro_batch_tokens=1", replace(load, row_tokens=1)))
    if load.chunk > 256:
        steps.append(("model.scoring_chunk=256", replace(load, chunk=256)))
    if not load.checkpointing:
        steps.append(("model.gradient_checkpointing=true", replace(load, checkpointing=True)))
    if load.batch_tokens > load.group_tokens and load.prompts > 1:
        steps.append(("rollout.batch_tokens=1", replace(load, batch_tokens=1)))
    if load.exact:
        steps.append(("algo.kd.estimator=topk", replace(load, exact=False)))
    if load.sampled and not load.scheduled:  # asked for: auto would have taken it
        steps.append(("batch.backward=scheduled", replace(load, scheduled=True)))
    if load.engine == "zero3" and not load.offload and torch.cuda.is_available():
        steps.append(("engine.offload_optimizer=true", replace(load, offload=True)))
    if load.engine == "zero3":
        more = [load.ranks * factor for factor in (2, 4, 8) if load.ranks * factor <= load.prompts_per_step]
        steps += [(f"devices={ranks}", replace(load, ranks=ranks)) for ranks in more]
    current = load
    for name, changed in steps:
        different = {field: getattr(changed, field) for field in load.__slots__}
        different = {field: value for field, value in different.items() if value != getattr(load, field)}
        current = replace(current, **different)
        names = [*(one for one in names if one.partition("=")[0] != name.partition("=")[0]), name]
        yield names, current


def render(found: Estimate, load: Workload, config: Config, memory: float) -> str:
    """The estimate as a table in GiB."""
    lines = [
        f"{config.algo.name} on {config.model.name}: prompt {load.prompt:,} tokens, {load.group} x {load.completion:,} "
        f"completion tokens, {load.ranks} x {memory:.1f} GiB, {config.engine.name}, {config.model.dtype}, "
        f"batch.backward={'scheduled' if load.scheduled else 'packed'}",
        "",
    ]
    for title, parts in (("always", found.always), *found.phases.items()):
        lines.append(f"{title + ' (decides)' if title == found.worst else title:<34}{sum(parts.values()) / GIB:>10.2f}")
        lines += [f"  {name:<32}{value / GIB:>10.2f}" for name, value in parts.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
