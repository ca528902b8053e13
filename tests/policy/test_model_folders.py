"""Whatever a model's folder holds is loaded right, or refused in one sentence: nothing is run, unpickled or made up.

Each case is the shipped student with one thing changed.
"""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import hub_cache
from config.composing import config_with
from longctx_rl.config.compose import composed_evaluate
from longctx_rl.evals.preconditions import check_evaluate
from longctx_rl.policy.loading import check_tokenizer, load_model, load_tokenizer
from longctx_rl.policy.model_folder import check_model
from longctx_rl.policy.shape import ModelShape, model_sizes, sizes_of
from longctx_rl.policy.weights import SHIPPED, weights_hash
from longctx_rl.training.preflight import preflight
from packed_builders import SHAPE, tiny_model

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
WEIGHTS = "model.safetensors"
SMALL: dict[str, Any] = {**SHAPE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED / "mini-student", tmp_path / "student"))


def refused(match: str, load: Callable[[str], object], folder: Path) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": None}, "without a valid model_type"),
        ({"model_type": ["qwen3"]}, "without a valid model_type"),
        ({"architectures": 3}, "without a valid architectures"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised .*give the model that it was"),
        ({"quantization_config": "awq"}, "is quantised"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights=other.safetensors"),
        ({"architectures": ["BertForMaskedLM"]}, r"not a causal language model \(architectures=BertForMaskedLM"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "not a causal language model"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "not a causal language model"),
        ({"is_encoder_decoder": True}, "not a causal language model"),
        (
            {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
            "=5, which does not divide hidden_size",
        ),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3, which does not divide num_attention_heads=4"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, which is not a positive integer"),
        ({"hidden_size": "64"}, "hidden_size='64', which is not a positive integer"),
        ({"max_position_embeddings": 4096.5}, "max_position_embeddings=4096.5"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": -4.0}}, "factor=-4.0"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": "4"}}, "factor='4'"),
        ({"rope_scaling": {"type": "longrope"}, "rope_parameters": None}, "rope_type=longrope.*lengths of other texts"),
    ],
)
def test_a_config_that_is_refused_without_torch(folder: Path, changes: dict[str, Any], match: str) -> None:
    edit(folder / "config.json", **changes)
    for load in (check_model, load_model):
        refused(match, load, folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "nothing"}, "model_type=nothing, unknown to transformers .*choose a dense decoder"),
        ({"model_type": "t5"}, "not a causal language model of text"),
        ({"model_type": "qwen2_5_vl"}, "not a causal language model of text"),
        ({"model_type": "gemma3"}, "not a causal language model of text"),
        ({"model_type": "qwen3_moe"}, "lacks model.layers.0.mlp.experts"),
        ({"model_type": "mamba", "layer_types": None}, "lacks backbone"),
        (
            {"model_type": "llama"},
            "has other tensors: model.layers.0.self_attn.k_norm.weight.*not the weights of the Llama",
        ),
        ({"rms_norm_eps": "tiny"}, "cannot be loaded .*rms_norm_eps"),
        ({"dtype": "float7"}, "cannot be loaded .*float7"),
        ({"hidden_act": "nope"}, "cannot be loaded .*nope"),
        ({"layer_types": ["full_attention"]}, "cannot be loaded .*layer_types"),
        ({"rope_parameters": [1]}, "cannot be loaded .*rope_parameters"),
        ({"rope_parameters": {"rope_type": "nope"}}, "cannot be loaded .*nope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "cannot be loaded"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rotary_emb.inv_freq that are not finite"),
        ({"pad_token_id": 5000}, "cannot be loaded .*[Pp]adding_idx"),
        ({"auto_map": 3}, "cannot be loaded"),
        ({"hidden_size": 32}, r"embed_tokens.weight \[1024, 64\] instead of \[1024, 32\].*and 26 more"),
        ({"vocab_size": 512}, r"\[1024, 64\] instead of \[512, 64\]"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, "has other tensors: model.layers.2"),
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "lacks model.layers.3"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn.k_proj.bias"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
    ],
)
def test_a_config_that_does_not_describe_the_weights(folder: Path, changes: dict[str, Any], match: str) -> None:
    edit(folder / "config.json", **changes)
    refused(match, load_model, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"_attn_implementation": "flash_attention_2"},
        {"dtype": None, "torch_dtype": "bfloat16"},
        {"architectures": None},
        {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_change_nothing(folder: Path, changes: dict[str, Any]) -> None:
    ids = torch.arange(8)[None]
    expected = load_model("mini-student")(ids).logits
    edit(folder / "config.json", **changes)
    model = load_model(str(folder))
    assert torch.equal(model(ids).logits, expected)
    model.save_pretrained(folder)


Weights = dict[str, Tensor]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda w: {k.replace("model.", "model.language_model."): t for k, t in w.items()},
            "lacks .*33 more and has ot",
        ),
        (lambda w: {k: t for k, t in w.items() if k != NORM}, f"lacks {NORM}, so"),
        (lambda w: {k: t for k, t in w.items() if k != EMBEDDING}, f"lacks lm_head.weight, {EMBEDDING}"),
        (lambda w: w | {"score.weight": torch.ones(1, 64)}, "has other tensors: score.weight.*or remove these"),
        (lambda w: w | {"lm_head.weight": w[EMBEDDING] + 1}, "another.*set tie_word_embeddings=false"),
        (lambda w: w | {NORM: w[NORM] * torch.nan}, f"{NORM} that are not finite"),
        (lambda w: w | {NORM: (w[NORM] * 1e30).half()}, f"{NORM} that are not finite"),
        (lambda w: w | {NORM: w[NORM].to(torch.int8)}, f"{NORM} as I8, which is quantised"),
        (lambda w: w | {NORM: w[NORM].to(torch.float8_e4m3fn)}, f"{NORM} as F8_E4M3, which is quantised"),
        (lambda w: w | {NORM: w[NORM][:0]}, rf"{NORM} \[0\] instead of \[64\]"),
        (lambda w: w | {NORM: w[NORM].sum()}, rf"{NORM} \[\] instead of \[64\]"),
    ],
)
def test_weights_that_are_refused(folder: Path, change: Callable[[Weights], Weights], match: str) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    refused(match, load_model, folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"lm_head.weight": w[EMBEDDING].clone()},
        lambda w: w | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(16) for n in range(3)},
        lambda w: {key.removeprefix("model."): tensor for key, tensor in w.items()},
        lambda w: {key: tensor.double() for key, tensor in w.items()},
    ],
    ids=["the tied head", "rotations of old exports", "a base model", "float64"],
)
def test_weights_that_are_the_same_model(folder: Path, change: Callable[[Weights], Weights]) -> None:
    ids = torch.arange(8)[None]
    expected = load_model(str(folder))(ids).logits
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    assert torch.equal(load_model(str(folder))(ids).logits, expected)


