"""What lowering makes: rows of operators, and what a stack does differently for the same model.

Rows hold one GPU's share; their sizes are linear in the tokens and sequences of a step (see
`rtsim_kernels.tables.OPERATOR`), so one table serves every batch, length and context, prefill and
decode, and is the single source of times, FLOPs, bytes and breakdown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import memory_bound, tables

# Rows of the machine's GEMM table.
GEMM_WEIGHTS = 0  # feed-forward matrices in the format of their quantisation
GEMM_HEAD = 1  # output head and routers, kept in the compute dtype
GEMM_BATCHED = 2  # products of activations, and one per head
GEMM_ATTENTION = 3  # projections of token mixers in the format of their quantisation
GEMM_ABSORB = 4  # queries into the space of latents, values out of it: one product per head
# Rows of the machine's collective table.
COLLECTIVE_TENSOR = 0  # all-reduce of a tensor-parallel group
COLLECTIVE_PIPELINE = 1  # send/recv between pipeline stages
COLLECTIVE_LOGITS = 2  # all-gather of vocabulary-parallel logits
COLLECTIVE_EXPERTS = 3  # tokens to their experts and back
COLLECTIVE_CONTEXT = 4  # keys and values, or parts of outputs, of a context-parallel group


# Memory-bound operators that some stacks run with loads of 16 bytes.
VECTOR_MAKES = {
    name: f"{name}_vector" for name in memory_bound.OPERATORS
    if f"{name}_vector" in memory_bound.OPERATORS
}  # fmt: skip
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
    absorbed_prefill: latent attention works on the latents for prompts too.
    vector_kernels: norms, gated activations and rotary kernels load 16 bytes per thread.
    """

    attention: str = "fused"
    logits: str = "last"
    fused_norm: bool = True
    eager_copies: bool = False
    direct_all_reduce_bytes: float = 0.0
    in_switch_reduction: bool = False
    library_in_switch_reduction: bool = False
    pair_links: bool = True
    absorbed_prefill: bool = False
    vector_kernels: bool = False


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
class Builder:
    """Collects rows and segments.

    element_bytes: of activations (2 for bf16). vector_kernels: see `StackTraits`.
    """

    element_bytes: float
    vector_kernels: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    segments: list[tuple[int, int, int, int, int]] = field(default_factory=list)

    def add(self, name: str, kind: int, *, launches: float = 1.0, **sizes: float) -> None:
        """An operator; `sizes` are fields of `tables.OPERATOR`."""
        self.rows.append({"kind": kind, "launches": launches, **sizes})
        self.names.append(name)

    def gemm(self, name: str, n: float, k: float, *, row: int = GEMM_WEIGHTS,
             per_token: float = 1.0, **sizes: float) -> None:  # fmt: skip
        """A product with stored weights, n columns of k."""
        self.add(name, tables.GEMM, row=row, n=n, k=k, per_token=per_token, **sizes)

    def elementwise(self, name: str, work: str, width: float, *, launches: float = 1.0,
                    warm_frac: float = 1.0, per_token: float = 1.0, adds_residual: bool = False,
                    **sizes: float) -> None:  # fmt: skip
        """Rows of `width` elements, worked on as the named operator of `memory_bound.OPERATORS`.

        adds_residual: the same kernel adds the residual, which is one more read and write.
        """
        if self.vector_kernels:
            work = VECTOR_MAKES.get(work, work)
        counts = memory_bound.OPERATORS[work]
        more = 1.0 if adds_residual else 0.0
        self.add(name, tables.MEMORY_BOUND, launches=launches, work_kind=counts.kind, width=width,
                 read_bytes=(counts.read_elements + more) * self.element_bytes,
                 written_bytes=(counts.written_elements + more) * self.element_bytes,
                 flops=counts.flops + more, warm_frac=warm_frac, per_token=per_token,
                 **sizes)  # fmt: skip

    def communicate(self, name: str, code: int, row: int, ranks: int, ranks_per_node: int,
                    **sizes: float) -> None:  # fmt: skip
        """A collective of several ranks; sizes are bytes per token or sequence."""
        if ranks > 1:
            self.add(name, tables.COLLECTIVE, row=row, collective=code, ranks=ranks,
                     ranks_per_node=ranks_per_node, **sizes)  # fmt: skip

    def segment(self, first: int, count: int, *, is_layer: bool, is_encoder: bool = False) -> None:
        """The rows from `first` on are one segment."""
        if len(self.rows) > first:
            ends = (first, len(self.rows))
            self.segments.append((*ends, count, int(is_layer), int(is_encoder)))

    def table(self) -> OperatorTable:
        """The rows as arrays."""
        rows = np.zeros(len(self.rows), tables.OPERATOR)
        for row, sizes in zip(rows, self.rows, strict=True):
            for name, value in sizes.items():
                row[name] = value
        executions = np.zeros(len(rows))
        firsts: dict[tuple[int, bytes], int] = {}
        alike = rows.copy()
        alike["launches"] = 0.0
        for first, last, count, _, is_encoder in self.segments:
            executions[first:last] = count
            for i in range(first, last):
                found = firsts.setdefault((is_encoder, alike[i].tobytes()), i)
                rows[i]["same"] = 0 if found == i else found + 1
        segments = np.array(self.segments, tables.SEGMENT)
        return OperatorTable(rows, segments, tuple(self.names), executions)
