"""``python -m longctx_rl.harness checkpoint=FOLDER tasks=[NAME,...] out=FOLDER``: run lm_eval's tasks on a checkpoint.

    python -m longctx_rl.harness checkpoint=runs/a/b/export tasks=[mmlu] fewshot=5 out=evaluations/mmlu
    python -m longctx_rl.harness checkpoint=runs/a/b/export tasks=[ruler] lengths=[4096,8192] out=evaluations/ruler

Tasks and groups are those of EleutherAI's lm_eval, such as RULER, LongBench, InfiniteBench and MMLU, or task files in a
folder, include=FOLDER. lm_eval must be installed: pip install 'longctx-rl[lmeval]'. Settings are in conf/harness.yaml.
"""

import sys

from longctx_rl import cli
from longctx_rl.config.compose import composed_harness
from longctx_rl.config.eval import HarnessConfig
from longctx_rl.evals import preconditions


def run(config: HarnessConfig) -> str:
    """Run the tasks, write results.json and samples.json, and return lm_eval's table.

    Raises:
        ValueError: lm_eval is missing; a task is unknown or unsafe, or its data are not available; a checkpoint or
            folder cannot be used.
    """
    preconditions.check_harness(config)
    print(f"loading {config.checkpoint} (torch, transformers, lm_eval)", file=sys.stderr, flush=True)
    try:
        from longctx_rl.evals.harness_tasks import run_tasks
    except ImportError as error:  # of lm_eval or what it needs
        raise ValueError(f"lm_eval cannot be imported ({error}): pip install 'longctx-rl[lmeval]'") from error

    return run_tasks(config)


def main() -> None:
    """Entry point."""
    cli.main(__doc__ or "", lambda overrides: run(composed_harness(overrides)), "lower batch_tokens")


if __name__ == "__main__":
    main()
