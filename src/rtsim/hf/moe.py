"""Mixtures of experts whose layers have the same attention: Mixtral, Qwen, DeepSeek v1, GLM-4.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.hf.llama import qwen_windows
from rtsim.specs.mlp import MlpSpec, MoeSpec
from rtsim.specs.model import LayerGroup, ModelSpec


def expert_layers(
    c: Fields,
    windows: list[int | None],
    experts: MoeSpec,
    dense: Callable[[], MlpSpec] | None = None,
    *,
    routed: list[bool] | None = None,
    layer: dict[str, Any] | None = None,
    **attention: Any,
) -> tuple[LayerGroup, ...]:
    """Layers that differ in their window and in whether they have experts."""

    def make(kind: tuple[int | None, bool]) -> LayerGroup:
        window, has_experts = kind
        mixer = parts.attention(c, window=window, **attention)
        block = experts if has_experts or dense is None else dense()
        return LayerGroup(attention=mixer, mlp=block, **({"norm": "rmsnorm"} | (layer or {})))

    flags = [True] * len(windows) if routed is None else routed
    return parts.groups(zip(windows, flags, strict=True), make)


def mixtral(c: Fields) -> ModelSpec:
    """Mixtral 8x7B, 8x22B; a window where one is given."""
    windows = parts.windows(c, parts.layer_count(c), lambda i: True)
    return parts.decoder(c, expert_layers(c, windows, parts.moe(c)))


def phimoe(c: Fields) -> ModelSpec:
    """Phi-3.5-MoE: LayerNorm and biases."""
    windows = parts.windows(c, parts.layer_count(c), lambda i: True)
    bias = c.flag("attention_bias", default=False)
    layers = expert_layers(c, windows, parts.moe(c), layer={"norm": "layernorm"}, bias=bias)
    return parts.decoder(c, layers, head_bias=c.flag("lm_head_bias", default=False))


def granitemoe(c: Fields) -> ModelSpec:
    """Granite 3 MoE; granitemoeshared has a shared MLP besides."""
    windows = parts.windows(c, parts.layer_count(c), lambda i: True)
    shared = c.whole_or_none("shared_intermediate_size", low=0) or 0
    bias = c.flag("attention_bias", default=False)
    experts = parts.moe(c, expert_size=parts.ffn_size(c), shared_size=shared)
    return parts.decoder(c, expert_layers(c, windows, experts, bias=bias))


def olmoe(c: Fields) -> ModelSpec:
    """OLMoE: norms of all queries and of all keys."""
    n = parts.layer_count(c)
    layers = expert_layers(
        c, [None] * n, parts.moe(c, expert_size=parts.ffn_size(c)), qk_norm=True,
        qk_norm_scope="projection", bias=c.flag("attention_bias", default=False),
    )  # fmt: skip
    return parts.decoder(c, layers)


def ernie4_5_moe(c: Fields) -> ModelSpec:
    """ERNIE 4.5: shared experts, dense first layers."""
    n = parts.layer_count(c)
    first = c.whole("moe_layer_start_index", default=1, low=0, high=parts.MOST_LAYERS)
    every = c.whole("moe_layer_interval", default=1, high=parts.MOST_LAYERS)
    last = c.whole("moe_layer_end_index", default=-1, low=-1, high=parts.MOST_LAYERS)
    last = n - 1 if last < 0 else last
    shared = c.whole("moe_num_shared_experts", default=0, low=0, high=1000)
    size = c.whole("moe_intermediate_size")
    experts = parts.moe(c, expert_size=size, shared_size=shared * size, router_bias=True)
    layers = expert_layers(
        c, [None] * n, experts, lambda: dense_block(c), bias=c.flag("use_bias", default=False),
        routed=[first <= i <= last and (i + 1) % every == 0 for i in range(n)],
    )  # fmt: skip
    return parts.decoder(c, layers, tied=True)


def qwen2_moe(c: Fields) -> ModelSpec:
    """A gated shared expert beside the routed ones."""
    return _qwen_moe(c, qkv_bias=c.flag("qkv_bias", default=True))


def qwen3_moe(c: Fields) -> ModelSpec:
    """Norms of queries and keys, no shared expert."""
    return _qwen_moe(c, bias=c.flag("attention_bias", default=False), qk_norm=True)


def _qwen_moe(c: Fields, **attention: Any) -> ModelSpec:
    windows = qwen_windows(c)
    routed = parts.routed_layers(c, len(windows))
    layers = expert_layers(
        c, windows, qwen_experts(c), lambda: dense_block(c), routed=routed, **attention
    )
    return parts.decoder(c, layers)


def qwen_experts(c: Fields) -> MoeSpec:
    """Experts with the gated shared one that Qwen's mixtures have from Qwen1.5 on, but Qwen3."""
    shared = c.whole_or_none("shared_expert_intermediate_size", low=0) or 0
    return parts.moe(c, shared_size=shared, shared_gate=shared > 0)


