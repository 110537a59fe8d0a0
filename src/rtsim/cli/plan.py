"""`rtsim plan`: the cheapest, fastest or least-energy system that serves a model at a level."""

from __future__ import annotations

from typing import Any

import click

from rtsim.cli.parameters import (
    count,
    deliver,
    engine_options,
    json_option,
    output_option,
    set_option,
)


def _seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    from rtsim import units
    from rtsim.errors import SpecError

    try:
        return units.parse(text, units.SECONDS)
    except ValueError as error:
        raise SpecError(parameter.name or "", text, str(error)) from None


@click.command("plan")
@click.option("--arch", required=True, metavar="NAME|FILE", help="Model, as in rtsim predict.")
@click.option("--gpu", required=True, metavar="A,B", help="GPUs: names or .toml files.")
@click.option("--rate", "rate_per_s", type=float, metavar="X", help="Requests per second to carry.")
@click.option(
    "--budget",
    "budget_usd_per_hour",
    type=float,
    metavar="USD",
    help="Per hour: what it can buy; with --rate the most that may be spent.",
)
@click.option("--ttft", "ttft_s", metavar="TIME", callback=_seconds,
              help="Longest time to first token, such as 500ms.")  # fmt: skip
@click.option("--tpot", "tpot_s", metavar="TIME", callback=_seconds,
              help="Longest time per output token, such as 50ms.")  # fmt: skip
@click.option(
    "--level",
    metavar="NAME",
    help="In place of both, limits of MLPerf Inference: interactive (v5.0: 450 ms, 40 ms), chat "
    "(v4.0 Server: 2 s, 200 ms), batch (Offline: no limit).",
)
@click.option("--share", type=float, metavar="X", default=0.99, show_default=True,
              help="Share of the requests that have to meet the level.")  # fmt: skip
@click.option("--confident", is_flag=True,
              help="The upper end of the 90% interval has to meet the level.")  # fmt: skip
@click.option("--input-len", type=count, metavar="N", help="Prompt tokens of a request.")
@click.option("--output-len", type=count, metavar="N", help="Generated tokens of a request.")
@click.option("--lengths", type=click.Path(), metavar="FILE.csv",
              help="Requests, with columns prompt_tokens and output_tokens.")  # fmt: skip
@click.option("--objective", default="cost", show_default=True, metavar="NAME",
              help="cost, latency or energy: what is to be least.")  # fmt: skip
@click.option("--max-gpus", type=count, metavar="N", help="Most GPUs in all.")
@click.option("--tp", metavar="LIST", help="Tensor-parallel degrees; else all that a node allows.")
@click.option("--pp", metavar="LIST", help="Pipeline degrees; else all that a node allows.")
@click.option("--ep", metavar="LIST", help="Expert-parallel degrees; else all that tp allows.")
@click.option("--attention-dp", metavar="LIST", help="As in rtsim predict; else 1.")
@click.option("--micro-batches", metavar="LIST", help="As in rtsim predict, of static batches.")
@click.option("--static", is_flag=True, default=None,
              help="Replicas work off static batches, instead of serving.")  # fmt: skip
@click.option("--batch-size", metavar="LIST",
              help="Sequences of a static batch, in a replica; else 1:512:x2.")  # fmt: skip
@click.option("--stack", metavar="A,B", help="Software stacks.")
@click.option("--dtype", metavar="A,B", help="Number formats of the computation.")
@click.option("--kv-cache-dtype", metavar="A,B", help="Number formats of the KV cache.")
@click.option("--quantization", metavar="A,B", help="Weight formats, such as none,fp8.")
@click.option("--concurrency", metavar="LIST",
              help="Requests in flight in a replica; else 1 to 32, then 16 an octave.")  # fmt: skip
@engine_options
@click.option("--runner-ups", type=click.IntRange(0, 1000), metavar="N", default=5,
              show_default=True, help="Other systems to show.")  # fmt: skip
@set_option
@click.option("--plot", type=click.Path(), metavar="FILE",
              help="Draw the systems and their margins (.png, .svg, .pdf).")  # fmt: skip
@json_option
@output_option
def command(as_json: bool, output: str | None, plot: str | None, **request: Any) -> None:
    """Find the best system that serves a model at a service level.

    Every GPU, split, format and number of requests in flight is predicted, so that the answer is
    exact. Replicas serve by continuous batching, in their steady state at the load. With --static,
    --batch-size or --micro-batches, a --stack that does not serve, or an encoder, they work off
    batches. LIST is values 1,2,4, a range 1:9:2, or a geometric range 1:512:x2.
    """
    from rtsim.cli import plan_view
    from rtsim.plan import plan

    if plot is not None:
        from rtsim.plots import check_plot_file

        check_plot_file(plot)
    found = plan(**request)
    if plot is not None:
        from rtsim.plots_plan import plot_plan

        plot_plan(found, plot)
    deliver(
        lambda: plan_view.to_json(found),
        lambda: plan_view.view(found),
        as_json=as_json,
        output=output,
    )
