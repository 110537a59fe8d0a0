"""Layers with a state among layers with a cache, and Gemma 4, whose layers differ in more ways."""

from __future__ import annotations

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.hf.latent import latent_attention
from rtsim.hf.moe import qwen_experts
from rtsim.specs.attention import AttentionSpec
from rtsim.specs.mlp import MlpSpec, MoeSpec
from rtsim.specs.model import LayerGroup, ModelSpec
from rtsim.specs.recurrent import GatedDeltaSpec, LinearAttentionSpec

_LINEAR, _FULL = "linear_attention", "full_attention"


def _kinds(c: Fields, n: int) -> list[str]:
    """Linear and full layers: from layer_types, or each full_attention_interval-th is full."""
    kinds = parts.layer_types(c, n, (_LINEAR, _FULL))
    if kinds is not None:
        return kinds
    every = c.whole("full_attention_interval", default=4, high=parts.MOST_LAYERS)
    return [_LINEAR if (i + 1) % every else _FULL for i in range(n)]


def qwen3_next(c: Fields) -> ModelSpec:
    """Qwen3-Next and Qwen3.5: gated delta rule, each fourth layer attention with a gate."""
    n = parts.layer_count(c)
    of = parts.heads(c, dim=256)
    full = parts.attention(
        c, of=of, bias=c.flag("attention_bias", default=False), qk_norm=True,
        output_gate=c.flag("attn_output_gate", default=True),
        rotary_dim=parts.rotary_dim(c, of.dim, 0.25),
    )  # fmt: skip
    linear = GatedDeltaSpec(
        n_k_heads=c.whole("linear_num_key_heads", high=parts.MOST_LAYERS),
        n_v_heads=c.whole("linear_num_value_heads", high=parts.MOST_LAYERS),
        k_head_dim=c.whole("linear_key_head_dim"),
        v_head_dim=c.whole("linear_value_head_dim"),
        conv_kernel=c.whole("linear_conv_kernel_dim", default=4, high=1000),
    )
    has_experts = c.has(*parts.EXPERTS)
    routed = parts.routed_layers(c, n) if has_experts else [False] * n
    experts = qwen_experts(c) if has_experts else None

    def make(kind: tuple[str, bool]) -> LayerGroup:
        block: MlpSpec | MoeSpec | None = experts if kind[1] else None
        return LayerGroup(
            attention=linear if kind[0] == _LINEAR else full,
            mlp=block or parts.mlp(c, gated=True),
            norm="rmsnorm",
        )

    return parts.decoder(c, parts.groups(zip(_kinds(c, n), routed, strict=True), make))


def minimax(c: Fields) -> ModelSpec:
    """MiniMax-Text-01: lightning attention, each eighth layer full."""
    n = parts.layer_count(c)
    of = parts.heads(c)
    linear = LinearAttentionSpec(n_attention_heads=of.n, head_dim=of.dim)
    kinds = parts.layer_types(c, n, (_LINEAR, _FULL))
    if kinds is None:
        flags = c.wholes("attn_type_list", n, high=1)
        if flags is None:
            c.missing("layer_types", "attn_type_list")
        kinds = [_FULL if flag else _LINEAR for flag in flags]
    experts = parts.moe(c, expert_size=parts.ffn_size(c))

    def make(kind: str) -> LayerGroup:
        mixer = linear if kind == _LINEAR else parts.attention(c, of=of)
        return LayerGroup(attention=mixer, mlp=experts, norm="rmsnorm")

    # 131072 is the default of the class.
    return parts.decoder(c, parts.groups(kinds, make), max_positions=parts.positions(c, 131_072))


def kimi_linear(c: Fields) -> ModelSpec:
    """Kimi Linear and K3: delta rule with a decay per channel, each fourth layer MLA."""
    n = parts.layer_count(c)
    inner = c.part("linear_attn_config")
    n_heads, dim = inner.whole("num_heads", high=parts.MOST_LAYERS), inner.whole("head_dim")
    linear = GatedDeltaSpec(
        n_k_heads=n_heads,
        n_v_heads=n_heads,
        k_head_dim=dim,
        v_head_dim=dim,
        conv_kernel=inner.whole("short_conv_kernel_size", default=4, high=1000),
        decay_rank=dim,
        gate_rank=None if inner.flag("use_full_rank_gate", default=False) else dim,
    )
    full = latent_attention(c, output_gate=c.flag("mla_use_output_gate", default=False))
    latent = c.whole_or_none("routed_expert_hidden_size")
    experts = parts.moe(c, shared_size=parts.shared_experts(c), latent_size=latent)
    normed = latent if latent and c.flag("latent_moe_use_norm", default=False) else 0
    if c.has("attn_res_block_size"):
        c.note("Attention over the residuals of earlier blocks of layers is left out.")

    def make(kind: tuple[bool, bool]) -> LayerGroup:
        is_full, has_experts = kind
        return LayerGroup(
            attention=full if is_full else linear,
            mlp=experts if has_experts else parts.mlp(c, gated=True),
            norm="rmsnorm",
            other_parameters=normed if has_experts else 0,
        )

    kinds = zip(_kimi_full(inner, n), parts.routed_layers(c, n), strict=True)
    position = "none" if c.flag("mla_use_nope", default=False) else "rotary"
    return parts.decoder(c, parts.groups(kinds, make), position=position)


