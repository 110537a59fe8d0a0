"""Lower a model to operator rows: the only module that knows what a Transformer is.

One table serves every batch, length and context (sizes are linear in the tokens and sequences
of a step, see `rtsim_kernels.tables.OPERATOR`), prefill and decode, and it is the single
source of times, FLOPs, bytes and breakdown. Rows hold one GPU's share under tensor parallelism:
heads and ffn columns are split, norms and residuals are not (Megatron-LM, Shoeybi et al. 2019,
arXiv:1909.08053); two all-reduces per layer, one where attention and MLP run in parallel.

Ignored: dropout (inference), sequence parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import collective, memory_bound, tables

from rtsim.specs.model import LayerGroup, ModelSpec
from rtsim.specs.parallelism import ParallelismSpec

# Rows of the machine's GEMM table.
GEMM_WEIGHTS = 0  # weight matrices in the format of the quantisation
GEMM_HEAD = 1  # output head, kept in the compute dtype
GEMM_BATCHED = 2  # unfused attention
# Rows of the machine's collective table.
COLLECTIVE_TENSOR = 0  # all-reduce of a tensor-parallel group
COLLECTIVE_PIPELINE = 1  # send/recv between pipeline stages
COLLECTIVE_LOGITS = 2  # all-gather of vocabulary-parallel logits


# What a trait in words may be.
TRAIT_VALUES = {"attention": ("fused", "unfused"), "logits": ("all", "last")}


@dataclass(frozen=True)
class StackTraits:
    """What a software stack runs for the same model.

    attention: "fused" (flash-style kernels) or "unfused" (scores written to memory).
    logits: "all" when the prompt pass computes logits of every prompt token, else "last".
    fused_norm: residual addition and norm are one kernel.
    eager_copies: keys and values are copied into the cache by a kernel each and the attention
        output is transposed by another, as eager stacks do.
    direct_all_reduce_bytes: largest message that the stack's own all-reduce kernels take; 0 = it
        has none and calls the library.
    in_switch_reduction: its own all-reduces use the switch's adders where it has them (NVLink
        SHARP); library_in_switch_reduction: the library's do.
    pair_links: where links join pairs of GPUs, the two of a pair use theirs.
    """

    attention: str = "fused"
    logits: str = "last"
    fused_norm: bool = True
    eager_copies: bool = False
    direct_all_reduce_bytes: float = 0.0
    in_switch_reduction: bool = False
    library_in_switch_reduction: bool = False
    pair_links: bool = True


@dataclass(frozen=True)
class PlainForward:
    """A bare forward pass of library modules: no cache, no sampling, small kernels spelled out.

    head: logits of every token; without it the pass ends with the last layer (encoders: their
        classifier sees one token per sequence).
    separate_qkv: queries, keys and values are products of their own.
    head_copies: tensors of all heads that are copied between token and head layout.
    score_kernels: kernels over the score matrix, as `memory_bound.OPERATORS` names them.
    activation_kernels: kernels of the MLP activation; empty: the one of the model.
    """

    head: bool = True
    separate_qkv: bool = False
    head_copies: int = 4
    score_kernels: tuple[str, ...] = ("softmax",)
    activation_kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class OperatorTable:
    """Operators of one GPU of a system that runs a model.

    rows: structured array of `tables.OPERATOR`; segments: of `tables.SEGMENT`, in the order of
    execution; names: label of each row; executions: how often each row runs in one step.
    """

    rows: NDArray[np.void]
    segments: NDArray[np.void]
    names: tuple[str, ...]
    executions: NDArray[np.float64]


@dataclass
class _Builder:
    element_bytes: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, name: str, kind: int, *, launches: float = 1.0, **sizes: float) -> None:
        self.rows.append({"kind": kind, "launches": launches, **sizes})
        self.names.append(name)

    def gemm(self, name: str, n: float, k: float, *, row: int = GEMM_WEIGHTS,
             per_token: float = 1.0, per_sequence: float = 0.0) -> None:  # fmt: skip
        self.add(name, tables.GEMM, row=row, n=n, k=k, per_token=per_token,
                 per_sequence=per_sequence)  # fmt: skip

    def elementwise(self, name: str, work: str, width: float, *, launches: float = 1.0,
                    warm_frac: float = 1.0, per_token: float = 1.0, per_sequence: float = 0.0,
                    adds_residual: bool = False) -> None:  # fmt: skip
        """Rows of `width` elements, worked on as the named operator of `memory_bound.OPERATORS`.

        adds_residual: the same kernel adds the residual, which is one more read and write.
        """
        counts = memory_bound.OPERATORS[work]
        more = 1.0 if adds_residual else 0.0
        self.add(name, tables.MEMORY_BOUND, launches=launches, work_kind=counts.kind, width=width,
                 read_bytes=(counts.read_elements + more) * self.element_bytes,
                 written_bytes=(counts.written_elements + more) * self.element_bytes,
                 flops=counts.flops + more, warm_frac=warm_frac, per_token=per_token,
                 per_sequence=per_sequence)  # fmt: skip

    def communicate(self, name: str, code: int, row: int, ranks: int, ranks_per_node: int,
                    *, per_token: float = 0.0, per_sequence: float = 0.0) -> None:  # fmt: skip
        if ranks > 1:
            self.add(name, tables.COLLECTIVE, row=row, collective=code, ranks=ranks,
                     ranks_per_node=ranks_per_node, per_token=per_token,
                     per_sequence=per_sequence)  # fmt: skip

    def segment(self, first: int, count: int, *, is_layer: bool) -> None:
        if len(self.rows) > first:
            self.segments.append((first, len(self.rows), count, int(is_layer)))

    def table(self) -> OperatorTable:
        rows = np.zeros(len(self.rows), tables.OPERATOR)
        for row, sizes in zip(rows, self.rows, strict=True):
            for name, value in sizes.items():
                row[name] = value
        executions = np.zeros(len(rows))
        for first, last, count, _ in self.segments:
            executions[first:last] = count
        segments = np.array(self.segments, tables.SEGMENT)
        return OperatorTable(rows, segments, tuple(self.names), executions)


@lru_cache(maxsize=256)
def lower(
    model: ModelSpec,
    parallelism: ParallelismSpec,
    traits: StackTraits,
    element_bytes: float,
    gpus_per_node: int,
    plain: PlainForward | None = None,
) -> OperatorTable:
    """Operator table of `model` on one GPU of a (tp, pp) group.

    element_bytes: of activations (2 for bf16). gpus_per_node: ranks of a group that share a node.
    plain: a bare forward pass instead of the step of a serving stack.
    Raises SpecError where the model cannot be split.
    """
    tp = parallelism.tp
    per_node = min(tp, gpus_per_node)
    build = _Builder(element_bytes)

    hidden = model.hidden_size
    first = len(build.rows)
    build.elementwise("embedding", "embedding", hidden, warm_frac=0.0)
    if model.position == "learned":
        build.elementwise("position embedding", "embedding", hidden, warm_frac=0.0)
        build.elementwise("embedding sum", "add", hidden)
    # The vocabulary-parallel table is summed over the ranks.
    build.communicate("embedding all-reduce", collective.ALL_REDUCE, COLLECTIVE_TENSOR, tp,
                      per_node, per_token=hidden * element_bytes)  # fmt: skip
    if model.embedding_norm:
        build.elementwise("embedding norm", model.layers[0].norm, hidden)
    build.segment(first, 1, is_layer=False)

    for group in model.layers:
        first = len(build.rows)
        _layer(build, model, group, traits, plain, tp, per_node)
        build.segment(first, group.count, is_layer=True)

    if parallelism.pp > 1:
        first = len(build.rows)
        # The two ends sit in different nodes where one replica does not fit into a node.
        per_stage_node = 1 if tp * parallelism.pp > gpus_per_node else 2
        build.communicate("pipeline send/recv", collective.SEND_RECV, COLLECTIVE_PIPELINE, 2,
                          per_stage_node, per_token=hidden * element_bytes)  # fmt: skip
        build.segment(first, parallelism.pp - 1, is_layer=False)

    first = len(build.rows)
    if plain is None or plain.head:
        _head(build, model, traits, plain, tp, per_node)
    build.segment(first, 1, is_layer=False)
    return build.table()


def _layer(build: _Builder, model: ModelSpec, group: LayerGroup, traits: StackTraits,
           plain: PlainForward | None, tp: int, per_node: int) -> None:  # fmt: skip
    hidden = model.hidden_size

    def join(name: str, has_bias: bool) -> None:
        """Sum the ranks' shares of a block and add the result to the residual."""
        build.communicate(f"{name} all-reduce", collective.ALL_REDUCE, COLLECTIVE_TENSOR, tp,
                          per_node, per_token=hidden * build.element_bytes)  # fmt: skip
        if not traits.fused_norm:
            if traits.eager_copies and has_bias:
                build.elementwise(f"{name} bias", "add_scalar", hidden)
            build.elementwise(f"{name} residual", "add", hidden)

    build.elementwise("attention norm", group.norm, hidden, adds_residual=traits.fused_norm)
    _attention(build, model, group, traits, plain, tp)
    if not group.parallel:
        join("attention", group.attention.out_bias)
        build.elementwise("MLP norm", group.norm, hidden, adds_residual=traits.fused_norm)
    _mlp(build, model, group, plain, tp)
    join("MLP", group.mlp.bias)


