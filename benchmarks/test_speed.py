"""How fast rtsim answers. Not part of the test run:

    python -m pytest benchmarks --benchmark-enable

Times of other machines mean little, so start-ups are also given as multiples of the interpreter's
own start, and predictions as multiples of a fixed piece of plain Python (`reference`), in the
column "extra_info" of --benchmark-json. The budgets are tests: tests/unit/test_budgets.py.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rtsim.named_system import system
from rtsim.predict import predict, warm_up
from rtsim.system import System

SWEEP_ROWS = 20_000
START_UPS = {
    "import rtsim": "import rtsim",
    "--help": "from rtsim.cli.main import run; run(['--help'])",
    "list models": "from rtsim.cli.main import run; run(['list', 'models'])",
    "predict": "from rtsim.cli.main import run; "
    "run(['predict', '--arch', 'gpt3-175b', '--gpu', 'a100', '--tp', '8'])",
}


@pytest.fixture(scope="module")
def made() -> System:
    warm_up()
    return system("gpt3-175b", "a100", 8)


def reference() -> float:
    """A fixed piece of plain Python: 10,000 multiply-adds."""
    total = 0.0
    for i in range(10_000):
        total += i * 0.5
    return total


def least_s(function: Callable[[], Any], repeats: int = 20) -> float:
    """Least wall-clock seconds of some repeats."""

    def once() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


def timed(benchmark: Any, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Benchmark a call, and note its time as a multiple of `reference`."""
    result = benchmark(function, *arguments, **options)
    least = least_s(lambda: function(*arguments, **options))
    benchmark.extra_info["of_reference"] = round(least / least_s(reference), 3)
    return result


def test_bare_times(benchmark: Any, made: System) -> None:
    """`System.times`: what a planner calls a million times. Budget 50 us."""
    times = timed(benchmark, made.times, 1, 512, 64)
    assert times.ttft_s > 0.0


def test_bare_times_of_a_prompt_pass(benchmark: Any, made: System) -> None:
    assert timed(benchmark, made.times, 1, 512, 1).ttft_s > 0.0


def test_bare_times_of_a_long_generation(benchmark: Any, made: System) -> None:
    """Two octaves of context instead of a fraction of one."""
    assert timed(benchmark, made.times, 1, 512, 1500).ttft_s > 0.0


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "interpreted"])
def test_whole_prediction(benchmark: Any, made: System, compiled: bool) -> None:
    """`System.predict`: with memory, cost, interval and breakdown. Interpreted budget 50 ms."""
    made.predict(1, 512, 64, compiled=compiled)
    result = timed(benchmark, made.predict, 1, 512, 64, compiled=compiled)
    assert result.memory.fits


def test_by_name(benchmark: Any) -> None:
    """`rtsim.predict` with names: the kept system is found again."""
    warm_up()
    assert timed(benchmark, predict, "gpt3-175b", "a100", tp=8).ttft_s > 0.0


def test_making_a_system(benchmark: Any, made: System) -> None:
    """Specifications to rows, once per model, GPU and split; the lowering itself is kept."""
    again = timed(benchmark, System, made.model, made.gpu, made.parallelism)
    assert again.profile is made.profile


def test_many_workloads(benchmark: Any, made: System) -> None:
    """`System.runtimes` (generation_many): predictions a second on one core."""
    rng = np.random.default_rng(1)
    batch = rng.integers(1, 64, SWEEP_ROWS).astype(float)
    prompt = rng.integers(1, 1500, SWEEP_ROWS).astype(float)
    output = rng.integers(1, 500, SWEEP_ROWS).astype(float)
    made.runtimes(batch[:2], prompt[:2], output[:2])
    owed = benchmark.pedantic(made.runtimes, (batch, prompt, output), rounds=3)
    assert np.isfinite(owed).all()
    if benchmark.stats:
        rate = SWEEP_ROWS / benchmark.stats.stats.min
        benchmark.extra_info["predictions_per_s"] = round(rate)


@pytest.mark.parametrize("what", START_UPS)
def test_start_up(benchmark: Any, what: str) -> None:
    """A fresh process; as a multiple of one that does nothing, in CPU time."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)

    def cpu_s(code: str) -> float:
        def once() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return min(once() for _ in range(5))

    benchmark.pedantic(start, (START_UPS[what],), rounds=5, warmup_rounds=1)
    own_s, nothing_s = cpu_s(START_UPS[what]), cpu_s("pass")
    benchmark.extra_info["of_interpreter_start"] = round(own_s / nothing_s, 2)
    benchmark.extra_info["cpu_ms_beyond_interpreter"] = round(1e3 * (own_s - nothing_s), 1)
