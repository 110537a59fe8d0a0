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
"""

from __future__ import annotations

from math import floor, log2
from typing import Any

import numpy as np

from ._jit import jit
from .step import step_s

POINTS_PER_OCTAVE = 4


@jit
def grid_below(context: float) -> float:
    """Largest grid point not above `context` (>= 1)."""
    if context < 2 * POINTS_PER_OCTAVE:
        return floor(context)
    spacing = 2.0 ** (floor(log2(context)) - 2)
    return floor(context / spacing) * spacing


@jit
def grid_above(context: float) -> float:
    """Smallest grid point above `context` (>= 1)."""
    if context < 2 * POINTS_PER_OCTAVE:
        return floor(context) + 1.0
    spacing = 2.0 ** (floor(log2(context)) - 2)
    return floor(context / spacing) * spacing + spacing


@jit
def decode_s(
    n_sequences: float,
    first_context: float,
    last_context: float,
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
    evaluated = False
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
                n_sequences, 1.0, low, False, evaluated, operators, segments, machine, times
            )
            evaluated = True
        total += low_weight * low_s
        for i in range(len(times)):
            total_times[i, 0] += low_weight * times[i, 0]
            total_times[i, 1] += low_weight * times[i, 1]
        if high_weight > 0:
            low_s = step_s(n_sequences, 1.0, high, False, True, operators, segments, machine, times)
            total += high_weight * low_s
            for i in range(len(times)):
                total_times[i, 0] += high_weight * times[i, 0]
                total_times[i, 1] += high_weight * times[i, 1]
        else:
            low_s = -1.0
        low = high
    return total


@jit
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
    prefill = step_s(
        n_sequences, float(input_len), float(input_len), True, False, operators, segments, machine,
        prefill_times,
    )  # fmt: skip
    decode = 0.0
    if output_len > 1:
        decode = decode_s(
            n_sequences, input_len + 1.0, input_len + output_len - 1.0, operators, segments,
            machine, decode_times, times,
        )  # fmt: skip
    else:
        decode_times[:] = 0.0
    return prefill, decode


# Groups that a runtime is owed to: the operator kinds of tables.py, then the host in decode
# steps and in prompt passes, which prepare more than they launch.
N_GROUPS = 8
GROUP_HOST = 6
GROUP_PROMPT_HOST = 7


@jit
def owed(
    seconds: float, times: Any, operators: Any, executions: Any, host_group: int, out: Any
) -> None:
    """Split `seconds` over the groups that they are owed to; writes `out`, shape (N_GROUPS,).

    What no operator accounts for goes to `host_group`.
    """
    out[:] = 0.0
    rest = seconds
    for i in range(len(operators)):
        part = times[i, 1] * executions[i]
        out[operators[i].kind] += part
        rest -= part
    out[host_group] += rest


@jit
def generation_many(
    n_sequences: Any,
    input_len: Any,
    output_len: Any,
    operators: Any,
    segments: Any,
    executions: Any,
    machine: Any,
    out: Any,
) -> None:
    """Runtimes of many workloads on one machine.

    n_sequences, input_len, output_len: float arrays (rows,). executions: how often each operator
    runs in a step. Writes to `out`, shape (rows, 2, N_GROUPS), the seconds of prefill and of
    decode by what they are owed to; summed over the groups they are the runtimes.
    """
    prefill_times = np.zeros((len(operators), 2))
    decode_times = np.zeros((len(operators), 2))
    times = np.zeros((len(operators), 2))
    for row in range(len(n_sequences)):
        prefill, decode = generation_s(
            n_sequences[row], input_len[row], output_len[row], operators, segments, machine,
            prefill_times, decode_times, times,
        )  # fmt: skip
        owed(prefill, prefill_times, operators, executions, GROUP_PROMPT_HOST, out[row, 0])
        owed(decode, decode_times, operators, executions, GROUP_HOST, out[row, 1])
