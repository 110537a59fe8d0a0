"""The figure of a sweep: two metrics against each other, and the rows that no other row beats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import NotSupported
from rtsim.output import replacing
from rtsim.plots import COLOURS, PANEL_INCHES, check_plot_file, figures, time_unit
from rtsim.selection import Metric

_LOG_RANGE = 30.0  # values that span more are drawn on a logarithmic axis
# Columns in words. Times and bytes get the unit that suits their values.
_TIMES = {
    "ttft_s": "time to first token",
    "ttft_alone_s": "time to first token without waiting",
    "tpot_s": "time per output token",
    "e2e_latency_s": "latency of a request",
    "decode_step_s": "decode step",
    "itl_mixed_s": "gap between tokens while a prompt is in the step",
}
_BYTES = {"memory_bytes": "memory per GPU", "capacity_bytes": "memory of a GPU"}
_OTHERS = {
    "output_throughput": "output tokens per second",
    "request_throughput": "requests per second",
    "gpu_throughput": "output tokens per second and GPU",
    "usd_per_request": "USD per request",
    "usd_per_million_output_tokens": "USD per million output tokens",
    "energy_j": "energy (J)",
    "mfu": "share of the peak FLOP rate (MFU)",
    "mbu": "share of the memory bandwidth (MBU)",
    "num_gpus": "GPUs",
    "running": "requests that run",
    "decoding": "requests that get a token in a step",
    "largest_running": "requests that could run at once",
    "prompt_frac": "share of the time that prompts take",
    "cache_frac": "share of the cache in use",
    "batch_size": "batch",
    "input_len": "prompt (tokens)",
    "output_len": "output (tokens)",
    "concurrency": "requests in flight",
    "tp": "tensor-parallel degree",
    "pp": "pipeline stages",
    "ep": "expert-parallel degree",
    "dp": "replicas",
}
_ENDS = {"_low": ", lower end of the 90% interval", "_high": ", upper end of the 90% interval"}


def axis_label(column: str, values: NDArray[Any]) -> tuple[float, str]:
    """(factor of the values, label with its unit) of a column of a sweep.

    >>> axis_label("tpot_s_high", np.array([0.02, 0.03]))
    (1000.0, 'time per output token, upper end of the 90% interval (ms)')
    """
    name, end = column, ""
    for suffix, words in _ENDS.items():
        if column.endswith(suffix):
            name, end = column.removesuffix(suffix), words
    if name in _TIMES:
        scale, unit = time_unit(values)
        return scale, f"{_TIMES[name]}{end} ({unit})"
    if name in _BYTES:
        return 1e-9, f"{_BYTES[name]} (GB)"
    return 1.0, _OTHERS.get(name, name) + end


def plot_frontier(
    points: NDArray[Any], frontier: NDArray[Any], metrics: Sequence[Metric], path: str
) -> None:
    """Two metrics of many rows against each other, and those that no other row beats.

    points, frontier: (2, rows). Written whole or not at all. Raises SpecError (format),
    NotSupported (no matplotlib, nothing to plot) or OutputError.
    """
    check_plot_file(path)
    points = points[:, np.isfinite(points).all(axis=0)]
    if points.shape[1] == 0:
        raise NotSupported("no row has both metrics: there is nothing to plot")
    labelled = [axis_label(metric.column, v) for metric, v in zip(metrics, points, strict=True)]
    scales = np.array([scale for scale, _ in labelled])[:, None]
    figure = figures().Figure(figsize=(PANEL_INCHES * 1.4, PANEL_INCHES), layout="constrained")
    axis = figure.subplots()
    axis.scatter(*scales * points, s=9, color=COLOURS[5], alpha=0.6, linewidths=0, label="rows")
    if frontier.shape[1]:
        best = scales * frontier[:, np.argsort(frontier[0], kind="stable")]
        axis.plot(*best, "o-", color=COLOURS[1], markersize=4, linewidth=1.2, label="frontier")
    everything = np.concatenate((points, frontier), axis=1)
    for name, values, metric, (_, label) in zip("xy", everything, metrics, labelled, strict=True):
        better = "more" if metric.largest else "less"
        getattr(axis, f"set_{name}label")(f"{label}\n{better} is better", fontsize=9)
        if values.min() > 0 and values.max() > _LOG_RANGE * values.min():
            getattr(axis, f"set_{name}scale")("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with replacing(path) as out:
        figure.savefig(out, format=Path(path).suffix[1:].lower(), dpi=150)
