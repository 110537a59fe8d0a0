"""A model on GPUs with a software stack: specifications -> operator rows -> kernels -> times.

Everything that does not depend on the workload is resolved once, when a `System` is made.
`System.times` is the bare answer, for planners that ask millions of times; `System.predict` adds
memory, cost, energy, interval and breakdown.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import generation as interpreted_generation
from rtsim_kernels import mla, tables

from rtsim.answer import Answer, Evaluation
from rtsim.device_facts import core_count
from rtsim.errors import SpecError
from rtsim.formats import Formats, fastest_math
from rtsim.kernel_records import mla_prefill_row
from rtsim.machine import MachineRows, machine_rows, plan_facts
from rtsim.memory import Placement
from rtsim.operators import OperatorTable, lower
from rtsim.prediction import Prediction
from rtsim.profile import GROUPS, Profile, interval_half_width
from rtsim.profile_choice import choose_profile
from rtsim.specs.dtype import dtype_bytes
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.specs.workload import WorkloadSpec

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
