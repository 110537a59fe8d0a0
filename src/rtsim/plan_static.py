"""Candidates that work off static batches: replicas at every batch, each predicted.

A replica at batch b works off batches of b requests of like lengths, one after the other, so it
carries

    requests/s = b / sum over buckets of share x e2e(b, bucket)

Idealized: no queueing (requests find a batch ready to start), no gain from continuous batching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.bulk import predict_many
from rtsim.errors import SpecError
from rtsim.lengths import Lengths
from rtsim.plan_candidates import ROUNDING, Candidates, Demand, replicas_for
from rtsim.plan_space import DEGREES, FORMATS, Replica

Array = NDArray[Any]

MOST_PREDICTIONS = 50_000_000  # about a minute
_BLOCK_ROWS = 1 << 18
_COLUMNS = (
    "ttft_s", "ttft_s_high", "tpot_s", "tpot_s_high", "e2e_latency_s", "e2e_latency_s_low",
    "e2e_latency_s_high", "energy_j", "memory_bytes", "capacity_bytes", "replica_gpus",
)  # fmt: skip


def static_candidates(
    model: Any, gpus: Sequence[Any], prices: Array, replicas: Sequence[Replica], batches: Array,
    requests: Lengths, share: float, demand: Demand, threads: int | None,
) -> Candidates:  # fmt: skip
    """Every replica at every batch. prices: (gpus,) USD per GPU hour, NaN = not known."""
    n_rows = len(replicas) * len(batches) * (len(requests.share) + 2)
    if n_rows > MOST_PREDICTIONS:
        raise SpecError(
            "batch_size", f"{len(batches)} values",
            f"make {n_rows:,} predictions with all else, at most {MOST_PREDICTIONS:,} are made",
        )  # fmt: skip
    c, errors = _evaluated(model, gpus, replicas, batches, requests, share, threads)
    found = Candidates(replicas, np.repeat(np.arange(len(replicas)), len(batches)), c, errors)
    c["batch_size"] = np.tile(batches, len(replicas))
    with np.errstate(invalid="ignore"):
        capacity = c["batch_size"] / c["e2e_latency_s"]
    usd_per_hour = c["replica_gpus"] * prices[found.gpu]
    c["dp"] = replicas_for(demand, capacity, c["replica_gpus"], usd_per_hour)
    c["num_gpus"] = c["dp"] * c["replica_gpus"]
    c["requests_per_s"] = c["dp"] * capacity
    c["usd_per_hour"] = c["dp"] * usd_per_hour
    c["energy_j_per_request"] = c["energy_j"] / c["batch_size"]
    return found


def _evaluated(
    model: Any, gpus: Sequence[Any], systems: Sequence[Replica], batches: Array,
    requests: Lengths, share: float, threads: int | None,
) -> tuple[dict[str, Array], Array]:  # fmt: skip
    """(_COLUMNS by name, (candidates,) "" or why there is no prediction), systems slowest."""
    at_share = requests.at_share(share)
    prompts, outputs, weights = requests.input_len, requests.output_len, requests.share
    if at_share is not None:  # two more rows, at the end and without weight
        prompts, outputs = (
            np.append(a, b) for a, b in zip((prompts, outputs), at_share, strict=True)
        )
        weights = np.append(weights, [0.0, 0.0])
    n_batches, n_lengths = len(batches), len(prompts)
    columns = {name: np.full(len(systems) * n_batches, np.nan) for name in _COLUMNS}
    columns["fits"] = np.zeros(len(systems) * n_batches, np.bool_)
    errors = np.full(len(systems) * n_batches, "", object)
    per_block = max(1, _BLOCK_ROWS // (n_batches * n_lengths))
    for first in range(0, len(systems), per_block):
        own = systems[first : first + per_block]
        repeats = n_batches * n_lengths
        table: dict[str, Any] = {
            "model": model,
            "gpu": _objects([gpus[one.gpu] for one in own], repeats),
            "batch_size": np.tile(np.repeat(batches, n_lengths), len(own)),
            "input_len": np.tile(prompts, len(own) * n_batches),
            "output_len": np.tile(outputs, len(own) * n_batches),
        }
        for i, name in enumerate(DEGREES):
            table[name] = np.repeat(np.array([one.degrees[i] for one in own]), repeats)
        for i, name in enumerate(FORMATS):
            table[name] = _objects([one.formats[i] for one in own], repeats)
        predicted = predict_many(table, threads=threads)
        rows = slice(first * n_batches, (first + len(own)) * n_batches)
        by_bucket = {
            name: column.reshape(len(own) * n_batches, n_lengths)
            for name, column in predicted.items()
        }
        _reduce(
            by_bucket,
            {n: c[rows] for n, c in columns.items()},
            weights,
            share if at_share is None else None,
        )
        wrong = by_bucket["error"] != ""
        bad = wrong.any(axis=1)
        errors[rows][bad] = by_bucket["error"][bad, wrong[bad].argmax(axis=1)]
    return columns, errors


def _objects(values: Sequence[Any], repeats: int) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return np.repeat(array, repeats)


def _reduce(
    predicted: Mapping[str, Array],
    columns: Mapping[str, Array],
    weights: Array,
    share: float | None,
) -> None:
    """Columns of predict_many, (candidates, buckets), to those of candidates, written in place.

    share None: the last two rows stand for what the level is held against.
    """
    for name, place in (("ttft_s", -2), ("ttft_s_high", -2), ("tpot_s", -1), ("tpot_s_high", -1)):
        of_buckets = predicted[name]
        columns[name][:] = (
            of_buckets[:, place] if share is None else _met_by(of_buckets, weights, share)
        )
    for name in ("e2e_latency_s", "e2e_latency_s_low", "e2e_latency_s_high", "energy_j"):
        columns[name][:] = predicted[name] @ weights
    for name in ("memory_bytes", "capacity_bytes"):
        columns[name][:] = predicted[name].max(axis=1)
    columns["replica_gpus"][:] = predicted["num_gpus"][:, 0]
    columns["fits"][:] = predicted["fits"].all(axis=1)


def _met_by(values: Array, weights: Array, share: float) -> Array:
    """(rows,) the least value that `share` of the weights meets; NaN is met by everything."""
    there = np.where(np.isnan(values), -np.inf, values)
    order = np.argsort(there, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1) >= share * weights.sum() - ROUNDING
    reached[:, -1] = True
    at = np.take_along_axis(order, reached.argmax(axis=1)[:, None], axis=1)
    found = np.take_along_axis(there, at, axis=1)[:, 0]
    return np.where(np.isneginf(found), np.nan, found)