def indexed(folder: Path, index: object) -> None:
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def map_to(file: str) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": {NORM: "model-1.safetensors", EMBEDDING: file}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: (f / WEIGHTS).write_bytes(b""), "not a complete safetensors file"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:1000]), "not a complete safetensors file"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-10]), "ends before its last tensor"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 100), "not a complete safetensors file"),
        (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid"), "run git lfs pull"),
        (lambda f: (f / WEIGHTS).unlink(), r"has no weights \(model.safetensors\)"),
        (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), r"from_pretrained\(FOLDER\).save_pretrained\(NEW\)"),
        (lambda f: (f / WEIGHTS).rename(f / "model-q4.gguf"), "gguf_file=FILE"),
        (lambda f: (f / WEIGHTS).rename(f / "consolidated.00.pth"), "in the Hugging Face format"),
        (lambda f: (f / WEIGHTS).rename(f / "zero_to_fp32.py"), "python zero_to_fp32.py"),
        (lambda f: (f / WEIGHTS).rename(f / "final.pt"), "with the library that wrote it"),
        (lambda f: (f / WEIGHTS).rename(f / "weights.safetensors"), "name the file model.safetensors"),
        (lambda f: indexed(f, map_to("model-2.safetensors")), "lacks model-2.safetensors"),
        (lambda f: indexed(f, map_to("../model-1.safetensors")), "outside of the folder"),
        (lambda f: indexed(f, map_to("/model-1.safetensors")), "outside of the folder"),
        (lambda f: indexed(f, {"weight_map": {}}), "without a valid metadata"),
        (lambda f: indexed(f, []), "not a JSON object"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (lambda f: (f / "config.json").write_text("null"), "config.json is not a JSON object"),
        (lambda f: (f / "config.json").write_text(""), "config.json is not JSON"),
        (
            lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf" + (f / "config.json").read_bytes()),
            "byte order mark",
        ),
        (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json is not JSON"),
        (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": [[2]]}'), "valid eos_token_id"),
        (
            lambda f: (f / "generation_config.json").write_text('{"max_new_tokens": 0}'),
            "cannot be loaded .*max_new_tok",
        ),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter.*merge_and_unload"),
    ],
)
def test_files_that_are_refused(folder: Path, change: Callable[[Path], object], match: str) -> None:
    change(folder)
    refused(match, load_model, folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b"\x08\0\0\0\0\0\0\0" + b'{"a": 1}'])
