"""Mixtures of experts with windows, chunks or sparse attention: Llama 4, GPT-OSS, MiniMax, MiMo."""

from __future__ import annotations

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.hf.moe import dense_block, expert_layers
from rtsim.specs.attention import AttentionSpec, IndexerSpec
from rtsim.specs.mlp import MlpSpec
from rtsim.specs.model import LayerGroup, ModelSpec

_ROPE_EVERY = 4  # Llama 4: each fourth layer sees everything, without rotation
_CHUNK_NOTE = (
    "Attention within chunks is taken as a window of the same size: the longest that a token sees."
)


def llama4(c: Fields) -> ModelSpec:
    """One expert a token and a shared one; chunked attention but for each fourth layer."""
    n = parts.layer_count(c)
    every = c.whole("interleave_moe_layer_step", default=1, high=parts.MOST_LAYERS)
    given = c.wholes("moe_layers", None, high=parts.MOST_LAYERS)
    chosen = set(range(every - 1, n, every) if given is None else given)
    size = parts.window(c, "attention_chunk_size")
    kinds = parts.layer_types(c, n, ("full_attention", "chunked_attention"))
    # The list says which layers rotate, whatever its name says.
    rotated = c.wholes("no_rope_layers", n, high=1) if c.raw("no_rope_layers") != [] else None
    period = c.whole("no_rope_layer_interval", default=_ROPE_EVERY, high=parts.MOST_LAYERS)
    if kinds is not None:
        chunked = [kind != "full_attention" for kind in kinds]
    elif rotated is not None:
        chunked = [bool(flag) for flag in rotated]
    else:
        chunked = [(i + 1) % period != 0 for i in range(n)]
    windows = [size if flag else None for flag in chunked]
    if size is not None:
        c.note(_CHUNK_NOTE)
    width = parts.ffn_size(c)
    experts = parts.moe(c, expert_size=width, shared_size=width)

    def dense() -> MlpSpec:
        return parts.mlp(c, gated=True, size=c.whole("intermediate_size_mlp"))

    layers = expert_layers(
        c, windows, experts, dense, routed=[i in chosen for i in range(n)],
        bias=c.flag("attention_bias", default=False),
    )  # fmt: skip
    return parts.decoder(c, layers)


def gpt_oss(c: Fields) -> ModelSpec:
    """Biases everywhere, a sink per head, every other layer in a window."""
    windows = parts.windows(c, parts.layer_count(c), lambda i: i % 2 == 0)
    experts = parts.moe(c, expert_size=parts.ffn_size(c), bias=True)
    layers = expert_layers(
        c, windows, experts, bias=c.flag("attention_bias", default=True), sinks=True
    )  # fmt: skip
    return parts.decoder(c, layers)


def minimax_m2(c: Fields) -> ModelSpec:
    """MiniMax-M2: norms of all queries and of all keys."""
    n = parts.layer_count(c)
    shared = c.whole_or_none("shared_intermediate_size", low=0) or 0
    layers = expert_layers(
        c, [None] * n, parts.moe(c, expert_size=parts.ffn_size(c), shared_size=shared),
        qk_norm=c.flag("use_qk_norm", default=True), qk_norm_scope="projection",
    )  # fmt: skip
    return parts.decoder(c, layers)


def minimax_m3(c: Fields) -> ModelSpec:
    """MiniMax-M3: later layers attend to the best blocks of keys alone."""
    n = parts.layer_count(c)
    sparse_config = c.part("sparse_attention_config")
    on = sparse_config.flag("use_sparse_attention", default=bool(sparse_config.data))
    flags = sparse_config.wholes("sparse_attention_freq", n, high=1) if on else None
    routed = parts.routed_layers(c, n)
    indexer = None
    if on:
        block = sparse_config.whole("sparse_block_size", default=128)
        local = sparse_config.whole("sparse_local_block", default=1, low=0)
        chosen = sparse_config.whole("sparse_topk_blocks") + local
        indexer = IndexerSpec(
            n_heads=sparse_config.whole("sparse_num_index_heads"),
            head_dim=sparse_config.whole("sparse_index_dim"),
            top_k=block * chosen,
        )
        c.note(
            f"Sparse layers attend to {chosen} blocks of {block} keys; the choice among blocks is "
            "counted as one among all keys."
        )
    experts = parts.moe(c, expert_size=c.whole("moe_intermediate_size", "intermediate_size"),
                        shared_size=_minimax_shared(c))  # fmt: skip
    dense = parts.mlp(c, gated=True, size=c.whole("dense_intermediate_size", "intermediate_size"))

    def make(kind: tuple[bool, bool]) -> LayerGroup:
        sparse, has_experts = kind
        return LayerGroup(
            attention=parts.attention(
                c, qk_norm=c.flag("use_qk_norm", default=True), indexer=indexer if sparse else None,
                output_gate=c.flag("attention_output_gate", default=False),
            ),
            mlp=experts if has_experts else dense,
            norm="rmsnorm",
        )  # fmt: skip

    kinds = zip([bool(x) for x in flags or [on] * n], routed, strict=True)
    return parts.decoder(c, parts.groups(kinds, make))


