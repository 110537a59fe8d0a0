"""One step (forward pass) of a model on one GPU of a system: two tracks, host and GPU.

The host issues kernels, the GPU executes them in order. A layer therefore takes the longer of
its host time and its GPU time, with a soft corner because kernels within a layer differ:

    layer_s = (host_s^p + gpu_s^p)^(1/p)

and a GPU that is behind (long kernels early in the step) lets the host run ahead and hide later
host time. With G and H the clocks of the two tracks, a segment of N equal layers moves them

    G <- max(G + N gpu_s, H + N layer_s),   H <- H + N host_s

which is exact for a sharp corner and never falls when any kernel or launch gets slower. A step
takes step_s (scheduling, sampling, the wait for the last result) plus the last G.

Host time of a layer is launch_s per kernel, plus collective_s per collective and a share
exposed_frac of the collective's own time on the GPU: ranks wait for each other there, and their
hosts do not run ahead of it as they do of kernels. The prompt pass also pays prefill_layer_s per
layer (cache and mask allocation in eager stacks).

All host times are `slowness` times what the coefficients state: the same software on another
server keeps their proportions. With n ranks, a process each, they grow by 1 + rank_lag (H(n) - 1):
everyone waits for the slowest process. For exponential delays of deviation rank_lag that is the
expected largest of n over the mean; cores that clock lower when many are busy add to it.

Evidence: generation.csv of helm-efficiency (Megatron-LM, A100): one decoded token takes
0.70 ms per layer from 24 to 96 layers and 1024 to 5120 wide, 0.81-0.83 ms with tensor
parallelism 4-8, whatever the width: two collectives more, their GPU time in full. On 16 V100
(0.81 ms without, 1.0-1.17 ms with tensor parallelism) repeats scatter by 3 %, on A100 by 0.2 %.
Ignored: several streams; overlap of communication with compute.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import tables
from ._jit import inner, jit
from .attention import (
    ATTENTION_DECODE,
    ATTENTION_PREFILL,
    attention_decode_s,
    attention_decode_work,
    attention_prefill_s,
    attention_prefill_work,
    visible_pairs,
)
from .collective import COLLECTIVE, collective_s, wire_bytes
from .gemm import GEMM, gemm_s
from .memory_bound import MEMORY_BOUND, memory_bound_s
from .mla import (
    MLA_DECODE,
    MLA_PREFILL,
    mla_decode_s,
    mla_decode_work,
    mla_prefill_s,
    mla_prefill_work,
)
from .moe import MOE, moe_s, moe_work
from .scan import SCAN, scan_s, scan_work
from .tables import Coefficient

HOST_COEFFICIENTS = (
    Coefficient("step_s", 1.4e-3, 0.7, 1e-6, 2e-2, "s",
                "fixed time of a step: scheduling, sampling, waiting for the result"),
    Coefficient("launch_s", 3.0e-5, 0.5, 1e-7, 2e-4, "s",
                "host time to issue one kernel"),
    Coefficient("collective_s", 3.0e-6, 0.7, 1e-7, 5e-4, "s",
                "further host time to issue one collective"),
    Coefficient("exposed_frac", 1.0, 0.15, 1e-3, 2.0, "1",
                "share of a collective's GPU time that adds to the host track"),
    Coefficient("prefill_layer_s", 5.0e-5, 0.7, 1e-7, 5e-4, "s",
                "further host time per layer of the prompt pass"),
    Coefficient("prompt_token_s", 8.0e-6, 0.7, 1e-9, 5e-5, "s",
                "host time per prompt token before the first kernel: tokenising, copying"),
    Coefficient("slowness", 1.0, 0.1, 0.1, 10.0, "1",
                "host times of this machine over those that the other coefficients state"),
    Coefficient("rank_lag", 3.0e-3, 0.3, 1e-5, 0.5, "1",
                "share of its host time by which the slowest of n ranks lags, per H(n) - 1"),
    Coefficient("corner", 12.0, 0.3, 1.5, 40.0, "1",
                "exponent p of the soft corner between host and GPU track"),
    Coefficient("kernel_gap_s", 1.2e-6, 0.5, 1e-8, 1e-5, "s",
                "idle time of the GPU between two dependent kernels"),
    Coefficient("score_passes", 1.0, 0.5, 0.25, 8.0, "1",
                "passes over the score matrix in unfused attention: more where scale and mask are "
                "kernels of their own, less where one causal kernel skips the masked half"),
)  # fmt: skip
HOST = tables.coefficient_dtype(HOST_COEFFICIENTS)

# Weights of a model are read once per step: the whole model passes between two uses, so they are
# cold; this many copies in rotation says so to the GEMM model.
COLD = 1e9
EULER = 0.5772156649  # limit of H(n) - ln n
INDEX_BLOCK = 64.0  # entries of an index are kept and scored in blocks (DeepSeek's paged cache)
# Operands of a batched attention GEMM that were written by the kernel before.
WARM = 1.0


class Machine(NamedTuple):
    """One GPU with its fitted operator models, as interpreted kernels take it.

    gemm, collective: one row per number format, and per group and implementation. plan: a PLAN
    row. Compiled kernels take the same as one record, MACHINE: nested rows are plain addresses,
    where arrays would be counted in and out of every function that sees them.
    """

    device: Any
    gemm: Any
    prefill: Any
    decode: Any
    memory: Any
    collective: Any
    host: Any
    moe: Any
    mla_prefill: Any
    mla_decode: Any
    scan: Any
    plan: Any


MACHINE = np.dtype(
    [
        ("device", tables.DEVICE),
        ("gemm", GEMM, (tables.N_GEMM_ROWS,)),
        ("prefill", ATTENTION_PREFILL),
        ("decode", ATTENTION_DECODE),
        ("memory", MEMORY_BOUND),
        ("collective", COLLECTIVE, (tables.N_COLLECTIVE_ROWS,)),
        ("host", HOST),
        ("moe", MOE),
        ("mla_prefill", MLA_PREFILL),
        ("mla_decode", MLA_DECODE),
        ("scan", SCAN),
        ("plan", tables.PLAN),
    ]
)


@inner
def runs(operator: Any, new_tokens: float) -> bool:
    """Whether an operator is part of a step with this many new tokens per sequence."""
    phase = operator.phase
    if phase == tables.ALWAYS:
        return True
    return bool((phase == tables.ONE_TOKEN) == (new_tokens == 1.0))


@inner
def operator_units(operator: Any, n_sequences: float, new_tokens: float, context: float) -> float:
    """Rows, tokens or bytes of an operator in one step, see `tables.OPERATOR`."""
    o = operator
    units: float = o.per_token * n_sequences * new_tokens + o.per_sequence * n_sequences
    return units + o.per_cached * n_sequences * max(0.0, context - new_tokens)


@inner
def keys_of(operator: Any, context: float, source: float) -> float:
    """Entries that scores are computed for: of the source, of the context, or pooled.

    Entries of an index (compression 1 or more) lie in whole blocks.
    """
    keys = context
    if operator.source > 0.0:
        keys = source
    if operator.compression > 0.0:
        keys = math.ceil(context / operator.compression / INDEX_BLOCK) * INDEX_BLOCK
    return keys


@inner
def mask_of(
    operator: Any, new_tokens: float, context: float, source: float
) -> tuple[float, float, float]:
    """(keys per sequence, window, causal) of an attention operator in one step.

    Cross attention sees the whole source. Where earlier tokens are pooled, a query sees the
    window's tokens and the pooled entries, at most `key_limit` of them: as many keys as queries
    see on average, without a mask.
    """
    o = operator
    if o.source > 0.0:
        return source, 0.0, 0.0
    if o.compression > 0.0:
        near = visible_pairs(new_tokens, context, o.window, 1.0)
        far = visible_pairs(new_tokens, context, o.key_limit * o.compression, 1.0)
        return (near + far / o.compression) / new_tokens, 0.0, 0.0
    return context, o.window, o.causal


@inner
def latent_keys(operator: Any, new_tokens: float, context: float) -> float:
    """Entries that a query of latent or compressed attention sees on average, at most a window."""
    keys, window, causal = mask_of(operator, new_tokens, context, 0.0)
    if causal == 0.0:
        return keys
    return visible_pairs(new_tokens, keys, window, causal) / new_tokens


@inner
def latent_s(
    operator: Any, n_sequences: float, new_tokens: float, context: float, machine: Any
) -> tuple[float, int]:
    """Latent attention: absorbed in decode; with keys and values of all heads for a prompt.

    A prompt of which every query sees a chosen few keys, or pooled ones, takes the shorter of
    attention to all of them and attention to as many as are seen.
    """
    o = operator
    device = machine.device
    if new_tokens == 1.0:
        keys = latent_keys(o, 1.0, context)
        return mla_decode_s(n_sequences, keys, o.n_heads, o.k, o.n, machine.mla_decode, device, 0.0)
    warm_frac = 1.0 if new_tokens == context else 0.0
    if o.n_kv_heads == 1.0:  # one shared head, no keys and values to make
        keys, window, causal = mask_of(o, new_tokens, context, 0.0)
        return attention_prefill_s(
            n_sequences, new_tokens, keys, o.n_heads, o.n_kv_heads, o.head_dim, window,
            causal, machine.prefill, device, o.v_head_dim, warm_frac,
        )  # fmt: skip
    dense_s, dense_bound = mla_prefill_s(
        n_sequences, new_tokens, context, o.n_heads, o.head_dim - o.n, o.n, o.v_head_dim, o.k,
        machine.mla_prefill, device, warm_frac,
    )  # fmt: skip
    if o.window == 0.0:
        return dense_s, dense_bound
    sparse_s, sparse_bound = attention_prefill_s(
        n_sequences, new_tokens, context, o.n_heads, o.n_kv_heads, o.head_dim, o.window, o.causal,
        machine.prefill, device, o.v_head_dim, warm_frac,
    )  # fmt: skip
    if sparse_s < dense_s:
        return sparse_s, sparse_bound
    return dense_s, dense_bound


@inner
def latent_work(
    operator: Any, n_sequences: float, new_tokens: float, context: float, machine: Any
) -> tuple[float, float]:
    """(FLOPs, compulsory bytes) of latent attention in one step."""
    o = operator
    if new_tokens == 1.0:
        keys = latent_keys(o, 1.0, context)
        return mla_decode_work(n_sequences, keys, o.n_heads, o.k, o.n, machine.mla_decode)
    if o.n_kv_heads == 1.0 or o.window > 0.0:
        keys, window, causal = mask_of(o, new_tokens, context, 0.0)
        return attention_prefill_work(
            n_sequences, new_tokens, keys, o.n_heads, o.n_kv_heads, o.head_dim, window,
            causal, machine.prefill, o.v_head_dim,
        )  # fmt: skip
    return mla_prefill_work(
        n_sequences, new_tokens, context, o.n_heads, o.head_dim - o.n, o.n, o.v_head_dim, o.k,
        machine.mla_prefill,
    )  # fmt: skip


@inner
def units_s(operator: Any, units: float, machine: Any) -> tuple[float, int]:
    """Seconds of an operator whose time depends on a count of rows, tokens or bytes alone.

    That is every stored product, kernel over rows, mixture of experts and collective: see
    `by_units`.
    """
    o = operator
    device = machine.device
    kind = o.kind
    if kind == tables.GEMM:
        batch = max(1.0, o.n_heads)
        return gemm_s(units, o.n, o.k, batch, COLD, machine.gemm[o.row], device)
    if kind == tables.MEMORY_BOUND:
        return rows_s(o, units, o.width, 1.0, machine)
    if kind == tables.MOE:
        return moe_s(
            units, o.k, o.n, o.n_experts, o.n_local_experts, o.top_k, o.matrices, o.skew,
            machine.moe, device,
        )  # fmt: skip
    return collective_s(
        o.collective, units, o.ranks, o.ranks_per_node, machine.collective[o.row], device
    )


@inner
def by_units(operator: Any) -> bool:
    """Whether `units_s` times the operator; the others are told sequences and their contexts."""
    o = operator
    if o.kind == tables.MEMORY_BOUND:
        return bool(o.width > 0.0)
    counted = o.kind in (tables.GEMM, tables.MOE)
    return bool(counted or o.kind == tables.COLLECTIVE)


@inner
def rows_s(
    operator: Any, rows: float, width: float, passes: float, machine: Any
) -> tuple[float, int]:
    """Seconds of a memory-bound kernel over `rows` rows of `width` elements, read in `passes`."""
    o = operator
    elements = rows * width * passes
    return memory_bound_s(
        o.work_kind, rows, width * passes, elements * o.read_bytes, elements * o.written_bytes,
        elements * o.flops, o.warm_frac, machine.memory, machine.device,
    )  # fmt: skip


@inner
def operator_s(
    operator: Any,
    n_sequences: float,
    new_tokens: float,
    context: float,
    source: float,
    machine: Any,
) -> tuple[float, int]:
    """Seconds on the GPU of one operator in one step, and the code of what bounds it.

    n_sequences x new_tokens tokens enter; each sequence sees `context` keys, the new ones in, and
    `source` tokens of an encoder. 0 for an operator that is no part of such a step.
    """
    o = operator
    device = machine.device
    kind = o.kind
    if not runs(o, new_tokens):
        return 0.0, tables.BOUND_LATENCY
    units = operator_units(o, n_sequences, new_tokens, context)
    if by_units(o):
        return units_s(o, units, machine)
    # The keys and values of earlier tokens come from the cache in memory, new ones are warm.
    copies = WARM
    if new_tokens < context:
        copies = COLD
    if kind == tables.SCORES:
        keys = keys_of(o, context, source)
        batch = n_sequences * o.n_heads
        rows = o.per_token * new_tokens
        return gemm_s(rows, keys, o.head_dim, batch, copies, machine.gemm[o.row], device)
    if kind == tables.VALUES:
        keys = keys_of(o, context, source)
        batch = n_sequences * o.n_heads
        return gemm_s(new_tokens, o.v_head_dim, keys, batch, copies, machine.gemm[o.row], device)
    if kind == tables.LATENT:
        return latent_s(o, n_sequences, new_tokens, context, machine)
    if kind == tables.ATTENTION:
        keys, window, causal = mask_of(o, new_tokens, context, source)
        if new_tokens == 1.0:
            return attention_decode_s(
                n_sequences, keys, o.n_heads, o.n_kv_heads, o.head_dim, window,
                machine.decode, device, o.v_head_dim, 0.0,
            )  # fmt: skip
        warm_frac = 1.0 if new_tokens == context else 0.0  # all keys are new, or most are cached
        return attention_prefill_s(
            n_sequences, new_tokens, keys, o.n_heads, o.n_kv_heads, o.head_dim, window,
            causal, machine.prefill, device, o.v_head_dim, warm_frac,
        )  # fmt: skip
    if kind == tables.SCAN:
        return scan_s(
            n_sequences, new_tokens, o.n_kv_heads, o.head_dim, o.n_heads, o.v_head_dim, o.delta,
            o.channel_gate, machine.scan, device,
        )  # fmt: skip
    # The score matrix of unfused attention.
    return rows_s(o, units, keys_of(o, context, source), machine.host.score_passes, machine)


@inner
def depends_on_context(operator: Any) -> bool:
    """Whether the context (keys per sequence) changes the operator's time."""
    o = operator
    if o.source > 0.0:
        return False
    if o.kind == tables.MEMORY_BOUND:
        return bool(o.width == 0.0)
    attends = o.kind in (tables.SCORES, tables.VALUES, tables.ATTENTION, tables.LATENT)
    return bool(attends or o.per_cached > 0.0)


