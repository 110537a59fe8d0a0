"""The highest rate of arrivals that still meets a service level, by bisection.

Every rate is simulated with the same requests, only closer together or further apart, so that
rates differ in load and in nothing else. The search starts from the rate that the deployment
carries when requests always wait, doubles or halves it to find one rate that meets the level and
one that misses it, and halves the interval between them, by ratio, until it is as narrow as asked.
The answer is exact for these requests to that width; with others of the same kind it scatters as
their share within the level does, about sqrt(share (1 - share) / requests).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rtsim.errors import SpecError
from rtsim.service_level import ServiceLevel
from rtsim.serving.arrivals import Played, Traffic, check_rate
from rtsim.serving.deployment import Deployment
from rtsim.serving.simulate import offline_rate, simulate
from rtsim.serving.simulated import PERCENTILES, Simulated

TOLERANCE = 0.01  # of the rate, between the one that meets the level and the one that misses it
_ALONE = 0.01  # requests running on average
_MOST_STEPS = 24  # doublings or halvings in search of the two


@dataclass(frozen=True)
class Tried:
    """A rate and what came of it."""

    rate_per_s: float
    result: Simulated

    @property
    def meets(self) -> bool:
        """The level is met and requests do not pile up."""
        return self.result.meets_level and not self.result.overloaded


@dataclass(frozen=True)
class Capacity:
    """rate_per_s meets the level, missed_per_s does not; offline_per_s: when requests always wait.

    rate_per_s is 0 where no rate that was tried meets it, missed_per_s infinite where all do.
    """

    rate_per_s: float
    missed_per_s: float
    offline_per_s: float
    tried: tuple[Tried, ...]

    @property
    def at_capacity(self) -> Simulated | None:
        """The simulation at rate_per_s."""
        found = [t.result for t in self.tried if t.rate_per_s == self.rate_per_s]
        return found[0] if found else None


def capacity(
    deployment: Deployment,
    traffic: Traffic,
    level: ServiceLevel,
    share: float,
    *,
    tolerance: float = TOLERANCE,
    percentiles: tuple[float, ...] = PERCENTILES,
    also: tuple[float, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Capacity:
    """The highest rate at which `share` of the requests meets `level`, see the module.

    also: shares of that rate to simulate too, for a curve.
    """
    if not 1e-4 <= tolerance <= 0.5:
        raise SpecError("tolerance", tolerance, "must be from 0.0001 to 0.5")
    if traffic.n_requests < 2:
        raise SpecError("requests", traffic.n_requests, "must be at least 2: one has no rate")
    traffic.at_rate(1.0)  # says what has no rate
    if isinstance(traffic, Played):
        traffic = traffic.in_memory()
    offline = offline_rate(deployment, traffic)
    tried: list[Tried] = []

    def meets(rate: float) -> bool:
        check_rate(rate)
        result = simulate(
            deployment, traffic.at_rate(rate), level=level, share=share, percentiles=percentiles
        )
        tried.append(Tried(rate, result))
        if progress is not None:
            progress(len(tried), len(tried) + 1)
        return tried[-1].meets

    rate = offline if math.isfinite(offline) else traffic.rate_per_s
    low, high = 0.0, math.inf
    for _ in range(_MOST_STEPS):
        if meets(rate):
            low = rate
            rate *= 2.0
        else:
            high = rate
            rate /= 2.0
        if low > 0.0 and math.isfinite(high):
            break
        if low == 0.0 and tried[-1].result.mean_running < _ALONE:
            break  # requests hardly ever meet: a lower rate changes nothing
        if not 1e-6 <= rate <= 1e6:
            break
    while low > 0.0 and math.isfinite(high) and high > low * (1.0 + tolerance):
        rate = math.sqrt(low * high)
        if meets(rate):
            low = rate
        else:
            high = rate
    if low > 0.0:
        for part in also:
            meets(part * low)
    tried.sort(key=lambda one: one.rate_per_s)
    return Capacity(low, high, offline, tuple(tried))
