"""`rtsim sweep`: a prediction for every row of a grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from rtsim.cli.parameters import count, json_option

_AXES = (
    ("arch", "A,B", "Models: names or .toml files."),
    ("gpu", "A,B", "GPUs: names or .toml files."),
    ("tp", "LIST", "Tensor-parallel degrees."),
    ("pp", "LIST", "Pipeline-parallel degrees."),
    ("ep", "LIST", "Expert-parallel degrees."),
    ("dp", "LIST", "Data-parallel degrees (replicas)."),
    ("cp", "LIST", "Context-parallel degrees."),
    ("attention-dp", "LIST", "Groups with sequences of their own that share the experts."),
    ("micro-batches", "LIST", "Parts of a batch in the pipeline."),
    ("num-gpus", "LIST", "GPUs in all."),
    ("stack", "A,B", "Software stacks."),
    ("profile", "A,B", "Fitted profiles: names or .toml files."),
    ("batch-size", "LIST", "Sequences at a time."),
    ("input-len", "LIST", "Prompt tokens per sequence."),
    ("output-len", "LIST", "Generated tokens per sequence."),
    ("dtype", "A,B", "Number formats of the computation."),
    ("kv-cache-dtype", "A,B", "Number formats of the KV cache."),
    ("quantization", "A,B", "Weight formats."),
    ("concurrency", "LIST", "Requests in flight: serving in its steady state."),
    ("policy", "A,B", "How prompts get into steps: mixed, prefill-first."),
    ("token-budget", "LIST", "Most tokens of a step."),
    ("max-sequences", "LIST", "Most sequences that run at once, per group of GPUs."),
    ("memory-frac", "LIST", "Share of a GPU's memory that the engine may use."),
    ("prefix-hit", "LIST", "Share of a prompt that is found in the prefix cache."),
    ("speculative-tokens", "LIST", "Tokens drafted per step."),
    ("acceptance", "LIST", "Chance that a drafted token is kept."),
    ("draft-frac", "LIST", "Time of drafting a token, as a share of a decode step."),
    ("prefill-workers", "LIST", "Replicas that only take prompts (disaggregated serving)."),
    ("decode-workers", "LIST", "Replicas that only decode."),
    ("prefill-tp", "LIST", "Tensor parallelism of the prefill workers; --tp unless given."),
)
_SHOWN_ROWS = 20
_SHOWN_ORDER = "usd_per_million_output_tokens"


def _axis_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, metavar, text in reversed(_AXES):
        required = name in ("arch", "gpu")
        command = click.option(f"--{name}", metavar=metavar, help=text, required=required)(command)
    return command


def _settings(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    if not texts:
        return {}
    from rtsim.whatif import parse_settings

    return parse_settings(texts)


@click.command("sweep")
@_axis_options
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=LIST",
    callback=_settings,
    help="Values of a figure, such as gpu.hbm_bytes_per_s=0.5x:4x:x1.25. Can be repeated.",
)
@click.option("--where", metavar="EXPR", help="Keep rows such as 'fits and tpot_s < 0.05'.")
@click.option("--sort", metavar="COL[:desc]", help="Order of the rows.")
@click.option("--top", type=count, metavar="N", help="Keep the first N rows.")
@click.option(
    "--pareto",
    metavar="X,Y",
    help="Keep rows that no other beats in both columns; max:X where more is better.",
)
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the frontier (.png, .svg).")
@click.option(
    "-o", "--output", type=click.Path(), metavar="FILE", help="Write .parquet, .csv or .json."
)
@click.option("--threads", type=count, metavar="N", help="Threads; all cores without it.")
@click.option("--scheduler", metavar="ADDRESS", help="Dask cluster, such as tcp://host:8786.")
@click.option("--yes", is_flag=True, help="Also where the grid has more than 10^12 rows.")
@json_option
def command(
    changes: dict[str, str],
    where: str | None,
    sort: str | None,
    top: int | None,
    pareto: str | None,
    plot: str | None,
    output: str | None,
    threads: int | None,
    scheduler: str | None,
    yes: bool,
    as_json: bool,
    **axes: str | None,
) -> None:
    """Predict every row of a grid.

    LIST is values 1,2,4, a range 1:9:2, or a geometric range 1:512:x2; k and K are 1000 and 1024.
    Without -o the best rows are shown. With it, a sweep that was stopped goes on when the same
    command is given again.
    """
    from rtsim.cli import sweep_view
    from rtsim.sweep import sweep

    grid = {name: text for name, text in axes.items() if text is not None}
    if output is None:
        top = _SHOWN_ROWS if top is None and pareto is None else top
        sort = _SHOWN_ORDER if sort is None and pareto is None else sort
    request: dict[str, Any] = {
        "where": where, "sort": sort, "top": top, "pareto": pareto, "output": output,
        "plot": plot, "threads": threads, "scheduler": scheduler, "yes": yes,
    }  # fmt: skip
    with sweep_view.progress() as report:
        try:
            result = sweep({**grid, **changes}, **request, progress=report)
        except KeyboardInterrupt:
            if output is not None:
                text = f"stopped: the same command goes on from the parts in {output}.parts"
                click.echo(text, err=True)
            raise
    if as_json:
        click.echo(json.dumps(sweep_view.to_json(result), indent=2, allow_nan=False))
        return
    sweep_view.show(result, extra=[sort, *(pareto or "").split(",")])