@inner
def operator_work(
    operator: Any,
    n_sequences: float,
    new_tokens: float,
    context: float,
    source: float,
    machine: Any,
) -> tuple[float, float]:
    """Work of one operator in one step: (FLOPs, bytes through memory or over the link).

    A multiply-add counts two. Bytes are the compulsory ones: every operand once.
    """
    o = operator
    kind = o.kind
    if not runs(o, new_tokens):
        return 0.0, 0.0
    units = operator_units(o, n_sequences, new_tokens, context)
    if by_units(o):
        return units_work(o, units, machine)
    if kind in (tables.SCORES, tables.VALUES):
        row = machine.gemm[o.row]
        keys = keys_of(o, context, source)
        m = new_tokens
        n = o.v_head_dim
        k = keys
        if kind == tables.SCORES:
            m = o.per_token * new_tokens
            n = keys
            k = o.head_dim
        return product_work(m, n, k, n_sequences * o.n_heads, row)
    if kind == tables.LATENT:
        return latent_work(o, n_sequences, new_tokens, context, machine)
    if kind == tables.ATTENTION:
        keys, window, causal = mask_of(o, new_tokens, context, source)
        if new_tokens == 1.0:
            return attention_decode_work(
                n_sequences, keys, o.n_heads, o.n_kv_heads, o.head_dim, window,
                machine.decode, o.v_head_dim,
            )  # fmt: skip
        return attention_prefill_work(
            n_sequences, new_tokens, keys, o.n_heads, o.n_kv_heads, o.head_dim, window,
            causal, machine.prefill, o.v_head_dim,
        )  # fmt: skip
    if kind == tables.SCAN:
        return scan_work(
            n_sequences, new_tokens, o.n_kv_heads, o.head_dim, o.n_heads, o.v_head_dim, o.delta,
            o.channel_gate, machine.scan,
        )  # fmt: skip
    # The score matrix of unfused attention.
    elements = units * keys_of(o, context, source)
    return elements * o.flops, elements * (o.read_bytes + o.written_bytes)


