"""Many workloads on many systems at once: times, what they are owed to, work, memory, intervals.

The same numbers as `generation.generation_s` row by row, with every piece of work done once. Rows
come sorted by system, then batch, prompt and output, and

* operators of a table that are equal are timed once (`same`);
* operators whose time depends on the tokens of a step alone (products with weights, element-wise
  kernels, collectives) are timed once per number of tokens and system, so that batch 8 with
  prompt 1,024 and batch 16 with prompt 512 share them; those that depend on the sequences alone
  (the output head) once per batch;
* only attention is timed anew per context, at the grid points of `generation.py`, which all rows
  of a batch share, whatever their prompt and output;
* a row is then a weighted sum of grid points, in the order in which `generation.decode_s` adds
  them, so that a row does not depend on its neighbours.

A step is kept as sums per segment (`Sums`): GPU seconds by operator kind, in all, and host
seconds. `joined_s` moves the two clocks of `step.step_s` through them. Models with an encoder take
`generation_s` row by row.
"""

from __future__ import annotations

import math
from math import floor, log2
from typing import Any, NamedTuple

import numpy as np

from . import tables
from ._jit import jit
from .generation import (
    GROUP_HOST,
    GROUP_PROMPT_HOST,
    N_GROUPS,
    generation_s,
    grid_above,
    grid_below,
    owed,
)
from .row_figures import (
    FITS,
    MEMORY,
    N_COLUMNS,
    memory_bytes,
    row_error,
    set_variance,
    whole_parts,
    write_row,
)
from .step import Machine, depends_on_context, operator_s, operator_work, runs, slowest_excess
from .tables import N_KINDS

# How the time of an operator depends on a step, `dependence`.
ON_TOKENS = 0
ON_SEQUENCES = 1
ON_BOTH = 2
ON_CONTEXT = 3

# Columns of a segment's sums: GPU seconds by kind, then
GPU_S = N_KINDS  # of all kinds
HOST_S = N_KINDS + 1  # of the host itself
EXPOSED_S = N_KINDS + 2  # collectives that the host waits for
N_ADDED = N_KINDS + 3  # those up to here are added up
RANKS = N_KINDS + 3  # of the largest collective
N_SUMS = N_KINDS + 4
# Columns of a step: owed seconds by kind, then the step's time.
STEP_S = N_KINDS
N_STEP = N_KINDS + 1

GRID_POINTS = 128  # beyond 2^30 tokens
WHOLE_UNITS = 2.0**20  # sizes per token that are multiples of 1 / this are exact in any order


class Machines(NamedTuple):
    """The rows of `step.Machine` of many systems: arrays with one more, leading axis."""

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


class Tables(NamedTuple):
    """Operators of many models joined, with `dependence`, `same`, and the other joined rows.

    same: index in `operators` of the first row that is equal but for its launches.
    """

    operators: Any
    segments: Any
    executions: Any
    dependence: Any
    same: Any
    caches: Any


class Scatter(NamedTuple):
    """Variances of ln(error) by group, (systems, groups) each.

    seen: of fitted models; beyond: by how much those of models left out are larger; transfer:
    further variance on another GPU.
    """

    seen: Any
    beyond: Any
    transfer: Any


@jit
def dependence(operator: Any) -> int:
    """What the time of an operator depends on: an ON_* code."""
    o = operator
    if depends_on_context(o) or o.source > 0.0:
        return ON_CONTEXT
    counted = o.kind in (tables.GEMM, tables.MEMORY_BOUND, tables.MOE, tables.COLLECTIVE)
    if not counted or o.per_cached > 0.0:
        return ON_BOTH
    if o.per_token == 0.0:
        return ON_SEQUENCES
    if o.per_sequence == 0.0 and o.per_token * WHOLE_UNITS == floor(o.per_token * WHOLE_UNITS):
        return ON_TOKENS
    return ON_BOTH


