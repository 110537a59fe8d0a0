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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rtsim.errors import RtsimError, SpecError
from rtsim.predict import System, Times, predict, system
from rtsim.prediction import OperatorTime, Prediction, by_operator
from rtsim.profile import Profile
from rtsim.specs import GpuSpec, ModelSpec
from rtsim.specs.workload import WorkloadSpec
from rtsim.whatif import change

STEP = 0.05
METRICS = ("ttft_s", "tpot_s", "e2e_latency_s", "usd_per_million_output_tokens")
SIZES = ("batch_size", "input_len", "output_len")
SM_COUNT, HOST = "gpu.sm_count", "host"
# Path of a resource -> its name; peak rates come as they are stated.
_NAMES = {
    "gpu.hbm_bytes_per_s": "memory bandwidth",
    "gpu.l2_bytes": "L2 size",
    "gpu.last_level_cache_bytes": "last-level cache size",
    "gpu.clock_hz": "clock alone",
    "link.bytes_per_s": "link bandwidth",
    "network.bytes_per_s": "network bandwidth",
    "gpu.pcie_bytes_per_s": "PCIe bandwidth",
    HOST: "host speed",
    SM_COUNT: "SMs and peak rates",
    "batch_size": "batch",
    "input_len": "prompt length",
    "output_len": "output length",
}
_FACTORS = tuple(2.0 ** (k / 2) for k in range(-6, 7) if k)  # scanned, 1/8 to 8
_BISECTIONS = 4  # of a step of sqrt(2): to 2 %
_OPERATORS = 8  # the longest, whose bounds are watched
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


@dataclass(frozen=True, slots=True)
class Flip:
    """At `factor` times the resource, what bounds `what` in a phase changes.

    `what`: an operator, or "all of" phase, which has the bound of most of its time. The factor
    is the nearest to 1 on its side. `share_frac`: of all the time, without the change.
    """

    resource: str
    name: str
    factor: float
    what: str
    phase: str
    before: str
    after: str
    share_frac: float


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
    varied = _Varied(system(arch, gpu, **asked), request.get("dtype"), request.get("quantization"))
    sizes = base.workload.batch_size, base.workload.input_len, base.workload.output_len
    hardware = [
        found
        for path in varied.resources()
        if (found := _of_hardware(varied, path, sizes, priced=base.cost is not None)) is not None
    ]
    hardware.sort(key=lambda e: e.e2e_latency_s)
    workload = [e for i in range(len(SIZES)) if (e := _of_size(varied, i, sizes, base)) is not None]
    flips = [flip for e in hardware for flip in _flips(varied, e, sizes, base)]
    flips.sort(key=lambda f: (not f.what.startswith("all of"), abs(math.log(f.factor))))
    return Explanation(base, (*hardware, *workload), tuple(flips), _notes(hardware))


class _Varied:
    """A system with a resource at a factor of what it is."""

    def __init__(self, made: System, dtype: str | None, quantization: str | None) -> None:
        self.made = made
        self._formats: dict[str, Any] = {"dtype": dtype, "kv_cache_dtype": made.kv_dtype}
        if quantization is not None:
            known = WorkloadSpec.from_mapping({"quantization": quantization})
            self._formats["quantization"] = known.quantization
        self._at = cache(self._make)

    def resources(self) -> Iterator[str]:
        """Paths of what this system has."""
        gpu = self.made.gpu
        yield "gpu.hbm_bytes_per_s"
        for field in GpuSpec.model_fields:
            if field.startswith("peak_") and getattr(gpu, field) is not None:
                yield f"gpu.{field}"
        yield from ("gpu.l2_bytes", "gpu.clock_hz", "gpu.pcie_bytes_per_s", HOST, SM_COUNT)
        if gpu.last_level_cache_bytes is not None:
            yield "gpu.last_level_cache_bytes"
        if gpu.link is not None:
            yield "link.bytes_per_s"
        if gpu.network is not None:
            yield "network.bytes_per_s"

    def at(self, path: str, factor: float) -> tuple[System, float]:
        """(system, factor that it really has); SpecError where there can be none."""
        found: tuple[System, float] = self._at(path, factor)
        return found

    def _make(self, path: str, factor: float) -> tuple[System, float]:
        made, gpu = self.made, self.made.gpu
        if path == HOST:
            return self._with(gpu, _with_host(made.profile, factor)), factor
        before = _value(gpu, path)
        value: float = before * factor
        if isinstance(before, int):
            value = max(1, round(value))
        real = value / before
        changes: dict[str, object] = {path: value}
        if path == SM_COUNT:
            for field in GpuSpec.model_fields:
                if field.startswith("peak_") and getattr(gpu, field) is not None:
                    changes[f"gpu.{field}"] = getattr(gpu, field) * real
        changed = change(changes, gpu=gpu).gpu
        return self._with(changed or gpu, made.profile), real

    def _with(self, gpu: GpuSpec, profile: Profile) -> System:
        return System(self.made.model, gpu, self.made.parallelism, profile=profile, **self._formats)