@inner
def units_work(operator: Any, units: float, machine: Any) -> tuple[float, float]:
    """Work of what `units_s` times: (FLOPs, bytes through memory or over the link)."""
    o = operator
    if o.kind == tables.GEMM:
        return product_work(units, o.n, o.k, max(1.0, o.n_heads), machine.gemm[o.row])
    if o.kind == tables.MEMORY_BOUND:
        elements = units * o.width
        return elements * o.flops, elements * (o.read_bytes + o.written_bytes)
    if o.kind == tables.MOE:
        return moe_work(
            units, o.k, o.n, o.n_experts, o.n_local_experts, o.top_k, o.matrices, o.skew,
            machine.moe,
        )  # fmt: skip
    return 0.0, wire_bytes(o.collective, units, o.ranks)


@inner
def product_work(m: float, n: float, k: float, batch: float, row: Any) -> tuple[float, float]:
    """(FLOPs, compulsory bytes) of `batch` products [m, k] x [k, n] in the formats of a row."""
    moved = m * k * row.a_bytes + k * n * row.b_bytes + m * n * row.out_bytes
    return 2.0 * batch * m * n * k, batch * moved


@inner
def slowest_excess(ranks: float) -> float:
    """H(n) - 1, by which the expected largest of n exponential delays exceeds one, in units of it.

    H(n): harmonic number, here ln n + 0.5772 + 1/(2n) - 1/(12 n^2); within 1e-3 for whole n.
    """
    if ranks <= 1.0:
        return 0.0
    return math.log(ranks) + 0.5 / ranks - 1.0 / (12.0 * ranks * ranks) + EULER - 1.0


