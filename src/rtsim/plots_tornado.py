"""Tornado of an explanation: elasticities of times to hardware and workload.

Colours of Okabe and Ito (2008); hatches differ as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtsim.plots import check_plot_file
from rtsim.plots_frame import new_figure, save_figure, title_of

if TYPE_CHECKING:
    from rtsim.explain import Explanation


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
    figure = new_figure(3.0 + 2.3 * len(metrics), 1.7 + 0.32 * len(rows))
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
    figure.suptitle("Elasticities: " + title_of(found.prediction), fontsize=10)
    save_figure(figure, path)


def _legend_of_kinds(figure: Any) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Patch(facecolor="#0072B2", label="more of the hardware"),
            Patch(facecolor="#E69F00", hatch="///", edgecolor="white", label="more work"),
        ],
        loc="outside lower center", ncols=2, fontsize=8, frameon=False,
    )  # fmt: skip
