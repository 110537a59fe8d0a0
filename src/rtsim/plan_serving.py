"""Candidates that serve by continuous batching: replicas with every number of requests in flight.

Times are those of the steady state with N requests in flight in a replica, waiting included
(`rtsim_kernels.steady`). By Little's law a replica that carries r requests a second has the
smallest N in flight whose throughput X(N) reaches r, so that a rate takes ceil(rate / X(N))
replicas with N in flight each. N runs over `COUNTS`, as far as the cache and the limits of the
scheduler let requests run at once. Every one is predicted, since X does not grow without a break:
where products get one more wave of tiles it falls, by up to a sixth.

Requests of unlike lengths are served together: steps are those of the mean lengths, the time to
first token is that of the prompt that the stated share of the requests does not exceed. Ignored:
the spread of waiting, and of lengths beyond their means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray

from rtsim.bulk import SERVING, each, n_threads, size_number
from rtsim.errors import RtsimError, SpecError
from rtsim.lengths import Lengths
from rtsim.plan_candidates import ROUNDING, Candidates, Demand, replicas_for
from rtsim.plan_space import DEGREES, FORMATS, Replica
from rtsim.served import LOAD, SIZES, Served, check_numbers, served
from rtsim.serving.steady import interval_factor
from rtsim.specs import ModelSpec, WorkloadSpec
from rtsim.system_rows import Base, Systems

Array = NDArray[Any]

OPTIONS = SIZES[:-3]  # of the engine, the same for all candidates
# Requests in flight: each number up to 32, then 16 a doubling.
COUNTS = (*range(1, 33), *(n << k for k in range(1, 8) for n in range(17, 33)))
MOST_PREDICTIONS = 10_000_000  # some minutes
_BLOCK = 16  # replicas that a thread takes at a time
_STATE = (
    "ttft_s", "ttft_s_high", "tpot_s", "tpot_s_high", "e2e_latency_s", "e2e_latency_s_low",
    "e2e_latency_s_high", "ttft_alone_s", "prompt_frac", "batch_size", "capacity_per_s",
    "saturated_per_s", "largest_in_flight", "replica_gpus", "memory_bytes", "capacity_bytes",
    "power_w", "fits",
)  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """Requests as the engines see them: mean lengths, and the prompt that TTFT is held against.

    longest: prompt and output of the request that takes the most cache.
    """

    input_len: float
    output_len: float
    long_input_len: float
    longest: tuple[float, float]

    @classmethod
    def of(cls, requests: Lengths, share: float) -> Mix:
        """The mix of a table of lengths; `share` of its prompts are no longer than `long`."""
        prompts, outputs = requests.input_len, requests.output_len
        at_share = requests.at_share(share)
        if at_share is None:
            order = np.argsort(prompts, kind="stable")
            reached = np.cumsum(requests.share[order]) >= share * requests.share.sum() - ROUNDING
            reached[-1] = True
            long_input_len = float(prompts[order][reached.argmax()])
        else:
            long_input_len = float(at_share[0][0])
        i = int(np.argmax(prompts + outputs))
        longest = float(prompts[i]), float(outputs[i])
        return cls(requests.mean_input_len, requests.mean_output_len, long_input_len, longest)


def checked_options(options: Mapping[str, Any]) -> dict[str, float]:
    """Options of the engine as numbers, NaN = the stack's own; SpecError or UnknownName."""
    numbers = {name: size_number(name, options.get(name)) for name in OPTIONS}
    for name in ("prefix_hit", "speculative_tokens", "acceptance", "draft_frac"):
        numbers[name] = 0.0 if math.isnan(numbers[name]) else numbers[name]
    check_numbers({**numbers, "concurrency": 1.0})
    return numbers


