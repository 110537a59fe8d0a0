"""One question about serving: a system, a number of requests in flight, and what users see.

Makes the engine, asks `steady` for its means and adds cost, energy, interval, and where the time of
a decode step goes. With pools of their own for prompts and for decoding it sizes both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rtsim_kernels
from rtsim_kernels import mixed

from rtsim.answer import sources_of
from rtsim.errors import SpecError
from rtsim.named_system import system
from rtsim.prediction import Cost, GpuSummary, ModelSummary, ParallelismSummary
from rtsim.profile_choice import SERVING_STACKS
from rtsim.serving.engine import Engine
from rtsim.serving.scheduler import Scheduler, scheduler_of
from rtsim.serving.steady import (
    NO_SPECULATION,
    Speculation,
    SteadyState,
    check_load,
    interval_90,
    load_of,
    speculation_of,
    steady_state,
)
from rtsim.serving.transfer import transfer_path, transfer_s
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.workload import WorkloadSpec

DEFAULT_STACK = SERVING_STACKS[0]
DEFAULT_INPUT, DEFAULT_OUTPUT = 1024, 256


@dataclass(frozen=True)
class StepShare:
    """Seconds that an operator takes of one decode step, all its executions together."""

    operator: str
    time_s: float
    share: float


@dataclass(frozen=True)
class Pools:
    """Prompts and decoding on GPUs of their own.

    prefill_busy_frac: share of the time that the prefill pool works; transfer_s: sending one
    prompt's cache over.
    """

    prefill_workers: int
    decode_workers: int
    prefill_gpus: int
    decode_gpus: int
    prefill_busy_frac: float
    transfer_s: float


@dataclass(frozen=True)
class ServingPrediction:
    """What a system gives its users with `state.concurrency` requests in flight.

    Times in seconds, rates per second; intervals hold 90 % of left-out runs. cache_frac: share of
    the cache that running requests take on average.
    """

    model: ModelSummary
    gpu: GpuSummary
    stack: str
    profile: str
    num_gpus: int
    parallelism: ParallelismSummary
    scheduler: Scheduler
    input_len: int
    output_len: int
    prefix_hit: float
    speculation: Speculation
    state: SteadyState
    interval_90: Mapping[str, tuple[float, float] | None]
    weights_bytes: float
    cache_bytes: float
    cache_frac: float
    cost: Cost | None
    energy_j: float | None
    breakdown: tuple[StepShare, ...]
    pools: Pools | None
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    assumed: tuple[str, ...]


def serve(
    arch: str | Path | ModelSpec,
    gpu: str | Path | GpuSpec,
    concurrency: float,
    *,
    input_len: int | None = None,
    output_len: int | None = None,
    stack: str | None = None,
    profile: str | None = None,
    policy: str | None = None,
    token_budget: int | None = None,
    max_sequences: int | None = None,
    memory_frac: float | None = None,
    prefix_hit: float = 0.0,
    speculative_tokens: int = 0,
    acceptance: float | None = None,
    draft_frac: float = 0.0,
    equal_lengths: bool = False,
    prefill_workers: int | None = None,
    decode_workers: int | None = None,
    prefill_tp: int | None = None,
    **split: Any,
) -> ServingPrediction:
    """Predict serving in its steady state: `concurrency` requests in flight on the whole system.

    split: tp, pp, ep, dp, attention_dp, num_gpus, dtype, kv_cache_dtype, quantization and set, as
    of `rtsim.predict`. policy ("mixed", "prefill-first"), token_budget, max_sequences per group of
    GPUs and memory_frac change the scheduler of the stack (vLLM's where none is named). prefix_hit:
    share of a prompt found in the cache. speculative_tokens: drafted per step, each kept with the
    chance `acceptance`, each for `draft_frac` of a decode step. equal_lengths: all requests have
    just these lengths, as load generators send them; else lengths differ around them.
    prefill_workers, and decode_workers (1) with it: pools of replicas with the split of the others,
    that of prompts with prefill_tp.

    Raises RtsimError (SpecError, UnknownName, DataError) on bad input, and where the model, or not
    one request, fits.
    """
    assumed = []
    if stack is None and profile is None:
        stack = DEFAULT_STACK
        assumed.append(f"stack = {stack} (a serving stack)")
    sizes = {"input_len": input_len, "output_len": output_len}
    for name, default in (("input_len", DEFAULT_INPUT), ("output_len", DEFAULT_OUTPUT)):
        if sizes[name] is None:
            sizes[name] = default
            assumed.append(f"{name} = {default} (default)")
    prompt, output = (
        _count("input_len", sizes["input_len"]),
        _count("output_len", sizes["output_len"]),
    )
    speculation = speculation_of(speculative_tokens, acceptance, draft_frac)
    made = system(arch, gpu, stack=stack, profile=profile, **split)
    own = scheduler_of(made.profile.stack, made.gpu)
    scheduler = own.changed(policy, token_budget, max_sequences, memory_frac)
    if scheduler.policy == "static":
        raise SpecError("policy", "static", "has no steady state: simulate it, or predict a batch")
    engine = Engine(made, scheduler)
    lengths = WorkloadSpec.from_mapping({"input_len": prompt, "output_len": output})
    notes = [*made.notes, *lengths.check_model(made.model)]
    pools = None
    check_pools(
        prefill_workers, split.get("num_gpus"), decode_workers=decode_workers,
        prefill_tp=prefill_tp,
    )  # fmt: skip
    if prefill_workers is None:
        state = steady_state(
            engine, concurrency, prompt, output, prefix_hit=prefix_hit, speculation=speculation,
            equal_lengths=equal_lengths,
        )  # fmt: skip
        num_gpus = made.parallelism.num_gpus
    else:
        check_load(concurrency, prefix_hit)  # of all, before it is shared out
        first = made
        if prefill_tp is not None:
            first = system(arch, gpu, stack=stack, profile=profile, **{**split, "tp": prefill_tp})
        state, pools = _pools(
            Engine(first, scheduler), engine, concurrency, prompt, output, prefix_hit,
            speculation, check_workers("prefill_workers", prefill_workers),
            check_workers("decode_workers", decode_workers),
        )  # fmt: skip
        num_gpus = pools.prefill_gpus + pools.decode_gpus
        if made.gpu.network is None:
            path, _ = transfer_path(made.gpu)
            notes.append(f"no network between nodes is given: caches are sent over {path}")
    if state.limit != "concurrency":
        what = "the cache holds" if state.limit == "cache" else "the scheduler runs"
        notes.append(
            f"{what} {state.largest_running:.0f} of {concurrency:g} requests at once: the others "
            "wait outside, which is in the time to first token"
        )
    if "serving.engine" not in made.profile.coefficients:
        notes.append(f"no serving runs were fitted in profile {made.profile.name}")
    groups = made.parallelism.sequence_groups * (pools.decode_workers if pools else 1)
    cache = engine.cache()
    held = state.running / groups * cache.sequence_bytes(prompt + 0.5 * output)
    price, power = made.gpu.price, made.gpu.power_w
    cost = None
    if price is not None:
        per_s = num_gpus * price.usd_per_hour / 3600.0
        cost = Cost(
            usd_per_request=per_s / state.request_throughput,
            usd_per_million_output_tokens=per_s / state.output_throughput * 1e6,
            usd_per_gpu_hour=price.usd_per_hour,
            source=f"{price.source} ({price.date})",
        )
    else:
        notes.append(f"no price is known for {made.gpu.name}: cost left out")
    p = made.parallelism
    return ServingPrediction(
        model=ModelSummary(made.model.name, made.model.parameters, made.model.active_parameters),
        gpu=GpuSummary(
            made.gpu.name, made.peak_flops_per_s, made.gpu.hbm_bytes_per_s,
            float(made.gpu.memory_bytes), made.gpu.power_w, made.peak_dtype,
        ),
        stack=made.profile.stack, profile=made.profile.name, num_gpus=num_gpus,
        parallelism=ParallelismSummary(
            p.tp, p.pp, p.ep, p.dp, p.cp, p.attention_dp, p.micro_batches
        ),
        scheduler=scheduler, input_len=prompt, output_len=output, prefix_hit=prefix_hit,
        speculation=speculation, state=state,
        interval_90={
            "ttft_s": interval_90(made, "ttft", state.ttft_s),
            "tpot_s": None if state.tpot_s is None
            else interval_90(made, "tpot", state.tpot_s),
        },
        weights_bytes=engine.placement().weights_bytes, cache_bytes=cache.capacity_bytes,
        cache_frac=min(1.0, held / cache.capacity_bytes), cost=cost,
        energy_j=None if power is None else num_gpus * power / state.request_throughput,
        breakdown=_breakdown(
            engine, state, prompt + 0.5 * output, groups, 1.0 + speculation.tokens
        ), pools=pools,
        sources=sources_of(made), notes=tuple(dict.fromkeys(notes)), assumed=tuple(assumed),
    )  # fmt: skip


def check_pools(prefill_workers: int | None, num_gpus: int | None, **others: Any) -> None:
    """SpecError for what is of pools without replicas for prompts, and the other way round."""
    if prefill_workers is not None and num_gpus is not None:
        raise SpecError("num_gpus", num_gpus, "follows from the workers: leave it out, or those")
    for name, value in others.items():
        if prefill_workers is None and value is not None:
            raise SpecError(name, value, "is of prefill replicas: give --prefill-workers too")


def check_workers(name: str, stated: int | None) -> int:
    """A number of workers, 1 where none is stated; SpecError."""
    return 1 if stated is None else _count(name, stated)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(name, value, "must be a whole number from 1")
    return value


def _pools(
    first: Engine, engine: Engine, concurrency: float, input_len: int, output_len: int,
    prefix_hit: float, speculation: Speculation, prefill_workers: int, decode_workers: int,
) -> tuple[SteadyState, Pools]:  # fmt: skip
    """The steady state of two pools: `kernels.pools.disaggregated`."""
    kernels, rows = engine.compiled()
    _, prompt_rows = first.compiled()
    load = load_of(engine, concurrency / decode_workers, input_len, output_len, 0.0, speculation)
    prompt_load = load_of(
        first, concurrency / prefill_workers, input_len, 1, prefix_hit, NO_SPECULATION
    )
    send_s = transfer_s(first.placement(), input_len, engine.system.parallelism.tp)
    ttft_s, tpot_s = kernels.pools.disaggregated(
        kernels.load.Load(*load), kernels.load.Load(*prompt_load), send_s, rows[:3],
        prompt_rows[:3], engine.row[()], engine.scratch, first.scratch,
    )  # fmt: skip
    alone_s = first.coefficients["request_s"] + first.step_s(
        mixed.Batch(0.0, 0.0, 1.0, float(input_len), float(input_len), 1.0, 1.0)
    )
    cycle_s = ttft_s + (0.0 if math.isnan(tpot_s) else tpot_s * (output_len - 1))
    rate = concurrency / cycle_s
    groups = engine.system.parallelism.sequence_groups * decode_workers
    prefill_gpus = first.system.parallelism.num_gpus * prefill_workers
    decode_gpus = engine.system.parallelism.num_gpus * decode_workers
    prompt_s = alone_s - first.coefficients["request_s"]
    busy = rate * prompt_s / (prefill_workers * first.system.parallelism.sequence_groups)
    state = SteadyState(
        concurrency=concurrency, ttft_s=ttft_s, ttft_alone_s=alone_s + send_s,
        tpot_s=None if math.isnan(tpot_s) else tpot_s, e2e_latency_s=cycle_s,
        decode_step_s=tpot_s, itl_mixed_s=tpot_s, request_throughput=rate,
        output_throughput=rate * output_len, total_throughput=rate * (input_len + output_len),
        gpu_throughput=rate * output_len / (prefill_gpus + decode_gpus),
        user_throughput=None if math.isnan(tpot_s) else 1.0 / tpot_s,
        running=rate * (cycle_s - ttft_s), decoding=rate * (cycle_s - ttft_s),
        largest_running=load[1] * groups,
        limit="concurrency" if concurrency <= load[1] * groups else "cache",
        prompt_frac=0.0,
    )  # fmt: skip
    return state, Pools(
        prefill_workers, decode_workers, prefill_gpus, decode_gpus, min(1.0, busy), send_s
    )


def _breakdown(
    engine: Engine, state: SteadyState, context: float, groups: int, checked: float
) -> tuple[StepShare, ...]:
    """Where the time of a decode step goes, longest first; what is no kernel is the scheduler's."""
    if state.decoding <= 0.0:
        return ()
    kernels = rtsim_kernels.compiled()
    _, rows = engine.compiled()
    times = np.zeros_like(engine.scratch)
    each = state.decoding / (groups * engine.system.parallelism.pp)
    batch = kernels.mixed.Batch(each, context, 0.0, 0.0, 0.0, 0.0, checked, 1.0)
    step_s = kernels.mixed.engine_step_s(batch, False, *rows, times)
    table = engine.system.table
    found: dict[str, float] = {}
    for name, one, count in zip(table.names, times[:, 1], table.executions, strict=True):
        found[name] = found.get(name, 0.0) + float(one * count)
    found["scheduler and host"] = step_s - sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return tuple(StepShare(name, s, s / step_s) for name, s in ordered if s > 0.0)
