"""Composition of configurations from conf/ and a command line.

This is the only module that imports Hydra, and it does not import torch.
Hydra only composes: the work of a command starts after Hydra has returned.
"""

import argparse
import difflib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from longctx_rl.config import checks, convert
from longctx_rl.config.build import BuildConfig
from longctx_rl.config.eval import EvaluateConfig, HarnessConfig
from longctx_rl.config.load import load, resolved
from longctx_rl.config.schema import Config, RunRequest

KINDS: dict[str, type] = {
    "config": Config,
    "build": BuildConfig,
    "evaluate": EvaluateConfig,
    "harness": HarnessConfig,
}
"""Top-level file of conf/ to the class that it is converted into."""


ADDED = ("algo", "experiment")
"""Groups without a default, whose files are added: +algo=dgrpo."""
REWORDED = (
    (
        r"Could not override '.*No match in the defaults list\. .* use \+(.*)",
        r"\1 has no default to replace: write +\1",
    ),
    (r"Multiple values for (.+?)\. .*", r"\1 is chosen more than once: choose one, or sweep with -m, such as \1=A,B"),
    (r"force-add of config groups is not supported: '\+(.*)'", r"+\1: a file is added with a single plus, \1"),
    (r"Could not append .* prefix: '(.*)' Or add .*", r"+\1: the key has a value already, so write \1"),
)
"""Errors of Hydra, and what is said instead."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The runs that a command line of ``python -m longctx_rl`` requests."""

    requests: list[RunRequest]
    """Empty after --cfg and --info, which print and return."""
    is_sweep: bool
    launcher: tuple[str, dict[str, Any]] | None
    """Name and settings of the Hydra launcher that a sweep chooses. None: Hydra's basic launcher."""


def command_line() -> CommandLine:
    """Compose every run that ``sys.argv`` requests.

    Raises:
        ValueError: the command line is invalid, in one sentence. An invalid run of a sweep does not raise: its request
            carries the problem.
    """
    sys.argv[0] = "python -m longctx_rl"  # the name in argparse's messages
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        flags, unknown = parser.parse_known_intermixed_args()
    except argparse.ArgumentError as error:
        # argparse reads -model=mini as -m odel=mini
        unknown = [item for item in sys.argv[1:] if re.match(r"-\w+=", item)]
        if not unknown:
            raise ValueError(f"{error}; python -m longctx_rl --help shows the options") from error
    if unknown:
        raise ValueError(_not_an_option(unknown[0]))
    folder = Path(flags.config_dir or "").resolve()
    if not folder.is_dir():
        raise ValueError(f"--config-dir {flags.config_dir} is not a folder: give one with files as in conf/")
    searched = [f"hydra.searchpath=[{convert.quoted(f'file://{folder}')}]"] if flags.config_dir else []
    given = {name for name, value in vars(flags).items() if value} - {"overrides", "run", "multirun", "config_dir"}
    if given and not given & {"cfg", "info", "hydra_help", "shell_completion"}:
        raise ValueError(f"--{min(given).replace('_', '-')} starts no run: leave it out, or add --cfg job")
    with _in_one_sentence(Config), _initialized():
        overrides = _parsed([*searched, *flags.overrides])
        if given:
            return _print(flags.overrides, [override.input_line or "" for override in overrides[len(searched) :]])
        if flags.multirun:
            return _sweep(overrides)
        if any(override.key_or_group == "hydra/launcher" for override in overrides):
            raise ValueError("hydra/launcher starts the runs of a sweep: add -m")
        request = _request(overrides, 0)
        if request.config and request.config.sweep.plan:
            raise ValueError("sweep.plan=true lists the runs of a sweep: add -m")
        return CommandLine([request], False, None)


def _print(typed: Sequence[str], parsed: Sequence[str]) -> CommandLine:
    """Let Hydra print what --cfg, --info and its other options request, for overrides as typed and as parsed."""
    sys.argv[1:] = [*(item for item in sys.argv[1:] if item not in typed), *parsed]  # as Hydra's argparse needs it
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its errors over several lines instead of raising them
    GlobalHydra.instance().clear()
    try:
        hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")(lambda _: None)()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update({} if before is None else {"HYDRA_FULL_ERROR": before})
    return CommandLine([], False, None)