@jit
def dependences(operators: Any) -> Any:
    """`dependence` of each operator, (operators,) integers."""
    out = np.empty(len(operators), np.int64)
    for i in range(len(operators)):
        out[i] = dependence(operators[i])
    return out


@jit
def add_operators(
    wanted: int,
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
    for s in range(system.first_segment, system.last_segment):
        segment = joined.segments[s]
        at = s - system.first_segment
        for i in range(system.first + segment.first, system.first + segment.last):
            if joined.dependence[i] != wanted:
                continue
            operator = joined.operators[i]
            if not runs(operator, new_tokens):
                continue
            same = joined.same[i]
            if same == i:
                seconds[i], _ = operator_s(operator, n_sequences, new_tokens, context, 0.0, machine)
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
                work[0] += flops * joined.executions[i]
                if operator.kind != tables.COLLECTIVE:
                    work[1] += moved * joined.executions[i]


@jit
def joined_s(system: Any, segments: Any, host: Any, start_s: float, sums: Any, out: Any) -> float:
    """Seconds of a step from its sums: the two clocks of `step.step_s`.

    Writes to `out`, (N_STEP,), what is owed to each kind over all executions, and the step.
    """
    out[:] = 0.0
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
            out[:] = 0.0
            owed_frac = 0.0
            if both_s > 0.0:
                owed_frac = (gpu_s / both_s) ** (corner - 1.0)
        share = owed_frac * segment.count
        for kind in range(N_KINDS):
            out[kind] += sums[at, kind] * share
        host_clock += segment.count * host_s
    out[STEP_S] = host.slowness * host.step_s + gpu_clock
    return out[STEP_S]


@jit
def grid_index(point: float) -> int:
    """Place of a grid point of `generation.py` in their order, from 0."""
    if point < 8.0:
        return int(point) - 1
    octave = floor(log2(point))
    return int(7 + 4 * (octave - 3) + floor(point / 2.0 ** (octave - 2)) - 4)


@jit
def mean_window(before: float, steps: float, window: float) -> float:
    """Mean of min(context, window) over the contexts before + 1 .. before + steps."""
    rising = min(steps, max(0.0, math.ceil(window) - 1.0 - before))
    return (rising * (before + (rising + 1.0) / 2.0) + (steps - rising) * window) / steps


@jit
def decode_work(
    system: Any, joined: Any, together: float, before: float, steps: float, source: float,
    wanted: int, machine: Any, work: Any,
) -> None:  # fmt: skip
    """Add FLOPs and HBM bytes of the mean decode step; `wanted`: a dependence, or -1 for all."""
    ranks = machine.plan.prompt_ranks
    for i in range(system.first, system.last):
        if wanted >= 0 and joined.dependence[i] != wanted:
            continue
        operator = joined.operators[i]
        if not runs(operator, 1.0):
            continue
        context = before + (steps + 1.0) / 2.0
        if operator.window > 0.0 and operator.compression == 0.0:
            context = mean_window(before, steps, operator.window)
        flops, moved = operator_work(
            operator, together, 1.0, max(1.0, context / ranks), source, machine
        )
        work[0] += flops * joined.executions[i]
        if operator.kind != tables.COLLECTIVE:
            work[1] += moved * joined.executions[i]


@jit
def encoder_row(
    system: Any, joined: Any, n_sequences: float, together: float, input_len: float,
    output_len: float, machine: Any, times: Any, prompt: Any, decoded: Any, work: Any,
) -> tuple[float, float]:  # fmt: skip
    """A row of a model with an encoder: (prefill, decode) seconds as `generation_s`.

    Writes what they are owed to (groups) and the work: (prompt, decode step) x (FLOPs, bytes).
    """
    operators = joined.operators[system.first : system.last]
    segments = joined.segments[system.first_segment : system.last_segment]
    executions = joined.executions[system.first : system.last]
    n = system.last - system.first
    prefill, decode = generation_s(
        n_sequences, input_len, output_len, operators, segments, machine, times[0, :n],
        times[1, :n], times[2, :n],
    )  # fmt: skip
    owed(prefill, times[0, :n], operators, executions, GROUP_PROMPT_HOST, prompt)
    owed(decode, times[1, :n], operators, executions, GROUP_HOST, decoded)
    work[:] = 0.0
    two_parts = machine.plan.model_kind == tables.ENCODER_DECODER
    own = whole_parts(input_len, machine.plan.prompt_ranks)
    for segment in segments:
        for i in range(segment.first, segment.last):
            new_tokens = own
            context = input_len if own == input_len else 0.5 * (input_len + own)
            if two_parts and segment.is_encoder == 0:
                new_tokens = 1.0
                context = 1.0
            operator = operators[i]
            steps = output_len - 1.0
            if runs(operator, new_tokens) and times[0, i, 0] != 0.0:
                flops, moved = operator_work(
                    operator, together, new_tokens, context, input_len, machine
                )
                work[0, 0] += flops * executions[i]
                if operator.kind != tables.COLLECTIVE:
                    work[0, 1] += moved * executions[i]
            if steps > 0.0 and runs(operator, 1.0) and times[1, i, 0] != 0.0:
                before = 1.0 if two_parts else input_len
                context = before + (steps + 1.0) / 2.0
                if operator.window > 0.0 and operator.compression == 0.0:
                    context = mean_window(before, steps, operator.window)
                context = max(1.0, context / machine.plan.prompt_ranks)
                flops, moved = operator_work(operator, together, 1.0, context, input_len, machine)
                work[1, 0] += flops * executions[i]
                if operator.kind != tables.COLLECTIVE:
                    work[1, 1] += moved * executions[i]
    return prefill, decode


@jit
def predict_rows(
    systems: Any,
    machines: Any,
    joined: Any,
    scatter: Any,
    first_rows: Any,
    batch_sizes: Any,
    input_lens: Any,
    output_lens: Any,
    targets: Any,
    out: Any,
    errors: Any,
) -> None:
    """Predict rows that are sorted by system, batch, prompt.

    systems: SYSTEM rows (systems,). first_rows: (systems + 1,), the rows of each. Sizes: float
    arrays (rows,). Writes columns `targets`, (rows,), of `out`, (N_COLUMNS, ...), and `errors`,
    (rows,) ERROR_* codes. Rows of systems without a machine are left alone.
    """
    most_segments = 1
    for s in range(len(systems)):
        most_segments = max(most_segments, systems[s].last_segment - systems[s].first_segment)
    n_operators = len(joined.operators)
    seconds = np.zeros(n_operators)
    times = np.zeros((3, n_operators, 2))
    decode_sums = np.zeros((most_segments, N_SUMS))
    decode_base_work = np.zeros(2)
    head_sums = np.zeros((most_segments, N_SUMS))
    head_work = np.zeros(2)
    sums = np.zeros((most_segments, N_SUMS))
    work = np.zeros(2)
    no_work = np.zeros(0)
    row_work = np.zeros((2, 2))
    step = np.zeros(N_STEP)
    grid = np.zeros((GRID_POINTS, N_STEP))
    known = np.zeros(GRID_POINTS, np.bool_)
    prompt = np.zeros(N_GROUPS)
    decoded = np.zeros(N_GROUPS)
    both = np.zeros(N_GROUPS)
    variance = np.zeros(N_GROUPS)
    for at in range(len(systems)):
        system = systems[at]
        if system.machine < 0:
            continue  # cannot be: its rows stay as they are
        first = first_rows[at]
        last = first_rows[at + 1]
        m = machines
        i = system.machine
        machine = Machine(
            m.device[i], m.gemm[i], m.prefill[i], m.decode[i], m.memory[i], m.collective[i],
            m.host[i], m.moe[i], m.mla_prefill[i], m.mla_decode[i], m.scan[i], m.plan[i],
        )  # fmt: skip
        plan = machine.plan
        host = machine.host
        ranks = plan.prompt_ranks
        decoder = plan.model_kind == tables.DECODER
        n_segments = system.last_segment - system.first_segment
        # Numbers of tokens of the prompt passes, sorted, and the sums of each once it is known.
        pass_tokens = np.empty(last - first if decoder else 0)
        n_passes = 0
        for row in range(first, last if decoder else first):
            sequences = whole_parts(batch_sizes[row], system.groups)
            tokens = whole_parts(sequences, plan.micro_batches)
            tokens *= whole_parts(input_lens[row], ranks)
            if n_passes == 0 or tokens != pass_tokens[n_passes - 1]:
                pass_tokens[n_passes] = tokens
                n_passes += 1
        pass_tokens = np.unique(pass_tokens[:n_passes])
        pass_sums = np.zeros((len(pass_tokens), n_segments, N_SUMS))
        pass_work = np.zeros((len(pass_tokens), 2))
        pass_known = np.zeros(len(pass_tokens), np.int64)
        group_sequences = -1.0
        prompt_len = -1.0
        head_phase = 0
        together = 1.0
        fill = 1.0
        turns = 1.0
        prefill = 0.0
        prompt_flops = 0.0
        prompt_bytes = 0.0
        for row in range(first, last):
            target = targets[row]
            batch_size = batch_sizes[row]
            input_len = input_lens[row]
            output_len = output_lens[row]
            errors[row] = row_error(system, plan, batch_size, input_len, output_len)
            if errors[row] != 0:
                for column in range(N_COLUMNS):
                    out[column, target] = math.nan
                continue
            n_sequences = whole_parts(batch_size, system.groups)
            if n_sequences != group_sequences:
                group_sequences = n_sequences
                prompt_len = -1.0
                known[:] = False
                together = n_sequences
                fill = 1.0
                turns = 1.0
                if plan.micro_batches > 1.0:
                    together = whole_parts(n_sequences, plan.micro_batches)
                    rounds = min(plan.micro_batches, n_sequences)
                    fill = (rounds + plan.stages - 1.0) / plan.stages
                    turns = max(1.0, rounds / plan.stages)
                set_variance(system, scatter, at, n_sequences, variance)
                if decoder:
                    decode_sums[:] = 0.0
                    decode_base_work[:] = 0.0
                    head_phase = 0
                    for wanted in (ON_TOKENS, ON_SEQUENCES, ON_BOTH):
                        add_operators(
                            wanted, system, joined, together, 1.0, 1.0, machine, seconds,
                            decode_sums, decode_base_work,
                        )  # fmt: skip
            repeated = n_sequences / together
            if not decoder:
                prefill, decode = encoder_row(
                    system, joined, n_sequences, together, input_len, output_len, machine, times,
                    prompt, decoded, row_work,
                )  # fmt: skip
                flops = row_work[0, 0] + row_work[1, 0] * (output_len - 1.0)
                moved = row_work[0, 1] + row_work[1, 1] * (output_len - 1.0)
                out[MEMORY, target] = memory_bytes(
                    system, joined.caches, plan, n_sequences, input_len, output_len
                )
                out[FITS, target] = out[MEMORY, target] <= system.capacity_bytes
                write_row(
                    system, machine, batch_size, n_sequences, input_len, output_len, prefill,
                    decode, prompt, decoded, both, variance, flops * repeated, moved * repeated,
                    out, target,
                )  # fmt: skip
                continue
            if input_len != prompt_len:
                prompt_len = input_len
                new_tokens = whole_parts(input_len, ranks)
                context = input_len
                if ranks > 1.0:
                    context = 0.5 * (input_len + new_tokens)
                # Passes of one token per sequence run other operators than those of many.
                phase = 2 if new_tokens == 1.0 else 1
                if head_phase != phase:
                    head_phase = phase
                    head_sums[:] = 0.0
                    head_work[:] = 0.0
                    add_operators(
                        ON_SEQUENCES, system, joined, together, new_tokens, new_tokens, machine,
                        seconds, head_sums, head_work,
                    )  # fmt: skip
                found = np.searchsorted(pass_tokens, together * new_tokens)
                if pass_known[found] != phase:
                    pass_known[found] = phase
                    pass_sums[found] = 0.0
                    pass_work[found] = 0.0
                    add_operators(
                        ON_TOKENS, system, joined, together, new_tokens, new_tokens, machine,
                        seconds, pass_sums[found], pass_work[found],
                    )  # fmt: skip
                for s in range(n_segments):
                    for column in range(N_ADDED):
                        sums[s, column] = pass_sums[found, s, column] + head_sums[s, column]
                    sums[s, RANKS] = max(pass_sums[found, s, RANKS], head_sums[s, RANKS])
                    if joined.segments[system.first_segment + s].is_layer == 1:
                        sums[s, HOST_S] += host.prefill_layer_s
                work[0] = pass_work[found, 0] + head_work[0]
                work[1] = pass_work[found, 1] + head_work[1]
                for wanted in (ON_BOTH, ON_CONTEXT):
                    add_operators(
                        wanted, system, joined, together, new_tokens, context, machine, seconds,
                        sums, work,
                    )  # fmt: skip
                start_s = host.slowness * host.prompt_token_s * together * new_tokens
                prefill = fill * joined_s(system, joined.segments, host, start_s, sums, step)
                prompt[:] = 0.0
                rest = prefill
                for kind in range(N_KINDS):
                    prompt[kind] = step[kind] * fill
                    rest -= prompt[kind]
                prompt[GROUP_PROMPT_HOST] = rest
                prompt_flops = work[0]
                prompt_bytes = work[1]
            decode = 0.0
            flops = prompt_flops
            moved = prompt_bytes
            if output_len > 1.0:
                decoded[:] = 0.0
                last_context = input_len + output_len - 1.0
                low = grid_below(input_len + 1.0)
                at_low = grid_index(low)
                while low <= last_context:
                    high = grid_above(low)
                    start = max(low, input_len + 1.0)
                    stop = min(high - 1.0, last_context)
                    steps = stop - start + 1.0
                    high_weight = steps * (0.5 * (start + stop) - low) / (high - low)
                    low_weight = steps - high_weight
                    for end in range(2):
                        weight = low_weight if end == 0 else high_weight
                        point = at_low + end
                        if weight <= 0.0 and end == 1:
                            continue
                        if not known[point]:
                            known[point] = True
                            sums[:] = decode_sums
                            context = max(1.0, (low if end == 0 else high) / ranks)
                            add_operators(
                                ON_CONTEXT, system, joined, together, 1.0, context, machine,
                                seconds, sums, no_work,
                            )  # fmt: skip
                            joined_s(system, joined.segments, host, 0.0, sums, grid[point])
                        for kind in range(N_KINDS):
                            decoded[kind] += weight * grid[point, kind]
                        decode += weight * grid[point, STEP_S]
                    low = high
                    at_low += 1
                decode *= turns
                rest = decode
                for kind in range(N_KINDS):
                    decoded[kind] *= turns
                    rest -= decoded[kind]
                decoded[GROUP_HOST] = rest
                work[:] = decode_base_work
                decode_work(
                    system, joined, together, input_len, output_len - 1.0, 0.0, ON_CONTEXT,
                    machine, work,
                )  # fmt: skip
                flops += work[0] * (output_len - 1.0)
                moved += work[1] * (output_len - 1.0)
            out[MEMORY, target] = memory_bytes(
                system, joined.caches, plan, n_sequences, input_len, output_len
            )
            out[FITS, target] = out[MEMORY, target] <= system.capacity_bytes
            write_row(
                system, machine, batch_size, n_sequences, input_len, output_len, prefill, decode,
                prompt, decoded, both, variance, flops * repeated, moved * repeated, out, target,
            )  # fmt: skip