def _kimi_full(inner: Fields, n: int) -> list[bool]:
    """Which layers are full attention; the lists count from 1 and must give each layer once."""
    full = inner.wholes("full_attn_layers", None, low=1, high=n) or []
    linear = inner.wholes("kda_layers", None, low=1, high=n) or []
    if sorted(full + linear) != list(range(1, n + 1)):
        given = f"{len(full)} layers, and {len(linear)} in kda_layers"
        inner.refuse(
            "full_attn_layers", given, f"must give each of {n} layers once with kda_layers"
        )
    return [i + 1 in set(full) for i in range(n)]


def gemma4(c: Fields) -> ModelSpec:
    """Full layers with fewer, wider heads whose values are the keys; experts beside the MLP."""
    n, hidden = parts.layer_count(c), parts.width(c)
    sliding, full = "sliding_attention", _FULL
    kinds = parts.layer_types(c, n, (sliding, full))
    if kinds is None:
        kinds = [sliding if (i + 1) % 6 else full for i in range(n)]
    shared = c.whole("num_kv_shared_layers", default=0, low=0, high=n)
    double = 2 if c.flag("use_double_wide_mlp", default=False) else 1
    input_size = c.whole_or_none("hidden_size_per_layer_input", low=0) or 0
    # A projection into the input of each layer, one out of it, and a norm.
    other = 2 * hidden * input_size + hidden if input_size else 0
    has_experts = c.flag("enable_moe_block", default=False)
    if has_experts:
        other += hidden + c.whole(*parts.EXPERTS)  # scales of the router and of its experts
    size = parts.ffn_size(c)

    def make(kind: tuple[str, bool]) -> LayerGroup:
        name, own = kind
        block: MlpSpec | MoeSpec
        if has_experts:
            block = parts.moe(c, dense_size=size, activation=parts.activation(c, "gelu"))
        else:
            wide = size if own else size * double
            block = parts.mlp(c, gated=True, size=wide, act=parts.activation(c, "gelu"))
        return LayerGroup(
            attention=_gemma4_attention(c, name == full, own),
            mlp=block,
            norm="rmsnorm",
            norms_per_layer=7 if has_experts else 4,
            other_parameters=other,
        )

    outside = 0
    if input_size:
        rows = c.whole("vocab_size_per_layer_input", "vocab_size", high=parts.MOST_TOKENS)
        outside = rows * n * input_size + hidden * n * input_size + input_size
        c.note("The inputs of each layer (a second token table) count as parameters alone.")
    layers = parts.groups(((kinds[i], i < n - shared) for i in range(n)), make)
    return parts.decoder(c, layers, tied=True, other_parameters=outside)


def _gemma4_attention(c: Fields, full: bool, own: bool) -> AttentionSpec:
    of = parts.heads(c, dim=256)
    if full:
        kv = c.whole("num_global_key_value_heads", default=of.kv)
        if of.n % kv:
            c.refuse("num_global_key_value_heads", kv, f"must divide num_attention_heads = {of.n}")
        of = parts.Heads(of.n, kv, c.whole("global_head_dim", default=of.dim))
    same = full and c.flag("attention_k_eq_v", default=False)
    return parts.attention(
        c, of=of, bias=c.flag("attention_bias", default=False), qk_norm=True,
        window=None if full else parts.window(c), value_projection=not same, own_cache=own,
        rotary_dim=None,
    )  # fmt: skip


READERS = {
    "qwen3_next": qwen3_next,
    "qwen3_5": qwen3_next,
    "qwen3_5_moe": qwen3_next,
    "minimax": minimax,
    "minimax_text_01": minimax,
    "kimi_linear": kimi_linear,
    "kimi_k3": kimi_linear,
    "gemma4": gemma4,
}
