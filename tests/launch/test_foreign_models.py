"""Commands refuse an architecture that they would score or sample wrongly: one line, exit code 2, and no folder."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM, NemotronConfig, NemotronForCausalLM

from launch.smoke_runs import Command
from longctx_rl import evaluate
from longctx_rl.policy.loading import load_tokenizer

CLASSES = {"nemotron": (NemotronForCausalLM, NemotronConfig), "diffllama": (DiffLlamaForCausalLM, DiffLlamaConfig)}
NEMOTRON = (
    "error: NemotronForCausalLM cannot be run on shared prompts (NemotronAttention is not given the layout of a packed "
    "row): choose another model, such as Qwen3 or Llama\n"
)
DIFFLLAMA = (
    "error: DiffLlamaForCausalLM gives a token another log-probability in decoding on shared prompts than alone, "
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny models with the shipped models' tokenizer."""
    root, tokenizer = tmp_path_factory.mktemp("models"), load_tokenizer("mini-student")
    for name, (architecture, config) in CLASSES.items():
        torch.manual_seed(0)
        model = architecture(
            config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=4096,
                initializer_range=0.2,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("engine", ["local", "zero3"])
def test_training(command: Command, models: Path, tmp_path: Path, role: str, engine: str) -> None:
    arguments = ["+algo=opd", "+experiment=smoke", "logging=none", f"engine={engine}"]
    code, _, stderr = command(*arguments, f"model.{role}={models / 'nemotron'}")
    assert (code, stderr) == (2, NEMOTRON)
    assert not any(tmp_path.rglob("config.yaml"))


def test_a_student_that_does_not_sample_must_not_decode(command: Command, models: Path) -> None:
    arguments = ["+algo=sft", "+experiment=smoke", "logging=none", "engine=local", "budget.steps=1"]
    arguments += [f"model.student={models / 'diffllama'}"]
    code, _, stderr = command(*arguments)
    assert code == 2 and stderr.startswith(DIFFLLAMA)
    code, stdout, _ = command(*arguments, "eval=none", "batch.backward=packed")
    assert code == 0 and "finished after 1 steps" in stdout


@pytest.mark.parametrize(
    ("checkpoint", "arguments", "message"),
    [("diffllama", [], DIFFLLAMA), ("nemotron", ["kl.base=mini-student"], NEMOTRON)],
    ids=["samples", "scores"],
)
def test_evaluation(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: str,
    arguments: list[str],
    message: str,
) -> None:
    out = tmp_path / "evaluated"
    shown = ["", f"checkpoint={models / checkpoint}", f"out={out}", "eval=heldout", "eval.items=1", *arguments]
    monkeypatch.setattr(sys, "argv", shown)
    with pytest.raises(SystemExit) as exited:
        evaluate.main()
    assert exited.value.code == 2 and message in capsys.readouterr().err
    assert not out.exists()
