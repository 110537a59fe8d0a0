"""Traffic: the requests of a simulation, in blocks, at a rate that can be changed.

Generated traffic draws gaps between arrivals of mean 1, divided by the rate, and lengths, each from
a generator of its own seed: the same seed gives the same requests at every rate, only closer
together, so that rates are compared on equal terms.

    poisson     exponential gaps: independent users
    constant    equal gaps
    bursty      gamma gaps of a stated coefficient of variation (1 is poisson, more comes in
                bursts), the renewal process of BurstGPT (Wang et al., arXiv:2401.17644)

A trace is played as it is, faster or slower, cut, or again from its start: a repetition begins one
mean gap after the last arrival. Time counts from its first arrival, so that a part of a longer
trace plays as it did there.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from rtsim import units
from rtsim.errors import SpecError, UnknownName
from rtsim.lengths import Lengths
from rtsim.serving.trace import BLOCK_ROWS, Array, Requests, read_blocks, read_trace

PROCESSES = ("poisson", "constant", "bursty")
MOST_REQUESTS = 10**9
MOST_SEED = 2**63 - 1
_MOST_RATE = 1e6
_LEAST_RATE = 1e-6
_MOST_CV = 100.0


class Traffic(Protocol):
    """Requests in order of arrival."""

    @property
    def n_requests(self) -> int:
        """Requests in all."""
        ...

    @property
    def source(self) -> str:
        """Where they come from, in words."""
        ...

    @property
    def rate_per_s(self) -> float:
        """Mean requests per second."""
        ...

    def at_rate(self, rate_per_s: float) -> Traffic:
        """The same requests at another mean rate."""
        ...

    def blocks(self) -> Iterator[Requests]:
        """The requests, a block at a time; equal at every call."""
        ...


def check_rate(rate_per_s: float) -> None:
    """SpecError unless it is a plausible number of requests per second."""
    if not units.is_number(rate_per_s) or not _LEAST_RATE <= rate_per_s <= _MOST_RATE:
        raise SpecError("rate", rate_per_s, "must be requests per second, 1e-6 to 1e6")


def check_count(n_requests: int) -> None:
    """SpecError for a number of requests that cannot be simulated."""
    if not 1 <= n_requests <= MOST_REQUESTS:
        raise SpecError("requests", n_requests, f"must be from 1 to {MOST_REQUESTS:,}")


@dataclass(frozen=True)
class Generated:
    """Arrivals of a renewal process with lengths of a distribution."""

    rate_per_s: float
    lengths: Lengths
    n_requests: int = 1000
    process: str = "poisson"
    cv: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate(self.rate_per_s)
        check_count(self.n_requests)
        if self.process not in PROCESSES:
            raise UnknownName("arrival process", self.process, PROCESSES)
        if not 0.0 < self.cv <= _MOST_CV:
            raise SpecError("cv", self.cv, "must be above 0, at most 100")
        if not 0 <= self.seed <= MOST_SEED:
            raise SpecError("seed", self.seed, "must be a whole number from 0 to 2^63 - 1")

    @property
    def source(self) -> str:
        """The traffic in words."""
        name = self.process if self.process != "bursty" else f"bursty (cv {self.cv:g})"
        return f"{name} arrivals, seed {self.seed}"

    def at_rate(self, rate_per_s: float) -> Generated:
        """The same requests at another mean rate."""
        return replace(self, rate_per_s=rate_per_s)

    def blocks(self) -> Iterator[Requests]:
        """The requests, a block at a time."""
        times, sizes = (
            np.random.default_rng(child) for child in np.random.SeedSequence(self.seed).spawn(2)
        )
        passed = 0.0  # gaps of mean 1 so far
        for start in range(0, self.n_requests, BLOCK_ROWS):
            n = min(BLOCK_ROWS, self.n_requests - start)
            arrival = passed + np.cumsum(self._gaps(times, n))
            passed = float(arrival[-1])
            prompt, output = self._lengths(sizes, n)
            yield Requests(arrival / self.rate_per_s, prompt, output, np.zeros(n, np.int64))

    def _gaps(self, generator: np.random.Generator, n: int) -> Array:
        if self.process == "constant":
            return np.ones(n)
        if self.process == "bursty":
            shape = 1.0 / self.cv**2
            return generator.gamma(shape, 1.0 / shape, n)
        return generator.exponential(1.0, n)

    def _lengths(self, generator: np.random.Generator, n: int) -> tuple[Array, Array]:
        table = self.lengths
        if table.requests is None:
            rows = generator.choice(len(table.share), n, p=table.share / table.share.sum())
            pairs = table.input_len[rows], table.output_len[rows]
        else:
            rows = generator.integers(0, table.requests.shape[1], n)
            pairs = table.requests[0][rows], table.requests[1][rows]
        return pairs[0].astype(np.int64), pairs[1].astype(np.int64)


@dataclass(frozen=True)
class Played:
    """A trace: its file, or its requests in memory; `stretch` times as long as recorded."""

    source: str
    n_requests: int
    n_recorded: int
    recorded_s: float  # from the first arrival to the last
    stretch: float = 1.0
    kept: Requests | None = None
    first_s: float = 0.0  # the first arrival, in the time of the file

    @property
    def _mean_gap_s(self) -> float:
        if self.n_recorded < 2 or self.recorded_s <= 0.0:
            return 1.0
        return self.recorded_s / (self.n_recorded - 1)

    @property
    def rate_per_s(self) -> float:
        """Mean requests per second; infinite where all arrive at one time."""
        return math.inf if self._at_once else 1.0 / (self._mean_gap_s * self.stretch)

    @property
    def _at_once(self) -> bool:
        return self.n_requests > 1 and self.n_recorded > 1 and self.recorded_s <= 0.0

    def at_rate(self, rate_per_s: float) -> Played:
        """The same requests at another mean rate. SpecError where all arrive at one time."""
        check_rate(rate_per_s)
        if self._at_once:
            raise SpecError(
                "trace", self.source, "its requests arrive all at one time: they have no rate"
            )
        return replace(self, stretch=1.0 / (rate_per_s * self._mean_gap_s))

    def in_memory(self) -> Played:
        """The same with its requests in memory, for a trace that is played many times."""
        return self if self.kept is not None else replace(self, kept=read_trace(self.source))

    def _recorded(self) -> Generator[Requests, None, None]:
        if self.kept is not None:
            yield self.kept
        else:
            yield from read_blocks(self.source)

    def blocks(self) -> Iterator[Requests]:
        """The requests, a block at a time."""
        left = self.n_requests
        start_s = 0.0
        while left > 0:
            with closing(self._recorded()) as recorded:
                for block in recorded:
                    part = Requests(*(column[:left] for column in block))
                    passed = start_s + (part.arrival_s - self.first_s)
                    yield part._replace(arrival_s=passed * self.stretch)
                    left -= len(part.arrival_s)
                    if left == 0:
                        break
            start_s += self.recorded_s + self._mean_gap_s


def played(
    path: str | Path, n_requests: int | None = None, rate_per_s: float | None = None
) -> Played:
    """A trace, cut or repeated to `n_requests`, at its own rate or another. Raises DataError."""
    n = 0
    first_s = last_s = 0.0
    cut_s = math.nan  # the last arrival of a trace that is cut
    for block in read_blocks(path):  # all of it is checked before anything is simulated
        if n_requests is not None and n < n_requests <= n + len(block.arrival_s):
            cut_s = float(block.arrival_s[n_requests - n - 1])
        if n == 0:
            first_s = float(block.arrival_s[0])
        n += len(block.arrival_s)
        last_s = float(block.arrival_s[-1])
    wanted = n if n_requests is None else n_requests
    check_count(wanted)
    if not math.isnan(cut_s):  # its rate is that of the part that is played
        n, last_s = wanted, cut_s
    trace = Played(str(path), wanted, n, last_s - first_s, first_s=first_s)
    if rate_per_s is None:
        return trace
    if not math.isfinite(rate_per_s):
        check_rate(rate_per_s)
    return trace.at_rate(rate_per_s)
