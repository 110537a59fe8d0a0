"""Figures of comparisons, trade-offs, profiled fits and denoised latencies.

Colours of Okabe and Ito (2008), which people with colour-blind vision tell apart, with markers of
their own; every axis names its quantity and unit. Files are written whole or not at all.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtsim.errors import NotSupported
from rtsim.output import replacing
from rtsim.plots import check_plot_file

if TYPE_CHECKING:
    from rtsim.compare import Comparison
    from rtsim.denoise import Denoised
    from rtsim.latencies import LatencyTable
    from rtsim.profiled import ProfiledModel
    from rtsim.tradeoff import Panel, Tradeoff

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")  # no divisor shared with the colours
_GREY = "0.45"
_MOST_PANELS = 9
_TITLE_WIDTH = 40  # characters over a panel
_AXIS_TEXT = {
    "raw_runtime": "measured runtime of a request (s)",
    "denoised_runtime": "denoised runtime of a request (s)",
    "idealized_runtime": "idealized runtime of a request (s)",
    "idealized_cost": "idealized cost of a request (USD)",
    "idealized_energy": "idealized energy of a request (J)",
    "runtime": "idealized runtime (s)",
    "cost": "idealized cost (USD)",
    "energy": "idealized energy (J)",
}
_MOST_FITTED_LINES = 5


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str, dpi: int = 110) -> None:
    with replacing(path) as out:
        figure.savefig(out, format=Path(path).suffix[1:].lower(), dpi=dpi)


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def plot_comparison(result: Comparison, path: str) -> None:
    """Runtime, cost and energy of every system per request, with their 90% intervals.

    Raises SpecError (format), NotSupported (no matplotlib) or OutputError.
    """
    check_plot_file(path)
    systems = sorted(result.systems, key=lambda one: one.runtime_s)
    metrics = [m for m in ("runtime", "cost", "energy") if any(s.metric(m) for s in systems)]
    figure = _figure(3.6 + 2.6 * len(metrics), 1.4 + 0.3 * len(systems))
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False).ravel()
    rows = np.arange(len(systems))
    for i, (axis, metric) in enumerate(zip(axes, metrics, strict=True)):
        values = np.array([one.metric(metric) or math.nan for one in systems])
        ends = [one.interval(metric) for one in systems]
        low = np.array([v - e.low if e else 0.0 for v, e in zip(values, ends, strict=True)])
        high = np.array([e.high - v if e else 0.0 for v, e in zip(values, ends, strict=True)])
        axis.errorbar(values, rows, xerr=[low, high], linestyle="none", capsize=3, ms=6,
                      **_style(i))  # fmt: skip
        axis.set_xscale("log")
        _plain_log_ticks(axis)
        axis.set_xlabel(_AXIS_TEXT[metric])
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    places = {(one.prediction.gpu.name, one.prediction.stack) for one in systems}
    labels = [
        f"{one.label.replace(' / ', ', ') if len(places) > 1 else one.prediction.model.name} "
        f"(x{one.prediction.num_gpus})"
        for one in systems
    ]
    axes[0].set_yticks(rows, labels, fontsize=8)
    axes[0].invert_yaxis()
    w = systems[0].prediction.workload
    figure.suptitle(
        f"{w.input_len:,} prompt and {w.output_len:,} output tokens, batch {w.batch_size:,}"
        + (f", {', '.join(next(iter(places)))}" if len(places) == 1 else "")
        + "; x GPUs; bars: 90% interval",
        fontsize=10,
    )
    _save(figure, path)


def plot_tradeoff(result: Tradeoff, path: str, *, scenarios: bool = False) -> None:
    """Score against each metric with the frontier: over all scenarios, or one panel for each.

    Panels per scenario are those of the first metric, at most nine of them, the largest first.
    Raises SpecError, NotSupported (no matplotlib, no points) or OutputError.
    """
    check_plot_file(path)
    panels = [view.overall for view in result.views]
    if scenarios or not any(panel.points for panel in panels):
        by_size = sorted(result.views[0].scenarios, key=lambda panel: -len(panel.points))
        panels = by_size[:_MOST_PANELS]
    panels = [panel for panel in panels if panel.points]
    if not panels:
        raise NotSupported("no model has every metric: there is nothing to plot")
    models = sorted({point.model for panel in panels for point in panel.points})
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    across = 4 if columns > 1 else 2  # names beside each other in the legend
    names = 0.2 * math.ceil((len(models) + 1) / across)
    figure = _figure(4.0 * columns, 3.6 * rows + names + 0.2)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=not scenarios).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _tradeoff_panel(axis, panel, models)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.legend(handles=_legend(models), loc="outside lower center", fontsize=8,
                  ncols=across, frameon=False)  # fmt: skip
    _save(figure, path)


def _legend(models: Sequence[str]) -> list[Any]:
    """A filled marker per model, whatever it is in the panels, and the frontier's line."""
    from matplotlib.lines import Line2D

    made = [
        Line2D([], [], linestyle="none", ms=7, label=model, **_style(i))
        for i, model in enumerate(models)
    ]
    return [*made, Line2D([], [], color=_GREY, lw=1.2, label="Pareto frontier (filled markers)")]


