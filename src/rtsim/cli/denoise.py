"""`rtsim denoise`: black-box latencies to denoised runtimes, and against the idealized ones."""

from __future__ import annotations

from typing import Any

import click

from rtsim.cli.parameters import count, deliver, json_option, output_option

_LINES_SHOWN = 12


@click.command("denoise")
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--model", metavar="NAME", help="Only this model ('provider/model').")
@click.option("--gpu", metavar="NAME", help="Compare with predictions on this GPU.")
@click.option("--stack", metavar="NAME", help="Software stack of the predictions.")
@click.option("--study", metavar="NAME|FILE", default="paper", show_default=True,
              help="GPU counts of the predictions.")  # fmt: skip
@click.option("--map", "map_file", metavar="FILE.toml", type=click.Path(),
              help="What models stand for that rtsim does not know.")  # fmt: skip
@click.option("--bootstraps", type=count, default=200, metavar="N", show_default=True,
              help="Resampled tables behind the intervals.")  # fmt: skip
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw to FILE (.png, .svg, .pdf).")
@json_option
@output_option
def command(
    file: str,
    model: str | None,
    gpu: str | None,
    stack: str | None,
    study: str,
    map_file: str | None,
    bootstraps: int,
    plot: str | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Fit prefill, per-output-token time and overhead to the floor of API latencies.

    FILE has columns prompt_tokens, output_tokens, runtime_s and, where there are, provider, model,
    repeat; or it is a table of denoised runtimes. -o FILE.csv writes such a table. With --gpu the
    times stand against idealized ones.
    """
    from rtsim.cli import denoise_view
    from rtsim.curves import read_curves, write_curves
    from rtsim.denoise import denoise
    from rtsim.errors import SpecError
    from rtsim.latencies import read_latencies
    from rtsim.table_text import read_cells

    if not 20 <= bootstraps <= 10_000:
        raise SpecError("bootstraps", bootstraps, "must be in 20 to 10000")
    if plot is not None:
        from rtsim.plots import check_plot_file

        check_plot_file(plot)
    table, fits = None, []
    if "per_output_token_s" in read_cells(file)[0]:
        curves = list(read_curves(file).values())
        if plot is not None:
            raise SpecError("plot", plot, "needs a table of latencies, this one is denoised")
    else:
        table = read_latencies(file, model)
        fits = denoise(table, bootstraps=bootstraps)
        curves = [fit.curve for fit in fits]
    against, rest = None, None
    if gpu is not None:
        from rtsim.idealized_against import against_idealized
        from rtsim.prediction import Interval
        from rtsim.scores import read_model_map
        from rtsim.study import load_study

        against, rest = against_idealized(
            curves, gpu=gpu, stack=stack, study=load_study(study),
            model_map=None if map_file is None else read_model_map(map_file),
            known_within={
                fit.curve.model: Interval(
                    fit.per_output_token_interval_s.low, fit.per_output_token_interval_s.high
                )
                for fit in fits
            },
        )  # fmt: skip
    elif stack is not None or map_file is not None:
        raise SpecError("gpu", "", "name the GPU to compare with, such as --gpu a100")
    if plot is not None and table is not None:
        from rtsim.plots_paper import plot_denoised

        plot_denoised(fits, table, plot)
    marked = () if table is None else table.marked
    if output is not None and output.endswith((".csv", ".parquet")):
        write_curves(output, curves, f"rtsim denoise {file}")
        left = denoise_view.every_marked(fits, marked)
        if left:
            lines = ", ".join(str(row.line) for row in left[:_LINES_SHOWN])
            more = f" and {len(left) - _LINES_SHOWN} more" if len(left) > _LINES_SHOWN else ""
            click.echo(f"{denoise_view.LEFT_OUT}: lines {lines}{more}", err=True)
        return
    result: dict[str, Any] = {
        "fits": fits, "curves": curves, "against": against, "rest": rest, "marked": marked,
    }  # fmt: skip
    deliver(
        lambda: denoise_view.to_json(file, **result),
        lambda: denoise_view.view(file, **result),
        as_json=as_json,
        output=output,
    )
