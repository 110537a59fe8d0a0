"""Assembly: specifications -> operator rows -> kernels -> Prediction.

`System` is a model on GPUs with a stack: everything that does not depend on the workload is
resolved once, when it is made. `System.times` is the bare answer, for planners that ask
millions of times; `System.predict` adds memory, cost, energy, interval and breakdown.
`predict` makes the system (kept for the next call) and asks it once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import generation as interpreted_generation
from rtsim_kernels import mla, tables

from rtsim.answer import Answer, Evaluation
from rtsim.catalog import load_gpu, load_model
from rtsim.device_facts import core_count
from rtsim.errors import RtsimError, SpecError
from rtsim.machine import (
    Formats,
    MachineRows,
    fastest_math,
    machine_rows,
    mla_prefill_row,
    plan_facts,
)
from rtsim.memory import Placement
from rtsim.operators import OperatorTable, lower
from rtsim.prediction import (
    Prediction,
    WhatIf,
)
from rtsim.profile import GROUPS, Profile, interval_half_width, load_profile
from rtsim.profile_choice import choose_profile
from rtsim.specs.dtype import dtype_bytes
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec, check_experts
from rtsim.specs.workload import WorkloadSpec
from rtsim.whatif import change

Array = NDArray[np.float64]

# Figures of a GPU that nothing depends on where there is one.
_BETWEEN_GPUS = ("gpus_per_node ", "pcie_bytes_per_s ")
# Narrow formats asked for as the dtype: activations stay in the model's own dtype and the
# weights take this quantisation.
_NARROW = {"fp8": "fp8", "int8": "int8_sq", "fp4": "nvfp4", "int4": "int4_wo"}
# From this distance in log size on, a model counts as unlike any that was fitted: a factor 1.5
# in one size.
_UNLIKE_DISTANCE = math.log(1.5)


class Times(NamedTuple):
    """Seconds of one request. `tpot_s` is NaN when one token is generated."""

    ttft_s: float
    tpot_s: float
    e2e_latency_s: float


class System:
    """A model on GPUs with a software stack, ready to be timed at any workload.

    Raises SpecError or UnknownName where the parts do not go together.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        parallelism: ParallelismSpec | None = None,
        *,
        profile: Profile | None = None,
        stack: str | None = None,
        dtype: str | None = None,
        kv_cache_dtype: str | None = None,
        quantization: str | None = None,
    ) -> None:
        """quantization: of all linear layers' weights; None as the model is published."""
        self.model = model
        self.gpu = gpu = gpu.one_device()  # what software, a rank and a profile see as one
        self.parallelism = parallelism or ParallelismSpec()
        one = self.parallelism.num_gpus == 1
        assumed = [a for a in gpu.assumed if not (one and a.startswith(_BETWEEN_GPUS))]
        notes = [*model.notes, *assumed, *gpu.doubts(), *self.parallelism.check(model, gpu)]
        if gpu.what_if:
            notes.insert(
                0,
                f"what if: {gpu.name} with {', '.join(gpu.what_if)}. Coefficients, price and power "
                "are those of the part itself unless set; no such part was measured, so the "
                "interval is wider",
            )
        cores = core_count(gpu)
        if cores != gpu.sm_count:
            notes.append(
                f"{gpu.name} has {gpu.sm_count} cores unlike a GPU's: kernels are timed as on "
                f"{cores:.0f} SMs of the same rate, and no such part was measured"
            )
        if profile is None:
            self.profile, choice = choose_profile(gpu, stack)
            notes += choice
        else:
            if stack is not None and stack != profile.stack:
                raise SpecError("stack", stack, f"profile {profile.name} is of {profile.stack}")
            self.profile = profile
            if profile.gpu != gpu.name:
                fitted_on = profile.gpu or f"several {profile.architecture} GPUs"
                notes.append(
                    f"profile {profile.name} was fitted on {fitted_on}: {gpu.name} takes it with "
                    "its own datasheet figures, and the interval is wider for it"
                )
        if dtype in _NARROW:
            if quantization not in (None, "none"):
                raise SpecError("dtype", dtype, "name a narrow dtype or a quantization, not both")
            quantization = _NARROW[dtype]
            dtype = None
        self.dtype = dtype or model.dtype
        self.kv_dtype = kv_cache_dtype or model.kv_cache_dtype or self.dtype
        parts = model.quantization.model_dump()
        if quantization is not None:
            parts = dict.fromkeys(parts, quantization)
        self.formats = Formats(self.dtype, self.kv_dtype, **parts)
        latent = mla_prefill_row(self.profile, gpu, self.dtype, self.kv_dtype)
        self.traits = replace(
            self.profile.traits, absorbed_prefill=bool(latent["absorbed"] > mla.SWITCH)
        )
        self.table: OperatorTable = lower(
            model,
            self.parallelism,
            self.traits,
            dtype_bytes(self.dtype),
            gpu.gpus_joined,
        )
        facts = tuple(plan_facts(model, self.parallelism).items())
        self.rows, remarks = _kept_rows(_Same(self.profile), gpu, self.formats, facts)
        notes += remarks
        self.peak_dtype, self.peak_flops_per_s = fastest_math(
            gpu, self.formats, experts=model.n_experts > 0
        )
        self.notes = tuple(dict.fromkeys(notes))
        self.placement = Placement(model, gpu, self.parallelism, self.profile.traits, self.formats)
        self._interpreted: tuple[Any, Any, Any] | None = None
        self._compiled: tuple[ModuleType, Any] | None = None

    # Timing ----------------------------------------------------------------------------------

    def times(self, batch_size: int, input_len: int, output_len: int) -> Times:
        """The bare times of one workload through the compiled kernels; sizes are not checked."""
        n_sequences = -(-batch_size // self.parallelism.sequence_groups)
        run = self.evaluate(n_sequences, input_len, output_len, True)
        tpot_s = run.decode_s / (output_len - 1) if output_len > 1 else math.nan
        return Times(run.ttft_s, tpot_s, run.ttft_s + run.decode_s)

    def compiled_form(self) -> tuple[ModuleType, Any]:
        """The compiled kernels, and this system's machine in their form: an array of one."""
        if self._compiled is None:
            kernels = rtsim_kernels.compiled()
            self._compiled = kernels, self.rows.joined().reshape(1)
        return self._compiled

    def evaluate(
        self, n_sequences: int, input_len: int, output_len: int, compiled: bool
    ) -> Evaluation:
        """The times of one workload; n_sequences: of the fullest group of GPUs."""
        if compiled:
            kernels, machines = self.compiled_form()
            run = kernels.generation.generation_many
            operators, segments = self.table.rows, self.table.segments
        else:
            run = interpreted_generation.generation_many
            operators, segments, machine = self.plain()
            machines = (machine,)
        batch, prompt, output = np.array([[n_sequences], [input_len], [output_len]], float)
        times = np.zeros((3, len(operators), 2))
        owed_s = np.zeros((1, 2, len(GROUPS)))
        seconds = np.zeros((1, 2))
        run(
            batch, prompt, output, operators, segments, self.table.executions, machines, times,
            owed_s, seconds,
        )  # fmt: skip
        ttft_s, decode_s = seconds[0].tolist()
        return Evaluation(ttft_s, decode_s, times[0, :, 0], times[1, :, 0], owed_s[0])

    def plain(self) -> tuple[Any, Any, Any]:
        """Operators, segments and machine as interpreted kernels take them."""
        if self._interpreted is None:
            self._interpreted = (
                tuple(tables.as_row(row) for row in self.table.rows),
                tuple(tables.as_row(row) for row in self.table.segments),
                self.rows.interpreted(),
            )
        return self._interpreted

    # Interval --------------------------------------------------------------------------------

    def _scatter(self, n_sequences: Array) -> Array:
        """Deviation of ln(measured / predicted) by group, (..., groups), at batches (...).

        Between that of the fitted models and that of models left out, by distance; batches
        beyond the fitted ones widen it further, with the square root of their distance.
        """
        profile = self.profile
        heads = self.model.typical_heads
        shape = (self.model.n_layers, self.model.hidden_size, heads, self.parallelism.tp)
        distance = profile.shape_distance(tuple(map(float, shape)))
        beyond = profile.batch_distance(n_sequences)[..., None] / _UNLIKE_DISTANCE
        unlike = np.minimum(1.0, np.maximum(distance / _UNLIKE_DISTANCE, beyond))
        seen = np.array([profile.sigma_seen[group] for group in GROUPS]) ** 2
        unseen = np.array([profile.sigma_unseen[group] for group in GROUPS]) ** 2
        variance = seen + unlike * np.maximum(0.0, unseen - seen)
        variance = variance * np.maximum(1.0, beyond)
        if self.gpu.name != profile.gpu or self.gpu.what_if:
            variance = variance + np.array([profile.transfer_sigma[g] for g in GROUPS]) ** 2
        return np.asarray(np.sqrt(variance))

    def interval_frac(self, owed: Array, batch_size: Array | float = 1.0) -> Array:
        """Half-width of the 90 % interval in ln(seconds).

        owed: (..., groups) seconds owed to each group; batch_size: (...) of the whole system.
        """
        n_sequences = np.ceil(
            np.asarray(batch_size, dtype=float) / self.parallelism.sequence_groups
        )
        return interval_half_width(owed, self._scatter(n_sequences), self.profile.sigma_row)

    def runtimes(self, batch_size: Array, input_len: Array, output_len: Array) -> Array:
        """Seconds of many workloads by what they are owed to, compiled.

        Arrays (rows,) of sizes; returns (rows, 2, groups): prefill and decode, `profile.GROUPS`.
        """
        kernels, machines = self.compiled_form()
        out: Array = np.zeros((len(batch_size), 2, len(GROUPS)))
        kernels.generation.generation_many(
            np.ceil(np.asarray(batch_size, dtype=float) / self.parallelism.sequence_groups),
            np.asarray(input_len, dtype=float),
            np.asarray(output_len, dtype=float),
            self.table.rows,
            self.table.segments,
            self.table.executions,
            machines,
            np.zeros((3, len(self.table.rows), 2)),
            out,
            np.zeros((len(batch_size), 2)),
        )
        return out

    # Prediction ------------------------------------------------------------------------------

    def predict(
        self,
        batch_size: int = 1,
        input_len: int = 512,
        output_len: int = 64,
        *,
        assumed: tuple[str, ...] = (),
        compiled: bool | None = None,
    ) -> Prediction:
        """Everything about one workload; see `rtsim.prediction.Prediction`.

        compiled: None uses the compiled kernels if they are loaded already.
        """
        workload = WorkloadSpec(batch_size=batch_size, input_len=input_len, output_len=output_len)
        return self.answer(workload, lambda: assumed, compiled)

    def answer(
        self,
        workload: WorkloadSpec,
        assumed: Callable[[], tuple[str, ...]],
        compiled: bool | None,
    ) -> Prediction:
        """The times of a checked workload, and the rest for when it is read."""
        doubts = workload.check_model(self.model)
        batch_size, output_len = workload.batch_size, workload.output_len
        n_sequences = -(-batch_size // self.parallelism.sequence_groups)
        if compiled is None:
            compiled = "rtsim_kernels_compiled" in sys.modules
        run = self.evaluate(n_sequences, workload.input_len, output_len, compiled)
        e2e_s = run.ttft_s + run.decode_s
        return Prediction.of_times(
            Answer(self, workload, run, doubts, assumed).part,
            ttft_s=run.ttft_s,
            tpot_s=run.decode_s / (output_len - 1) if output_len > 1 else None,
            e2e_latency_s=e2e_s,
            output_throughput=batch_size * output_len / e2e_s,
        )


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
    model, gpu = _loaded(arch, gpu)
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


def _loaded(arch: str | Path | ModelSpec, gpu: str | Path | GpuSpec) -> tuple[ModelSpec, GpuSpec]:
    if not isinstance(arch, str | Path | ModelSpec):
        raise SpecError("arch", arch, "must be a name, a path of a .toml file or a ModelSpec")
    if not isinstance(gpu, str | Path | GpuSpec):
        raise SpecError("gpu", gpu, "must be a name, a path of a .toml file or a GpuSpec")
    return (
        arch if isinstance(arch, ModelSpec) else load_model(arch),
        gpu if isinstance(gpu, GpuSpec) else load_gpu(gpu),
    )


class _Same:
    """A profile as a key: equal to itself alone, since its coefficients cannot be hashed."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.profile is self.profile

    def __hash__(self) -> int:
        return id(self.profile)


@lru_cache(maxsize=1024)
def _kept_rows(
    profile: _Same, gpu: GpuSpec, formats: Formats, plan: tuple[tuple[str, float], ...]
) -> tuple[MachineRows, tuple[str, ...]]:
    """Rows that systems with other models or splits share, and the notes on them."""
    notes: list[str] = []
    return machine_rows(profile.profile, gpu, formats, notes, dict(plan)), tuple(notes)


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


def predict(
    arch: str | Path | ModelSpec,
    gpu: str | Path | GpuSpec,
    *,
    num_gpus: int | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    dp: int | None = None,
    cp: int | None = None,
    attention_dp: int | None = None,
    micro_batches: int | None = None,
    stack: str | None = None,
    profile: str | None = None,
    batch_size: int | None = None,
    input_len: int | None = None,
    output_len: int | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
    quantization: str | None = None,
    set: Mapping[str, object] | None = None,  # noqa: A002 (the option's name)
    compiled: bool | None = None,
) -> Prediction:
    """Predict one generation: `batch_size` prompts of `input_len` tokens, `output_len` each.

    arch, gpu: catalogue names, paths of .toml files, or specifications. What is None takes a
    default, named in `Prediction.assumed`: prompt 512, output 64, batch 1, one GPU, the model's
    own dtype, and the stack with the best evidence for the GPU. `set` changes figures of the model
    and the GPU, such as {"gpu.hbm_bytes_per_s": "2x"} (`rtsim.whatif`); `Prediction.what_if` then
    holds the system without it. `compiled` as in `System.predict`. Raises RtsimError (SpecError,
    UnknownName, DataError) on bad input.

    >>> result = predict("gpt3-175b", "a100", tp=8, output_len=1)
    >>> result.tpot_s is None
    True
    """
    if set is not None:
        request: dict[str, Any] = {
            "num_gpus": num_gpus, "tp": tp, "pp": pp, "ep": ep, "dp": dp, "cp": cp,
            "attention_dp": attention_dp, "micro_batches": micro_batches, "stack": stack,
            "profile": profile, "batch_size": batch_size, "input_len": input_len,
            "output_len": output_len, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype,
            "quantization": quantization, "compiled": compiled,
        }  # fmt: skip
        return _predict_what_if(*_loaded(arch, gpu), set, request)
    chosen = system(
        arch, gpu, tp, pp, ep, dp, num_gpus, stack, profile, dtype, kv_cache_dtype, quantization,
        cp, attention_dp, micro_batches,
    )  # fmt: skip
    if output_len is None and chosen.model.kind == "encoder":
        output_len = 1
    asked = {"batch_size": batch_size, "input_len": input_len, "output_len": output_len}
    workload = WorkloadSpec.from_mapping({k: v for k, v in asked.items() if v is not None})

    def assumed() -> tuple[str, ...]:
        found: list[str] = []
        if stack is None and profile is None:
            evidence = "nearest GPU with measurements"
            if chosen.profile.gpu == chosen.gpu.name:
                evidence = "best evidence for this GPU"
            if chosen.traits.attention == "unfused":
                evidence += "; eager, attention unfused: --stack vllm is a serving stack"
            found.append(f"stack = {chosen.profile.stack} ({evidence})")
        if all(degree is None for degree in (tp, pp, dp, num_gpus)):
            found.append("tp = 1 (one GPU)")
        elif num_gpus is not None and tp is None:
            found.append(f"tp = {chosen.parallelism.tp} (the rest of num_gpus)")
        found += [
            f"{name} = {getattr(workload, name)} (default)"
            for name, value in asked.items()
            if value is None
        ]
        if dtype is None:
            found.append(f"dtype = {chosen.dtype} (the model's own)")
        return tuple(found)

    return chosen.answer(workload, assumed, compiled)


def _predict_what_if(
    model: ModelSpec, gpu: GpuSpec, settings: Mapping[str, object], request: Mapping[str, Any]
) -> Prediction:
    """The prediction of the changed system, with that of the unchanged one beside it."""
    changed = change(settings, model, gpu)
    after = predict(changed.model or model, changed.gpu or gpu, **request)
    notes = changed.notes
    before = None
    try:
        before = predict(model, gpu, **request)
    except RtsimError as error:
        notes = (*notes, f"without the changes there is no prediction: {error}")
    texts = tuple((path, str(value)) for path, value in settings.items())
    return replace(after, notes=(*notes, *after.notes), what_if=WhatIf(texts, before))


def warm_up() -> None:
    """Compile the kernels, or load them from the cache on disk."""
    chosen = system("gpt3-6.7b", "a100-sxm4-80gb")
    chosen.times(1, 128, 8)
    one = np.ones(1)
    chosen.runtimes(one, one, one)
