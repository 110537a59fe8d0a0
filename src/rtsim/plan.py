"""The cheapest, fastest or least-energy system that serves a model at a service level.

Every candidate of the stated space is predicted: GPU x split x formats. Nothing is searched by rule
of thumb, so the answer is exact over the space.

A *replica* is one copy of the model on its GPUs (tp x pp x attention_dp); a system is dp replicas
that work apart. Replicas serve by continuous batching, each at its share of the load
(`rtsim.plan_serving`), or work off static batches (`rtsim.plan_static`). The level is met where the
stated share of the requests meets it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.catalog import load_gpu, load_model
from rtsim.errors import SpecError, UnknownName
from rtsim.lengths import Lengths, fixed, read_lengths
from rtsim.plan_candidates import Demand
from rtsim.plan_findings import notes_on, nothing, planned
from rtsim.plan_misses import MISSES, NOT_POSSIBLE, Limits, why_lost
from rtsim.plan_serving import OPTIONS, checked_options, serving_candidates
from rtsim.plan_space import Replica, axes_of, formats_of, splits_of
from rtsim.plan_static import static_candidates
from rtsim.planned import Plan, PlannedSystem
from rtsim.profile_choice import SERVING_STACKS, STACK_ALIASES, mixed_stacks
from rtsim.service_level import SHARE, service_level
from rtsim.specs import GpuSpec, ModelSpec
from rtsim.whatif import change

__all__ = ["BATCHES", "OBJECTIVES", "Plan", "PlannedSystem", "plan"]

Array = NDArray[Any]

OBJECTIVES = ("cost", "latency", "energy")
BATCHES = "1:512:x2"
_MOST_ERRORS = 3
_MOST_LOAD = 1e9  # requests/s, or USD an hour: more is a slip


def plan(
    arch: str | Path | ModelSpec,
    gpu: str | Sequence[str | GpuSpec] | GpuSpec,
    *,
    rate_per_s: float | None = None,
    budget_usd_per_hour: float | None = None,
    level: str | None = None,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    share: float = SHARE,
    input_len: int | None = None,
    output_len: int | None = None,
    lengths: str | Path | Lengths | None = None,
    objective: str = "cost",
    confident: bool = False,
    max_gpus: int | None = None,
    static: bool | None = None,
    batch_size: Any = None,
    concurrency: Any = None,
    runner_ups: int = 5,
    threads: int | None = None,
    set: Mapping[str, object] | None = None,  # noqa: A002 (the option's name)
    **space: Any,
) -> Plan:
    """The best system of a space; every candidate is predicted.

    gpu: names or .toml files, "A,B" or a list. `rate_per_s` requests have to be carried;
    `budget_usd_per_hour` alone buys as many replicas as it can, with a rate it is a limit. The
    level is `level` by name or the limits `ttft_s`, `tpot_s`, met by `share` of the requests, with
    `confident` by the upper ends of the 90 % intervals. Requests are `input_len` and `output_len`
    long, or as in `lengths` (a file, or `rtsim.lengths.Lengths`). objective: "cost" is the least
    USD an hour (with a budget alone, the most requests/s), "latency" the least mean latency,
    "energy" the least energy of a request.

    Replicas serve by continuous batching, in their steady state at the load that each has of it:
    the requests in flight follow from the load, and waiting is in the time to first token.
    concurrency: numbers of requests in flight of a replica to look at (a list, by default
    `plan_serving.COUNTS`). Options of the engines, the same for all, are `policy`, `token_budget`,
    `max_sequences`, `memory_frac`, `prefix_hit`, `speculative_tokens`, `acceptance` and
    `draft_frac`, as of `rtsim.serve`. static: replicas work off batches of `batch_size` (a list,
    BATCHES without it) one after the other. None: where batch_size or micro_batches is given, a
    named stack does not serve, or the model is no decoder.

    space: lists of `tp`, `pp`, `ep`, `attention_dp`, `micro_batches`, `stack`, `dtype`,
    `kv_cache_dtype` and `quantization`, also as texts ("1,2,4"). `set` changes figures of the model
    and of every GPU, such as {"gpu.hbm_bytes_per_s": "2x"} (`rtsim.whatif`). Without them: every
    tp, pp and ep that the model and a node allow; the others as in `rtsim.predict`. Raises
    NothingSatisfies, which names the nearest miss; other RtsimErrors for bad input.

    >>> found = plan("gpt-j-6b", "a100", rate_per_s=1.0, level="chat", input_len=512,
    ...              output_len=64, tp=1, pp=1)
    >>> found.best.num_gpus, found.best.tp
    (1, 1)
    """
    if objective not in OBJECTIVES:
        raise UnknownName("objective", str(objective), OBJECTIVES)
    _check_load(rate_per_s, budget_usd_per_hour, max_gpus, share)
    wanted = service_level(level, ttft_s, tpot_s)
    options = {name: space.pop(name) for name in OPTIONS if name in space}
    axes = axes_of(arch, gpu, BATCHES if batch_size is None else batch_size, concurrency, space)
    model = axes["model"][0]
    spec = model if isinstance(model, ModelSpec) else load_model(model)
    if spec.kind == "encoder" and output_len is None and lengths is None:
        output_len = 1  # it generates nothing
    requests = _requests(input_len, output_len, lengths)
    gpus = [g if isinstance(g, GpuSpec) else load_gpu(g) for g in axes["gpu"]]
    names = [g.name if isinstance(g, GpuSpec) else str(g) for g in axes["gpu"]]
    remarks: list[str] = []
    if set:
        changed = [change(set, spec, one) for one in gpus]
        axes["gpu"] = gpus = [one.gpu or gpu for one, gpu in zip(changed, gpus, strict=True)]
        model = spec = changed[0].model or spec
        texts = ", ".join(f"{path} = {value}" for path, value in set.items())
        remarks = [f"what if: every GPU and the model with {texts}"]
        remarks += [note for one in changed for note in one.notes]
    as_batches = _is_static(static, batch_size, concurrency, axes, spec, options)
    replicas = [
        Replica(i, degrees, formats)
        for i, one in enumerate(gpus)
        for formats in formats_of(axes)
        for degrees in splits_of(spec, one.one_device(), axes)
    ]
    prices = np.array([_price(one) for one in gpus])
    demand = Demand(rate_per_s, budget_usd_per_hour, max_gpus)
    limits = Limits(wanted, confident, max_gpus, budget_usd_per_hour)

    if as_batches:
        batches = np.array(axes["batch_size"], float)
        found = static_candidates(
            model, axes["gpu"], prices, replicas, batches, requests, share, demand, threads
        )
    else:
        numbers = checked_options(options)
        counts = axes.get("concurrency")
        found = serving_candidates(
            model, spec, axes["gpu"], prices, replicas, requests, share, numbers, counts, demand,
            threads,
        )  # fmt: skip
    lost = why_lost(
        found.columns, limits,
        needs_price=objective == "cost" or budget_usd_per_hour is not None,
        needs_energy=objective == "energy",
    )  # fmt: skip
    lost[found.errors != ""] = NOT_POSSIBLE
    meets = np.flatnonzero(lost < 0)
    if len(meets) == 0:
        raise nothing(spec.name, names, found, lost, limits)
    order = found.order(meets, objective, demand)
    within = found.most_of_each(found.columns["capacity_per_s"], meets) if not as_batches else None
    default = None if as_batches else SERVING_STACKS[0]
    best, *others = (
        planned(found, i, names, gpus, default, limits, rate_per_s, requests, within)
        for i in found.best_of_each(order)[: 1 + runner_ups]
    )
    stacks = mixed_stacks(gpus) if as_batches and "stack" not in axes else []
    per_gpu = {
        MISSES[reason]: {
            names[g]: n for g, n in sorted(Counter(found.gpu[lost == reason].tolist()).items())
        }
        for reason in sorted({*lost.tolist()} - {-1})
    }
    kept = Counter(found.gpu[meets].tolist())
    return Plan(
        model=spec.name, objective=objective, level=wanted, share=share, confident=confident,
        rate_per_s=rate_per_s, budget_usd_per_hour=budget_usd_per_hour, lengths=requests,
        best=best, runner_ups=tuple(others), n_candidates=len(lost),
        n_satisfying={name: kept[g] for g, name in enumerate(names)},
        lost=per_gpu,
        errors=tuple(Counter(found.errors[found.errors != ""].tolist()).most_common(_MOST_ERRORS)),
        notes=(*dict.fromkeys(remarks), *stacks, *notes_on(requests, share, wanted, as_batches)),
        static=as_batches,
    )  # fmt: skip


# What is asked -----------------------------------------------------------------------------------


def _is_static(
    static: bool | None, batch_size: Any, concurrency: Any, axes: Mapping[str, Any],
    model: ModelSpec, options: Mapping[str, Any],
) -> bool:  # fmt: skip
    """Whether replicas work off static batches; SpecError for options of the other kind."""
    stacks = [STACK_ALIASES.get(name, name) for name in axes.get("stack", ())]
    batched = batch_size is not None or "micro_batches" in axes
    if static is None:
        unserved = any(name not in (None, *SERVING_STACKS) for name in stacks)
        static = batched or unserved or model.kind != "decoder"
    if static:
        for name, value in {"concurrency": concurrency, **options}.items():
            if value is not None:
                raise SpecError(name, value, "is of replicas that serve, not of static batches")
    elif batched:
        name = "micro_batches" if batch_size is None else "batch_size"
        raise SpecError.of_missing(name, "is of static batches: leave it out, or say static")
    return static


def _price(gpu: GpuSpec) -> float:
    price = gpu.one_device().price
    return np.nan if price is None else price.usd_per_hour


def _check_load(
    rate: float | None, budget: float | None, max_gpus: int | None, share: float
) -> None:
    if rate is None and budget is None:
        raise SpecError.of_missing("rate", "give the load (--rate) or a budget (--budget)")
    for field, value in (("rate", rate), ("budget", budget)):
        if value is not None and not (units.is_number(value) and 0.0 < value <= _MOST_LOAD):
            allowed = f"must be a number above zero and at most {_MOST_LOAD:,.0f}"
            raise SpecError(field, value, allowed)
    if max_gpus is not None and not (
        units.is_number(max_gpus) and max_gpus >= 1 and float(max_gpus).is_integer()
    ):
        raise SpecError("max_gpus", max_gpus, "must be a whole number above zero")
    if not (units.is_number(share) and 0.0 < share <= 1.0):
        raise SpecError("share", share, "must be above 0 and at most 1")


def _requests(
    input_len: int | None, output_len: int | None, lengths: str | Path | Lengths | None
) -> Lengths:
    given = {"input_len": input_len, "output_len": output_len}
    if lengths is None:
        for name, value in given.items():
            if value is None:
                option = f"--{name.replace('_', '-')}"
                raise SpecError.of_missing(name, f"give {option}, or --lengths FILE")
        return fixed(input_len, output_len)  # type: ignore[arg-type]
    for name, value in given.items():
        if value is not None:
            raise SpecError(name, value, "comes from the file of lengths: give one of them")
    return lengths if isinstance(lengths, Lengths) else read_lengths(lengths)
