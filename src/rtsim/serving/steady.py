"""The steady state of an engine under a number of requests in flight: means in closed form.

`serve` makes the system and asks once; `steady_state` asks an engine that is there, `steady_many`
one engine for many loads at once, compiled. Formulas and what they leave out:
`rtsim_kernels.steady`. Errors on rows outside the fit: docs/accuracy-serving.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.errors import SpecError
from rtsim.profile import DEVIATIONS_90, Profile
from rtsim.serving.engine import Engine
from rtsim.system import System

Array = NDArray[np.float64]

# Where no serving run was fitted: what a stack's runs are off by on another GPU.
UNFITTED_SIGMA = {"ttft": 0.5, "tpot": 0.25, "batch": 0.3}


# Further deviation on a GPU without runs of its own: docs/accuracy-serving.md, a GPU left out.
TRANSFER_SIGMA = {"ttft": 0.25, "tpot": 0.15, "batch": 0.15}


def serving_sigma(profile: Profile, name: str) -> float:
    """Deviation of ln(measured / predicted) of a run: "ttft", "tpot", or a whole "batch"."""
    return profile.section_sigma.get(f"serving.{name}", UNFITTED_SIGMA[name])


@dataclass(frozen=True)
class Speculation:
    """Speculative decoding: tokens drafted per step, the chance that each is kept, and the time
    of drafting one, as a share of a decode step.
    """

    tokens: int = 0
    acceptance: float = 0.0
    draft_frac: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise SpecError("speculative_tokens", self.tokens, "must be 0 or more")
        if not 0.0 <= self.acceptance <= 1.0:
            raise SpecError("acceptance", self.acceptance, "must be a share from 0 to 1")
        if not 0.0 <= self.draft_frac < math.inf:
            raise SpecError("draft_frac", self.draft_frac, "must be 0 or more")


NO_SPECULATION = Speculation()


def speculation_of(tokens: int, acceptance: float | None, draft_frac: float) -> Speculation:
    """A `Speculation`; SpecError for what does not go with the tokens, or is missing."""
    made = Speculation(tokens, acceptance or 0.0, draft_frac)
    if tokens and acceptance is None:
        raise SpecError.of_missing(
            "acceptance", "goes with speculative_tokens: the chance that a drafted token is kept"
        )
    if not tokens and (acceptance or draft_frac):
        name, value = ("acceptance", acceptance) if acceptance else ("draft_frac", draft_frac)
        raise SpecError(name, value, "goes with speculative_tokens: nothing is drafted without")
    return made


@dataclass(frozen=True)
class SteadyState:
    """Means of a closed loop of `concurrency` requests on a whole system.

    ttft_s: arrival to first token, waiting in; ttft_alone_s without waiting for others.
    itl_mixed_s: gap between two tokens where a step also takes a chunk of a prompt, decode_step_s
    where it does not. running: requests in the engines, of which `decoding` get tokens in a step;
    largest_running: most that could. limit: "concurrency", "cache" or "max_sequences", what keeps
    more from running. prompt_frac: share of time that prompts take. Rates are per second and of the
    whole system; gpu_throughput is output tokens per second and GPU.
    """

    concurrency: float
    ttft_s: float
    ttft_alone_s: float
    tpot_s: float | None
    e2e_latency_s: float
    decode_step_s: float
    itl_mixed_s: float
    request_throughput: float
    output_throughput: float
    total_throughput: float
    gpu_throughput: float
    user_throughput: float | None
    running: float
    decoding: float
    largest_running: float
    limit: str
    prompt_frac: float


# Columns of `steady_many`.
FIELDS = (
    *("ttft_s", "ttft_alone_s", "tpot_s", "decode_step_s", "itl_mixed_s", "cycle_s", "running"),
    *("decoding", "prompt_frac"),
)


MOST_CONCURRENCY = 1e9


def check_load(concurrency: float, prefix_hit: float) -> None:
    """SpecError for numbers that are no load."""
    if not 0.0 <= prefix_hit < 1.0:
        raise SpecError("prefix_hit", prefix_hit, "must be a share from 0 to below 1")
    if not units.is_number(concurrency) or not 0.0 < concurrency <= MOST_CONCURRENCY:
        most = f"{MOST_CONCURRENCY:,.0f}"
        raise SpecError("concurrency", concurrency, f"must be above 0 and at most {most}")


def load_of(
    engine: Engine,
    concurrency: float,
    input_len: float,
    output_len: float,
    prefix_hit: float = 0.0,
    speculation: Speculation = NO_SPECULATION,
    equal: bool = False,
) -> tuple[float, ...]:
    """A `load.Load` of one group of the engine's GPUs, as a tuple of floats."""
    check_load(concurrency, prefix_hit)
    parallelism = engine.system.parallelism
    most = engine.most_running(int(input_len), int(output_len))
    if most < 1.0:
        raise SpecError(
            "input_len", input_len,
            f"a request of {input_len:.0f} + {output_len:.0f} tokens does not fit the cache of "
            f"{engine.system.gpu.name}: {most:.2f} of it would",
        )  # fmt: skip
    in_flight = concurrency / parallelism.sequence_groups
    cached = prefix_hit * input_len
    return load_row(engine, in_flight, most, input_len, output_len, cached, speculation, equal)


