"""Parameter types and options that several commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

_COUNT = re.compile(r"([+-]?\d[\d_,]*)([kKmM]?)")
# Lower case is decimal and upper case binary, as in vLLM's --max-model-len.
_SUFFIXES = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}


def count(text: Any) -> int:
    """Parameter type: a whole number, such as 4096, 4k (4000) or 4K (4096)."""
    match = _COUNT.fullmatch(str(text).strip())
    if match is None:
        raise click.BadParameter(f"'{text}' is not a whole number, such as 512, 4k or 4K (4096).")
    return int(re.sub("[_,]", "", match.group(1))) * _SUFFIXES[match.group(2)]


def _settings(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str] | None:
    if not texts:
        return None
    from rtsim.whatif import parse_settings

    return parse_settings(texts)


_SYSTEM = (
    click.option(
        "--arch",
        required=True,
        metavar="NAME|FILE",
        help="Model: a name (see rtsim list models), a .toml file, or a Hugging Face config.json.",
    ),
    click.option(
        "--gpu",
        required=True,
        metavar="NAME|FILE",
        help="GPU: a name (see rtsim list gpus) or a .toml file.",
    ),
    click.option("--num-gpus", type=count, metavar="N", help="GPUs in all."),
    click.option("--tp", type=count, metavar="N", help="Tensor-parallel degree."),
    click.option("--pp", type=count, metavar="N", help="Pipeline-parallel degree."),
    click.option("--ep", type=count, metavar="N", help="Expert-parallel degree."),
    click.option("--dp", type=count, metavar="N", help="Data-parallel degree (replicas)."),
    click.option(
        "--cp", type=count, metavar="N", help="Context-parallel degree, for long prompts."
    ),
    click.option(
        "--attention-dp",
        type=count,
        metavar="N",
        help="Groups with sequences of their own that share the experts.",
    ),
    click.option(
        "--micro-batches", type=count, metavar="N", help="Parts of a batch in the pipeline."
    ),
    click.option("--stack", metavar="NAME", help="Software stack, such as vllm or megatron-lm."),
    click.option(
        "--dtype",
        metavar="D",
        help="Number format of the computation, such as bf16. fp8, int8 and fp4 mean the "
        "weights and products of linear layers, int4 their weights alone; the rest stays in the "
        "model's own.",
    ),
    click.option("--kv-cache-dtype", metavar="D", help="Number format of the KV cache."),
    click.option("--quantization", metavar="Q", help="Weight format, such as int4_wo or fp8."),
    click.option(
        "--profile", metavar="NAME|FILE", help="Fitted profile (see rtsim list profiles)."
    ),
)
_WORKLOAD = (
    click.option("--batch-size", type=count, metavar="N", help="Sequences at a time."),
    click.option("--input-len", type=count, metavar="N", help="Prompt tokens per sequence."),
    click.option("--output-len", type=count, metavar="N", help="Generated tokens per sequence."),
)


def system_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what runs: model, GPUs, split, stack, formats."""
    for option in reversed(_SYSTEM):
        command = option(command)
    return command


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what is predicted: model, GPU, split, workload, formats."""
    for option in reversed((*_SYSTEM, *_WORKLOAD)):
        command = option(command)
    return command


_ENGINE = (
    click.option("--policy", metavar="NAME",
                 help="How prompts get into steps: mixed or prefill-first; the stack's own."),
    click.option("--token-budget", type=count, metavar="N", help="Most tokens of a step."),
    click.option("--max-sequences", type=count, metavar="N",
                 help="Most sequences that run at once, per group of GPUs."),
    click.option("--memory-frac", type=float, metavar="F",
                 help="Share of a GPU's memory that the engine may use."),
    click.option("--prefix-hit", type=float, metavar="F",
                 help="Share of a prompt that is found in the prefix cache."),
    click.option("--speculative-tokens", type=count, metavar="N",
                 help="Tokens drafted per step (speculative decoding)."),
    click.option("--acceptance", type=float, metavar="F",
                 help="Chance that a drafted token is kept."),
    click.option("--draft-frac", type=float, metavar="F",
                 help="Time of drafting a token, as a share of a decode step."),
)  # fmt: skip
_SERVING = (
    click.option("--concurrency", type=float, metavar="N",
                 help="Requests in flight on the whole system: serving in its steady state."),
    *_ENGINE,
    click.option("--prefill-workers", type=count, metavar="N",
                 help="Replicas that only take prompts (disaggregated serving)."),
    click.option("--decode-workers", type=count, metavar="N", help="Replicas that only decode."),
    click.option("--prefill-tp", type=count, metavar="N",
                 help="Tensor parallelism of the prefill workers; --tp unless given."),
)  # fmt: skip
SERVING_NAMES = (
    *("concurrency", "policy", "token_budget", "max_sequences", "memory_frac", "prefix_hit"),
    *("speculative_tokens", "acceptance", "draft_frac", "prefill_workers", "decode_workers"),
    "prefill_tp",
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of an engine that serves: its scheduler, prefix cache and drafts."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


def serving_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of serving many requests at once."""
    for option in reversed(_SERVING):
        command = option(command)
    return command


def flag(name: str) -> str:
    """A parameter as it is typed."""
    return "--" + name.replace("_", "-")


def kind_of_plot(kind: str | None, plot: str | None, default: str) -> str:
    """The kind to draw; SpecError where one is named and nothing is drawn."""
    if kind is not None and plot is None:
        from rtsim.errors import SpecError

        raise SpecError("plot_kind", kind, "is of a figure: give --plot FILE too")
    return kind or default


set_option = click.option(
    "--set",
    "set",
    multiple=True,
    metavar="PATH=VALUE",
    callback=_settings,
    help="What if: change a figure, such as gpu.hbm_bytes_per_s=2x, link.bytes_per_s=900GB/s or "
    "model.n_layers=120. Can be repeated.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="Write to FILE (JSON when it ends in .json) instead of printing.",
)


def deliver(
    to_json: Callable[[], dict[str, Any]],
    to_view: Callable[[], RenderableType],
    *,
    as_json: bool,
    output: str | None = None,
) -> None:
    """Print a result, or write it to a file, as JSON or as text."""
    if as_json or (output is not None and output.endswith(".json")):
        # NaN and infinity are no JSON: better a failure here than in the program that reads it.
        text = json.dumps(to_json(), indent=2, allow_nan=False) + "\n"
        if output is None:
            click.echo(text, nl=False)
            return
    else:
        from rtsim import console

        if output is None:
            console.write(to_view())
            return
        text = console.to_text(to_view())
    from rtsim.output import write_text

    write_text(output, text)
