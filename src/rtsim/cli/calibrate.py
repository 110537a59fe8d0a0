"""`rtsim calibrate`: fit a profile from measurement tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from rtsim.cli.parameters import count, deliver, json_option

if TYPE_CHECKING:
    from rtsim.calibrate import Progress


@click.command("calibrate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--gpu", required=True, metavar="NAME|FILE", help="GPU that the rows are of.")
@click.option("--stack", required=True, metavar="NAME", help="Software stack of the rows.")
@click.option("--base", metavar="NAME|FILE", help="Profile whose values are the priors.")
@click.option(
    "--max-points", type=count, default=64, show_default=True, metavar="N",
    help="Rows to fit per operator kind and number format.",
)  # fmt: skip
@json_option
@click.option(
    "-o", "--output", required=True, type=click.Path(), metavar="FILE.toml",
    help="The profile to write.",
)  # fmt: skip
def command(
    files: tuple[str, ...],
    gpu: str,
    stack: str,
    base: str | None,
    max_points: int,
    as_json: bool,
    output: str,
) -> None:
    """Fit a profile of a stack on a GPU from measurement tables, or folders of them.

    Of each operator kind and number format at most --max-points rows are fitted, chosen from
    their sizes so that they cover the table; the error is that of rows left out of the fit.
    """
    from rtsim.calibrate import calibrate
    from rtsim.cli import calibration_view
    from rtsim.errors import SpecError

    if not output.endswith(".toml"):
        raise SpecError("output", output, "must end in .toml, as every profile does")
    with _progress() as progress:
        result = calibrate(
            files, gpu, stack, base=base, max_points=max_points, output=output, progress=progress
        )
    deliver(
        lambda: calibration_view.to_json(result, output),
        lambda: calibration_view.view(result, output),
        as_json=as_json,
    )


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A progress bar on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show
