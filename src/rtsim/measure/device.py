"""What a device is to a run: facts, and a way to time one case; and what can go wrong there.

`TorchDevice` is the real one. Nothing here needs PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from rtsim.errors import RtsimError
from rtsim.measure.case import Case, Scope


class CaseFault(Exception):  # noqa: N818 (the tree's own naming)
    """A case that gives no row; the run goes on. `reason`: a word or two, then the details."""

    def __init__(self, reason: str, details: str = "") -> None:
        self.reason = reason
        self.details = " ".join(details.split())[:300]
        super().__init__(f"{reason}: {self.details}" if self.details else reason)


class Unsupported(CaseFault):
    """A number format or back end that the device or the library does not have."""

    def __init__(self, details: str) -> None:
        super().__init__("not supported", details)


class OutOfMemory(CaseFault):
    """A size that the device has no memory for."""

    def __init__(self, details: str = "") -> None:
        super().__init__("out of memory", details)


class WrongResult(CaseFault):
    """An output too far from the reference: whatever was timed, it was not this operator."""

    def __init__(self, error: float, tolerance: float) -> None:
        super().__init__("wrong result", f"error {error:.3g}, at most {tolerance:.3g} is rounding")


class DeviceLost(RtsimError):  # noqa: N818
    """The driver failed: nothing more can be measured in this process. Exit status 1."""


@dataclass(frozen=True)
class DeviceFacts:
    """What the device and its software say of themselves; 0 and "" where they do not.

    Sizes in bytes, clocks in Hz, power in watts. `name` is the device's own.
    """

    name: str
    kind: str  # "cuda" or "cpu"
    compute_capability: str = ""
    sm_count: int = 0
    clock_hz: float = 0.0
    memory_clock_hz: float = 0.0
    memory_bus_bits: int = 0
    memory_bytes: int = 0
    l2_bytes: int = 0
    power_limit_w: float = 0.0
    n_gpus: int = 1
    topology: str = ""
    driver: str = ""
    torch: str = ""
    cuda: str = ""
    libraries: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """Time of one case, and the circumstances.

    time_s: median of one execution. spread: (90 % point - 10 % point) / median over `repeats`
    replays. timing: "graph", "events" or "wall". error: largest deviation from the reference,
    relative to its root mean square; nan where there is nothing to compare. std_s: deviation of
    single executions where each was timed. NVML figures are nan or "" where there are none.
    """

    time_s: float
    spread: float
    repeats: int
    timing: str
    error: float = float("nan")
    std_s: float = float("nan")
    clock_mhz: float = float("nan")
    memory_clock_mhz: float = float("nan")
    power_w: float = float("nan")
    temperature_c: float = float("nan")
    throttle: str = ""


class Device(Protocol):
    """Something that cases can be measured on."""

    @property
    def facts(self) -> DeviceFacts:
        """What it says of itself."""

    @property
    def scope(self) -> Scope:
        """What it offers."""

    def measure(self, case: Case) -> Measurement:
        """Time one case. Raises CaseFault, DeviceLost."""
