"""Systems by the names or specifications of their parts, kept for the next call with the same."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from rtsim.catalog import load_gpu, load_model
from rtsim.errors import SpecError
from rtsim.profile import load_profile
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec, check_experts
from rtsim.specs.workload import WorkloadSpec
from rtsim.system import System
from rtsim.whatif import change


def system(
    arch: str | Path | ModelSpec,
    gpu: str | Path | GpuSpec,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    dp: int | None = None,
    num_gpus: int | None = None,
    stack: str | None = None,
    profile: str | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
    quantization: str | None = None,
    cp: int | None = None,
    attention_dp: int | None = None,
    micro_batches: int | None = None,
    set: Mapping[str, object] | None = None,  # noqa: A002 (the option's name)
) -> System:
    """The System of these names or specifications, kept for the next call with the same.

    Files are read anew by every call, so that an edit counts. `set` changes figures of the model
    and the GPU by path, see `rtsim.whatif`.
    """
    model, gpu = loaded(arch, gpu)
    if set:
        changed = change(set, model, gpu)
        model, gpu = changed.model or model, changed.gpu or gpu
    for field, name in (("stack", stack), ("profile", profile)):
        if not isinstance(name, str | None):
            raise SpecError(field, name, "must be a name")
    # A profile file is no part of the key: what it makes is not kept.
    own_profile = profile is not None and profile.endswith(".toml")
    make = _kept_system.__wrapped__ if own_profile else _kept_system
    return make(
        model, gpu, tp, pp, ep, dp, num_gpus, stack, profile, dtype, kv_cache_dtype, quantization,
        cp, attention_dp, micro_batches,
    )  # fmt: skip


def loaded(arch: str | Path | ModelSpec, gpu: str | Path | GpuSpec) -> tuple[ModelSpec, GpuSpec]:
    """Model and GPU of these names, files or specifications."""
    if not isinstance(arch, str | Path | ModelSpec):
        raise SpecError("arch", arch, "must be a name, a path of a .toml file or a ModelSpec")
    if not isinstance(gpu, str | Path | GpuSpec):
        raise SpecError("gpu", gpu, "must be a name, a path of a .toml file or a GpuSpec")
    return (
        arch if isinstance(arch, ModelSpec) else load_model(arch),
        gpu if isinstance(gpu, GpuSpec) else load_gpu(gpu),
    )


@lru_cache(maxsize=128)
def _kept_system(
    model: ModelSpec,
    gpu: GpuSpec,
    tp: int | None,
    pp: int | None,
    ep: int | None,
    dp: int | None,
    num_gpus: int | None,
    stack: str | None,
    profile: str | None,
    dtype: str | None,
    kv_cache_dtype: str | None,
    quantization: str | None,
    cp: int | None,
    attention_dp: int | None,
    micro_batches: int | None,
) -> System:
    degrees = {
        "tp": tp, "pp": pp, "ep": ep, "dp": dp, "num_gpus": num_gpus, "cp": cp,
        "attention_dp": attention_dp, "micro_batches": micro_batches,
    }  # fmt: skip
    given = {name: value for name, value in degrees.items() if value is not None}
    if isinstance(ep, int):  # before it is asked whether it divides anything
        check_experts(ep, model)
    # Names are checked here, where their field names are known.
    formats = WorkloadSpec.from_mapping(
        {
            name: value
            for name, value in (
                ("dtype", dtype),
                ("kv_cache_dtype", kv_cache_dtype),
                ("quantization", quantization),
            )
            if value is not None
        }
    )
    return System(
        model,
        gpu,
        ParallelismSpec.from_mapping(given),
        profile=load_profile(profile) if profile is not None else None,
        stack=stack,
        dtype=formats.dtype,
        kv_cache_dtype=formats.kv_cache_dtype,
        quantization=None if quantization is None else formats.quantization,
    )
