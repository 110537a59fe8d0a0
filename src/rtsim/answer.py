"""What is said of one workload beside its times, each part worked out when it is first read.

The times take microseconds; the breakdown and what would fit instead take milliseconds, and
whoever asks in a loop reads neither. `Answer.part` is what `Prediction.of_times` asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import step, tables

from rtsim.memory import memory_use
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
    WorkloadSummary,
)
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.provenance import condensed
from rtsim.specs.workload import WorkloadSpec

if TYPE_CHECKING:
    from rtsim.system import System

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """One run of the kernels.

    prefill_times, decode_times: (operators,) GPU seconds of one execution in the prompt pass, and
    their sums over the decode steps. owed_s: (2, groups), see `generation.generation_many`.
    """

    ttft_s: float
    decode_s: float
    prefill_times: Array
    decode_times: Array
    owed_s: Array


def sources_of(system: System) -> tuple[str, ...]:
    """Where the figures of a system come from: profile, GPU and model."""
    profile = system.profile
    fitted_to = condensed(profile.provenance.get("source", "own"))
    found = [f"profile {profile.name}: {fitted_to}"]
    for what, spec in (("GPU", system.gpu), ("model", system.model)):
        origin = spec.provenance
        if origin is not None:
            found.append(f"{what} {spec.name}: {origin.source} ({origin.date})")
    return tuple(found)


@dataclass(frozen=True)
class Answer:
    """One workload on one system, timed: its properties are the other fields of `Prediction`.

    doubts: notes on the workload. assume: what the user left open, as `Prediction.assumed`.
    """

    system: System
    asked: WorkloadSpec
    run: Evaluation
    doubts: list[str]
    assume: Callable[[], tuple[str, ...]]

    def part(self, field: str) -> Any:
        """A field of `Prediction` that is no time; AttributeError for what is none."""
        return getattr(self, field)

    @property
    def model(self) -> ModelSummary:
        model = self.system.model
        return ModelSummary(
            model.name, model.parameters, model.active_parameters, model.kind, model.keeps
        )

    @property
    def gpu(self) -> GpuSummary:
        made, gpu = self.system, self.system.gpu
        return GpuSummary(
            gpu.name, made.peak_flops_per_s, gpu.hbm_bytes_per_s, float(gpu.memory_bytes),
            gpu.power_w, made.peak_dtype,
        )  # fmt: skip

    @property
    def stack(self) -> str:
        return self.system.profile.stack

    @property
    def profile(self) -> str:
        return self.system.profile.name

    @property
    def num_gpus(self) -> int:
        return self.system.parallelism.num_gpus

    @property
    def parallelism(self) -> ParallelismSummary:
        p = self.system.parallelism
        return ParallelismSummary(p.tp, p.pp, p.ep, p.dp, p.cp, p.attention_dp, p.micro_batches)

    @property
    def workload(self) -> WorkloadSummary:
        asked, made = self.asked, self.system
        return WorkloadSummary(
            asked.batch_size, asked.input_len, asked.output_len, made.dtype, made.kv_dtype,
            self._quantization(),
        )  # fmt: skip

    @property
    def prefill_flops(self) -> float:
        return self._flops("prefill")

    @property
    def decode_flops(self) -> float:
        return self._flops("decode")

    @property
    def mfu(self) -> float:
        flops = self.prefill_flops + self.decode_flops
        return flops / (self._gpu_seconds * self.system.peak_flops_per_s)

    @property
    def mbu(self) -> float:
        p, table = self.system.parallelism, self.system.table
        kinds = dict(zip(table.names, table.rows["kind"], strict=True))
        # Weights pass in every replica that has work, so the fullest stands for the busy ones.
        hbm_bytes = (
            p.tp
            * p.cp
            * min(p.sequence_groups, self.asked.batch_size)
            * sum(o.bytes for o in self.breakdown if kinds.get(o.operator) != tables.COLLECTIVE)
        )
        return hbm_bytes / (self._gpu_seconds * self.system.gpu.hbm_bytes_per_s)

    @cached_property
    def memory(self) -> MemoryUse:
        return memory_use(
            self.system.placement, n_sequences=self._n_sequences, input_len=self.asked.input_len,
            last_context=self.asked.last_context,
        )  # fmt: skip

    @property
    def cost(self) -> Cost | None:
        price = self.system.gpu.price
        if price is None:
            return None
        batch_size, output_len = self.asked.batch_size, self.asked.output_len
        usd = self._gpu_seconds / 3600.0 * price.usd_per_hour
        return Cost(
            usd_per_request=usd / batch_size,
            usd_per_million_output_tokens=usd / (batch_size * output_len) * 1e6,
            usd_per_gpu_hour=price.usd_per_hour,
            source=price.source_and_date,
        )

    @property
    def energy_j(self) -> float | None:
        power_w = self.system.gpu.power_w
        return None if power_w is None else self._gpu_seconds * power_w

    @property
    def interval_90(self) -> Intervals:
        output_len = self.asked.output_len
        prefill, decode = self.run.owed_s

        def around(owed: Array, per: float) -> Interval:
            seconds = float(owed.sum()) / per
            factor = math.exp(float(self.system.interval_frac(owed, self.asked.batch_size)))
            return Interval(seconds / factor, seconds * factor)

        return Intervals(
            ttft_s=around(prefill, 1.0),
            tpot_s=around(decode, output_len - 1.0) if output_len > 1 else None,
            e2e_latency_s=around(prefill + decode, 1.0),
        )

    @property
    def sources(self) -> tuple[str, ...]:
        return sources_of(self.system)

    @property
    def notes(self) -> tuple[str, ...]:
        made, p = self.system, self.system.parallelism
        batch_size, groups = self.asked.batch_size, self.system.parallelism.sequence_groups
        notes = [*made.notes, *self.doubts]
        if batch_size < groups:
            what = "replicas" if p.attention_dp == 1 else "attention groups"
            notes.append(
                f"batch_size = {batch_size} leaves {groups - batch_size} of {groups} {what} idle"
            )
        elif batch_size % groups:
            degrees = f"dp = {p.dp}"
            degrees += f", attention_dp = {p.attention_dp}" if p.attention_dp > 1 else ""
            notes.append(
                f"{batch_size} sequences over {degrees}: the fullest has {self._n_sequences}"
            )
        if not self.memory.fits:
            notes.append(_misfit(made.model, made.gpu, p.tp, self.memory))
        if made.gpu.price is None:
            notes.append(f"no price is known for {made.gpu.name}: cost left out")
        return tuple(dict.fromkeys(notes))

    @property
    def assumed(self) -> tuple[str, ...]:
        return self.assume()

    @property
    def what_if(self) -> None:
        return None

    @cached_property
    def breakdown(self) -> tuple[OperatorTime, ...]:
        run, n_sequences = self.run, self._n_sequences
        input_len, output_len = self.asked.input_len, self.asked.output_len
        table = self.system.table
        operators, segments, machine = self.system.plain()
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
                executions = float(table.executions[i])
                new_tokens, context = self._step_sizes(
                    phase, operator, i in encoder, input_len, before, steps
                )
                if not step.runs(operator, new_tokens) or times[i] == 0.0:
                    continue
                sizes = (operator, together, new_tokens, context, source, machine)
                flops, moved = step.operator_work(*sizes)
                _, bound = step.operator_s(*sizes)
                seconds = float(times[i]) * executions
                busy_s += seconds
                count = round(executions * repeats)
                name = cast(Bound, tables.BOUND_NAMES[bound])
                work = count * repeated
                rows.append(
                    OperatorTime(
                        table.names[i], phase, count, seconds, name, flops * work,
                        moved * work,
                    )
                )  # fmt: skip
            waiting_s = max(0.0, total_s - busy_s)
            rows.append(
                OperatorTime("GPU waits for host", phase, repeats, waiting_s, "host", 0.0, 0.0)
            )
        return tuple(rows)

    @property
    def _n_sequences(self) -> int:
        """Sequences of the fullest group of GPUs."""
        return -(-self.asked.batch_size // self.system.parallelism.sequence_groups)

    @property
    def _gpu_seconds(self) -> float:
        return (self.run.ttft_s + self.run.decode_s) * self.num_gpus

    def _flops(self, phase: Phase) -> float:
        """Of the whole batch: every sequence counts once, replicas with fewer do less."""
        p = self.system.parallelism
        own = sum(o.flops for o in self.breakdown if o.phase == phase and o.bound != "host")
        return p.tp * p.cp * (self.asked.batch_size / self._n_sequences) * own

    def _quantization(self) -> str | None:
        """The weights' formats in a word or two; None where they are in the dtype."""
        formats = self.system.formats
        parts = {"attention": formats.attention, "mlp": formats.mlp}
        if self.system.model.n_experts:
            parts["experts"] = formats.experts
        if len(set(parts.values())) == 1:
            return None if formats.mlp == "none" else formats.mlp
        return ", ".join(f"{part} {form}" for part, form in parts.items() if form != "none")

    def _step_sizes(self, phase: Phase, operator: Any, encodes: bool, input_len: int, before: int,
                    steps: int) -> tuple[float, float]:  # fmt: skip
        """(new tokens, context) of the step that stands for a phase.

        Decode: the mean of the contexts before + 1 ... before + steps, seen through a window.
        """
        ranks = self.system.parallelism.cp
        if phase == "decode":
            context = before + (steps + 1) / 2
            if operator.window and not operator.compression:
                context = _mean_window(before, steps, operator.window)
            return 1.0, max(1.0, context / ranks)
        if self.system.model.encoder and not encodes:
            return 1.0, 1.0
        own = float(-(-input_len // ranks))
        return own, float(input_len) if ranks == 1 else 0.5 * (input_len + own)


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
