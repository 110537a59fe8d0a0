"""The cheapest, fastest or least-energy system that serves a model at a service level.

Every candidate of the stated space is predicted (`rtsim.predict_many`): GPU x split x formats x
batch, each at every bucket of the requests' lengths. Nothing is searched by rule of thumb, so the
answer is exact over the space.

A *replica* is one copy of the model on its GPUs (tp x pp x attention_dp); a system is dp replicas
that work apart. A replica at batch b works off batches of b requests of like lengths, one after the
other (static batching), so it carries

    requests/s = b / sum over buckets of share x e2e(b, bucket)

The level is met where the stated share of the requests meets it. Idealized: no queueing (requests
find a batch ready to start), no gain from continuous batching, no loss from restarts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.bulk import predict_many
from rtsim.catalog import load_gpu, load_model
from rtsim.errors import NothingSatisfies, RtsimError, SpecError, UnknownName
from rtsim.grid import make_grid
from rtsim.lengths import Lengths, fixed, read_lengths
from rtsim.plan_misses import (
    MISSES,
    NO_ENERGY,
    NO_PRICE,
    NOT_POSSIBLE,
    Limits,
    nearest_miss,
    why_lost,
)
from rtsim.service_level import SHARE, ServiceLevel, service_level
from rtsim.specs import GpuSpec, ModelSpec, ParallelismSpec
from rtsim.whatif import change

Array = NDArray[Any]

OBJECTIVES = ("cost", "latency", "energy")
BATCHES = "1:512:x2"
MOST_PREDICTIONS = 50_000_000  # about a minute
DEGREES = ("tp", "pp", "ep", "attention_dp", "micro_batches")
FORMATS = ("stack", "dtype", "kv_cache_dtype", "quantization")
_BLOCK_ROWS = 1 << 18
_ROUNDING = 1e-12  # of a share, or of a number of replicas
_MOST_ERRORS = 3
_MOST_LOAD = 1e9  # requests/s, or USD an hour: more is a slip
# (candidates,) columns of the table of candidates.
_COLUMNS = (
    "ttft_s", "ttft_s_high", "tpot_s", "tpot_s_high", "e2e_latency_s", "e2e_latency_s_low",
    "e2e_latency_s_high", "energy_j", "memory_bytes", "capacity_bytes", "replica_gpus",
)  # fmt: skip
# Those that a result has as they are, and those that may be missing in it.
_TIMES = (
    "ttft_s", "ttft_s_high", "e2e_latency_s", "e2e_latency_s_low", "e2e_latency_s_high",
    "requests_per_s", "memory_bytes", "capacity_bytes",
)  # fmt: skip
_OPTIONAL = ("tpot_s", "tpot_s_high", "usd_per_hour", "energy_j_per_request")


@dataclass(frozen=True, slots=True)
class PlannedSystem:
    """One system that meets the level. Times are of a request in a batch of `batch_size`.

    `ttft_s` and `tpot_s`: the longest that the stated share of the requests meets, `_high` the
    upper end of its 90 % interval; `tpot_s` is None where one token is generated. `e2e_latency_s`:
    mean. `batch_size`: of each of `dp` replicas. `requests_per_s`: what all of them carry, of
    which `load_frac` is asked for. `energy_j_per_request`: of GPUs at full load. Margins: share of
    the limit that is left, None without a limit. `within_interval`: the upper ends meet the level,
    too. Money and energy are None where price or power is not known.
    """

    gpu: str
    num_gpus: int
    tp: int
    pp: int
    ep: int
    attention_dp: int
    micro_batches: int
    dp: int
    batch_size: int
    stack: str | None
    dtype: str | None
    kv_cache_dtype: str | None
    quantization: str | None
    ttft_s: float
    ttft_s_high: float
    tpot_s: float | None
    tpot_s_high: float | None
    e2e_latency_s: float
    e2e_latency_s_low: float
    e2e_latency_s_high: float
    requests_per_s: float
    load_frac: float | None
    usd_per_hour: float | None
    usd_per_million_output_tokens: float | None
    energy_j_per_request: float | None
    memory_bytes: float
    capacity_bytes: float
    ttft_margin_frac: float | None
    tpot_margin_frac: float | None
    within_interval: bool


@dataclass(frozen=True)
class Plan:
    """What `plan` found. `runner_ups`: other systems, each at its best batch, best first.

    lost: reason -> candidates that were lost to it, by GPU. errors: the most frequent reasons why
    candidates are not possible, with their counts.
    """

    model: str
    objective: str
    level: ServiceLevel
    share: float
    confident: bool
    rate_per_s: float | None
    budget_usd_per_hour: float | None
    lengths: Lengths
    best: PlannedSystem
    runner_ups: tuple[PlannedSystem, ...]
    n_candidates: int
    n_satisfying: dict[str, int]  # by GPU
    lost: dict[str, dict[str, int]]
    errors: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _System:
    """A replica: its GPU, degrees of DEGREES and formats of FORMATS."""

    gpu: int
    degrees: tuple[int, ...]
    formats: tuple[str | None, ...]


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
    batch_size: Any = BATCHES,
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
    requests = _requests(input_len, output_len, lengths)
    axes = _axes(arch, gpu, batch_size, space)
    model = axes["model"][0]
    spec = model if isinstance(model, ModelSpec) else load_model(model)
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
    systems = [
        _System(i, degrees, formats)
        for i, one in enumerate(gpus)
        for formats in _formats(axes)
        for degrees in _splits(spec, one.one_device(), axes)
    ]
    batches = np.array(axes["batch_size"], float)
    n_rows = len(systems) * len(batches) * (len(requests.share) + 2)
    if n_rows > MOST_PREDICTIONS:
        raise SpecError(
            "batch_size", f"{len(batches)} values",
            f"make {n_rows:,} predictions with all else, at most {MOST_PREDICTIONS:,} are made",
        )  # fmt: skip
    found, errors = _evaluated(model, axes["gpu"], systems, batches, requests, share, threads)
    table = _Table(systems, batches, found)
    prices = np.array(
        [
            np.nan if (price := one.one_device().price) is None else price.usd_per_hour
            for one in gpus
        ]
    )[table.gpu]
    limits = Limits(wanted, confident, max_gpus, budget_usd_per_hour)
    table.add_load(prices, rate_per_s, budget_usd_per_hour, max_gpus)
    lost = why_lost(
        table.columns, limits,
        needs_price=objective == "cost" or budget_usd_per_hour is not None,
        needs_energy=objective == "energy",
    )  # fmt: skip
    lost[errors != ""] = NOT_POSSIBLE
    meets = np.flatnonzero(lost < 0)
    if len(meets) == 0:
        raise _nothing(spec.name, names, table, lost, errors, limits)
    order = meets[table.order(meets, objective, rate_per_s)]
    _, first = np.unique(order // len(batches), return_index=True)
    of_systems = order[np.sort(first)]
    best, *others = (
        _planned(table, i, names, limits, rate_per_s, requests)
        for i in of_systems[: 1 + runner_ups]
    )
    per_gpu = {
        MISSES[reason]: {
            names[g]: n for g, n in sorted(Counter(table.gpu[lost == reason].tolist()).items())
        }
        for reason in sorted({*lost.tolist()} - {-1})
    }
    kept = Counter(table.gpu[meets].tolist())
    return Plan(
        model=spec.name, objective=objective, level=wanted, share=share, confident=confident,
        rate_per_s=rate_per_s, budget_usd_per_hour=budget_usd_per_hour, lengths=requests,
        best=best, runner_ups=tuple(others), n_candidates=len(lost),
        n_satisfying={name: kept[g] for g, name in enumerate(names)},
        lost=per_gpu,
        errors=tuple(Counter(errors[errors != ""].tolist()).most_common(_MOST_ERRORS)),
        notes=(*dict.fromkeys(remarks), *_notes(requests, share, wanted)),
    )  # fmt: skip


# What is asked -----------------------------------------------------------------------------------


def _check_load(
    rate: float | None, budget: float | None, max_gpus: int | None, share: float
) -> None:
    if rate is None and budget is None:
        raise SpecError.of_missing("rate", "give the load (--rate) or a budget (--budget)")
    for field, value in (("rate", rate), ("budget", budget)):
        if value is not None and not 0.0 < value <= _MOST_LOAD:
            allowed = f"must be a number above zero and at most {_MOST_LOAD:,.0f}"
            raise SpecError(field, value, allowed)
    if max_gpus is not None and max_gpus < 1:
        raise SpecError("max_gpus", max_gpus, "must be a whole number above zero")
    if not 0.0 < share <= 1.0:
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


def _axes(arch: Any, gpu: Any, batch_size: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """The axes of the space as lists, checked; those not given are not in it."""
    known = (*DEGREES, *FORMATS)
    for name in space:
        if name not in known:
            raise UnknownName("axis of a plan", name, known)
    given = {name: values for name, values in space.items() if values is not None}
    axes = make_grid({"model": arch, "gpu": gpu, **given, "batch_size": batch_size}).axes
    if len(axes["model"]) > 1:
        raise SpecError("arch", str(arch), "must be one model")
    for name in ("batch_size", *DEGREES):
        values = axes.get(name, ())
        if set(map(type, values)) == {int} and min(values) >= 1:
            continue  # the usual case, quickly: there may be millions
        for value in values:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value != int(value) or value < 1:
                raise SpecError(name, value, "must be a whole number above zero")
    return dict(axes)


def _formats(axes: Mapping[str, Any]) -> list[tuple[str | None, ...]]:
    found: list[tuple[str | None, ...]] = [()]
    for name in FORMATS:
        found = [(*one, value) for one in found for value in axes.get(name, (None,))]
    return found


def _splits(model: ModelSpec, gpu: GpuSpec, axes: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Degrees of DEGREES: those given, and where one is not, all that model and node allow.

    Given ones that allow nothing stay in the space once, so that the plan can say why not.
    """
    joined = gpu.gpus_joined
    found: list[tuple[int, ...]] = []
    for tp in axes.get("tp", range(1, joined + 1)):
        of_tp = [
            (int(tp), int(pp), int(ep), int(attention_dp), int(micro_batches))
            for attention_dp in axes.get("attention_dp", (1,))
            for pp in axes.get("pp", range(1, max(1, joined // (tp * attention_dp)) + 1))
            for ep in axes.get("ep", _divisors(tp * attention_dp) if model.n_experts else (1,))
            for micro_batches in axes.get("micro_batches", (1,))
        ]
        allowed = [split for split in of_tp if _allowed(split, model, gpu)]
        if all(name in axes for name in ("tp", "pp", "ep")):
            allowed = of_tp
        elif "tp" in axes and not allowed:
            allowed = of_tp[:1]
        found += allowed
    if not found:
        given = {name: int(axes[name][0]) for name in DEGREES if name in axes}
        tp = given.get("ep", 1)  # so that ep has its own say
        found = [tuple({**dict.fromkeys(DEGREES, 1), "tp": tp, **given}.values())]
    return found


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, int(number) + 1) if number % n == 0]


def _allowed(split: tuple[int, ...], model: ModelSpec, gpu: GpuSpec) -> bool:
    try:
        ParallelismSpec.from_mapping(dict(zip(DEGREES, split, strict=True))).check(model, gpu)
    except RtsimError:
        return False
    return True


# Candidates --------------------------------------------------------------------------------------


def _evaluated(
    model: Any, gpus: Sequence[Any], systems: Sequence[_System], batches: Array,
    requests: Lengths, share: float, threads: int | None,
) -> tuple[dict[str, Array], Array]:  # fmt: skip
    """(_COLUMNS by name, (candidates,) "" or why there is no prediction), systems slowest."""
    at_share = requests.at_share(share)
    prompts, outputs, weights = requests.input_len, requests.output_len, requests.share
    if at_share is not None:  # two more rows, at the end and without weight
        prompts, outputs = (
            np.append(a, b) for a, b in zip((prompts, outputs), at_share, strict=True)
        )
        weights = np.append(weights, [0.0, 0.0])
    n_batches, n_lengths = len(batches), len(prompts)
    columns = {name: np.full(len(systems) * n_batches, np.nan) for name in _COLUMNS}
    columns["fits"] = np.zeros(len(systems) * n_batches, np.bool_)
    errors = np.full(len(systems) * n_batches, "", object)
    per_block = max(1, _BLOCK_ROWS // (n_batches * n_lengths))
    for first in range(0, len(systems), per_block):
        own = systems[first : first + per_block]
        repeats = n_batches * n_lengths
        table: dict[str, Any] = {
            "model": model,
            "gpu": _objects([gpus[one.gpu] for one in own], repeats),
            "batch_size": np.tile(np.repeat(batches, n_lengths), len(own)),
            "input_len": np.tile(prompts, len(own) * n_batches),
            "output_len": np.tile(outputs, len(own) * n_batches),
        }
        for i, name in enumerate(DEGREES):
            table[name] = np.repeat(np.array([one.degrees[i] for one in own]), repeats)
        for i, name in enumerate(FORMATS):
            table[name] = _objects([one.formats[i] for one in own], repeats)
        predicted = predict_many(table, threads=threads)
        rows = slice(first * n_batches, (first + len(own)) * n_batches)
        by_bucket = {
            name: column.reshape(len(own) * n_batches, n_lengths)
            for name, column in predicted.items()
        }
        _reduce(
            by_bucket,
            {n: c[rows] for n, c in columns.items()},
            weights,
            share if at_share is None else None,
        )
        wrong = by_bucket["error"] != ""
        bad = wrong.any(axis=1)
        errors[rows][bad] = by_bucket["error"][bad, wrong[bad].argmax(axis=1)]
    return columns, errors


def _objects(values: Sequence[Any], repeats: int) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return np.repeat(array, repeats)


def _reduce(
    predicted: Mapping[str, Array],
    columns: Mapping[str, Array],
    weights: Array,
    share: float | None,
) -> None:
    """Columns of predict_many, (candidates, buckets), to those of candidates, written in place.

    share None: the last two rows stand for what the level is held against.
    """
    for name, place in (("ttft_s", -2), ("ttft_s_high", -2), ("tpot_s", -1), ("tpot_s_high", -1)):
        of_buckets = predicted[name]
        columns[name][:] = (
            of_buckets[:, place] if share is None else _met_by(of_buckets, weights, share)
        )
    for name in ("e2e_latency_s", "e2e_latency_s_low", "e2e_latency_s_high", "energy_j"):
        columns[name][:] = predicted[name] @ weights
    for name in ("memory_bytes", "capacity_bytes"):
        columns[name][:] = predicted[name].max(axis=1)
    columns["replica_gpus"][:] = predicted["num_gpus"][:, 0]
    columns["fits"][:] = predicted["fits"].all(axis=1)


def _met_by(values: Array, weights: Array, share: float) -> Array:
    """(rows,) the least value that `share` of the weights meets; NaN is met by everything."""
    there = np.where(np.isnan(values), -np.inf, values)
    order = np.argsort(there, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1) >= share * weights.sum() - _ROUNDING
    reached[:, -1] = True
    at = np.take_along_axis(order, reached.argmax(axis=1)[:, None], axis=1)
    found = np.take_along_axis(there, at, axis=1)[:, 0]
    return np.where(np.isneginf(found), np.nan, found)


class _Table:
    """Candidates as columns, systems slowest and batches fastest."""

    def __init__(
        self, systems: Sequence[_System], batches: Array, columns: dict[str, Array]
    ) -> None:
        self.systems, self.batches, self.columns = systems, batches, columns
        self.gpu = np.repeat(np.array([one.gpu for one in systems], np.int64), len(batches))
        columns["batch_size"] = np.tile(batches, len(systems))

    def add_load(
        self, prices: Array, rate: float | None, budget: float | None, max_gpus: int | None
    ) -> None:
        """Columns dp, num_gpus, requests_per_s, usd_per_hour: the replicas that the load needs.

        Without a rate, as many as the budget and max_gpus allow, at least one.
        """
        c = self.columns
        with np.errstate(invalid="ignore"):
            capacity = c["batch_size"] / c["e2e_latency_s"]
            if rate is not None:
                dp = np.ceil(rate / capacity * (1.0 - _ROUNDING))
            else:
                dp = np.floor(budget / (c["replica_gpus"] * prices) * (1.0 + _ROUNDING))
                if max_gpus is not None:
                    dp = np.minimum(dp, max_gpus // c["replica_gpus"])
        c["dp"] = np.maximum(dp, 1.0)
        c["num_gpus"] = c["dp"] * c["replica_gpus"]
        c["requests_per_s"] = c["dp"] * capacity
        c["usd_per_hour"] = c["num_gpus"] * prices
        c["energy_j_per_request"] = c["energy_j"] / c["batch_size"]

    def order(self, rows: Array, objective: str, rate: float | None) -> Array:
        """An order of these rows, the best first; ties go to cost, latency, GPUs, the list."""
        c = {name: column[rows] for name, column in self.columns.items()}
        if objective == "latency":
            key = c["e2e_latency_s"]
        elif objective == "energy":
            key = c["energy_j_per_request"]
        else:
            key = c["usd_per_hour"] if rate is not None else -c["requests_per_s"]
        return np.lexsort((rows, c["num_gpus"], c["e2e_latency_s"], c["usd_per_hour"], key))


# Results -----------------------------------------------------------------------------------------


def _planned(
    table: _Table, i: int, names: Sequence[str], limits: Limits, rate: float | None,
    requests: Lengths,
) -> PlannedSystem:  # fmt: skip
    row = {name: float(column[i]) for name, column in table.columns.items()}
    system = table.systems[i // len(table.batches)]
    level = limits.level
    asked = row["requests_per_s"] if rate is None else rate
    tokens_per_hour = 3600.0 * asked * requests.mean_output_len
    same: dict[str, Any] = {
        **dict(zip(DEGREES, system.degrees, strict=True)),
        **dict(zip(FORMATS, system.formats, strict=True)),
        **{name: int(row[name]) for name in ("num_gpus", "dp", "batch_size")},
        **{name: row[name] for name in _TIMES},
        **{name: _or_none(row[name]) for name in _OPTIONAL},
    }
    return PlannedSystem(
        gpu=names[system.gpu],
        load_frac=None if rate is None else rate / row["requests_per_s"],
        usd_per_million_output_tokens=_or_none(row["usd_per_hour"] / tokens_per_hour * 1e6),
        ttft_margin_frac=_margin(row["ttft_s"], level.ttft_s),
        tpot_margin_frac=_margin(row["tpot_s"], level.tpot_s),
        within_interval=not (
            row["ttft_s_high"] > level.ttft_s or row["tpot_s_high"] > level.tpot_s
        ),
        **same,
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _margin(value: float, limit: float) -> float | None:
    return None if math.isinf(limit) or math.isnan(value) else 1.0 - value / limit


def _nothing(
    model: str, names: Sequence[str], table: _Table, lost: Array, errors: Array, limits: Limits
) -> NothingSatisfies:
    """Why nothing satisfies: the nearest miss, and what would turn it into a plan."""
    if (lost == NOT_POSSIBLE).all():
        text = Counter(errors.tolist()).most_common(1)[0][0] if len(errors) else "no split"
        return NothingSatisfies(f"nothing in this space is possible for {model}: {text}")
    for reason, what in ((NO_PRICE, "price"), (NO_ENERGY, "power")):
        if (lost == reason).any():  # they meet the level
            return NothingSatisfies(
                f"no {what} is known for {', '.join(names)}: choose another --objective, or give "
                "the GPU as a .toml file that states it"
            )
    i, text, fix = nearest_miss(table.columns, lost, limits)
    system = table.systems[i // len(table.batches)]
    split = ", ".join(
        f"{name} {value}"
        for name, value in zip(DEGREES, system.degrees, strict=True)
        if value > 1 or name == "tp"
    )
    formats = [value for value in system.formats if value]
    batch = int(table.columns["batch_size"][i])
    where = ", ".join([split, *formats, f"batch {batch}"])
    return NothingSatisfies(
        f"none of {len(lost):,} candidates satisfies; nearest is {names[system.gpu]} ({where}): "
        f"{text}. {fix} would do"
    )


def _notes(requests: Lengths, share: float, level: ServiceLevel) -> tuple[str, ...]:
    notes = [
        "idealized: batches of like requests run one after the other (static batching), with no "
        "queueing before them; a load near what the system carries needs head-room for it"
    ]
    if level.source:
        notes.append(f"level {level.name}: {level.source}")
    if len(requests.share) > 1:
        notes.append(f"the level is met by {100 * share:g} % of the requests")
        how = "each pair of lengths" if requests.exact else (
            "buckets of nearly equal numbers of requests at their mean lengths; memory is that of "
            f"the longest request, the level is held against the {100 * share:g}th percentile"
        )  # fmt: skip
        notes.append(f"{requests.n_requests:,} requests as {len(requests.share)} buckets: {how}")
    return tuple(notes)
