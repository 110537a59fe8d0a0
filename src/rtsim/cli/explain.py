"""`rtsim explain`: what a prediction depends on, and where its bounds flip."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rtsim.cli.parameters import (
    deliver,
    json_option,
    output_option,
    request_options,
    set_option,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rtsim.explain import Explanation

_FLIPS_SHOWN = 16
_TITLES = {
    "ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_latency_s": "Latency",
    "usd_per_million_output_tokens": "$/Mtok",
}  # fmt: skip


@click.command("explain")
@request_options
@set_option
@click.option("--plot", type=click.Path(), metavar="FILE",
              help="Draw the elasticities as a tornado (.png, .svg, .pdf).")  # fmt: skip
@json_option
@output_option
def command(as_json: bool, output: str | None, plot: str | None, **request: Any) -> None:
    """Say what a prediction depends on.

    An elasticity is the per cent that a metric moves by per per cent of a resource or a size. A
    bound flips where an operator becomes limited by something else; resources are scanned from 1/8
    to 8 times what they are.
    """
    from rtsim.explain import explain

    if plot is not None:
        from rtsim.plots import check_plot_file

        check_plot_file(plot)
    found = explain(**{name: value for name, value in request.items() if value is not None})
    if plot is not None:
        from rtsim.plots_tornado import plot_tornado

        plot_tornado(found, plot)
    deliver(lambda: _to_json(found), lambda: _view(found), as_json=as_json, output=output)


def _to_json(found: Explanation) -> dict[str, Any]:
    from rtsim import report
    from rtsim.explain import METRICS

    return {
        "prediction": report.prediction_to_json(found.prediction),
        "elasticities": [asdict(one) for one in found.elasticities],
        "hardware_sum": {metric: found.hardware_sum(metric) for metric in METRICS},
        "flips": [asdict(one) for one in found.flips],
        "notes": list(found.notes),
    }


def _view(found: Explanation) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from rtsim import units

    p = found.prediction
    w = p.workload
    tpot = "" if p.tpot_s is None else f"TPOT {units.format_seconds(p.tpot_s)}, "
    parts: list[Any] = [
        Text(f"{p.model.name} on {p.num_gpus} x {p.gpu.name}, batch {w.batch_size:,}, prompt "
             f"{w.input_len:,}, output {w.output_len:,}", style="bold"),
        Text(f"TTFT {units.format_seconds(p.ttft_s)}, {tpot}latency "
             f"{units.format_seconds(p.e2e_latency_s)}"),
        "",
        _elasticities(found),
    ]  # fmt: skip
    if found.flips:
        parts += ["", _flips(found)]
        if len(found.flips) > _FLIPS_SHOWN:
            parts.append(Text(f"and {len(found.flips) - _FLIPS_SHOWN} more (--json has all)"))
    parts += ["", Text("Notes", style="bold")]
    return Group(*parts, *(Padding(Text(note), (0, 0, 0, 2)) for note in found.notes))


def _elasticities(found: Explanation) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("% per % of", no_wrap=True)
    for title in _TITLES.values():
        table.add_column(title, justify="right", no_wrap=True)
    for kind in ("hardware", "workload"):
        for one in found.elasticities:
            if one.kind == kind:
                table.add_row(one.name, *(_signed(getattr(one, metric)) for metric in _TITLES))
        if kind == "hardware":
            sums = (_signed(found.hardware_sum(metric)) for metric in _TITLES)
            table.add_row("sum of hardware", *sums, style="bold", end_section=True)
            table.add_row("")
    return table


def _flips(found: Explanation) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, side in (("Flips at", "right"), ("of", "left"), ("what", "left"),
                       ("from", "left"), ("to", "left")):  # fmt: skip
        table.add_column(name, justify=side, no_wrap=name != "what")  # type: ignore[arg-type]
    for one in found.flips[:_FLIPS_SHOWN]:
        what = one.what if one.what.endswith(one.phase) else f"{one.phase} {one.what}"
        table.add_row(f"{one.factor:.2f}x", one.name, what, one.before, one.after)
    return table


def _signed(value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:+.2f}"
    return "0" if text in ("+0.00", "-0.00") else text
