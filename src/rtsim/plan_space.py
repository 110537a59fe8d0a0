"""The space of a plan: every replica of a model that GPUs, splits and formats make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtsim.errors import RtsimError, SpecError, UnknownName
from rtsim.grid import make_grid
from rtsim.specs import GpuSpec, ModelSpec, ParallelismSpec

DEGREES = ("tp", "pp", "ep", "attention_dp", "micro_batches")
FORMATS = ("stack", "dtype", "kv_cache_dtype", "quantization")


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica: its GPU, degrees of DEGREES and formats of FORMATS."""

    gpu: int
    degrees: tuple[int, ...]
    formats: tuple[str | None, ...]


def axes_of(
    arch: Any, gpu: Any, batch_size: Any, concurrency: Any, space: Mapping[str, Any]
) -> dict[str, Any]:
    """The axes of the space as lists, checked; those not given are not in it."""
    known = (*DEGREES, *FORMATS)
    for name in space:
        if name not in known:
            raise UnknownName("axis of a plan", name, known)
    given = {name: values for name, values in space.items() if values is not None}
    axes = dict(make_grid({"model": arch, "gpu": gpu, **given, "batch_size": batch_size}).axes)
    if concurrency is not None:
        served = make_grid({"model": arch, "gpu": gpu, "concurrency": concurrency}).axes
        axes["concurrency"] = tuple(sorted(served["concurrency"]))
    if len(axes["model"]) > 1:
        raise SpecError("arch", str(arch), "must be one model")
    for name in ("batch_size", "concurrency", *DEGREES):
        values = axes.get(name, ())
        if set(map(type, values)) == {int} and min(values) >= 1:
            continue  # the usual case, quickly: there may be millions
        for value in values:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value != int(value) or value < 1:
                raise SpecError(name, value, "must be a whole number above zero")
    return axes


def formats_of(axes: Mapping[str, Any]) -> list[tuple[str | None, ...]]:
    found: list[tuple[str | None, ...]] = [()]
    for name in FORMATS:
        found = [(*one, value) for one in found for value in axes.get(name, (None,))]
    return found


def splits_of(model: ModelSpec, gpu: GpuSpec, axes: Mapping[str, Any]) -> list[tuple[int, ...]]:
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
