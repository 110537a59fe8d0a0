"""Packaged models against published sizes, exact counts of released weights, and hand sums."""

import pytest

from rtsim.catalog import load_model, model_names

# Parameters as published. Source of each in the comment.
PUBLISHED = {
    # Brown et al. 2020, table 2.1
    "gpt3-125m": 125e6,
    "gpt3-760m": 760e6,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13.0e9,
    "gpt3-175b": 175.0e9,
    # released weights of openai-community/gpt2*, as their model cards say
    "gpt2": 124e6,
    "gpt2-medium": 355e6,
    "gpt2-large": 774e6,
    "gpt2-xl": 1.558e9,
    "gpt-j-6b": 6_053_381_344,  # model card of EleutherAI/gpt-j-6b
    "gpt-neox-20b": 20_554_567_680,  # Black et al. 2022, section 2
    # Zhang et al. 2022, table 1
    "opt-6.7b": 6.7e9,
    "opt-30b": 30e9,
    "opt-66b": 66e9,
    "opt-175b": 175e9,
    "bloom-176b": 176_247_271_424,  # model card of bigscience/bloom
    "j1-large": 7.5e9,  # Lieber et al. 2021, table 1
    "j1-jumbo": 178e9,  # the same
    "j1-grande": 17e9,  # AI21 Labs, as in Narayanan et al. 2023, table 1
    "anthropic-52b": 52e9,  # Askell et al. 2021
    # Liang et al. 2022 (HELM), table 5
    "cohere-xlarge-52b": 52.4e9,
    "cohere-large-13b": 13.1e9,
    "cohere-medium-6b": 6.1e9,
    "cohere-small-410m": 410e6,
    "yalm-100b": 100e9,  # README of yandex/YaLM-100B
    "mt-nlg-530b": 530e9,  # Smith et al. 2022
    # Touvron et al. 2023: "70B" rounds; model cards say 6.74, 13.02, 68.98
    "llama-2-7b": 6.74e9,
    "llama-2-13b": 13.02e9,
    "llama-2-70b": 68.98e9,
    # model cards of meta-llama/Meta-Llama-3*
    "llama-3-8b": 8.03e9,
    "llama-3-70b": 70.6e9,
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.6e9,
    "llama-3.1-405b": 405e9,  # Grattafiori et al. 2024, table 3
    "mistral-7b": 7.24e9,  # model card of mistralai/Mistral-7B-v0.1
    "mixtral-8x22b": 140.6e9,  # model card of mistralai/Mixtral-8x22B-v0.1: 141B
    "kimi-k2": 1.026e12,  # 1T on the model card; counted as Kimi K2.5, the same shapes
    "kimi-k2.5": 1.026e12,  # 1T on the model card
    "gpt-oss-20b": 20.9e9,  # model card of openai/gpt-oss-20b, table 1
}
# Table figures of two digits that the table's own shapes miss by more than 1 %: half of the last
# digit for the billions; GPT-3 350M prints 350 for a shape of 354 plus padded vocabulary.
PUBLISHED_ROUNDED = {
    "gpt3-350m": (350e6, 0.02),
    "gpt3-1.3b": (1.3e9, 0.02),
    "gpt3-2.7b": (2.7e9, 0.02),
    "opt-1.3b": (1.3e9, 0.02),
    "opt-13b": (13e9, 0.02),
}

