"""Clock, power, temperature and throttling of an NVIDIA GPU while a row is timed, through NVML.

A thread asks every few milliseconds; without the library (nvidia-ml-py) or the right to ask, the
figures are left empty. Power is the driver's own average over some tens of milliseconds, so for
short rows it holds a part of what ran before.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

_INTERVAL_S = 0.005

# Bits of the clocks-event reasons that hold a clock down (NVML API reference,
# nvmlClocksEventReasons); idle and application settings do not count.
THROTTLE_BITS = {
    0x4: "power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
}


def throttle_words(bits: int) -> str:
    """Why the clock was held down, "" where it was not.

    >>> throttle_words(0x1), throttle_words(0x4 | 0x40)
    ('', 'power_cap hw_thermal')
    """
    return " ".join(word for bit, word in THROTTLE_BITS.items() if bits & bit)


@dataclass(frozen=True)
class Sample:
    """Means over a row, nan without samples; throttle: every reason that was seen."""

    clock_mhz: float = math.nan
    memory_clock_mhz: float = math.nan
    power_w: float = math.nan
    temperature_c: float = math.nan
    throttle: str = ""


@dataclass
class Sampler:
    """Samples while its block runs. `gpu`: a handle of NVML; None samples nothing."""

    nvml: Any
    gpu: Any
    _seen: list[tuple[float, float, float, float]] = field(default_factory=list)
    _bits: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._seen, self._bits = [], 0
        if self.gpu is not None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._loop, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def sample(self) -> Sample:
        """What was seen."""
        if not self._seen:
            return Sample()
        clock, memory_clock, power, temperature = (
            _mean(values) for values in zip(*self._seen, strict=True)
        )
        return Sample(clock, memory_clock, power, temperature, throttle_words(self._bits))

    def _loop(self) -> None:
        while not self._stop.is_set():
            if not self._ask():
                return
            self._stop.wait(_INTERVAL_S)

    def _ask(self) -> bool:
        nvml, gpu = self.nvml, self.gpu
        try:
            self._seen.append(
                (
                    float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
                    float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
                    nvml.nvmlDeviceGetPowerUsage(gpu) * 1e-3,
                    float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
                )
            )
            reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
            # The name until driver 535.
            reasons = reasons or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
            self._bits |= int(reasons(gpu))
        except nvml.NVMLError:
            return False
        return True


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def nvml_gpu(index: int, uuid: str = "") -> tuple[Any, Any]:
    """The library and the handle of a GPU, by its UUID where that is known; (None, None) without.

    NVML counts all GPUs of the machine, PyTorch those that it may see.
    """
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        if uuid:
            return pynvml, pynvml.nvmlDeviceGetHandleByUUID(
                uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
            )
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError:
        return None, None