def serving_candidates(
    model: Any, spec: ModelSpec, gpus: Sequence[Any], prices: Array, replicas: Sequence[Replica],
    requests: Lengths, share: float, options: Mapping[str, float], counts: Sequence[float] | None,
    demand: Demand, threads: int | None,
) -> Candidates:  # fmt: skip
    """Every replica with every number of requests in flight.

    model, gpus: as `rtsim.predict` takes them, spec: the model; prices: (gpus,) USD per GPU hour,
    NaN = not known; options: of `checked_options`; counts: in place of COUNTS.
    """
    n_rows = len(replicas) * len(counts or COUNTS)
    if n_rows > MOST_PREDICTIONS:
        raise SpecError(
            "concurrency", f"{len(counts or COUNTS)} values",
            f"make {n_rows:,} predictions with all else, at most {MOST_PREDICTIONS:,} are made",
        )  # fmt: skip
    mix = Mix.of(requests, share)
    states, errors = _states(model, spec, gpus, replicas, mix, options, counts, threads)
    which = np.repeat(np.arange(len(replicas)), [len(one["fits"]) for one in states])
    c = {name: np.concatenate([one[name] for one in states]) for name in _STATE}
    texts = np.empty(len(replicas), object)
    texts[:] = errors
    found = Candidates(replicas, which, c, texts[which])
    usd_per_hour = c["replica_gpus"] * prices[found.gpu]
    c["dp"] = replicas_for(demand, c["capacity_per_s"], c["replica_gpus"], usd_per_hour)
    c["num_gpus"] = c["dp"] * c["replica_gpus"]
    c["usd_per_hour"] = c["dp"] * usd_per_hour
    c["requests_per_s"] = c["dp"] * c["capacity_per_s"]
    c["saturation_requests_per_s"] = c["dp"] * c["saturated_per_s"]
    carried = c["requests_per_s"] if demand.rate_per_s is None else demand.rate_per_s
    c["energy_j_per_request"] = c["num_gpus"] * c["power_w"] / carried
    c["energy_j"] = c["energy_j_per_request"]
    return found


def _states(
    model: Any, spec: ModelSpec, gpus: Sequence[Any], replicas: Sequence[Replica], mix: Mix,
    options: Mapping[str, float], counts: Sequence[float] | None, threads: int | None,
) -> tuple[list[dict[str, Array]], list[str]]:  # fmt: skip
    """(columns of each replica's states, "" or why it has none)."""
    wrong = ""
    try:
        prompt, output = map(int, mix.longest)
        WorkloadSpec(input_len=prompt, output_len=output).check_model(spec)
    except RtsimError as error:
        wrong = str(error)
    columns: dict[str, Sequence[Any]] = {"gpu": [one.gpu for one in replicas]}
    columns |= {name: [one.degrees[i] for one in replicas] for i, name in enumerate(DEGREES)}
    columns |= {name: [one.formats[i] for one in replicas] for i, name in enumerate(FORMATS)}
    distinct = {name: list(dict.fromkeys(values)) for name, values in columns.items()}
    codes = [[distinct[name].index(v) for v in values] for name, values in columns.items()]
    codes.append([0] * len(replicas))
    distinct = {**distinct, "gpu": [gpus[i] for i in distinct["gpu"]], "model": [model]}
    systems = Systems(distinct, SERVING.stack)
    coded = np.array(codes, np.int64).T
    rtsim_kernels.compiled()  # once, before the threads
    found = [_misfit()] * len(replicas)
    errors = [wrong] * len(replicas)

    def work(first: int) -> None:
        packed = systems.pack(coded[first : first + _BLOCK])
        for i, base in enumerate(packed.bases, start=first):
            if base is None:
                errors[i] = packed.errors[i - first]
            elif not wrong:
                try:
                    found[i] = _states_of(
                        base, mix, tuple(options.values()), None if counts is None else (*counts,)
                    )
                except RtsimError as error:
                    errors[i] = str(error)

    blocks = range(0, len(replicas), _BLOCK)
    each(work, blocks, max(1, min(n_threads(threads), len(blocks))))
    return found, errors


