"""Assembly: specifications -> operator rows -> kernels -> Prediction.

`System` is a model on GPUs with a stack: everything that does not depend on the workload is
resolved once, when it is made. `System.times` is the bare answer, for planners that ask
millions of times; `System.predict` adds memory, cost, energy, interval and breakdown.
`predict` makes the system (kept for the next call) and asks it once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import generation as interpreted_generation
from rtsim_kernels import mla, tables
from rtsim_kernels import step as interpreted_step

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
from rtsim.memory import Placement, memory_use
from rtsim.operators import OperatorTable, lower
from rtsim.prediction import (
    Bound,
    Cost,
    GpuSummary,
    Interval,
    Intervals,
    MemoryUse,
    ModelSummary,
    OperatorTime,
    ParallelismSummary,
    Phase,
    Prediction,
    WhatIf,
    WorkloadSummary,
)
from rtsim.profile import GROUPS, Profile, interval_half_width, load_profile
from rtsim.profile_choice import choose_profile
from rtsim.specs.dtype import dtype_bytes
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.specs.workload import WorkloadSpec
from rtsim.whatif import change

Array = NDArray[np.float64]

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


@dataclass(frozen=True)
class _Evaluation:
    """One run of the kernels; the arrays have shape (operators, 2), see `step_s`."""

    ttft_s: float
    decode_s: float
    prefill_times: Array
    decode_times: Array


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
        notes = [*model.notes, *gpu.assumed, *gpu.doubts(), *self.parallelism.check(model, gpu)]
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
        self._interpreted: tuple[Any, Any, Any] | None = None
        self._compiled: tuple[ModuleType, Any] | None = None
        self._scratch = [np.zeros((len(self.table.rows), 2)) for _ in range(3)]

    # Timing ----------------------------------------------------------------------------------

    def times(self, batch_size: int, input_len: int, output_len: int) -> Times:
        """The bare times of one workload through the compiled kernels; sizes are not checked.

        Not for several threads at once (scratch arrays are kept); a system per thread is.
        """
        kernels, machine = self.compiled_form()
        prefill_s, decode_s = kernels.generation.generation_s(
            float(-(-batch_size // self.parallelism.sequence_groups)), float(input_len),
            float(output_len),
            self.table.rows, self.table.segments, machine, *self._scratch,
        )  # fmt: skip
        tpot_s = decode_s / (output_len - 1) if output_len > 1 else math.nan
        return Times(prefill_s, tpot_s, prefill_s + decode_s)

    def compiled_form(self) -> tuple[ModuleType, Any]:
        """The compiled kernels and this system's machine in their form."""
        if self._compiled is None:
            kernels = rtsim_kernels.compiled()
            self._compiled = kernels, self.rows.compiled(kernels)
        return self._compiled

    def _evaluate(self, n_sequences: int, input_len: int, output_len: int,
                  compiled: bool) -> _Evaluation:  # fmt: skip
        arrays = [np.zeros((len(self.table.rows), 2)) for _ in range(3)]
        if compiled:
            kernels, machine = self.compiled_form()
            run = kernels.generation.generation_s
            operators, segments = self.table.rows, self.table.segments
        else:
            run = interpreted_generation.generation_s
            operators, segments, machine = self._plain()
        ttft_s, decode_s = run(
            float(n_sequences), float(input_len), float(output_len), operators, segments, machine,
            *arrays,
        )  # fmt: skip
        return _Evaluation(float(ttft_s), float(decode_s), arrays[0], arrays[1])

    def _plain(self) -> tuple[Any, Any, Any]:
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
        kernels, machine = self.compiled_form()
        out: Array = np.zeros((len(batch_size), 2, len(GROUPS)))
        kernels.generation.generation_many(
            np.ceil(np.asarray(batch_size, dtype=float) / self.parallelism.sequence_groups),
            np.asarray(input_len, dtype=float),
            np.asarray(output_len, dtype=float),
            self.table.rows,
            self.table.segments,
            self.table.executions,
            machine,
            out,
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
        notes = [*self.notes, *workload.check_model(self.model)]
        p = self.parallelism
        groups = p.sequence_groups
        n_sequences = -(-batch_size // groups)
        if batch_size < groups:
            what = "replicas" if p.attention_dp == 1 else "attention groups"
            notes.append(
                f"batch_size = {batch_size} leaves {groups - batch_size} of {groups} {what} idle"
            )
        elif batch_size % groups:
            degrees = f"dp = {p.dp}"
            degrees += f", attention_dp = {p.attention_dp}" if p.attention_dp > 1 else ""
            notes.append(f"{batch_size} sequences over {degrees}: the fullest has {n_sequences}")
        if compiled is None:
            compiled = "rtsim_kernels_compiled" in sys.modules
        run = self._evaluate(n_sequences, input_len, output_len, compiled)
        memory = memory_use(
            Placement(self.model, self.gpu, p, self.profile.traits, self.formats),
            n_sequences=n_sequences, input_len=input_len, last_context=workload.last_context,
        )  # fmt: skip
        if not memory.fits:
            notes.append(_misfit(self.model, self.gpu, p.tp, memory))
        breakdown = self._breakdown(run, n_sequences, input_len, output_len)
        # Every sequence is counted once: replicas with fewer than the fullest do less.
        flops = {
            phase: p.tp
            * p.cp
            * (batch_size / n_sequences)
            * sum(row.flops for row in breakdown if row.phase == phase and row.bound != "host")
            for phase in ("prefill", "decode")
        }
        kinds = dict(zip(self.table.names, self.table.rows["kind"], strict=True))
        # Weights pass in every replica that has work, so the fullest stands for the busy ones.
        hbm_bytes = (
            p.tp
            * p.cp
            * min(groups, batch_size)
            * sum(row.bytes for row in breakdown if kinds.get(row.operator) != tables.COLLECTIVE)
        )
        e2e_s = run.ttft_s + run.decode_s
        num_gpus = p.num_gpus
        gpu_seconds = e2e_s * num_gpus
        price = self.gpu.price
        cost = None
        if price is not None:
            usd = gpu_seconds / 3600.0 * price.usd_per_hour
            cost = Cost(
                usd_per_request=usd / batch_size,
                usd_per_million_output_tokens=usd / (batch_size * output_len) * 1e6,
                usd_per_gpu_hour=price.usd_per_hour,
                source=f"{price.source} ({price.date})",
            )
        else:
            notes.append(f"no price is known for {self.gpu.name}: cost left out")
        return Prediction(
            model=ModelSummary(
                self.model.name, self.model.parameters, self.model.active_parameters
            ),
            gpu=GpuSummary(
                self.gpu.name, self.peak_flops_per_s, self.gpu.hbm_bytes_per_s,
                float(self.gpu.memory_bytes), self.gpu.power_w, self.peak_dtype,
            ),
            stack=self.profile.stack,
            profile=self.profile.name,
            num_gpus=num_gpus,
            parallelism=ParallelismSummary(
                p.tp, p.pp, p.ep, p.dp, p.cp, p.attention_dp, p.micro_batches
            ),
            workload=WorkloadSummary(
                batch_size, input_len, output_len, self.dtype, self.kv_dtype,
                self._quantization(),
            ),
            ttft_s=run.ttft_s,
            tpot_s=run.decode_s / (output_len - 1) if output_len > 1 else None,
            e2e_latency_s=e2e_s,
            output_throughput=batch_size * output_len / e2e_s,
            prefill_flops=flops["prefill"],
            decode_flops=flops["decode"],
            mfu=sum(flops.values()) / (gpu_seconds * self.peak_flops_per_s),
            mbu=hbm_bytes / (gpu_seconds * self.gpu.hbm_bytes_per_s),
            memory=memory,
            cost=cost,
            energy_j=None if self.gpu.power_w is None else gpu_seconds * self.gpu.power_w,
            interval_90=self._intervals(run, batch_size, output_len),
            breakdown=breakdown,
            sources=self._sources(),
            notes=tuple(dict.fromkeys(notes)),
            assumed=assumed,
        )  # fmt: skip

    def _owed(self, seconds: float, times: Array, host_group: int) -> Array:
        out = np.zeros(len(GROUPS))
        interpreted_generation.owed(
            seconds, times, self._plain()[0], self.table.executions, host_group, out
        )
        return out

    def _intervals(self, run: _Evaluation, batch_size: int, output_len: int) -> Intervals:
        host_groups = interpreted_generation.GROUP_PROMPT_HOST, interpreted_generation.GROUP_HOST
        prefill = self._owed(run.ttft_s, run.prefill_times, host_groups[0])
        decode = self._owed(run.decode_s, run.decode_times, host_groups[1])

        def around(owed: Array, per: float) -> Interval:
            seconds = float(owed.sum()) / per
            factor = math.exp(float(self.interval_frac(owed, batch_size)))
            return Interval(seconds / factor, seconds * factor)

        return Intervals(
            ttft_s=around(prefill, 1.0),
            tpot_s=around(decode, output_len - 1.0) if output_len > 1 else None,
            e2e_latency_s=around(prefill + decode, 1.0),
        )

    def _quantization(self) -> str | None:
        """The weights' formats in a word or two; None where they are in the dtype."""
        formats = self.formats
        parts = {"attention": formats.attention, "mlp": formats.mlp}
        if self.model.n_experts:
            parts["experts"] = formats.experts
        if len(set(parts.values())) == 1:
            return None if formats.mlp == "none" else formats.mlp
        return ", ".join(f"{part} {form}" for part, form in parts.items() if form != "none")

    def _breakdown(self, run: _Evaluation, n_sequences: int, input_len: int,
                   output_len: int) -> tuple[OperatorTime, ...]:  # fmt: skip
        operators, segments, machine = self._plain()
        plan = machine.plan
        together = float(-(-n_sequences // int(plan.micro_batches)))
        repeated = n_sequences / together  # micro-batches, for counts of work
        source = float(input_len) if plan.model_kind != tables.DECODER else 0.0
        steps = output_len - 1
        before = 1 if plan.model_kind == tables.ENCODER_DECODER else input_len
        encoder = {i for s in segments if s.is_encoder for i in range(s.first, s.last)}
        phases: list[tuple[Phase, float, Array, int]]
        phases = [("prefill", run.ttft_s, run.prefill_times, 1)]
        if steps:
            phases.append(("decode", run.decode_s, run.decode_times, steps))
        rows: list[OperatorTime] = []
        for phase, total_s, times, repeats in phases:
            busy_s = 0.0
            for i, operator in enumerate(operators):
                executions = float(self.table.executions[i])
                new_tokens, context = self._step_sizes(
                    phase, operator, i in encoder, input_len, before, steps
                )
                if not interpreted_step.runs(operator, new_tokens) or times[i, 0] == 0.0:
                    continue
                sizes = (operator, together, new_tokens, context, source, machine)
                flops, moved = interpreted_step.operator_work(*sizes)
                _, bound = interpreted_step.operator_s(*sizes)
                seconds = float(times[i, 0]) * executions
                busy_s += seconds
                count = round(executions * repeats)
                name = cast(Bound, tables.BOUND_NAMES[bound])
                work = count * repeated
                rows.append(
                    OperatorTime(
                        self.table.names[i], phase, count, seconds, name, flops * work,
                        moved * work,
                    )
                )  # fmt: skip
            waiting_s = max(0.0, total_s - busy_s)
            rows.append(
                OperatorTime("GPU waits for host", phase, repeats, waiting_s, "host", 0.0, 0.0)
            )
        return tuple(rows)

    def _step_sizes(self, phase: Phase, operator: Any, encodes: bool, input_len: int, before: int,
                    steps: int) -> tuple[float, float]:  # fmt: skip
        """(new tokens, context) of the step that stands for a phase.

        Decode: the mean of the contexts before + 1 ... before + steps, seen through a window.
        """
        ranks = self.parallelism.cp
        if phase == "decode":
            context = before + (steps + 1) / 2
            if operator.window and not operator.compression:
                context = _mean_window(before, steps, operator.window)
            return 1.0, max(1.0, context / ranks)
        if self.model.encoder and not encodes:
            return 1.0, 1.0
        own = float(-(-input_len // ranks))
        return own, float(input_len) if ranks == 1 else 0.5 * (input_len + own)

    def _sources(self) -> tuple[str, ...]:
        found = [f"profile {self.profile.name}: {self.profile.provenance.get('source', 'own')}"]
        for what, spec in (("GPU", self.gpu), ("model", self.model)):
            origin = spec.provenance
            if origin is not None:
                found.append(f"{what} {spec.name}: {origin.source} ({origin.date})")
        return tuple(found)


def _mean_window(input_len: int, steps: int, window: float) -> float:
    """Mean of min(context, window) over the contexts input_len + 1 .. input_len + steps."""
    rising = min(steps, max(0, math.ceil(window) - 1 - input_len))  # contexts below the window
    total = rising * (input_len + (rising + 1) / 2) + (steps - rising) * window
    return total / steps


def _misfit(model: ModelSpec, gpu: GpuSpec, tp: int, memory: MemoryUse) -> str:
    if memory.smallest_fitting_tp is not None:
        advice = f"the smallest tensor parallelism that fits is --tp {memory.smallest_fitting_tp}"
    elif memory.min_gpus is not None:
        advice = (
            f"no tensor parallelism within a node fits; the fewest GPUs that do, with --pp, are "
            f"{memory.min_gpus}"
        )
    else:
        advice = "no split over GPUs fits: try a narrower --quantization or a smaller batch"
    return f"does not fit: {model.name} at tp = {tp} is too large for {gpu.name}; {advice}"


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
    assumed: list[str] = []
    if stack is None and profile is None:
        evidence = "best evidence for this GPU" if chosen.profile.gpu == chosen.gpu.name else (
            "nearest GPU with measurements"
        )  # fmt: skip
        if chosen.traits.attention == "unfused":
            evidence += "; eager, attention unfused: --stack vllm is a serving stack"
        assumed.append(f"stack = {chosen.profile.stack} ({evidence})")
    if all(degree is None for degree in (tp, pp, dp, num_gpus)):
        assumed.append("tp = 1 (one GPU)")
    elif num_gpus is not None and tp is None:
        assumed.append(f"tp = {chosen.parallelism.tp} (the rest of num_gpus)")
    assumed += [
        f"{name} = {getattr(workload, name)} (default)"
        for name, value in asked.items()
        if value is None
    ]
    if dtype is None:
        assumed.append(f"dtype = {chosen.dtype} (the model's own)")
    return chosen.predict(
        workload.batch_size,
        workload.input_len,
        workload.output_len,
        assumed=tuple(assumed),
        compiled=compiled,
    )


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
