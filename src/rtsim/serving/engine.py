"""An engine: one system that serves, the scheduler of its stack, and what its steps cost.

Everything that does not depend on the load is resolved once, when an engine is made. Sizes are
those of one group: GPUs that have sequences of their own (`ParallelismSpec.sequence_groups`), of
which a system has several under data parallelism of replicas or of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import load, mixed, tables

from rtsim import units
from rtsim.device_facts import record
from rtsim.errors import SpecError
from rtsim.memory import Placement
from rtsim.serving.scheduler import Scheduler, scheduler_of
from rtsim.system import System

# Policies that have a steady state, as `rtsim_kernels.load` codes them.
POLICY_CODES = {"mixed": load.MIXED, "prefill-first": load.PREFILL_FIRST}


@dataclass(frozen=True)
class Cache:
    """Memory for keys, values and states on the fullest GPU, in the terms of one sequence."""

    capacity_bytes: float
    placement: Placement

    def sequence_bytes(self, context: float) -> float:
        """Bytes of one sequence with `context` tokens cached."""
        return self.placement.cache_bytes(context)

    def sequences(self, context: float) -> float:
        """Sequences of `context` tokens that fit, a real number; infinite without a cache."""
        one = self.sequence_bytes(context)
        return self.capacity_bytes / one if one > 0.0 else float("inf")


def engine_coefficients(system: System, use: str = "engine") -> dict[str, float]:
    """Those of `mixed.ENGINE_COEFFICIENTS` that a system's profile states for its formats.

    use: "engine" of a server, or "batch" of a library that is handed one batch (the server's where
    no batches were fitted). Matrix products and expert layers have factors of their own in some
    formats: tables of kernels alone show some that are slower than those that engines run.
    """
    profile, formats = system.profile, system.formats
    if f"serving.{use}" not in profile.coefficients:
        use = "engine"
    values = profile.section("serving", use)
    if use == "batch":
        return values
    for part, name in (("mlp", "gemm_frac"), ("experts", "moe_frac")):
        of_format = profile.coefficients.get(f"serving.{formats.of(part)}", {})
        values[name] = of_format.get(name, values[name])
    return values


class Engine:
    """A system that serves under a scheduler. Raises SpecError for a model that cannot.

    system: the model on its GPUs. scheduler: None takes the stack's defaults. coefficients: of
    `mixed.ENGINE_COEFFICIENTS`; None takes those of the system's profile.
    """

    def __init__(
        self,
        system: System,
        scheduler: Scheduler | None = None,
        coefficients: dict[str, float] | None = None,
    ) -> None:
        if system.model.kind != "decoder":
            raise SpecError(
                "model", system.model.name, "must be a decoder: only those are served step by step"
            )
        self.system = system
        self.scheduler = scheduler or scheduler_of(system.profile.stack, system.gpu)
        self.coefficients = {**engine_coefficients(system), **(coefficients or {})}
        self.row: NDArray[np.void] = record(mixed.ENGINE, **self.coefficients)
        self.scratch = np.zeros((len(system.table.rows), 2))

    def compiled(self) -> tuple[ModuleType, tuple[Any, ...]]:
        """The compiled kernels, and (operators, segments, machine, engine) for them."""
        kernels, machines = self.system.compiled_form()
        table = self.system.table
        return kernels, (table.rows, table.segments, machines[0], self.row[()])

    def interpreted(self) -> tuple[Any, ...]:
        """(operators, segments, machine, engine) for the kernels as plain Python."""
        return (*self.system.plain(), tables.as_row(self.row[()]))

    def step_s(self, batch: mixed.Batch) -> float:
        """Seconds of one step; `batch` is of one group."""
        kernels, rows = self.compiled()
        one = kernels.mixed.Batch(*map(float, batch))
        return float(kernels.mixed.engine_step_s(one, False, *rows, self.scratch))

    @property
    def policy(self) -> float:
        """The scheduler's policy as `rtsim_kernels.load` codes it."""
        return POLICY_CODES.get(self.scheduler.policy, load.MIXED)

    def most_running(self, input_len: int, output_len: int) -> float:
        """Sequences of a group that run at once: by the cache, or the scheduler's limit.

        A scheduler that reserves counts whole requests, another what they hold on average.
        """
        context = input_len + output_len * (1.0 if self.scheduler.reserves else 0.5)
        return min(float(self.scheduler.max_sequences), self.cache().sequences(context))

    def placement(self) -> Placement:
        """Where weights and caches lie."""
        return self.system.placement

    def cache(self) -> Cache:
        """Memory left for the cache beside weights, activations of a full step, and the rest.

        Raises SpecError where not even the weights fit.
        """
        return cache_of(self.system, self.scheduler)


def cache_of(system: System, scheduler: Scheduler) -> Cache:
    """`Engine.cache` of a system under a scheduler."""
    placement = system.placement
    allowed = scheduler.memory_frac * float(system.gpu.memory_bytes)
    used = placement.weights_bytes + placement.reserved_bytes()
    used += placement.activation_bytes(1, scheduler.token_budget)
    if used >= allowed:
        raise SpecError(
            "gpu", system.gpu.name,
            f"weights and activations take {units.format_bytes(used)} of the "
            f"{units.format_bytes(allowed)} that the engine may use: more GPUs or fewer bits",
        )  # fmt: skip
    return Cache(allowed - used, placement)