@inner
def segment_host_s(segment: Any, operators: Any, is_prefill: float, host: Any, times: Any) -> float:
    """Host time of one repetition of a segment, seconds; `times` as `step_s` writes it.

    What took no time on the GPU was no part of the step and is not issued.
    """
    total = 0.0
    exposed_s = 0.0
    ranks = 1.0
    for i in range(segment.first, segment.last):
        operator = operators[i]
        if times[i, 0] <= 0.0:
            continue
        total += operator.launches * host.launch_s
        if operator.kind == tables.COLLECTIVE and operator.ranks > 1:
            total += host.collective_s
            exposed_s += host.exposed_frac * times[i, 0]
            ranks = max(ranks, operator.ranks)
    if is_prefill > 0.0 and segment.is_layer == 1:
        total += host.prefill_layer_s
    return host.slowness * (1.0 + host.rank_lag * slowest_excess(ranks)) * total + exposed_s


@inner
def after_segment(
    segment: Any, gpu_s: float, host_s: float, gpu_clock: float, host_clock: float, host: Any,
    times: Any,
) -> float:  # fmt: skip
    """The GPU's clock after all repetitions of a segment that takes gpu_s and host_s each.

    Writes what the step owes to the segment's operators to `times`, as `step_s` says.
    """
    slow = max(gpu_s, host_s)
    both_s = 0.0
    owed_frac = 0.0
    if slow > 0.0:
        p = host.corner
        both_s = slow * ((gpu_s / slow) ** p + (host_s / slow) ** p) ** (1.0 / p)
        owed_frac = (gpu_s / both_s) ** (p - 1.0)
    if gpu_clock + segment.count * gpu_s >= host_clock + segment.count * both_s:
        gpu_clock += segment.count * gpu_s
        owed_frac = 1.0
    else:  # the GPU had caught up with the host: what it did before was hidden
        gpu_clock = host_clock + segment.count * both_s
        for i in range(segment.first):
            times[i, 1] = 0.0
    for i in range(segment.first, segment.last):
        times[i, 1] = times[i, 0] * owed_frac
    return gpu_clock


