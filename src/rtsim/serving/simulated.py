"""Figures of a simulation: percentiles, throughput, goodput, use over time, what was refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rtsim_kernels import serving_state as st
from rtsim_kernels import timeline

from rtsim.service_level import ServiceLevel
from rtsim.serving.trace import Array

if TYPE_CHECKING:
    from rtsim.serving.simulate import Run

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
REFUSALS = {
    st.BAD_LENGTH: "no prompt or no output token",
    st.BEYOND_CONTEXT: "longer than the context",
    st.BEYOND_CACHE: "longer than the cache",
}
DISTRIBUTIONS = {
    "ttft": st.TTFT, "tpot": st.TPOT, "e2e": st.E2E, "gap": st.GAP, "waited": st.WAIT,
}  # fmt: skip
_CDF_POINTS = 1000
# A load counts as above capacity when, over the second half of the arrivals, less than this share
# of them has ended and at least this many and this share of them waits at the last arrival.
_CARRIED_SHARE = 0.95
_LEAST_BACKLOG = 10
_BACKLOG_SHARE = 0.02


@dataclass(frozen=True)
class Distribution:
    """A time of the requests: number, mean, largest, percentiles (within 0.025 %), seconds."""

    n: int
    mean_s: float
    most_s: float
    percentiles: dict[float, float]


def refused(ended: Array) -> dict[str, int]:
    """Requests that were refused, by the reason in words."""
    return {REFUSALS[status]: int(ended[status]) for status in REFUSALS if ended[status]}


@dataclass(frozen=True, eq=False)
class OverTime:
    """Figures of equal stretches of time, arrays (buckets,): means, and rates per second."""

    start_s: Array
    waiting: Array
    running: Array
    cache_frac: Array
    arrivals_per_s: Array
    ended_per_s: Array
    tokens_per_s: Array


@dataclass(frozen=True, eq=False)
class Simulated:
    """What a deployment did under traffic; times in seconds.

    ttft, e2e hold the engine's time outside its steps (`request_s`), waited does not; gap: between
    the tokens of a request; waited: in queues, for a first place and again after each preemption,
    so that it can be longer than ttft. goodput_per_s:
    requests within the service level. cdf: of each time, (seconds, share of the observations up to
    it) at most 1,000 of each. backlog: requests that waited when the last one arrived;
    overloaded: they were piling up. carried_per_s: ends per second over the second half of the
    arrivals, NaN for too few.
    """

    n_requests: int
    n_finished: int
    refused: dict[str, int]
    duration_s: float
    arrival_rate_per_s: float
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    output_tokens: int
    ttft: Distribution
    tpot: Distribution
    e2e: Distribution
    gap: Distribution
    waited: Distribution
    level: ServiceLevel
    share: float
    met_frac: float
    goodput_per_s: float
    mean_waiting: float
    mean_running: float
    most_waiting: int
    most_running: int
    mean_cache_frac: float
    most_cache_frac: float
    busy_frac: float
    n_steps: int
    n_decode_steps: int
    n_prompt_steps: int
    preemptions: int
    recomputed_tokens: int
    swapped_bytes: float
    moved_bytes: float
    backlog: int
    in_flight_at_last_arrival: int
    overloaded: bool
    carried_per_s: float
    num_gpus: int
    usd_per_million_output_tokens: float | None
    over_time: OverTime
    cdf: dict[str, tuple[Array, Array]]

    @property
    def meets_level(self) -> bool:
        """Whether as many requests as were asked for are within the service level."""
        return self.n_finished > 0 and self.met_frac >= self.share


def percentile_s(counts: Array, percentile: float) -> float:
    """A percentile of a histogram of `timeline`; NaN of an empty one.

    The middle, by its logarithm, of the bin of the observation with that rank (nearest rank).
    """
    total = int(counts.sum())
    if total == 0:
        return math.nan
    rank = max(1, math.ceil(percentile / 100.0 * total - 1e-9))
    place = int(np.searchsorted(np.cumsum(counts), rank))
    if place == 0:
        return 0.0
    return timeline.LOWEST_S * math.exp((place + 0.5) * timeline.BIN)


def cumulated(counts: Array) -> tuple[Array, Array]:
    """(seconds, share) of a histogram where it rises; empty of an empty one."""
    places = np.flatnonzero(counts)
    if not len(places):
        return np.zeros(0), np.zeros(0)
    share = np.cumsum(counts[places]) / counts.sum()
    kept = np.unique(np.linspace(0, len(places) - 1, _CDF_POINTS).astype(int))
    seconds = timeline.LOWEST_S * np.exp((places[kept] + 0.5) * timeline.BIN)
    return np.where(places[kept] == 0, 0.0, seconds), share[kept]


def distribution(state: Any, which: int, percentiles: tuple[float, ...]) -> Distribution:
    """A distribution that the simulation kept."""
    counts = state.counts[which]
    n, total, most = (float(value) for value in state.sums[which])
    at = {p: min(most, percentile_s(counts, p)) for p in percentiles}
    return Distribution(int(n), total / n if n else math.nan, most, at)


def simulated(run: Run) -> Simulated:
    """The figures of a run that has ended."""
    state, deployment = run.state, run.deployment
    totals = np.asarray(state.sched.totals).view(st.TOTALS)[0]
    groups = np.asarray(state.sched.groups).view(st.GROUP)
    replicas = np.asarray(state.replicas).view(st.REPLICA)
    duration_s = float(totals["now_s"])
    per_s = 1.0 / duration_s if duration_s > 0.0 else math.nan
    finished = int(state.ended[st.FINISHED])
    capacity = float(groups["capacity_bytes"].sum())
    tokens = int(totals["output_tokens"])
    usd_per_hour = deployment.usd_per_hour
    usd = None
    if usd_per_hour is not None and tokens:
        usd = usd_per_hour * duration_s / 3600.0 / tokens * 1e6
    figures = [distribution(state, which, run.percentiles) for which in DISTRIBUTIONS.values()]
    carried = _carried(state, totals)
    keeps_up = carried[0] >= _CARRIED_SHARE * carried[1]  # False for NaN: all came at once
    n = int(totals["n_arrived"])
    last_s = float(totals["last_arrival_s"])
    met = int(totals["n_met"])
    backlog = int(totals["waiting_at_last_arrival"])
    piling = backlog >= max(_LEAST_BACKLOG, _BACKLOG_SHARE * n)
    return Simulated(
        n_requests=n,
        n_finished=finished,
        refused=refused(state.ended),
        duration_s=duration_s,
        arrival_rate_per_s=(n - 1) / last_s if n > 1 and last_s > 0.0 else math.nan,
        requests_per_s=finished * per_s,
        output_tokens_per_s=tokens * per_s,
        prompt_tokens_per_s=int(totals["prompt_tokens"]) * per_s,
        output_tokens=tokens,
        ttft=figures[0], tpot=figures[1], e2e=figures[2], gap=figures[3], waited=figures[4],
        level=run.level,
        share=run.share,
        met_frac=met / n if n else math.nan,
        goodput_per_s=met * per_s,
        mean_waiting=float(state.sched.series[st.WAITING].sum()) * per_s,
        mean_running=float(state.sched.series[st.RUNNING].sum()) * per_s,
        most_waiting=int(totals["most_waiting"]),
        most_running=int(totals["most_running"]),
        mean_cache_frac=float(state.sched.series[st.CACHE].sum()) * per_s / capacity,
        most_cache_frac=float((groups["most_used_bytes"] / groups["capacity_bytes"]).max()),
        busy_frac=float(replicas["busy_s"].sum()) * per_s / len(replicas),
        n_steps=int(totals["steps"]),
        n_decode_steps=int(totals["decode_steps"]),
        n_prompt_steps=int(totals["prompt_steps"]),
        preemptions=int(totals["preemptions"]),
        recomputed_tokens=int(totals["recomputed_tokens"]),
        swapped_bytes=float(totals["swapped_bytes"]),
        moved_bytes=float(totals["moved_bytes"]),
        backlog=backlog,
        in_flight_at_last_arrival=int(totals["in_flight_at_last_arrival"]),
        overloaded=run.concurrency == 0 and piling and not keeps_up,
        carried_per_s=carried[0],
        num_gpus=deployment.num_gpus,
        usd_per_million_output_tokens=usd,
        over_time=_over_time(state, totals, capacity),
        cdf={name: cumulated(state.counts[which]) for name, which in DISTRIBUTIONS.items()},
    )  # fmt: skip


def _carried(state: Any, totals: Any) -> tuple[float, float]:
    """(ends, arrivals) per second over the second half of the time of the arrivals."""
    width_s = float(totals["bucket_s"])
    last = int(float(totals["last_arrival_s"]) / width_s)
    first = last // 2
    if last - first < 4:
        return math.nan, math.nan
    seconds = (last - first) * width_s
    ended, arrived = (
        float(state.sched.series[row, first:last].sum()) for row in (st.ENDED, st.ARRIVED)
    )
    return ended / seconds, arrived / seconds


def _over_time(state: Any, totals: Any, capacity: float) -> OverTime:
    width_s = float(totals["bucket_s"])
    n = min(state.sched.series.shape[1], math.ceil(float(totals["now_s"]) / width_s))
    means = state.sched.series[:, :n] / width_s
    return OverTime(
        np.arange(n) * width_s, means[st.WAITING], means[st.RUNNING], means[st.CACHE] / capacity,
        means[st.ARRIVED], means[st.ENDED], means[st.TOKENS],
    )  # fmt: skip
