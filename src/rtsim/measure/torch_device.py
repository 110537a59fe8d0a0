"""The real device: builds the program of a case, checks its result, times it, names its faults."""

from __future__ import annotations

import gc
import math

from rtsim.measure import (
    attention,
    ceilings,
    collective,
    gemm,
    generation,
    launch,
    memory_bound,
    moe,
    timing,
)
from rtsim.measure.budget import MOST_CALLS, Budget
from rtsim.measure.case import Case, Scope
from rtsim.measure.device import (
    CaseFault,
    DeviceFacts,
    DeviceLost,
    Measurement,
    OutOfMemory,
    Unsupported,
    WrongResult,
)
from rtsim.measure.facts import checked_device, facts_of, scope_of
from rtsim.measure.program import Call, Program
from rtsim.measure.sampling import Sampler

SEED = 20
# Operands in rotation fill this many L2s, if memory allows; no more than the calls of a replay.
ROTATED_L2S = 3.0
_ROTATED_PART = 0.3  # of the memory
_RESERVED_PART = 0.5  # of the memory, from where on what rows left behind is given back
# What PyTorch and CUDA say when a format, back end or shape is not there.
_NOT_THERE = (
    "not implemented", "not supported", "no available kernel", "unsupported", "only supported",
    "requires compute capability", "no valid", "not compiled", "expected", "must be", "invalid",
    "could not create a primitive", "no kernel", "not_supported", "no viable",
)  # fmt: skip

PROGRAMS = {
    "ceilings": ceilings.program, "gemm": gemm.program, "attention": attention.program,
    "memory_bound": memory_bound.program, "moe": moe.program, "launch": launch.program,
    "generation": generation.program,
}  # fmt: skip


class TorchDevice:
    """The first GPU that PyTorch sees, or the CPU. See `device.Device`."""

    def __init__(self, name: str) -> None:
        """name: "cuda" or "cpu". Raises SpecError, NotSupported."""
        self.name = checked_device(name)
        import torch

        self._facts, nvml, gpu = facts_of(self.name)
        self._scope = scope_of(self._facts)
        self._sampler = Sampler(nvml, gpu)
        self._budget = Budget.of(self._facts)
        self._flush: Call | None = None
        self._workers = collective.Workers(self.name, self._scope.n_gpus)
        torch.manual_seed(SEED)

    @property
    def facts(self) -> DeviceFacts:
        """What it says of itself."""
        return self._facts

    @property
    def scope(self) -> Scope:
        """What it offers."""
        return self._scope

    def close(self) -> None:
        """End the processes that collectives were timed in."""
        self._workers.close()

    def measure(self, case: Case) -> Measurement:
        """Time one case. Raises CaseFault, DeviceLost."""
        import torch

        try:
            if case.family == collective.FAMILY:
                with self._sampler:
                    timed = self._workers.measure(case)
                return self._measurement(case, timed, math.nan)
            return self._in_this_process(case)
        except CaseFault:
            raise
        except torch.OutOfMemoryError as error:
            gc.collect()
            raise OutOfMemory(str(error).partition("\n")[0]) from None
        except Exception as error:  # PyTorch and its compiler raise all kinds
            raise _fault_of(error, alive=self._alive()) from None
        finally:
            self._free(case)

    def _in_this_process(self, case: Case) -> Measurement:
        import torch

        if self._flush is None:
            self._flush = timing.flusher(self._facts.l2_bytes, self.name)
            timing.wake(self.name)
        program = PROGRAMS[case.family](case, self.name, self.copies(case))
        error = self._checked(program)
        expected_s = self._budget.call_s(case)
        with self._sampler:
            timed = timing.time_program(
                program, expected_s, cold=case.cold, flush=self._flush, device=self.name
            )
        if self.name != "cpu":
            torch.cuda.synchronize()
        measured = self._measurement(case, timed, error)
        self._budget.take_ceiling(case, measured)
        return measured

    def copies(self, case: Case) -> int:
        """Sets of operands to rotate through, so that each comes from DRAM."""
        if not case.cold or case.rotated_bytes <= 0.0:
            return 1
        fill = math.ceil(ROTATED_L2S * max(self._facts.l2_bytes, 1) / case.rotated_bytes)
        room = int(_ROTATED_PART * self._scope.memory_bytes / case.rotated_bytes)
        return max(1, min(max(fill, 2), MOST_CALLS, room))

    def _checked(self, program: Program) -> float:
        if program.error is None:
            return math.nan
        error = program.error()
        if not error <= program.tolerance:
            raise WrongResult(error, program.tolerance)
        return error

    def _measurement(self, case: Case, timed: timing.Timed, error: float) -> Measurement:
        sample = self._sampler.sample
        return Measurement(
            time_s=timed.median_s, spread=timed.spread, repeats=timed.repeats, timing=timed.timing,
            error=error, std_s=timed.std_s, clock_mhz=sample.clock_mhz,
            memory_clock_mhz=sample.memory_clock_mhz, power_w=sample.power_w,
            temperature_c=sample.temperature_c, throttle=sample.throttle,
        )  # fmt: skip

    def _alive(self) -> bool:
        """Whether the device still works: an error of the driver can be of one call, or final."""
        import torch

        try:
            if self.name != "cpu":
                torch.cuda.synchronize()
            return float(torch.ones(2, device=self.name).sum()) == 2.0
        except RuntimeError:
            return False

    def _free(self, case: Case) -> None:
        """Graphs and operands of a case are gone; their memory goes back."""
        import torch

        if case.family != "generation":
            generation.forget()
        if self.name == "cpu":
            return
        try:
            if torch.cuda.memory_reserved() > _RESERVED_PART * self._scope.memory_bytes:
                gc.collect()
                torch.cuda.empty_cache()
        except RuntimeError:  # the next case will tell
            return


def _fault_of(error: Exception, *, alive: bool) -> CaseFault | DeviceLost:
    """What an exception of PyTorch means for the run. alive: the device works after it."""
    text = " ".join(str(error).split()) or type(error).__name__
    low = text.lower()
    if not alive:
        return DeviceLost(f"the driver failed: {text[:200]}")
    if "out of memory" in low:
        return OutOfMemory(text[:200])
    if isinstance(error, NotImplementedError | TypeError) or any(w in low for w in _NOT_THERE):
        return Unsupported(text)
    return CaseFault("failed", f"{type(error).__name__}: {text}")
