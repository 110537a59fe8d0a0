"""`rtsim warmup`: compile the kernels ahead of use."""

from __future__ import annotations

import time

import click


@click.command("warmup")
def command() -> None:
    """Compile the kernels of sweeps, planners, validation and simulations, to a cache on disk."""
    from rtsim_kernels._jit import cache_folder

    from rtsim.bulk import warm_up as warm_up_bulk
    from rtsim.predict import warm_up
    from rtsim.serving.simulate import warm_up as warm_up_simulation

    start = time.perf_counter()
    warm_up()
    warm_up_bulk()
    warm_up_simulation()
    seconds = time.perf_counter() - start
    click.echo(f"compiled kernels ready after {seconds:.1f} s, in {cache_folder()}")