def _attention(build: _Builder, model: ModelSpec, group: LayerGroup, traits: StackTraits,
               plain: PlainForward | None, tp: int) -> None:  # fmt: skip
    attention = group.attention
    heads = attention.n_heads / tp
    kv_heads = max(1.0, attention.n_kv_heads / tp)  # replicated when there are fewer than ranks
    head_dim = attention.head_dim
    if plain is not None and plain.separate_qkv:
        build.gemm("query projection", heads * head_dim, model.hidden_size)
        build.gemm("key projection", kv_heads * head_dim, model.hidden_size)
        build.gemm("value projection", kv_heads * head_dim, model.hidden_size)
    else:
        build.gemm("QKV projection", (heads + 2 * kv_heads) * head_dim, model.hidden_size)
    if traits.eager_copies and attention.qkv_bias:
        build.elementwise("QKV bias", "add_scalar", (heads + 2 * kv_heads) * head_dim)
    if attention.qk_norm:
        build.elementwise("QK norm", group.norm, head_dim, per_token=heads + kv_heads)
    if model.position == "rotary":
        rotated = attention.rotary_dim or head_dim
        build.elementwise("rotary", "rope", (heads + kv_heads) * rotated)
    if plain is not None:
        build.elementwise("head layout", "copy", plain.head_copies * heads * head_dim,
                          launches=plain.head_copies)  # fmt: skip
    else:
        build.elementwise("cache write", "copy", 2 * kv_heads * head_dim,
                          launches=2 if traits.eager_copies else 1)  # fmt: skip
    if traits.attention == "unfused":
        sizes = {"n_heads": heads, "head_dim": head_dim, "v_head_dim": head_dim,
                 "row": GEMM_BATCHED}  # fmt: skip
        build.add("attention scores", tables.SCORES, **sizes)
        for work in ("softmax",) if plain is None else plain.score_kernels:
            build.elementwise(f"attention {work}", work, 0, per_token=heads)
        build.add("attention values", tables.VALUES, **sizes)
    else:
        build.add("attention", tables.ATTENTION, n_heads=heads, n_kv_heads=kv_heads,
                  head_dim=head_dim, v_head_dim=head_dim, window=attention.window or 0,
                  causal=1.0)  # fmt: skip
    if traits.eager_copies and plain is None:
        build.elementwise("attention transpose", "copy", heads * head_dim)
    build.gemm("attention output projection", model.hidden_size, heads * head_dim)


