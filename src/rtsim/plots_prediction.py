"""Figures of one prediction: breakdown, roofline, and batches (`plots_batches`).

Colours of Okabe and Ito (2008); markers and hatches differ as well. Every axis names its quantity
and unit. Files are written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rtsim.errors import NotSupported, SpecError, UnknownName
from rtsim.plots import check_plot_file
from rtsim.plots_batches import plot_batches
from rtsim.plots_frame import new_figure, save_figure, title_of
from rtsim.prediction import OperatorTime, Prediction, by_operator

KINDS = ("breakdown", "roofline", "batch")
# Of bounds, the same in every figure.
_BOUND_COLOURS = {
    "compute": "#0072B2", "memory": "#D55E00", "latency": "#E69F00", "interconnect": "#009E73",
    "host": "#999999",
}  # fmt: skip
_BOUND_HATCHES = {
    "compute": "",
    "memory": "///",
    "latency": "...",
    "interconnect": "xx",
    "host": "",
}
_PHASE_COLOURS = {"prefill": "#0072B2", "decode": "#D55E00"}
_PHASE_MARKERS = {"prefill": "o", "decode": "s"}
_MOST_BARS = 14
_MOST_LABELS = 5  # operators named on the roofline, of each phase


def check_kind(kind: str) -> None:
    """UnknownName for another kind than KINDS."""
    if kind not in KINDS:
        raise UnknownName("kind of plot", kind, KINDS)


def plot_prediction(
    prediction: Prediction, path: str, kind: str = "breakdown", *,
    request: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Draw a prediction: "breakdown", "roofline", or "batch" (what larger batches would do).

    request: the arguments of `rtsim.predict`, for "batch". Raises UnknownName, SpecError (format),
    NotSupported (no matplotlib, nothing to draw) or OutputError.
    """
    check_kind(kind)
    check_plot_file(path)
    if kind == "breakdown":
        _plot_breakdown(prediction, path)
    elif kind == "roofline":
        _plot_roofline(prediction, path)
    elif request is None:
        raise SpecError.of_missing("request", "is needed for a plot of batches")
    else:
        plot_batches(prediction, path, request)


def _scale(seconds: float) -> tuple[float, str]:
    """Factor and unit in which a time is a readable number."""
    if seconds < 1e-3:
        return 1e6, "us"
    return (1e3, "ms") if seconds < 1.0 else (1.0, "s")


# Breakdown ---------------------------------------------------------------------------------------


def _plot_breakdown(p: Prediction, path: str) -> None:
    """A panel a phase: operators by time, coloured by what bounds them."""
    phases = [
        (phase, total_s)
        for phase, total_s in (("prefill", p.ttft_s), ("decode", p.e2e_latency_s - p.ttft_s))
        if total_s > 0.0
    ]
    rows = {phase: _bars(p.breakdown, phase) for phase, _ in phases}
    most = max(len(bars) for bars in rows.values())
    figure = new_figure(5.2 * len(phases) + 0.6, 1.9 + 0.3 * most)
    axes = figure.subplots(1, len(phases), squeeze=False).ravel()
    for axis, (phase, total_s) in zip(axes, phases, strict=True):
        bars = rows[phase]
        scale, unit = _scale(max(time_s for _, time_s, _ in bars))
        for i, (_, time_s, bound) in enumerate(bars):
            axis.barh(i, scale * time_s, color=_BOUND_COLOURS.get(bound, "0.8"), edgecolor="white",
                      hatch=_BOUND_HATCHES.get(bound, ""), linewidth=0)  # fmt: skip
            axis.text(scale * time_s, i, f" {100 * time_s / total_s:.1f}%", va="center", fontsize=8)
        axis.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8)
        axis.set_ylim(most - 0.4, -0.6)
        axis.set_xlim(0, 1.16 * scale * max(time_s for _, time_s, _ in bars))
        axis.set_xlabel(f"time on a GPU in the request ({unit})")
        total_scale, total_unit = _scale(total_s)
        axis.set_title(f"{phase}: {total_scale * total_s:.3g} {total_unit}", fontsize=10)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    bounds = list(dict.fromkeys(bound for bars in rows.values() for *_, bound in bars))
    _legend_of_bounds(figure, [bound for bound in _BOUND_COLOURS if bound in bounds])
    figure.suptitle(title_of(p), fontsize=10)
    save_figure(figure, path)


def _bars(breakdown: Sequence[OperatorTime], phase: str) -> list[tuple[str, float, str]]:
    """(operator, seconds, bound), longest first; the shortest together."""
    found: list[tuple[str, float, str]] = [
        (name, time_s, bound or "")
        for (name, own), (time_s, bound) in by_operator(breakdown).items()
        if own == phase and time_s > 0.0
    ]
    found.sort(key=lambda bar: -bar[1])
    rest = found[_MOST_BARS - 1 :]
    if len(rest) > 1:
        found = found[: _MOST_BARS - 1]
        found.append((f"{len(rest)} smaller operators", sum(t for _, t, _ in rest), ""))
    return found


def _legend_of_bounds(figure: Any, bounds: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=_BOUND_COLOURS[b], hatch=_BOUND_HATCHES[b], edgecolor="white", label=b)
        for b in bounds
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(bounds), fontsize=9,
                  title="bound by", title_fontsize=9, frameon=False)  # fmt: skip


