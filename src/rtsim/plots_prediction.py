"""Figures of one prediction: breakdown, roofline, batches, and the tornado of an explanation.

Colours of Okabe and Ito (2008); markers and hatches differ as well. Every axis names its quantity
and unit. Files are written whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtsim.bulk import predict_many
from rtsim.errors import NotSupported, SpecError, UnknownName
from rtsim.output import replacing
from rtsim.plots import check_plot_file
from rtsim.prediction import OperatorTime, Prediction, by_operator
from rtsim.specs import GpuSpec, ModelSpec

if TYPE_CHECKING:
    from rtsim.explain import Explanation

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
_BATCHES = tuple(2**k for k in range(11))


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str) -> None:
    with replacing(path) as out:
        figure.savefig(out, format=Path(path).suffix[1:].lower(), dpi=130)


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
        _plot_batches(prediction, path, request)


def _title(p: Prediction, *, batch: bool = True) -> str:
    w = p.workload
    degrees = [
        f"{name} {n}"
        for name in ("tp", "pp", "ep", "dp")
        if (n := getattr(p.parallelism, name)) > 1
    ]
    sizes = f"batch {w.batch_size}, " if batch else ""
    formats = w.dtype if w.quantization is None else f"{w.dtype}, {w.quantization}"
    split = f" ({', '.join(degrees)})" if degrees else ""
    return (
        f"{p.model.name} on {p.num_gpus} x {p.gpu.name}{split}\n"
        f"{sizes}prompt {w.input_len:,}, output {w.output_len:,}, {formats}, {p.stack}"
    )


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
    figure = _figure(5.2 * len(phases) + 0.6, 1.9 + 0.3 * most)
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
    figure.suptitle(_title(p), fontsize=10)
    _save(figure, path)


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
    figure = _figure(8.2, 6.0)
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
    axis.set_title(_title(p), fontsize=10)
    _save(figure, path)


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


# Batches -----------------------------------------------------------------------------------------


def _plot_batches(p: Prediction, path: str, request: Mapping[str, Any]) -> None:
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
    figure = _figure(10.4, 4.4)
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
    figure.suptitle(_title(p, batch=False), fontsize=10)
    _save(figure, path)


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


# Tornado -----------------------------------------------------------------------------------------


def plot_tornado(found: Explanation, path: str) -> None:
    """Elasticities of times to hardware and workload, a panel a metric.

    Raises SpecError (format), NotSupported (no matplotlib) or OutputError.
    """
    check_plot_file(path)
    metrics = [
        (metric, title)
        for metric, title in (
            ("ttft_s", "time to first token"), ("tpot_s", "time per output token"),
            ("e2e_latency_s", "whole request"), ("usd_per_million_output_tokens", "cost per token"),
        )
        if all(getattr(one, metric) is not None for one in found.elasticities)
    ]  # fmt: skip
    rows = found.elasticities
    figure = _figure(3.0 + 2.3 * len(metrics), 1.7 + 0.32 * len(rows))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False).ravel()
    reach = 1.55 * max(abs(getattr(one, metric)) for one in rows for metric, _ in metrics)
    for axis, (metric, title) in zip(axes, metrics, strict=True):
        for i, one in enumerate(rows):
            value = getattr(one, metric)
            hardware = one.kind == "hardware"
            axis.barh(i, value, color="#0072B2" if hardware else "#E69F00", edgecolor="white",
                      hatch="" if hardware else "///", linewidth=0)  # fmt: skip
            if abs(value) >= 0.005:
                axis.text(value, i, f" {value:+.2f} ", va="center", fontsize=7,
                          ha="left" if value > 0 else "right")  # fmt: skip
        axis.axvline(0.0, color="black", lw=0.8)
        axis.set_xlim(-reach, reach)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("% per %", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(rows)), [one.name for one in rows], fontsize=8)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    _legend_of_kinds(figure)
    figure.suptitle("Elasticities: " + _title(found.prediction), fontsize=10)
    _save(figure, path)


def _legend_of_kinds(figure: Any) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Patch(facecolor="#0072B2", label="more of the hardware"),
            Patch(facecolor="#E69F00", hatch="///", edgecolor="white", label="more work"),
        ],
        loc="outside lower center", ncols=2, fontsize=8, frameon=False,
    )  # fmt: skip
