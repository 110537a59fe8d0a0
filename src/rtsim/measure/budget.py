"""How long a case takes to measure, so that a run ends when it was asked to.

A row costs its setup (operands, reference, warm-up) and its replays. Both the budget and the timer
take the numbers of calls and replays from `schedule`, so that they agree. Rates begin as guesses
from the device's facts, are replaced by the measured ceilings, and what is still off is learnt
for each family as the run goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rtsim.measure.case import Case
from rtsim.measure.device import DeviceFacts, Measurement

REPLAY_S = 150e-6  # a replay is made of as many calls as fill this: events are good to 0.5 us
TIMED_S = 30e-3  # replays of a row take about this long together
MOST_CALLS, LEAST_REPLAYS, MOST_REPLAYS = 32, 7, 60
LEAST_WARM_UPS, WARM_UP_S = 3, 5e-3  # clocks rise within milliseconds

_SETUP_S = 0.03  # allocation, random numbers, capture
_SETUP_PASSES = 8.0  # over the operands: making them, copies, reference
_REFERENCE_WORK = 0.3  # of one execution at full rate; the reference sees a sample of rows
_ACHIEVED = 0.5  # of a ceiling, by an operator of no particular luck
_LEARNING = 0.3


def schedule(call_s: float) -> tuple[int, int]:
    """Calls per replay and replays for calls of a length, in seconds.

    >>> schedule(2e-6), schedule(5e-3)
    ((32, 60), (1, 7))
    """
    call_s = max(call_s, 1e-7)
    calls = min(MOST_CALLS, max(1, math.ceil(REPLAY_S / call_s)))
    replays = min(MOST_REPLAYS, max(LEAST_REPLAYS, math.ceil(TIMED_S / (calls * call_s))))
    return calls, replays


def warm_ups(replay_s: float) -> int:
    """Replays before those that count.

    >>> warm_ups(150e-6), warm_ups(1.0)
    (34, 3)
    """
    return max(LEAST_WARM_UPS, math.ceil(WARM_UP_S / max(replay_s, 1e-7)))


@dataclass
class Budget:
    """Expected cost of cases in seconds, learning from what they took.

    flops_per_s, bytes_per_s: ceilings of the device. issue_s: of a kernel from the host.
    """

    flops_per_s: float
    bytes_per_s: float
    issue_s: float = 1e-5
    _factor: dict[str, float] = field(default_factory=dict)
    _measured: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, facts: DeviceFacts) -> Budget:
        """First guesses: a CPU, or a small data-centre GPU scaled by its SMs."""
        if facts.kind == "cpu":
            return cls(2e10, 5e9)
        sms = max(facts.sm_count, 1)
        return cls(5e11 * sms, 1e10 * sms)

    def call_s(self, case: Case) -> float:
        """Expected seconds of one execution."""
        busy = max(case.flops / self.flops_per_s, case.moved_bytes / self.bytes_per_s) / _ACHIEVED
        return busy + case.host_kernels * self.issue_s

    def cost_s(self, case: Case) -> float:
        """Expected seconds to measure a case."""
        call_s = self.call_s(case)
        calls, replays = schedule(call_s)
        timed = (replays + warm_ups(calls * call_s)) * calls * call_s
        setup = _SETUP_S + _SETUP_PASSES * case.memory_bytes / self.bytes_per_s
        setup += _REFERENCE_WORK * call_s
        return (timed + setup) * self._factor.get(case.family, 1.0) + case.setup_s

    def learn(self, case: Case, took_s: float) -> None:
        """Account for what a case really took."""
        before = self._factor.get(case.family, 1.0)
        expected_s = self.cost_s(case) - case.setup_s
        if case.setup_s > expected_s:  # a compilation says nothing about the others
            return
        ratio = max(took_s - case.setup_s, 0.0) / max(expected_s / before, 1e-6)
        ratio = min(max(ratio, 0.05), 50.0)
        self._factor[case.family] = before * (ratio / before) ** _LEARNING

    def take_ceiling(self, case: Case, measured: Measurement) -> None:
        """Replace a guessed rate by a measured one; of several measured ones the highest counts."""
        if case.family != "ceilings":
            return
        work = case.flops if case.kind == "gemm" else case.moved_bytes
        name = "flops_per_s" if case.kind == "gemm" else "bytes_per_s"
        rate = work / measured.time_s
        if name in self._measured:
            rate = max(rate, getattr(self, name))
        setattr(self, name, rate)
        self._measured.add(name)
