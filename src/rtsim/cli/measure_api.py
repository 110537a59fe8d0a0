"""`rtsim measure-api`: time an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import sys

import click

from rtsim.cli.parameters import count


def _sizes(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    if text is None:
        return None
    return tuple(dict.fromkeys(count(part) for part in text.split(",") if part.strip()))


@click.command("measure-api")
@click.option("--url", required=True, metavar="URL", help="Base address, such as https://host/v1.")
@click.option("--model", required=True, metavar="NAME", help="Model to ask for.")
@click.option("--provider", metavar="NAME", help="Name of the provider; else the host's.")
@click.option("--form", default="completions", metavar="completions|chat", show_default=True,
              help="Which of the two interfaces.")  # fmt: skip
@click.option("--key-env", metavar="VARIABLE", help="Environment variable that holds the key.")
@click.option("--input-lens", metavar="P,P,...", callback=_sizes,
              help="Prompt tokens.  [default: 1,256,512,1024,1536]")  # fmt: skip
@click.option("--output-lens", metavar="O,O,...", callback=_sizes,
              help="Output tokens.  [default: 1,4,16,32,64]")  # fmt: skip
@click.option("--repeats", type=count, default=3, metavar="N", show_default=True,
              help="Calls of every size.")  # fmt: skip
@click.option("--max-per-minute", type=float, default=10.0, metavar="N", show_default=True,
              help="Never more calls than that.")  # fmt: skip
@click.option("--attempts", type=count, default=5, metavar="N", show_default=True,
              help="Calls of a size before it counts as failed.")  # fmt: skip
@click.option("--backoff", type=float, default=2.0, metavar="S", show_default=True,
              help="Seconds before the second attempt; doubled each time.")  # fmt: skip
@click.option("--timeout", type=float, default=60.0, metavar="S", show_default=True,
              help="Seconds without anything that count as a stall.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FILE.csv",
              help="Table to write, or to go on with.")  # fmt: skip
def command(
    url: str,
    model: str,
    provider: str | None,
    form: str,
    key_env: str | None,
    input_lens: tuple[int, ...] | None,
    output_lens: tuple[int, ...] | None,
    repeats: int,
    max_per_minute: float,
    attempts: int,
    backoff: float,
    timeout: float,
    output: str,
) -> None:
    """Time an endpoint over a grid of prompt and output lengths, one call at a time.

    Each call is a row of FILE.csv at once: runtime, time to first token, gaps, tokens received,
    status. Run again to go on where it stopped; rtsim denoise reads the table. Calls cost money:
    the grid of the defaults is 75 calls.
    """
    from rtsim.errors import DataError, SpecError
    from rtsim.measure_api import Endpoint, Plan, collect

    key = None
    if key_env is not None:
        key = os.environ.get(key_env)
        if not key:
            raise SpecError("key_env", key_env, "no such environment variable is set")
    if not output.endswith(".csv"):
        raise SpecError("output", output, "must end in .csv: rows are added one by one")
    for name, value, most in (("timeout", timeout, 3600.0), ("backoff", backoff, 600.0)):
        if not 0.0 < value <= most:
            raise SpecError(name, value, f"must be in (0, {most:g}] seconds")
    standard = Plan()
    plan = Plan(
        prompt_tokens=standard.prompt_tokens if input_lens is None else input_lens,
        output_tokens=standard.output_tokens if output_lens is None else output_lens,
        repeats=repeats,
        max_per_minute=max_per_minute,
        attempts=attempts,
        backoff_s=backoff,
    )
    endpoint = Endpoint(url, model, form, key, timeout)  # type: ignore[arg-type]  # checked there
    on_terminal = sys.stderr is not None and sys.stderr.isatty()

    def progress(done: int, total: int, status: str) -> None:
        if on_terminal:
            click.echo(f"\r{done} of {total}: {status[:50]:<50}", err=True, nl=done == total)

    done = collect(endpoint, plan, output, provider=provider or endpoint.host, progress=progress)
    click.echo(
        f"{output}: {done.ok} calls timed, {done.short} with another number of tokens than asked, "
        f"{done.failed} failed, {done.before} there before"
    )
    for problem in done.problems:
        click.echo(f"  failed: {problem}")
    if done.problems and not (done.ok or done.short or done.before):
        raise DataError(endpoint.shown_url, f"no call succeeded; {output} holds what went wrong")
