"""Token mixers as operators: attention of every kind, and recurrent layers.

One GPU's share under tensor parallelism: heads are split, KV heads replicated where there are
fewer than ranks, projections to latents whole (Shoeybi et al. 2019, arXiv:1909.08053; DeepSeek-V2,
arXiv:2405.04434).
"""

from __future__ import annotations

from typing import Any

from rtsim_kernels import collective, tables

from rtsim.operators.layout import Layout
from rtsim.operators.table import (
    COLLECTIVE_CONTEXT,
    GEMM_ABSORB,
    GEMM_ATTENTION,
    GEMM_BATCHED,
    GEMM_HEAD,
    Builder,
)
from rtsim.specs.attention import (
    AttentionSpec,
    CompressedAttentionSpec,
    IndexerSpec,
    LatentAttentionSpec,
)
from rtsim.specs.model import LayerGroup
from rtsim.specs.recurrent import GatedDeltaSpec, Mamba2Spec, MambaSpec


def mix(build: Builder, layout: Layout, group: LayerGroup, mixer: Any) -> None:
    """The operators of a layer's token mixer, from the normed hidden state to its projection."""
    if isinstance(mixer, AttentionSpec):
        attend(build, layout, group, mixer)
    elif isinstance(mixer, LatentAttentionSpec):
        attend_latent(build, layout, mixer)
    elif isinstance(mixer, CompressedAttentionSpec):
        attend_compressed(build, layout, mixer)
    else:
        recur(build, layout, group, mixer)


def attend(build: Builder, layout: Layout, group: LayerGroup, attention: AttentionSpec,
           *, cross: bool = False) -> None:  # fmt: skip
    """Attention; `cross`: to the encoder's output, whose keys and values are there already."""
    tp, traits, plain, model = layout.tp, layout.traits, layout.plain, layout.model
    hidden = model.hidden_size
    heads = attention.n_heads / tp
    kv_heads = max(1.0, attention.n_kv_heads / tp)  # replicated when there are fewer than ranks
    head_dim, v_dim = attention.head_dim, attention.v_dim
    makes_kv = attention.own_cache and not cross
    kv_columns = (head_dim + (v_dim if attention.value_projection else 0)) * kv_heads
    columns = heads * head_dim + (kv_columns if makes_kv else 0.0)
    if plain is not None and plain.separate_qkv:
        build.gemm("query projection", heads * head_dim, hidden, row=GEMM_ATTENTION)
        build.gemm("key projection", kv_heads * head_dim, hidden, row=GEMM_ATTENTION)
        build.gemm("value projection", kv_heads * v_dim, hidden, row=GEMM_ATTENTION)
    else:
        gate = heads * v_dim if attention.output_gate else 0.0
        name = "cross query projection" if cross else "QKV projection"
        build.gemm(name, columns + gate, hidden, row=GEMM_ATTENTION)
    prefix = "cross " if cross else ""
    if traits.eager_copies and attention.qkv_bias:
        build.elementwise(f"{prefix}QKV bias", "add_scalar", columns)
    if attention.qk_norm:
        if attention.qk_norm_scope == "projection":
            build.elementwise("QK norm", group.norm, (heads + kv_heads) * head_dim)
        else:
            build.elementwise("QK norm", group.norm, head_dim, per_token=heads + kv_heads)
    if model.position == "rotary" and not cross:
        rotated = attention.rotary_dim or head_dim
        build.elementwise("rotary", "rope", (heads + kv_heads) * rotated)
    if plain is not None:
        build.elementwise("head layout", "copy", plain.head_copies * heads * head_dim,
                          launches=plain.head_copies)  # fmt: skip
    elif makes_kv and attention.causal:
        build.elementwise("cache write", "copy", kv_heads * (head_dim + v_dim),
                          launches=2 if traits.eager_copies else 1)  # fmt: skip
    if attention.indexer is not None:
        index(build, attention.indexer, hidden)
    _share_context(build, layout, kv_heads * (head_dim + v_dim) if makes_kv else 0.0, heads * v_dim)
    source = 1.0 if cross else 0.0
    if traits.attention == "unfused":
        sizes = {"n_heads": heads, "head_dim": head_dim, "v_head_dim": v_dim, "source": source,
                 "row": GEMM_BATCHED}  # fmt: skip
        build.add(f"{prefix}attention scores", tables.SCORES, per_token=1.0, **sizes)
        for work in ("softmax",) if plain is None else plain.score_kernels:
            build.elementwise(f"{prefix}attention {work}", work, 0, per_token=heads, source=source)
        build.add(f"{prefix}attention values", tables.VALUES, **sizes)
    else:
        window = attention.window or 0
        if attention.indexer is not None:
            window = attention.indexer.top_k
        build.add(f"{prefix}attention", tables.ATTENTION, n_heads=heads, n_kv_heads=kv_heads,
                  head_dim=head_dim, v_head_dim=v_dim, window=window, source=source,
                  causal=1.0 if attention.causal else 0.0)  # fmt: skip
    if traits.eager_copies and plain is None:
        build.elementwise(f"{prefix}attention transpose", "copy", heads * v_dim)
    if attention.output_gate:
        build.elementwise("attention gate", "silu_and_mul", heads * v_dim)
    build.gemm(f"{prefix}attention output projection", hidden, heads * v_dim, row=GEMM_ATTENTION)


