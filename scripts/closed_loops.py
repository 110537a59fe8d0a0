"""Compare the steady state of serving with the event simulation of the same loads.

    python scripts/closed_loops.py [--write]

A dense model, experts, and groups of attention data parallelism; three stacks; long and short
prompts and outputs; 1 to 256 requests in flight, each user sending the next request when the last
is answered. Lengths differ: prompts by 20 % and outputs by 40 % around their means. With --write
the table goes into docs/serving.md. Needs no measurements; under a minute.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from accuracy import percent, put_into, table

from rtsim.lengths import Lengths, bucketed
from rtsim.named_system import system
from rtsim.serving.arrivals import Generated
from rtsim.serving.deployment import Deployment
from rtsim.serving.engine import Engine
from rtsim.serving.simulate import simulate
from rtsim.serving.steady import SteadyState, steady_state

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
SYSTEMS = {
    "dense": ("llama-3.1-8b", "h100", {}),
    "experts": ("mixtral-8x7b", "a100", {"tp": 2}),
    "groups": ("deepseek-v3", "h200", {"attention_dp": 8, "ep": 8, "quantization": "fp8"}),
}
STACKS = ("vllm", "sglang", "trtllm")
SIZES = {  # prompt and output tokens
    "even": (1000, 200), "prompts": (2000, 50), "outputs": (500, 500), "long": (6000, 400),
    "chat": (300, 100),
}  # fmt: skip
IN_FLIGHT = (1, 4, 16, 64, 128, 256)
CLOSE = 0.05


class Means(NamedTuple):
    """Means of a load: seconds, and requests a second."""

    ttft_s: float
    tpot_s: float
    request_throughput: float


class Compared(NamedTuple):
    """A load by the steady state, and relative differences from the simulation's means."""

    state: SteadyState
    off: Means


@cache
def engine(name: str, stack: str) -> Engine:
    """One of SYSTEMS under a stack."""
    model, gpu, split = SYSTEMS[name]
    return Engine(system(model, gpu, stack=stack, **split))


def differing(input_len: int, output_len: int) -> Lengths:
    """Prompts within 20 % and outputs within 40 % of a mean."""
    generator = np.random.default_rng(0)
    prompts = generator.uniform(0.8, 1.2, 400) * input_len
    outputs = np.rint(generator.uniform(0.6, 1.4, 400) * output_len).astype(int)
    return bucketed(np.rint(prompts), outputs)


def simulated(made: Engine, in_flight: int, lengths: Lengths) -> Means:
    """A closed loop without the start and the end of its run."""
    records: list[NDArray[np.void]] = []
    traffic = Generated(1.0, lengths, 400 + 12 * in_flight)
    simulate(Deployment(made), traffic, concurrency=in_flight, records=records)
    rows = np.concatenate(records)
    rows = rows[np.argsort(rows["request"])]
    ends = np.sort(rows["arrival_s"] + rows["e2e_latency_s"])
    first, last = 3 * in_flight, len(rows) - in_flight
    rate = (last - first) / (ends[last - 1] - ends[first - 1])
    rows = rows[first:last]
    decoding_s = (rows["e2e_latency_s"] - rows["ttft_s"]).sum()
    tpot_s = decoding_s / (rows["output_tokens"] - 1).sum()
    return Means(float(rows["ttft_s"].mean()), float(tpot_s), float(rate))


def compared() -> list[Compared]:
    """Every load."""
    found = []
    for name, stack, (prompt, output), n in product(SYSTEMS, STACKS, SIZES.values(), IN_FLIGHT):
        made = engine(name, stack)
        state = steady_state(made, n, prompt, output)
        played = simulated(made, n, differing(prompt, output))
        off = (getattr(state, field) / value - 1.0 for field, value in played._asdict().items())
        found.append(Compared(state, Means(*off)))
    return found


def line(label: str, loads: list[Compared]) -> list[str]:
    """A row of the table: how many loads are close, the median and the worst difference."""
    cells = [label, str(len(loads))]
    for name in Means._fields:
        off = np.abs([getattr(one.off, name) for one in loads])
        close = percent(float((off <= CLOSE).mean()))
        cells.append(f"{close} ({percent(float(np.median(off)))}, {percent(float(off.max()))})")
    return cells


def page() -> str:
    """The table."""
    loads = compared()
    free = [one for one in loads if one.state.limit == "concurrency"]
    shares = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01))
    lines = [
        line(
            f"prompts take {low:.0%} to {min(high, 1.0):.0%} of the time".replace("%", " %"),
            [one for one in free if low <= one.state.prompt_frac < high],
        )
        for low, high in shares
    ]
    lines.append(line("**all below half**", [one for one in free if one.state.prompt_frac < 0.5]))
    lines.append(line("requests wait for the cache", [one for one in loads if one not in free]))
    header = ("", "loads", "time to first token", "time per output token", "requests a second")
    return table(header, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    text = page()
    print(text)
    if arguments.write:
        put_into(PAGE, "closed-loops", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
