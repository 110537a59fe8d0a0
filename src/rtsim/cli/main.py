"""The `rtsim` program: finds the command, and turns every error into one line.

A command's module is imported when the command is used, so that `rtsim --help` costs nothing.
Exit status: 0 answered, 2 bad input, 1 anything else. `RTSIM_DEBUG=1` shows tracebacks.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from rtsim.cli.status import BAD_INPUT, FAILED, INTERRUPTED
from rtsim.errors import RtsimError, nearest_names

# Command -> module under rtsim.cli (with a function `command`) and its line in the help.
COMMANDS = {
    "predict": ("predict", "Time, memory, cost and energy of one generation."),
    "sweep": ("sweep", "Predictions of a whole grid, filtered, sorted, to a file."),
    "plan": ("plan", "The cheapest, fastest or least-energy system for a service level."),
    "simulate": ("simulate", "A serving system under requests that arrive, wait and run."),
    "explain": ("explain", "What a time depends on: elasticities, and where bounds flip."),
    "list": ("list_names", "Names of the models, GPUs and profiles that are known."),
    "import-hf": ("import_hf", "A Hugging Face config.json as a model in rtsim's own format."),
    "show": ("show", "What is known about a model, a GPU or a profile."),
    "compare": ("compare", "Models, GPUs and stacks side by side: time, cost, energy."),
    "profile-fit": ("profile_fit", "Fit prefill and per-token time to your own runtimes."),
    "denoise": ("denoise", "What an API would take without contention, from its latencies."),
    "measure-api": ("measure_api", "Time an OpenAI-compatible endpoint over a grid of sizes."),
    "tradeoff": ("tradeoff", "Benchmark scores against time, cost or energy, with frontier."),
    "validate": ("validate", "Compare predictions with measurement tables."),
    "measure": ("measure", "Measure this machine's GPU: tables to calibrate from."),
    "calibrate": ("calibrate", "Fit a profile to your own measurement tables."),
    "check-data": ("check_data", "Check the packaged data files."),
    "warmup": ("warmup", "Compile the kernels, once, ahead of use."),
}


class _Commands(click.Group):
    """Commands that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"rtsim.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = nearest_names(name, COMMANDS)
            hint = f"; nearest: {', '.join(near)}" if near else f"; there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command '{name}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _say_what_takes_long() -> None:
    """Show on standard error what the kernels log: that they compile, on their first use."""
    import logging

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError):
                click.echo(record.getMessage(), err=True)

    logger = logging.getLogger("rtsim_kernels")
    logger.setLevel(logging.INFO)
    logger.addHandler(Echo())


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from rtsim import __version__

        click.echo(f"rtsim {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Predict how long a Transformer takes to run on a GPU system, without profiling it."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs the command line and exits."""
    _say_what_takes_long()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error becomes one line on standard error. The exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without, say, "µ" gets a "?"
    try:
        status = cli.main(arguments, prog_name="rtsim", standalone_mode=False)
        if sys.stdout is not None:  # closed by `>&-`
            sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except RtsimError as error:
        return _fail(error, str(error), error.exit_status)
    except click.ClickException as error:
        return _fail(error, _usage_message(error), BAD_INPUT)
    except OSError as error:
        if error.filename is None and error.strerror:  # not of a file: standard output is full
            why = f"cannot write standard output: {error.strerror.lower()}"
            return _fail(error, why, BAD_INPUT)
        return _fail(error, f"{type(error).__name__}: {error}", FAILED)
    except Exception as error:
        return _fail(error, f"{type(error).__name__}: {error}", FAILED)
    return status if isinstance(status, int) else 0


def _fail(error: Exception, message: str, status: int) -> int:
    if os.environ.get("RTSIM_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    else:
        with suppress(OSError):
            click.echo(f"error: {' '.join(message.split())}", err=True)
    return status


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if context is not None and context.info_name:
        message = f"{message.rstrip('.')} (see {context.command_path} --help)"
    return message[:1].lower() + message[1:]


def _reader_left() -> int:
    """`rtsim ... | head` closed the pipe: say nothing, also not when Python flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
