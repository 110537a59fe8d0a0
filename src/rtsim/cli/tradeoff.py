"""`rtsim tradeoff`: benchmark scores against efficiency, with the Pareto frontier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rtsim.cli.parameters import deliver, json_option, output_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rtsim.tradeoff import MetricView, Tradeoff


@click.command("tradeoff")
@click.argument("file", metavar="FILE", type=click.Path())
@click.option(
    "--x",
    "xs",
    default="idealized_runtime",
    metavar="METRIC[,...]",
    show_default=True,
    help="raw_runtime, denoised_runtime, idealized_runtime, idealized_cost, idealized_energy.",
)
@click.option("--y", default="exact_match", metavar="COLUMN", show_default=True, help="Score.")
@click.option("--gpu", default="a100", metavar="NAME", show_default=True, help="GPU for all.")
@click.option("--stack", metavar="NAME", help="Software stack; else the study's.")
@click.option("--study", metavar="NAME|FILE", default="paper", show_default=True,
              help="GPU counts; other models take the fewest that hold them.")  # fmt: skip
@click.option("--denoised", metavar="FILE", type=click.Path(),
              help="Denoised runtimes, as rtsim denoise -o writes them.")  # fmt: skip
@click.option("--map", "map_file", metavar="FILE.toml", type=click.Path(),
              help="What models stand for that rtsim does not know.")  # fmt: skip
@click.option("--scenario", metavar="NAME", help="One scenario only.")
@click.option("--plot", type=click.Path(), metavar="FILE",
              help="Draw the overall panels to FILE (.png, .svg, .pdf).")  # fmt: skip
@click.option("--plot-scenarios", type=click.Path(), metavar="FILE",
              help="Draw a panel for each of nine scenarios.")  # fmt: skip
@json_option
@output_option
def command(
    file: str,
    xs: str,
    y: str,
    gpu: str,
    stack: str | None,
    study: str,
    denoised: str | None,
    map_file: str | None,
    scenario: str | None,
    plot: str | None,
    plot_scenarios: str | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Join scores per scenario with metrics, and say who is on the frontier and who is dominated.

    FILE has columns scenario, model, mean_prompt_tokens, mean_output_tokens, the score and, for
    raw_runtime, mean_runtime_s. -o FILE.csv writes the joined table.
    """
    from rtsim.curves import read_curves
    from rtsim.scores import read_model_map
    from rtsim.study import load_study
    from rtsim.tradeoff import only_scenario, tradeoff

    for path in (plot, plot_scenarios):
        if path is not None:
            from rtsim.plots import check_plot_file

            check_plot_file(path)
    chosen = load_study(study)
    result = tradeoff(
        file,
        [x.strip() for x in xs.split(",") if x.strip()],
        y,
        gpu=gpu,
        stack=stack or chosen.stack,
        study=chosen,
        curves=None if denoised is None else read_curves(denoised),
        model_map=None if map_file is None else read_model_map(map_file),
    )
    if scenario is not None:
        result = only_scenario(result, scenario)
    if plot is not None or plot_scenarios is not None:
        from rtsim.plots_paper import plot_tradeoff

        if plot is not None:
            plot_tradeoff(result, plot)
        if plot_scenarios is not None:
            plot_tradeoff(result, plot_scenarios, scenarios=True)
    if output is not None and output.endswith((".csv", ".parquet")):
        from rtsim.table_text import write_table

        write_table(output, _columns(result))
        return
    deliver(lambda: _to_json(result), lambda: _view(result), as_json=as_json, output=output)


def _columns(result: Tradeoff) -> dict[str, list[Any]]:
    """A row per metric, scenario and model; models without the metric have empty figures."""
    names = ("metric", "scenario", "model", "x", "y", "on_frontier", "dominated_by", "note")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for view in result.views:
        remarks: dict[str, list[str]] = {}
        for mark in view.marked:
            remarks.setdefault(mark.model, []).append(mark.reason)
        rows: list[tuple[Any, ...]] = [
            (view.metric, panel.scenario, p.model, p.x, p.y, int(p.on_frontier),
             ";".join(p.dominated_by), "; ".join(remarks.get(p.model, ())))
            for panel in (view.overall, *view.scenarios)
            for p in panel.points
        ]  # fmt: skip
        rows += [
            (view.metric, "", mark.model, "", "", "", "", mark.reason)
            for mark in view.marked
            if mark.left_out
        ]
        for row in rows:
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
    return columns


def _to_json(result: Tradeoff) -> dict[str, Any]:
    from rtsim.cli.tables import as_json

    body: dict[str, Any] = as_json(result)
    for view, made in zip(body["views"], result.views, strict=True):
        view["overall"]["frontier"] = list(made.overall.frontier)
        for panel, own in zip(view["scenarios"], made.scenarios, strict=True):
            panel["frontier"] = list(own.frontier)
    return body


def _view(result: Tradeoff) -> RenderableType:
    from rich.console import Group

    from rtsim.cli.tables import listed, plain

    parts: list[RenderableType] = []
    for view in result.views:
        parts += [*_metric_view(view, result), plain("")]
    for change in result.changes:
        lines = [f"order agrees by Kendall tau {change.kendall_tau:.2f}"]
        lines += [f"onto the frontier: {', '.join(change.gained)}"] if change.gained else []
        lines += [f"off the frontier: {', '.join(change.lost)}"] if change.lost else []
        lines += [
            f"{a} is ahead of {b} by {change.first}, behind it by {change.second}"
            for a, b in change.swapped
        ]
        parts += listed(f"{change.first} against {change.second}", lines, most=16)
    parts += listed(
        "Rows left out", (f"line {line}: {reason}" for line, reason in result.unusable_rows)
    )
    return Group(*parts)


def _metric_view(view: MetricView, result: Tradeoff) -> list[RenderableType]:
    from rtsim.cli.tables import heading, listed, plain, table
    from rtsim.tradeoff import UNITS

    single = len(view.scenarios) == 1
    panel = view.scenarios[0] if single else view.overall
    over = panel.scenario if single else f"mean of {view.shared_scenarios} shared scenarios"
    made = table("Model", UNITS[view.metric], result.score, "Dominated by", text=("Dominated by",))
    for point in panel.points:
        made.add_row(
            point.model, f"{point.x:.3g}", f"{point.y:.3f}",
            plain(", ".join(point.dominated_by) or "- (frontier)"),
        )  # fmt: skip
    title = f"{result.score} against {view.metric}: {over}"
    if view.metric.startswith("idealized"):
        title += f" ({result.gpu}, {result.stack})"
    parts: list[RenderableType] = [heading(title), plain(""), made]
    if not single:
        count: dict[str, int] = {}
        inside: dict[str, int] = {}
        for one in view.scenarios:
            for point in one.points:
                inside[point.model] = inside.get(point.model, 0) + 1
                count[point.model] = count.get(point.model, 0) + point.on_frontier
        order = sorted(count, key=lambda model: (-count[model] / inside[model], model))
        lines = [f"{model}: {count[model]} of {inside[model]}" for model in order]
        parts += listed("On the frontier of how many scenarios", lines)
    return parts + listed("Marked", (f"{mark.model}: {mark.reason}" for mark in view.marked))
