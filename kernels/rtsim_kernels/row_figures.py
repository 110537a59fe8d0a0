"""What bulk predictions say of a row beside its times: interval, memory, cost, energy, utilisation.

The formulas are those of `rtsim.predict`, `rtsim.profile` and `rtsim.memory`; property tests hold
that the numbers are.
"""

from __future__ import annotations

import math
from math import floor
from typing import Any

import numpy as np

from . import tables
from ._jit import inner
from .generation import N_GROUPS

DEVIATIONS_90 = 1.6449  # 90 % of a normal distribution lies within this many deviations
UNLIKE_DISTANCE = math.log(1.5)  # of a model unlike any that was fitted

# Why a row has no prediction.
ERROR_SIZES = 1
ERROR_POSITIONS = 2
ERROR_ENCODER = 3
MOST_SEQUENCES = 1e6
MOST_TOKENS = 1e8

# What is predicted of a row.
COLUMNS = (
    "ttft_s", "tpot_s", "e2e_latency_s", "output_throughput",
    "ttft_s_low", "ttft_s_high", "tpot_s_low", "tpot_s_high",
    "e2e_latency_s_low", "e2e_latency_s_high", "output_throughput_low", "output_throughput_high",
    "num_gpus", "memory_bytes", "capacity_bytes", "fits",
    "usd_per_request", "usd_per_million_output_tokens", "energy_j", "mfu", "mbu",
)  # fmt: skip
(
    TTFT, TPOT, E2E, THROUGHPUT, TTFT_LOW, TTFT_HIGH, TPOT_LOW, TPOT_HIGH, E2E_LOW, E2E_HIGH,
    THROUGHPUT_LOW, THROUGHPUT_HIGH, NUM_GPUS, MEMORY, CAPACITY, FITS, USD, USD_PER_MILLION, ENERGY,
    MFU, MBU,
) = range(len(COLUMNS))  # fmt: skip
N_COLUMNS = len(COLUMNS)

# Rows of the groups that a row's times are owed to, see `write_row`.
PROMPT, DECODED, VARIANCE = range(3)

# One system: its rows in the joined tables, and what cost, memory and interval need of it.
SYSTEM = np.dtype(
    [
        ("machine", np.int64),  # row of the arrays of machines
        ("first", np.int64),  # operators [first, last)
        ("last", np.int64),
        ("first_segment", np.int64),
        ("last_segment", np.int64),
        ("first_cache", np.int64),  # CACHE rows [first_cache, last_cache)
        ("last_cache", np.int64),
        ("first_class", np.int64),  # of its operators' classes, see `bulk_rows.Tables`
        ("memory_rate", np.float64),  # tells memory bandwidths apart in sums with classes
        ("groups", np.float64),  # of GPUs with sequences of their own
        ("rank_gpus", np.float64),  # tp * cp
        ("num_gpus", np.float64),
        ("peak_flops_per_s", np.float64),
        ("usd_per_hour", np.float64),  # NaN: not known
        ("power_w", np.float64),
        ("max_positions", np.float64),  # a hard limit; infinite without one
        ("unlike", np.float64),  # distance to the fitted models, in UNLIKE_DISTANCE
        ("log_least_batch", np.float64),  # of the fitted batches; NaN: none
        ("log_most_batch", np.float64),
        ("sigma_row", np.float64),
        ("weights_bytes", np.float64),
        ("reserved_bytes", np.float64),
        ("capacity_bytes", np.float64),
        ("layer_elements", np.float64),  # activations per token
        ("score_elements", np.float64),  # per token and prompt token
        ("element_bytes", np.float64),
        ("head_bytes", np.float64),  # per row of logits; 0: no head
        ("all_logits", np.float64),
        # Variances of ln(error) by group: of fitted models; by how much those of models left out
        # are larger; further variance on another GPU.
        ("seen", np.float64, (N_GROUPS,)),
        ("beyond", np.float64, (N_GROUPS,)),
        ("transfer", np.float64, (N_GROUPS,)),
    ]
)
# A layer group's cache per sequence: per_entry (min(n, window) + rate n) + fixed, of n tokens
# of the context or of an encoder's source.
CACHE = np.dtype(
    [
        ("per_entry", np.float64),
        ("window", np.float64),
        ("rate", np.float64),
        ("fixed", np.float64),
        ("of_source", np.float64),
    ]
)


@inner
def whole_parts(size: float, parts: float) -> float:
    """The largest of `parts` parts of `size` whole things."""
    return float(math.ceil(size / parts))


@inner
def half_width(total_s: float, spread: float, row_variance: float) -> float:
    """Half-width of the 90 % interval in ln(seconds), as `rtsim.profile.interval_half_width`.

    spread: sum over groups of (seconds owed to it)^2 variance.
    """
    return DEVIATIONS_90 * math.sqrt(spread / (total_s * total_s) + row_variance)


