"""A step of bulk predictions as sums per segment, built from parts that depend on different counts.

A step is kept as sums per segment: GPU seconds by operator kind, in all, and host seconds.
`add_operators` adds the operators that depend on the tokens, the sequences or the context of a
step; `joined_s` moves the two clocks of `step.step_s` through the sums. The grid of contexts is
that of `generation.py`.
"""

from __future__ import annotations

import math
from math import floor, log2
from typing import Any

from . import tables
from ._jit import inner
from .bulk_memo import counts_of, keep_s, memo_place, recalled_s
from .bulk_rows import EXPOSED_S, GPU_S, HOST_S, N_STEP, RANKS, STEP_S
from .step import operator_s, operator_work, runs, slowest_excess
from .tables import N_KINDS

GRID_POINTS = 128  # beyond 2^30 tokens


@inner
def add_operators(
    wanted: float,
    system: Any,
    joined: Any,
    n_sequences: float,
    new_tokens: float,
    context: float,
    machine: Any,
    seconds: Any,
    sums: Any,
    work: Any,
) -> None:
    """Add the operators with one dependence to a step's sums and work.

    sums: (segments, N_SUMS). work: (2,) FLOPs and HBM bytes of a step, None-like when empty.
    seconds: scratch of the joined operators.
    """
    host = machine.host
    operators = joined.operators
    segments = joined.segments
    executions = joined.executions
    depends = joined.dependence
    sames = joined.same
    memo = joined.memo
    number = 0.0
    for s in range(system.first_segment, system.last_segment):
        segment = segments[s]
        at = s - system.first_segment
        for i in range(system.first + segment.first, system.first + segment.last):
            if depends[i] != wanted:
                continue
            operator = operators[i]
            if not runs(operator, new_tokens):
                continue
            same = sames[i]
            if same == i:
                if len(memo) > 0:
                    number = joined.classes[system.first_class + i - system.first]
                seconds[i] = -1.0
                place = 0
                count = 0.0
                reach = 0.0
                if number > 0.0:
                    number += system.memory_rate
                    count, reach = counts_of(operator, n_sequences, new_tokens, context)
                    place = memo_place(number, count, reach)
                    seconds[i] = recalled_s(memo, place, number, count, reach)
                if seconds[i] < 0.0:
                    seconds[i], _ = operator_s(
                        operator, n_sequences, new_tokens, context, 0.0, machine
                    )
                    if number > 0.0:
                        keep_s(memo, place, number, count, reach, seconds[i])
            else:
                seconds[i] = seconds[same]
            spent = seconds[i] + operator.launches * host.kernel_gap_s
            sums[at, operator.kind] += spent
            sums[at, GPU_S] += spent
            sums[at, HOST_S] += operator.launches * host.launch_s
            if operator.kind == tables.COLLECTIVE and operator.ranks > 1:
                sums[at, HOST_S] += host.collective_s
                sums[at, EXPOSED_S] += host.exposed_frac * spent
                sums[at, RANKS] = max(sums[at, RANKS], operator.ranks)
            if len(work) > 0 and spent != 0.0:
                flops, moved = operator_work(
                    operator, n_sequences, new_tokens, context, 0.0, machine
                )
                work[0] += flops * executions[i]
                if operator.kind != tables.COLLECTIVE:
                    work[1] += moved * executions[i]


@inner
def joined_s(system: Any, segments: Any, host: Any, start_s: float, sums: Any, out: Any) -> float:
    """Seconds of a step from its sums: the two clocks of `step.step_s`.

    Writes to `out`, (N_STEP,), what is owed to each kind over all executions, and the step.
    """
    for kind in range(N_STEP):
        out[kind] = 0.0
    gpu_clock = start_s
    host_clock = start_s
    corner = host.corner
    for s in range(system.first_segment, system.last_segment):
        segment = segments[s]
        at = s - system.first_segment
        gpu_s = sums[at, GPU_S]
        lag = 1.0 + host.rank_lag * slowest_excess(sums[at, RANKS])
        host_s = host.slowness * lag * sums[at, HOST_S] + sums[at, EXPOSED_S]
        slow = max(gpu_s, host_s)
        both_s = 0.0
        if slow > 0.0:
            both_s = slow * (1.0 + (min(gpu_s, host_s) / slow) ** corner) ** (1.0 / corner)
        owed_frac = 1.0
        if gpu_clock + segment.count * gpu_s >= host_clock + segment.count * both_s:
            gpu_clock += segment.count * gpu_s
        else:
            gpu_clock = host_clock + segment.count * both_s
            for kind in range(N_KINDS):
                out[kind] = 0.0
            owed_frac = 0.0
            if both_s > 0.0:
                owed_frac = (gpu_s / both_s) ** (corner - 1.0)
        share = owed_frac * segment.count
        for kind in range(N_KINDS):
            out[kind] += sums[at, kind] * share
        host_clock += segment.count * host_s
    out[STEP_S] = host.slowness * host.step_s + gpu_clock
    return out[STEP_S]


@inner
def grid_index(point: float) -> int:
    """Place of a grid point of `generation.py` in their order, from 0."""
    if point < 8.0:
        return int(point) - 1
    octave = floor(log2(point))
    return 7 + 4 * (octave - 3) + floor(point / 2.0 ** (octave - 2)) - 4


@inner
def mean_window(before: float, steps: float, window: float) -> float:
    """Mean of min(context, window) over the contexts before + 1 .. before + steps."""
    rising = min(steps, max(0.0, math.ceil(window) - 1.0 - before))
    return (rising * (before + (rising + 1.0) / 2.0) + (steps - rising) * window) / steps


@inner
def decode_work(
    system: Any, joined: Any, together: float, before: float, steps: float, source: float,
    wanted: float, machine: Any, work: Any,
) -> None:  # fmt: skip
    """Add FLOPs and HBM bytes of the mean decode step; `wanted`: a dependence, or -1 for all."""
    ranks = machine.plan.prompt_ranks
    operators = joined.operators
    executions = joined.executions
    depends = joined.dependence
    for i in range(system.first, system.last):
        if wanted >= 0.0 and depends[i] != wanted:
            continue
        operator = operators[i]
        if not runs(operator, 1.0):
            continue
        context = before + (steps + 1.0) / 2.0
        if operator.window > 0.0 and operator.compression == 0.0:
            context = mean_window(before, steps, operator.window)
        flops, moved = operator_work(
            operator, together, 1.0, max(1.0, context / ranks), source, machine
        )
        work[0] += flops * executions[i]
        if operator.kind != tables.COLLECTIVE:
            work[1] += moved * executions[i]
