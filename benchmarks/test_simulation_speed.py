"""How fast serving is simulated. Not part of the test run:

    python -m pytest benchmarks/test_simulation_speed.py --benchmark-enable

"extra_info" of --benchmark-json has the cost of a step and of an output token.
`scripts/simulation_speed.py` writes the table of docs/serving.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtsim.lengths import bucketed
from rtsim.named_system import system
from rtsim.service_level import service_level
from rtsim.serving.arrivals import Generated
from rtsim.serving.capacity import capacity
from rtsim.serving.deployment import Deployment
from rtsim.serving.engine import Engine
from rtsim.serving.simulate import simulate


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    made = Deployment(Engine(system("llama-3.1-70b", "h100", 4, stack="vllm")))
    simulate(made, requests(20))
    return made


def requests(n: int, rate: float = 1.0) -> Generated:
    drawn = np.random.default_rng(0)
    sizes = bucketed(drawn.integers(200, 1801, 60) * 1.0, drawn.integers(50, 351, 60) * 1.0)
    return Generated(rate, sizes, n)


@pytest.mark.parametrize("in_flight", [1, 16, 256])
def test_closed_loop(benchmark: Any, deployment: Deployment, in_flight: int) -> None:
    result = benchmark(
        simulate, deployment, requests(max(200, 20 * in_flight)), concurrency=in_flight
    )
    if benchmark.stats is not None:
        mean_s = benchmark.stats["mean"]
        benchmark.extra_info["us_per_step"] = 1e6 * mean_s / result.n_steps
        benchmark.extra_info["ns_per_token"] = 1e9 * mean_s / result.output_tokens


def test_capacity_search(benchmark: Any, deployment: Deployment) -> None:
    found = benchmark.pedantic(
        capacity, (deployment, requests(500), service_level("chat"), 0.99), rounds=1
    )
    assert found.rate_per_s > 0.0