def _value(gpu: GpuSpec, path: str) -> Any:
    root, _, field = path.partition(".")
    return getattr(gpu if root == "gpu" else getattr(gpu, root), field)


def _with_host(profile: Profile, factor: float) -> Profile:
    host = profile.section("host")
    slower = {**host, "slowness": host["slowness"] / factor}
    return replace(profile, coefficients={**profile.coefficients, "host": slower})


def name_of(path: str) -> str:
    """A resource in words.

    >>> name_of("gpu.peak_bf16_flops_per_s"), name_of("link.bytes_per_s")
    ('bf16 peak rate', 'link bandwidth')
    """
    if path.startswith("gpu.peak_"):
        return f"{path.split('_')[1]} peak rate"
    return _NAMES[path]


# Elasticities ------------------------------------------------------------------------------------


def _of_hardware(
    varied: _Varied, path: str, sizes: tuple[int, int, int], *, priced: bool
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
    varied: _Varied, which: int, sizes: tuple[int, int, int], base: Prediction
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


def _allowed(varied: _Varied, which: int, sizes: tuple[int, int, int], size: int) -> bool:
    changed = {**dict(zip(SIZES, sizes, strict=True)), SIZES[which]: size}
    try:
        WorkloadSpec.from_mapping(changed).check_model(varied.made.model)
    except RtsimError:
        return False
    return True


# Flips -------------------------------------------------------------------------------------------

# (what, phase) -> its bound
_Bounds = dict[tuple[str, str], str]


def _bounds(breakdown: tuple[OperatorTime, ...], corner: float) -> _Bounds:
    """Bounds of operators, and of the whole of each phase: that of most of its time.

    The host bounds a phase as soon as its track is the longer one, since the GPU's work lies within
    it: where the GPU waits for more than the soft corner of two equal tracks adds.
    """
    found: _Bounds = {}
    by_phase: dict[str, dict[str, float]] = {}
    for row in breakdown:
        of_phase = by_phase.setdefault(row.phase, {})
        of_phase[row.bound] = of_phase.get(row.bound, 0.0) + row.time_s
    for phase, times in by_phase.items():
        busy_s = sum(times.values()) - times.get("host", 0.0)
        if times.get("host", 0.0) > (2.0 ** (1.0 / corner) - 1.0) * busy_s:
            found[f"all of {phase}", phase] = "host"
            continue
        found[f"all of {phase}", phase] = max(times, key=lambda bound: times[bound])
    for (operator, phase), (_, bound) in by_operator(breakdown).items():
        if bound is not None and bound != "host":
            found[operator, phase] = bound
    return found


def _flips(
    varied: _Varied, resource: Elasticity, sizes: tuple[int, int, int], base: Prediction
) -> Iterator[Flip]:
    """The nearest flips on each side of what the resource is now, of the longest operators."""
    total_s = base.e2e_latency_s
    times: dict[tuple[str, str], float] = {
        key: time_s for key, (time_s, _) in by_operator(base.breakdown).items()
    }
    corner = varied.made.profile.section("host")["corner"]
    now = _bounds(base.breakdown, corner)
    longest = sorted((key for key in now if key in times), key=lambda key: -times[key])
    watched = [key for key in now if key not in times] + longest[:_OPERATORS]
    phase_s = {"prefill": base.ttft_s, "decode": total_s - base.ttft_s}

    @cache
    def bounds(factor: float) -> _Bounds:
        try:
            changed, _ = varied.at(resource.resource, factor)
        except SpecError:  # a figure that no part could have
            return {}
        return _bounds(changed.predict(*sizes, compiled=True).breakdown, corner)

    sides = [f for f in _FACTORS if f > 1.0], [f for f in reversed(_FACTORS) if f < 1.0]
    for key in watched:
        for side in sides:
            found = _first_change(lambda factor: bounds(factor).get(key), side, now[key])  # noqa: B023 (called here)
            if found is not None:
                factor, after = found
                share = times.get(key, phase_s[key[1]]) / total_s
                yield Flip(resource.resource, resource.name, factor, *key, now[key], after, share)


def _first_change(
    bound_at: Callable[[float], str | None], factors: list[float], now: str
) -> tuple[float, str] | None:
    """(factor, bound) of the first change along `factors`, found closer by halving the step."""
    inside = 1.0
    for factor in factors:
        after = bound_at(factor)
        if after not in (None, now):
            outside = factor
            for _ in range(_BISECTIONS):
                middle = math.sqrt(inside * outside)
                bound = bound_at(middle)
                if bound in (None, now):
                    inside = middle
                else:
                    outside, after = middle, bound
            return outside, str(after)
        inside = factor
    return None


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
