"""`rtsim predict`: one model, one GPU system, one workload."""

from __future__ import annotations

from typing import Any

import click

from rtsim.cli.parameters import (
    SERVING_NAMES,
    deliver,
    flag,
    json_option,
    kind_of_plot,
    output_option,
    request_options,
    serving_options,
    set_option,
)
from rtsim.errors import SpecError


@click.command("predict")
@request_options
@set_option
@click.option("--plot", type=click.Path(), metavar="FILE",
              help="Draw the prediction (.png, .svg, .pdf).")  # fmt: skip
@click.option("--plot-kind", metavar="KIND",
              help="breakdown (default), roofline, or batch (times against batch).")  # fmt: skip
@serving_options
@json_option
@output_option
def command(
    as_json: bool, output: str | None, plot: str | None, plot_kind: str | None, **request: Any
) -> None:
    """Predict time, memory, cost and energy of one generation, or of serving many.

    What is left out takes a default, and the output names what was assumed. With --set the
    figures stand beside those of the system without it, with the operators that moved. With
    --concurrency the answer is the steady state of a serving engine.
    """
    from rtsim import report
    from rtsim.predict import predict

    given = {name: value for name, value in request.items() if value is not None}
    serving = {name: given.pop(name) for name in SERVING_NAMES if name in given}
    if "concurrency" in serving:
        _serve(serving, given, as_json, output, plot)
        return
    if serving:
        raise SpecError.of_missing("concurrency", f"is needed with {flag(next(iter(serving)))}")
    kind = kind_of_plot(plot_kind, plot, "breakdown")
    if plot is not None:
        from rtsim.plots import check_plot_file
        from rtsim.plots_prediction import check_kind, plot_prediction

        check_kind(kind)
        check_plot_file(plot)
    prediction = predict(**given)
    if plot is not None:
        plot_prediction(prediction, plot, kind, request=given)
    deliver(
        lambda: report.prediction_to_json(prediction),
        lambda: report.prediction_view(prediction),
        as_json=as_json,
        output=output,
    )


def _serve(
    serving: dict[str, Any], given: dict[str, Any], as_json: bool, output: str | None,
    plot: str | None,
) -> None:  # fmt: skip
    from rtsim.report_serving import serving_to_json, serving_view
    from rtsim.serving.serve import serve

    for name, why in (
        ("batch_size", "the engine makes its batches itself"),
        ("micro_batches", "the engine splits its batch over the stages"),
        ("cp", "is not served"),
    ):
        if name in given:
            raise SpecError(name, given[name], f"{why} with --concurrency")
    if plot is not None:
        raise SpecError("plot", plot, "is of one generation: leave --concurrency out")
    made = serve(**given, **serving)
    deliver(
        lambda: serving_to_json(made), lambda: serving_view(made), as_json=as_json, output=output
    )
