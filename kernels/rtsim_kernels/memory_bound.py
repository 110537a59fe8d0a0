"""Memory-bound operators: element-wise chains, norms, softmax, rotary, gathers, quantisation.

    T = launch + ((memory)^p + (L2)^p + (issue)^p)^(1/p)

    memory   bytes that miss the L2 / (hbm rate * stream_frac)
    L2       all bytes / (SMs * clock * l2_bytes_per_clock)
    issue    flat kernels: elements * slots / (SMs * 128 lanes * clock), plus one turn of latency
             row kernels: rows per SM * max(issue of a row, latency of a row / rows in flight)

`slots` are issue slots per element: a constant of the kind of kernel (address arithmetic,
conversion, narrow loads) plus one per arithmetic operation. It is what separates an embedding
lookup (300 GB/s on an A100) from an add (1,700 GB/s); in slots the same kernel is alike on
A100, A40 and H100. A row kernel gives each row to one block of threads: the row's latency is a
turn per pass of the block over it, longer when the loads miss the L2, plus the reductions of a
norm; an SM holds threads_per_sm / threads blocks at a time and starts one in block_s.

Residency: an input that the kernel before has just written is found in L2 while the working set
fits: hit = warm_frac / (1 + (bytes / (resident_frac * L2))^4). Norms, and softmax beyond 1,024
elements, read each row twice; the second read misses where the rows in flight exceed the L2.

Norms, gated activations and rotary kernels come in two makes: one element per thread and turn
(vLLM's first ones, as timed inside layers of sarathi-serve), and 16 bytes per thread and turn, as
flat kernels do (serving stacks since 2025: whole latent-attention blocks of TensorRT-LLM come out
9 % off on H100 and 18 % on B200 with the former, 4 % and 5 % with plain streams).

Ignored: tails smaller than one block per SM, misaligned rows, clock changes under load, bytes
of angles, indices and statistics.

Sources: CUDA programming guide (occupancy, schedulers), PyTorch and vLLM kernels (block sizes),
fits to measured kernels of sarathi-serve (A100, A40, H100), PyTorch eager (P100, V100, T4,
A100) and quantisation kernels (H100, B200, L40S). Known error on rows outside the fit, 64
fitted rows: 7-9 % for kernels inside a layer (rounded to 1 us), 3-6 % in eager PyTorch, 6-10 %
for quantisation (L40S 11-20 %). On a GPU left out 13-21 %, most of it the achieved share of the
memory rate: 0.90-0.95 with HBM2 and later, 0.76 on P100 and T4, 0.78-0.85 on other GDDR6 parts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import tables
from ._jit import inner, jit

POINTWISE = 0  # flat, vector loads: add, mul, gelu, relu
NORM = 1  # a block per row, statistics first, one element per thread and turn: rmsnorm
SOFTMAX = 2  # a block per row, kept in registers while the row is short
GATED = 3  # a block per row, one pass: silu_and_mul
ROTARY = 4  # a block per row
GATHER = 5  # embedding
QUANTIZE = 6  # flat: scaled conversion
LAYER_NORM = 7  # as NORM, small blocks with vector loads (PyTorch)
VECTOR_NORM = 8  # as NORM with 16 bytes per thread and turn, kept in registers between two passes
VECTOR_GATED = 9  # as GATED with 16 bytes per thread and turn
VECTOR_ROTARY = 10  # as ROTARY with 16 bytes per thread and turn
KIND_NAMES = (
    "pointwise", "norm", "softmax", "gated", "rotary", "gather", "quantize", "layer_norm",
    "vector_norm", "vector_gated", "vector_rotary",
)  # fmt: skip

LANES_PER_SM = 128.0  # 4 schedulers issue one warp of 32 lanes each per clock (since Volta)
RESIDENCY_EDGE = 4.0  # exponent: how sharply reuse is lost as a working set outgrows the L2
MAX_BLOCKS_PER_SM = 32.0
VECTOR_ELEMENTS = 8.0  # 16-bit elements in a load of 16 bytes
MISS_LATENCY = 0.5  # a turn whose loads miss the L2 lasts so much longer
IN_FLIGHT_SMS = 100.0  # SMs whose rows share the L2 (80 on V100, 108 on A100, 132 on H100)
REGISTER_ROW = 1024.0  # longest softmax row that a warp keeps in registers (PyTorch)

_C = tables.Coefficient

MEMORY_BOUND_COEFFICIENTS = (
    _C(
        "threads_per_sm",
        2048.0,
        0.2,
        1024.0,
        2048.0,
        "threads",
        "resident threads: 2048; 1536 for compute capability 8.6, 8.9, 12; 1024 for 7.5",
    ),
    _C("launch_s", 1.0e-6, 0.5, 0.3e-6, 6e-5, "s", "shortest kernel: launch, drain, timer"),
    _C("stream_frac", 0.85, 0.1, 0.4, 1.0, "of hbm rate", "rate of long streams"),
    _C("l2_bytes_per_clock", 24.0, 0.4, 4.0, 128.0, "B/clock/SM", "rate of L2 hits"),
    _C("resident_frac", 0.8, 0.3, 0.05, 1.5, "of L2", "working set half of which is found in L2"),
    _C("pointwise_slots", 15.0, 0.5, 1.0, 1000.0, "issue slots/element", "flat kernels"),
    _C("norm_slots", 90.0, 0.5, 1.0, 1000.0, "issue slots/element", "norms"),
    _C("layer_norm_slots", 60.0, 0.5, 1.0, 1000.0, "issue slots/element", "layer norm"),
    _C("softmax_slots", 60.0, 0.5, 1.0, 1000.0, "issue slots/element", "softmax"),
    _C("gated_slots", 90.0, 0.5, 1.0, 1000.0, "issue slots/element", "gated activations"),
    _C("rotary_slots", 90.0, 0.5, 1.0, 1000.0, "issue slots/element", "rotary embedding"),
    _C("gather_slots", 240.0, 0.5, 1.0, 2000.0, "issue slots/element", "embedding lookup"),
    _C("quantize_slots", 20.0, 0.8, 1.0, 2000.0, "issue slots/element", "scaled conversion"),
    _C("block_s", 0.08e-6, 0.4, 1e-9, 1e-6, "s", "start of one block of threads on an SM"),
    _C("row_s", 1.5e-6, 0.5, 0.05e-6, 3e-5, "s", "latency of a row: reductions, first loads"),
    _C("turn_s", 0.5e-6, 0.4, 0.02e-6, 5e-6, "s", "latency of one turn of a block over its row"),
    _C("crossover", 2.0, 0.3, 1.0, 8.0, "1", "exponent p of the rates against each other"),
)
MEMORY_BOUND = tables.coefficient_dtype(MEMORY_BOUND_COEFFICIENTS)


class OperatorWork(NamedTuple):
    """What one named operator moves and computes per output element."""

    kind: int
    read_elements: float  # elements read per output element
    written_elements: float
    flops: float  # instructions of arithmetic per output element: 8 a division, 15 an exp
    # with its scaling, 20-25 tanh and erf, 40 a general power


# Per output element of a rows x cols result. Row statistics, scales, angles and indices are
# left out: they are read once per row or stay in L2. A sum of three is two adds. The kernels of
# every lowering and every measurement table are counted by this one table.
OPERATORS: dict[str, OperatorWork] = {
    "add": OperatorWork(POINTWISE, 2, 1, 1),
    "sub": OperatorWork(POINTWISE, 2, 1, 1),
    "mul": OperatorWork(POINTWISE, 2, 1, 1),
    "div": OperatorWork(POINTWISE, 2, 1, 8),
    "pow": OperatorWork(POINTWISE, 2, 1, 40),
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
    "softmax": OperatorWork(SOFTMAX, 1, 1, 20),
    "layernorm": OperatorWork(LAYER_NORM, 1, 1, 8),
    "rmsnorm": OperatorWork(NORM, 1, 1, 5),
    "rope": OperatorWork(ROTARY, 1, 1, 4),
    "silu_and_mul_vector": OperatorWork(VECTOR_GATED, 2, 1, 16),
    "gelu_and_mul_vector": OperatorWork(VECTOR_GATED, 2, 1, 26),
    "rmsnorm_vector": OperatorWork(VECTOR_NORM, 1, 1, 5),
    "layernorm_vector": OperatorWork(VECTOR_NORM, 1, 1, 8),
    "rope_vector": OperatorWork(VECTOR_ROTARY, 1, 1, 4),
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


@inner
def _slots(kind: int, memory: Any) -> Any:
    """Issue slots per element of a kind of kernel."""
    if kind in (POINTWISE, VECTOR_NORM, VECTOR_GATED, VECTOR_ROTARY):
        return memory.pointwise_slots
    if kind == NORM:
        return memory.norm_slots
    if kind == SOFTMAX:
        return memory.softmax_slots
    if kind == GATED:
        return memory.gated_slots
    if kind == LAYER_NORM:
        return memory.layer_norm_slots
    if kind == ROTARY:
        return memory.rotary_slots
    if kind == GATHER:
        return memory.gather_slots
    return memory.quantize_slots


@inner
def _power(share: float, p: float) -> float:
    """share^p, at once for the largest of some times, whose share is 1."""
    return 1.0 if share == 1.0 else share**p


@inner
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
    elements = rows * cols
    if total_bytes <= 0.0 or elements <= 0.0:
        return 0.0, tables.BOUND_LATENCY
    clock = device.clock_hz
    slots = _slots(kind, memory) + flops / elements
    slot_s = slots / (LANES_PER_SM * clock)  # per element on one SM
    kept_bytes = memory.resident_frac * device.l2_bytes
    latency_s = memory.launch_s
    moved_bytes = total_bytes
    # What stays in L2 neither comes from nor (yet) goes to memory.
    miss_frac = 1.0
    if warm_frac > 0.0:
        miss_frac -= warm_frac / (1.0 + (total_bytes / kept_bytes) ** RESIDENCY_EDGE)
    vectors = kind in (VECTOR_NORM, VECTOR_GATED, VECTOR_ROTARY)
    if vectors or kind in (NORM, SOFTMAX, GATED, ROTARY, LAYER_NORM, QUANTIZE):
        vector = 1.0  # elements of a thread per turn
        block_threads = 1024.0
        if kind == LAYER_NORM:
            vector = 4.0
            block_threads = 128.0
        elif kind == SOFTMAX:
            vector = 4.0
        elif kind == ROTARY:
            vector = 2.0  # a pair
            block_threads = 512.0
        elif kind == QUANTIZE:
            vector = 16.0
        elif vectors:
            vector = VECTOR_ELEMENTS
        threads = min(block_threads, 32.0 * math.ceil(cols / (32.0 * vector)))
        per_sm = min(MAX_BLOCKS_PER_SM, float(math.floor(memory.threads_per_sm / threads)))
        turns = math.ceil(cols / (threads * vector))
        row_latency_s = turns * memory.turn_s * (1.0 + MISS_LATENCY * miss_frac)
        if kind in (NORM, LAYER_NORM, SOFTMAX, VECTOR_NORM):
            row_latency_s += memory.row_s
        worked = cols
        if kind in (NORM, GATED):
            worked = turns * threads * vector  # warps past the end of the row still issue
        row_issue_s = memory.block_s + worked * slot_s
        # Blocks start as others end: a steady rate per SM, not waves in step.
        issue_s = max(
            row_latency_s,
            math.ceil(rows / device.sm_count) * max(row_issue_s, row_latency_s / per_sm),
        )
        if kind in (NORM, LAYER_NORM) or (kind == SOFTMAX and cols > REGISTER_ROW):
            # The second read of a row misses where the rows in flight exceed the L2.
            in_flight = IN_FLIGHT_SMS * memory.threads_per_sm * max(vector, cols / block_threads)
            in_flight_bytes = min(read_bytes, in_flight * read_bytes / elements)
            moved_bytes += read_bytes * in_flight_bytes / (in_flight_bytes + kept_bytes)
    else:
        issue_s = elements * slot_s / device.sm_count
        latency_s += memory.turn_s
        if kind == GATHER:
            latency_s += memory.turn_s  # the index first
    memory_s = moved_bytes * miss_frac / (device.hbm_bytes_per_s * memory.stream_frac)
    l2_s = moved_bytes / (device.sm_count * clock * memory.l2_bytes_per_clock)
    compute_s = issue_s
    p = memory.crossover
    large = max(max(memory_s, l2_s), compute_s)
    powers = _power(memory_s / large, p) + _power(l2_s / large, p) + _power(compute_s / large, p)
    work_s = large * powers ** (1.0 / p)
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
