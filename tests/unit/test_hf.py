"""Configurations of Hugging Face models: what is read from them, family by family."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rtsim import catalog
from rtsim.cli import main as program
from rtsim.hf import model_from_config, read_config
from rtsim.hf.quantization import part_of
from rtsim.model_toml import to_toml
from rtsim.specs import LayerGroup, MlpSpec, ModelSpec

CONFIGS = Path(__file__).parents[1] / "fixtures" / "hf"
FILES = sorted(CONFIGS.glob("*.json"))
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
QWEN_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}


def load(name: str) -> ModelSpec:
    return read_config(CONFIGS / f"{name}.json")


def windows(model: ModelSpec) -> dict[int | None, int]:
    """Layers by window."""
    counts: dict[int | None, int] = {}
    for group in model.layers:
        window = getattr(group.attention, "window", None)
        counts[window] = counts.get(window, 0) + group.count
    return counts


# Layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mistral-7B-v0.1", {4096: 32}),
        ("Mistral-Nemo-Instruct-2407", {None: 40}),
        ("Qwen2-7B", {None: 28}),  # a window in the file, switched off
        ("gemma-2-27b", {4096: 23, None: 23}),
        ("gemma-3-27b-it", {1024: 52, None: 10}),
        ("c4ai-command-r7b-12-2024", {4096: 24, None: 8}),
        ("Olmo-3-1025-7B", {4096: 24, None: 8}),
        ("gpt-oss-120b", {128: 18, None: 18}),
        ("gpt-neo-2.7B", {256: 16, None: 16}),
        ("Llama-4-Maverick-17B-128E-Instruct", {8192: 36, None: 12}),
        ("MiMo-V2-Flash", {128: 39, None: 9}),
        ("Phi-4-mini-instruct", {None: 32}),  # a window longer than the context
        ("Gemma-4-31B-IT-NVFP4", {1024: 50, None: 10}),
    ],
)
def test_windows(name: str, expected: dict[int | None, int]) -> None:
    assert windows(load(name)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mixtral-8x7B-v0.1", [(32, "attention", "moe")]),
        ("Llama-4-Maverick-17B-128E-Instruct",
         [(24, "attention", "mlp"), (12, "attention", "moe"), (12, "attention", "moe")]),
        ("DeepSeek-V3", [(3, "mla", "mlp"), (58, "mla", "moe")]),
        ("DeepSeek-V4-Pro", [(31, "compressed", "moe"), (30, "compressed", "moe")]),
        ("Qwen3-Next-80B-A3B-Instruct", [(36, "gated_delta", "moe"), (12, "attention", "moe")]),
        ("Qwen3.5-27B", [(48, "gated_delta", "mlp"), (16, "attention", "mlp")]),
        ("Kimi-K3",
         [(1, "gated_delta", "mlp"), (68, "gated_delta", "moe"), (24, "mla", "moe")]),
        ("MiniMax-Text-01-hf", [(70, "linear_attention", "moe"), (10, "attention", "moe")]),
        ("Jamba-v0.1", [(12, "mamba", "mlp"), (16, "mamba", "moe"), (4, "attention", "mlp")]),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
         [(23, "mamba2", None), (23, None, "moe"), (6, "attention", None)]),
        ("mamba2-2.7b", [(64, "mamba2", None)]),
    ],
)  # fmt: skip
def test_kinds_of_layers(name: str, expected: list[tuple[int, str, str]]) -> None:
    """Equal layers are one group wherever they stand, in order of first appearance."""
    found = [
        (g.count, g.attention and g.attention.kind, g.mlp and g.mlp.kind) for g in load(name).layers
    ]
    assert found == expected


def test_heads_and_norms_of_a_few_families() -> None:
    gptj = load("gpt-j-6b").layers[0]
    assert (gptj.parallel, gptj.norms_per_layer, gptj.attention.rotary_dim) == (True, 1, 64)
    falcon = load("falcon-40b").layers[0]
    assert (falcon.parallel, falcon.norms_per_layer, falcon.attention.n_kv_heads) == (True, 2, 8)
    assert load("falcon-7b").layers[0].attention.n_kv_heads == 1
    assert not load("RedPajama-INCITE-Base-3B-v1").layers[0].parallel
    cohere = load("c4ai-command-r-v01").layers[0]
    assert (cohere.norm, cohere.has_norm_bias, cohere.parallel) == ("layernorm", False, True)
    assert load("gemma-2-27b").layers[0].norms_per_layer == 4
    assert load("OLMo-2-1124-7B").layers[0].attention.qk_norm_scope == "projection"
    assert load("gpt-oss-120b").layers[0].attention.sinks
    assert load("Qwen3-Next-80B-A3B-Instruct").layers[1].attention.output_gate
    assert load("bloom-560m").position == "alibi"
    mimo = load("MiMo-V2-Flash").layers
    assert [g.attention.n_kv_heads for g in mimo] == [4, 8, 4]
    assert (mimo[1].attention.v_dim, mimo[1].attention.sinks, mimo[2].attention.sinks) == (
        128, True, False,
    )  # fmt: skip
    full = load("Gemma-4-26B-A4B-NVFP4").layers[1].attention
    assert (full.head_dim, full.n_kv_heads, full.value_projection) == (512, 2, False)


def test_mixtures() -> None:
    qwen = load("Qwen2-57B-A14B").layers[0].mlp
    assert (qwen.shared_size, qwen.shared_gate, qwen.top_k) == (20480, True, 8)
    deepseek = load("DeepSeek-V2-Lite").layers[1].mlp
    assert deepseek.shared_size == 2 * 1408
    nemotron = load("NVIDIA-Nemotron-3-Super-120B-A12B-FP8").layers[1].mlp
    assert (nemotron.latent_size, nemotron.gated, nemotron.activation) == (1024, False, "relu2")
    gemma = load("Gemma-4-26B-A4B-NVFP4").layers[0].mlp
    assert (gemma.dense_size, gemma.expert_size) == (2112, 704)
    assert load("gpt-oss-120b").layers[0].mlp.bias
    kimi = load("Kimi-K3").layers[1].mlp
    assert (kimi.latent_size, kimi.shared_size, kimi.n_experts) == (3584, 6144, 896)


def test_sparse_attention() -> None:
    assert load("DeepSeek-V3.2-NVFP4").layers[0].attention.indexer.top_k == 2048
    shared = load("GLM-5.2").layers[0].attention.indexer
    assert shared.every == pytest.approx(78 / 21)
    dense, sparse = load("MiniMax-M3").layers
    assert dense.attention.indexer is None
    assert sparse.attention.indexer.top_k == 17 * 128
    csa, hca = sorted(load("DeepSeek-V4-Pro").layers, key=lambda g: g.attention.compression)
    assert (csa.attention.compression, csa.attention.indexer.top_k) == (4, 1024)
    assert (hca.attention.compression, hca.attention.indexer) == (128, None)


def test_encoders_and_encoder_decoders() -> None:
    bert = load("bert-large-uncased")
    assert (bert.kind, bert.has_head, bert.layers[0].attention.causal) == ("encoder", True, False)
    assert bert.kv_bytes(512) == 0
    t5 = load("t5-11b")
    assert t5.kind == "encoder-decoder"
    assert [group.count for group in t5.all_layers] == [24, 24]
    assert t5.layers[0].cross_attention.n_heads == 128
    assert load("flan-ul2").layers[0].mlp.gated
    # 2 attentions of 24 layers, key and value of 128 heads of 128
    assert t5.kv_bytes_per_token("bf16") == 2 * 24 * 2 * 128 * 128 * 2


def test_shared_blocks_are_stored_as_often_as_there_are_weights() -> None:
    block = load("Zamba2-2.7B").layers[-1]
    assert (block.count, block.stored) == (9, 2)


def test_shared_blocks_take_memory_once() -> None:
    from rtsim.predict import predict

    path = str(CONFIGS / "Zamba2-2.7B.json")
    stored = predict(path, "h100", stack="vllm").memory.weights_bytes
    assert stored == pytest.approx(2 * load("Zamba2-2.7B").parameters, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "full"),
    [
        ({"no_rope_layers": []}, 12),
        ({"no_rope_layers": [1] * 40 + [0] * 8}, 8),
        ({"no_rope_layer_interval": 2}, 24),
        ({"layer_types": ["chunked_attention"] * 47 + ["full_attention"]}, 1),
    ],
)
def test_layers_of_llama_4_that_see_everything(changes: dict[str, Any], full: int) -> None:
    config = json.loads((CONFIGS / "Llama-4-Maverick-17B-128E-Instruct.json").read_text())
    config["text_config"] |= changes
    assert windows(model_from_config(config)) == {8192: 48 - full, None: full}


def test_layers_that_share_a_cache() -> None:
    config = json.loads((CONFIGS / "Gemma-4-31B-IT-NVFP4.json").read_text())
    del config["quantization_config"]
    whole = model_from_config(config)
    config["text_config"] |= {"num_kv_shared_layers": 20, "use_double_wide_mlp": True}
    shared = model_from_config(config)
    own = sum(g.count for g in shared.layers if g.attention.own_cache)
    assert own == 40
    assert shared.kv_bytes_per_token() < whole.kv_bytes_per_token()
    sizes = {g.mlp.ffn_size for g in shared.layers if not g.attention.own_cache}
    assert sizes == {2 * 21504}


# Everything else ---------------------------------------------------------------------------------


def test_text_part_of_a_model_that_sees() -> None:
    model = load("Qwen3-VL-30B-A3B-Instruct")
    assert not model.tied_embeddings  # said outside the text part
    assert any("vision" in note for note in model.notes)
    inside = LLAMA | {"model_type": "llama"}
    model = model_from_config({"model_type": "llava", "text_config": inside, "vision_config": {}})
    assert model.hidden_size == 256


@pytest.mark.parametrize(
    ("stated", "dtype", "noted"),
    [
        ({"torch_dtype": "float32"}, "bf16", False),
        ({"torch_dtype": None, "dtype": "float16"}, "fp16", False),
        ({"torch_dtype": "torch.bfloat16"}, "bf16", False),
        ({"torch_dtype": "float8_e4m3fn"}, "bf16", True),
        ({"torch_dtype": None}, "bf16", True),
    ],
)
def test_dtypes(stated: dict[str, Any], dtype: str, noted: bool) -> None:
    model = model_from_config(LLAMA | stated)
    assert model.dtype == dtype
    assert any("torch_dtype" in note for note in model.notes) is noted
    float32 = any("float32" in note for note in model.notes)
    assert float32 == (stated.get("torch_dtype") == "float32")


def test_what_is_left_out_is_noted() -> None:
    model = model_from_config(LLAMA | {"num_nextn_predict_layers": 2, "hidden_act": "xielu"})
    assert any("multi-token prediction (2)" in note for note in model.notes)
    assert model.prediction_layers == 2
    assert any("'xielu'" in note for note in model.notes)
    assert model_from_config(LLAMA).notes == ()
    assert model_from_config(LLAMA).prediction_layers == 0


@pytest.mark.parametrize(
    ("fields", "family", "kind"),
    [
        ({}, "Llama", "mlp"),
        ({"num_experts": 1}, "Llama", "mlp"),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, "Mixtral", "moe"),
        ({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}, "Qwen3-MoE",
         "moe"),
        ({"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
          "n_shared_experts": 1}, "DeepSeek-MoE", "moe"),
        ({"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32},
         "DeepSeek (latent", "mlp"),
    ],
)  # fmt: skip
def test_unknown_types_are_read_as_the_nearest(
    fields: dict[str, Any], family: str, kind: str
) -> None:
    model = model_from_config(LLAMA | fields | {"model_type": "brandnew"})
    assert model.layers[0].mlp.kind == kind
    assert any("'brandnew'" in note and family in note for note in model.notes)


@pytest.mark.parametrize(
    ("path", "given", "name"),
    [
        ("Qwen--Qwen3-8B.json", None, "Qwen3-8B"),
        ("mine.json", "other/Name", "mine"),
        ("a/config.json", "Qwen/Qwen3-8B", "Qwen3-8B"),
        ("a/config.json", "/home/me/checkpoint-500", "a"),
        ("My-Model/config.json", None, "My-Model"),
        ("models--Qwen--Qwen3-8B/snapshots/0123abcd/config.json", None, "Qwen3-8B"),
    ],
)
def test_names(tmp_path: Path, path: str, given: str | None, name: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(LLAMA | {"_name_or_path": given}))
    assert read_config(file).name == name
    if file.name == "config.json":
        assert read_config(file.parent).name == name
        assert catalog.load_model(f"{file.parent}/").name == name


@pytest.mark.parametrize(
    "odd", ['a"b', "a\x01b", "a\nb", "a\x7fb", "\udcff", "é中", "x" * 230, " "]
)
def test_odd_file_names_give_names_that_can_be_written(tmp_path: Path, odd: str) -> None:
    file = tmp_path / f"{odd}.json"
    file.write_text(json.dumps(LLAMA))
    model = read_config(file)
    target = tmp_path / "model.toml"
    target.write_text(to_toml(model, f"{model.name} {odd}"), encoding="utf-8")
    assert catalog.load_model(target) == model
    assert model.name.strip() == model.name != ""


def test_a_packaged_name_is_not_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("llama-2-7b", "owner/llama-2-7b", "something-else"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(tmp_path)
    assert catalog.load_model("llama-2-7b").hidden_size == 4096
    assert catalog.load_model("./llama-2-7b").hidden_size == 256
    assert catalog.load_model("owner/llama-2-7b").hidden_size == 256
    assert catalog.load_model("meta-llama/llama-2-7b").hidden_size == 4096
    assert catalog.load_model("something-else").hidden_size == 256


# Formats -----------------------------------------------------------------------------------------

NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "dynamic": True}


def group(weights: dict[str, Any], inputs: Any = None, **more: Any) -> dict[str, Any]:
    one = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, **more}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": one}}


@pytest.mark.parametrize(
    ("config", "formats"),
    [
        ({"quant_method": "fp8"}, "fp8 fp8"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8_static fp8_static"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block fp8_block"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.*.self_attn"]},
         "none fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4_wo int4_wo"),
        ({"quant_method": "gptq", "bits": 8}, "int8_wo int8_wo"),
        ({"load_in_4bit": True}, "int4_wo int4_wo"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8_wo int8_wo"),
        ({"quant_method": "mxfp4"}, "none w4a16_mxfp4"),
        ({"quant_method": "fbgemm_fp8"}, "fp8 fp8"),
        (group(FP8 | {"dynamic": False}, FP8), "fp8 fp8"),
        (group(FP8, FP8 | {"dynamic": False}), "fp8_static fp8_static"),
        (group(FP8 | {"strategy": "block"}, FP8), "fp8_block fp8_block"),
        (group({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}), "int8_sq int8_sq"),
        (group({"num_bits": 4, "type": "int"}), "int4_wo int4_wo"),
        (group({"num_bits": 4, "type": "int"}, FP8), "w4afp8 w4afp8"),
        (group({"num_bits": 8, "type": "int"}), "int8_wo int8_wo"),
        (group(NVFP4, NVFP4), "nvfp4 nvfp4"),
        (group(NVFP4 | {"group_size": 32}), "w4a16_mxfp4 w4a16_mxfp4"),
        (group(NVFP4 | {"group_size": 32}, FP8), "w4a8_mxfp4_mxfp8 w4a8_mxfp4_mxfp8"),
        (group(FP8, FP8, targets=["re:.*mlp.experts.*"]), "none fp8"),
        (group(FP8, FP8) | {"ignore": ["lm_head", "re:.*self_attn.*"]}, "none fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4 nvfp4"),
        ({"quant_algo": "FP8"}, "fp8_static fp8_static"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["*self_attn*"]},
         "none fp8_static"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
            "model.layers.0.mlp.experts": {"quant_algo": "NVFP4"}}}, "fp8_static nvfp4"),
        ({"quant_method": "quark", "global_quant_config": {
            "weight": {"dtype": "fp8_e4m3"}, "input_tensors": {"dtype": "fp8_e4m3"}}},
         "fp8_static fp8_static"),
        ({"quant_method": "quark", "global_quant_config": {
            "weight": {"dtype": "fp4"}, "input_tensors": {"dtype": "fp4"}},
          "exclude": ["*self_attn*"]}, "none nvfp4"),
        (None, "none none"),
    ],
)  # fmt: skip
def test_formats_of_attention_and_experts(config: dict[str, Any] | None, formats: str) -> None:
    model = model_from_config(QWEN_MOE | {"quantization_config": config})
    stored = model.quantization
    assert f"{stored.attention} {stored.experts}" == formats


@pytest.mark.parametrize(
    ("name", "attention", "mlp", "experts", "cache"),
    [
        ("Qwen3-32B-FP8-Static-PerTensor", "fp8_static", "fp8_static", "none", "fp8"),
        ("gpt-oss-120b", "none", "none", "w4a16_mxfp4", None),
        ("Kimi-K2.5", "none", "none", "int4_wo", None),
        ("Kimi-K3", "none", "none", "w4a16_mxfp4", None),
        ("DeepSeek-V3", "fp8_block", "fp8_block", "fp8_block", None),
        ("DeepSeek-V4-Pro", "fp8_block", "fp8_block", "w4a8_mxfp4_mxfp8", None),
        ("Gemma-4-26B-A4B-NVFP4", "none", "none", "nvfp4", "fp8"),
        ("Gemma-4-31B-IT-NVFP4", "none", "nvfp4", "none", "fp8"),
        ("MiniMax-M2.7", "fp8_block", "none", "fp8_block", None),
    ],
)
def test_formats_of_published_weights(
    name: str, attention: str, mlp: str, experts: str, cache: str | None
) -> None:
    model = load(name)
    stored = model.quantization
    assert (stored.attention, stored.mlp, stored.experts) == (attention, mlp, experts)
    assert model.kv_cache_dtype == cache


def test_weights_quantised_again_in_part() -> None:
    config = QWEN_MOE | {
        "quantization_config": {
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "quant_algo": "MIXED_PRECISION",
            "moe_quant_algo": "NVFP4",
            "ignore": ["*.attn.*"],
        }
    }
    stored = model_from_config(config).quantization
    assert (stored.attention, stored.experts) == ("fp8_block", "nvfp4")


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("model.layers.0.self_attn*", "attention"),
        ("re:.*linear_attn.out_proj.*", "attention"),
        ("backbone.layers.3.mixer.in_proj", "attention"),
        ("model.layers.0.linear_attn.in_proj_ba", None),
        ("re:.*mlp\\.(gate|up|gate_up|down)_proj.*", "mlp"),
        ("re:.*shared_experts.*", "mlp"),
        ("*.ffn.experts.*", "experts"),
        ("model.layers.0.mlp.gate", None),
        ("model.layers.0.block_sparse_moe.gate", None),
        ("model.layers.0.post_attention_layernorm", None),
        ("model.visual.blocks.0.attn.qkv", None),
        ("lm_head", None),
        ("mtp.*", None),
    ],
)
def test_parts_of_modules(module: str, part: str | None) -> None:
    assert part_of(module) == part


def test_formats_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    formats = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    written = json.dumps({"producer": {"name": "modelopt"}, "quantization": formats})
    (tmp_path / "hf_quant_config.json").write_text(written)
    model = read_config(tmp_path)
    assert (model.quantization.attention, model.kv_cache_dtype) == ("nvfp4", "fp8")


def test_a_format_that_only_the_name_states_is_noted() -> None:
    model = model_from_config(LLAMA, "Some-8B-NVFP4")
    assert model.quantization.attention == "none"
    assert any("The name says NVFP4" in note for note in model.notes)


def test_a_few_layers_left_out_are_noted_and_most_of_them_decide() -> None:
    def ignoring(count: int) -> ModelSpec:
        names = [f"model.layers.{i}.self_attn" for i in range(count)]
        config = {"quant_method": "fp8", "ignored_layers": names}
        return model_from_config(LLAMA | {"quantization_config": config})

    assert ignoring(1).quantization.attention == "fp8"
    assert any("Some attention layers" in note for note in ignoring(1).notes)
    assert ignoring(4).quantization.attention == "none"
    assert ignoring(4).notes == ()


# TOML --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_toml_reads_back_to_an_equal_model(path: Path, tmp_path: Path) -> None:
    model = read_config(path)
    file = tmp_path / "model.toml"
    file.write_text(to_toml(model, 'read from "somewhere"\nelse'))
    assert catalog.load_model(file) == model


def test_toml_of_a_packaged_model_keeps_its_sources(tmp_path: Path) -> None:
    model = catalog.load_model("yalm-100b")
    file = tmp_path / "model.toml"
    file.write_text(to_toml(model))
    assert catalog.load_model(file) == model


def test_import_prints_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = str(CONFIGS / "Qwen3-0.6B.json")
    assert program.run(("import-hf", config)) == 0
    printed = capsys.readouterr().out
    assert 'name = "Qwen3-0.6B"' in printed
    target = tmp_path / "mine.toml"
    target.write_text("what was there")
    assert program.run(("import-hf", config, "-o", str(target))) == 0
    assert target.read_text() == printed
    assert catalog.load_model(target) == read_config(config)
    assert list(tmp_path.iterdir()) == [target]


def test_show_and_predict_read_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "gpt-oss-120b.json")
    assert program.run(("show", config)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "116.8 B" in shown
    assert "experts w4a16_mxfp4" in shown
    assert program.run(("predict", "--arch", config, "--gpu", "h100", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"]["name"] == "gpt-oss-120b"
    assert result["memory"]["weights_bytes"] == pytest.approx(65e9, rel=0.05)
    assert all(math.isfinite(result[key]) for key in ("ttft_s", "tpot_s"))


# Specifications ----------------------------------------------------------------------------------


def test_changed_copies_keep_the_kinds_of_their_parts() -> None:
    model = load("DeepSeek-V2-Lite")
    assert model.with_(name=model.name) == model
    assert model.with_({"layers.1.count": 2}).layers[1].mlp.kind == "moe"


def test_shared_weights_count_once() -> None:
    layer = LayerGroup(count=6, stored=2, mlp=MlpSpec(ffn_size=8), norms_per_layer=0)
    model = ModelSpec(
        name="m", hidden_size=4, vocab_size=9, max_positions=16, layers=(layer,), final_norm=False,
        tied_embeddings=True,
    )  # fmt: skip
    assert model.n_layers == 6
    assert model.parameters == 4 * 9 + 2 * 2 * 4 * 8
