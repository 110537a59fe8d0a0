"""Figures of a simulation: distributions of times, the timeline, goodput against the rate.

Colours of Okabe and Ito (2008); lines differ in their dashes as well. Files are written whole or
not at all.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from rtsim import units
from rtsim.errors import NotSupported, SpecError, UnknownName
from rtsim.output import replacing
from rtsim.plots import check_plot_file
from rtsim.simulation import Simulation

KINDS = ("latency", "timeline", "goodput")
_LINES = {
    "ttft": ("time to first token", "#0072B2", "-"),
    "tpot": ("time per output token", "#D55E00", "--"),
    "e2e": ("end-to-end latency", "#009E73", "-."),
    "gap": ("gap between tokens", "#CC79A7", ":"),
}
_IN_A_STRETCH = 40  # requests: their count scatters by a sixth
_MOST_STRETCHES = 200  # of time, each a step of a line
_DECADE = 10.0  # rates further apart stand on a logarithmic axis
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"


def check_kind(kind: str, searched: bool) -> None:
    """UnknownName for another kind than KINDS, SpecError for one that needs a capacity search."""
    if kind not in KINDS:
        raise UnknownName("plot kind", kind, KINDS)
    if kind == "goodput" and not searched:
        raise SpecError("plot_kind", kind, "needs the rates that --capacity tries")


def plot_simulation(found: Simulation, path: str, kind: str) -> None:
    """Draw a simulation. Raises SpecError, UnknownName, NotSupported or OutputError."""
    check_plot_file(path)
    check_kind(kind, found.capacity is not None)
    if found.result.n_finished == 0:
        raise NotSupported("no request was served: there is nothing to plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4 if kind == "timeline" else 4.2), layout="constrained")
    {"latency": _latency, "timeline": _timeline, "goodput": _goodput}[kind](figure, found)
    with replacing(path) as out:
        figure.savefig(out, format=Path(path).suffix[1:].lower(), dpi=130)


def _latency(figure: Any, found: Simulation) -> None:
    axis = figure.subplots()
    result = found.result
    for name, (label, colour, dashes) in _LINES.items():
        seconds, share = result.cdf[name]
        if len(seconds):
            axis.step(seconds, share, dashes, where="post", color=colour, label=label)
    for limit, colour in ((result.level.ttft_s, _BLUE), (result.level.tpot_s, _RED)):
        if math.isfinite(limit):
            axis.axvline(limit, color=colour, alpha=0.4, linewidth=1)
    axis.set(xscale="log", ylim=(0.0, 1.01), xlabel="time (s)", ylabel="share of observations")
    axis.set_title(units.counted(result.n_finished, "request"), fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _timeline(figure: Any, found: Simulation) -> None:
    over = found.result.over_time
    rows = figure.subplots(3, 1, sharex=True)
    panels = (
        ("requests", (("waiting", over.waiting, _RED, "-"), ("running", over.running, _BLUE, "-"))),
        ("share of the KV cache", (("in use", over.cache_frac, _GREEN, "-"),)),
        ("requests/s", (("arriving", over.arrivals_per_s, _RED, "--"),
                        ("ending", over.ended_per_s, _BLUE, "-"))),
    )  # fmt: skip
    n = len(over.start_s)
    for axis, (title, lines) in zip(rows, panels, strict=True):
        # Rates count single events: noise, unless many are in a stretch.
        most = _MOST_STRETCHES
        if axis is rows[-1]:
            most = min(most, max(12, found.result.n_requests // _IN_A_STRETCH))
        joined = math.ceil(n / most)
        for label, values, colour, dashes in lines:
            axis.step(over.start_s[::joined], _means(values, joined), dashes, where="post",
                      color=colour, label=label, linewidth=1)  # fmt: skip
        axis.set_ylabel(title)
        axis.set_ylim(0.0, 1.25 * axis.get_ylim()[1])  # room for the legend
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper right", ncols=2)
    rows[-1].set_xlabel("time (s)")


def _means(values: Any, joined: int) -> Any:
    """Means of `joined` neighbours each, of fewer at the end."""
    starts = np.arange(0, len(values), joined)
    return np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))


def _goodput(figure: Any, found: Simulation) -> None:
    axis = figure.subplots()
    searched = found.capacity
    if searched is None:
        return
    rates = np.array([one.rate_per_s for one in searched.tried])
    goodput = np.array([one.result.goodput_per_s for one in searched.tried])
    carried = np.array([one.result.requests_per_s for one in searched.tried])
    axis.plot(rates, carried, "s--", color="0.5", markersize=4, label="answered")
    axis.plot(rates, goodput, "o-", color=_BLUE, markersize=4, label="within the level")
    if searched.rate_per_s > 0.0:
        axis.axvline(searched.rate_per_s, color=_GREEN, linewidth=1,
                     label=f"capacity {searched.rate_per_s:.3g}/s")  # fmt: skip
    axis.set(xlabel="rate of arrivals (requests/s)", ylabel="requests/s")
    if rates[-1] > _DECADE * rates[0]:
        from matplotlib.ticker import LogFormatter

        axis.set_xscale("log")
        for scale in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            scale(LogFormatter(minor_thresholds=(2, 0.5)))
    else:
        axis.set_xlim(left=0.0)
    axis.set_ylim(bottom=0.0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