def _sweep(overrides: list[Override]) -> CommandLine:
    """Compose each run of a sweep alone, as the single command does."""
    requests: list[RunRequest] = []
    launchers: list[tuple[str, dict[str, Any]]] = []
    for chosen in _by_experiment(overrides):
        of_sweep = {*config_groups(), "runs_root"}  # what the launcher's settings can depend on
        files = [item for item in chosen if item.is_hydra_override() or item.key_or_group in of_sweep]
        settings = _composed_by_hydra("config", [item for item in files if not item.is_sweep_override()], True).hydra
        launchers.append((settings.runtime.choices["hydra/launcher"], dict(settings.launcher)))
        grid = _parsed(f"{key}={values}" for key, values in (settings.sweeper.params or {}).items())
        requests += [
            _request(_parsed(cell), len(requests) + number) for number, cell in enumerate(_cells([*grid, *chosen]))
        ]
    if any(launcher != launchers[0] for launcher in launchers):
        raise ValueError(
            "the experiments of this sweep choose different launchers: choose one, such as hydra/launcher=basic"
        )
    return CommandLine(requests, True, None if launchers[0][0] == "basic" else launchers[0])


def _by_experiment(overrides: list[Override]) -> Iterator[list[Override]]:
    """Yield the overrides with each value of a swept ``experiment``, because each file brings a grid of its own."""
    swept = [item for item in overrides if item.key_or_group == "experiment" and item.is_sweep_override()]
    for line in _levels(swept[-1]) if swept else [""]:
        yield [override for item in overrides for override in (_parsed([line]) if item in swept else [item])]


def _cells(overrides: Sequence[Override]) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of each run of a grid; the last key changes first. A later value replaces an earlier one."""
    return itertools.product(*{item.get_key_element(): _levels(item) for item in overrides}.values())


def _levels(override: Override) -> list[str]:
    """Return an override with each of its values in turn."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep() or not (values := list(override.sweep_string_iterator())):
        raise ValueError(f"{override.input_line} gives no values to sweep over: list them, such as seed=0,1,2")
    return [f"{override.get_key_element()}={value}" for value in values]


def _request(overrides: Sequence[Override], number: int) -> RunRequest:
    """Compose a run, the ``number``-th of a sweep. A problem of its values alone is left to the request."""
    composed = _composed_by_hydra("config", overrides, True)
    composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)  # for ${hydra:job.num}
    with open_dict(composed):
        del composed["hydra"]
    typed = [
        item.input_line or "" for item in overrides if not item.is_hydra_override() or "searchpath" in item.key_or_group
    ]
    typed = [re.sub("=(True|False)$", lambda match: match[0].lower(), line) for line in typed]
    command = " ".join(["python -m longctx_rl", *map(shlex.quote, typed)])
    try:
        return RunRequest(command, load(composed))
    except ValueError as problem:
        return RunRequest(command, None, problem)


def composed(overrides: Sequence[str]) -> Config:
    """Return the configuration of a run for a command that does not start it; +algo=dgrpo if no method is given.

    Raises:
        ValueError: the configuration is invalid, in one sentence.
    """
    if not any(item.startswith("+algo=") for item in overrides):
        overrides = [*overrides, "+algo=dgrpo"]
    return load(_compose("config", overrides))


def composed_grids(experiment_name: str) -> list[Config]:
    """Return every run of the sweeps in conf/experiment/ with this ``experiment_name``; raises as ``composed`` does.

    Runs that choose the same files of conf/ share one composition, to which their other values are applied.
    """
    with _in_one_sentence(Config), _initialized():
        return [
            run
            for experiment, (name, params) in _sweeps(config_directory() / "experiment").items()
            if name == experiment_name and params
            for run in _grid(experiment, params)
        ]