def _tradeoff_panel(axis: Any, panel: Panel, models: Sequence[str]) -> None:
    """Filled markers on the frontier, hollow ones below it."""
    for point in panel.points:
        style = _style(models.index(point.model))
        axis.scatter(
            point.x, point.y, s=62, marker=style["marker"], zorder=3, edgecolors=style["color"],
            facecolors=style["color"] if point.on_frontier else "white", linewidths=1.6,
        )  # fmt: skip
    front = [(point.x, point.y) for point in panel.points if point.on_frontier]
    xs, ys = zip(*front, strict=True)
    axis.plot(xs, ys, drawstyle="steps-post", color=_GREY, lw=1.2, zorder=2)
    if min(point.x for point in panel.points) > 0.0:
        axis.set_xscale("log")
        _plain_log_ticks(axis)
    axis.set_xlabel(_AXIS_TEXT[panel.x])
    axis.set_ylabel(panel.y.replace("_", " "))
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.set_title(textwrap.fill(panel.scenario.replace(",", ", "), _TITLE_WIDTH), fontsize=9)


def _plain_log_ticks(axis: Any) -> None:
    """Ticks as plain numbers, with enough of them for a range within a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_xlim()
    decades = math.log10(high / low)
    subs: tuple[float, ...] = (1.0,) if decades > 2.5 else (1.0, 3.0)
    if decades < 1.7:
        subs = (1.0, 2.0, 5.0) if decades > 1.0 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    for label in axis.get_xticklabels():
        label.set_fontsize(8)


def plot_profiled(models: Sequence[ProfiledModel], path: str) -> None:
    """Measured runtimes with the fitted form: against output tokens and against prompt tokens.

    Raises SpecError, NotSupported (no matplotlib) or OutputError.
    """
    check_plot_file(path)
    figure = _figure(9.0, 4.2)
    left, right = figure.subplots(1, 2)
    names = [model.model or "measured" for model in models]
    middle = shortest = 0
    for i, model in enumerate(models):
        style = _style(i)
        style["label"] = names[i]
        if names.count(names[i]) > 1:  # one model on several systems
            style["label"] += f", {model.system.partition(',')[0]}"
        prompts = sorted({p for p, _ in model.sizes})
        middle = min(prompts, key=lambda p: abs(p - 512))
        shortest = min(o for _, o in model.sizes)
        at_middle = [k for k, (p, _) in enumerate(model.sizes) if p == middle]
        at_shortest = [k for k, (_, o) in enumerate(model.sizes) if o == shortest]
        _curve(left, model, style, at_middle, varying=1, fixed=middle)
        _curve(right, model, style, at_shortest, varying=0, fixed=shortest)
    left.set_xlabel("output tokens")
    left.set_title(f"a prompt of about {middle} tokens: linear", fontsize=9)
    right.set_xlabel("prompt tokens")
    right.set_title(f"output tokens: {shortest}, piecewise linear", fontsize=9)
    for axis in (left, right):
        axis.set_ylabel("runtime (s)")
        axis.grid(color="0.92")
        axis.set_ylim(bottom=0.0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=8, frameon=False)  # fmt: skip
    _save(figure, path)


def _curve(
    axis: Any, model: ProfiledModel, style: dict[str, Any], rows: Sequence[int], *, varying: int,
    fixed: int,
) -> None:  # fmt: skip
    """Measured points, and the fit as a line. varying: 0 the prompt, 1 the output."""
    xs = np.array([float(model.sizes[k][varying]) for k in rows])
    axis.scatter(xs, [model.runtime_s[k] for k in rows], s=22,
                 zorder=3, linewidths=0, **style)  # fmt: skip
    fine = np.linspace(xs.min(), xs.max(), 200)
    lengths = [np.full_like(fine, fixed), fine] if varying else [fine, np.full_like(fine, fixed)]
    axis.plot(fine, model.fit.runtime_s(*lengths), color=style["color"], lw=1)


def plot_denoised(fits: Sequence[Denoised], table: LatencyTable, path: str) -> None:
    """Every call and the denoised floor under it, one panel per model, a line per prompt length.

    Raises SpecError, NotSupported (no matplotlib) or OutputError.
    """
    check_plot_file(path)
    shown = list(fits)[:_MOST_PANELS]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = _figure(3.8 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, fit in zip(axes, shown, strict=False):
        curve = fit.curve
        calls = table.by_model[curve.model]
        spread = np.linspace(0, len(curve.prompt_tokens) - 1, _MOST_FITTED_LINES).round()
        for i, k in enumerate(dict.fromkeys(spread.astype(int).tolist())):
            prompt = curve.prompt_tokens[k]
            style = _style(i)
            mine = [c for c in calls if c.prompt_tokens == prompt]
            axis.scatter([c.output_tokens for c in mine], [c.runtime_s for c in mine], s=20,
                         linewidths=0, alpha=0.8, label=f"prompt {prompt}", **style)  # fmt: skip
            outputs = np.linspace(1.0, max(c.output_tokens for c in calls), 50)
            axis.plot(outputs, [curve.runtime_s(prompt, o) for o in outputs],
                      color=style["color"], lw=1.2)  # fmt: skip
        axis.set_xlabel("output tokens")
        axis.set_ylabel("seconds of a call")
        axis.set_title(f"{curve.model}: {1e3 * curve.per_output_token_s:.1f} ms per output token",
                       fontsize=9)  # fmt: skip
        axis.grid(color="0.92")
        axis.legend(fontsize=7)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    _save(figure, path)
