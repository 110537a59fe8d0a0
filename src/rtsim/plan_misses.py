"""Why candidates of a plan are lost, and which of them misses by the least.

A candidate is lost to the first of `MISSES` that holds. How far it misses is the largest ratio of
what it takes to what is allowed (time to limit, memory to capacity, GPUs, money); the nearest miss
is the candidate with the smallest, of those that fit if any do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.service_level import ServiceLevel

Array = NDArray[Any]

MISSES = (
    "not possible", "does not fit", "misses TTFT and TPOT", "misses TTFT", "misses TPOT",
    "no price known", "no power known", "more than --max-gpus", "over budget",
)  # fmt: skip
NOT_POSSIBLE, _FIT, _BOTH, _TTFT, _TPOT, NO_PRICE, NO_ENERGY, _GPUS, _BUDGET = range(len(MISSES))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate has to keep; `confident`: with the upper ends of the intervals."""

    level: ServiceLevel
    confident: bool
    max_gpus: int | None
    budget_usd_per_hour: float | None

    @property
    def times(self) -> tuple[str, str]:
        """Columns that are held against the level."""
        end = "_high" if self.confident else ""
        return f"ttft_s{end}", f"tpot_s{end}"


def why_lost(
    columns: Mapping[str, Array], limits: Limits, *, needs_price: bool, needs_energy: bool
) -> Array:
    """(candidates,) the index in MISSES of why each is lost, -1 where it is not."""
    ttft_s, tpot_s = (columns[name] for name in limits.times)
    lost = np.full(len(ttft_s), -1)
    late, slow = ttft_s > limits.level.ttft_s, tpot_s > limits.level.tpot_s
    reasons = [
        (_FIT, ~columns["fits"]),
        (_BOTH, late & slow),
        (_TTFT, late),
        (_TPOT, slow),
        (NO_PRICE, np.isnan(columns["usd_per_hour"]) & needs_price),
        (NO_ENERGY, np.isnan(columns["energy_j"]) & needs_energy),
    ]
    if limits.max_gpus is not None:
        reasons.append((_GPUS, columns["num_gpus"] > limits.max_gpus))
    if limits.budget_usd_per_hour is not None:
        over = columns["usd_per_hour"] > limits.budget_usd_per_hour * (1.0 + 1e-12)
        reasons.append((_BUDGET, over))
    for reason, holds in reversed(reasons):
        lost[holds] = reason
    return lost


def nearest_miss(columns: Mapping[str, Array], lost: Array, limits: Limits) -> tuple[int, str, str]:
    """(candidate, by what it misses, what would do) of the candidate that misses by the least."""
    parts = [
        ("memory", columns["memory_bytes"] / columns["capacity_bytes"]),
        ("TTFT", np.nan_to_num(columns[limits.times[0]] / limits.level.ttft_s)),
        ("TPOT", np.nan_to_num(columns[limits.times[1]] / limits.level.tpot_s)),
        ("GPUs", np.nan_to_num(columns["num_gpus"] / (limits.max_gpus or math.inf))),
        ("cost", np.nan_to_num(columns["usd_per_hour"] / (limits.budget_usd_per_hour or math.inf))),
    ]
    ratios = np.stack([ratio for _, ratio in parts])
    over = np.maximum(ratios, 1.0)
    over[:, np.isin(lost, (NOT_POSSIBLE, NO_PRICE, NO_ENERGY))] = np.inf
    order = np.lexsort((np.log(over).sum(axis=0), over.max(axis=0), ratios[0] > 1.0))
    i = int(order[np.isfinite(over[0, order])][0])
    row = {name: float(column[i]) for name, column in columns.items()}
    missed = [name for (name, _), ratio in zip(parts, ratios[:, i], strict=True) if ratio > 1.0]
    told = [_told(name, row, limits) for name in missed]
    fixes = [fix for _, fix in told]
    level = limits.level
    if level.name and {"TTFT", "TPOT"} & set(missed):  # a named level has both limits
        for name, limit in (("TTFT", level.ttft_s), ("TPOT", level.tpot_s)):
            if name not in missed:
                fixes.append(f"--{name.lower()} {_rounded_up_ms(limit)}")
        fixes[-1] += f" in place of --level {level.name}"
    return i, "; ".join(text for text, _ in told), ", ".join(fixes)


def _told(name: str, row: Mapping[str, float], limits: Limits) -> tuple[str, str]:
    end = " at the upper end" if limits.confident else ""
    if name == "memory":
        need, there = row["memory_bytes"], row["capacity_bytes"]
        text = f"needs {units.format_bytes(need)} per GPU of {units.format_bytes(there)}"
        return text, "a larger --tp or --pp, or fewer bits (--quantization) where that is enough,"
    if name in ("TTFT", "TPOT"):
        column = limits.times[name == "TPOT"]
        limit = getattr(limits.level, f"{name.lower()}_s")
        text = f"{name} {units.format_seconds(row[column])}{end} of {units.format_seconds(limit)}"
        return text, f"--{name.lower()} {_rounded_up_ms(row[column])}"
    if name == "GPUs":
        need = int(row["num_gpus"])
        return f"{units.counted(need, 'GPU')} of {limits.max_gpus:,}", f"--max-gpus {need}"
    need = row["usd_per_hour"]
    budget = units.format_usd(limits.budget_usd_per_hour or 0.0)
    return (
        f"{units.format_usd(need)}/h of {budget}/h",
        f"--budget {math.ceil(100 * need) / 100:.2f}",
    )


def _rounded_up_ms(seconds: float) -> str:
    """Milliseconds with three digits, none too few."""
    ms = 1e3 * seconds
    step = 10.0 ** (math.floor(math.log10(ms)) - 2)
    return f"{math.ceil(ms / step) * step:.10g}ms"
