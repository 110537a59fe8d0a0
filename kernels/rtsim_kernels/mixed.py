"""One step of continuous batching: chunks of prompts beside sequences that decode.

All tokens of a step, of prompts and of decoding sequences, go through the products, norms,
experts and collectives together: those are timed once, at their sum. Attention is of each kind:
a prefill pass over the chunks and a decode pass over the others, one after the other in the same
layer, and what runs only for prompts or only for single tokens (`tables.MANY_TOKENS`,
`ONE_TOKEN`) sees only its own (Agrawal et al., Sarathi-Serve, OSDI 2024).

The two tracks are those of `step.step_s`; the scheduler's time is the engine's own:

    step = step_s + sequence_s * sequences + prompt_step_s (with chunks) + layers

**Kernels in an engine.** Kernels timed alone differ from the same work inside an engine: there
quantisation is fused into the kernel before, one kernel's start hides behind another's end, a
tuner has chosen, and caches and clocks are those of a running server. What is left of it is a
factor per kind of operator, fitted on whole serving runs (`*_frac`), and never below what the
peaks of math and memory allow.

Chunks are taken to be alike: `n_prompts` of `chunk` tokens with `prompt_context` keys each. Callers
with unlike ones pass means, so that tokens, pairs of query and key, and cached bytes are those of
the batch. Ignored: the further unevenness of kernels over unlike sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import tables
from ._jit import inner, jit
from .step import (
    after_segment,
    by_units,
    depends_on_context,
    operator_s,
    operator_units,
    operator_work,
    runs,
    segment_host_s,
    units_s,
    units_work,
)
from .tables import Coefficient

ENGINE_COEFFICIENTS = (
    Coefficient("step_s", 6.0e-4, 0.7, 1e-6, 5e-2, "s",
                "time of a step outside its kernels: scheduling, sampling, waiting"),
    Coefficient("sequence_s", 1.0e-5, 0.7, 1e-8, 1e-3, "s",
                "further time of a step per sequence in it"),
    Coefficient("prompt_step_s", 1.0e-3, 0.7, 1e-6, 5e-2, "s",
                "further time of a step with prompts in it: no graph of it is replayed"),
    Coefficient("gemm_frac", 1.0, 0.3, 0.5, 2.0, "1",
                "time of matrix products in the engine over that of the kernels alone"),
    Coefficient("attention_frac", 1.0, 0.15, 0.5, 2.0, "1",
                "the same of attention and recurrences"),
    Coefficient("memory_frac", 1.0, 0.25, 0.3, 3.0, "1",
                "the same of norms, activations and the like"),
    Coefficient("collective_frac", 1.0, 0.25, 0.3, 3.0, "1",
                "the same of collectives"),
    Coefficient("moe_frac", 1.0, 0.2, 0.5, 2.0, "1",
                "the same of expert layers"),
    Coefficient("parted_frac", 1.0, 0.2, 0.5, 2.0, "1",
                "further factor on expert layers whose experts are shared out among GPUs"),
    Coefficient("prompt_frac", 1.0, 0.15, 0.5, 2.0, "1",
                "further factor on a step of prompts alone, in a mixed one by their share"),
    Coefficient("request_s", 3.0e-2, 0.7, 1e-4, 1.0, "s",
                "time from a request's arrival to the scheduler, and of its first token back"),
    Coefficient("bunching", 0.1, 0.7, 1e-3, 1.0, "1",
                "share of the other requests in flight that arrive together with one"),
)  # fmt: skip
ENGINE = tables.coefficient_dtype(ENGINE_COEFFICIENTS)

# A chunk of one token still runs as a prompt does.
LEAST_CHUNK = 1.0 + 2.0**-20


# For `reuse` in compiled code: Numba would compile a step once more for a literal False.
ANEW: Any = np.bool_(False)


class Batch(NamedTuple):
    """What one step works on, for one group of GPUs that have sequences of their own.

    n_decodes sequences of decode_context keys each (the new one in) get one token; n_prompts get
    `chunk` new ones each, prompt_context keys in all; n_finished of them end with this chunk and
    need logits. checked: tokens that each decoding sequence brings, more than one where drafted
    ones are checked with the last. pooled: where groups step together and share experts, the mean
    of their tokens over this group's own.
    """

    n_decodes: float
    decode_context: float
    n_prompts: float
    chunk: float
    prompt_context: float
    n_finished: float
    checked: float
    pooled: float = 1.0


@inner
def peak_of(operator: Any, machine: Any) -> float:
    """FLOP rate that an operator cannot exceed; 0 where math does not bound it."""
    kind = operator.kind
    if kind in (tables.GEMM, tables.SCORES, tables.VALUES):
        return float(machine.gemm[operator.row].peak_flops_per_s)
    if kind == tables.MOE:
        return float(machine.moe.peak_flops_per_s)
    if kind == tables.ATTENTION:
        return float(max(machine.prefill.peak_flops_per_s, machine.decode.peak_flops_per_s))
    if kind == tables.LATENT:
        return float(max(machine.mla_prefill.peak_flops_per_s, machine.mla_decode.peak_flops_per_s))
    return 0.0


@inner
def checked_s(operator: Any, one_s: float, batch: Any, machine: Any) -> float:
    """Seconds of attention where each sequence brings several tokens: the cache is read once.

    one_s: with one token each. A recurrence takes a step for each.
    """
    if operator.kind == tables.SCAN:
        return float(batch.checked * one_s)
    peak = peak_of(operator, machine)
    if peak <= 0.0:
        return one_s
    flops, _ = operator_work(operator, batch.n_decodes, 1.0, batch.decode_context, 0.0, machine)
    return max(one_s, batch.checked * flops / peak)


@inner
def mixed_operator_s(operator: Any, batch: Any, machine: Any) -> float:
    """GPU seconds of one execution of an operator in a mixed step, by kernels timed alone."""
    o = operator
    if by_units(o):
        units = mixed_units(o, batch)
        if units <= 0.0:
            return 0.0
        seconds, _ = units_s(o, units, machine)
        return seconds
    chunk = max(batch.chunk, LEAST_CHUNK)
    seconds = 0.0
    if batch.n_decodes > 0.0:
        part, _ = operator_s(o, batch.n_decodes, 1.0, batch.decode_context, 0.0, machine)
        if batch.checked > 1.0:
            part = checked_s(o, part, batch, machine)
        seconds += part
    if batch.n_prompts > 0.0:
        keys = max(batch.prompt_context, chunk)
        part, _ = operator_s(o, batch.n_prompts, chunk, keys, 0.0, machine)
        seconds += part
    return seconds


@inner
def mixed_units(operator: Any, batch: Any) -> float:
    """Rows, tokens or bytes of an operator over the prompts and the decoding sequences."""
    o = operator
    chunk = max(batch.chunk, LEAST_CHUNK)
    units = 0.0
    if batch.n_decodes > 0.0 and runs(o, 1.0):
        units += operator_units(o, batch.n_decodes * batch.checked, 1.0, batch.decode_context)
    if batch.n_prompts > 0.0 and runs(o, chunk):
        keys = max(batch.prompt_context, chunk)
        units += operator_units(o, batch.n_prompts, chunk, keys)
        units += o.per_sequence * (batch.n_finished - batch.n_prompts)
    if o.kind == tables.MOE:
        units *= batch.pooled
    return units


@inner
def mixed_work(operator: Any, batch: Any, machine: Any) -> tuple[float, float]:
    """(FLOPs, compulsory bytes) of one execution of an operator in a mixed step."""
    o = operator
    if by_units(o):
        units = mixed_units(o, batch)
        if units <= 0.0:
            return 0.0, 0.0
        return units_work(o, units, machine)
    flops = 0.0
    moved = 0.0
    if batch.n_decodes > 0.0:
        f, b = operator_work(o, batch.n_decodes, 1.0, batch.decode_context, 0.0, machine)
        flops += f * batch.checked
        moved += b
    if batch.n_prompts > 0.0:
        chunk = max(batch.chunk, LEAST_CHUNK)
        keys = max(batch.prompt_context, chunk)
        f, b = operator_work(o, batch.n_prompts, chunk, keys, 0.0, machine)
        flops += f
        moved += b
    return flops, moved


@inner
def engine_frac(operator: Any, engine: Any) -> float:
    """The engine's factor on an operator."""
    kind = operator.kind
    if kind == tables.GEMM:
        return float(engine.gemm_frac)
    if kind == tables.MEMORY_BOUND:
        return float(engine.memory_frac)
    if kind == tables.COLLECTIVE:
        return float(engine.collective_frac)
    if kind == tables.MOE:
        parted = operator.n_local_experts < operator.n_experts
        return float(engine.moe_frac * engine.parted_frac if parted else engine.moe_frac)
    return float(engine.attention_frac)


