"""A system with one resource at a factor of what it is, and the names of resources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from rtsim.profile import Profile
from rtsim.specs import GpuSpec
from rtsim.specs.workload import WorkloadSpec
from rtsim.system import System
from rtsim.whatif import change

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


class VariedSystem:
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
