"""`rtsim predict`: one model, one GPU system, one workload."""

from __future__ import annotations

from typing import Any

import click

from rtsim.cli.parameters import (
    deliver,
    json_option,
    output_option,
    request_options,
    set_option,
)


@click.command("predict")
@request_options
@set_option
@click.option("--plot", type=click.Path(), metavar="FILE",
              help="Draw the prediction (.png, .svg, .pdf).")  # fmt: skip
@click.option("--plot-kind", default="breakdown", show_default=True, metavar="KIND",
              help="breakdown, roofline, or batch (times against batch).")  # fmt: skip
@json_option
@output_option
def command(
    as_json: bool, output: str | None, plot: str | None, plot_kind: str, **request: Any
) -> None:
    """Predict time, memory, cost and energy of one generation.

    What is left out takes a default, and the output names what was assumed. With --set the
    figures stand beside those of the system without it, with the operators that moved.
    """
    from rtsim import report
    from rtsim.predict import predict

    given = {name: value for name, value in request.items() if value is not None}
    if plot is not None:
        from rtsim.plots import check_plot_file
        from rtsim.plots_prediction import check_kind, plot_prediction

        check_kind(plot_kind)
        check_plot_file(plot)
    prediction = predict(**given)
    if plot is not None:
        plot_prediction(prediction, plot, plot_kind, request=given)
    deliver(
        lambda: report.prediction_to_json(prediction),
        lambda: report.prediction_view(prediction),
        as_json=as_json,
        output=output,
    )