@inner
def memory_bytes(system: Any, caches: Any, plan: Any, n_sequences: float, input_len: float,
                 output_len: float) -> float:  # fmt: skip
    """Memory of the fullest GPU of a system, as `rtsim.memory.Placement.use`."""
    context = input_len + output_len - 1.0
    source = 0.0
    if plan.model_kind == tables.ENCODER_DECODER:
        context = output_len
        source = input_len
    cached = 0.0
    for i in range(system.first_cache, system.last_cache):
        cache = caches[i]
        n = source if cache.of_source > 0.0 else context
        cached += cache.per_entry * (min(n, cache.window) + cache.rate * n) + cache.fixed
    tokens = whole_parts(n_sequences, plan.micro_batches)
    tokens *= whole_parts(input_len, plan.prompt_ranks)
    elements = system.layer_elements + system.score_elements * input_len
    in_head = (tokens if system.all_logits > 0.0 else n_sequences) * system.head_bytes
    activations = max(tokens * system.element_bytes * elements, in_head)
    return system.weights_bytes + cached * n_sequences + activations + system.reserved_bytes


@inner
def write_row(
    system: Any, machine: Any, batch_size: float, n_sequences: float, input_len: float,
    output_len: float, prefill: float, decode: float, groups: Any, flops: float, moved: float,
    out: Any, row: int,
) -> None:  # fmt: skip
    """Everything of a row but its memory, from its two times.

    groups: (3, N_GROUPS): seconds owed to each group in the prompt pass (PROMPT) and in all decode
    steps (DECODED), and its variance (VARIANCE). One array, since each is counted in and out.
    """
    total = prefill + decode
    tokens = batch_size * output_len
    gpu_seconds = total * system.num_gpus
    row_variance = system.sigma_row * system.sigma_row
    prompt_s = 0.0
    decoded_s = 0.0
    prompt_spread = 0.0
    decoded_spread = 0.0
    both_spread = 0.0
    for group in range(N_GROUPS):
        prompt = groups[PROMPT, group]
        decoded = groups[DECODED, group]
        variance = groups[VARIANCE, group]
        prompt_s += prompt
        decoded_s += decoded
        prompt_spread += prompt * prompt * variance
        decoded_spread += decoded * decoded * variance
        both_spread += (prompt + decoded) * (prompt + decoded) * variance
    factor = math.exp(half_width(prompt_s, prompt_spread, row_variance))
    out[TTFT, row] = prefill
    out[TTFT_LOW, row] = prefill / factor
    out[TTFT_HIGH, row] = prefill * factor
    if output_len > 1.0:
        tpot = decode / (output_len - 1.0)
        factor = math.exp(half_width(decoded_s, decoded_spread, row_variance))
        out[TPOT, row] = tpot
        out[TPOT_LOW, row] = tpot / factor
        out[TPOT_HIGH, row] = tpot * factor
        factor = math.exp(half_width(prompt_s + decoded_s, both_spread, row_variance))
    else:
        out[TPOT, row] = math.nan
        out[TPOT_LOW, row] = math.nan
        out[TPOT_HIGH, row] = math.nan
    out[E2E, row] = total
    out[E2E_LOW, row] = total / factor
    out[E2E_HIGH, row] = total * factor
    out[THROUGHPUT, row] = tokens / total
    out[THROUGHPUT_LOW, row] = tokens / (total * factor)
    out[THROUGHPUT_HIGH, row] = tokens / (total / factor)
    out[NUM_GPUS, row] = system.num_gpus
    out[CAPACITY, row] = system.capacity_bytes
    usd = gpu_seconds / 3600.0 * system.usd_per_hour
    out[USD, row] = usd / batch_size
    out[USD_PER_MILLION, row] = usd / tokens * 1e6
    out[ENERGY, row] = gpu_seconds * system.power_w
    busy = system.rank_gpus * batch_size / n_sequences
    out[MFU, row] = busy * flops / (gpu_seconds * system.peak_flops_per_s)
    busy = system.rank_gpus * min(system.groups, batch_size)
    out[MBU, row] = busy * moved / (gpu_seconds * machine.device.hbm_bytes_per_s)


@inner
def row_error(system: Any, plan: Any, batch: float, input_len: float, output_len: float) -> int:
    """0, or why these sizes have no prediction (an ERROR_* code)."""
    whole = batch == floor(batch) and input_len == floor(input_len)
    whole = whole and output_len == floor(output_len)
    if not (
        whole
        and 1.0 <= batch <= MOST_SEQUENCES
        and 1.0 <= input_len <= MOST_TOKENS
        and 1.0 <= output_len <= MOST_TOKENS
    ):
        return ERROR_SIZES
    if plan.model_kind == tables.ENCODER and output_len > 1.0:
        return ERROR_ENCODER
    held = input_len + output_len - 1.0
    if plan.model_kind == tables.ENCODER_DECODER:  # the output has positions of its own
        held = input_len
    if held > system.max_positions:
        return ERROR_POSITIONS
    return 0


@inner
def set_variance(system: Any, n_sequences: float, groups: Any) -> None:
    """Write the variance of ln(error) by group at a batch, as `rtsim.predict.System` has it."""
    beyond = 0.0
    if system.log_most_batch == system.log_most_batch:
        log_batch = math.log(n_sequences)
        beyond = max(log_batch - system.log_most_batch, system.log_least_batch - log_batch)
        beyond = max(0.0, beyond) / UNLIKE_DISTANCE
    unlike = min(1.0, max(system.unlike, beyond))
    for group in range(N_GROUPS):
        seen = system.seen[group] + unlike * system.beyond[group]
        groups[VARIANCE, group] = seen * max(1.0, beyond) + system.transfer[group]
