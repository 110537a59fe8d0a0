"""Serving in its steady state for many rows: an engine of each system, loads as arrays.

The numbers are those of `rtsim.serve`. Rows of a system are one compiled call
(`rtsim_kernels.steady.steady_states`); rates, cost and energy follow as arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import SpecError
from rtsim.served import LOAD, SIZES, Served, Sizes, served
from rtsim.serving.steady import interval_factor
from rtsim.system_rows import Base, Systems

Array = NDArray[Any]

LIMITS = ("concurrency", "cache", "max_sequences")  # what keeps more from running, by code
METRICS = (
    "ttft_s", "ttft_alone_s", "tpot_s", "e2e_latency_s", "decode_step_s", "itl_mixed_s",
    "request_throughput", "output_throughput", "gpu_throughput",
    "ttft_s_low", "ttft_s_high", "tpot_s_low", "tpot_s_high",
    "e2e_latency_s_low", "e2e_latency_s_high", "output_throughput_low", "output_throughput_high",
    "running", "decoding", "largest_running", "limit", "prompt_frac", "cache_frac",
    "num_gpus", "memory_bytes", "capacity_bytes", "fits",
    "usd_per_request", "usd_per_million_output_tokens", "energy_j",
)  # fmt: skip


def metrics_of(one: Served, sizes: Sizes, loads: Array, capacity: Array, machine: Any) -> Array:
    """(metrics, rows) of METRICS. sizes: filled; loads, capacity: of `Served.fitted`."""
    s, made = sizes, one.engine.system
    groups = made.parallelism.sequence_groups
    num_gpus = made.parallelism.num_gpus
    found = one.steady(loads, machine)
    outputs, most = s["output_len"], loads[:, LOAD["most_running"]]
    decoded_s = np.where(np.isnan(found["tpot_s"]), 0.0, found["tpot_s"]) * (outputs - 1.0)
    e2e_s = found["ttft_s"] + decoded_s
    rate = found["running"] * groups / found["cycle_s"]
    limited = loads[:, LOAD["in_flight"]] > most
    running = found["running"] * groups
    held = found["running"] * one.sequence_bytes(s["input_len"] + 0.5 * outputs)
    allowed = s["memory_frac"] * float(made.gpu.memory_bytes)
    first, each = (interval_factor(made, name) for name in ("ttft", "tpot"))
    ends = {
        "low": found["ttft_s"] / first + decoded_s / each,
        "high": found["ttft_s"] * first + decoded_s * each,
    }
    price, power = made.gpu.price, made.gpu.power_w
    usd_per_s = math.nan if price is None else num_gpus * price.usd_per_hour / 3600.0
    joules_per_s = math.nan if power is None else num_gpus * power
    columns = {
        **{name: found[name] for name in ("ttft_s", "ttft_alone_s", "tpot_s")},
        **{name: found[name] for name in ("decode_step_s", "itl_mixed_s", "prompt_frac")},
        "e2e_latency_s": e2e_s,
        "request_throughput": rate,
        "output_throughput": rate * outputs,
        "gpu_throughput": rate * outputs / num_gpus,
        "ttft_s_low": found["ttft_s"] / first, "ttft_s_high": found["ttft_s"] * first,
        "tpot_s_low": found["tpot_s"] / each, "tpot_s_high": found["tpot_s"] * each,
        "e2e_latency_s_low": ends["low"], "e2e_latency_s_high": ends["high"],
        "output_throughput_low": rate * outputs * (e2e_s / ends["high"]),
        "output_throughput_high": rate * outputs * (e2e_s / ends["low"]),
        "running": running, "decoding": found["decoding"] * groups,
        "largest_running": most * groups,
        "limit": np.where(limited, np.where(most >= s["max_sequences"], 2.0, 1.0), 0.0),
        "cache_frac": np.minimum(1.0, held / capacity),
        "num_gpus": float(num_gpus), "memory_bytes": allowed - capacity + held,
        "capacity_bytes": allowed, "fits": 1.0,
        "usd_per_request": usd_per_s / rate,
        "usd_per_million_output_tokens": usd_per_s / (rate * outputs) * 1e6,
        "energy_j": joules_per_s / rate,
    }  # fmt: skip
    matrix = np.empty((len(METRICS), len(loads)))
    for row, name in zip(matrix, METRICS, strict=True):
        row[:] = columns[name]
    return matrix


def evaluate(
    systems: Systems, codes: Array, first_rows: Array, sizes: tuple[Array, ...], values: Array,
    targets: Array,
) -> tuple[Array, list[str]]:  # fmt: skip
    """As `bulk_generations.evaluate`, of `SIZES` and `METRICS`; rows are sorted by system alone."""
    packed = systems.pack(codes)
    texts = {"": 0}
    row_codes = np.zeros(len(targets), np.int64)
    for i, base in enumerate(packed.bases):
        rows: Any = slice(first_rows[i], first_rows[i + 1])
        if rows.start == rows.stop:
            continue
        if base is None:
            found = np.full((len(METRICS), rows.stop - rows.start), np.nan)
            own_codes, own_texts = np.zeros(found.shape[1], np.int64), [packed.errors[i]]
        else:
            own = {name: size[rows] for name, size in zip(SIZES, sizes, strict=True)}
            found, own_codes, own_texts = answered(base, packed.machines[i], own)
        values[:, targets[rows]] = found
        places = np.array([texts.setdefault(text, len(texts)) for text in own_texts])
        row_codes[rows] = places[own_codes]
    return row_codes, list(texts)


def answered(base: Base, machine: Any, sizes: Sizes) -> tuple[Array, Array, list[str]]:
    """Rows of one system: (metrics, rows), (rows,) index of each error in texts, and the texts.

    machine: the system's MACHINE row. The first text is "".
    """
    n_rows = len(sizes["concurrency"])
    matrix = np.full((len(METRICS), n_rows), np.nan)
    try:
        one = served(base)
    except SpecError as error:
        return matrix, np.ones(n_rows, np.int64), ["", str(error)]
    filled = one.filled(sizes)
    codes, texts = one.load_errors(filled)
    good = codes == 0
    if good.any():
        fit = {name: size[good] for name, size in filled.items()}
        capacity, loads, own_codes, own_texts = one.fitted(fit)
        codes[good] = np.where(own_codes > 0, own_codes + len(texts) - 1, 0)
        texts += own_texts[1:]
        there = own_codes == 0
        if there.any():
            kept = {name: size[there] for name, size in fit.items()}
            matrix[:, np.flatnonzero(good)[there]] = metrics_of(
                one, kept, loads[there], capacity[there], machine
            )
    return matrix, codes, texts
