"""Configurations that cannot be read: one line naming file, field, value and what is allowed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtsim.cli import main as program
from rtsim.errors import RtsimError
from rtsim.hf import model_from_config

CONFIGS = Path(__file__).parents[1] / "fixtures" / "hf"
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
QUANT = "quantization_config"


class Refused:
    """Runs a command on a configuration and holds that it refuses it in the one way there is."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def __call__(self, content: object, *words: str, command: str = "import-hf") -> None:
        path = self.folder / "mine.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        self.of(path, "mine.json", *words, command=command)

    def of(self, path: Path | str, *words: str, command: str = "import-hf") -> None:
        status = program.run((command, str(path)))
        out, err = self.capsys.readouterr()
        assert (status, out) == (2, ""), err
        assert_one_line(err.removeprefix("error: ").rstrip("\n"))
        for word in words:
            assert word in err


def assert_one_line(text: str) -> None:
    assert "\n" not in text
    for word in ("Traceback", "Error:", "errno", "pydantic", "0x"):
        assert word not in text
    assert len(text) < 400


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    monkeypatch.delenv("RTSIM_DEBUG", raising=False)
    return Refused(capsys, tmp_path)


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["import-hf", "show"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("malformed JSON",)),
        ("{", ("malformed JSON", "line 1")),
        ("{'hidden_size': 4096}", ("malformed JSON",)),
        ('name = "x"', ("malformed JSON",)),
        ("[1, 2]", ("must hold a JSON object", "a list")),
        ("12", ("must hold a JSON object", "a number")),
        ('"llama"', ("must hold a JSON object", "text")),
        ("null", ("must hold a JSON object", "null")),
        ("{}", ("model_type", "missing")),
        ("[" * 100_000, ("nested too deeply",)),
        ('{"a":' * 100_000, ("nested too deeply",)),
        ('{"hidden_size": ' + "9" * 5000 + "}", ("too many digits",)),
    ],
)
def test_not_a_configuration(
    refused: Refused, content: str, words: tuple[str, ...], command: str
) -> None:
    refused(content, *words, command=command)


