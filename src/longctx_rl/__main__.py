"""longctx_rl: five post-training methods for long contexts, as five settings of one objective.

Train             python -m longctx_rl +algo=dgrpo
Quick test        python -m longctx_rl +algo=dgrpo +experiment=smoke

Methods (the only setting without a default)
  +algo=sft       imitation of recorded answers: cross-entropy
  +algo=kd        distillation on recorded answers: forward KL to the teacher
  +algo=grpo      exploration: policy gradient of group-relative rewards
  +algo=opd       distillation on the student's own tokens: reverse KL to the teacher
  +algo=dgrpo     exploration and on-policy distillation: grpo + 0.5 opd
  +algo=opsd      opd with the student's initial weights as the teacher, which read only the evidence
  +algo=dgrpo_self  dgrpo with that teacher

Settings
  model=mini task=multihop seed=1         a file of a group below, or a value
  optim.lr=1e-4 budget.steps=200          any value that --cfg job prints
  model.student=runs/a/b/export           start from an earlier run, such as an SFT cold start
  algo.kd.estimator=topk algo.kd.top_k=64 any part of the objective
  algo.kd.teacher=ema algo.kd.view=short  who the teacher is, and what it reads (docs/algorithms.md)
  engine.num_processes=2                  processes on this machine; engine=local: plain torch, no DeepSpeed

Sweep             python -m longctx_rl -m +algo=sft,kd,grpo,opd,dgrpo seed=0,1,2
Whole grid        python -m longctx_rl -m +experiment=table1; sweep.plan=true prints its cost instead
Parallel runs     sweep.jobs=2; on Slurm: hydra/launcher=submitit_slurm (docs/grids.md)
Resume            the same command with resume=true, after Ctrl-C or a crash; finished runs are skipped
Memory check      python -m longctx_rl.doctor model=qwen3_1_7b context=32768 devices=8 memory=80
Evaluate          python -m longctx_rl.evaluate checkpoint=FOLDER out=FOLDER eval=code
Several machines  docs/multi-node.md

Results: runs/<experiment_name>/<algo>-<model>-<task>-s<seed>/
  config.yaml  environment.json  log.txt  metrics.jsonl  evals/  rollouts/  checkpoints/  export/  wandb/  finished.json

Groups and their files
"""

import sys
from pathlib import Path

from longctx_rl import cli
from longctx_rl.config.compose import command_line, config_groups
from longctx_rl.launch import rank, single

EPILOGUE = "Print the whole configuration: python -m longctx_rl +algo=dgrpo --cfg job"


def main() -> None:
    """Entry point. The exit code is that of the run, 0 or 1 for a sweep, or 2 if the command line cannot be used."""
    cli.run(_help if {"-h", "--help"} & set(sys.argv[1:]) else _train, memory=rank.MEMORY_ADVICE)


def _help() -> int:
    groups = [f"  {name}: {', '.join(files)}" for name, files in config_groups().items()]
    return cli.show("\n".join([str(__doc__).rstrip(), *groups, "", EPILOGUE]))


def _train() -> int:
    line = command_line()
    if not line.is_sweep:  # no request remains after --cfg and --info, which print and return
        return single.single(line.requests[0]) if line.requests else 0
    from longctx_rl.launch.slurm import launcher_from
    from longctx_rl.launch.sweep import sweep
    from longctx_rl.report import results

    launcher = launcher_from(*line.launcher) if line.launcher else None
    return sweep(line.requests, launcher, results.measured(Path("experiments")))


if __name__ == "__main__":
    main()
