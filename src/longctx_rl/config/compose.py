"""Composition of configurations from conf/ and a command line.

This is the only module that imports Hydra, and it does not import torch.
Hydra only composes: the work of a command starts after Hydra has returned.
"""

import itertools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from longctx_rl.config import checks, convert
from longctx_rl.config.build import BuildConfig
from longctx_rl.config.eval import EvaluateConfig, HarnessConfig
from longctx_rl.config.load import load
from longctx_rl.config.schema import Config, RunRequest

KINDS: dict[str, type] = {
    "config": Config,
    "build": BuildConfig,
    "evaluate": EvaluateConfig,
    "harness": HarnessConfig,
}
"""Top-level file of conf/ to the class that it is converted into."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The runs that a command line of ``python -m longctx_rl`` requests."""

    requests: list[RunRequest]
    """Empty after --cfg and --info, which print and return."""
    is_sweep: bool
    launcher: tuple[str, dict[str, Any]] | None
    """Name and settings of the Hydra launcher that the command line chooses. None: Hydra's basic launcher."""


def command_line() -> CommandLine:
    """Compose every run that ``sys.argv`` requests.

    Raises:
        ValueError: the command line is invalid, in one sentence. An invalid run of a sweep does not raise: its request
            carries the problem.
    """
    # Without this variable, Hydra prints its errors itself over several lines instead of raising them.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[0] = "python -m longctx_rl"  # the name in argparse's messages
    try:
        return _command_line()
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback == "1":
            raise
        raise ValueError(sentence(error)) from error
    finally:
        if wants_traceback is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = wants_traceback


def _command_line() -> CommandLine:
    requests: list[RunRequest] = []
    modes: set[RunMode | None] = set()

    def collect(composed: DictConfig) -> None:
        settings = HydraConfig.get()
        modes.add(settings.mode)
        overrides = OmegaConf.to_container(settings.overrides.task)  # unresolved, as they were typed
        assert isinstance(overrides, list)
        typed = [re.sub("=(True|False)$", lambda match: match[0].lower(), str(item)) for item in overrides]
        command = " ".join(["python -m longctx_rl", *map(shlex.quote, typed)])
        try:
            requests.append(RunRequest(command, load(composed)))
        except ValueError as problem:
            requests.append(RunRequest(command, None, problem))

    launcher = _take_launcher() if {"-m", "--multirun"} & set(sys.argv[1:]) else None
    with tempfile.TemporaryDirectory(prefix="longctx_rl-") as scratch:
        os.environ["LONGCTX_RL_SCRATCH"] = scratch
        try:
            hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")(collect)()
        finally:
            del os.environ["LONGCTX_RL_SCRATCH"]
    return CommandLine(requests, RunMode.MULTIRUN in modes, launcher)


def _take_launcher() -> tuple[str, dict[str, Any]] | None:
    """Remove the launcher that the command line or an experiment chooses from ``sys.argv``, and return it.

    Hydra would hand the whole program to that launcher. Instead, Hydra composes with its basic launcher, and the runs
    are submitted later.
    """
    overrides = [item for item in sys.argv[1:] if not item.startswith("-") and ("=" in item or item.startswith("~"))]
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    with _initialized():
        settings = hydra.compose("config", fixed, return_hydra_config=True).hydra
    name = settings.runtime.choices["hydra/launcher"]
    if name == "basic":
        return None
    sys.argv = [item for item in sys.argv if not re.match(r"\+{0,2}hydra[/.]launcher", item)] + ["hydra/launcher=basic"]
    return name, {str(key): value for key, value in settings.launcher.items()}


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
    axes = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    levels = [
        list(axis.sweep_string_iterator()) if axis.is_sweep_override() else [axis.get_value_element_as_str()]
        for axis in axes
    ]
    by_choice: dict[tuple[str, ...], DictConfig] = {}
    for values in itertools.product(*levels):
        cell = [f"{key}={value}" for key, value in zip(params, values, strict=True)]
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
    return convert.convert(BuildConfig, OmegaConf.to_container(settings, resolve=True))


def composed_evaluate(overrides: Sequence[str]) -> EvaluateConfig:
    """Return the configuration of an evaluation. Raises ValueError as ``composed`` does."""
    settings = _compose("evaluate", overrides)
    if OmegaConf.is_missing(settings, "checkpoint"):
        raise ValueError("give a checkpoint: checkpoint=FOLDER, such as the export/ of a run")
    if OmegaConf.is_missing(settings, "out"):
        raise ValueError("give a folder for the results: out=FOLDER")
    config = convert.convert(EvaluateConfig, OmegaConf.to_container(settings, resolve=True))
    config = replace(config, eval=config.eval.with_files())
    checks.check_evaluate(config)
    return config


def composed_harness(overrides: Sequence[str]) -> HarnessConfig:
    """Return the configuration of an evaluation on lm_eval's tasks. Raises ValueError as ``composed`` does."""
    settings = _compose("harness", overrides)
    for key, example in (("checkpoint", "FOLDER"), ("tasks", "[mmlu]"), ("out", "FOLDER")):
        if OmegaConf.is_missing(settings, key):
            raise ValueError(f"give {key}: {key}={example}")
    return convert.convert(HarnessConfig, OmegaConf.to_container(settings, resolve=True))


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    with _in_one_sentence(KINDS[name]), _initialized():
        return hydra.compose(name, list(overrides))


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
    text = str(error)
    unknown = re.match(r"Could not override '([^']+)'\.\s+To append to your config", text)
    if unknown:
        return convert.unknown_key(kind, unknown[1])
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        install = "; for submitit_*: pip install 'longctx-rl[slurm]'" if group == "hydra/launcher" else ""
        options = [option for option in error.options if not option.startswith("_")]
        return f"{group}={name}: choose one of {', '.join(options)}{install}"
    return " ".join(text.split("\nSee ")[0].split())
