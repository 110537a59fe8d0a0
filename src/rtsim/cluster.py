"""Sweeps on a Dask cluster: the workers compute parts, this process stores them.

A part depends on its request and number alone, so a part that a lost worker held is computed by
another one. Workers must run the same version of rtsim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from rtsim.errors import NotSupported, SpecError
from rtsim.sweep_rows import Part, Request, compute_part

_ANSWER_S = 10.0  # a scheduler that is there answers sooner
_RETRIES = 5  # of a part whose worker was lost
_AHEAD = 4  # parts per core that are asked for at a time


def connected(scheduler: Any) -> Any:
    """A Dask client: the one given, or a new one of the scheduler at an address.

    Raises NotSupported without dask, SpecError where the scheduler does not answer, has no
    workers, or where a worker has another version of rtsim.
    """
    try:
        from distributed import Client
    except ImportError:
        raise NotSupported("--scheduler needs dask: pip install rtsim[distributed]") from None
    client = scheduler
    if not isinstance(scheduler, Client):
        _check_address(str(scheduler))
        try:
            client = Client(str(scheduler), timeout=_ANSWER_S, set_as_default=False)
        # Assertions of the client's own: a connection that is lost while it is being made.
        except (OSError, TimeoutError, ValueError, AssertionError) as error:
            why = str(error).splitlines()[0] if str(error) else "no answer"
            raise SpecError("scheduler", str(scheduler), f"does not answer: {why}") from None
    try:
        found = client.run(_version)
    except (OSError, TimeoutError, AssertionError) as error:
        raise SpecError("scheduler", str(scheduler), f"does not answer: {error}") from None
    if not found:
        raise SpecError("scheduler", str(scheduler), "has no workers")
    own = version("rtsim")
    for worker, theirs in found.items():
        if theirs != own:
            has = f"rtsim {theirs}" if theirs else "no rtsim"
            raise SpecError(
                "scheduler", str(scheduler), f"worker {worker} has {has}, here is {own}"
            )
    return client


def _check_address(address: str) -> None:
    """SpecError for what is no HOST:PORT: a client of such an address would linger."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        known = bool(parts.hostname and parts.port)
    except ValueError:  # a port that is no number
        known = False
    if not known and parts.scheme != "inproc":
        raise SpecError("scheduler", address, "must be an address, such as tcp://host:8786")


def _version() -> str:
    """Of rtsim on a worker; "" without it."""
    try:
        from importlib.metadata import version

        return version("rtsim")
    except Exception:
        return ""


def compute_on(
    client: Any, request: Request, numbers: list[int], keep: Callable[[int, Part], None]
) -> None:
    """Compute parts on a cluster, and `keep` each as it comes. The first error is raised."""
    from distributed import as_completed

    waiting: Iterator[int] = iter(numbers)
    cores = sum(client.nthreads().values()) or 1
    asked: dict[Any, int] = {}

    def ask() -> Any:
        number = next(waiting, None)
        if number is None:
            return None
        future = client.submit(compute_part, request, number, pure=False, retries=_RETRIES)
        asked[future.key] = number
        return future

    first = [future for future in (ask() for _ in range(_AHEAD * cores)) if future is not None]
    queue = as_completed(first, loop=client.loop)  # without it, that of a default client
    try:
        for future in queue:
            keep(asked.pop(future.key), future.result())
            future.release()
            more = ask()
            if more is not None:
                queue.add(more)
    finally:
        client.cancel(list(queue.futures))