@jit
def step_s(
    n_sequences: float,
    new_tokens: float,
    context: float,
    source: float,
    is_prefill: float,
    encoder: float,
    reuse: float,
    operators: Any,
    segments: Any,
    machine: Any,
    times: Any,
) -> float:
    """Time of one step in seconds.

    source: tokens of the encoder's output, 0 without an encoder. Flags, 1 for yes: is_prefill;
    encoder: the step runs the encoder's segments instead of the others; reuse: `times` is that of
    the same step at another context, so only what depends on the context is timed anew. They are
    floats because Numba compiles a function anew for every literal True and False.

    operators, segments: the rows of one model on one GPU. Writes to `times`, shape
    (operators, 2), of one execution of each operator: [:, 0] its GPU time, [:, 1] the part of
    the step that is owed to it, d step / d ln(GPU time): all of it where the GPU is the slower
    track, little where the host is. Summed over executions the latter add up to the step less
    what is owed to the host. Both are 0 for what the step does not run.
    """
    host = machine.host
    gpu_clock = 0.0
    host_clock = 0.0
    if is_prefill > 0.0:
        host_clock = host.slowness * host.prompt_token_s * n_sequences * new_tokens
        gpu_clock = host_clock
    for s in range(len(segments)):
        segment = segments[s]
        if (segment.is_encoder == 1) != (encoder > 0.0):
            for i in range(segment.first, segment.last):
                times[i, 0] = 0.0
                times[i, 1] = 0.0
            continue
        gpu_s = 0.0
        for i in range(segment.first, segment.last):
            operator = operators[i]
            if reuse == 0.0 or depends_on_context(operator):
                times[i, 0] = 0.0
                if runs(operator, new_tokens):
                    seconds, _ = operator_s(
                        operator, n_sequences, new_tokens, context, source, machine
                    )
                    times[i, 0] = seconds + operator.launches * host.kernel_gap_s
            gpu_s += times[i, 0]
        host_s = segment_host_s(segment, operators, is_prefill, host, times)
        gpu_clock = after_segment(segment, gpu_s, host_s, gpu_clock, host_clock, host, times)
        host_clock += segment.count * host_s
    return host.slowness * host.step_s + gpu_clock
