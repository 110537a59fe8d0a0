"""`rtsim validate`: predictions against measurement tables."""

from __future__ import annotations

import click

from rtsim.cli.parameters import count, deliver, json_option, output_option


@click.command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--profile", metavar="NAME|FILE", help="Use this profile for every row.")
@click.option(
    "--gpu", type=click.Path(), metavar="FILE",
    help="GPU that rows name and the catalogue lacks; else gpu.toml of a folder.",
)  # fmt: skip
@click.option(
    "--worst", type=count, default=5, show_default=True, metavar="N", help="Worst rows to list."
)
@click.option(
    "--plot",
    type=click.Path(),
    metavar="FILE",
    help="Draw predicted against measured times to FILE (.png, .svg, .pdf).",
)
@json_option
@output_option
def command(
    files: tuple[str, ...],
    profile: str | None,
    gpu: str | None,
    worst: int,
    plot: str | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Predict every row of measurement tables, or folders of them, and report the errors.

    Tables are CSV, gzipped CSV or Parquet. Rows that a fit saw and rows kept for validation are
    told apart where the tables do (column role).
    """
    from rtsim import report_validation as report
    from rtsim.errors import SpecError
    from rtsim.validate import validate

    if worst < 0:
        raise SpecError("worst", worst, "must be 0 or more")
    if plot is not None:
        from rtsim.plots import check_plot_file, plot_validation

        check_plot_file(plot)
    errors = validate(files, profile, worst=worst, gpu=gpu)
    if plot is not None:
        plot_validation(errors, plot)
    deliver(
        lambda: report.validation_to_json(errors),
        lambda: report.validation_view(errors),
        as_json=as_json,
        output=output,
    )
