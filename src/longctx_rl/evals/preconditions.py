"""What can be refused before torch and a model are loaded: suites, graders, files, folders, lengths and the sandbox."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from longctx_rl.config.eval import FILES, EvaluateConfig, HarnessConfig, SuiteConfig
from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE
from longctx_rl.evals import functions, longreason_hub
from longctx_rl.evals.grading import check_graders, runs_code
from longctx_rl.evals.suites import READ, check_suite
from longctx_rl.policy.model_folder import check_model
from longctx_rl.policy.shape import stated_context
from longctx_rl.policy.weights import locate
from longctx_rl.rollout.serving import check_vllm
from longctx_rl.sandbox import probe
from longctx_rl.sandbox.isolation import Backend

RESULTS = "results.json"
"""File of lm_eval's results in a folder of ``longctx_rl.harness``."""


def check_evaluate(config: EvaluateConfig) -> Backend | None:
    """Check a configuration of ``longctx_rl.evaluate``.

    Returns:
        The sandbox backend that runs generated code; None: no suite runs code.

    Raises:
        ValueError: an unknown suite or label; a reward that cannot grade; a model, file or sandbox that is not
            available; an interpreter without vLLM; lengths beyond the context.
    """
    check_suites(config.eval.suites)
    if config.tokenizer is not None:
        locate(config.tokenizer)
    for model in (config.checkpoint, config.kl.base):
        if model is not None:
            check_model(model)
    context = stated_context(config.checkpoint, config.yarn)
    if context is not None:
        check_lengths(config, context)
    if config.rollout.name == "vllm" and config.rollout.server == "auto":
        check_vllm(config.rollout.python)
    return probe.choose(config.sandbox) if runs_code(config.eval.suites) else None


def check_suites(suites: Mapping[str, SuiteConfig]) -> None:
    """Raise ValueError for an unknown suite or label, a reward that cannot grade, or a file that is not available."""
    for name, suite in suites.items():
        check_suite(name, suite.labels)
    check_graders(suites)
    for name, suite in suites.items():
        if name in FILES:
            functions.problems(suite, name)
        if name == longreason_hub.TASK:
            longreason_hub.find(suite)


def check_lengths(config: EvaluateConfig, context: int, server: str | None = None) -> None:
    """Raise ValueError for prompt lengths that leave no room for the answer in a context of ``context`` tokens.

    Args:
        server: the address of the server whose context it is; None: the checkpoint's own.
    """
    longer = "serve a larger --max-model-len"
    if server is None:
        longer = "stretch the model, yarn='{factor: 4.0, original_context: 32768}'"
    for name, suite in config.eval.suites.items():
        if name in READ:
            continue  # prompts of suites that are read have their own lengths: see answering.py
        need = round((1 + LENGTH_TOLERANCE) * max(suite.lengths)) + suite.max_new_tokens
        if need > context:
            raise ValueError(
                f"eval.suites.{name}.lengths needs {need} tokens with the answer, but the context of "
                f"{server or config.checkpoint} is {context}: lower it, or {longer}"
            )


def check_harness(config: HarnessConfig) -> None:
    """Check a configuration of ``longctx_rl.harness``.

    Raises:
        ValueError: lm_eval is not installed; a model or folder is not available; the output folder holds results.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("lm_eval is not installed: pip install 'longctx-rl[lmeval]'")
    if (Path(config.out) / RESULTS).exists():
        raise ValueError(f"{config.out} holds results already: choose another out=FOLDER")
    if config.tokenizer is not None:
        locate(config.tokenizer)
    check_model(config.checkpoint)
    if config.include is not None and not Path(config.include).is_dir():
        raise ValueError(f"include={config.include} is not a folder: give a folder of task files, or include=null")
