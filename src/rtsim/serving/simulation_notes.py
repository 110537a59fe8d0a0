"""What has to be said of a simulation beside its figures."""

from __future__ import annotations

import math

from rtsim_kernels import serving_state as st

from rtsim import units
from rtsim.serving.arrivals import Played, Traffic
from rtsim.serving.capacity import Capacity
from rtsim.serving.deployment import Deployment
from rtsim.serving.simulated import REFUSALS, Simulated

_MANY = 100  # requests per one in flight, of which the start is little


def notes_on(
    deployment: Deployment, traffic: Traffic, result: Simulated,
    found: Capacity | None, carried: float | None, concurrency: int = 0,
) -> tuple[str, ...]:  # fmt: skip
    """Refusals, overload, what a search found, preemptions, and the notes of the systems."""
    notes = []
    for reason, n in result.refused.items():
        text = why_refused(reason, deployment)
        notes.append(
            f"{n:,} of {units.counted(result.n_requests, 'request')} "
            f"{'was' if n == 1 else 'were'} rejected: {text}"
        )
    if concurrency > 1 and result.n_requests < _MANY * concurrency:
        first = min(concurrency, result.n_requests)
        notes.append(
            f"the first {first:,} of {result.n_requests:,} requests are sent at one time and wait "
            "for each other's prompts: the mean time to first token is longer than in the long run "
            f"(--requests {_MANY * concurrency})"
        )
    if result.overloaded and carried is not None:
        notes.append(_overload_note(result, carried))
    if found is not None:
        notes.append(_capacity_note(found, result))
    if isinstance(traffic, Played) and traffic.n_requests > traffic.n_recorded:
        times = traffic.n_requests / traffic.n_recorded
        notes.append(
            f"the trace of {units.counted(traffic.n_recorded, 'request')} is played "
            f"{times:.3g} times"
        )
    if result.preemptions:
        notes.append(
            f"{units.counted(result.preemptions, 'preemption')}: the cache was full"
            + (f", {result.recomputed_tokens:,} tokens were computed again"
               if result.recomputed_tokens else "")
            + "; waiting holds what the preempted waited again"
        )  # fmt: skip
    for engine in deployment.engines:
        if engine.system.parallelism.pp > 1:
            notes.append(
                f"{engine.system.parallelism.pp} pipeline stages as streams of requests with equal "
                "parts of cache and places"
            )
        notes += engine.system.notes
    return tuple(dict.fromkeys(notes))


def why_refused(reason: str, deployment: Deployment) -> str:
    """A reason of `simulated.REFUSALS` with the limit that was passed."""
    limit = {
        REFUSALS[st.BEYOND_CONTEXT]: f" of {deployment.longest_request:,} tokens",
        REFUSALS[st.BEYOND_CACHE]: " of a group of GPUs",
    }.get(reason, "")
    return reason + limit


def _overload_note(result: Simulated, carried: float) -> str:
    waiting = f"{result.backlog:,} were waiting at the last arrival"
    arrive = f"{result.arrival_rate_per_s:.3g} requests/s arrive"
    if carried <= result.arrival_rate_per_s:
        return (
            f"{arrive} and about {carried:.3g} are carried: {waiting}, and times grow with the "
            "length of the run"
        )
    return (
        f"{arrive} on average, fewer than the {carried:.3g} that are carried when requests always "
        f"wait, but more than ended over the second half of the arrivals: {waiting}"
    )


def _capacity_note(found: Capacity, result: Simulated) -> str:
    if found.rate_per_s == 0.0:
        return (
            f"no rate meets the level, down to {found.tried[0].rate_per_s:.3g} requests/s: a "
            "request alone may take longer than it allows"
        )
    if not math.isfinite(found.missed_per_s):
        return f"the level is met at every rate that was tried, for {result.n_requests:,} requests"
    width = 100.0 * (found.missed_per_s / found.rate_per_s - 1.0)
    scatter = 100.0 * math.sqrt(result.share * (1.0 - result.share) / max(1, result.n_requests))
    return (
        f"met at {found.rate_per_s:.4g} and missed at {found.missed_per_s:.4g} requests/s with the "
        f"same {result.n_requests:,} requests ({width:.1f}% apart); the share within the level "
        f"scatters by {scatter:.1f} points with others"
    )
