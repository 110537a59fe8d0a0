"""Walks the cases of a run within its minutes, and keeps every row it gets.

The order: ceilings first (they make the budget's guesses good), then the families take turns, so
that a short run has some rows of each; within a family the rows to fit come before those kept for
validation. A case that would not end in time is left for another run, cheaper ones still go on.
A family takes turns by the time it used rather than by cases: expensive ones do not crowd out the
others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rtsim.measure.budget import Budget
from rtsim.measure.case import VALIDATION, VARIANT, Case
from rtsim.measure.device import CaseFault, Device, DeviceLost
from rtsim.measure.folder import Folder

# (rows done in this run, cases in all, what is being measured), for a progress line.
Progress = Callable[[int, int, str], None]

FIRST = "ceilings"
_ROLE_ORDER = {VALIDATION: 1, VARIANT: 2}


@dataclass
class Collected:
    """What a run did. Counts of cases: measured now, there before, left for lack of time.

    faults: reason -> count; examples: one case of each reason. throttled: rows of this run in
    which the clock was held down. interrupted: ended by Ctrl-C.
    """

    measured: int = 0
    before: int = 0
    left: int = 0
    left_s: float = 0.0
    took_s: float = 0.0
    throttled: int = 0
    interrupted: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    by_kind: Counter[str] = field(default_factory=Counter)


def collect(
    device: Device,
    families: Mapping[str, Sequence[Case]],
    folder: Folder,
    seconds: float,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Collected:
    """Measure what the folder lacks, for at most about `seconds`.

    Ctrl-C ends it early, with everything measured kept. Raises OutputError, and DeviceLost with
    the case that the driver failed at recorded.
    """
    done = Collected(ceilings=folder.ceilings())
    budget = Budget.of(device.facts)
    _take_known_ceilings(budget, done.ceilings)
    every = [case for cases in families.values() for case in cases]
    queues = {
        name: sorted(
            (case for case in cases if case.key not in folder.done),
            key=lambda case: _ROLE_ORDER.get(case.role, 0),
        )
        for name, cases in families.items()
    }
    done.before = len(every) - sum(map(len, queues.values()))
    used_s = dict.fromkeys(queues, 0.0)
    begin = clock()
    folder.write_device(done.ceilings)
    try:
        while True:
            left_s = seconds - (clock() - begin)
            case = _next(queues, used_s, budget, left_s)
            if case is None:
                break
            if progress is not None:
                progress(done.measured, len(every) - done.before, str(case))
            start = clock()
            _measure(device, case, folder, done, budget)
            took = clock() - start
            budget.learn(case, took)
            used_s[case.family] += took
    except KeyboardInterrupt:
        done.interrupted = True
    waiting = [case for queue in queues.values() for case in queue]
    done.left = len(waiting)
    done.left_s = sum(map(budget.cost_s, waiting))
    done.took_s = clock() - begin
    return done


def _next(
    queues: Mapping[str, list[Case]], used_s: Mapping[str, float], budget: Budget, left_s: float
) -> Case | None:
    """Take the next case off its queue; None when nothing that is left ends in time."""
    # Sorting is stable: families that used the same time keep the order they were named in.
    for name in sorted(queues, key=lambda n: (n != FIRST, used_s[n])):
        for i, case in enumerate(queues[name]):
            if budget.cost_s(case) <= left_s:
                return queues[name].pop(i)
    return None


def _measure(device: Device, case: Case, folder: Folder, done: Collected, budget: Budget) -> None:
    try:
        measured = device.measure(case)
    except CaseFault as fault:
        folder.add_fault(case, fault)
        done.faults[fault.reason] += 1
        done.examples.setdefault(fault.reason, f"{case}: {fault.details}".rstrip(": "))
        return
    except DeviceLost as lost:
        folder.add_fault(case, CaseFault("driver error", str(lost)))
        raise DeviceLost(
            f"{lost} (at {case}); {_rows(folder.rows_before + done.measured)} kept in "
            f"{folder.path}, run again to go on without it"
        ) from None
    folder.add(case, measured)
    done.measured += 1
    done.by_kind[case.kind] += 1
    done.throttled += bool(measured.throttle)
    if case.family == FIRST:
        budget.take_ceiling(case, measured)
        name = f"{case.kind}.{case.values['dtype']}"
        work = case.flops if case.kind == "gemm" else case.moved_bytes
        done.ceilings[name] = max(work / measured.time_s, done.ceilings.get(name, 0.0))
        folder.write_device(done.ceilings)


def _take_known_ceilings(budget: Budget, ceilings: Mapping[str, float]) -> None:
    products = [rate for name, rate in ceilings.items() if name.startswith("gemm.")]
    copies = [rate for name, rate in ceilings.items() if name.startswith("elementwise.")]
    budget.flops_per_s = max(products, default=budget.flops_per_s)
    budget.bytes_per_s = max(copies, default=budget.bytes_per_s)


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"
