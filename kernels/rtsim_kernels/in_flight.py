"""How many requests a replica may have in flight, and how many it has at a rate.

By Little's law a replica that carries r requests a second has r T of them in flight, each for its
latency T, which itself grows with them. Both counts are found by bisection over whole numbers of
requests, since throughput and latency grow with their number:

    most_in_flight     the largest N whose times keep a level
    least_in_flight    the smallest N whose throughput reaches a rate

Valid up to what runs at once (cache, limit of the scheduler): beyond it more requests wait outside
and carry nothing. Known error: that of `steady`; where a kernel's time jumps at a tile, throughput
may fall by a fraction of a per cent from one N to the next, and the N found is one of two or three
neighbours.
"""

from __future__ import annotations

import math
from typing import Any

from ._jit import inner, jit
from .steady import Load, steady_state


@inner
def load_with(load: Any, in_flight: float, input_len: float) -> Any:
    """The load with as many in flight, and a prompt of which the same share is cached."""
    return Load(
        in_flight, load.most_running, input_len, load.output_len,
        load.cached_tokens / load.input_len * input_len, load.policy, load.token_budget,
        load.stages, load.speculated, load.acceptance, load.draft_frac,
    )  # fmt: skip


@inner
def keeps_level(
    load: Any, in_flight: float, long_input_len: float, ttft_s: float, tpot_s: float,
    operators: Any, segments: Any, machine: Any, engine: Any, times: Any,
) -> bool:  # fmt: skip
    """Whether both times are within their limits; NaN, no time per token, is within.

    The time to first token is that of a prompt of long_input_len tokens among those of the load:
    it waits as they do and takes its own steps.
    """
    own = load_with(load, in_flight, load.input_len)
    made = steady_state(own, operators, segments, machine, engine, times)
    first_s = made.ttft_s
    if long_input_len != load.input_len:
        other = load_with(load, in_flight, long_input_len)
        longer = steady_state(other, operators, segments, machine, engine, times)
        first_s += longer.ttft_alone_s - made.ttft_alone_s
    return not (first_s > ttft_s or made.tpot_s > tpot_s)


@jit
def most_in_flight(
    load: Any, long_input_len: float, ttft_s: float, tpot_s: float, most: float, groups: float,
    operators: Any, segments: Any, machine: Any, engine: Any, times: Any,
) -> float:  # fmt: skip
    """The most requests, a whole number up to `most`, that keep the level; 0: not even one.

    `groups` of GPUs share them; load, without in_flight, is of one group.
    """
    rows = (operators, segments, machine, engine, times)
    if not keeps_level(load, 1.0 / groups, long_input_len, ttft_s, tpot_s, *rows):
        return 0.0
    if keeps_level(load, most / groups, long_input_len, ttft_s, tpot_s, *rows):
        return most
    low = 1.0
    high = most
    while high - low > 1.0:
        middle = math.floor(0.5 * (low + high))
        if keeps_level(load, middle / groups, long_input_len, ttft_s, tpot_s, *rows):
            low = middle
        else:
            high = middle
    return low


@jit
def least_in_flight(
    load: Any, rate_per_s: float, most: float, groups: float,
    operators: Any, segments: Any, machine: Any, engine: Any, times: Any,
) -> float:  # fmt: skip
    """The fewest requests, a whole number up to `most`, whose throughput reaches the rate.

    rate_per_s: of all groups; `most` where none reaches it.
    """
    low = 0.0
    high = most
    while high - low > 1.0:
        middle = math.floor(0.5 * (low + high))
        own = load_with(load, middle / groups, load.input_len)
        made = steady_state(own, operators, segments, machine, engine, times)
        if made.running / made.cycle_s * groups >= rate_per_s:
            high = middle
        else:
            low = middle
    return high