# Total and, for mixtures of experts, active parameters (embedding and head included), counted by
# building the configuration with the transformers library (5.23.0; T5: 4.57.1) on the meta device.
# Vision parts and layers of multi-token prediction are not in them.
COUNTED = {
    "llama-3.2-1b": (1_235_814_400, None),
    "llama-3.2-3b": (3_212_749_824, None),
    "llama-4-scout-17b-16e": (107_769_861_120, 17_172_894_720),
    "llama-4-maverick-17b-128e": (400_711_848_960, 17_184_691_200),
    "qwen2-7b": (7_615_616_512, None),
    "qwen2-72b": (72_706_203_648, None),
    "qwen2.5-7b": (7_615_616_512, None),
    "qwen2.5-14b": (14_770_033_664, None),
    "qwen2.5-32b": (32_763_876_352, None),
    "qwen2.5-72b": (72_706_203_648, None),
    "qwen3-0.6b": (596_049_920, None),
    "qwen3-8b": (8_190_735_360, None),
    "qwen3-14b": (14_768_307_200, None),
    "qwen3-32b": (32_762_123_264, None),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704),
    "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520),
    "qwen3-next-80b-a3b": (79_674_391_296, 3_874_929_408),
    "qwen3.5-27b": (26_895_998_464, None),
    "qwen3.5-397b-a17b": (396_346_350_336, 17_349_040_896),
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248),
    "mistral-7b-v0.3": (7_248_023_552, None),
    "mistral-nemo-12b": (12_247_782_400, None),
    "mistral-small-22b": (22_247_282_688, None),
    "gemma-2-9b": (9_241_705_984, None),
    "gemma-2-27b": (27_227_128_320, None),
    "gemma-3-4b": (3_880_263_168, None),
    "gemma-3-27b": (27_009_346_304, None),
    "phi-3-mini": (3_821_079_552, None),
    "phi-3-medium": (13_960_238_080, None),
    "phi-3.5-moe": (41_873_153_344, 6_640_999_744),
    "phi-4": (14_659_507_200, None),
    "phi-4-mini": (3_836_021_760, None),
    "deepseek-v2": (235_741_434_880, 21_375_800_320),
    "deepseek-v2-lite": (15_706_484_224, 2_661_150_208),
    "deepseek-v3": (671_026_404_352, 37_552_282_624),
    "deepseek-v3.2": (671_877_929_216, 38_403_807_488),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912),
    "glm-4.5": (352_797_814_784, 33_632_251_904),
    "glm-4.5-air": (106_852_245_504, 13_424_123_904),
    "glm-5": (743_911_199_232, 41_784_709_632),
    "minimax-m2": (228_689_748_992, 11_030_537_216),
    "nemotron-3-nano-30b-a3b": (31_577_937_344, 3_580_073_408),
    "nemotron-3-super-120b-a12b": (120_668_687_360, 12_770_216_960),
    "jamba-v0.1": (51_570_323_328, 12_110_311_296),
    "mamba2-2.7b": (2_702_579_200, None),
    "bert-large": (335_174_458, None),
    "t5-11b": (11_307_321_344, None),
    "olmo-2-7b": (7_298_617_344, None),
    "olmo-2-32b": (32_234_279_936, None),
    "granite-3.3-8b": (8_170_864_640, None),
    "starcoder2-15b": (15_957_889_024, None),
    "falcon-7b": (6_921_720_704, None),
    "falcon-40b": (41_303_293_952, None),
    "falcon-180b": (178_557_088_768, None),
    "command-r-35b": (34_980_831_232, None),
    "command-r7b": (8_028_033_024, None),
}

# Every weight counted by building the published implementation (Hugging Face classes).
EXACT = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-xl": 1_557_611_200,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "bloom-176b": 176_247_271_424,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    # two more learned positions are in the weights than the model can use
    "opt-66b": 65_719_701_504 - 2 * 9216,
    "opt-175b": 174_604_468_224 - 2 * 12288,
    "opt-6.7b": 6_658_473_984 - 2 * 4096,
    # printed by a Megatron-LM run of the same shape on one GPU
    "j1-grande": 17_084_641_280,
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_parameters_within_one_per_cent_of_the_published(name: str, published: float) -> None:
    assert load_model(name).parameters == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(("name", "figure"), PUBLISHED_ROUNDED.items())
def test_parameters_of_coarsely_printed_sizes(name: str, figure: tuple[float, float]) -> None:
    published, tolerance = figure
    assert load_model(name).parameters == pytest.approx(published, rel=tolerance)


def test_every_packaged_model_has_a_published_size_here() -> None:
    assert set(model_names()) == set(PUBLISHED) | set(PUBLISHED_ROUNDED) | set(COUNTED)


@pytest.mark.parametrize(("name", "counts"), COUNTED.items())
def test_counted_parameters(name: str, counts: tuple[int, int | None]) -> None:
    model = load_model(name)
    total, active = counts
    assert model.parameters == total
    assert model.active_parameters == (total if active is None else active)


