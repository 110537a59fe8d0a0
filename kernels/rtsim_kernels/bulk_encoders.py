"""Bulk predictions of models with an encoder: row by row, as `generation.generation_s` times them.

A kernel of its own, so that sweeps of decoders do not wait for it to compile.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import tables
from ._jit import inner, jit
from .bulk_steps import mean_window
from .generation import GROUP_HOST, GROUP_PROMPT_HOST, N_GROUPS, generation_s, owed
from .row_figures import (
    DECODED,
    FITS,
    MEMORY,
    N_COLUMNS,
    PROMPT,
    memory_bytes,
    row_error,
    set_variance,
    whole_parts,
    write_row,
)  # fmt: skip
from .step import operator_work, runs


@inner
def encoder_row(
    system: Any, joined: Any, n_sequences: float, together: float, input_len: float,
    output_len: float, machine: Any, times: Any, groups: Any, work: Any,
) -> tuple[float, float]:  # fmt: skip
    """A row of a model with an encoder: (prefill, decode) seconds as `generation_s`.

    Writes what they are owed to (groups, see `row_figures.write_row`) and the work: (prompt, decode
    step) x (FLOPs, bytes).
    """
    operators = joined.operators[system.first : system.last]
    segments = joined.segments[system.first_segment : system.last_segment]
    executions = joined.executions[system.first : system.last]
    n = system.last - system.first
    prefill, decode = generation_s(
        n_sequences, input_len, output_len, operators, segments, machine, times[0, :n],
        times[1, :n], times[2, :n],
    )  # fmt: skip
    prompt_host_s = owed(prefill, times[0, :n], operators, executions, groups[PROMPT])
    groups[PROMPT, GROUP_PROMPT_HOST] += prompt_host_s
    host_s = owed(decode, times[1, :n], operators, executions, groups[DECODED])
    groups[DECODED, GROUP_HOST] += host_s
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
def predict_encoder_rows(
    systems: Any,
    machines: Any,
    joined: Any,
    first_rows: Any,
    batch_sizes: Any,
    input_lens: Any,
    output_lens: Any,
    targets: Any,
    out: Any,
    errors: Any,
) -> None:
    """`bulk.predict_rows` for the systems of models with an encoder; leaves the others alone."""
    times = np.zeros((3, len(joined.operators), 2))
    work = np.zeros((2, 2))
    groups = np.zeros((3, N_GROUPS))
    for at in range(len(systems)):
        system = systems[at]
        if system.machine < 0:
            continue
        machine = machines[system.machine]
        plan = machine.plan
        if plan.model_kind == tables.DECODER:
            continue
        for row in range(first_rows[at], first_rows[at + 1]):
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
            together = whole_parts(n_sequences, plan.micro_batches)
            set_variance(system, n_sequences, groups)
            prefill, decode = encoder_row(
                system, joined, n_sequences, together, input_len, output_len, machine, times,
                groups, work,
            )  # fmt: skip
            repeated = n_sequences / together
            flops = work[0, 0] + work[1, 0] * (output_len - 1.0)
            moved = work[0, 1] + work[1, 1] * (output_len - 1.0)
            out[MEMORY, target] = memory_bytes(
                system, joined.caches, plan, n_sequences, input_len, output_len
            )
            out[FITS, target] = out[MEMORY, target] <= system.capacity_bytes
            write_row(
                system, machine, batch_size, n_sequences, input_len, output_len, prefill, decode,
                groups, flops * repeated, moved * repeated, out, target,
            )  # fmt: skip
