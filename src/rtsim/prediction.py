"""The result of a prediction: numbers in base SI units, and where they come from.

Plain frozen data; `report.py` turns it into text or JSON. Times are idealized: no queueing, no
contention (Narayanan et al., NeurIPS 2023, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["prefill", "decode"]
Bound = Literal["compute", "memory", "latency", "interconnect", "host"]


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """Time and work of one operator in one phase, summed over the whole request.

    `flops` and `bytes` are those of one GPU's share, as `time_s` is the time on one GPU.
    """

    operator: str
    phase: Phase
    count: int  # executions in the whole request
    time_s: float
    bound: Bound  # what limits it for most of its time
    flops: float
    bytes: float  # HBM bytes, or bytes over the link for a collective


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of the fullest GPU, and whether it suffices."""

    weights_bytes: float
    kv_cache_bytes: float  # at the end of the request, when it is largest
    activation_bytes: float
    reserved_bytes: float  # CUDA context, libraries, allocator slack
    capacity_bytes: float
    fits: bool
    smallest_fitting_tp: int | None = None  # None: no tp that this GPU's node allows fits
    min_gpus: int | None = None  # fewest GPUs of a replica that hold it, over tp and pp
    max_batch_size: int = 0  # largest batch that fits at these lengths; 0: none does
    max_context: int = 0  # longest prompt and output together that fit at this batch

    @property
    def used_bytes(self) -> float:
        """Everything that has to be resident, in bytes."""
        return (
            self.weights_bytes + self.kv_cache_bytes + self.activation_bytes + self.reserved_bytes
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Idealized cost: idealized runtime x GPUs x price per GPU hour."""

    usd_per_request: float
    usd_per_million_output_tokens: float
    usd_per_gpu_hour: float
    source: str  # who asked this price, and when


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed range that holds the true value with the probability its name says."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Intervals:
    """Ranges of the three times, in seconds; `tpot_s` is None when one token is generated."""

    ttft_s: Interval
    tpot_s: Interval | None
    e2e_latency_s: Interval


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The model that was timed."""

    name: str
    parameters: int
    active_parameters: int  # of those, the ones one token passes through
    kind: str = "decoder"  # or "encoder", "encoder-decoder"
    keeps: str = "keys and values"  # of a sequence; or "states", both, or "nothing"


@dataclass(frozen=True, slots=True)
class GpuSummary:
    """The GPU that the model was timed on, with the peaks that MFU and MBU are relative to."""

    name: str
    peak_flops_per_s: float  # dense, of the fastest number format that products run in
    hbm_bytes_per_s: float
    memory_bytes: float
    power_w: float | None = None
    peak_dtype: str = ""  # that format


@dataclass(frozen=True, slots=True)
class ParallelismSummary:
    """Degrees of tensor, pipeline, expert and data parallelism."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1
    cp: int = 1
    attention_dp: int = 1
    micro_batches: int = 1


@dataclass(frozen=True, slots=True)
class WorkloadSummary:
    """What was asked of the model. Lengths in tokens per sequence."""

    batch_size: int
    input_len: int
    output_len: int
    dtype: str
    kv_cache_dtype: str
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class OperatorChange:
    """Time and bound of one operator in one phase, before and after a change of the system.

    A bound is None, and its time 0, on the side where the operator does not exist.
    """

    operator: str
    phase: Phase
    before_s: float
    after_s: float
    before_bound: Bound | None
    after_bound: Bound | None


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What was set, as (path, value), and the prediction of the system without that.

    `before` is None where the system without the changes cannot be predicted.
    """

    settings: tuple[tuple[str, str], ...]
    before: Prediction | None


@dataclass(frozen=True)
class Prediction:
    """How long one request (a batch of equal sequences) takes, what it costs, and why.

    `tpot_s` = (e2e_latency_s - ttft_s) / (output_len - 1), None when one token is generated.
    `mfu` and `mbu` are fractions of the peak FLOP rate and HBM bandwidth of all GPUs, averaged
    over the request. FLOPs are those that GPUs do: what tensor-parallel ranks repeat (norms,
    routers, latents, KV heads that they share, padding) counts once for each of them.
    Fields beside the times may be worked out when they are first read.
    """

    model: ModelSummary
    gpu: GpuSummary
    stack: str
    profile: str
    num_gpus: int
    parallelism: ParallelismSummary
    workload: WorkloadSummary
    ttft_s: float
    tpot_s: float | None
    e2e_latency_s: float
    output_throughput: float  # generated tokens per second, of the whole batch
    prefill_flops: float  # of the whole batch, over all GPUs
    decode_flops: float
    mfu: float
    mbu: float
    memory: MemoryUse
    cost: Cost | None  # None: no price is known for this GPU
    energy_j: float | None  # of all GPUs; None: no power is known for this GPU
    interval_90: Intervals
    breakdown: tuple[OperatorTime, ...]
    # Factories rather than values, which would be found before `__getattr__` is asked.
    sources: tuple[str, ...] = field(default_factory=tuple)
    notes: tuple[str, ...] = field(default_factory=tuple)
    # Choices that the user left open, as "name = value (why)".
    assumed: tuple[str, ...] = field(default_factory=tuple)
    what_if: WhatIf | None = field(default_factory=lambda: None)  # of a changed system only

    @classmethod
    def of_times(cls, part: Callable[[str], Any], **times: float | None) -> Prediction:
        """A prediction whose fields beside `times` are `part` of their name, when first read."""
        made = cls.__new__(cls)
        made.__dict__.update(times, _part=part)
        return made

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__ or "_part" not in self.__dict__:
            raise AttributeError(f"a Prediction has no {name}")
        value = self.__dict__[name] = self.__dict__["_part"](name)
        return value

    def __getstate__(self) -> dict[str, Any]:
        """All fields, for copies and pickles."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def operator_changes(
    before: Iterable[OperatorTime], after: Iterable[OperatorTime], least_frac: float = 0.01
) -> list[OperatorChange]:
    """Operators whose time differs by more than `least_frac` of it, largest difference first."""
    old, new = by_operator(before), by_operator(after)
    changes: list[OperatorChange] = []
    for operator, phase in dict.fromkeys([*old, *new]):
        before_s, before_bound = old.get((operator, phase), (0.0, None))
        after_s, after_bound = new.get((operator, phase), (0.0, None))
        if abs(after_s - before_s) > least_frac * max(before_s, after_s):
            changes.append(
                OperatorChange(operator, phase, before_s, after_s, before_bound, after_bound)
            )
    return sorted(changes, key=lambda change: -abs(change.after_s - change.before_s))


def by_operator(
    breakdown: Iterable[OperatorTime],
) -> dict[tuple[str, Phase], tuple[float, Bound | None]]:
    """Time, and the bound of most of it, of each operator; groups of layers share names."""
    found: dict[tuple[str, Phase], tuple[float, Bound | None]] = {}
    largest: dict[tuple[str, Phase], float] = {}
    for row in breakdown:
        key = row.operator, row.phase
        total_s, bound = found.get(key, (0.0, None))
        if bound is None or row.time_s > largest[key]:
            largest[key], bound = row.time_s, row.bound
        found[key] = total_s + row.time_s, bound
    return found
