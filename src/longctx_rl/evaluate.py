"""``python -m longctx_rl.evaluate checkpoint=FOLDER out=FOLDER [eval=all]``: evaluate a checkpoint on suites of items.

    python -m longctx_rl.evaluate checkpoint=mini-student out=runs/mini-student eval=code eval.items=100
    python -m longctx_rl.evaluate checkpoint=mini-student out=runs/mini-student processes=2
    python -m longctx_rl.evaluate checkpoint=mini-student out=runs/mini-student rollout=vllm

Suites: eval=heldout, longreason, ruler, code, or all of them; short, longblocks, longreason_hub. kl.base=FOLDER
measures the KL divergence from another checkpoint; logging=wandb mirrors the results, as it does those of a training
run; rollout=vllm answers with a vLLM server, which it starts. Settings are in conf/evaluate.yaml and conf/eval/. Every
answer is written to out/evals/<suite>.jsonl as soon as it is graded; the same command, or one with more items,
continues from there.
"""

import sys
from pathlib import Path

from longctx_rl import cli
from longctx_rl.config.compose import composed_evaluate
from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.evals import folder, preconditions


def evaluate(config: EvaluateConfig) -> str:
    """Evaluate what is missing, write the page and the mirror, and return the tables.

    Raises:
        ValueError: a checkpoint, suite or folder that cannot be used, or code that cannot be run.
    """
    out = Path(config.out)
    backend = preconditions.check_evaluate(config)
    with folder.locked(out):
        folder.check(out, config)
        print(f"loading {config.checkpoint} (torch, transformers)", file=sys.stderr, flush=True)
        from longctx_rl.evals.checkpoint_evaluation import evaluate_checkpoint

        tables = evaluate_checkpoint(config, backend)
    if config.logging.mode != "disabled":
        mirror(config)
    from longctx_rl.report.answers import page

    return "\n\n".join([*tables, page.write(out)])


def mirror(config: EvaluateConfig) -> None:
    """Mirror all results in the folder, including those of earlier evaluations, to wandb as a run of its own."""
    from longctx_rl.evals import summary
    from longctx_rl.report.answers import evaluation_folder
    from longctx_rl.runs.metrics import Row
    from longctx_rl.runs.wandb import Mirror, evaluation_settings

    out = Path(config.out).resolve()
    row: Row = {"step": 0}
    for suite in evaluation_folder.load(out).suites:
        row |= summary.metrics(suite.records, suite.name) if suite.records else {}
    mirrored = Mirror(evaluation_settings(config))
    mirrored.log(row)
    mirrored.keep(out, None)
    mirrored.close()


def main() -> None:
    """Entry point."""
    cli.main(__doc__ or "", lambda overrides: evaluate(composed_evaluate(overrides)), "lower rollout.batch_tokens")


if __name__ == "__main__":
    main()
