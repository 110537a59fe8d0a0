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

Steps are kept as sums, `bulk_steps.py`. Models with an encoder: `bulk_encoders.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import tables
from ._jit import inner, jit
from .bulk_passes import number_passes, place_of, table_size
from .bulk_rows import (
    HOST_S,
    N_ADDED,
    N_STEP,
    N_SUMS,
    ON_BOTH,
    ON_CONTEXT,
    ON_SEQUENCES,
    ON_TOKENS,
    RANKS,
    STEP_S,
    Tables,
)  # fmt: skip
from .bulk_steps import GRID_POINTS, add_operators, decode_work, grid_index, joined_s
from .generation import GROUP_HOST, GROUP_PROMPT_HOST, N_GROUPS, grid_above, grid_below
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
from .tables import N_KINDS

__all__ = ["Tables", "predict_rows"]


@inner
def copy_sums(source: Any, target: Any) -> None:
    """Copy (segments, N_SUMS); Numba compiles a slice assignment for long."""
    for s in range(len(source)):
        for column in range(N_SUMS):
            target[s, column] = source[s, column]


@inner
def clear(rows: Any) -> None:
    """Set (rows, columns) to 0; as above."""
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            rows[row, column] = 0.0


@jit
def predict_rows(
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
    """Predict rows that are sorted by system, batch, prompt.

    systems: SYSTEM rows (systems,). machines: `step.MACHINE` rows. first_rows: (systems + 1,), the
    rows of each. Sizes: float arrays (rows,). Writes columns `targets`, (rows,), of `out`,
    (N_COLUMNS, ...), and `errors`, (rows,) ERROR_* codes. Rows of systems without a machine, and of
    models with an encoder (`bulk_encoders`), are left alone.
    """
    most_segments = 0
    for s in range(len(systems)):
        n_segments = systems[s].last_segment - systems[s].first_segment
        if n_segments > most_segments:  # noqa: PLR1730 (max of whole numbers: not compiled yet)
            most_segments = n_segments
    # All of one type, (rows, columns): Numba compiles what makes, clears and slices it once.
    seconds = np.zeros((1, len(joined.operators)))[0]
    decode_sums = np.zeros((most_segments, N_SUMS))
    head_sums = np.zeros((most_segments, N_SUMS))
    sums = np.zeros((most_segments, N_SUMS))
    base_works = np.zeros((2, 2))
    decode_base_work = base_works[0]
    head_work = base_works[1]
    work = np.zeros((1, 2))[0]
    no_work = work[:0]
    grid = np.zeros((GRID_POINTS + 1, N_STEP))
    step = grid[GRID_POINTS]
    all_known = np.zeros((1, GRID_POINTS))
    known = all_known[0]
    groups = np.zeros((3, N_GROUPS))
    passes = np.zeros((table_size(len(batch_sizes)), 2))
    for at in range(len(systems)):
        system = systems[at]
        if system.machine < 0:
            continue  # cannot be: its rows stay as they are
        first = first_rows[at]
        last = first_rows[at + 1]
        machine = machines[system.machine]
        plan = machine.plan
        host = machine.host
        ranks = plan.prompt_ranks
        if plan.model_kind != tables.DECODER:
            continue
        n_segments = system.last_segment - system.first_segment
        # Prompt passes of as many tokens share their sums, which are made when first asked for.
        n_places = table_size(last - first)
        n_passes = number_passes(
            system, plan, first, last, batch_sizes, input_lens, passes[:n_places]
        )
        pass_sums = np.zeros((n_passes * n_segments, N_SUMS))
        pass_work = np.zeros((n_passes, 2))
        pass_known = np.zeros((n_passes, 1))
        any_on_both = False
        for i in range(system.first, system.last):
            any_on_both = any_on_both or joined.dependence[i] == ON_BOTH
        group_sequences = -1.0
        prompt_len = -1.0
        head_phase = 0.0
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
                clear(all_known)
                together = n_sequences
                fill = 1.0
                turns = 1.0
                if plan.micro_batches > 1.0:
                    together = whole_parts(n_sequences, plan.micro_batches)
                    rounds = min(plan.micro_batches, n_sequences)
                    fill = (rounds + plan.stages - 1.0) / plan.stages
                    turns = max(1.0, rounds / plan.stages)
                set_variance(system, n_sequences, groups)
                clear(decode_sums)
                clear(base_works[:1])
                head_phase = 0.0
                for wanted in (ON_TOKENS, ON_SEQUENCES, ON_BOTH):
                    add_operators(
                        wanted, system, joined, together, 1.0, 1.0, machine, seconds, decode_sums,
                        decode_base_work,
                    )  # fmt: skip
            repeated = n_sequences / together
            if input_len != prompt_len:
                prompt_len = input_len
                new_tokens = whole_parts(input_len, ranks)
                context = input_len
                if ranks > 1.0:
                    context = 0.5 * (input_len + new_tokens)
                # Passes of one token per sequence run other operators than those of many.
                phase = 2.0 if new_tokens == 1.0 else 1.0
                if head_phase != phase:
                    head_phase = phase
                    clear(head_sums)
                    clear(base_works[1:])
                    add_operators(
                        ON_SEQUENCES, system, joined, together, new_tokens, new_tokens, machine,
                        seconds, head_sums, head_work,
                    )  # fmt: skip
                tokens = together * new_tokens
                found = int(passes[place_of(tokens, passes[:n_places]), 1])
                own_sums = pass_sums[found * n_segments : (found + 1) * n_segments]
                if pass_known[found, 0] != phase:
                    pass_known[found, 0] = phase
                    clear(own_sums)
                    clear(pass_work[found : found + 1])
                    add_operators(
                        ON_TOKENS, system, joined, together, new_tokens, new_tokens, machine,
                        seconds, own_sums, pass_work[found],
                    )  # fmt: skip
                for s in range(n_segments):
                    for column in range(N_ADDED):
                        sums[s, column] = own_sums[s, column] + head_sums[s, column]
                    sums[s, RANKS] = max(own_sums[s, RANKS], head_sums[s, RANKS])
                    if joined.segments[system.first_segment + s].is_layer == 1:
                        sums[s, HOST_S] += host.prefill_layer_s
                work[0] = pass_work[found, 0] + head_work[0]
                work[1] = pass_work[found, 1] + head_work[1]
                for wanted in (ON_BOTH, ON_CONTEXT):
                    if wanted == ON_CONTEXT or any_on_both:
                        add_operators(
                            wanted, system, joined, together, new_tokens, context, machine,
                            seconds, sums, work,
                        )  # fmt: skip
                start_s = host.slowness * host.prompt_token_s * together * new_tokens
                prefill = fill * joined_s(system, joined.segments, host, start_s, sums, step)
                for group in range(N_GROUPS):
                    groups[PROMPT, group] = 0.0
                rest = prefill
                for kind in range(N_KINDS):
                    groups[PROMPT, kind] = step[kind] * fill
                    rest -= groups[PROMPT, kind]
                groups[PROMPT, GROUP_PROMPT_HOST] = rest
                prompt_flops = work[0]
                prompt_bytes = work[1]
            decode = 0.0
            flops = prompt_flops
            moved = prompt_bytes
            if output_len > 1.0:
                for group in range(N_GROUPS):
                    groups[DECODED, group] = 0.0
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
                        if known[point] == 0.0:
                            known[point] = 1.0
                            copy_sums(decode_sums, sums)
                            context = max(1.0, (low if end == 0 else high) / ranks)
                            add_operators(
                                ON_CONTEXT, system, joined, together, 1.0, context, machine,
                                seconds, sums, no_work,
                            )  # fmt: skip
                            joined_s(system, joined.segments, host, 0.0, sums, grid[point])
                        for kind in range(N_KINDS):
                            groups[DECODED, kind] += weight * grid[point, kind]
                        decode += weight * grid[point, STEP_S]
                    low = high
                    at_low += 1
                decode *= turns
                rest = decode
                for kind in range(N_KINDS):
                    groups[DECODED, kind] *= turns
                    rest -= groups[DECODED, kind]
                groups[DECODED, GROUP_HOST] = rest
                work[0] = decode_base_work[0]
                work[1] = decode_base_work[1]
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
                groups, flops * repeated, moved * repeated, out, target,
            )  # fmt: skip