# Roofline ----------------------------------------------------------------------------------------


def _plot_roofline(p: Prediction, path: str) -> None:
    """Operators on the roofline of one GPU: FLOP per byte against FLOP/s while they run."""
    points = _points(p)
    if not points:
        raise NotSupported("no operator has both FLOPs and bytes: there is no roofline to draw")
    figure = new_figure(8.2, 6.0)
    axis = figure.subplots()
    x = np.array([one[2] for one in points])
    y = np.array([one[3] for one in points])
    peak, bandwidth = p.gpu.peak_flops_per_s, p.gpu.hbm_bytes_per_s
    ridge = peak / bandwidth
    ends = np.array([min(x.min(), ridge) / 3.0, ridge, max(x.max(), ridge) * 4.0])
    axis.plot(ends, np.minimum(peak, ends * bandwidth) / 1e12, color="black", lw=1.5, zorder=2)
    axis.axvline(ridge, color="0.6", lw=0.8, ls=":", zorder=1)
    for phase, marker in _PHASE_MARKERS.items():
        own = [i for i, one in enumerate(points) if one[1] == phase]
        if own:
            share = np.array([points[i][4] for i in own])
            axis.scatter(
                x[own], y[own] / 1e12, s=18 + 900 * share, marker=marker, alpha=0.65,
                color=_PHASE_COLOURS[phase], edgecolors="black", linewidths=0.5, zorder=3,
            )  # fmt: skip
    low = min(y.min(), peak) / 1e12 / 4.0
    axis.set(xscale="log", yscale="log", xlim=(ends[0], ends[2]), ylim=(low, 3.0 * peak / 1e12))
    axis.set_xlabel("arithmetic intensity (FLOP per byte of HBM)")
    axis.set_ylabel("achieved rate per GPU (TFLOP/s)")
    axis.grid(which="major", color="0.9")
    axis.set_axisbelow(True)
    roof = f"{p.workload.dtype} peak {peak / 1e12:,.0f} TFLOP/s"
    axis.text(ends[2] / 1.1, peak / 1e12 * 1.12, roof, ha="right", va="bottom", fontsize=8)
    axis.text(ridge, low * 1.15, f" ridge at {ridge:.0f} FLOP/byte", fontsize=8, color="0.35",
              va="bottom")  # fmt: skip
    axis.text(0.02, 0.98, f"slope: HBM {bandwidth / 1e12:.3g} TB/s", transform=axis.transAxes,
              fontsize=8, va="top")  # fmt: skip
    _label_points(axis, points)
    _legend_of_phases(figure, {one[1] for one in points})
    axis.set_title(title_of(p), fontsize=10)
    save_figure(figure, path)


# (operator, phase, FLOP per byte, FLOP/s, share of the time of its phase)
_Point = tuple[str, str, float, float, float]


def _points(p: Prediction) -> list[_Point]:
    sums: dict[tuple[str, str], list[float]] = {}
    totals: dict[str, float] = {}
    for row in p.breakdown:
        own = sums.setdefault((row.operator, row.phase), [0.0, 0.0, 0.0])
        for i, value in enumerate((row.time_s, row.flops, row.bytes)):
            own[i] += value
        totals[row.phase] = totals.get(row.phase, 0.0) + row.time_s
    return [
        (name, phase, flops / moved, flops / time_s, time_s / totals[phase])
        for (name, phase), (time_s, flops, moved) in sums.items()
        if time_s > 0.0 and flops > 0.0 and moved > 0.0
    ]


def _label_points(axis: Any, points: list[_Point]) -> None:
    """Names of the longest operators, with lines to them: decode upper left, prefill lower right.

    Those corners are empty: decode is slow and below the ridge, prefill fast and above it.
    """
    for phase, x, top, side in (("decode", 0.02, 0.91, "left"), ("prefill", 0.98, 0.62, "right")):
        own = sorted((one for one in points if one[1] == phase), key=lambda one: -one[4])
        own = sorted(own[:_MOST_LABELS], key=lambda one: (-one[3], one[2]))
        for i, (name, _, intensity, rate, share) in enumerate(own):
            axis.annotate(
                f"{name}, {100 * share:.0f}%", (intensity, rate / 1e12),
                xytext=(x, top - 0.052 * i), textcoords="axes fraction", fontsize=8, ha=side,
                va="center", color=_PHASE_COLOURS[phase], zorder=4,
                arrowprops={"arrowstyle": "-", "color": _PHASE_COLOURS[phase], "lw": 0.6,
                            "alpha": 0.7, "shrinkA": 1, "shrinkB": 0,
                            "relpos": (1.0, 0.5) if side == "left" else (0.0, 0.5)},
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )  # fmt: skip


def _legend_of_phases(figure: Any, phases: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker=marker, color=_PHASE_COLOURS[phase], markeredgecolor="black",
               markeredgewidth=0.5, markersize=8, label=phase)
        for phase, marker in _PHASE_MARKERS.items()
        if phase in phases
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False,
                  title="area and %: share of the phase's time", title_fontsize=9)  # fmt: skip
