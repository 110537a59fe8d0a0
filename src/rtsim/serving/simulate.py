"""Event simulation of a deployment under traffic, see `rtsim_kernels.events`.

A `Run` plays the requests block by block and gives away what it has recorded as it goes, so that
its memory does not grow with the traffic; `simulate` is a run whose records are kept or dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rtsim_kernels import serving_state as st

from rtsim.errors import SpecError
from rtsim.service_level import ServiceLevel
from rtsim.serving.arrivals import Traffic
from rtsim.serving.deployment import Deployment
from rtsim.serving.event_state import arrivals_row, form_of, grown, new_state, pool_rows
from rtsim.serving.simulated import PERCENTILES, Simulated, simulated
from rtsim.serving.trace import Array, Requests

MOST_CONCURRENCY = 10**6
NO_LEVEL = ServiceLevel()
_NONE_LEFT = Requests(*(np.zeros(0) for _ in range(4)))


@dataclass(frozen=True)
class Recorded:
    """Requests that have ended since the last of these, `serving_state.RECORD`, in the order in
    which they ended; and steps, `serving_state.STEP`, where they are asked for.
    """

    requests: Array
    steps: Array


class Run:
    """One simulation. Iterate over `blocks`, then ask for the `result`."""

    def __init__(
        self,
        deployment: Deployment,
        traffic: Traffic,
        *,
        level: ServiceLevel = NO_LEVEL,
        share: float = 0.99,
        concurrency: int = 0,
        percentiles: tuple[float, ...] = PERCENTILES,
        log_steps: bool = False,
        compiled: bool = True,
    ) -> None:
        """concurrency: requests in flight of a closed loop; 0: they arrive by time."""
        if not 0 <= concurrency <= MOST_CONCURRENCY:
            raise SpecError("concurrency", concurrency, f"must be 1 to {MOST_CONCURRENCY:,}")
        if not 0.0 < share <= 1.0:
            raise SpecError("share", share, "must be above 0, at most 1")
        for percentile in percentiles:
            if not 0.0 < percentile < 100.0:
                raise SpecError("percentiles", percentile, "must be above 0, below 100")
        self.deployment, self.traffic = deployment, traffic
        self.level, self.share, self.concurrency = level, share, concurrency
        self.percentiles = percentiles
        self._form = form_of(compiled)
        self._state: Any = new_state(deployment, self._form, level, concurrency, log_steps)

    def blocks(self) -> Iterator[Recorded]:
        """Simulate, and give away what has been recorded from time to time."""
        run = self._form.kernels.events.run
        pools = pool_rows(self.deployment, self._form)
        coming = self.traffic.blocks()
        totals = self._state.sched.totals
        arrivals = arrivals_row(_NONE_LEFT, True, self._form)
        while True:
            code = run(self._state, arrivals, pools)
            if code == st.NEEDS_ARRIVALS:
                block = next(coming, None)
                arrivals = arrivals_row(block or _NONE_LEFT, block is not None, self._form)
                totals["next_arrival"][0] = 0
            elif code == st.NEEDS_ROOM:
                self._state = grown(self._state, self._form)
            if code in (st.RECORDS_FULL, st.LOG_FULL, st.NEEDS_ARRIVALS, st.DONE):
                yield self._taken()
            if code == st.DONE:
                return

    def _taken(self) -> Recorded:
        totals = self._state.sched.totals
        n, steps = int(totals["n_records"][0]), int(totals["n_logged"][0])
        totals["n_records"][0] = totals["n_logged"][0] = 0
        return Recorded(
            np.asarray(self._state.records[:n]).view(st.RECORD).copy(),
            np.asarray(self._state.log[:steps]).view(st.STEP).copy(),
        )

    @property
    def n_ended(self) -> int:
        """Requests that have been answered or refused so far."""
        return int(self._state.ended.sum())

    def result(self) -> Simulated:
        """All figures of a simulation that has ended.

        The ends of static batches come in lumps, which say little about what is carried over the
        second half of a run: such a load counts as above capacity where more arrive than can be
        served when requests always wait.
        """
        result = simulated(self)
        if result.overloaded and _static(self.deployment) and result.arrival_rate_per_s > 0.0:
            carried = offline_rate(self.deployment, self.traffic)
            return replace(result, overloaded=not carried >= result.arrival_rate_per_s)
        return result

    @property
    def state(self) -> Any:
        """The arrays, `serving_state.State`."""
        return self._state


def simulate(
    deployment: Deployment,
    traffic: Traffic,
    *,
    level: ServiceLevel = NO_LEVEL,
    share: float = 0.99,
    concurrency: int = 0,
    percentiles: tuple[float, ...] = PERCENTILES,
    progress: Callable[[int, int], None] | None = None,
    records: list[Array] | None = None,
) -> Simulated:
    """Simulate and return the figures. `records` takes the records of requests as they come.

    Raises SpecError for a model that does not fit, and for figures out of range.
    """
    run = Run(
        deployment, traffic, level=level, share=share, concurrency=concurrency,
        percentiles=percentiles,
    )  # fmt: skip
    for block in run.blocks():
        if records is not None:
            records.append(block.requests)
        if progress is not None:
            progress(run.n_ended, traffic.n_requests)
    return run.result()


def offline_rate(deployment: Deployment, traffic: Traffic, most_requests: int = 2000) -> float:
    """Requests per second that a deployment carries when requests always wait.

    The first `most_requests` of the traffic all arrive at once; the rate is that between the ends
    of the first and of the last tenth, so that filling and draining do not count; in static
    batches, which fill and drain each time, over all of it. NaN where fewer than twenty can be
    served.
    """
    requests = next(iter(traffic.blocks()))
    first = Requests(*(column[:most_requests] for column in requests))
    kept: list[Array] = []
    simulate(deployment, _AtOnce(first._replace(arrival_s=first.arrival_s * 0.0)), records=kept)
    ended = np.concatenate(kept)
    ended = ended[ended["status"] == st.FINISHED]
    if len(ended) < 20:
        return math.nan
    times = np.sort(ended["arrival_s"] + ended["e2e_latency_s"])
    if _static(deployment):
        return float(len(times) / times[-1])
    low, high = len(times) // 10, len(times) - 1 - len(times) // 10
    return (
        float((high - low) / (times[high] - times[low])) if times[high] > times[low] else math.nan
    )


def _static(deployment: Deployment) -> bool:
    return deployment.engine.scheduler.policy == "static"


def warm_up() -> None:
    """Compile the kernels of a simulation."""
    from rtsim.named_system import system
    from rtsim.serving.engine import Engine

    deployment = Deployment(Engine(system("gpt3-125m", "a100", stack="vllm")))
    simulate(deployment, _AtOnce(Requests(np.zeros(1), *(np.ones((3, 1), np.int64)))))


@dataclass(frozen=True)
class _AtOnce:
    """Requests that are all there at time zero."""

    requests: Requests
    source: str = "all at once"

    @property
    def n_requests(self) -> int:
        return len(self.requests.arrival_s)

    @property
    def rate_per_s(self) -> float:
        return math.inf

    def at_rate(self, rate_per_s: float) -> Traffic:
        return self

    def blocks(self) -> Iterator[Requests]:
        yield self.requests
