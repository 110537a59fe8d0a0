"""`rtsim profile-fit`: the two-part form fitted to measured runtimes, beside the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rtsim.cli.parameters import count, deliver, json_option, output_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rtsim.profiled import ProfiledModel

_KNOTS_SHOWN = 6


@click.command("profile-fit")
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--model", metavar="NAME", help="Fit the rows of this model only.")
@click.option("--arch", metavar="NAME|FILE", help="Model to predict, where FILE states no shape.")
@click.option("--gpu", metavar="NAME|FILE", help="GPU of that prediction.")
@click.option("--stack", metavar="NAME", help="Software stack of that prediction.")
@click.option("--num-gpus", type=count, metavar="N", help="GPUs; else the fewest that hold it.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw to FILE (.png, .svg, .pdf).")
@json_option
@output_option
def command(
    file: str,
    model: str | None,
    arch: str | None,
    gpu: str | None,
    stack: str | None,
    num_gpus: int | None,
    plot: str | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Fit prefill(p) + (o - 1) x per-output-token time to a table of runtimes.

    FILE has columns prompt_tokens, output_tokens and runtime_s, or is a table of kind generation,
    whose rows rtsim also predicts without the fit.
    """
    from rtsim.errors import SpecError
    from rtsim.profiled import profile_fit

    system = None
    if arch is not None:
        from rtsim.gpus_needed import system_on

        system = system_on(arch, gpu or "a100", stack, num_gpus=num_gpus)
    elif gpu is not None or stack is not None or num_gpus is not None:
        raise SpecError("arch", "", "name the model to predict, with --arch")
    if plot is not None:
        from rtsim.plots import check_plot_file

        check_plot_file(plot)
    fitted = profile_fit(file, model=model, system=system)
    if plot is not None:
        from rtsim.plots_paper import plot_profiled

        plot_profiled(fitted, plot)
    deliver(
        lambda: _to_json(file, fitted), lambda: _view(file, fitted), as_json=as_json, output=output
    )


def _to_json(file: str, fitted: list[ProfiledModel]) -> dict[str, Any]:
    from rtsim.cli.tables import as_json

    return {"file": file, "models": as_json(fitted)}


def _view(file: str, fitted: list[ProfiledModel]) -> RenderableType:
    from rich.console import Group

    from rtsim import units
    from rtsim.cli.tables import heading, listed, percent, plain, table

    made = table("Model", "Rows", "R^2", "Per token", "Fit", "Predicted", "Rows to match")
    for one in fitted:
        u = one.unprofiled
        matched = "-" if u is None else ("none tried" if u.rows_to_match is None else "")
        made.add_row(
            one.model, str(one.rows), f"{one.r_squared:.5f}",
            units.format_seconds(one.fit.per_output_token_s), percent(one.errors.mean),
            "-" if u is None else percent(u.errors.mean),
            matched or str(u.rows_to_match if u else ""),
        )  # fmt: skip
    parts: list[RenderableType] = [
        heading(f"{file}: T(p, o) = prefill(p) + (o - 1) x per token"),
        plain(""),
        made,
        plain(""),
        plain(
            "Fit, Predicted: mean error of the fit to all rows, and of rtsim's prediction without "
            "it. Rows to match: measurements a fit needs until it predicts the others as well."
        ),
    ]
    lines = []
    for one in fitted:
        knots = list(zip(one.fit.knots, one.fit.prefill_s, strict=True))
        step = max(1, -(-len(knots) // _KNOTS_SHOWN))
        shown = dict.fromkeys([*knots[::step], knots[-1]])
        text = ", ".join(f"{p}: {units.format_seconds(t)}" for p, t in shown)
        worst = max(range(one.rows), key=lambda k, one=one: abs(one.residuals_s[k]))  # type: ignore[misc]
        lines.append(
            f"{one.model}{f' on {one.system}' if one.system else ''}: prefill {text} "
            f"({len(knots)} knots); largest residual {1e3 * one.residuals_s[worst]:+.1f} ms at "
            f"line {one.lines[worst]}"
        )
    parts += listed("Prefill by prompt tokens", lines)
    parts += listed("Notes", (note for one in fitted for note in one.notes))
    return Group(*parts)
