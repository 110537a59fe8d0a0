"""What a plan says of its candidates: the best as systems, or the nearest miss; its notes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.errors import NothingSatisfies
from rtsim.lengths import Lengths
from rtsim.plan_candidates import Candidates
from rtsim.plan_misses import NO_ENERGY, NO_PRICE, NOT_POSSIBLE, Limits, nearest_miss
from rtsim.plan_space import DEGREES, FORMATS
from rtsim.planned import PlannedSystem
from rtsim.profile_choice import choose_profile
from rtsim.service_level import ServiceLevel
from rtsim.specs.gpu import GpuSpec

Array = NDArray[Any]

# Those that a result has as they are, and those that may be missing in it.
_TIMES = (
    "ttft_s", "ttft_s_high", "e2e_latency_s", "e2e_latency_s_low", "e2e_latency_s_high",
    "requests_per_s", "memory_bytes", "capacity_bytes",
)  # fmt: skip
_OPTIONAL = ("tpot_s", "tpot_s_high", "usd_per_hour", "energy_j_per_request")


def planned(
    found: Candidates, i: int, names: Sequence[str], gpus: Sequence[GpuSpec], stack: str | None,
    limits: Limits, rate: float | None, requests: Lengths, within: Array | None,
) -> PlannedSystem:  # fmt: skip
    """A candidate as it is shown.

    names: of the GPUs; stack: where the candidate names none; within: (candidates,) requests/s that
    its replica carries at most within the limits, where it serves.
    """
    row = {name: float(column[i]) for name, column in found.columns.items()}
    if within is not None and rate is not None:
        row["requests_per_s"] = row["dp"] * float(within[i])
    system = found.replica(i)
    level = limits.level
    asked = row["requests_per_s"] if rate is None else rate
    tokens_per_hour = 3600.0 * asked * requests.mean_output_len
    formats = dict(zip(FORMATS, system.formats, strict=True))
    profile, _ = choose_profile(gpus[system.gpu].one_device(), formats["stack"] or stack)
    same: dict[str, Any] = {
        **dict(zip(DEGREES, system.degrees, strict=True)),
        **{**formats, "stack": profile.stack},
        **{name: int(row[name]) for name in ("num_gpus", "dp", "batch_size")},
        **{name: row[name] for name in _TIMES},
        **{name: _or_none(row[name]) for name in _OPTIONAL},
    }
    if "saturation_requests_per_s" in row:
        most = row["saturation_requests_per_s"]
        same |= {name: row[name] for name in ("ttft_alone_s", "prompt_frac")}
        same |= {
            "largest_in_flight": int(row["largest_in_flight"]), "saturation_requests_per_s": most,
            "utilisation_frac": asked / most, "saturation_margin_frac": 1.0 - asked / most,
        }  # fmt: skip
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


def nothing(
    model: str, names: Sequence[str], found: Candidates, lost: Array, limits: Limits
) -> NothingSatisfies:
    """Why nothing satisfies: the nearest miss, and what would turn it into a plan."""
    errors = found.errors
    if (lost == NOT_POSSIBLE).all():
        text = Counter(errors.tolist()).most_common(1)[0][0] if len(errors) else "no split"
        return NothingSatisfies(f"nothing in this space is possible for {model}: {text}")
    for reason, what in ((NO_PRICE, "price"), (NO_ENERGY, "power")):
        if (lost == reason).any():  # they meet the level
            return NothingSatisfies(
                f"no {what} is known for {', '.join(names)}: choose another --objective, or give "
                "the GPU as a .toml file that states it"
            )
    i, text, fix = nearest_miss(found.columns, lost, limits)
    system = found.replica(i)
    split = ", ".join(
        f"{name} {value}"
        for name, value in zip(DEGREES, system.degrees, strict=True)
        if value > 1 or name == "tp"
    )
    formats = [value for value in system.formats if value]
    batch = found.columns["batch_size"][i]
    if not np.isnan(batch):
        serving = "largest_in_flight" in found.columns
        formats.append(f"{batch:,.0f} in flight" if serving else f"batch {batch:,.0f}")
    where = ", ".join([split, *formats])
    return NothingSatisfies(
        f"none of {units.counted(len(lost), 'candidate')} satisfies; nearest is "
        f"{names[system.gpu]} ({where}): {text}. {fix[0].upper()}{fix[1:]} would do"
    )


def notes_on(requests: Lengths, share: float, level: ServiceLevel, static: bool) -> tuple[str, ...]:
    """What is assumed, and where the level is from."""
    notes = [
        "idealized: batches of like requests run one after the other (static batching), with no "
        "queueing before them; a load near what the system carries needs head-room for it"
        if static else
        "serving in its steady state (continuous batching): mean times at the load, waiting "
        "included; bursts of arrivals need head-room. --static plans for batches"
    ]  # fmt: skip
    if level.source:
        notes.append(f"level {level.name}: {level.source}")
    if len(requests.share) > 1:
        notes.append(f"the level is met by {100 * share:g}% of the requests")
        if not static:
            notes.append(
                f"{requests.n_requests:,} requests are served together at their mean lengths; "
                f"TTFT is that of the {100 * share:g}th percentile of the prompts, memory has "
                "room for the longest request"
            )
            return tuple(notes)
        how = "each pair of lengths" if requests.exact else (
            "buckets of nearly equal numbers of requests at their mean lengths; memory is that of "
            f"the longest request, the level is held against the {100 * share:g}th percentile"
        )  # fmt: skip
        notes.append(
            f"{units.counted(requests.n_requests, 'request')} as "
            f"{units.counted(len(requests.share), 'bucket')}: {how}"
        )
    return tuple(notes)