def test_no_hash_of_a_broken_file(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    refused("not a complete safetensors file", weights_hash, folder)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: BertLMHeadModel(BertConfig(**SMALL)), "is an encoder"),
        (
            lambda: T5ForConditionalGeneration(T5Config(vocab_size=37, d_model=16, num_layers=1, d_ff=16)),
            "not a causal language model",
        ),
        (lambda: Qwen3ForSequenceClassification(Qwen3Config(**SMALL)), "not a causal language model"),
    ],
)
def test_other_kinds_of_models(tmp_path: Path, model: Callable[[], PreTrainedModel], match: str) -> None:
    model().save_pretrained(tmp_path)
    refused(match, load_model, tmp_path)
    edit(tmp_path / "config.json", architectures=None)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_model(str(tmp_path))


def test_experts_are_not_trained_because_their_flops_are_not_counted(tmp_path: Path) -> None:
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, num_experts=2)).save_pretrained(tmp_path)
    refused(r"mixture of experts \(num_experts.*FLOPs and memory would be counted wrongly", sizes_of, tmp_path)
    model = load_model(str(tmp_path))  # as the checkpoint of an evaluation, which counts no FLOPs
    with pytest.raises(ValueError, match="mixture of experts"):
        ModelShape.of(model)


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("tokenizer.json", lambda text: text[:3000], "cannot be loaded"),
        ("tokenizer.json", lambda text: "[]", "cannot be loaded"),
        ("tokenizer.json", lambda text: text.replace('"BPE"', '"Nope"'), "cannot be loaded .*untagged enum"),
        ("tokenizer.json", lambda text: text.replace('"merges"', '"joins"'), "cannot be loaded"),
        ("tokenizer_config.json", lambda text: "[]", "cannot be loaded"),
        ("tokenizer_config.json", lambda text: '{"tokenizer_class": 3}', "cannot be loaded"),
        ("tokenizer_config.json", lambda text: '{"tokenizer_class": "BertTokenizer"}', "cannot be loaded .*UNK"),
        ("tokenizer_config.json", lambda text: '{"eos_token": 2}', "cannot be loaded .*eos_token"),
        ("tokenizer_config.json", lambda text: '{"model_max_length": "x"}', "cannot be loaded"),
        ("tokenizer_config.json", lambda text: '{"tokenizer_class": "PreTrainedTokenizerFast"}', "has no end token"),
        ("tokenizer_config.json", lambda text: '{"auto_map": 3}', "cannot be loaded"),
        ("chat_template.jinja", lambda text: "\udcff", "cannot be loaded"),
    ],
)
def test_tokenizers_that_are_refused(folder: Path, file: str, change: Callable[[str], str], match: str) -> None:
    text = change((folder / file).read_text())
    (folder / file).write_bytes(text.encode(errors="surrogateescape"))
    refused(match, load_tokenizer, folder)