def _mlp(build: _Builder, model: ModelSpec, group: LayerGroup, plain: PlainForward | None,
         tp: int) -> None:  # fmt: skip
    mlp = group.mlp
    ffn = float(-(-mlp.ffn_size // tp))  # padded where it does not divide
    build.gemm("MLP up projection", (2 if mlp.gated else 1) * ffn, model.hidden_size)
    activation = {"silu": "silu", "relu": "relu", "relu2": "relu"}.get(mlp.activation, "gelu")
    if mlp.gated:
        activation = "silu_and_mul" if mlp.activation == "silu" else "gelu_and_mul"
    if plain is not None and plain.activation_kernels:
        for i, work in enumerate(plain.activation_kernels):
            build.elementwise(f"MLP activation {i + 1}", work, ffn)
    else:
        build.elementwise("MLP activation", activation, ffn)
    build.gemm("MLP down projection", model.hidden_size, ffn)


def _head(build: _Builder, model: ModelSpec, traits: StackTraits, plain: PlainForward | None,
          tp: int, per_node: int) -> None:  # fmt: skip
    every = traits.logits == "all" or plain is not None
    per_token, per_sequence = (1.0, 0.0) if every else (0.0, 1.0)
    sizes = {"per_token": per_token, "per_sequence": per_sequence}
    if model.final_norm:
        build.elementwise("final norm", model.layers[-1].norm, model.hidden_size,
                          per_token=per_token, per_sequence=per_sequence)  # fmt: skip
    if model.token_width != model.hidden_size:
        build.gemm("head projection", model.token_width, model.hidden_size, row=GEMM_HEAD, **sizes)
    vocabulary = float(-(-model.vocab_size // tp))
    build.gemm("output head", vocabulary, model.token_width, row=GEMM_HEAD, **sizes)
    gathered = {
        name: share * model.vocab_size * build.element_bytes for name, share in sizes.items()
    }
    build.communicate("logits all-gather", collective.ALL_GATHER, COLLECTIVE_LOGITS, tp, per_node,
                      **gathered)  # fmt: skip
    if plain is not None:
        return
    # Logits of the last token: to fp32, scaled, softmax, a draw.
    build.elementwise("sampling", "softmax", model.vocab_size, launches=4, per_token=0.0,
                      per_sequence=1.0)  # fmt: skip
