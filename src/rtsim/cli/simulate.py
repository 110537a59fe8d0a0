"""`rtsim simulate`: requests played against a serving system, event by event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rtsim.cli.parameters import (
    count,
    deliver,
    flag,
    json_option,
    kind_of_plot,
    output_option,
    set_option,
    system_options,
)
from rtsim.errors import SpecError


def _quantity(kind: str, example: str) -> Any:
    """Callback: text with a unit of `units` as a number in the base unit."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
        if text is None:
            return None
        from dataclasses import replace

        from rtsim import units

        quantity = replace(getattr(units, kind), example=example)
        try:
            return units.parse(text, quantity)
        except ValueError as error:
            name = parameter.opts[0].removeprefix("--").replace("-", "_")
            raise SpecError(name, text, str(error)) from None

    return read


def _percentiles(
    context: click.Context, parameter: click.Parameter, text: str
) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of numbers, such as 50,90,99.") from None


@click.command("simulate")
@system_options
@set_option
@click.option("--trace", type=click.Path(), metavar="FILE",
              help="Requests with columns arrival_s, prompt_tokens, output_tokens, maybe priority "
              "(.csv, .gz).")  # fmt: skip
@click.option("--rate", type=float, metavar="X",
              help="Requests per second; of a trace, instead of its own.")  # fmt: skip
@click.option("--concurrency", type=count, metavar="N",
              help="Requests kept in flight, instead of a rate.")  # fmt: skip
@click.option("--arrivals", metavar="NAME", help="poisson (default), constant or bursty.")
@click.option("--cv", type=float, metavar="X",
              help="Coefficient of variation of the gaps of bursty arrivals; 2.")  # fmt: skip
@click.option("--requests", type=count, metavar="N",
              help="Requests in all; 1000, or as many as a trace has.")  # fmt: skip
@click.option("--input-len", type=count, metavar="N", help="Prompt tokens of a request.")
@click.option("--output-len", type=count, metavar="N", help="Generated tokens of a request.")
@click.option("--lengths", type=click.Path(), metavar="FILE.csv",
              help="Lengths to draw from: prompt_tokens, output_tokens.")  # fmt: skip
@click.option("--seed", type=count, metavar="N", default=0, show_default=True,
              help="Of arrivals and lengths.")  # fmt: skip
@click.option("--level", metavar="NAME",
              help="Service level: interactive (450 ms, 40 ms), chat (2 s, 200 ms) or "
              "batch.")  # fmt: skip
@click.option("--ttft", "ttft_s", metavar="TIME", callback=_quantity("SECONDS", "500ms"),
              help="In its place: longest time to first token, such as 500ms.")  # fmt: skip
@click.option("--tpot", "tpot_s", metavar="TIME", callback=_quantity("SECONDS", "50ms"),
              help="And per output token, such as 50ms.")  # fmt: skip
@click.option("--share", type=float, metavar="X", default=0.99, show_default=True,
              help="Share of the requests that have to meet it.")  # fmt: skip
@click.option("--capacity", "find_capacity", is_flag=True,
              help="Look for the highest rate that meets the level.")  # fmt: skip
@click.option("--tolerance", type=float, metavar="X", default=0.01, show_default=True,
              help="How exactly, as a share of the rate.")  # fmt: skip
@click.option("--percentiles", metavar="LIST", default="50,90,95,99", show_default=True,
              callback=_percentiles, help="Of the times.")  # fmt: skip
@click.option("--policy", metavar="NAME",
              help="mixed, prefill-first or static; the stack's own.")  # fmt: skip
@click.option("--token-budget", type=count, metavar="N", help="Most tokens of a step.")
@click.option("--max-sequences", type=count, metavar="N",
              help="Most sequences that run at once, per group of GPUs.")  # fmt: skip
@click.option("--memory-frac", type=float, metavar="F",
              help="Share of a GPU's memory that the engine may use.")  # fmt: skip
@click.option("--max-model-len", type=count, metavar="N",
              help="Longest prompt and output; the model's positions.")  # fmt: skip
@click.option("--prefix-hit", type=float, metavar="F", default=0.0, show_default=True,
              help="Share of a prompt that is found in the prefix cache.")  # fmt: skip
@click.option("--preemption", metavar="NAME", default="recompute", show_default=True,
              help="recompute or swap.")  # fmt: skip
@click.option("--routing", metavar="NAME", default="round-robin", show_default=True,
              help="round-robin or least-loaded, over the replicas (--dp).")  # fmt: skip
@click.option("--prefill-workers", type=count, metavar="N",
              help="Replicas that only take prompts (disaggregated serving).")  # fmt: skip
@click.option("--decode-workers", type=count, metavar="N", help="Replicas that only decode; --dp.")
@click.option("--prefill-tp", type=count, metavar="N",
              help="Tensor parallelism of the prefill workers; --tp.")  # fmt: skip
@click.option("--prefill-gpu", metavar="NAME|FILE", help="GPU of the prefill workers; --gpu.")
@click.option("--transfer-rate", "transfer_bytes_per_s", metavar="RATE",
              callback=_quantity("BYTES_PER_SECOND", "50GB/s"),
              help="At which a GPU sends a cache to a decode worker, such as 50GB/s; the "
              "network's.")  # fmt: skip
@click.option("--records", type=click.Path(), metavar="FILE",
              help="Write a row per request (.csv, .parquet, .json).")  # fmt: skip
@click.option("--chrome-trace", type=click.Path(), metavar="FILE.json[.gz]",
              help="Write steps and requests for ui.perfetto.dev.")  # fmt: skip
@click.option("--plot", type=click.Path(), metavar="FILE",
              help="Draw the simulation (.png, .svg, .pdf).")  # fmt: skip
@click.option("--plot-kind", metavar="KIND",
              help="latency (distributions; default), timeline, or goodput (against the rate; with "
              "--capacity).")  # fmt: skip
@json_option
@output_option
def command(
    as_json: bool, output: str | None, plot: str | None, plot_kind: str | None, **request: Any
) -> None:
    """Simulate a serving system under requests that arrive, wait, run and end.

    Every step takes what the operator model says for the batch that is in it. Times of requests
    come with percentiles; --capacity finds the highest rate that still meets a service level.
    """
    from rtsim.cli import simulate_view
    from rtsim.simulation import simulate

    _check_apart(output=output, plot=plot, **{n: request[n] for n in ("records", "chrome_trace")})
    kind = kind_of_plot(plot_kind, plot, "latency")
    if plot is not None:
        from rtsim.plots import check_plot_file
        from rtsim.plots_serving import check_kind, plot_simulation

        check_kind(kind, searched=request["find_capacity"])
        check_plot_file(plot)
    given = {name: value for name, value in request.items() if value is not None}
    with simulate_view.progress(searching=request["find_capacity"]) as report:
        curve = plot is not None and kind == "goodput"
        found = simulate(**given, curve=curve, progress=report)
    if plot is not None:
        plot_simulation(found, plot, kind)
    deliver(
        lambda: simulate_view.to_json(found),
        lambda: simulate_view.view(found),
        as_json=as_json,
        output=output,
    )


def _check_apart(**files: str | None) -> None:
    """Raise SpecError where two outputs would be written to one file."""
    seen: dict[Path, str] = {}
    for name, file in files.items():
        if file is None:
            continue
        path = Path(file).resolve()
        if path in seen:
            raise SpecError(name, file, f"is also written by {flag(seen[path])}")
        seen[path] = name
