"""From a model, its split and a stack to one operator table.

Rows hold one GPU's share under tensor parallelism: heads and ffn columns are split, norms and
residuals are not (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053); two all-reduces per layer,
one where attention and MLP run in parallel. Embedding, layers, head are segments, in the order of
execution; an encoder's come first.

Ignored: dropout (inference), sequence parallelism.
"""

from __future__ import annotations

from functools import lru_cache

from rtsim_kernels import collective

from rtsim.operators.layout import Layout
from rtsim.operators.mixers import attend, cross_keys, mix
from rtsim.operators.mlps import feed_forward
from rtsim.operators.table import (
    COLLECTIVE_LOGITS,
    COLLECTIVE_PIPELINE,
    COLLECTIVE_TENSOR,
    GEMM_HEAD,
    Builder,
    OperatorTable,
    PlainForward,
    StackTraits,
)
from rtsim.specs.model import LayerGroup, ModelSpec
from rtsim.specs.parallelism import ParallelismSpec

_NORMED_OUTPUTS = 4  # norms per layer where the outputs of both blocks are normed too


@lru_cache(maxsize=256)
def lower(
    model: ModelSpec,
    parallelism: ParallelismSpec,
    traits: StackTraits,
    element_bytes: float,
    gpus_per_node: int,
    plain: PlainForward | None = None,
) -> OperatorTable:
    """Operator table of `model` on one GPU of a replica.

    element_bytes: of activations (2 for bf16). gpus_per_node: ranks of a group that share a node.
    plain: a bare forward pass instead of the step of a serving stack.
    """
    build = Builder(element_bytes, traits.vector_kernels)
    layout = Layout(model, traits, plain, parallelism, gpus_per_node)
    encodes = model.kind == "encoder" and plain is None
    if model.encoder:
        _embed(build, layout, is_encoder=True)
        for group in model.encoder:
            _layer(build, layout, group, is_encoder=True)
        for group in model.layers:
            if group.cross_attention is not None:
                first = len(build.rows)
                cross_keys(build, layout, group.cross_attention)
                build.segment(first, group.count, is_layer=False, is_encoder=True)
    _embed(build, layout, is_encoder=encodes)
    for group in model.layers:
        _layer(build, layout, group, is_encoder=encodes)
    if parallelism.pp > 1:
        first = len(build.rows)
        # The two ends sit in different nodes where one replica does not fit into a node.
        per_stage_node = 1 if parallelism.gpus_per_replica > gpus_per_node else 2
        build.communicate("pipeline send/recv", collective.SEND_RECV, COLLECTIVE_PIPELINE, 2,
                          per_stage_node, per_token=model.hidden_size * element_bytes)  # fmt: skip
        build.segment(first, parallelism.pp - 1, is_layer=False, is_encoder=encodes)
    first = len(build.rows)
    if plain is None or plain.head:
        _head(build, layout)
    build.segment(first, 1, is_layer=False, is_encoder=encodes)
    return build.table()


def _embed(build: Builder, layout: Layout, *, is_encoder: bool) -> None:
    model = layout.model
    hidden = model.hidden_size
    first = len(build.rows)
    build.elementwise("embedding", "embedding", hidden, warm_frac=0.0)
    if model.position == "learned":
        build.elementwise("position embedding", "embedding", hidden, warm_frac=0.0)
        build.elementwise("embedding sum", "add", hidden)
    # The vocabulary-parallel table is summed over the ranks.
    build.communicate("embedding all-reduce", collective.ALL_REDUCE, COLLECTIVE_TENSOR, layout.tp,
                      layout.per_node, per_token=hidden * build.element_bytes)  # fmt: skip
    if model.embedding_norm:
        build.elementwise("embedding norm", model.all_layers[0].norm, hidden)
    build.segment(first, 1, is_layer=False, is_encoder=is_encoder)


def _layer(build: Builder, layout: Layout, group: LayerGroup, *, is_encoder: bool) -> None:
    hidden, traits = layout.model.hidden_size, layout.traits
    first = len(build.rows)

    def norm(name: str) -> None:
        build.elementwise(f"{name} norm", group.norm, hidden, adds_residual=traits.fused_norm)

    def join(name: str, has_bias: bool) -> None:
        """Sum the ranks' shares of a block and add the result to the residual."""
        build.communicate(f"{name} all-reduce", collective.ALL_REDUCE, COLLECTIVE_TENSOR, layout.tp,
                          layout.per_node, per_token=hidden * build.element_bytes)  # fmt: skip
        if group.norms_per_layer >= _NORMED_OUTPUTS:
            build.elementwise(f"{name} output norm", group.norm, hidden)
        if not traits.fused_norm:
            if traits.eager_copies and has_bias:
                build.elementwise(f"{name} bias", "add_scalar", hidden)
            build.elementwise(f"{name} residual", "add", hidden)

    mixer, mlp = group.attention, group.mlp
    if mixer is not None:
        norm("attention")
        mix(build, layout, group, mixer)
        if not (group.parallel and mlp is not None):
            join("attention", getattr(mixer, "out_bias", False))
    if group.cross_attention is not None:
        norm("cross attention")
        attend(build, layout, group, group.cross_attention, cross=True)
        join("cross attention", group.cross_attention.out_bias)
    if mlp is not None:
        if not (group.parallel and mixer is not None):
            norm("MLP")
        feed_forward(build, layout, mlp)
        join("MLP", mlp.bias)
    build.segment(first, group.count, is_layer=True, is_encoder=is_encoder)


def _head(build: Builder, layout: Layout) -> None:
    model, traits, plain = layout.model, layout.traits, layout.plain
    every = traits.logits == "all" or plain is not None or model.kind == "encoder"
    per_token, per_sequence = (1.0, 0.0) if every else (0.0, 1.0)
    if model.final_norm:
        build.elementwise("final norm", model.layers[-1].norm, model.hidden_size,
                          per_token=per_token, per_sequence=per_sequence)  # fmt: skip
    if not model.has_head:
        return
    if model.token_width != model.hidden_size:
        build.gemm("head projection", model.token_width, model.hidden_size, row=GEMM_HEAD,
                   per_token=per_token, per_sequence=per_sequence)  # fmt: skip
    vocabulary = float(-(-model.vocab_size // layout.tp))
    build.gemm("output head", vocabulary, model.token_width, row=GEMM_HEAD,
               per_token=per_token, per_sequence=per_sequence)  # fmt: skip
    logits_bytes = model.vocab_size * build.element_bytes
    build.communicate("logits all-gather", collective.ALL_GATHER, COLLECTIVE_LOGITS, layout.tp,
                      layout.per_node, per_token=per_token * logits_bytes,
                      per_sequence=per_sequence * logits_bytes)  # fmt: skip
    if plain is not None or model.kind == "encoder":
        return
    # Logits of the last token: to fp32, scaled, softmax, a draw.
    build.elementwise("sampling", "softmax", model.vocab_size, launches=4, per_token=0.0,
                      per_sequence=1.0)  # fmt: skip
