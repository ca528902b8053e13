"""The lm_eval adapter: likelihoods against float64 and lm_eval's own model, and tasks from a folder."""

import json
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import torch

pytest.importorskip("lm_eval", reason="pip install 'longctx-rl[lmeval]'")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from longctx_rl import harness
from longctx_rl.config.compose import composed_harness
from longctx_rl.evals.harness_model import HarnessModel
from longctx_rl.policy.loading import load_model, load_tokenizer

TOKENIZER = load_tokenizer("mini-student")
CONTEXT = "The mentor of TorVin is KesDal. The rival of KesDal is MorLin. Who is the mentor of TorVin?\n"
PAIRS = [
    (CONTEXT, " Answer: KesDal"),
    (CONTEXT, " Answer: MorLin and more"),
    ("The rival ", "is"),
    ("", "KesDal said so."),
]
OPTIONS = ["KesDal", "MorLin", "TorVin"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model("mini-student")


@pytest.fixture(scope="module")
def ours(model: PreTrainedModel) -> HarnessModel:
    return HarnessModel(model, TOKENIZER, max_new_tokens=16, batch_tokens=4096, chunk=3, name="mini-student")


def instances(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=number) for number, one in enumerate(arguments)]


def naive(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    fresh = load_model("mini-student").double()
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        logp = torch.log_softmax(fresh(ids).logits[0, len(context) - 1 : -1], -1)
    targets = ids[0, len(context) :]
    return logp[torch.arange(len(targets)), targets].sum().item(), bool((logp.argmax(-1) == targets).all())


def test_likelihoods_are_those_of_the_distribution(ours: HarnessModel) -> None:
    found = ours.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    theirs = HFLM(pretrained=load_model("mini-student"), tokenizer=TOKENIZER, batch_size=1, max_length=4096)
    reference = theirs.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (value, greedy), other in zip(PAIRS, found, reference, strict=True):
        whole = ours.tok_encode(context + continuation)
        before = ours.tok_encode(context.rstrip()) if context else [ours.eot_token_id]
        expected = naive(before, whole[len(before) :] if context else whole)
        assert value == pytest.approx(expected[0], abs=2e-3) and greedy == expected[1]
        assert value == pytest.approx(other[0], abs=2e-3) and greedy == other[1]
    rolling = [("The mentor of TorVin is KesDal.",), ("KesDal",)]
    values = ours.loglikelihood_rolling(instances("loglikelihood_rolling", *rolling))
    others = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", *rolling), disable_tqdm=True)
    assert values == pytest.approx(others, abs=2e-3)
    expected = [naive([ours.eot_token_id], ours.tok_encode(text))[0] for (text,) in rolling]
    assert values == pytest.approx(expected, abs=2e-3)


def test_answers_are_the_samplers_cut_at_stops(ours: HarnessModel) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    (whole,) = ours.generate_until(instances("generate_until", (CONTEXT, {"max_gen_toks": 12})))
    stop = whole[len(whole) // 2]
    (cut,) = ours.generate_until(instances("generate_until", (CONTEXT, {"until": stop, "max_gen_toks": 12})))
    assert whole and cut == whole[: whole.index(stop)]
    (again,) = ours.generate_until(instances("generate_until", (CONTEXT, settings)))
    assert again == whole.partition("\n")[0]
    with pytest.raises(ValueError, match=r"top_p=0\.9.*drop it from tasks"):
        ours.generate_until(instances("generate_until", (CONTEXT, {"top_p": 0.9})))
    with pytest.raises(ValueError, match=r"mini-student .*4096: drop the task from tasks, lower lengths"):
        ours.generate_until(instances("generate_until", (CONTEXT * 200, {})))
    with pytest.raises(ValueError, match=r"mini-student .*4096: drop the task"):
        ours.loglikelihood(instances("loglikelihood", (CONTEXT * 200, "x")), disable_tqdm=True)


def test_a_template_is_the_tokenizers_own(ours: HarnessModel) -> None:
    turn = [{"role": "user", "content": "Who?"}]
    rendered = ours.apply_chat_template(turn)
    assert ours.tok_encode(rendered) == TOKENIZER.apply_chat_template(
        turn, add_generation_prompt=True, enable_thinking=False
    )["input_ids"]  # fmt: skip


def tasks(folder: Path, answer: str) -> Path:
    """Two task files over local rows: one by likelihood, one by generation."""
    rows = [{"question": CONTEXT, "options": OPTIONS, "label": number, "answer": answer} for number in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    )
    (folder / "options.yaml").write_text(
        f"task: local_options\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_choice: '{{options}}'\ndoc_to_target: label\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "writing.yaml").write_text(
        f"task: local_writing\n{common}output_type: generate_until\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: '{{answer}}'\ngeneration_kwargs:\n  until: ['@@']\n  max_gen_toks: 12\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    (folder / "unsafe.yaml").write_text(
        f"task: local_unsafe\n{common}output_type: generate_until\ndoc_to_text: x\ndoc_to_target: y\n"
        "unsafe_code: true\nmetric_list:\n  - metric: exact_match\n"
    )
    (folder / "away.yaml").write_text(
        "task: local_away\ndataset_path: nobody/nothing-at-all\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: x\ndoc_to_target: y\nmetric_list:\n  - metric: exact_match\n"
    )
    return folder


def command(folder: Path, *overrides: str) -> list[str]:
    return ["checkpoint=mini-student", f"include={folder}", f"out={folder / 'out'}", *overrides]


def test_tasks_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ours: HarnessModel
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (written,) = ours.generate_until(instances("generate_until", (CONTEXT, {"max_gen_toks": 12})))
    folder = tasks(tmp_path, written)
    before = ours.tok_encode(CONTEXT.rstrip())
    scores = [naive(before, ours.tok_encode(f"{CONTEXT} {option}")[len(before) :])[0] for option in OPTIONS]
    table = harness.run(composed_harness(command(folder, "tasks=[local_options,local_writing]")))
    assert "local_options" in table and "local_writing" in table
    assert "loading mini-student (torch, transformers, lm_eval)\n" in capsys.readouterr().err
    found = json.loads((folder / "out" / "results.json").read_text())["results"]
    assert found["local_options"]["acc,none"] == pytest.approx(1 / 3)  # each option is right once
    assert found["local_writing"]["exact_match,none"] == 1.0
    samples = json.loads((folder / "out" / "samples.json").read_text())["local_options"]
    values = [float(one[0][0]) if isinstance(one[0], list) else float(one[0]) for one in samples[0]["filtered_resps"]]
    assert values == pytest.approx(scores, abs=2e-3)
    with pytest.raises(ValueError, match=r"out holds results .*choose another out=FOLDER"):
        harness.run(composed_harness(command(folder, "tasks=[local_options]")))


@pytest.mark.slow
def test_lm_evals_own_ruler(tmp_path: Path, ours: HarnessModel) -> None:
    """A task that lm_eval generates: its prompts, this model's answers, and its scores."""
    shipped = Path(lm_eval.__file__).parent / "tasks" / "ruler"  # alone: it reads thousands of files otherwise
    harness.run(composed_harness(command(tmp_path, f"include={shipped}", "tasks=[ruler_fwe]", "limit=2")))
    found = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["ruler_fwe"]
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())["ruler_fwe"]
    scores = []
    step = 4_096 // 32 * 7  # lm_eval fills a context by so many words of six letters and a space
    for one in samples:
        prompt, settings = one["arguments"][0]
        room = 4_096 - settings["max_gen_toks"]
        assert room - step < len(ours.tok_encode(prompt)) <= room
        (answer,) = ours.generate_until(instances("generate_until", (prompt, settings)))
        assert one["resps"] == [[answer]]
        scores.append(sum(word in answer for word in one["doc"]["outputs"]) / 3)
    assert len(scores) == 2 and found["4096,none"] == pytest.approx(sum(scores) / 2)


def test_tasks_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tasks(tmp_path, "x")
    with pytest.raises(ValueError, match=r"task local_unsafe .* unsafe=\[local_unsafe\]$"):
        harness.run(composed_harness(command(folder, "tasks=[local_unsafe]")))
    with pytest.raises(ValueError, match=r"task local_away .*hf download --repo-type dataset nobody/"):
        harness.run(composed_harness(command(folder, "tasks=[local_away]")))
    with pytest.raises(ValueError, match=r"include=/nowhere .*include=null"):
        harness.run(composed_harness(command(folder, "include=/nowhere", "tasks=[a]")))
    with pytest.raises(ValueError, match=r"tasks=\[mmlu\]"):
        composed_harness(["checkpoint=mini-student", "out=x"])
