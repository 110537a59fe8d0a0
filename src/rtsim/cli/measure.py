"""`rtsim measure`: time this machine's GPU and write measurement tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rtsim import units
from rtsim.cli.status import INTERRUPTED

if TYPE_CHECKING:
    from rtsim.measure import Collected


@click.command("measure")
@click.option("--minutes", type=float, default=5.0, show_default=True, metavar="N",
              help="Time to spend; what does not fit is left for another run.")  # fmt: skip
@click.option("--only", metavar="A,B,...",
              help="Some of ceilings, launch, gemm, attention, memory_bound, moe, generation, "
              "collective.")  # fmt: skip
@click.option("--device", default="cuda", show_default=True, metavar="cuda|cpu",
              help="cpu runs the programs at toy sizes, as a trial.")  # fmt: skip
@click.option("--retry", is_flag=True, help="Try again what gave no row before.")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="DIR",
              help="Folder of tables to make, or to go on with.")  # fmt: skip
def command(minutes: float, only: str | None, device: str, retry: bool, output: str) -> int:
    """Measure this machine's GPU: operators, launches, whole models, and its two ceilings.

    Each size is a row of a table in DIR at once. Run again to go on where it stopped;
    rtsim calibrate DIR fits a profile to the tables, rtsim validate DIR shows its error on rows
    that were kept out of the fit. Needs PyTorch: pip install rtsim[measure].
    """
    from rtsim.measure import measure

    on_terminal = sys.stderr is not None and sys.stderr.isatty()

    def progress(done: int, total: int, what: str) -> None:
        if on_terminal:
            click.echo(f"\r{done} of {total}: {what[:70]:<70}", err=True, nl=False)

    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    done = measure(output, device_name=device, minutes=minutes, only=names, retry=retry,
                   progress=progress)  # fmt: skip
    if on_terminal:
        click.echo("", err=True)
    for line in summary_lines(done, output):
        click.echo(line)
    if done.interrupted:
        click.echo("stopped; run again to go on", err=True)
        return INTERRUPTED
    return 0


def summary_lines(done: Collected, output: str) -> list[str]:
    """What a run did, in lines."""
    from rtsim.units import format_bytes_per_s, format_flops_per_s

    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(done.by_kind.items()))
    lines = [f"{output}: {units.counted(done.measured, 'row')} measured in {done.took_s:.0f} s"
             + (f" ({kinds})" if kinds else "") + f", {done.before} there before"]  # fmt: skip
    for name, rate in done.ceilings.items():
        kind, _, dtype = name.partition(".")
        shown = format_flops_per_s(rate, 4) if kind == "gemm" else format_bytes_per_s(rate, 4)
        lines.append(f"  at best {shown}, {'product' if kind == 'gemm' else 'copy'} of {dtype}")
    for reason, count in done.faults.items():
        lines.append(f"  not measured: {count}, {reason}; such as {done.examples[reason]}")
    if done.throttled:
        lines.append(
            f"  {units.counted(done.throttled, 'row')} with the clock held down (column throttle)"
        )
    if done.left:
        more = (
            f"{done.left_s:.0f} s" if done.left_s < 100.0 else f"{done.left_s / 60.0:.0f} minutes"
        )
        lines.append(f"  left: {done.left} cases, about {more} more")
    return lines
