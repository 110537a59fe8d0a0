"""Latent and compressed attention: DeepSeek V2 to V4, Kimi K2, GLM-5."""

from __future__ import annotations

from typing import Any

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.specs.attention import CompressedAttentionSpec, IndexerSpec, LatentAttentionSpec
from rtsim.specs.mlp import MlpSpec, MoeSpec
from rtsim.specs.model import LayerGroup, ModelSpec

# The only pooling that DeepSeek-V4 chooses among with an indexer; its groups overlap.
_CSA_COMPRESSION = 4
_LAYER_TYPES_V4 = {
    "sliding_attention": 0,
    "compressed_sparse_attention": _CSA_COMPRESSION,
    "heavily_compressed_attention": 128,
}


def latent_attention(c: Fields, **more: Any) -> LatentAttentionSpec:
    """MLA with the sizes of the configuration."""
    return LatentAttentionSpec(
        n_heads=c.whole(*parts.HEADS),
        q_lora_rank=c.whole_or_none("q_lora_rank"),
        kv_lora_rank=c.whole("kv_lora_rank"),
        qk_nope_head_dim=c.whole("qk_nope_head_dim"),
        qk_rope_head_dim=c.whole("qk_rope_head_dim"),
        v_head_dim=c.whole("v_head_dim"),
        **more,
    )


def deepseek(c: Fields) -> ModelSpec:
    """DeepSeek V2, V3, R1, Kimi K2; with an indexer V3.2 and GLM-5."""
    n = parts.layer_count(c)
    mixer = latent_attention(
        c, qkv_bias=c.flag("attention_bias", default=False), indexer=_indexer(c, n)
    )
    has_experts = c.has(*parts.EXPERTS)
    experts: MoeSpec | None = None
    if has_experts:
        experts = parts.moe(c, shared_size=parts.shared_experts(c))
    routed = parts.routed_layers(c, n) if has_experts else [False] * n

    def make(sparse: bool) -> LayerGroup:
        block: MlpSpec | MoeSpec = parts.mlp(c, gated=True)
        if sparse and experts is not None:
            block = experts
        return LayerGroup(attention=mixer, mlp=block, norm="rmsnorm")

    return parts.decoder(c, parts.groups(routed, make))


def _indexer(c: Fields, n: int) -> IndexerSpec | None:
    """The lightning indexer, if there is one, and how many layers share its choice."""
    if not c.has("index_topk"):
        return None
    every = 1.0
    kinds = c.kinds("indexer_types", n, ("full", "shared"), parts.prediction_layers(c))
    if kinds is not None and "full" in kinds:
        every = n / kinds.count("full")
    if every > 1:
        c.note(f"Layers share an indexer's choice: {kinds.count('full') if kinds else n} of {n}.")
    return IndexerSpec(
        n_heads=c.whole("index_n_heads", high=parts.MOST_LAYERS),
        head_dim=c.whole("index_head_dim"),
        top_k=c.whole("index_topk", high=parts.MOST_POSITIONS),
        query_rank=c.whole_or_none("q_lora_rank"),
        every=every,
    )


def deepseek_v4(c: Fields) -> ModelSpec:
    """Compressed attention of two kinds beside a window; experts in every layer."""
    n, hidden = parts.layer_count(c), parts.width(c)
    experts = parts.moe(c, shared_size=parts.shared_experts(c))
    streams = c.whole("hc_mult", default=1, high=1000)
    mixers = 2 * _hyper_connection(hidden, streams) if streams > 1 else 0

    def make(compression: int) -> LayerGroup:
        return LayerGroup(
            attention=_compressed(c, compression),
            mlp=experts,
            norm="rmsnorm",
            other_parameters=mixers,
        )

    head = 0
    if streams > 1:
        head = streams * streams * hidden + streams + 1
        c.note(
            f"The residual's {streams} streams (hyper-connections) count as parameters alone, "
            "without a share in the time."
        )
    c.note("Routers of the first layers that go by token (hash layers) are taken as ordinary.")
    layers = parts.groups(_compressions(c, n), make)
    return parts.decoder(c, layers, other_parameters=head)


def _hyper_connection(hidden: int, streams: int) -> int:
    """Mixing of the residual streams before and after one block."""
    columns = (2 + streams) * streams
    return columns * streams * hidden + columns + 3


def _compressions(c: Fields, n: int) -> list[int]:
    ratios = c.wholes("compress_ratios", n, spare=max(1, parts.prediction_layers(c)))
    if ratios is not None:
        return ratios
    kinds = parts.layer_types(c, n, tuple(_LAYER_TYPES_V4))
    if kinds is None:
        c.missing("compress_ratios", "layer_types")
    return [_LAYER_TYPES_V4[kind] for kind in kinds]


def _compressed(c: Fields, compression: int) -> CompressedAttentionSpec:
    hidden, head_dim = parts.width(c), c.whole("head_dim")
    indexer, other = None, 0
    if compression:
        other = compression * head_dim + head_dim  # positions within a group, norm
    if compression == _CSA_COMPRESSION:
        index_dim = c.whole("index_head_dim")
        indexer = IndexerSpec(
            n_heads=c.whole("index_n_heads", high=parts.MOST_LAYERS),
            head_dim=index_dim,
            top_k=c.whole("index_topk", high=parts.MOST_POSITIONS),
            query_rank=c.whole("q_lora_rank"),
        )
        # Overlapping groups: twice the positions. The indexer pools its own keys in the same
        # way: four projections of which IndexerSpec counts one (and a bias of its norm).
        other += compression * head_dim
        other += 3 * hidden * index_dim + 2 * compression * index_dim - index_dim
    return CompressedAttentionSpec(
        n_heads=c.whole(*parts.HEADS),
        head_dim=head_dim,
        qk_rope_head_dim=c.whole("qk_rope_head_dim"),
        q_lora_rank=c.whole("q_lora_rank"),
        o_lora_rank=c.whole("o_lora_rank"),
        o_groups=c.whole("o_groups", high=parts.MOST_LAYERS),
        window=c.whole("sliding_window", high=parts.MOST_POSITIONS),
        compression=compression,
        overlap=compression == _CSA_COMPRESSION,
        indexer=indexer,
        other_parameters=other,
    )


READERS = {
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "deepseek_v32": deepseek,
    "kimi_k2": deepseek,
    "kimi_k25": deepseek,
    "glm_moe_dsa": deepseek,
    "glm4_moe_lite": deepseek,
    "deepseek_v4": deepseek_v4,
    "deepseek_ref": deepseek_v4,
}
