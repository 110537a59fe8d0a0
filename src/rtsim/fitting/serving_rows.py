"""Rows of serving and batch tables as engines and loads: what a row says, and what it leaves out.

A row names a model, a precision and degrees of parallelism, not the formats of each part. What it
leaves out is read as such models are published and served:

* fp8 of a model that is published in blocks of fp8 means those blocks.
* nvfp4 of a model with experts leaves the projections of attention in 16 bits (NVIDIA's
  checkpoints of DeepSeek, Kimi, MiniMax and GLM exclude them); dense models have them too.
* mxfp4 experts (gpt-oss) run with activations in mxfp8 where the GPU has 4-bit units.
* int4 means weights of experts (of all products in a dense model) with 16-bit math.
* The cache is in fp8 where weights are quantised to a float format, as those checkpoints say.

Degrees that give more GPUs than a node has were multiplied twice by the source (tp 64 of 8 x 8
GPUs): the GPUs are then the square root.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rtsim.catalog import load_gpu, load_model
from rtsim.errors import RtsimError, SpecError, UnknownName
from rtsim.profile import Profile
from rtsim.profile_choice import choose_profile, stack_name
from rtsim.serving.engine import Engine
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.system import System

# Published twins of a model that differ only in the format of their weights.
_FORMAT_SUFFIXES = ("-NVFP4", "-FP4", "-FP8")
_FLOAT_FORMATS = ("fp8", "fp8_block", "fp8_static", "nvfp4")
_SIXTEEN_BITS = ("", "bf16", "fp16")


@dataclass(frozen=True)
class Deployment:
    """One engine of a row: what it runs on. version: of its stack; "" where none is stated."""

    engine: Engine
    version: str


def served_model(name: str) -> ModelSpec:
    """The model of a name, also of a twin in other formats ("-FP8"). Raises UnknownName."""
    try:
        return load_model(name)
    except UnknownName:
        for suffix in _FORMAT_SUFFIXES:
            if name.upper().endswith(suffix):
                return load_model(name[: -len(suffix)])
        raise


def with_formats(
    model: ModelSpec, gpu: GpuSpec, dense: str, experts: str
) -> tuple[ModelSpec, str | None]:
    """The model in the formats that a row names for its products, and that of its cache.

    dense, experts: formats of the linear layers and of the experts, "" where not stated: as
    published, in 16 bits where that is no format.
    """
    published = model.quantization.model_dump()
    parts = dict.fromkeys(published, "none")
    cache = None
    mxfp4 = published["experts"] == "w4a16_mxfp4"
    if mxfp4:
        parts = published
        if gpu.peak_flops_per_s("fp4") is not None:
            parts = {**parts, "experts": "w4a8_mxfp4_mxfp8"}
            cache = "fp8"
    elif dense in _SIXTEEN_BITS:
        pass
    elif dense == "int4_wo":
        which = ("experts",) if model.n_experts else tuple(parts)
        parts = {**parts, **dict.fromkeys(which, dense)}
    elif dense in ("fp8", "fp8_block") and "fp8_block" in published.values():
        parts = published
    else:
        parts = {**dict.fromkeys(parts, dense), "experts": experts or dense}
        if experts == "fp8_block":
            parts = dict.fromkeys(parts, experts)
        if dense == "nvfp4" and model.n_experts:
            parts["attention"] = "none"
    if any(form in _FLOAT_FORMATS for form in parts.values()):
        cache = "fp8"
    formats = model.quantization.model_copy(update=parts)
    return model.model_copy(update={"quantization": formats}), cache


def parallelism_of(
    row: Mapping[str, Any], model: ModelSpec, gpu: GpuSpec, side: str = ""
) -> ParallelismSpec:
    """The split of a row, or of its "prefill_" or "decode_" workers.

    Raises SpecError for degrees that make no system.
    """
    degree = {
        name: int(row[f"{side}{name}"]) or 1
        for name in ("tp", "pp", "attention_dp", "moe_tp", "moe_ep")
    }
    if model.n_experts == 0:
        return ParallelismSpec(tp=degree["tp"], pp=degree["pp"], dp=degree["attention_dp"])
    gpus = degree["tp"] * degree["attention_dp"]
    ep = degree["moe_ep"]
    if gpus * degree["pp"] > gpu.gpus_joined and not side:
        root = math.isqrt(gpus)
        if root * root != gpus:
            raise SpecError("tp", degree["tp"], f"{gpus} GPUs are more than a node has")
        alone = degree["attention_dp"] > 1
        degree["tp"], degree["attention_dp"] = (1, root) if alone else (root, 1)
        gpus, ep = root, min(ep, root)
    if ep > gpus or gpus % ep:
        raise SpecError("moe_ep", ep, f"must divide the {gpus} GPUs of a replica")
    return ParallelismSpec(
        tp=degree["tp"], pp=degree["pp"], attention_dp=degree["attention_dp"], ep=ep
    )


class Deployments:
    """Engines of rows, each made once. profile: one for every row, or None for the best of each."""

    def __init__(self, profile: Profile | None = None) -> None:
        self._profile = profile
        self._known: dict[tuple[Any, ...], Engine | RtsimError] = {}

    def of(self, row: Mapping[str, Any], side: str = "") -> Deployment:
        """The engine of a row, or of its "prefill_" or "decode_" workers. Raises RtsimError."""
        sizes = ("tp", "pp", "attention_dp", "moe_tp", "moe_ep")
        names = ("gpu", "stack", "model", "gemm_dtype", "moe_dtype")
        key = (side, *(row[n] for n in names), *(row[side + n] for n in sizes))
        if key not in self._known:
            try:
                self._known[key] = self._make(row, side)
            except RtsimError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, RtsimError):
            raise known
        return Deployment(known, version_of(row))

    def _make(self, row: Mapping[str, Any], side: str) -> Engine:
        gpu = load_gpu(row["gpu"])
        model, cache = with_formats(
            served_model(row["model"]), gpu, row["gemm_dtype"], row["moe_dtype"]
        )
        split = parallelism_of(row, model, gpu, side)
        profile = self._profile
        if profile is None:
            profile, _ = choose_profile(gpu, row["stack"] or None)
        return Engine(System(model, gpu, split, profile=profile, kv_cache_dtype=cache))


def version_of(row: Mapping[str, Any]) -> str:
    """Version of a row's stack, "" where either is not stated. Raises UnknownName for the stack."""
    if not (row["stack"] and row["stack_version"]):
        return ""
    stack_name(row["stack"])
    return str(row["stack_version"])


