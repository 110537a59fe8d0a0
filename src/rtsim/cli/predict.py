"""`rtsim predict`: one model, one GPU system, one workload."""

from __future__ import annotations

from typing import Any

import click

from rtsim.cli.parameters import count, deliver, json_option, output_option, set_option


@click.command("predict")
@click.option(
    "--arch",
    required=True,
    metavar="NAME|FILE",
    help="Model: a name (see rtsim list models), a .toml file, or a Hugging Face config.json.",
)
@click.option(
    "--gpu",
    required=True,
    metavar="NAME|FILE",
    help="GPU: a name (see rtsim list gpus) or a .toml file.",
)
@click.option("--num-gpus", type=count, metavar="N", help="GPUs in all.")
@click.option("--tp", type=count, metavar="N", help="Tensor-parallel degree.")
@click.option("--pp", type=count, metavar="N", help="Pipeline-parallel degree.")
@click.option("--ep", type=count, metavar="N", help="Expert-parallel degree.")
@click.option("--dp", type=count, metavar="N", help="Data-parallel degree (replicas).")
@click.option("--cp", type=count, metavar="N", help="Context-parallel degree, for long prompts.")
@click.option(
    "--attention-dp",
    type=count,
    metavar="N",
    help="Groups with sequences of their own that share the experts.",
)
@click.option("--micro-batches", type=count, metavar="N", help="Parts of a batch in the pipeline.")
@click.option("--stack", metavar="NAME", help="Software stack, such as vllm or megatron-lm.")
@click.option("--batch-size", type=count, metavar="N", help="Sequences at a time.")
@click.option("--input-len", type=count, metavar="N", help="Prompt tokens per sequence.")
@click.option("--output-len", type=count, metavar="N", help="Generated tokens per sequence.")
@click.option("--dtype", metavar="D", help="Number format of the computation, such as bf16.")
@click.option("--kv-cache-dtype", metavar="D", help="Number format of the KV cache.")
@click.option("--quantization", metavar="Q", help="Weight format, such as int4_wo or fp8.")
@click.option("--profile", metavar="NAME|FILE", help="Fitted profile (see rtsim list profiles).")
@set_option
@json_option
@output_option
def command(as_json: bool, output: str | None, **request: Any) -> None:
    """Predict time, memory, cost and energy of one generation.

    What is left out takes a default, and the output names what was assumed. With --set the
    figures stand beside those of the system without it, with the operators that moved.
    """
    from rtsim import report
    from rtsim.predict import predict

    prediction = predict(**{name: value for name, value in request.items() if value is not None})
    deliver(
        lambda: report.prediction_to_json(prediction),
        lambda: report.prediction_view(prediction),
        as_json=as_json,
        output=output,
    )