@pytest.mark.parametrize(
    "settings", [{"eos_token": "<|new|>"}, {"added_tokens_decoder": {"5000": {"content": "<|x|>"}}}]
)
def test_a_token_without_an_embedding(folder: Path, settings: dict[str, Any]) -> None:
    edit(folder / "tokenizer_config.json", **settings)
    model = load_model(str(folder))
    with pytest.raises(ValueError, match=r"needs \d+ embeddings, but student has 1024: give the tokenizer"):
        check_tokenizer(model, load_tokenizer(str(folder)), "student")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_never_run(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda _: "y")
    (folder / "code.py").write_text("raise SystemExit('run')")
    auto = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", None]}
    edit(folder / file, auto_map=auto)
    assert load_model(str(folder)) and load_tokenizer(str(folder))
    edit(folder / "config.json", model_type="mine")
    edit(folder / "tokenizer_config.json", tokenizer_class="Mine")
    refused("model_type=mine, unknown to transformers", load_model, folder)
    if file == "tokenizer_config.json":
        refused("needs the code that its auto_map names, which is never run", load_tokenizer, folder)


def test_a_folder_of_a_run_leads_to_its_export(tmp_path: Path) -> None:
    run = tmp_path / "run"
    step = run / "checkpoints" / "step-2"
    step.mkdir(parents=True)
    for name in ("environment.json", "config.yaml"):
        (run / name).touch()
    refused(f"finish the run with resume=true, and give {run / 'export'}", check_model, run)
    shutil.copytree(SHIPPED / "mini-student", run / "export")
    for place in (run, step.parent, step):
        refused(f"a folder of a run and not its exported model: give {run / 'export'}", check_model, place)


def test_every_command_refuses_before_it_loads_torch(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    for load in (
        lambda name: preflight(config_with("+algo=opd", f"model.student={name}")),
        lambda name: preflight(config_with("+algo=opd", f"model.teacher={name}")),
        lambda name: check_evaluate(composed_evaluate([f"checkpoint={name}", "out=out"])),
        lambda name: check_evaluate(composed_evaluate(["checkpoint=mini-student", f"kl.base={name}", "out=out"])),
        lambda name: model_sizes(config_with("+algo=opd", f"model.student={name}")),
    ):
        refused("is an adapter", load, folder)


def test_a_model_of_the_hub_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache.use(tmp_path / "cache", monkeypatch)
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    save_file(load_file(tmp_path / "model" / WEIGHTS) | {"score.weight": torch.ones(1)}, tmp_path / "model" / WEIGHTS)
    hub_cache.download(tmp_path / "cache", "owner/tiny", tmp_path / "model", "0" * 40)
    with pytest.raises(ValueError, match=r"owner/tiny has other tensors: score\.weight"):
        load_model("owner/tiny")


@pytest.mark.parametrize("name", ["a b", "a=b", "\u00fcn\u012bcode", "quote'", "trailing/"])
def test_names_of_folders(folder: Path, name: str) -> None:
    place = folder.rename(folder.parent / name)
    place.chmod(0o555)
    link = folder.parent / "link"
    link.symlink_to(place)
    for path in (f"{folder.parent}/{name}", str(link)):
        assert load_model(path) and load_tokenizer(path)


SMALLEST = json.loads((SHIPPED / "mini-student" / "config.json").read_text())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(key=st.sampled_from(sorted({*SMALLEST, "quantization_config", "auto_map"})), value=JSON)
def test_any_value_in_a_config(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    """It is refused in a sentence, or the model computes numbers."""
    folder = shutil.copytree(SHIPPED / "mini-student", tmp_path_factory.mktemp("any") / "student")
    (folder / "config.json").write_text(json.dumps(SMALLEST | {key: value}))
    try:
        model = load_model(str(folder))
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        model(torch.arange(4)[None])
