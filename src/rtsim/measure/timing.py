"""How calls are timed: a CUDA graph replayed between two events, events alone, or the host's clock.

graph   the calls of a replay are captured once, so that no launch is in the time. Before each
        replay of a cold case a buffer larger than the L2 is read (reading leaves nothing to write
        back), and what the L2 would hold all the same in a model is read after that. Then the
        device idles for a moment, so that the host gets ahead and the replay starts right behind
        the first event.
events  the same calls issued one by one: where they cannot be captured. Short ones are then as
        slow as the host, and the row says so.
wall    the host's clock around calls and a wait for the device, or, for launches, without it.

Reported are the median of the replays per execution and (90 % point - 10 % point) / median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rtsim.measure.budget import LEAST_WARM_UPS, schedule, warm_ups
from rtsim.measure.program import Call, Program

HOST_TIMED_S = 0.4  # calls that are timed on the host's clock take about this long together
HOST_LEAST, HOST_MOST = 5, 40
L2_FLUSHES = 3.0  # a flush reads this many times what the L2 holds
CPU_FLUSH_BYTES = 2**24
_WAKE_S = 1.0
_IDLE_CLOCKS = 60_000  # about 30 us: longer than the host needs to issue a replay


@dataclass(frozen=True)
class Timed:
    """Seconds of one execution: median, spread, single times; and how they were taken."""

    median_s: float
    spread: float
    std_s: float
    repeats: int
    timing: str


def summary(seconds: Sequence[float], timing: str) -> Timed:
    """Median and spread of single times.

    >>> summary([1.0, 1.0, 1.1], "wall").median_s
    1.0
    """
    ordered = sorted(seconds)
    median = statistics.median(ordered)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    std = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    return Timed(median, (high - low) / median, std, len(ordered), timing)


def captured(calls: Sequence[Call], pool: Any = None) -> Any:
    """A CUDA graph of calls, after the runs on a side stream that capturing asks for."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads (that ask for clocks, that watch NCCL) may go on meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        for call in calls:
            call()
    return graph


def flusher(l2_bytes: float, device: str) -> Call:
    """A call that reads more than the L2 holds, so that it holds nothing else."""
    import torch

    size = CPU_FLUSH_BYTES if device == "cpu" else max(int(L2_FLUSHES * l2_bytes), 2**26)
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    read: Call = buffer.sum
    return read


def wake(device: str) -> None:
    """Products for a while: an idle GPU is slow to raise its clocks."""
    import torch

    if device == "cpu":
        return
    x = torch.randn((4096, 4096), device=device, dtype=torch.float16)
    end = time.monotonic() + _WAKE_S
    while time.monotonic() < end:
        for _ in range(20):
            torch.matmul(x, x)
        torch.cuda.synchronize()


def time_program(
    program: Program, expected_s: float, *, cold: bool, flush: Call, device: str
) -> Timed:
    """Time a program; `expected_s` of one call sizes the first replay. Raises what torch raises."""
    if program.on_host:
        return _on_host(program, device)
    if device == "cpu":
        return _on_cpu(program, expected_s, cold, flush)
    return _on_gpu(program, expected_s, cold, flush)


def _on_gpu(program: Program, expected_s: float, cold: bool, flush: Call) -> Timed:
    import torch

    idle = getattr(torch.cuda, "_sleep", None)

    def between_events(run: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if cold:
            flush()
            for operand in program.touch:
                operand.sum()
        if idle is not None:
            idle(_IDLE_CLOCKS)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    program.calls[0]()
    torch.cuda.synchronize()
    call_s = max(between_events(program.calls[0]), 1e-6)
    # The first guess holds launches; the expectation knows the work. Shorter means more calls.
    calls, replays = schedule(min(call_s, max(expected_s, 0.2 * call_s)))
    rotated = [program.calls[i % len(program.calls)] for i in range(calls)]
    timing = "events"
    run: Call = _all(rotated)
    if program.graphs:
        graph = _try_capture(rotated)
        if graph is not None:
            run, timing = graph.replay, "graph"
    for _ in range(warm_ups(between_events(run))):
        between_events(run)
    per = calls * program.per_call
    return summary([between_events(run) / per for _ in range(replays)], timing)


def _try_capture(calls: Sequence[Call]) -> Any:
    """The graph, or None where something in the calls cannot be captured."""
    import torch

    try:
        return captured(calls)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # A capture that was broken off leaves an error behind that the next call would show.
        torch.cuda.synchronize()
        if "captur" not in str(error).lower():
            raise
        return None


def _all(calls: Sequence[Call]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


def _on_cpu(program: Program, expected_s: float, cold: bool, flush: Call) -> Timed:
    program.calls[0]()
    start = time.perf_counter()
    program.calls[0]()
    calls, replays = schedule(max(expected_s, time.perf_counter() - start))
    rotated = [program.calls[i % len(program.calls)] for i in range(calls)]
    seconds = []
    first = LEAST_WARM_UPS
    for i in range(first + replays):
        if cold:
            flush()
        start = time.perf_counter()
        for call in rotated:
            call()
        if i >= first:
            seconds.append((time.perf_counter() - start) / (calls * program.per_call))
    return summary(seconds, "wall")


def _on_host(program: Program, device: str) -> Timed:
    import torch

    wait: Call = torch.cuda.synchronize if device != "cpu" else lambda: None
    call = program.calls[0]

    def once() -> float:
        wait()
        start = time.perf_counter()
        call()
        if not program.issue_only:
            wait()
        seconds = time.perf_counter() - start
        wait()
        return seconds

    once()
    repeats = round(min(HOST_MOST, max(HOST_LEAST, HOST_TIMED_S / max(once(), 1e-6))))
    return summary([once() / program.per_call for _ in range(repeats)], "wall")