@inner
def engine_operator_s(operator: Any, batch: Any, machine: Any, engine: Any) -> float:
    """GPU seconds of one execution of an operator in a mixed step, as the engine runs it.

    A factor below 1 stops at the bound: FLOPs at the peak, and the bytes that do not fit the L2
    through memory; never above what the kernel takes alone.
    """
    alone_s = mixed_operator_s(operator, batch, machine)
    prompt_tokens = batch.n_prompts * batch.chunk
    share = prompt_tokens / max(1.0, prompt_tokens + batch.n_decodes * batch.checked)
    frac = engine_frac(operator, engine) * (1.0 + (engine.prompt_frac - 1.0) * share)
    if frac >= 1.0 or alone_s <= 0.0:
        return frac * alone_s
    bound_s = 0.0
    if operator.kind != tables.COLLECTIVE:
        flops, moved = mixed_work(operator, batch, machine)
        peak = peak_of(operator, machine)
        if peak > 0.0:
            bound_s = flops / peak
        device = machine.device
        bound_s = max(bound_s, (moved - device.l2_bytes) / device.hbm_bytes_per_s)
    return max(frac * alone_s, min(alone_s, bound_s))


@inner
def layers_s(
    batch: Any, reuse: bool, operators: Any, segments: Any, machine: Any, engine: Any, times: Any
) -> float:
    """Seconds of one step of a decoder without the scheduler's part.

    reuse: `times` is that of a step with the same tokens at other contexts. Writes to `times`,
    shape (operators, 2), as `step.step_s` does.
    """
    host = machine.host
    gpu_clock = 0.0
    host_clock = 0.0
    for s in range(len(segments)):
        segment = segments[s]
        if segment.is_encoder == 1:
            continue
        gpu_s = 0.0
        for i in range(segment.first, segment.last):
            operator = operators[i]
            if operator.same > 0:
                other = operator.same - 1
                seconds = times[other, 0]
                if seconds > 0.0:
                    seconds += (operator.launches - operators[other].launches) * host.kernel_gap_s
                times[i, 0] = seconds
            elif not reuse or depends_on_context(operator):
                seconds = engine_operator_s(operator, batch, machine, engine)
                if seconds > 0.0:
                    seconds += operator.launches * host.kernel_gap_s
                times[i, 0] = seconds
            gpu_s += times[i, 0]
        host_s = segment_host_s(segment, operators, batch.n_prompts, host, times)
        gpu_clock = after_segment(segment, gpu_s, host_s, gpu_clock, host_clock, host, times)
        host_clock += segment.count * host_s
    return gpu_clock


@jit
def engine_step_s(
    batch: Any, reuse: bool, operators: Any, segments: Any, machine: Any, engine: Any, times: Any
) -> float:
    """Seconds of one step as a serving engine runs it.

    engine: an ENGINE row. The other arguments are those of `layers_s`.
    """
    sequences = batch.n_decodes + batch.n_prompts
    scheduler_s = engine.step_s + engine.sequence_s * sequences
    if batch.n_prompts > 0.0:
        scheduler_s += engine.prompt_step_s
    return scheduler_s + layers_s(batch, reuse, operators, segments, machine, engine, times)