def _minimax_shared(c: Fields) -> int:
    size = c.whole_or_none("shared_intermediate_size", low=0)
    return size if size is not None else parts.shared_experts(c)


def mimo_v2_flash(c: Fields) -> ModelSpec:
    """MiMo-V2-Flash: windowed layers have heads of their own and a sink per head."""
    n = parts.layer_count(c)
    spare = parts.prediction_layers(c)
    pattern = c.wholes("hybrid_layer_pattern", n, high=1, spare=spare) or [0] * n
    experts = parts.moe(c, shared_size=parts.shared_experts(c))
    size = parts.window(c)

    def make(kind: tuple[int, bool]) -> LayerGroup:
        local, has_experts = kind
        return LayerGroup(
            attention=_mimo_local(c, size) if local else _mimo_full(c),
            mlp=experts if has_experts else dense_block(c),
            norm="rmsnorm",
        )

    kinds = zip(pattern, parts.routed_layers(c, n), strict=True)
    return parts.decoder(c, parts.groups(kinds, make))


def _mimo_full(c: Fields) -> AttentionSpec:
    return parts.attention(
        c, qkv_bias=c.flag("attention_bias", default=False),
        v_head_dim=c.whole_or_none("v_head_dim"),
        sinks=c.flag("add_full_attention_sink_bias", default=False),
    )  # fmt: skip


def _mimo_local(c: Fields, window: int | None) -> AttentionSpec:
    n = c.whole("swa_num_attention_heads", *parts.HEADS)
    kv = c.whole("swa_num_key_value_heads", *parts.KV_HEADS, default=n)
    if n % kv:
        c.refuse("swa_num_key_value_heads", kv, f"must divide swa_num_attention_heads = {n}")
    of = parts.Heads(n, kv, c.whole("swa_head_dim", default=parts.heads(c).dim))
    return parts.attention(
        c, of=of, qkv_bias=c.flag("attention_bias", default=False), window=window,
        v_head_dim=c.whole_or_none("swa_v_head_dim", "v_head_dim"),
        sinks=c.flag("add_swa_attention_sink_bias", default=True),
    )  # fmt: skip


def step3p7(c: Fields) -> ModelSpec:
    """Step-3.5 and 3.7 Flash: norms of queries and keys, a gate per head, a shared expert."""
    n, hidden = parts.layer_count(c), parts.width(c)
    windows = parts.windows(c, n, lambda i: i % 4 != 0)
    first = 0 if c.has("mlp_layer_types", "first_k_dense_replace") else 3
    routed = [has and i >= first for i, has in enumerate(parts.routed_layers(c, n))]
    experts = parts.moe(c, shared_size=c.whole("share_expert_dim", "share_expert_dims", low=0))
    other = c.raw("attention_other_setting")
    local_heads = c.whole_or_none("num_sliding_attention_heads")
    if local_heads is None and isinstance(other, dict):
        local_heads = c.part("attention_other_setting").whole_or_none("num_attention_heads")

    def make(kind: tuple[int | None, bool]) -> LayerGroup:
        window, has_experts = kind
        of = parts.heads(c, n=local_heads if window is not None else None)
        return LayerGroup(
            attention=parts.attention(
                c, of=of, window=window, qk_norm=True,
                bias=c.flag("attention_bias", default=False),
            ),
            mlp=experts if has_experts else dense_block(c),
            norm="rmsnorm",
            other_parameters=hidden * of.n,  # the gate of each head
        )  # fmt: skip

    return parts.decoder(c, parts.groups(zip(windows, routed, strict=True), make))


READERS = {
    "llama4": llama4,
    "gpt_oss": gpt_oss,
    "minimax_m2": minimax_m2,
    "minimax_m3": minimax_m3,
    "minimax_m3_vl": minimax_m3,
    "mimo_v2_flash": mimo_v2_flash,
    "step3p5": step3p7,
    "step3p7": step3p7,
}
