"""An engine asked about many loads at once: what each row of a table asks of it, as arrays.

A load is numbers of a row (`SIZES`), NaN where the row takes the default of the stack or of
`rtsim.serve`. Loads that are none, and lengths of which the cache holds not one request, are told
apart here; the rest are rows of `rtsim_kernels.load.Load`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import load

from rtsim import units
from rtsim.errors import RtsimError, SpecError, UnknownName
from rtsim.serving.engine import POLICY_CODES, Engine, cache_of
from rtsim.serving.scheduler import MOST_SEQUENCES, MOST_TOKENS, Scheduler
from rtsim.serving.serve import DEFAULT_INPUT, DEFAULT_OUTPUT
from rtsim.serving.steady import FIELDS, MOST_CONCURRENCY, check_load, speculation_of
from rtsim.specs.workload import WorkloadSpec
from rtsim.system_rows import Base

Array = NDArray[Any]
Sizes = Mapping[str, Array]  # of SIZES, (rows,) each

SIZES = (
    "policy", "memory_frac", "token_budget", "max_sequences", "prefix_hit", "speculative_tokens",
    "acceptance", "draft_frac", "concurrency", "input_len", "output_len",
)  # fmt: skip
LOAD = {name: i for i, name in enumerate(load.Load._fields)}  # columns of loads
_MOST_TOKENS = 1e8  # as in WorkloadSpec
_MOST_OF = {"token_budget": float(MOST_TOKENS), "max_sequences": float(MOST_SEQUENCES)}
_WHOLE = ("token_budget", "max_sequences", "speculative_tokens", "input_len", "output_len")


def policy_code(name: str) -> float:
    """The code of a policy in a column of numbers; UnknownName."""
    if name not in POLICY_CODES:
        raise UnknownName("policy", str(name), POLICY_CODES)
    return POLICY_CODES[name]


def _plain(value: float) -> Any:
    return int(value) if math.isfinite(value) and value == int(value) else value


def check_numbers(row: Mapping[str, float]) -> None:
    """SpecError for numbers of SIZES, lengths aside, that are no load; NaN is missing."""
    given = {name: _plain(value) for name, value in row.items() if name != "policy"}
    limits: Any = [
        None if math.isnan(given[name]) else given[name]
        for name in ("token_budget", "max_sequences", "memory_frac")
    ]
    Scheduler().changed(None, *limits)
    drafted: Any = given["speculative_tokens"]
    if drafted != int(drafted):
        raise SpecError("speculative_tokens", drafted, "must be a whole number")
    kept: Any = given["acceptance"]
    speculation_of(drafted, None if math.isnan(kept) else kept, given["draft_frac"])
    check_load(given["concurrency"], given["prefix_hit"])


@dataclass(frozen=True, eq=False)
class Served:
    """The engine of a system, and what its rows need of it beside."""

    base: Base
    engine: Engine

    def filled(self, sizes: Sizes) -> dict[str, Array]:
        """Sizes with the defaults of the stack, and of `rtsim.serve`, in place of NaN."""
        scheduler = self.engine.scheduler
        defaults: dict[str, float] = {
            "policy": self.engine.policy, "memory_frac": scheduler.memory_frac,
            "token_budget": scheduler.token_budget, "max_sequences": scheduler.max_sequences,
            "prefix_hit": 0.0, "speculative_tokens": 0.0, "acceptance": 0.0, "draft_frac": 0.0,
            "input_len": DEFAULT_INPUT, "output_len": DEFAULT_OUTPUT,
        }  # fmt: skip
        filled = {
            name: np.where(np.isnan(size), defaults[name], size) if name in defaults else size
            for name, size in sizes.items()
        }
        missing = np.isnan(sizes["acceptance"]) & (filled["speculative_tokens"] > 0.0)
        filled["acceptance"] = np.where(missing, np.nan, filled["acceptance"])
        return filled

    def wrong(self, sizes: Sizes) -> Array:
        """(rows,) whether a row's numbers are no load."""
        s = sizes
        wrong = ~((s["concurrency"] > 0.0) & (s["concurrency"] <= MOST_CONCURRENCY))
        for name in _WHOLE:
            least = 0.0 if name == "speculative_tokens" else 1.0
            most = _MOST_OF.get(name, _MOST_TOKENS)
            wrong |= ~((s[name] >= least) & (s[name] <= most))
            wrong |= s[name] != np.floor(s[name])
        wrong |= ~((s["prefix_hit"] >= 0.0) & (s["prefix_hit"] < 1.0))
        wrong |= ~((s["acceptance"] >= 0.0) & (s["acceptance"] <= 1.0))
        wrong |= ~((s["memory_frac"] > 0.0) & (s["memory_frac"] <= 1.0))
        wrong |= ~((s["draft_frac"] >= 0.0) & np.isfinite(s["draft_frac"]))
        model = self.engine.system.model
        if model.position == "learned":
            wrong |= s["input_len"] + s["output_len"] - 1.0 > model.max_positions
        return wrong

    def load_errors(self, sizes: Sizes) -> tuple[Array, list[str]]:
        """((rows,) index of each row's error in texts, texts) of numbers that are no load."""
        wrong = np.flatnonzero(self.wrong(sizes))
        codes = np.zeros(len(sizes["concurrency"]), np.int64)
        texts = {"": 0}
        if len(wrong):
            keys = np.stack([sizes[name][wrong] for name in SIZES])
            distinct, of_rows = np.unique(keys, axis=1, return_inverse=True)
            found = [
                self.error_of(dict(zip(SIZES, numbers, strict=True)))
                for numbers in distinct.T.tolist()
            ]
            places = [texts.setdefault(text, len(texts)) for text in found]
            codes[wrong] = np.array(places)[of_rows.reshape(-1)]
        return codes, list(texts)

    def fitted(self, sizes: Sizes) -> tuple[Array, Array, Array, list[str]]:
        """(bytes of the cache, loads, (rows,) index of each row's error in texts, texts)."""
        capacity, codes, texts = self.cache_capacity(sizes)
        loads = self.loads(sizes, capacity)
        small = loads[:, LOAD["most_running"]] < 1.0
        gpu = self.engine.system.gpu.name
        for left in np.unique(capacity[small]).tolist():
            codes[small & (capacity == left)] = len(texts)
            texts.append(
                str(SpecError(
                    "gpu", gpu, "not one request of these lengths fits the "
                    f"{units.format_bytes(left)} that are left for its cache: "
                    "more GPUs, fewer bits or shorter requests",
                ))
            )  # fmt: skip
        return capacity, loads, codes, texts

    def error_of(self, row: Mapping[str, float]) -> str:
        """What `rtsim.serve` says of a row that is no load."""
        try:
            check_numbers(row)
            lengths = {name: _plain(row[name]) for name in ("input_len", "output_len")}
            WorkloadSpec.from_mapping(lengths).check_model(self.engine.system.model)
        except RtsimError as error:
            return str(error)
        return "a number of the load is out of range"

    def sequence_bytes(self, context: Array) -> Array:
        """`Cache.sequence_bytes` at many contexts."""
        total = np.zeros(len(context))
        for cache in self.base.caches:
            kept = np.minimum(context, cache["window"]) + cache["rate"] * context
            total += cache["per_entry"] * kept + cache["fixed"]
        return total

    def cache_capacity(self, sizes: Sizes) -> tuple[Array, Array, list[str]]:
        """(bytes left for the cache, NaN where there are none; index of why in texts; texts)."""
        keys = np.stack([sizes["memory_frac"], sizes["token_budget"]])
        pairs, of_pair = np.unique(keys, axis=1, return_inverse=True)
        found = [_capacity(self, frac, int(budget)) for frac, budget in pairs.T.tolist()]
        texts = list(dict.fromkeys(["", *(text for _, text in found)]))
        which = np.array([texts.index(text) for _, text in found], np.int64)
        of_rows = of_pair.reshape(-1)
        return np.array([one for one, _ in found])[of_rows], which[of_rows], texts

    def loads(self, sizes: Sizes, capacity_bytes: Array) -> Array:
        """`load.Load` rows, (rows, fields); sizes as of `filled`."""
        s, engine = sizes, self.engine
        parallelism = engine.system.parallelism
        context = s["input_len"] + s["output_len"] * (1.0 if engine.scheduler.reserves else 0.5)
        loads = np.empty((len(context), len(LOAD)))
        one = self.sequence_bytes(context)
        with np.errstate(divide="ignore"):
            cached = np.where(one > 0.0, capacity_bytes / one, np.inf)
        columns: dict[str, Any] = {
            "in_flight": s["concurrency"] / parallelism.sequence_groups,
            "most_running": np.minimum(s["max_sequences"], cached),
            "cached_tokens": s["prefix_hit"] * s["input_len"],
            "stages": float(parallelism.pp),
            "speculated": s["speculative_tokens"],
            "groups": float(parallelism.attention_dp),
            "equal": 0.0,
            **{
                name: s[name]
                for name in (
                    "input_len", "output_len", "policy", "token_budget", "acceptance", "draft_frac"
                )
            },
        }  # fmt: skip
        for name, column in columns.items():
            loads[:, LOAD[name]] = column
        return loads

    def steady(self, loads: Array, machine: Any) -> dict[str, Array]:
        """`serving.steady.FIELDS` of loads, (rows,) each. machine: a MACHINE row of the system."""
        kernels = rtsim_kernels.compiled()
        table = self.engine.system.table
        out = np.empty((len(loads), len(FIELDS)))
        kernels.steady.steady_states(
            loads, table.rows, table.segments, machine, self.engine.row[()],
            np.zeros_like(self.engine.scratch), out,
        )  # fmt: skip
        return dict(zip(FIELDS, out.T, strict=True))


@lru_cache(maxsize=1024)
def served(base: Base) -> Served:
    """The engine of a system's rows; SpecError for a model that cannot be served."""
    return Served(base, Engine(base.made))


@lru_cache(maxsize=4096)
def _capacity(of: Served, memory_frac: float, token_budget: int) -> tuple[float, str]:
    """(bytes left for the cache, "" or why there are none)."""
    try:
        made = of.engine.system
        own = of.engine.scheduler
        scheduler = own.changed(None, token_budget, None, memory_frac)
        return cache_of(made, scheduler).capacity_bytes, ""
    except RtsimError as error:
        return math.nan, str(error)
