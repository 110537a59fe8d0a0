"""How a GPU is timed, on a stand-in for PyTorch whose device has a clock of its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rtsim.measure import timing
from rtsim.measure.facts import facts_of, scope_of
from rtsim.measure.program import Program
from rtsim.measure.sampling import Sampler, throttle_words

FLUSH_S, TOUCH_S, GAP_S = 1e-4, 3e-6, 0.5e-6


class Machine:
    """A device and its host. Calls cost the device `call_s`, and the host `issue_s` each."""

    def __init__(self, call_s: float, issue_s: float = 8e-6, capturable: bool = True) -> None:
        self.call_s, self.issue_s, self.capturable = call_s, issue_s, capturable
        self.device_s = self.host_s = 0.0
        self.log: list[str] = []
        self.capturing: list[Callable[[], None]] | None = None

    def work(self, name: str, seconds: float, issue_s: float) -> None:
        """Queue something: the device starts it when it is free and it has been issued."""
        if self.capturing is not None:
            if not self.capturable:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.capturing.append(lambda: self._run(name, seconds))
            return
        self.host_s += issue_s
        self.device_s = max(self.device_s, self.host_s)
        self._run(name, seconds)

    def _run(self, name: str, seconds: float) -> None:
        self.log.append(name)
        self.device_s += seconds

    def call(self, name: str) -> Callable[[], None]:
        return lambda: self.work(name, self.call_s, self.issue_s)

    def torch(self) -> Any:
        machine = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at_s = math.nan

            def record(self) -> None:
                machine.device_s = max(machine.device_s, machine.host_s)
                machine.log.append("event")
                self.at_s = machine.device_s

            def synchronize(self) -> None:
                machine.host_s = max(machine.host_s, machine.device_s)

            def elapsed_time(self, other: Event) -> float:
                return (other.at_s - self.at_s) * 1e3

        class Graph:
            def __init__(self) -> None:
                self.kernels: list[Callable[[], None]] = []

            def replay(self) -> None:
                machine.host_s += 10e-6
                machine.device_s = max(machine.device_s, machine.host_s) + GAP_S
                for kernel in self.kernels:
                    kernel()

        @contextmanager
        def graph(made: Graph, pool: Any = None, capture_error_mode: str = "") -> Iterator[None]:
            assert capture_error_mode == "thread_local"
            machine.capturing = made.kernels
            try:
                yield
            finally:
                machine.capturing = None

        @contextmanager
        def stream(side: Any) -> Iterator[None]:
            yield

        def synchronize() -> None:
            machine.host_s = max(machine.host_s, machine.device_s)

        side = SimpleNamespace(wait_stream=lambda other: None)
        cuda = SimpleNamespace(
            Event=Event, CUDAGraph=Graph, graph=graph, stream=stream, synchronize=synchronize,
            Stream=lambda: side, current_stream=lambda: side,
            _sleep=lambda clocks: machine.work("idle", clocks / 2e9, 2e-6),
        )  # fmt: skip
        return SimpleNamespace(cuda=cuda, OutOfMemoryError=MemoryError)


def timed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, cold: bool = True, calls: int = 3,
    expected_s: float = 0.0, **more: Any,
) -> timing.Timed:  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", machine.torch())
    touched = SimpleNamespace(sum=lambda: machine.work("touch", TOUCH_S, 5e-6))
    program = Program([machine.call(f"call {i}") for i in range(calls)], None, 0.0,
                      touch=(touched,), **more)  # fmt: skip
    return timing.time_program(
        program, expected_s or machine.call_s, cold=cold, device="cuda",
        flush=lambda: machine.work("flush", FLUSH_S, 5e-6),
    )  # fmt: skip


@pytest.mark.parametrize("call_s", [2e-6, 4e-5, 3e-3])
def test_no_launch_flush_or_touch_is_in_a_graph_s_time(
    call_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(call_s)
    found = timed(machine, monkeypatch)
    assert found.timing == "graph"
    assert call_s <= found.median_s <= 1.02 * call_s
    assert found.spread < 1e-6
    assert found.repeats >= 7


def test_the_l2_is_emptied_before_each_replay_of_a_cold_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(1e-5)
    found = timed(machine, monkeypatch)
    last = machine.log[-200:]
    first_event = len(last) - 1 - last[::-1].index("flush")
    # flush, what stays warm, the host gets ahead; then between the events calls alone, in turn
    assert last[first_event : first_event + 7] == [
        "flush", "touch", "idle", "event", "call 0", "call 1", "call 2",
    ]  # fmt: skip
    assert machine.log.count("flush") >= found.repeats
    warm = Machine(1e-5)
    timed(warm, monkeypatch, cold=False, calls=1)
    assert "flush" not in warm.log
    assert "touch" not in warm.log


def test_what_cannot_be_captured_is_issued_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_host = timed(Machine(2e-6, issue_s=8e-6, capturable=False), monkeypatch)
    assert slow_host.timing == "events"
    assert slow_host.median_s > 3e-6  # kernels wait for the host
    long = timed(Machine(1e-3, capturable=False), monkeypatch)
    assert long.median_s == pytest.approx(1e-3, rel=0.02)
    assert timed(Machine(1e-5), monkeypatch, graphs=False).timing == "events"


def test_other_faults_of_a_capture_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1e-5)
    torch = machine.torch()

    def broken(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("CUDA error: misaligned address")

    torch.cuda.graph = broken
    monkeypatch.setitem(sys.modules, "torch", torch)
    program = Program([machine.call("call")], None, 0.0)
    with pytest.raises(RuntimeError, match="misaligned"):
        timing.time_program(program, 1e-5, cold=False, device="cuda", flush=lambda: None)


def test_a_call_of_several_executions_counts_each(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timed(Machine(8e-5), monkeypatch, per_call=4)
    assert found.median_s == pytest.approx(2e-5, rel=0.05)


# What the driver says meanwhile ------------------------------------------------------------------


class NvmlError(Exception):
    pass


def nvml(**answers: Any) -> Any:
    def clock(gpu: Any, which: str) -> int:
        return {"sm": 1980, "mem": 2619}[which]

    functions: dict[str, Any] = {
        "NVMLError": NvmlError, "NVML_CLOCK_SM": "sm", "NVML_CLOCK_MEM": "mem",
        "NVML_TEMPERATURE_GPU": 0, "nvmlDeviceGetClockInfo": clock,
        "nvmlDeviceGetPowerUsage": lambda gpu: 512_000,
        "nvmlDeviceGetTemperature": lambda gpu, which: 61,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: 0x4 | 0x1,
        "nvmlDeviceGetMaxClockInfo": clock, "nvmlDeviceGetMemoryBusWidth": lambda gpu: 5120,
        "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 700_000,
        "nvmlSystemGetDriverVersion": lambda: b"570.86",
        "nvmlDeviceGetNvLinkState": lambda gpu, link: 1,
        "nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
    }  # fmt: skip
    module = ModuleType("pynvml")
    module.__dict__.update({**functions, **answers})
    return module


def test_clock_power_and_throttling_are_sampled_while_a_row_is_timed() -> None:
    sampler = Sampler(nvml(), "gpu")
    with sampler:
        while len(sampler._seen) < 3:
            pass
    sample = sampler.sample
    assert (sample.clock_mhz, sample.memory_clock_mhz) == (1980.0, 2619.0)
    assert (sample.power_w, sample.temperature_c, sample.throttle) == (512.0, 61.0, "power_cap")
    newer = Sampler(nvml(nvmlDeviceGetCurrentClocksEventReasons=lambda gpu: 0x40), "gpu")
    with newer:
        while len(newer._seen) < 2:
            pass
    assert newer.sample.throttle == "hw_thermal"


def test_a_driver_that_does_not_answer_leaves_the_figures_empty() -> None:
    def refuse(*arguments: Any) -> Any:
        raise NvmlError

    for sampler in (Sampler(nvml(nvmlDeviceGetClockInfo=refuse), "gpu"), Sampler(None, None)):
        with sampler:
            pass
        assert math.isnan(sampler.sample.clock_mhz)
        assert sampler.sample.throttle == ""


def test_idle_and_settings_are_no_throttling() -> None:
    assert throttle_words(0x1 | 0x2 | 0x100) == ""
    assert throttle_words(0x8 | 0x80) == "hw_slowdown power_brake"


def test_facts_come_from_pytorch_and_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132,
        total_memory=85_000_000_000, L2_cache_size=52_428_800, uuid="abc-def",
    )  # fmt: skip
    torch = SimpleNamespace(
        __version__="2.9.0+cu128", version=SimpleNamespace(cuda="12.8"),
        backends=SimpleNamespace(cudnn=SimpleNamespace(is_available=lambda: True,
                                                       version=lambda: 91002)),
        cuda=SimpleNamespace(get_device_properties=lambda index: properties,
                             device_count=lambda: 4,
                             nccl=SimpleNamespace(version=lambda: (2, 27, 3))),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    facts, _, gpu = facts_of("cuda")
    assert gpu == "handle of GPU-abc-def"
    assert (facts.compute_capability, facts.sm_count, facts.n_gpus) == ("9.0", 132, 4)
    assert (facts.clock_hz, facts.memory_clock_hz) == (1.98e9, 2.619e9)
    assert (facts.memory_bus_bits, facts.power_limit_w, facts.driver) == (5120, 700.0, "570.86")
    assert (facts.torch, facts.cuda, facts.topology) == ("2.9.0+cu128", "12.8", "")
    assert facts.libraries["nccl"] == "2.27.3"
    assert "fp8_static" in scope_of(facts).products

    monkeypatch.setitem(sys.modules, "pynvml", nvml(
        nvmlDeviceGetNvLinkState=lambda gpu, link: 0,
        nvmlDeviceGetMaxPcieLinkGeneration=lambda gpu: 5,
    ))  # fmt: skip
    assert facts_of("cuda")[0].topology == "pcie5"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    bare, _, none = facts_of("cuda")
    assert none is None
    assert (bare.driver, bare.clock_hz, bare.name) == ("", 0.0, "NVIDIA H100 80GB HBM3")
