"""Llama and its kin: RMSNorm, rotation, a gated MLP, mostly without biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.specs.mlp import Activation
from rtsim.specs.model import LayerGroup, ModelSpec

# Class defaults of Gemma 3's text part, which its files leave out where they agree.
_GEMMA3_VOCAB = 262_208
_GEMMA3_POSITIONS = 131_072


def _layers(
    c: Fields,
    windows: list[int | None],
    *,
    layer: dict[str, Any] | None = None,
    mlp_bias: bool = False,
    act: Activation = "silu",
    **attention: Any,
) -> tuple[LayerGroup, ...]:
    """Gated MLP after attention that differs from layer to layer in its window alone."""
    block = parts.mlp(c, gated=True, bias=mlp_bias, act=parts.activation(c, act))

    def make(window: int | None) -> LayerGroup:
        mixer = parts.attention(c, window=window, **attention)
        return LayerGroup(attention=mixer, mlp=block, **({"norm": "rmsnorm"} | (layer or {})))

    return parts.groups(windows, make)


def _everywhere(c: Fields) -> list[int | None]:
    """The window of every layer where all are alike, unless layer_types says otherwise."""
    n = parts.layer_count(c)
    return parts.windows(c, n, lambda i: True)


def _every(pattern: int) -> Callable[[int], bool]:
    """All layers but each `pattern`-th are windowed."""
    return lambda i: (i + 1) % pattern != 0


def llama(c: Fields) -> ModelSpec:
    """Llama 1 to 3; Mistral with its window; Granite, which differs in factors alone."""
    bias = c.flag("attention_bias", "bias", default=False)
    out_bias = c.flag("attention_out_bias", default=bias)
    mlp_bias = c.flag("mlp_bias", default=False)
    layers = _layers(c, _everywhere(c), qkv_bias=bias, out_bias=out_bias, mlp_bias=mlp_bias)
    return parts.decoder(c, layers)


def ernie4_5(c: Fields) -> ModelSpec:
    """ERNIE 4.5, dense: one flag for all biases, the head is the token table."""
    bias = c.flag("use_bias", default=False)
    layers = _layers(c, _everywhere(c), bias=bias, mlp_bias=bias)
    return parts.decoder(c, layers, tied=True)


def exaone4(c: Fields) -> ModelSpec:
    """EXAONE 4: norms after the blocks and of queries and keys per head; windows in the 32B."""
    pattern = c.raw("sliding_window_pattern")
    every = len(pattern) if isinstance(pattern, str) else 4
    if isinstance(pattern, int):
        every = c.whole("sliding_window_pattern", high=parts.MOST_LAYERS)
    windows = parts.windows(c, parts.layer_count(c), _every(max(every, 1)))
    return parts.decoder(c, _layers(c, windows, qk_norm=True))


def hunyuan(c: Fields) -> ModelSpec:
    """Hunyuan, dense: norms of queries and keys per head."""
    bias = c.flag("attention_bias", default=False)
    return parts.decoder(c, _layers(c, _everywhere(c), bias=bias, qk_norm=True))


def gemma(c: Fields) -> ModelSpec:
    """A head as wide as it likes; the head is the token table."""
    bias = c.flag("attention_bias", default=False)
    return parts.decoder(c, _layers(c, _everywhere(c), bias=bias, act="gelu"), tied=True)


def qwen2(c: Fields) -> ModelSpec:
    """Biases on queries, keys and values; a window on later layers where it is switched on."""
    return parts.decoder(c, _layers(c, qwen_windows(c), qkv_bias=True))


def qwen3(c: Fields) -> ModelSpec:
    """Norms of queries and keys per head instead of biases."""
    bias = c.flag("attention_bias", default=False)
    of = parts.heads(c, dim=128)
    return parts.decoder(c, _layers(c, qwen_windows(c), of=of, bias=bias, qk_norm=True))


def qwen_windows(c: Fields) -> list[int | None]:
    """Windows are on only with use_sliding_window, and from max_window_layers on."""
    n = parts.layer_count(c)
    if not c.flag("use_sliding_window", default=False):
        return [None] * n
    first = c.whole("max_window_layers", default=28, low=0, high=parts.MOST_LAYERS)
    return parts.windows(c, n, lambda i: i >= first)


def phi3(c: Fields) -> ModelSpec:
    """Phi-3 and Phi-4: as Llama, queries, keys and values in one matrix."""
    return parts.decoder(c, _layers(c, _everywhere(c)))


def gemma2(c: Fields) -> ModelSpec:
    """Every other layer sees a window; outputs are normed too."""
    windows = parts.windows(c, parts.layer_count(c), _every(2))
    bias = c.flag("attention_bias", default=False)
    layers = _layers(c, windows, bias=bias, act="gelu", layer={"norms_per_layer": 4})
    return parts.decoder(c, layers, tied=True)


def gemma3(c: Fields) -> ModelSpec:
    """Five windowed layers to a full one; norms of queries and keys."""
    every = c.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    windows = parts.windows(c, parts.layer_count(c), _every(every))
    kv = None if c.has(*parts.KV_HEADS) else 4
    n_heads = c.whole(*parts.HEADS, default=8)
    layers = _layers(
        c, windows, of=parts.heads(c, dim=256, n=n_heads, kv=kv or 0), qk_norm=True,
        bias=c.flag("attention_bias", default=False), act="gelu", layer={"norms_per_layer": 4},
    )  # fmt: skip
    return parts.decoder(
        c, layers, tied=True, vocab_size=parts.vocabulary(c, default=_GEMMA3_VOCAB),
        max_positions=parts.positions(c, _GEMMA3_POSITIONS),
    )  # fmt: skip


def olmo(c: Fields) -> ModelSpec:
    """OLMo 1: norms without weights."""
    bias = c.flag("attention_bias", default=False)
    layers = _layers(c, _everywhere(c), bias=bias, layer={"norms_per_layer": 0})
    return parts.decoder(c, layers, final_norm=False)


def olmo2(c: Fields) -> ModelSpec:
    """Norms after the blocks, and of all queries and all keys; OLMo 3 has windows besides."""
    windows = parts.windows(c, parts.layer_count(c), _every(4))
    layers = _layers(
        c, windows, bias=c.flag("attention_bias", default=False), qk_norm=True,
        qk_norm_scope="projection",
    )  # fmt: skip
    return parts.decoder(c, layers)


def cohere(c: Fields) -> ModelSpec:
    """Command R: one norm, attention and MLP in parallel; Command R7B has windows besides."""
    every = c.whole("sliding_window_pattern", "_sliding_window_pattern", default=4)
    windows = parts.windows(c, parts.layer_count(c), _every(every))
    layers = _layers(
        c, windows, bias=c.flag("attention_bias", default=False),
        qk_norm=c.flag("use_qk_norm", default=False), qk_norm_scope="projection",
        layer={"norm": "layernorm", "norm_bias": False, "norms_per_layer": 1, "parallel": True},
    )  # fmt: skip
    return parts.decoder(c, layers, tied=True)


def stablelm(c: Fields) -> ModelSpec:
    """LayerNorm with biases; a quarter of each head is rotated."""
    parallel = c.flag("use_parallel_residual", default=False)
    dim = parts.heads(c).dim
    layers = _layers(
        c, _everywhere(c), qkv_bias=c.flag("use_qkv_bias", default=False),
        rotary_dim=parts.rotary_dim(c, dim, 0.25),
        qk_norm=c.flag("qk_layernorm", default=False), qk_norm_scope="projection",
        layer={"norm": "layernorm", "parallel": parallel, "norms_per_layer": 1 if parallel else 2},
    )  # fmt: skip
    return parts.decoder(c, layers)


def baichuan(c: Fields) -> ModelSpec:
    """The 7B rotates; the 13B (40 layers) has ALiBi."""
    layers = _layers(c, _everywhere(c))
    alibi = parts.layer_count(c) >= 40
    return parts.decoder(c, layers, position="alibi" if alibi else "rotary")


def chatglm(c: Fields) -> ModelSpec:
    """ChatGLM 2 and 3, GLM-4 9B: own field names; half of each head is rotated."""
    n_heads = c.whole(*parts.HEADS)
    grouped = c.flag("multi_query_attention", default=False)
    kv = c.whole("multi_query_group_num", default=1) if grouped else n_heads
    of = parts.heads(c, kv=kv)
    bias = c.flag("add_bias_linear", default=False)
    layers = _layers(
        c, _everywhere(c), of=of, qkv_bias=bias or c.flag("add_qkv_bias", default=False),
        out_bias=bias, mlp_bias=bias, rotary_dim=max(1, of.dim // 2),
        layer={"norm": "rmsnorm" if c.flag("rmsnorm", default=True) else "layernorm"},
    )  # fmt: skip
    return parts.decoder(c, layers, final_norm=c.flag("post_layer_norm", default=True))


def glm4(c: Fields) -> ModelSpec:
    """GLM-4-0414: four norms a layer (glm: two), half of each head is rotated."""
    of = parts.heads(c, dim=128)
    norms = 2 if c.text_or_none("model_type") == "glm" else 4
    layers = _layers(
        c, _everywhere(c), of=of, qkv_bias=c.flag("attention_bias", default=False),
        rotary_dim=parts.rotary_dim(c, of.dim, 0.5), layer={"norms_per_layer": norms},
    )  # fmt: skip
    return parts.decoder(c, layers)


READERS = {
    "llama": llama,
    "mistral": llama,
    "ministral": llama,
    "ministral3": llama,
    "mistral3": llama,
    "granite": llama,
    "internlm": llama,
    "internlm2": llama,
    "seed_oss": llama,
    "smollm3": llama,
    "aquila": llama,
    "yi": llama,
    "ernie4_5": ernie4_5,
    "exaone4": exaone4,
    "hunyuan_v1_dense": hunyuan,
    "qwen2": qwen2,
    "qwen2_vl": qwen2,
    "qwen2_5_vl": qwen2,
    "qwen3": qwen3,
    "qwen3_vl": qwen3,
    "phi3": phi3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo2,
    "cohere": cohere,
    "cohere2": cohere,
    "stablelm": stablelm,
    "baichuan": baichuan,
    "chatglm": chatglm,
    "glm": glm4,
    "glm4": glm4,
}
