"""A whole generation: one prompt pass and the decode steps over the growing context.

    T(p, o) = prefill(p) + sum over contexts c = p+1 .. p+o-1 of step(c)

(Narayanan et al., NeurIPS 2023, with the per-token time made a function of the context). The
prompt pass gives the first output token, so o tokens take o - 1 decode steps; the step that
makes token j + 1 sees p + j keys, its own in. The sum is not taken step by step: step(c) is
evaluated on a fixed grid of contexts and is linear in between,

    grid: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, ...   (four per octave)

so that a generation of any length costs a few evaluations per octave of context. Since the grid
does not depend on p or o the sum is additive, T(p, a + b) = T(p, a) + decode(p + a, b), and
never falls when o grows. Known error: below 0.5 % of the step-by-step sum (tests), from split
and wave steps of fused decode attention between grid points.

**Encoders.** An encoder makes one pass over its input and nothing more. An encoder-decoder runs
the encoder over the prompt and the decoder's first step, then steps whose context is the output
so far, each with cross attention to all of the prompt.

**Pipeline.** M micro-batches of b/M sequences go through S stages of t/S each, t being the pass
of one micro-batch: a prompt pass takes t (M + S - 1) / S, a decode step t max(1, M/S), since a
sequence's next token has to wait for its last (Huang et al., GPipe, arXiv:1811.06965).

**Context parallelism.** R GPUs take 1/R of a prompt's tokens each, dealt so that all see equally
many keys (p (1 + 1/R) / 2 at the last of its own tokens), and 1/R of the cache in decode.
"""

from __future__ import annotations

import math
from math import floor, log2
from typing import Any

from . import tables
from ._jit import inner, jit
from .step import step_s

POINTS_PER_OCTAVE = 4


@inner
def grid_below(context: float) -> float:
    """Largest grid point not above `context` (>= 1)."""
    if context < 2 * POINTS_PER_OCTAVE:
        return floor(context)
    spacing = 2.0 ** (floor(log2(context)) - 2)
    return floor(context / spacing) * spacing


@inner
def grid_above(context: float) -> float:
    """Smallest grid point above `context` (>= 1)."""
    if context < 2 * POINTS_PER_OCTAVE:
        return floor(context) + 1.0
    spacing = 2.0 ** (floor(log2(context)) - 2)
    return floor(context / spacing) * spacing + spacing


@inner
def decode_s(
    n_sequences: float,
    first_context: float,
    last_context: float,
    source: float,
    operators: Any,
    segments: Any,
    machine: Any,
    total_times: Any,
    times: Any,
) -> float:
    """Sum of the decode steps at contexts first_context .. last_context, seconds.

    Writes the sums of both columns of `step_s`'s times to `total_times`; `times` is scratch.
    Both have shape (operators, 2).
    """
    total = 0.0
    evaluated = 0.0
    ranks = machine.plan.prompt_ranks
    for i in range(len(times)):
        total_times[i, 0] = 0.0
        total_times[i, 1] = 0.0
    low = grid_below(first_context)
    low_s = -1.0
    while low <= last_context:
        high = grid_above(low)
        # Contexts of this cell: from max(low, first) up to min(high - 1, last).
        start = max(low, first_context)
        stop = min(high - 1.0, last_context)
        steps = stop - start + 1.0
        high_weight = steps * (0.5 * (start + stop) - low) / (high - low)
        low_weight = steps - high_weight
        if low_s < 0:
            low_s = step_s(
                n_sequences, 1.0, max(1.0, low / ranks), source, 0.0, 0.0, evaluated,
                operators, segments, machine, times,
            )  # fmt: skip
            evaluated = 1.0
        total += low_weight * low_s
        for i in range(len(times)):
            total_times[i, 0] += low_weight * times[i, 0]
            total_times[i, 1] += low_weight * times[i, 1]
        if high_weight > 0:
            low_s = step_s(
                n_sequences, 1.0, max(1.0, high / ranks), source, 0.0, 0.0, 1.0, operators,
                segments, machine, times,
            )  # fmt: skip
            total += high_weight * low_s
            for i in range(len(times)):
                total_times[i, 0] += high_weight * times[i, 0]
                total_times[i, 1] += high_weight * times[i, 1]
        else:
            low_s = -1.0
        low = high
    return total