def cross_keys(build: Builder, layout: Layout, attention: AttentionSpec) -> None:
    """Keys and values of the encoder's output, made once for all decoder steps."""
    kv_heads = max(1.0, attention.n_kv_heads / layout.tp)
    width = kv_heads * (attention.head_dim + attention.v_dim)
    build.gemm("cross KV projection", width, layout.model.hidden_size, row=GEMM_ATTENTION)
    build.elementwise("cross cache write", "copy", width)


def attend_latent(build: Builder, layout: Layout, mla: LatentAttentionSpec) -> None:
    """Latent attention: keys and values made from latents for a prompt, absorbed in decode."""
    hidden = layout.model.hidden_size
    heads = mla.n_heads / layout.tp
    latent, rope, nope = mla.kv_lora_rank, mla.qk_rope_head_dim, mla.qk_nope_head_dim
    build.gemm("QKV down projection", mla.down_width, hidden, row=GEMM_ATTENTION)
    build.elementwise("latent norm", "rmsnorm", latent + (mla.q_lora_rank or 0))
    build.gemm("query up projection", heads * mla.head_dim, mla.q_lora_rank or hidden,
               row=GEMM_ATTENTION)  # fmt: skip
    build.elementwise("rotary", "rope", (heads + 1) * rope)
    build.elementwise("cache write", "copy", mla.latent_width)
    if mla.indexer is not None:
        index(build, mla.indexer, hidden)
    _share_context(build, layout, mla.latent_width, heads * mla.v_head_dim)
    absorbed = layout.traits.absorbed_prefill
    if not absorbed:
        build.gemm("KV up projection", heads * (nope + mla.v_head_dim), latent,
                   row=GEMM_ATTENTION, per_cached=1.0, phase=tables.MANY_TOKENS)  # fmt: skip
    phase = tables.ALWAYS if absorbed else tables.ONE_TOKEN
    build.gemm("key absorption", latent, nope, row=GEMM_ABSORB, n_heads=heads, phase=phase)
    window = mla.indexer.top_k if mla.indexer is not None else 0
    build.add("latent attention", tables.LATENT, n_heads=heads, n_kv_heads=heads,
              head_dim=mla.head_dim, v_head_dim=mla.v_head_dim, k=latent, n=rope, window=window,
              causal=1.0)  # fmt: skip
    build.gemm("value absorption", mla.v_head_dim, latent, row=GEMM_ABSORB, n_heads=heads,
               phase=phase)  # fmt: skip
    if mla.output_gate:
        build.gemm("attention gate projection", heads * mla.v_head_dim, hidden, row=GEMM_ATTENTION)
        build.elementwise("attention gate", "silu_and_mul", heads * mla.v_head_dim)
    build.gemm("attention output projection", hidden, heads * mla.v_head_dim, row=GEMM_ATTENTION)


def attend_compressed(build: Builder, layout: Layout, mixer: CompressedAttentionSpec) -> None:
    """Attention to a window and to pooled entries, one shared head of keys and values."""
    hidden = layout.model.hidden_size
    heads = mixer.n_heads / layout.tp
    groups = max(1.0, mixer.o_groups / layout.tp)
    build.gemm("QKV down projection", mixer.down_width, hidden, row=GEMM_ATTENTION)
    build.elementwise("latent norm", "rmsnorm", mixer.q_lora_rank + mixer.head_dim)
    build.gemm("query up projection", heads * mixer.head_dim, mixer.q_lora_rank, row=GEMM_ATTENTION)
    build.elementwise("rotary", "rope", (heads + 1) * mixer.qk_rope_head_dim)
    build.elementwise("cache write", "copy", mixer.head_dim)
    if mixer.compression:
        build.elementwise("key pooling", "softmax", 2.0 * mixer.head_dim)
    limit = 0
    if mixer.indexer is not None:
        index(build, mixer.indexer, hidden, compression=max(1, mixer.compression))
        limit = mixer.indexer.top_k
    if mixer.compression:
        reach = {"compression": mixer.compression, "key_limit": limit, "window": mixer.window}
    else:
        reach = {"window": mixer.window}
    _share_context(build, layout, mixer.head_dim, heads * mixer.head_dim)
    build.add("latent attention", tables.LATENT, n_heads=heads, n_kv_heads=1.0,
              head_dim=mixer.head_dim, v_head_dim=mixer.head_dim, k=mixer.head_dim, n=0.0,
              causal=1.0, **reach)  # fmt: skip
    build.gemm("output group projection", mixer.o_lora_rank,
               heads * mixer.head_dim / groups, row=GEMM_BATCHED, n_heads=groups)  # fmt: skip
    build.gemm("attention output projection", hidden, groups * mixer.o_lora_rank,
               row=GEMM_ATTENTION)  # fmt: skip


