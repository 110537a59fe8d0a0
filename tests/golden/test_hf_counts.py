"""Parameters of models read from their configurations, against counts of the real thing.

The fixtures are configurations of published models, written anew with the fields that matter.
"""

import json
import re
from pathlib import Path

import pytest

from rtsim.hf import MODEL_TYPES, read_config

CONFIGS = Path(__file__).parents[1] / "fixtures" / "hf"

# Total and, for mixtures of experts, active parameters (embedding and head included), counted by
# building each configuration with the transformers library (5.23.0; T5 and Whisper: 4.57.1) on the
# meta device. Vision parts and layers of multi-token prediction are not in them. Types that it
# does not know were built as the nearest class of the same shapes.
COUNTED = {
    "Baichuan2-7B-Base": (7_505_973_248, None),
    "bert-large-uncased": (335_174_458, None),
    "bloom-560m": (559_214_592, None),
    "c4ai-command-r-v01": (34_980_831_232, None),
    "c4ai-command-r7b-12-2024": (8_028_033_024, None),
    "chatglm3-6b": (6_243_584_000, None),
    "dbrx-base": (131_596_523_520, 36_469_708_800),
    "deepseek-moe-16b-base": (16_375_728_128, 2_828_650_496),
    "DeepSeek-V2-Lite": (15_706_484_224, 2_661_150_208),
    "DeepSeek-V3.2-NVFP4": (671_877_929_216, 38_403_807_488),
    "DeepSeek-V3": (671_026_404_352, 37_552_282_624),
    "DeepSeek-V4-Flash-FP8": (284_332_230_231, 13_799_622_231),
    "DeepSeek-V4-Pro": (1_572_997_179_491, 49_779_058_787),
    "falcon-40b": (41_303_293_952, None),
    "falcon-7b": (6_921_720_704, None),
    "flan-ul2": (19_591_209_984, None),
    "gemma-2-27b": (27_227_128_320, None),
    "gemma-2b": (2_506_172_416, None),
    "gemma-3-27b-it": (27_009_346_304, None),
    "Gemma-4-26B-A4B-NVFP4": (25_233_141_760, 3_822_530_560),
    "Gemma-4-31B-IT-NVFP4": (30_697_345_280, None),
    "GLM-4.5": (352_797_814_784, 33_632_251_904),
    "GLM-5.2": (743_377_000_704, 41_250_511_104),
    "gpt-j-6b": (6_050_882_784, None),
    "gpt-neo-2.7B": (2_651_307_520, None),
    "gpt-neox-20b": (20_554_567_680, None),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912),
    "gpt2": (124_439_808, None),
    "gpt_bigcode-santacoder": (1_124_886_528, None),
    "granite-3.3-8b-instruct": (8_170_864_640, None),
    "grok-1": (315_684_820_992, 83_756_587_008),
    "internlm2-7b": (7_737_708_544, None),
    "Jamba-v0.1": (51_570_323_328, 12_110_311_296),
    "Kimi-K2.5": (1_026_408_209_408, 32_861_477_888),
    "Llama-3.2-1B-Instruct": (1_235_814_400, None),
    "Llama-4-Maverick-17B-128E-Instruct": (400_711_848_960, 17_184_691_200),
    "llama-7b": (6_738_415_616, None),
    "mamba2-2.7b": (2_702_579_200, None),
    "MiMo-V2-Flash": (308_778_768_832, 15_445_924_288),
    "MiniMax-M2.7": (228_689_748_992, 11_030_537_216),
    "MiniMax-M3": (426_174_565_632, 25_962_466_560),
    "MiniMax-Text-01-hf": (456_089_655_296, 48_403_306_496),
    "Mistral-7B-v0.1": (7_241_732_096, None),
    "Mistral-Nemo-Instruct-2407": (12_247_782_400, None),
    "Mixtral-8x7B-v0.1": (46_702_792_704, 12_879_925_248),
    "mpt-7b": (6_649_286_656, None),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31_577_937_344, 3_580_073_408),
    "NVIDIA-Nemotron-3-Super-120B-A12B-FP8": (120_668_687_360, 12_770_216_960),
    "NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (549_308_968_960, 56_058_818_560),
    "OLMo-2-1124-7B": (7_298_617_344, None),
    "opt-125m": (125_239_296, None),
    "phi-2": (2_779_683_840, None),
    "Phi-3.5-MoE-instruct": (41_873_153_344, 6_640_999_744),
    "Phi-4-mini-instruct": (3_836_021_760, None),
    "Qwen2-57B-A14B": (57_408_658_944, 14_249_270_784),
    "Qwen2-7B": (7_615_616_512, None),
    "Qwen3-0.6B": (596_049_920, None),
    "Qwen3-30B-A3B": (30_532_122_624, 3_353_032_704),
    "Qwen3-32B-FP8-Static-PerTensor": (32_762_123_264, None),
    "Qwen3-Next-80B-A3B-Instruct": (79_674_391_296, 3_874_929_408),
    "Qwen3-VL-2B-Instruct": (1_720_574_976, None),
    "Qwen3-VL-30B-A3B-Instruct": (30_532_122_624, 3_353_032_704),
    "Qwen3.5-122B-A10B": (122_111_526_912, 9_771_288_576),
    "Qwen3.5-27B": (26_895_998_464, None),
    "RedPajama-INCITE-Base-3B-v1": (2_775_864_320, None),
    "stablelm-2-zephyr-1_6b": (1_644_515_328, None),
    "starcoder2-7b": (7_173_923_840, None),
    "Step-3.7-Flash-FP8": (195_844_496_640, 10_875_690_240),
    "t5-11b": (11_307_321_344, None),
    "whisper-tiny": (37_760_640, None),
    "Zamba2-2.7B": (2_662_214_560, None),
}