@cache
def _sweeps(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Map each file of conf/experiment/ to its ``experiment_name`` and the parameters of its sweep. Composed once."""
    sweeps = {}
    for path in sorted(folder.glob("*.yaml")):
        settings = hydra.compose("config", [f"+experiment={path.stem}"], return_hydra_config=True)
        sweeps[path.stem] = (str(settings.experiment_name), dict(settings.hydra.sweeper.params or {}))
    return sweeps


def _grid(experiment: str, params: dict[str, Any]) -> Iterator[Config]:
    by_choice: dict[tuple[str, ...], DictConfig] = {}
    for cell in _cells(_parsed(f"{key}={values}" for key, values in params.items())):
        choices = file_choices(cell)
        if choices not in by_choice:
            algo = () if any(item.startswith("+algo=") for item in cell) else ("+algo=dgrpo",)
            by_choice[choices] = hydra.compose("config", [*choices, *algo, f"+experiment={experiment}"])
        yield load(with_values(by_choice[choices], [item for item in cell if item not in choices]))


def file_choices(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides that only a composition can apply; the others set single values (see ``with_values``).

    These choose files of conf/, delete a key (``~key``) or force a value (``++key=value``).
    """
    groups = config_groups().keys()
    return tuple(
        item for item in overrides if item.startswith(("~", "++")) or re.split(r"[@=]", item.lstrip("+"))[0] in groups
    )


def with_values(base: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Copy a composed configuration and set single values in it, as the last step of Hydra's composition does."""
    changed = base.copy()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        with open_dict(changed) if override.is_add() else nullcontext():
            OmegaConf.update(changed, override.key_or_group, override.value(), merge=True)
    return changed


def composed_build(overrides: Sequence[str]) -> BuildConfig:
    """Return the configuration of a data set that is built from documents. Raises ValueError as ``composed`` does."""
    settings = _compose("build", overrides)
    for key in ("documents", "out"):
        if OmegaConf.is_missing(settings, key):
            raise ValueError("give both folders: documents=FOLDER out=FOLDER")
    return convert.convert(BuildConfig, resolved(settings))


def composed_evaluate(overrides: Sequence[str]) -> EvaluateConfig:
    """Return the configuration of an evaluation. Raises ValueError as ``composed`` does."""
    # The files of conf/rollout/ are for training.
    settings = _compose("evaluate", [re.sub("^rollout=", "rollout.name=", line) for line in overrides])
    if OmegaConf.is_missing(settings, "checkpoint"):
        raise ValueError("give a checkpoint: checkpoint=FOLDER, such as the export/ of a run")
    if OmegaConf.is_missing(settings, "out"):
        raise ValueError("give a folder for the results: out=FOLDER")
    config = convert.convert(EvaluateConfig, resolved(settings))
    config = replace(config, eval=config.eval.with_files(), out=os.path.expanduser(config.out))
    checks.check_evaluate(config)
    return config


def composed_harness(overrides: Sequence[str]) -> HarnessConfig:
    """Return the configuration of an evaluation on lm_eval's tasks. Raises ValueError as ``composed`` does."""
    settings = _compose("harness", overrides)
    for key, example in (("checkpoint", "FOLDER"), ("tasks", "[mmlu]"), ("out", "FOLDER")):
        if OmegaConf.is_missing(settings, key):
            raise ValueError(f"give {key}: {key}={example}")
    config = convert.convert(HarnessConfig, resolved(settings))
    include = None if config.include is None else os.path.expanduser(config.include)
    return replace(config, out=os.path.expanduser(config.out), include=include)


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    with _in_one_sentence(KINDS[name]), _initialized():
        return _composed_by_hydra(name, _parsed(overrides))


def _composed_by_hydra(name: str, overrides: Sequence[Override], with_hydra: bool = False) -> DictConfig:
    """Compose a top-level file of conf/ with overrides, and with Hydra's own settings if requested."""
    for override in overrides:
        if override.is_sweep_override():
            key = override.get_key_element()
            sweep = "add -m to start a run for each of them, " if with_hydra else ""
            raise ValueError(
                f"{override.input_line} gives several values: {sweep}write a list as "
                f"{key}=[...], or quote a text that contains commas or brackets, such as '{key}=\"a,b\"'"
            )
    lines = [override.input_line or "" for override in overrides]
    return hydra.compose(name, lines, return_hydra_config=with_hydra)


def _parsed(lines: Iterable[str]) -> list[Override]:
    """Parse overrides. An unquoted ``~/`` is the home directory, as in a shell.

    Raises:
        ValueError: an override cannot be read; the sentence shows how it is written.
    """
    parser, groups = OverridesParser.create(GlobalHydra.instance().config_loader()), config_groups()
    overrides = []
    for line in lines:
        key, _, path = line.partition("=")
        if path.startswith("~/") and not (path := os.path.expanduser(path)).startswith("~"):
            line = f"{key}={convert.quoted(path)}"
        try:
            (override,) = parser.parse_overrides([line])
        except HydraException as error:
            raise ValueError(_unreadable(line)) from error
        if not override.key_or_group:
            raise ValueError(_unreadable(line))
        if not (override.is_delete() or override.is_sweep_override()):
            _check_choice(override, groups.get(override.key_or_group))
        overrides.append(override)
    return overrides


def _check_choice(override: Override, files: list[str] | None) -> None:
    """Raise ValueError if an override of a group does not name a file. ``files``: those that the group has."""
    value = override.value()
    if isinstance(value, dict) or not (files or "/" in override.key_or_group):
        return
    if override.key_or_group == "algo" and isinstance(value, list):
        raise ValueError(f"{override.input_line}: choose one method; -m +algo=sft,kd starts a run of each")
    if not all(isinstance(name, str) and "${" not in name for name in (value if isinstance(value, list) else [value])):
        raise ValueError(f"{override.input_line}: choose a file by its name, such as {', '.join(files or ['basic'])}")


def _unreadable(line: str) -> str:
    """Return what is wrong with an override that Hydra's grammar does not allow, and how it is written."""
    key, equals, value = line.partition("=")
    name = key.strip("+~: ")
    if line.startswith("-"):
        return _not_an_option(line)
    if not equals:
        groups = config_groups()
        if name in groups:
            return f"{line} has no value: write {_choice(name, 'NAME')} with one of {', '.join(groups[name])}"
        if choices := [_choice(group, name) for group, files in groups.items() if name in files]:
            return f"{line} is a value without a key: write {' or '.join(choices)}"
        name, _, value = name.partition(":")
        setting = f"{name}={value.strip() or 'VALUE'}" if re.fullmatch(r"[\w.]+", name) else "seed=1"
        return f"{line or repr(line)} is not of the form KEY=VALUE, without spaces around =, such as {setting}"
    if not name:
        return f"{line} has no key: write KEY=VALUE, without spaces around ="
    if not re.fullmatch(r"(\+{0,2}|~)[A-Za-z_$][\w$/-]*(\.[\w$-]+)*(@[\w.:$-]*)?", key, re.ASCII):
        return f"{line}: {key!r} is not a key, which is made of names and dots without spaces, such as optim.lr=1e-4"
    if value[:1] in ("[", "{"):
        return f'{line}: close every bracket, and quote each text inside, such as \'logging.tags=["a b","c=d"]\''
    unclosed = value[:1] in ("'", '"') and value.count(value[0]) == 1
    return f"{line} cannot be read: quote the value, {convert.setting(key, value[1:] if unclosed else value)}"


def _not_an_option(argument: str) -> str:
    """Return what is wrong with an argument with dashes that is not an option, and how a setting is written."""
    key, _, value = argument.lstrip("-").partition("=")
    setting = _choice(key, value or "VALUE") if key else "seed=1"
    return f"{argument} is not an option; settings have no dashes: write {setting}, or see --help"


def _choice(group: str, name: str) -> str:
    """Return the override that chooses a file of a group."""
    return f"{'+' if group in ADDED else ''}{group}={name}"


@contextmanager
def _in_one_sentence(kind: type) -> Iterator[None]:
    """Turn an error of Hydra's into a ValueError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence(error, kind)) from error


@contextmanager
def _initialized() -> Iterator[None]:
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        yield


def config_directory() -> Path:
    """Return the path of conf/: at the top of a checkout, or inside the package if it was installed from a wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else package / "conf"


def config_groups() -> dict[str, list[str]]:
    """Return the groups of conf/ with the files that can be chosen, both sorted."""
    top = config_directory()
    files: dict[str, list[str]] = {}
    for path in sorted(top.glob("*/**/*.yaml")):
        if not path.name.startswith("_"):
            files.setdefault(path.parent.relative_to(top).as_posix(), []).append(path.stem)
    return files


def sentence(error: Exception, kind: type = Config) -> str:
    """Return an error from composing a configuration of this kind as one line with the fix."""
    text = " ".join(str(error).split("\nSee ")[0].split())
    if unknown := re.match(r"Could not override '([^']+)'\. To append to your config", text):
        return convert.unknown_key(kind, unknown[1])
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        install = "; for submitit_*: pip install 'longctx-rl[slurm]'" if group == "hydra/launcher" else ""
        options = [option for option in error.options if not option.startswith("_")]
        close = [f"did you mean {option}?" for option in difflib.get_close_matches(name.lower(), options, n=1)]
        return " ".join([f"{group}={name}:", *close, "choose one of", ", ".join(options)]) + install
    for pattern, words in REWORDED:
        if found := re.fullmatch(pattern, text):
            return found.expand(words)
    return text