def dense_block(c: Fields) -> MlpSpec:
    """The gated MLP of layers without experts."""
    return parts.mlp(c, gated=True)


def deepseek(c: Fields) -> ModelSpec:
    """DeepSeek-MoE 16B: multi-head attention, shared experts, a dense first layer."""
    return _deepseek(c)


def _deepseek(c: Fields, **attention: Any) -> ModelSpec:
    n = parts.layer_count(c)
    experts = parts.moe(c, shared_size=parts.shared_experts(c))
    layers = expert_layers(
        c, [None] * n, experts, lambda: dense_block(c), routed=parts.routed_layers(c, n),
        bias=c.flag("attention_bias", default=False), **attention,
    )  # fmt: skip
    return parts.decoder(c, layers)


def dots1(c: Fields) -> ModelSpec:
    """dots.llm1: as DeepSeek-MoE, with norms of queries and keys."""
    return _deepseek(c, qk_norm=True)


def glm4_moe(c: Fields) -> ModelSpec:
    """GLM-4.5: biases on queries, keys and values; half of each head is rotated."""
    n = parts.layer_count(c)
    of = parts.heads(c)
    layers = expert_layers(
        c, [None] * n, parts.moe(c, shared_size=parts.shared_experts(c)), lambda: dense_block(c),
        routed=parts.routed_layers(c, n), of=of,
        qkv_bias=c.flag("attention_bias", default=False),
        qk_norm=c.flag("use_qk_norm", default=False),
        rotary_dim=parts.rotary_dim(c, of.dim, 0.5),
    )  # fmt: skip
    return parts.decoder(c, layers)


def dbrx(c: Fields) -> ModelSpec:
    """DBRX: LayerNorm without bias, its own field names."""
    attn, ffn = c.part("attn_config"), c.part("ffn_config")
    kv = attn.whole("kv_n_heads", default=1)
    experts = parts.moe(ffn, expert_size=ffn.whole("ffn_hidden_size"))
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, of=parts.heads(c, kv=kv)),
        mlp=experts,
        norm_bias=False,
    )
    return parts.decoder(c, (layer,))


def grok(c: Fields) -> ModelSpec:
    """Grok-1: four norms a layer; the head is the token table."""
    experts = parts.moe(c, activation="gelu")
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c),
        mlp=experts,
        norm="rmsnorm",
        norms_per_layer=4,
    )
    return parts.decoder(c, (layer,), tied=True)


READERS = {
    "mixtral": mixtral,
    "phimoe": phimoe,
    "granitemoe": granitemoe,
    "granitemoeshared": granitemoe,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "qwen3_vl_moe": qwen3_moe,
    "deepseek": deepseek,
    "dots1": dots1,
    "ernie4_5_moe": ernie4_5_moe,
    "olmoe": olmoe,
    "glm4_moe": glm4_moe,
    "glm4v_moe": glm4_moe,
    "dbrx": dbrx,
    "grok-1": grok,
    "grok": grok,
}