@lru_cache(maxsize=1024)
def _states_of(
    base: Base, mix: Mix, options: tuple[float, ...], counts: tuple[float, ...] | None
) -> dict[str, Array]:
    """Columns of _STATE of one replica, a row for each number of requests in flight."""
    one, made = served(base), base.made
    groups = made.parallelism.sequence_groups
    numbers = {
        **dict(zip(OPTIONS, options, strict=True)), "concurrency": 1.0,
        "input_len": mix.input_len, "output_len": mix.output_len,
    }  # fmt: skip
    sizes = one.filled({name: np.array([numbers[name]]) for name in SIZES})
    allowed = float(sizes["memory_frac"][0]) * float(made.gpu.memory_bytes)
    used = made.placement.weights_bytes + made.placement.reserved_bytes()
    used += made.placement.activation_bytes(1, int(sizes["token_budget"][0]))
    load = one.loads(sizes, np.array([max(0.0, allowed - used)]))[0]
    most = math.floor(load[LOAD["most_running"]] * groups)
    prompt, output = mix.longest
    held = prompt + output * (1.0 if one.engine.scheduler.reserves else 0.5)
    needed = used + float(one.sequence_bytes(np.array([held]))[0])
    gpus = float(made.parallelism.num_gpus)
    if needed > allowed or most < 1:
        return _misfit(needed, allowed, gpus)
    own = [n for n in counts or COUNTS if n < most]
    own += [most] if counts is None or not own or most in counts else []
    in_flight = np.array([*own, most], float)  # the last one for what it carries at most
    found = _times(one, base.machine[()], load, in_flight / groups, mix)
    rate = found["running"] / found["cycle_s"] * groups
    context = np.array([mix.input_len + 0.5 * mix.output_len])
    power = made.gpu.power_w
    columns = {
        **found, "batch_size": in_flight, "capacity_per_s": rate, "saturated_per_s": rate.max(),
        "largest_in_flight": float(most), "replica_gpus": gpus, "capacity_bytes": allowed,
        "memory_bytes": used + found["running"] * one.sequence_bytes(context),
        "power_w": math.nan if power is None else power, "fits": True,
    }  # fmt: skip
    return {name: np.broadcast_to(columns[name], in_flight.shape)[:-1] for name in _STATE}


def _times(one: Served, machine: Any, load: Array, in_flight: Array, mix: Mix) -> dict[str, Array]:
    """The steady states of one group, those of the long prompt, and intervals."""
    loads = np.repeat(load[None], len(in_flight), axis=0)
    loads[:, LOAD["in_flight"]] = in_flight
    found = one.steady(loads, machine)
    further_s = np.zeros(len(in_flight))
    longer = mix.long_input_len / mix.input_len
    if longer != 1.0:  # it waits as others do and takes steps of its own
        for name in ("input_len", "cached_tokens"):
            loads[:, LOAD[name]] *= longer
        further_s = one.steady(loads, machine)["ttft_alone_s"] - found["ttft_alone_s"]
    ttft, tpot = (interval_factor(one.engine.system, name) for name in ("ttft", "tpot"))
    first_s = found["ttft_s"]
    decoded_s = np.nan_to_num(found["tpot_s"]) * (mix.output_len - 1.0)
    return {
        **found,
        "ttft_s": first_s + further_s, "ttft_s_high": (first_s + further_s) * ttft,
        "ttft_alone_s": found["ttft_alone_s"] + further_s,
        "tpot_s_high": found["tpot_s"] * tpot,
        "e2e_latency_s": first_s + decoded_s,
        "e2e_latency_s_low": first_s / ttft + decoded_s / tpot,
        "e2e_latency_s_high": first_s * ttft + decoded_s * tpot,
    }  # fmt: skip


def _misfit(
    needed_bytes: float = math.nan, allowed_bytes: float = math.nan, gpus: float = math.nan
) -> dict[str, Array]:
    """Columns of a replica that has no states: one row."""
    row = {"memory_bytes": needed_bytes, "capacity_bytes": allowed_bytes, "replica_gpus": gpus}
    columns = {name: np.array([row.get(name, math.nan)]) for name in _STATE}
    columns["fits"] = np.zeros(1, np.bool_)
    return columns
