"""Serving in its steady state for many rows: an engine of each system, loads as arrays.

The numbers are those of `rtsim.serve`. Rows of a system are one compiled call
(`rtsim_kernels.steady.steady_states`); rates, cost and energy follow as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import bulk_pools
from rtsim.errors import SpecError
from rtsim.served import LOAD, Served, Sizes, served
from rtsim.served import SIZES as OF_LOAD
from rtsim.serving.steady import interval_factor
from rtsim.system_rows import Base, Systems

Array = NDArray[Any]

SIZES = (*OF_LOAD, *bulk_pools.NAMES)
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
    groups = one.engine.system.parallelism.sequence_groups
    found = one.steady(loads, machine)
    most = loads[:, LOAD["most_running"]]
    limited = loads[:, LOAD["in_flight"]] > most
    found |= {
        "request_throughput": found["running"] * groups / found["cycle_s"],
        "running": found["running"] * groups, "decoding": found["decoding"] * groups,
        "largest_running": most * groups,
        "limit": np.where(limited, np.where(most >= sizes["max_sequences"], 2.0, 1.0), 0.0),
        "groups": np.full(len(loads), float(groups)), "capacity": capacity,
        "num_gpus": np.full(len(loads), float(one.engine.system.parallelism.num_gpus)),
    }  # fmt: skip
    return matrix_of(one, sizes, found)


def matrix_of(one: Served, sizes: Sizes, found: Mapping[str, Array]) -> Array:
    """(metrics, rows) of METRICS.

    found: (rows,) of the times, rates and counts that METRICS take as they are, of the whole
    system, with the `groups` that decode and the `capacity` of one's cache in bytes.
    """
    made, outputs = one.engine.system, sizes["output_len"]
    decoded_s = np.where(np.isnan(found["tpot_s"]), 0.0, found["tpot_s"]) * (outputs - 1.0)
    e2e_s = found["ttft_s"] + decoded_s
    rate, num_gpus, capacity = (
        found[name] for name in ("request_throughput", "num_gpus", "capacity")
    )
    each_held = one.sequence_bytes(sizes["input_len"] + 0.5 * outputs)
    held = found["running"] / found["groups"] * each_held
    allowed = sizes["memory_frac"] * float(made.gpu.memory_bytes)
    first, each = (interval_factor(made, name) for name in ("ttft", "tpot"))
    ends = {
        "low": found["ttft_s"] / first + decoded_s / each,
        "high": found["ttft_s"] * first + decoded_s * each,
    }
    price, power = made.gpu.price, made.gpu.power_w
    usd_per_s = num_gpus * (math.nan if price is None else price.usd_per_hour) / 3600.0
    joules_per_s = num_gpus * (math.nan if power is None else power)
    columns = {
        **{name: found[name] for name in METRICS if name in found},
        "e2e_latency_s": e2e_s,
        "output_throughput": rate * outputs,
        "gpu_throughput": rate * outputs / num_gpus,
        "ttft_s_low": found["ttft_s"] / first, "ttft_s_high": found["ttft_s"] * first,
        "tpot_s_low": found["tpot_s"] / each, "tpot_s_high": found["tpot_s"] * each,
        "e2e_latency_s_low": ends["low"], "e2e_latency_s_high": ends["high"],
        "output_throughput_low": rate * outputs * (e2e_s / ends["high"]),
        "output_throughput_high": rate * outputs * (e2e_s / ends["low"]),
        "cache_frac": np.minimum(1.0, held / capacity),
        "memory_bytes": allowed - capacity + held,
        "capacity_bytes": allowed, "fits": 1.0,
        "usd_per_request": usd_per_s / rate,
        "usd_per_million_output_tokens": usd_per_s / (rate * outputs) * 1e6,
        "energy_j": joules_per_s / rate,
    }  # fmt: skip
    matrix = np.empty((len(METRICS), len(outputs)))
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
            system = tuple(codes[i].tolist())
            found, own_codes, own_texts = answered(base, packed.machines[i], own, systems, system)
        values[:, targets[rows]] = found
        places = np.array([texts.setdefault(text, len(texts)) for text in own_texts])
        row_codes[rows] = places[own_codes]
    return row_codes, list(texts)


class Answers:
    """What rows of one system get: (metrics, rows), and for each its error's place in `texts`."""

    def __init__(self, n_rows: int) -> None:
        self.matrix = np.full((len(METRICS), n_rows), np.nan)
        self.codes = np.zeros(n_rows, np.int64)
        self.texts = [""]

    def refuse(self, rows: Array, codes: Array, texts: list[str]) -> Array:
        """Errors of rows (indices), codes 0 for none; the positions in `rows` without one."""
        wrong = codes > 0
        self.codes[rows[wrong]] = codes[wrong] + len(self.texts) - 1
        self.texts += texts[1:]
        return np.flatnonzero(~wrong)


def answered(
    base: Base, machine: Any, sizes: Sizes, systems: Systems, codes: tuple[int, ...]
) -> tuple[Array, Array, list[str]]:
    """Rows of one system: (metrics, rows), (rows,) index of each error in texts, and the texts.

    machine: the system's MACHINE row. codes: of the system in `systems`. The first text is "".
    """
    n_rows = len(sizes["concurrency"])
    answers = Answers(n_rows)
    try:
        one = served(base)
        filled = one.filled(sizes)
        rows = answers.refuse(np.arange(n_rows), *one.load_errors(filled))
        pools = bulk_pools.are_asked(sizes)[rows]
        together, apart = rows[~pools], rows[pools]
        if len(together):
            own = _rows_of(filled, together)
            capacity, loads, own_codes, texts = one.fitted(own)
            good = answers.refuse(together, own_codes, texts)
            if len(good):
                answers.matrix[:, together[good]] = metrics_of(
                    one, _rows_of(own, good), loads[good], capacity[good], machine
                )
        if len(apart):
            _answer_pools(answers, apart, filled, systems, codes)
    except SpecError as error:
        answers.refuse(np.arange(n_rows), np.ones(n_rows, np.int64), ["", str(error)])
    return answers.matrix, answers.codes, answers.texts


def _rows_of(sizes: Sizes, rows: Array) -> dict[str, Array]:
    return {name: size[rows] for name, size in sizes.items()}


def _answer_pools(
    answers: Answers, rows: Array, sizes: Sizes, systems: Systems, codes: tuple[int, ...]
) -> None:
    """Rows (indices) with pools of their own for prompts and decoding."""
    keys = np.stack([sizes[name][rows] for name in bulk_pools.NAMES])
    bits, which = np.unique(keys.view(np.int64), axis=1, return_inverse=True)  # NaN as any other
    which = which.reshape(-1)
    for j, numbers in enumerate(bits.view(np.float64).T.tolist()):
        of_these = rows[which == j]
        asked = dict(zip(bulk_pools.NAMES, numbers, strict=True))
        error = bulk_pools.error_of(asked)
        tp = asked["prefill_tp"]
        own = first = None
        if not error:
            own, error = systems.base(codes)
        if not error:
            first, error = systems.base(codes, None if math.isnan(tp) else int(tp))
        if own is None or first is None:
            answers.refuse(of_these, np.ones(len(of_these), np.int64), ["", error])
            continue
        one = served(own)
        own_sizes = _rows_of(sizes, of_these)
        found, own_codes, texts = bulk_pools.found_of(one, served(first), own_sizes)
        good = answers.refuse(of_these, own_codes, texts)
        answers.matrix[:, of_these[good]] = matrix_of(one, own_sizes, found)[:, good]
