"""What a plan finds: the systems that serve a load at a level, and why others do not."""

from __future__ import annotations

from dataclasses import dataclass

from rtsim.lengths import Lengths
from rtsim.service_level import ServiceLevel


@dataclass(frozen=True, slots=True)
class PlannedSystem:
    """One system that meets the level, at its load.

    `batch_size`: of each of `dp` replicas: requests in flight where they serve, a static batch
    where they do not.

    `ttft_s` and `tpot_s`: the longest that the stated share of the requests meets, `_high` the
    upper end of its 90 % interval; `tpot_s` is None where one token is generated. `e2e_latency_s`:
    mean. `requests_per_s`: what all of them carry within the level, of
    which `load_frac` is asked for. `energy_j_per_request`: of GPUs at full power. Margins: share of
    the limit that is left, None without a limit. `within_interval`: the upper ends meet the level,
    too. Money and energy are None where price or power is not known.

    Of replicas that serve, else None: `ttft_alone_s` without waiting for others,
    `largest_in_flight` requests that each can run at once, `saturation_requests_per_s` that all
    carry then, whatever the level; `utilisation_frac` of it is the load, `saturation_margin_frac`
    is left; `prompt_frac`: share of the time that prompts take.
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
    ttft_alone_s: float | None = None
    largest_in_flight: int | None = None
    saturation_requests_per_s: float | None = None
    utilisation_frac: float | None = None
    saturation_margin_frac: float | None = None
    prompt_frac: float | None = None


@dataclass(frozen=True)
class Plan:
    """What `plan` found. `runner_ups`: other systems, each at its best batch, best first. static:
    they work off batches, else they serve in their steady state.

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
    static: bool = True