def with_batch_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an offline batch in the terms of a serving row. Raises SpecError for its split."""
    gpus = int(row["num_gpus"])
    degree = {"tp": 1, "pp": 1, "ep": 1}
    stated = row["parallelism"] or "tp"
    for part in stated.split("-"):
        name = part.rstrip("0123456789")
        if name not in degree:
            raise SpecError("parallelism", stated, "must be made of tp, pp and ep, as in tp2-pp2")
        degree[name] = int(part[len(name):] or gpus)  # fmt: skip
    tp = degree["tp"] if degree["ep"] == 1 else gpus // degree["pp"]
    dense = row["weight_dtype"] if row["weight_dtype"] not in _SIXTEEN_BITS else ""
    if dense == "int8":
        dense = "int8_wo"
    return {
        **row, "gemm_dtype": dense, "moe_dtype": dense, "tp": tp, "pp": degree["pp"],
        "attention_dp": 1, "moe_tp": tp // degree["ep"], "moe_ep": degree["ep"],
    }  # fmt: skip


def with_cache(deployment: Deployment, cache: str) -> Deployment:
    """The same with a cache in a stated format."""
    engine = deployment.engine
    system = engine.system
    other = System(
        system.model, system.gpu, system.parallelism, profile=system.profile,
        dtype=system.dtype, kv_cache_dtype=cache,
    )  # fmt: skip
    return replace(deployment, engine=Engine(other, engine.scheduler))
