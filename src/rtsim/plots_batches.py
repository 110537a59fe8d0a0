"""Figure of times and throughput against batch, as far as memory goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.bulk import predict_many
from rtsim.plots_frame import new_figure, save_figure, title_of
from rtsim.prediction import Prediction
from rtsim.specs import GpuSpec, ModelSpec

_BATCHES = tuple(2**k for k in range(11))


def plot_batches(p: Prediction, path: str, request: Mapping[str, Any]) -> None:
    """Times and throughput against batch, with 90 % intervals, as far as memory goes."""
    asked = {name: v for name, v in request.items() if v is not None and name != "compiled"}
    changes = asked.pop("set", None) or {}
    model, gpu = asked.pop("arch"), asked.pop("gpu")
    batches = np.array(sorted({*_BATCHES, p.workload.batch_size}))
    table: dict[str, Any] = {
        **asked, **changes, "model": _cells(model), "gpu": _cells(gpu),
        "batch_size": batches, "output_len": p.workload.output_len,
    }  # fmt: skip
    found = predict_many(table)
    fits = found["fits"]
    figure = new_figure(10.4, 4.4)
    left, right = figure.subplots(1, 2)
    lines = (
        ("ttft_s", "time to first token", "o", "#0072B2"),
        ("tpot_s", "time per output token", "s", "#D55E00"),
        ("e2e_latency_s", "whole request", "^", "#009E73"),
    )
    for name, label, marker, colour in lines:
        _line(left, batches, found, name, label, marker, colour, fits)
    _line(right, batches, found, "output_throughput", "output tokens/s", "D", "#CC79A7", fits)
    left.set_ylabel("time (s)")
    right.set_ylabel("output tokens per second, all GPUs")
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(batches, [str(b) for b in batches], fontsize=8)
        axis.minorticks_off()
        _plain_ticks(axis)
        axis.set_xlabel("batch (sequences)")
        axis.grid(color="0.9")
        axis.set_axisbelow(True)
        if not fits.all():
            _shade_misfits(axis, batches, fits)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.suptitle(title_of(p, batch=False), fontsize=10)
    save_figure(figure, path)


def _plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10 on a logarithmic y axis, as numbers; decades alone where it spans many."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    low, high = axis.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 3e3 * low else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _cells(spec: Any) -> Any:
    return spec if isinstance(spec, ModelSpec | GpuSpec) else str(spec)


def _line(axis: Any, batches: NDArray[Any], found: Mapping[str, NDArray[Any]], name: str,
          label: str, marker: str, colour: str, fits: NDArray[Any]) -> None:  # fmt: skip
    values = found[name]
    there = np.isfinite(values)
    if not there.any():
        return
    x = batches[there]
    axis.plot(x, values[there], marker=marker, color=colour, markersize=5, lw=1.5, label=label)
    axis.fill_between(x, found[f"{name}_low"][there], found[f"{name}_high"][there], color=colour,
                      alpha=0.15, lw=0)  # fmt: skip


def _shade_misfits(axis: Any, batches: NDArray[Any], fits: NDArray[Any]) -> None:
    first = int(np.flatnonzero(~fits)[0])
    start = math.sqrt(batches[first] * batches[max(first - 1, 0)])
    axis.axvspan(start, batches[-1] * 1.3, color="0.85", zorder=0, lw=0)
    axis.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    axis.text(start * 1.06, 0.03, "does not fit", transform=axis.get_xaxis_transform(), fontsize=8,
              color="0.3", va="bottom", rotation=90)  # fmt: skip