@inner
def prefill_s(
    n_sequences: float,
    input_len: float,
    operators: Any,
    segments: Any,
    machine: Any,
    prefill_times: Any,
    times: Any,
) -> float:
    """Seconds until the first token: the prompt pass, or encoder and first step of the decoder."""
    plan = machine.plan
    encodes = 1.0 if plan.model_kind != tables.DECODER else 0.0
    own = input_len
    context = input_len
    if plan.prompt_ranks > 1.0:
        own = math.ceil(input_len / plan.prompt_ranks)
        context = 0.5 * (input_len + own)
    seconds = step_s(
        n_sequences, own, context, input_len * encodes, 1.0, encodes, 0.0, operators, segments,
        machine, prefill_times,
    )  # fmt: skip
    if plan.model_kind == tables.ENCODER_DECODER:
        seconds += step_s(
            n_sequences, 1.0, 1.0, input_len, 0.0, 0.0, 0.0, operators, segments, machine, times,
        )  # fmt: skip
        for i in range(len(times)):
            prefill_times[i, 0] += times[i, 0]
            prefill_times[i, 1] += times[i, 1]
    return seconds


@inner
def scale(times: Any, factor: float) -> None:
    """Multiply operator times in place."""
    for i in range(len(times)):
        times[i, 0] *= factor
        times[i, 1] *= factor


@inner
def generation_s(
    n_sequences: float,
    input_len: float,
    output_len: float,
    operators: Any,
    segments: Any,
    machine: Any,
    prefill_times: Any,
    decode_times: Any,
    times: Any,
) -> tuple[float, float]:
    """(prefill, decode) seconds of `n_sequences` prompts of `input_len`, `output_len` tokens each.

    Writes the operator times of the prompt pass to `prefill_times` and their sums over the
    decode steps to `decode_times`, as `step_s` does; `times` is scratch. All have shape
    (operators, 2).
    """
    plan = machine.plan
    together = n_sequences
    fill = 1.0
    turns = 1.0
    if plan.micro_batches > 1.0:
        together = math.ceil(n_sequences / plan.micro_batches)
        rounds = min(plan.micro_batches, n_sequences)
        fill = (rounds + plan.stages - 1.0) / plan.stages
        turns = max(1.0, rounds / plan.stages)
    prefill = prefill_s(together, input_len, operators, segments, machine, prefill_times, times)
    decode = 0.0
    if output_len > 1:
        before = input_len
        source = 0.0
        if plan.model_kind == tables.ENCODER_DECODER:
            before = 1.0
            source = input_len
        decode = decode_s(
            together, before + 1.0, before + output_len - 1.0, source, operators, segments,
            machine, decode_times, times,
        )  # fmt: skip
    else:
        decode_times[:] = 0.0
    if plan.micro_batches > 1.0:
        scale(prefill_times, fill)
        scale(decode_times, turns)
    return prefill * fill, decode * turns


# Groups that a runtime is owed to: the operator kinds of tables.py, then the host in decode
# steps and in prompt passes, which prepare more than they launch.
GROUP_HOST = tables.N_KINDS
GROUP_PROMPT_HOST = tables.N_KINDS + 1
N_GROUPS = tables.N_KINDS + 2


@inner
def owed(seconds: float, times: Any, operators: Any, executions: Any, out: Any) -> float:
    """Split `seconds` over the groups that they are owed to; writes `out`, shape (N_GROUPS,).

    Returns what no operator accounts for: the host's.
    """
    out[:] = 0.0
    rest = seconds
    for i in range(len(operators)):
        part = times[i, 1] * executions[i]
        out[operators[i].kind] += part
        rest -= part
    return rest


@jit
def generation_many(
    n_sequences: Any,
    input_len: Any,
    output_len: Any,
    operators: Any,
    segments: Any,
    executions: Any,
    machines: Any,
    times: Any,
    owed_s: Any,
    seconds: Any,
) -> None:
    """Runtimes of many workloads on one machine.

    n_sequences, input_len, output_len: float arrays (rows,). executions: how often each operator
    runs in a step. machines: an array of the one machine, which is unpacked in no time where a
    record takes microseconds. times: scratch (3, operators, 2), which after the call holds those of
    the last row's prompt pass and decode steps, see `generation_s`. Writes to `seconds`, (rows, 2),
    prefill and decode, and to `owed_s`, (rows, 2, N_GROUPS), what of them is owed to what.
    """
    machine = machines[0]
    prefill_times = times[0]
    decode_times = times[1]
    for row in range(len(n_sequences)):
        prefill, decode = generation_s(
            n_sequences[row], input_len[row], output_len[row], operators, segments, machine,
            prefill_times, decode_times, times[2],
        )  # fmt: skip
        seconds[row, 0] = prefill
        seconds[row, 1] = decode
        rest = owed(prefill, prefill_times, operators, executions, owed_s[row, 0])
        owed_s[row, 0, GROUP_PROMPT_HOST] += rest
        rest = owed(decode, decode_times, operators, executions, owed_s[row, 1])
        owed_s[row, 1, GROUP_HOST] += rest
