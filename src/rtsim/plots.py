"""Figures: the only home of matplotlib, which is imported where a figure is made.

Colours are those of Okabe and Ito (2008), which people with colour-blind vision tell apart;
markers differ as well.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtsim import units
from rtsim.errors import NotSupported, SpecError
from rtsim.output import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rtsim.validate import FileErrors, Points, ValidationReport

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P")  # a count prime to that of the colours
# A panel with more points than this shows a fixed sample: beyond it points only hide each other.
_MOST_POINTS = 6000
_FEW_POINTS = 200  # from here down points are drawn larger
PANEL_INCHES = 4.6
_MOST_COLUMNS = 3


def check_plot_file(path: str) -> None:
    """Raise SpecError or NotSupported where `path` could not be plotted to, before any work."""
    if Path(path).suffix.lower() not in FORMATS:
        raise SpecError("plot", path, f"must end in {', '.join(FORMATS)}")
    figures()


def figures() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise NotSupported("plots need matplotlib: pip install rtsim[plot]") from None
    matplotlib.use("Agg")  # no display needed
    import matplotlib.figure

    return matplotlib.figure


def plot_validation(report: ValidationReport, path: str) -> None:
    """Predicted against measured times, one panel per file; written whole or not at all.

    The line is predicted = measured; the band around it is the 90% interval of the middle row.
    Raises SpecError (format), NotSupported (no matplotlib, nothing predicted) or OutputError.
    """
    check_plot_file(path)
    panels = [(file, file.metrics[file.headline].points) for file in report.files if file.metrics]
    shown = [(file, points) for file, points in panels if points is not None]
    if not shown:
        raise NotSupported("no row was predicted: there is nothing to plot")
    columns = min(len(shown), _MOST_COLUMNS)
    rows = math.ceil(len(shown) / columns)
    figure = figures().Figure(
        figsize=(PANEL_INCHES * columns, PANEL_INCHES * rows), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (file, points) in zip(axes, shown, strict=False):
        _panel(axis, file, points)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    with replacing(path) as out:
        figure.savefig(out, format=Path(path).suffix[1:].lower(), dpi=150)


def _panel(axis: Any, file: FileErrors, points: Points) -> None:
    scale, unit = time_unit(points.measured_s)
    low = 0.8 * scale * min(points.measured_s.min(), points.predicted_s.min())
    high = 1.25 * scale * max(points.measured_s.max(), points.predicted_s.max())
    ends = np.array([low, high])
    factors = points.high_s / points.predicted_s
    if np.isfinite(factors).any():
        factor = float(np.nanmedian(factors))
        axis.fill_between(ends, ends / factor, ends * factor, color="0.88", lw=0,
                          label=f"90% interval (x{factor:.2f})")  # fmt: skip
    axis.plot(ends, ends, color="0.35", lw=1, zorder=3)
    total = len(points.measured_s)
    sample = np.arange(total)
    if total > _MOST_POINTS:
        sample = np.sort(np.random.default_rng(0).permutation(total)[:_MOST_POINTS])
    size, alpha = (28, 0.8) if total <= _FEW_POINTS else (7, 0.45)
    gpus, count = np.unique(points.gpu, return_counts=True)
    by_count = gpus[np.argsort(-count, kind="stable")]  # many points below, few on top
    for i, gpu in enumerate(by_count):
        own = sample[points.gpu[sample] == gpu]
        axis.scatter(
            scale * points.measured_s[own], scale * points.predicted_s[own], s=size, alpha=alpha,
            color=COLOURS[i % len(COLOURS)], marker=_MARKERS[i % len(_MARKERS)], linewidths=0,
            label=gpu or "GPU not stated", zorder=2, rasterized=True,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axis.set_xlabel(f"measured ({unit})")
    axis.set_ylabel(f"predicted ({unit})")
    stats = file.metrics[file.headline].total
    figures = "" if stats is None else f", mean error {100 * stats.mape:.1f}%"
    part = f" ({len(sample):,} shown)" if len(sample) < total else ""
    axis.set_title(
        f"{Path(file.file).name}\n{units.counted(total, 'row')}{part}{figures}", fontsize=9
    )
    legend = axis.legend(
        fontsize=7, loc="upper left", framealpha=0.9, markerscale=1 if size > 7 else 2
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def time_unit(times_s: NDArray[Any]) -> tuple[float, str]:
    """Factor and name of the unit in which the middle one of some times is a readable number."""
    middle_s = float(np.median(times_s))
    if middle_s < 1e-3:
        return 1e6, "us"
    return (1e3, "ms") if middle_s < 1.0 else (1.0, "s")
