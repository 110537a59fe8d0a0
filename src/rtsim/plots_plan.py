"""A figure of a plan: what its systems cost, and how much of the level's limits they use.

Colours of Okabe and Ito (2008); markers differ as well.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.output import replacing
from rtsim.plots import check_plot_file

if TYPE_CHECKING:
    from rtsim.planned import Plan, PlannedSystem

_BEST, _OTHER = "#0072B2", "#56B4E9"
_LIMITS = (
    ("ttft_s", "time to first token", "#D55E00", "o"),
    ("tpot_s", "time per output token", "#009E73", "s"),
)


def plot_plan(plan: Plan, path: str) -> None:
    """The best system and the runner-ups: their objective, and their times against the level.

    Whiskers reach to the upper end of the 90 % interval. Times without a limit are in seconds.
    Raises SpecError (format), NotSupported (no matplotlib) or OutputError.
    """
    check_plot_file(path)
    from matplotlib.figure import Figure

    systems = [plan.best, *plan.runner_ups]
    figure = Figure(figsize=(9.5, 1.6 + 0.45 * len(systems)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_objective(left, plan, systems)
    _draw_times(right, plan, systems)
    figure.legend(
        *right.get_legend_handles_labels(), fontsize=8, loc="outside lower right", ncols=2,
        frameon=False,
    )  # fmt: skip
    left.set_yticks(range(len(systems)), [_name(one, plan.static) for one in systems], fontsize=8)
    left.set_ylim(len(systems) - 0.4, -0.6)
    load = "" if plan.rate_per_s is None else f" at {units.counted(plan.rate_per_s, 'request')}/s"
    level = f", level {plan.level.name}" if plan.level.name else ""
    figure.suptitle(f"{plan.model}{load}{level}: best system and runner-ups", fontsize=10)
    with replacing(path) as out:
        figure.savefig(out, format=Path(path).suffix[1:].lower(), dpi=130)


def _name(system: PlannedSystem, static: bool) -> str:
    degrees = [f"tp {system.tp}"]
    degrees += [f"pp {system.pp}"] if system.pp > 1 else []
    degrees += [f"ep {system.ep}"] if system.ep > 1 else []
    formats = [
        text
        for text in (system.quantization, system.dtype, system.stack)
        if text not in (None, "none")
    ]
    batch = f"batch {system.batch_size}" if static else f"{system.batch_size} in flight"
    split = ", ".join([" ".join(degrees), batch, *formats])
    return f"{system.num_gpus:,} x {system.gpu}\n{split}"


def _objective(plan: Plan) -> tuple[str, str]:
    """(field of a system, label) of what the plan is for."""
    if plan.objective == "latency":
        return "e2e_latency_s", "mean latency (s)"
    if plan.objective == "energy":
        return "energy_j_per_request", "energy a request (J)"
    if plan.rate_per_s is None:
        return "requests_per_s", "requests per second that the budget carries"
    return "usd_per_hour", "cost (USD an hour)"


def _draw_objective(axis: Any, plan: Plan, systems: list[PlannedSystem]) -> None:
    field, label = _objective(plan)
    values = [getattr(one, field) or 0.0 for one in systems]
    for i, value in enumerate(values):
        axis.barh(i, value, height=0.62, color=_OTHER if i else _BEST)
        axis.text(value, i, f" {value:,.4g}", va="center", fontsize=8)
    axis.set_xlim(0.0, 1.2 * max(values))
    axis.set_xlabel(label, fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def _draw_times(axis: Any, plan: Plan, systems: list[PlannedSystem]) -> None:
    limits = [(name, getattr(plan.level, name)) for name, *_ in _LIMITS]
    limited = [name for name, limit in limits if math.isfinite(limit)]
    for shift, (name, what, colour, marker) in zip((-0.14, 0.14), _LIMITS, strict=True):
        limit = getattr(plan.level, name)
        if limited and name not in limited:
            continue
        scale, text = 1.0, what
        if limited:
            scale, text = 100.0 / limit, f"{what} (limit {units.format_seconds(limit)})"
        for i, one in enumerate(systems):
            value, high = getattr(one, name), getattr(one, f"{name}_high")
            if value is None:
                continue
            axis.errorbar(
                scale * value, i + shift, xerr=[[0.0], [scale * (high - value)]], fmt=marker,
                color=colour, markersize=5, capsize=3, lw=1.1, label=None if i else text,
            )  # fmt: skip
    if limited:
        axis.axvline(100.0, color="black", lw=1.0)
        axis.set_xlim(left=0.0)
        axis.set_xlabel("% of the limit, up to the upper end of the 90% interval", fontsize=9)
    else:
        axis.set_xscale("log")
        axis.set_xlabel("seconds, up to the upper end of the 90% interval", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