# Parameters as the weights' own index or the model card says.
PUBLISHED = {
    "OLMo-7B-hf": 6_888_095_744,
    "Olmo-3-1025-7B": 7_298_011_136,
    "GLM-4-9B-0414": 9_400_279_040,
    "granite-3.0-1b-a400m-base": 1_334_628_352,
    "mamba-2.8b-hf": 2_768_345_600,
    "Mamba-Codestral-7B-v0.1": 7_285_403_648,
    "Minitron-4B-Base": 4.19e9,
    "roberta-base": 124_697_433,
    "distilbert-base-uncased": 66_985_530,
    "Kimi-K2-Instruct": 1.026e12,
    "yalm-100b": 100e9,
    "OLMoE-1B-7B-0924": 6_919_161_856,
    "dots.llm1.inst": 142.8e9,
    "ERNIE-4.5-21B-A3B-PT": 21.8e9,
    "ERNIE-4.5-0.3B-PT": 360_748_032,
    "EXAONE-4.0-1.2B": 1_279_391_488,
    "Hunyuan-7B-Instruct": 7.5e9,
}
# Nothing to compare with.
UNCOUNTED = {"Kimi-K3"}

# Why a count is missed, and by how much at most. All others are exact.
MISSED = {
    "MiniMax-M3": 1e-4,  # its indexer has no weights per head, the specification's has
    "GLM-5.2": 1e-9,  # a third of an indexer per layer, rounded
    "whisper-tiny": 2e-4,  # its keys have no bias, the specification's have
}


@pytest.mark.parametrize(("name", "counts"), COUNTED.items())
def test_counted_parameters(name: str, counts: tuple[int, int | None]) -> None:
    model = read_config(CONFIGS / f"{name}.json")
    total, active = counts
    rel = MISSED.get(name, 0.0)
    assert model.parameters == pytest.approx(total, rel=rel, abs=0)
    if active is None:
        assert model.active_parameters == model.parameters
    else:
        assert model.active_parameters == pytest.approx(active, rel=rel, abs=0)


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_published_parameters(name: str, parameters: float) -> None:
    assert read_config(CONFIGS / f"{name}.json").parameters == pytest.approx(parameters, rel=0.01)


def test_every_fixture_has_a_count_here() -> None:
    known = set(COUNTED) | set(PUBLISHED) | UNCOUNTED
    assert {path.stem for path in CONFIGS.glob("*.json")} == known


def test_names_are_those_of_the_files() -> None:
    for path in CONFIGS.glob("*.json"):
        assert read_config(path).name == path.stem


# Types that are another type's shape, or read by the same function with no more to it.
ALIKE = {
    "RefinedWeb", "RefinedWebModel", "aquila", "camembert", "falcon_mamba", "glm",
    "glm4_moe_lite", "glm4v_moe", "granitemoeshared", "grok", "internlm", "kimi_linear",
    "minimax_m3_vl", "minimax_text_01", "ministral", "ministral3", "mistral3", "mt5", "qwen2_5_vl",
    "qwen2_vl", "seed_oss", "smollm3", "step3p5", "umt5", "xlm-roberta", "yi", "granitemoehybrid",
}  # fmt: skip


def test_the_page_names_every_model_type() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    named = set(re.findall(r"[\w-]+", page))
    assert set(MODEL_TYPES) <= named


def test_every_model_type_has_a_fixture() -> None:
    seen = set()
    for path in CONFIGS.glob("*.json"):
        config = json.loads(path.read_text())
        kinds = (config.get("model_type"), config.get("text_config", {}).get("model_type"))
        seen |= {str(kind).removesuffix("_text") for kind in kinds}
    assert set(MODEL_TYPES) - ALIKE <= seen