def load_row(
    engine: Engine, in_flight: float, most_running: float, input_len: float, output_len: float,
    cached_tokens: float = 0.0, speculation: Speculation = NO_SPECULATION, equal: bool = False,
) -> tuple[float, ...]:  # fmt: skip
    """Fields of a `load.Load` of one group under the engine's scheduler; nothing is checked."""
    return (
        in_flight, most_running, float(input_len), float(output_len), cached_tokens,
        engine.policy, float(engine.scheduler.token_budget),
        float(engine.system.parallelism.pp), float(speculation.tokens), speculation.acceptance,
        speculation.draft_frac, float(engine.system.parallelism.attention_dp), float(equal),
    )  # fmt: skip


def steady_many(engine: Engine, loads: Array) -> Array:
    """`FIELDS` of many loads of one engine, (rows, fields); loads: (rows, fields of Load)."""
    kernels, rows = engine.compiled()
    out = np.zeros((len(loads), len(FIELDS)))
    kernels.steady.steady_states(np.ascontiguousarray(loads), *rows, engine.scratch, out)
    return out


def steady_state(
    engine: Engine,
    concurrency: float,
    input_len: int,
    output_len: int,
    *,
    prefix_hit: float = 0.0,
    speculation: Speculation = NO_SPECULATION,
    equal_lengths: bool = False,
) -> SteadyState:
    """Means with `concurrency` requests in flight, `input_len` and `output_len` tokens each.

    prefix_hit: share of a prompt that is found in the prefix cache. equal_lengths: every request
    has just these lengths, else they are means of lengths that differ. Raises SpecError for a load
    that is none, and where not one request fits.
    """
    load = load_of(
        engine, concurrency, input_len, output_len, prefix_hit, speculation, equal_lengths
    )
    found = dict(zip(FIELDS, steady_many(engine, np.array([load]))[0].tolist(), strict=True))
    return state_of(engine, concurrency, output_len, input_len, load[1], found)


def state_of(
    engine: Engine, concurrency: float, output_len: int, input_len: int, most: float,
    found: dict[str, float],
) -> SteadyState:  # fmt: skip
    """A `SteadyState` of one row of `steady_many`."""
    parallelism, scheduler = engine.system.parallelism, engine.scheduler
    groups = parallelism.sequence_groups
    tpot_s = None if math.isnan(found["tpot_s"]) else found["tpot_s"]
    e2e_s = found["ttft_s"] + (tpot_s or 0.0) * (output_len - 1)
    rate = found["running"] * groups / found["cycle_s"]
    limit = "concurrency"
    if concurrency / groups > most:
        limit = "max_sequences" if most >= scheduler.max_sequences else "cache"
    return SteadyState(
        concurrency=concurrency,
        ttft_s=found["ttft_s"],
        ttft_alone_s=found["ttft_alone_s"],
        tpot_s=tpot_s,
        e2e_latency_s=e2e_s,
        decode_step_s=found["decode_step_s"],
        itl_mixed_s=found["itl_mixed_s"],
        request_throughput=rate,
        output_throughput=rate * output_len,
        total_throughput=rate * (input_len + output_len),
        gpu_throughput=rate * output_len / parallelism.num_gpus,
        user_throughput=None if tpot_s is None else 1.0 / tpot_s,
        running=found["running"] * groups,
        decoding=found["decoding"] * groups,
        largest_running=most * groups,
        limit=limit,
        prompt_frac=found["prompt_frac"],
    )


def interval_90(system: System, name: str, seconds: float) -> tuple[float, float]:
    """The 90 % interval of a serving time, "ttft" or "tpot", from the scatter of left-out runs."""
    factor = interval_factor(system, name)
    return seconds / factor, seconds * factor


def interval_factor(system: System, name: str) -> float:
    """Upper end of a 90 % interval over the time, and the time over the lower end."""
    return math.exp(DEVIATIONS_90 * system_sigma(system, name))


def system_sigma(system: System, name: str) -> float:
    """`serving_sigma` of a system's profile, wider where the GPU is not the profile's."""
    own = serving_sigma(system.profile, name)
    if system.gpu.name == system.profile.gpu and not system.gpu.what_if:
        return own
    return math.hypot(own, TRANSFER_SIGMA[name])