def test_not_text(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00{")
    refused.of(path, "not UTF-8")


def test_files_and_folders_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    refused.of(tmp_path / "none.json", "none.json", "no such file")
    refused.of(tmp_path, "folder without a config.json")
    refused.of(f"{tmp_path}/", "folder without a config.json", command="show")
    refused.of("x" * 300 + ".json", "cannot be read")
    refused.of("a\0b.json", "no such file")


def test_output_files(refused: Refused, tmp_path: Path) -> None:
    config = str(CONFIGS / "gpt2.json")
    for target, word in (("none/x.toml", "no folder"), ("x.json", "must end in .toml")):
        assert program.run(("import-hf", config, "-o", str(tmp_path / target))) == 2
        assert word in refused.capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Other media -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "vit", "hidden_size": 768, "image_size": 224}, ("vit", "vision")),
        ({"model_type": "clip", "text_config": LLAMA, "vision_config": {}}, ("clip", "vision")),
        ({"model_type": "wav2vec2", "hidden_size": 768}, ("wav2vec2", "audio")),
        ({"_class_name": "UNet2DConditionModel", "sample_size": 64}, ("diffusion",)),
        ({"model_type": "newvit", "hidden_size": 768, "patch_size": 16}, ("vision", "patch_size")),
        ({"model_type": "rwkv", "hidden_size": 768}, ("rwkv", "not modelled")),
        ({"model_type": "bart", "d_model": 768, "is_encoder_decoder": True}, ("bart", "t5")),
        ({"model_type": "brandnew"}, ("model_type = 'brandnew'", "hidden_size")),
        ({"model_type": "lama"}, ("nearest: llama",)),
        ({"model_type": 7}, ("model_type = 7", "must be text")),
        ({"model_type": "brandnew", "hidden_size": 8, "ssm_state_size": 4}, ("state-space",)),
    ],
)
def test_models_that_are_not_read(
    refused: Refused, config: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(config, *words)


# Fields ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"],
)
def test_missing_sizes(refused: Refused, field: str) -> None:
    refused({k: v for k, v in LLAMA.items() if k != field}, field, "missing, but required")
    refused(LLAMA | {field: None}, field, "missing, but required")


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "head_dim",
    ],
)
@pytest.mark.parametrize("value", ["4096", -1, 0, 10**12, 1.5, True, [1], {"a": 1}])
def test_sizes(refused: Refused, field: str, value: object) -> None:
    refused(LLAMA | {field: value}, f"{field} = ", "must be a whole number from 1 to")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 250}, ("hidden_size = 250", "multiple of num_attention_heads = 8")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads = 3", "divide num_attention_heads")),
        ({"num_key_value_heads": 16}, ("num_key_value_heads = 16",)),
        ({"attention_bias": "no"}, ("attention_bias = 'no'", "true or false")),
        ({"tie_word_embeddings": 1}, ("tie_word_embeddings = 1", "true or false")),
        ({"hidden_act": 3}, ("hidden_act = 3", "must be text")),
        ({"partial_rotary_factor": 2.0}, ("partial_rotary_factor = 2.0", "from 0.0 to 1.0")),
        ({"sliding_window": -4}, ("sliding_window = -4",)),
        ({"layer_types": ["full_attention"] * 3}, ("layer_types", "3 entries", "layer, 4")),
        ({"layer_types": ["full_attention"] * 3 + ["sliding_attentoin"]},
         ("layer_types[3] = 'sliding_attentoin'", "nearest: sliding_attention")),
        ({"layer_types": "full_attention"}, ("layer_types", "must be a list")),
        ({"layer_types": [1, 2, 3, 4]}, ("layer_types[0] = 1", "must be one of")),
        ({QUANT: "fp8"}, ("quantization_config = 'fp8'", "must be an object")),
        ({QUANT: {"quant_method": "magic"}}, ("quantization_config.quant_method = 'magic'", "awq")),
        ({QUANT: {"quant_method": "awq", "bits": 3}}, ("quantization_config.bits = 3", "4, 8")),
        ({QUANT: {"quant_method": "modelopt", "quant_algo": "FP2"}}, ("quant_algo = 'FP2'",)),
        ({QUANT: {"quant_method": "fp8", "activation_scheme": "odd"}}, ("activation_scheme",)),
        ({QUANT: {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {
            "num_bits": 3}}}}}, ("config_groups.g.weights.num_bits = 3",)),
    ],
)  # fmt: skip
def test_contradictions(refused: Refused, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(LLAMA | changes, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_local_experts": 0}, ("num_local_experts = 0", "from 1 to")),
        ({"num_local_experts": None}, ("num_experts", "missing", "num_local_experts")),
        ({"num_experts_per_tok": 9}, ("num_experts_per_tok = 9", "number of experts, 8")),
        ({"num_experts_per_tok": 0}, ("num_experts_per_tok = 0",)),
        ({"model_type": "deepseek", "moe_layer_freq": [0, 1]}, ("moe_layer_freq", "2 entries")),
        ({"model_type": "deepseek", "moe_layer_freq": [0, 1, 2, 1]}, ("moe_layer_freq[2] = 2",)),
        ({"model_type": "deepseek_v3"}, ("kv_lora_rank", "missing")),
        ({"model_type": "minimax_m3", "sparse_attention_config": {"sparse_num_index_heads": 4}},
         ("sparse_attention_config.sparse_topk_blocks", "missing")),
    ],
)  # fmt: skip
def test_experts(refused: Refused, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(MIXTRAL | changes, *words)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gpt-neo-2.7B", {"attention_types": [[["global"], 3]]}, ("attention_types", "32 layers")),
        ("gpt-neo-2.7B", {"attention_types": [7]}, ("attention_types", "must look like")),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"hybrid_override_pattern": "MXM"},
         ("hybrid_override_pattern = 'MXM'", "M, *, -, E")),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"hybrid_override_pattern": "MEM"},
         ("hybrid_override_pattern", "3 layers", "52")),
        ("Zamba2-2.7B", {"layers_block_type": ["mamba"]}, ("layers_block_type", "54")),
        ("mamba2-2.7b", {"attn_layer_idx": [3]}, ("attn_layer_idx", "must be empty")),
        ("DeepSeek-V4-Pro", {"compress_ratios": None}, ("compress_ratios", "missing")),
        ("DeepSeek-V4-Pro", {"compress_ratios": [4]}, ("compress_ratios", "61")),
        ("GLM-5.2", {"indexer_types": ["full"]}, ("indexer_types", "78")),
        ("dbrx-base", {"attn_config": {"kv_n_heads": 7}}, ("num_key_value_heads = 7",)),
    ],
)  # fmt: skip
def test_families(
    refused: Refused, name: str, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    refused(config | changes, *words)


def test_errors_of_a_part_say_which(refused: Refused) -> None:
    inner = LLAMA | {"hidden_size": "wide"}
    refused({"model_type": "llava", "text_config": inner}, "text_config.hidden_size = 'wide'")
    refused({"model_type": "llava", "text_config": []}, "text_config", "must be an object")
    layers = {"full_attn_layers": [1], "kda_layers": [1]}
    config = json.loads((CONFIGS / "Kimi-K3.json").read_text())
    config["text_config"]["linear_attn_config"] |= layers
    refused(config, "text_config.linear_attn_config.full_attn_layers", "kda_layers")


def test_parts_within_parts_without_end(refused: Refused) -> None:
    depth = 900
    refused('{"text_config":' * depth + "{}" + "}" * depth, "text_config", "deep")


# Anything at all ---------------------------------------------------------------------------------

ODD = ("text", -1, 0, 10**30, 1.5, float("inf"), True, [], [None], {}, {"a": 1}, None)


def places(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *path) for path in places(value))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_any_field_made_odd_is_read_or_refused_in_one_line(path: Path) -> None:
    config = json.loads(path.read_text())
    for place in places(config):
        for odd in ODD:
            changed = copy.deepcopy(config)
            table = changed
            for step in place[:-1]:
                table = table[step]
            table[place[-1]] = odd
            error = refusal(changed)
            if error is not None:
                assert error.exit_status == 2
                assert str(error).startswith("mine.json: ")
                assert_one_line(str(error))


def refusal(config: dict[str, Any]) -> RtsimError | None:
    """Why a configuration is refused; None where it is read."""
    try:
        model_from_config(config, "mine", where="mine.json")
    except RtsimError as error:
        return error
    return None
