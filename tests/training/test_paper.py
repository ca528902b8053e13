"""The paper's two stages at tiny width: the experiment files as they are, but for width, length, folders and judge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Qwen3Config

from longctx_rl import doctor
from longctx_rl.config.compose import composed
from longctx_rl.policy import loading
from longctx_rl.policy.loading import load_tokenizer
from openai_server import Reply, Server, serving
from small_runs import train

FIXTURE = Path(__file__).parents[1] / "data" / "fixture"
NAMES = {"student": "Qwen/Qwen3-1.7B", "teacher": "Qwen/Qwen3-32B"}
SHAPES: dict[str, dict[str, Any]] = {
    # The ratios of the two: 2 and 8 query heads to each pair of key and value, heads as wide as the model and wider.
    "student": {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2},
    "teacher": {"hidden_size": 80, "intermediate_size": 400, "num_attention_heads": 8, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Qwen3 with random weights: normed queries and keys, grouped heads, the student's embeddings tied."""
    root, tokenizer = tmp_path_factory.mktemp("models"), load_tokenizer("mini-student")
    for name, shape in SHAPES.items():
        config = Qwen3Config(
            **shape,
            vocab_size=len(tokenizer),
            num_hidden_layers=2 if name == "student" else 3,
            head_dim=16,
            max_position_embeddings=40_960,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            tie_word_embeddings=name == "student",
            initializer_range=0.3,
            eos_token_id=tokenizer.eos_token_id,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return [f"model.{name}={root / name}" for name in SHAPES]


@pytest.fixture(scope="module")
def judge() -> Iterator[Server]:
    """A judge that accepts every other answer."""
    with serving(lambda number, _: Reply("no" if number % 2 else "yes")) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(models: list[str], judge: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("paper")
    return [
        *models,
        f"runs_root={root / 'runs'}",
        f"data.longblocks.path={FIXTURE / 'rows'}",
        f"data.longblocks.short.path={FIXTURE / 'chat'}",
        f"data.longblocks.cache={root / 'rows'}",
        f"reward.judge.base_url={judge.url}",
        f"reward.judge.cache={root / 'judge.sqlite'}",
        "data.longblocks.max_tokens=400",
        "data.longblocks.short.split=train",
        "data.longblocks.short.streaming=false",
        "batch.prompts_per_step=2",
        "budget.steps=2",
        "engine.num_processes=1",
        "logging=none",
    ]


def test_what_is_known_of_the_paper_is_configured() -> None:
    first, second = composed(["+algo=sft", "+experiment=paper_sft"]), composed(["+algo=dgrpo", "+experiment=paper"])
    for config in (first, second):
        rows, model = config.data.longblocks, config.model
        assert rows is not None and rows.short is not None and model.yarn is not None
        assert (model.student, model.teacher, model.dtype) == (NAMES["student"], NAMES["teacher"], "bfloat16")
        assert rows.max_tokens + config.rollout.max_new_tokens == model.yarn.context == 131_072
        assert (rows.path, rows.short.share) == ("utter-project/LongBlocks", 0.1)
        assert "Nemotron-Post-Training-Dataset-v2" in rows.short.path and config.optim.max_grad_norm == 1.0
    assert first.budget.steps == 2 * second.budget.steps and first.algo.weights.ce == 1
    algo, judge = second.algo, second.reward.judge
    assert (algo.weights.pg, algo.weights.kd, algo.weights.ref, algo.group_size) == (1.0, 0.5, 0.0, 8)
    assert (algo.clip_low, algo.clip_high, algo.kd.direction, algo.aggregate) == (0.2, 0.2, "reverse", "sequence")
    assert judge is not None and judge.model == "Qwen/Qwen3-4B" and second.reward.graders == {"other": "judge"}


@pytest.mark.parametrize("stage", [["+experiment=paper"], ["+algo=sft", "+experiment=paper_sft"]])
def test_the_doctor_reports_without_a_network_that_it_fits(
    stage: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_config", None)
    assert doctor.diagnose([*stage, "context=131072", "memory=80"])
    assert capsys.readouterr().out.endswith("on each of 8\n")
    with pytest.raises(ValueError, match=r"Qwen3-1\.7B .*40960"):
        doctor.diagnose([*stage, "context=131072", "memory=80", "model.yarn=null"])


def test_both_stages_take_their_first_steps(tiny: list[str], judge: Server) -> None:
    first = composed(["+algo=sft", "+experiment=paper_sft", *tiny, "rollout.max_new_tokens=128"])
    assert (first.engine.name, first.model.dtype) == ("zero3", "bfloat16")
    rows = train(first)
    assert [row["step"] for row in rows] == [1, 2] and all(row["grad/norm"] > 0 for row in rows)
    assert not judge.requests
    export = Path(first.run_dir) / "export"
    stretched = json.loads((export / "config.json").read_text())
    assert stretched["max_position_embeddings"] == 131_072 and stretched["tie_word_embeddings"]
    assert stretched["rope_parameters"] == {
        "rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, "original_max_position_embeddings": 32_768,
    }  # fmt: skip

    second = composed(
        ["+algo=dgrpo", "+experiment=paper", *tiny, f"model.student={export}", "rollout.max_new_tokens=16"]
    )
    rows = train(second)
    assert [row["step"] for row in rows] == [1, 2] and all(row["grad/norm"] > 0 for row in rows)
    assert all(row["teacher/kl_reverse"] > 0 and 0 < row["rollout/reward_mean"] < 1 for row in rows)
    assert {request["model"] for request in judge.requests} == {"Qwen/Qwen3-4B"}
    model = AutoModelForCausalLM.from_pretrained(Path(second.run_dir) / "export")
    assert model.config.max_position_embeddings == 131_072
