"""How fast the event simulation is: measures, and writes the table of docs/serving.md.

    python scripts/simulation_speed.py [--write] [--trace FILE]

CPU seconds of one thread, llama-3.1-70b on 4 H100. By batch: requests kept in flight. With a trace
(columns arrival_s, prompt_tokens, output_tokens) also that, repeated to 100,000 requests.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import numpy as np

from rtsim.lengths import bucketed
from rtsim.named_system import system
from rtsim.serving.arrivals import Generated, Traffic, played
from rtsim.serving.deployment import Deployment
from rtsim.serving.engine import Engine
from rtsim.serving.simulate import simulate
from rtsim.serving.simulated import Simulated

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
BATCHES = (1, 4, 16, 64, 256)
_BLOCK = re.compile(r"(<!-- speed: start -->\n).*?(<!-- speed: end -->)", re.DOTALL)


def deployment() -> Deployment:
    """Llama 3.1 70B on four H100, vLLM."""
    return Deployment(Engine(system("llama-3.1-70b", "h100", 4, stack="vllm")))


def requests(n: int) -> Generated:
    """Requests of 200 to 1800 prompt and 50 to 350 output tokens."""
    drawn = np.random.default_rng(0)
    sizes = bucketed(drawn.integers(200, 1801, 60) * 1.0, drawn.integers(50, 351, 60) * 1.0)
    return Generated(1.0, sizes, n)


def timed(made: Deployment, traffic: Traffic, in_flight: int = 0) -> tuple[float, Simulated]:
    """CPU seconds of a simulation, and what it says."""
    start = time.process_time()
    result = simulate(made, traffic, concurrency=in_flight)
    return time.process_time() - start, result


def rows(trace: str | None) -> list[str]:
    """The table, a line a load."""
    made = deployment()
    timed(made, requests(20), 4)  # compiles
    lines = [
        "| load | mean batch | steps | output tokens | CPU s | µs a step | ns an output token |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    loads: list[tuple[str, Traffic, int]] = [
        (f"{n} in flight", requests(max(400, 40 * n)), n) for n in BATCHES
    ]
    if trace is not None:
        name = f"conversation trace, {100_000:,} requests"
        loads.append((name, played(trace, 100_000), 0))
    for name, traffic, in_flight in loads:
        seconds, r = timed(made, traffic, in_flight)
        lines.append(
            f"| {name} | {r.mean_running:.1f} | {r.n_steps:,} | {r.output_tokens:,} | "
            f"{seconds:.2f} | {1e6 * seconds / r.n_steps:.1f} | "
            f"{1e9 * seconds / r.output_tokens:,.0f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--trace", metavar="FILE")
    options = parser.parse_args()
    text = "\n".join(rows(options.trace)) + "\n"
    if not options.write:
        print(text)
        return 0
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_BLOCK.sub(lambda m: f"{m[1]}\n{text}\n{m[2]}", page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