# Active parameters as published, with the embedding and the head or without.
PUBLISHED_ACTIVE = {
    "mixtral-8x7b": 12.9e9,  # Jiang et al. 2024
    "mixtral-8x22b": 39e9,  # model card
    "deepseek-v3": 37e9,  # DeepSeek-V3 Technical Report
    "deepseek-v2": 21e9,  # DeepSeek-V2, arXiv 2405.04434
    "kimi-k2": 32e9,  # model card
    "qwen3-235b-a22b": 22e9,  # model card
    "llama-4-maverick-17b-128e": 17e9,  # model card
}


@pytest.mark.parametrize(("name", "active"), PUBLISHED_ACTIVE.items())
def test_published_active_parameters(name: str, active: float) -> None:
    assert load_model(name).active_parameters == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize(("name", "parameters"), EXACT.items())
def test_exact_counts(name: str, parameters: int) -> None:
    assert load_model(name).parameters == parameters


def test_gpt3_175b_by_hand() -> None:
    """V*h + s*h + L*(12 h^2 + 13 h) + 2 h, a GPT-2-style model with biases, tied head."""
    h, layers, vocab, positions = 12288, 96, 51200, 2048
    by_hand = vocab * h + positions * h + layers * (12 * h * h + 13 * h) + 2 * h
    assert load_model("gpt3-175b").parameters == by_hand == 174_615_846_912


def test_yalm_by_hand() -> None:
    """Gated MLP of 27308, token table of width 2048 projected in and out."""
    h, ffn, layers, vocab, width = 10240, 27308, 80, 128000, 2048
    weights = layers * (4 * h * h + 3 * h * ffn) + vocab * width + 2 * width * h
    biases = layers * (3 * h + h + 2 * ffn + h)
    norms = (2 * layers + 1) * 2 * h
    assert load_model("yalm-100b").parameters == weights + biases + norms


# 2 (key and value) * layers * KV heads * head size * bytes, by hand from the published shapes.
KV_BYTES_PER_TOKEN = {
    "gpt3-175b": 2 * 96 * 96 * 128 * 2,  # 4.7 MB
    "gpt-j-6b": 2 * 28 * 16 * 256 * 2,
    "bloom-176b": 2 * 70 * 112 * 128 * 2,
    "mt-nlg-530b": 2 * 105 * 128 * 160 * 2,
    "llama-2-7b": 512 * 1024,  # the well-known half mebibyte
    "llama-2-70b": 320 * 1024,  # 8 KV heads
    "llama-3-8b": 128 * 1024,
    "llama-3.1-405b": 516_096,  # 2 * 126 * 8 * 128 * 2
    "mistral-7b": 128 * 1024,
    "deepseek-v3": 61 * (512 + 64) * 2,  # one latent and one rotated key per layer: 70 kB
    "qwen3-30b-a3b": 2 * 48 * 4 * 128 * 2,
    "qwen3-next-80b-a3b": 2 * 12 * 2 * 256 * 2,  # twelve layers of 48 keep a cache
    "mamba2-2.7b": 0,
}


@pytest.mark.parametrize(("name", "size"), KV_BYTES_PER_TOKEN.items())
def test_kv_bytes_per_token(name: str, size: int) -> None:
    model = load_model(name)
    assert model.kv_bytes_per_token("fp16") == size
    assert model.kv_bytes_per_token("fp8") == size / 2


def test_mistral_keeps_no_more_than_its_window() -> None:
    model = load_model("mistral-7b")
    assert model.kv_bytes(4096) == 4096 * 128 * 1024
    assert model.kv_bytes(32768) == model.kv_bytes(4096)


# Shapes that published runs on real GPUs print for the same models.
SHAPES = {
    "gpt3-175b": (96, 12288, 96, 128, 49152, 51200, 2048),
    "gpt3-350m": (24, 1024, 16, 64, 4096, 50304, 2048),
    "j1-grande": (50, 5120, 40, 128, 20480, 262144, 2048),
}


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    model = load_model(name)
    (group,) = model.layers
    assert shape == (
        model.n_layers,
        model.hidden_size,
        group.attention.n_heads,
        group.attention.head_dim,
        group.mlp.ffn_size,
        model.vocab_size,
        model.max_positions,
    )
