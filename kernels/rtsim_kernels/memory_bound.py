"""Memory-bound operators: element-wise chains, norms, softmax, rotary, gathers, quantisation.

Time is a launch plus the p-norm of three rates that a kernel cannot beat:

    memory   bytes / (hbm rate * stream_frac); the warm part of the input comes from L2
    SM       bytes / (SMs in use * what one SM can pull)
    issue    elements * instructions per element / (SMs in use * 128 lanes * clock)

Kinds of kernel differ in how work is cut (pieces of a flat array, or one block of threads per
row) and in how many instructions an element costs.

First version; see the table OPERATORS for what each named operator counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import tables
from ._jit import jit

POINTWISE = 0  # flat, vector loads: add, mul, gelu, relu
ROW = 1  # a block per row, two or more passes: norms, softmax
GATED = 2  # a block per row, one pass: silu_and_mul
ROTARY = 3
GATHER = 4  # embedding
QUANTIZE = 5
KIND_NAMES = ("pointwise", "row", "gated", "rotary", "gather", "quantize")

LANES_PER_SM = 128.0  # 4 schedulers issue one warp of 32 lanes each per clock (since Volta)

_C = tables.Coefficient
MEMORY_BOUND_COEFFICIENTS = (
    _C("launch_s", 2.0e-6, 0.5, 0.3e-6, 6e-5, "s", "shortest kernel: launch, drain, timer"),
    _C("stream_frac", 0.85, 0.1, 0.4, 1.0, "of hbm rate", "rate of long streams"),
    _C("l2_bytes_per_clock_sm", 40.0, 0.3, 8.0, 128.0, "B/clock/SM", "rate of L2 hits"),
    _C("resident_frac", 0.5, 0.4, 0.02, 1.5, "of L2", "share of L2 that keeps a previous result"),
    _C("pointwise_lanes", 8.0, 0.5, 0.5, 100.0, "issue slots/element", "flat kernels"),
    _C("row_lanes", 20.0, 0.5, 0.5, 300.0, "issue slots/element", "norms, softmax"),
    _C("gated_lanes", 16.0, 0.5, 0.5, 300.0, "issue slots/element", "gated activations"),
    _C("rotary_lanes", 20.0, 0.5, 0.5, 300.0, "issue slots/element", "rotary embedding"),
    _C("gather_lanes", 100.0, 0.8, 0.5, 1000.0, "issue slots/element", "embedding lookup"),
    _C("quantize_lanes", 16.0, 0.8, 0.5, 1000.0, "issue slots/element", "scaled conversion"),
    _C("row_s", 3.0e-6, 0.5, 0.1e-6, 3e-5, "s", "latency of one row's reductions"),
    _C("crossover", 2.0, 0.3, 1.0, 8.0, "1", "exponent p of the rates against each other"),
)
MEMORY_BOUND = tables.coefficient_dtype(MEMORY_BOUND_COEFFICIENTS)


class OperatorWork(NamedTuple):
    """What one named operator moves and computes per output element."""

    kind: int
    read_elements: float  # elements read per output element
    written_elements: float
    flops: float  # fp32 operations per output element; exp, tanh, erf counted as 8-20


# Per output element of a rows x cols result. Row statistics, scales, angles and indices are
# left out: they are read once per row or stay in L2.
OPERATORS: dict[str, OperatorWork] = {
    "add": OperatorWork(POINTWISE, 2, 1, 1),
    "sub": OperatorWork(POINTWISE, 2, 1, 1),
    "mul": OperatorWork(POINTWISE, 2, 1, 1),
    "div": OperatorWork(POINTWISE, 2, 1, 8),
    "pow": OperatorWork(POINTWISE, 2, 1, 40),
    "add3": OperatorWork(POINTWISE, 3, 1, 2),
    "copy": OperatorWork(POINTWISE, 1, 1, 0),
    "add_scalar": OperatorWork(POINTWISE, 1, 1, 1),
    "mul_scalar": OperatorWork(POINTWISE, 1, 1, 1),
    "div_scalar": OperatorWork(POINTWISE, 1, 1, 1),
    "pow_scalar": OperatorWork(POINTWISE, 1, 1, 40),
    "relu": OperatorWork(POINTWISE, 1, 1, 1),
    "tanh": OperatorWork(POINTWISE, 1, 1, 20),
    "gelu": OperatorWork(POINTWISE, 1, 1, 25),
    "silu": OperatorWork(POINTWISE, 1, 1, 15),
    "silu_and_mul": OperatorWork(GATED, 2, 1, 16),
    "gelu_and_mul": OperatorWork(GATED, 2, 1, 26),
    "softmax": OperatorWork(ROW, 1, 1, 20),
    "layernorm": OperatorWork(ROW, 1, 1, 8),
    "rmsnorm": OperatorWork(ROW, 1, 1, 5),
    "rope": OperatorWork(ROTARY, 1, 1, 4),
    "embedding": OperatorWork(GATHER, 1, 1, 0),
    "fp8_static_quantize": OperatorWork(QUANTIZE, 1, 1, 4),
}


def operator_bytes(
    name: str, rows: float, cols: float, read_width: float, written_width: float
) -> tuple[float, float, float]:
    """(bytes read, bytes written, FLOPs) of a named operator with a rows x cols result.

    read_width, written_width: bytes per element.

    >>> operator_bytes("add", 2, 8, 2, 2)
    (64.0, 32.0, 16.0)
    """
    work = OPERATORS[name]
    elements = float(rows) * float(cols)
    return (
        elements * work.read_elements * read_width,
        elements * work.written_elements * written_width,
        elements * work.flops,
    )


@jit
def _lanes(kind: int, memory: Any) -> float:
    """Issue slots per element of a kind of kernel."""
    if kind == POINTWISE:
        return memory.pointwise_lanes
    if kind == ROW:
        return memory.row_lanes
    if kind == GATED:
        return memory.gated_lanes
    if kind == ROTARY:
        return memory.rotary_lanes
    if kind == GATHER:
        return memory.gather_lanes
    return memory.quantize_lanes


@jit
def memory_bound_s(
    kind: int,
    rows: float,
    cols: float,
    read_bytes: float,
    written_bytes: float,
    flops: float,
    warm_frac: float,
    memory: Any,
    device: Any,
) -> tuple[float, int]:
    """Seconds of a memory-bound operator with a rows x cols result, and its bound code.

    warm_frac in [0, 1]: share of the input that the producer has just written, so that it is
    read from L2 as far as it fits. `memory`: a MEMORY_BOUND row.
    """
    total_bytes = read_bytes + written_bytes
    if total_bytes <= 0.0:
        return 0.0, tables.BOUND_LATENCY
    elements = rows * cols
    # What stays in L2 neither comes from nor (yet) goes to memory.
    kept = memory.resident_frac * device.l2_bytes
    hit = min(1.0, kept / total_bytes)
    cold_bytes = total_bytes - warm_frac * total_bytes * hit
    memory_s = cold_bytes / (device.hbm_bytes_per_s * memory.stream_frac)
    sm_rate = device.sm_count * device.clock_hz
    l2_s = total_bytes / (sm_rate * memory.l2_bytes_per_clock_sm)
    issue_s = elements * _lanes(kind, memory) / (sm_rate * LANES_PER_SM)
    flops_s = flops / device.vector_flops_per_s
    compute_s = max(issue_s, flops_s)
    p = memory.crossover
    large = max(memory_s, l2_s, compute_s)
    work_s = large * ((memory_s / large) ** p + (l2_s / large) ** p + (compute_s / large) ** p) ** (
        1.0 / p
    )
    latency_s = memory.launch_s
    if kind == ROW:
        latency_s += memory.row_s
    seconds = latency_s + work_s
    if work_s <= latency_s:
        return seconds, tables.BOUND_LATENCY
    if compute_s >= max(memory_s, l2_s):
        return seconds, tables.BOUND_COMPUTE
    return seconds, tables.BOUND_MEMORY


@jit
def memory_bound_many(
    kind: Any,
    rows: Any,
    cols: Any,
    read_bytes: Any,
    written_bytes: Any,
    flops: Any,
    warm_frac: Any,
    memory: Any,
    device: Any,
) -> Any:
    """`memory_bound_s` over arrays of equal length; seconds."""
    out = np.empty(len(rows))
    for i in range(len(out)):
        out[i] = memory_bound_s(
            kind[i],
            rows[i],
            cols[i],
            read_bytes[i],
            written_bytes[i],
            flops[i],
            warm_frac[i],
            memory,
            device,
        )[0]
    return out
