"""``python -m longctx_rl``: compose the configuration, check it, and hand it to the launcher.

Hydra runs here and nowhere else, and only composes: what trains is started after it has returned. torch is imported
by what follows a configuration that was found good, so help and errors are quick.
"""

import itertools
import os
import re
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longctx_rl import cli
from longctx_rl.config import checks, convert, schema
from longctx_rl.config.build import BuildConfig
from longctx_rl.config.eval import EvaluateConfig, HarnessConfig
from longctx_rl.launch import single, sweep
from longctx_rl.launch.slurm import Launcher, launcher_from

KINDS: dict[str, type] = {
    "config": schema.Config,
    "build": BuildConfig,
    "evaluate": EvaluateConfig,
    "harness": HarnessConfig,
}
"""Top file of conf/ to what it becomes."""


def main() -> None:
    """Entry point. Exits with 0, with 2 for what cannot run, or with the exit code of the run; a sweep with 0 or 1."""
    # Hydra prints its errors itself, over several lines, unless it is told to raise them.
    asked_for_traceback = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[0] = "python -m longctx_rl"  # the name in argparse's messages
    try:
        requests, is_sweep, launcher = compose()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if asked_for_traceback == "1":
            raise
        cli.complain(sentence(error))
        sys.exit(cli.UNUSABLE)
    finally:
        if asked_for_traceback is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked_for_traceback
    if requests:  # none after --cfg and --info, which print and return
        sys.exit(sweep.sweep(requests, launcher) if is_sweep else single.single(requests[0]))


def compose() -> tuple[list[single.RunRequest], bool, Launcher | None]:
    """The runs that the command line asks for, whether it is a sweep, and what submits its runs if not this program.

    Raises:
        ValueError: a launcher that is not supported.
    """
    requests: list[single.RunRequest] = []
    modes: set[RunMode | None] = set()

    def collect(composed: DictConfig) -> None:
        settings = HydraConfig.get()
        modes.add(settings.mode)
        overrides = OmegaConf.to_container(settings.overrides.task)  # unresolved, as they were typed
        assert isinstance(overrides, list)
        typed = [re.sub("=(True|False)$", lambda found: found[0].lower(), str(item)) for item in overrides]
        command = " ".join(["python -m longctx_rl", *map(shlex.quote, typed)])
        try:
            requests.append(single.RunRequest(command, schema.load(composed)))
        except ValueError as problem:
            requests.append(single.RunRequest(command, None, problem))

    launcher = take_launcher() if {"-m", "--multirun"} & set(sys.argv[1:]) else None
    with tempfile.TemporaryDirectory(prefix="longctx_rl-") as scratch:
        os.environ["LONGCTX_RL_SCRATCH"] = scratch
        try:
            hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="config")(collect)()
        finally:
            del os.environ["LONGCTX_RL_SCRATCH"]
    return requests, RunMode.MULTIRUN in modes, launcher


def take_launcher() -> Launcher | None:
    """The launcher that the command line or an experiment chooses, taken out of the command line; None: Hydra's own.

    Hydra would hand its launcher the whole program; here it only composes, with its own, and runs are submitted later.
    """
    overrides = [one for one in sys.argv[1:] if not one.startswith("-") and ("=" in one or one.startswith("~"))]
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [one.input_line or "" for one in parsed if not one.is_sweep_override()]
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        settings = hydra.compose("config", fixed, return_hydra_config=True).hydra
    name = settings.runtime.choices["hydra/launcher"]
    if name == "basic":
        return None
    sys.argv = [one for one in sys.argv if not re.match(r"\+{0,2}hydra[/.]launcher", one)] + ["hydra/launcher=basic"]
    return launcher_from({str(key): value for key, value in settings.launcher.items()}, name)


def composed(overrides: list[str]) -> schema.Config:
    """The configuration of a command that only reads it; +algo=dgrpo if no method is given.

    Raises:
        ValueError: in one sentence, whatever is wrong.
    """
    if not any(one.startswith("+algo=") for one in overrides):
        overrides = [*overrides, "+algo=dgrpo"]
    return schema.load(_compose("config", overrides))


def composed_grids(experiment_name: str) -> list[schema.Config]:
    """Every run that the sweeps of this ``experiment_name`` in conf/experiment/ ask for; raises as ``composed``."""
    runs = []
    for path in sorted((config_directory() / "experiment").glob("*.yaml")):
        found = _compose("config", [f"+experiment={path.stem}"], hydra_too=True)
        if found.experiment_name != experiment_name or not found.hydra.sweeper.params:
            continue
        params = [f"{key}={values}" for key, values in found.hydra.sweeper.params.items()]
        axes = [
            list(axis.sweep_string_iterator()) if axis.is_sweep_override() else [axis.get_value_element_as_str()]
            for axis in OverridesParser.create().parse_overrides(params)
        ]
        keys = [one.partition("=")[0] for one in params]
        for values in itertools.product(*axes):
            cell = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
            runs.append(composed([*cell, f"+experiment={path.stem}"]))
    return runs


def composed_build(overrides: list[str]) -> BuildConfig:
    """The configuration of a data set that is built from documents. Raises ValueError as ``composed`` does."""
    found = _compose("build", overrides)
    for key in ("documents", "out"):
        if OmegaConf.is_missing(found, key):
            raise ValueError("give both folders: documents=FOLDER out=FOLDER")
    return convert.convert(BuildConfig, OmegaConf.to_container(found, resolve=True))


def composed_evaluate(overrides: list[str]) -> EvaluateConfig:
    """The configuration of an evaluation. Raises ValueError as ``composed`` does."""
    found = _compose("evaluate", overrides)
    if OmegaConf.is_missing(found, "checkpoint"):
        raise ValueError("give a checkpoint: checkpoint=FOLDER, such as the export/ of a run")
    if OmegaConf.is_missing(found, "out"):
        raise ValueError("give a folder for the results: out=FOLDER")
    checked = convert.convert(EvaluateConfig, OmegaConf.to_container(found, resolve=True))
    checked = replace(checked, eval=checked.eval.asked())
    checks.check_evaluate(checked)
    return checked


def composed_harness(overrides: list[str]) -> HarnessConfig:
    """The configuration of lm_eval's tasks. Raises ValueError as ``composed`` does."""
    found = _compose("harness", overrides)
    for key, example in (("checkpoint", "FOLDER"), ("tasks", "[mmlu]"), ("out", "FOLDER")):
        if OmegaConf.is_missing(found, key):
            raise ValueError(f"give {key}: {key}={example}")
    return convert.convert(HarnessConfig, OmegaConf.to_container(found, resolve=True))


def _compose(name: str, overrides: list[str], hydra_too: bool = False) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
            return hydra.compose(name, overrides, return_hydra_config=hydra_too)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence(error, KINDS[name])) from error


def config_directory() -> Path:
    """``conf/``: at the top of a checkout, inside the package when installed from a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else package / "conf"


def sentence(error: Exception, kind: type = schema.Config) -> str:
    """An error of composing a configuration of this kind, in one line with the fix."""
    text = str(error)
    unknown = re.match(r"Could not override '([^']+)'\.\s+To append to your config", text)
    if unknown:
        return convert.unknown_key(kind, unknown[1])
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        install = "; for submitit_*: pip install 'longctx-rl[slurm]'" if group == "hydra/launcher" else ""
        return f"{group}={name}: choose one of {', '.join(error.options)}{install}"
    return " ".join(text.split("\nSee ")[0].split())


if __name__ == "__main__":
    main()
