"""What a time depends on: elasticities to hardware and workload, and where bounds flip.

An elasticity is d ln(metric) / d ln(resource), the per cent that a metric moves by per per cent of
a resource: -1, the resource is all that counts; 0, it does not matter. Central differences at +-5 %
(sizes: at least one whole step), with all else as it is. The elasticities to independent resources
of the hardware add up to about -1, less what no resource scales: fixed latencies of kernels and
links.

A bound flips where an operator, or most of a phase's time, is limited by something else than now:
each resource is scanned from 1/8 to 8 times what it is, and the factor found to a few per cent.

Resources are changed as with `--set` (`rtsim.whatif`): peak rates stay when the clock changes. SMs
are changed with the peak rates that they give, so they overlap with those and are not in the sum;
kernels split their work for the SMs that there are, so a few more of them may cost a little. The
profile stays that of the system.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsim.bound_flips import Flip, flips_of
from rtsim.errors import RtsimError, SpecError
from rtsim.named_system import system
from rtsim.predict import predict
from rtsim.prediction import Prediction
from rtsim.specs import GpuSpec, ModelSpec
from rtsim.specs.workload import WorkloadSpec
from rtsim.system import Times
from rtsim.varied_system import SM_COUNT, VariedSystem, name_of

STEP = 0.05
METRICS = ("ttft_s", "tpot_s", "e2e_latency_s", "usd_per_million_output_tokens")
SIZES = ("batch_size", "input_len", "output_len")
_LEAST = 5e-4  # elasticities below are nothing that a user could see


@dataclass(frozen=True, slots=True)
class Elasticity:
    """d ln(metric) / d ln(resource) of METRICS; None where the metric is not there.

    kind: "hardware" or "workload"; `in_sum`: independent of the other hardware resources.
    """

    resource: str  # a path of --set, "host", or a size
    name: str
    kind: str
    ttft_s: float
    tpot_s: float | None
    e2e_latency_s: float
    usd_per_million_output_tokens: float | None
    in_sum: bool = False


@dataclass(frozen=True)
class Explanation:
    """Elasticities and flips of one prediction; elasticities of hardware by size, longest first."""

    prediction: Prediction
    elasticities: tuple[Elasticity, ...]
    flips: tuple[Flip, ...]
    notes: tuple[str, ...]

    def hardware_sum(self, metric: str) -> float | None:
        """Sum of the elasticities of a metric to independent hardware resources."""
        values = [getattr(e, metric) for e in self.elasticities if e.in_sum]
        return None if None in values else math.fsum(values)


def explain(arch: str | Path | ModelSpec, gpu: str | Path | GpuSpec, **request: Any) -> Explanation:
    """Elasticities and flips of a prediction; arguments and errors as of `rtsim.predict`.

    >>> found = explain("llama-2-7b", "a100", batch_size=1, input_len=2048, output_len=1)
    >>> top = next(one for one in found.elasticities if one.in_sum)
    >>> top.resource, -1.0 < top.ttft_s < -0.5
    ('gpu.peak_fp16_flops_per_s', True)
    """
    base = predict(arch, gpu, **{**request, "compiled": True})
    asked = {name: v for name, v in request.items() if name not in (*SIZES, "compiled")}
    varied = VariedSystem(
        system(arch, gpu, **asked), request.get("dtype"), request.get("quantization")
    )
    sizes = base.workload.batch_size, base.workload.input_len, base.workload.output_len
    hardware = [
        found
        for path in varied.resources()
        if (found := _of_hardware(varied, path, sizes, priced=base.cost is not None)) is not None
    ]
    hardware.sort(key=lambda e: e.e2e_latency_s)
    workload = [e for i in range(len(SIZES)) if (e := _of_size(varied, i, sizes, base)) is not None]
    flips = [flip for e in hardware for flip in flips_of(varied, e.resource, sizes, base)]
    flips.sort(key=lambda f: (not f.what.startswith("all of"), abs(math.log(f.factor))))
    return Explanation(base, (*hardware, *workload), tuple(flips), _notes(hardware))


# Elasticities ------------------------------------------------------------------------------------


def _of_hardware(
    varied: VariedSystem, path: str, sizes: tuple[int, int, int], *, priced: bool
) -> Elasticity | None:
    """None where the resource does not matter, or cannot be changed."""
    try:
        (low, less), (high, more) = (varied.at(path, 1.0 + sign * STEP) for sign in (-1.0, 1.0))
    except SpecError:
        return None
    if more == less:
        return None
    width = math.log(more / less)
    slopes = [
        _slope(a, b, width) for a, b in zip(low.times(*sizes), high.times(*sizes), strict=True)
    ]
    if max(abs(s) for s in slopes if not math.isnan(s)) < _LEAST:
        return None
    ttft, tpot, e2e = slopes
    return Elasticity(
        path, name_of(path), "hardware", ttft, None if math.isnan(tpot) else tpot, e2e,
        e2e if priced else None, in_sum=path != SM_COUNT,
    )  # fmt: skip


def _slope(before: float, after: float, width: float) -> float:
    return math.log(after / before) / width


def _of_size(
    varied: VariedSystem, which: int, sizes: tuple[int, int, int], base: Prediction
) -> Elasticity | None:
    """Elasticities to a size of the workload, from one whole step at least; None without one."""
    here = sizes[which]
    step = _whole_step(here)
    ends = [
        size for size in (here - step, here, here + step) if _allowed(varied, which, sizes, size)
    ]
    if len(ends) < 2:
        return None

    def at(size: int) -> tuple[Times, float]:
        changed = [*sizes[:which], size, *sizes[which + 1 :]]
        times = varied.made.times(*changed)
        return times, times.e2e_latency_s / (changed[0] * changed[2])

    (low, low_usd), (high, high_usd) = at(ends[0]), at(ends[-1])
    width = math.log(ends[-1] / ends[0])
    ttft, tpot, e2e = (_slope(a, b, width) for a, b in zip(low, high, strict=True))
    usd = None if base.cost is None else _slope(low_usd, high_usd, width)
    name = SIZES[which]
    return Elasticity(
        name, name_of(name), "workload", ttft, None if math.isnan(tpot) else tpot, e2e, usd
    )


def _whole_step(here: int) -> int:
    """About STEP of a size, in multiples of a power of two that divides it.

    Matrix products are slower at sizes that no such power divides, which is no matter of length.

    >>> _whole_step(512), _whole_step(1000), _whole_step(1)
    (32, 48, 1)
    """
    wanted = max(1.0, STEP * here)
    power = 1
    while here % (2 * power) == 0 and 2 * power <= wanted:
        power *= 2
    return max(1, round(wanted / power)) * power


def _allowed(varied: VariedSystem, which: int, sizes: tuple[int, int, int], size: int) -> bool:
    changed = {**dict(zip(SIZES, sizes, strict=True)), SIZES[which]: size}
    try:
        WorkloadSpec.from_mapping(changed).check_model(varied.made.model)
    except RtsimError:
        return False
    return True


def _notes(hardware: list[Elasticity]) -> tuple[str, ...]:
    notes = [
        "central differences at 5% with all else as it is, on the coefficients of the profile; "
        "what the sum lacks of -1 is time that no resource scales, such as fixed latencies"
    ]
    if any(e.resource == SM_COUNT for e in hardware):
        notes.append(
            "peak rates stay when the clock alone changes; SMs come with the peak rates that they "
            "give, and are not in the sum"
        )
    return tuple(notes)