def index(build: Builder, indexer: IndexerSpec, hidden: int, *, compression: int = 1) -> None:
    """Scores of all keys by a few small heads, and the choice of the best.

    Every GPU of a tensor-parallel group does it whole: the choice has to be the same.
    """
    share = 1.0 / indexer.every
    build.gemm("index query projection", indexer.n_heads * indexer.head_dim,
               indexer.query_rank or hidden, row=GEMM_ATTENTION, per_token=share)  # fmt: skip
    build.gemm("index key projection", indexer.head_dim + indexer.n_heads, hidden, row=GEMM_HEAD,
               per_token=share)  # fmt: skip
    build.add("index scores", tables.SCORES, row=GEMM_BATCHED, n_heads=1.0,
              head_dim=indexer.head_dim, per_token=share * indexer.n_heads,
              compression=compression)  # fmt: skip
    build.elementwise("index choice", "softmax", 0, per_token=share, compression=compression)


def recur(build: Builder, layout: Layout, group: LayerGroup, mixer: Any) -> None:
    """A recurrent layer: projections, short convolution, the scan, a gated norm."""
    hidden, tp = layout.model.hidden_size, layout.tp
    scan = mixer.scan
    keys = max(1.0, scan.n_k_heads / tp)
    values = scan.n_v_heads / tp
    build.gemm("mixer input projection", mixer.rank_width(mixer.in_width, tp), hidden,
               row=GEMM_ATTENTION)  # fmt: skip
    if mixer.kernel_size > 1:
        width = mixer.rank_width(mixer.convolved_width, tp)
        build.elementwise("short convolution", "silu", width)
    if isinstance(mixer, MambaSpec):
        inner = mixer.inner_size / tp
        build.gemm("step and state projection", mixer.selection_width, inner, row=GEMM_ATTENTION)
        build.gemm("step projection", inner, mixer.step_rank, row=GEMM_ATTENTION)
    if isinstance(mixer, GatedDeltaSpec):
        if mixer.decay_rank is not None:
            build.gemm("decay projection", values * scan.key_dim, mixer.decay_rank,
                       row=GEMM_ATTENTION)  # fmt: skip
        if mixer.gate_rank is not None:
            build.gemm("gate projection", values * scan.value_dim, mixer.gate_rank,
                       row=GEMM_ATTENTION)  # fmt: skip
    build.add("state update", tables.SCAN, launches=1.0, n_heads=values, n_kv_heads=keys,
              head_dim=scan.key_dim, v_head_dim=scan.value_dim, delta=float(scan.delta),
              channel_gate=float(scan.channel_gate))  # fmt: skip
    width = mixer.out_width / tp
    if isinstance(mixer, Mamba2Spec | GatedDeltaSpec):
        build.elementwise("gated norm", group.norm, width)
    build.elementwise("mixer gate", "silu_and_mul", width)
    build.gemm("mixer output projection", hidden, width, row=GEMM_ATTENTION)


def _share_context(build: Builder, layout: Layout, kv_width: float, out_width: float) -> None:
    """Context parallelism: keys and values of a prompt to all, parts of outputs in decode."""
    ranks = layout.parallelism.cp
    if ranks == 1 or kv_width == 0.0:
        return
    per_node = layout.together(ranks, layout.parallelism.expert_gpus)
    element = build.element_bytes
    build.communicate("context KV all-gather", collective.ALL_GATHER, COLLECTIVE_CONTEXT, ranks,
                      per_node, per_token=ranks * kv_width * element,
                      phase=tables.MANY_TOKENS)  # fmt: skip
    build.communicate("context output reduction", collective.ALL_REDUCE, COLLECTIVE_CONTEXT, ranks,
                      per_node, per_token=out_width * element, phase=tables.ONE_TOKEN)  # fmt: skip
