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
from rtsim_kernels import mixed, tables

from rtsim.errors import SpecError
from rtsim.device_facts import record
from rtsim.memory import Placement
from rtsim.predict import System
from rtsim.serving.scheduler import Scheduler, scheduler_of


@dataclass(frozen=True)
class Cache:
    """Memory for keys, values and states on the fullest GPU, in the terms of one sequence.

    bytes_per_token grows with the context (up to a window, where layers have one: see `tokens`),
    bytes_per_sequence does not.
    """

    capacity_bytes: float
    bytes_per_sequence: float
    placement: Placement

    def sequence_bytes(self, context: float) -> float:
        """Bytes of one sequence with `context` tokens cached."""
        return self.placement.cache_bytes(context)

    def sequences(self, context: float) -> float:
        """Sequences of `context` tokens that fit, a real number; infinite without a cache."""
        one = self.sequence_bytes(context)
        return self.capacity_bytes / one if one > 0.0 else float("inf")


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
        self.coefficients = {**system.profile.section("serving"), **(coefficients or {})}
        self.row: NDArray[np.void] = record(mixed.ENGINE, **self.coefficients)
        self._scratch = np.zeros((len(system.table.rows), 2))

    def compiled(self) -> tuple[ModuleType, tuple[Any, ...]]:
        """The compiled kernels, and (operators, segments, machine, engine) for them."""
        kernels, machine = self.system.compiled_form()
        table = self.system.table
        return kernels, (table.rows, table.segments, machine, self.row[()])

    def interpreted(self) -> tuple[Any, ...]:
        """(operators, segments, machine, engine) for the kernels as plain Python."""
        return (*self.system._plain(), tables.as_row(self.row[()]))

    def step_s(self, batch: mixed.Batch) -> float:
        """Seconds of one step; `batch` is of one group."""
        kernels, rows = self.compiled()
        one = kernels.mixed.Batch(*map(float, batch))
        return float(kernels.mixed.engine_step_s(one, False, *rows, self._scratch))

    def cache(self) -> Cache:
        """Memory left for the cache beside weights, activations of a full step, and the rest.

        Raises SpecError where not even the weights fit.
        """
        system, scheduler = self.system, self.scheduler
        placement = Placement(
            system.model, system.gpu, system.parallelism, system.profile.traits, system.formats
        )
        allowed = scheduler.memory_frac * float(system.gpu.memory_bytes)
        used = placement.weights_bytes() + placement.reserved_bytes()
        used += placement.activation_bytes(1, scheduler.token_budget)
        if used >= allowed:
            raise SpecError(
                "gpu", system.gpu.name,
                f"weights and activations take {used / 2**30:.1f} GiB of the "
                f"{allowed / 2**30:.1f} GiB that the engine may use: more GPUs or fewer bits",
            )  # fmt: skip
        return Cache(allowed - used, placement.cache_bytes(0.0), placement)
