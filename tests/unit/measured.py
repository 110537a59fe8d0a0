"""A device whose times are those of the model itself, for tests of measuring without a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rtsim.measure.case import Case, Scope
from rtsim.measure.device import DeviceFacts, Measurement
from rtsim.measurement_schema import KINDS
from rtsim.measurements import Columns
from rtsim.validate import _PREDICTORS

H200 = DeviceFacts(
    name="NVIDIA H200", kind="cuda", compute_capability="9.0", sm_count=132, torch="2.9.0",
    cuda="12.8", driver="570.1", memory_bytes=150_754_820_096, l2_bytes=60 * 2**20,
)  # fmt: skip
LAUNCH_S = 5e-6  # of an empty kernel
SCOPE = Scope(
    products=("bf16",), float_dtype="bf16", attention="sdpa_flash",
    attention_variants=("sdpa_math",), memory_bytes=150e9,
)  # fmt: skip


def columns_of(cases: Sequence[Case], gpu: str) -> Columns:
    """The table of cases of one kind, times set to one."""
    filled = {"gpu": gpu, "time_us": 1.0, "runtime_s": 1.0, "timing": "graph"}
    columns: Columns = {}
    for column in KINDS[cases[0].kind].columns:
        values = [filled.get(column.name, case.text(column.name)) for case in cases]
        if column.type == "count":
            columns[column.name] = np.array([int(v) for v in values], np.int64)
        elif column.type == "text":
            columns[column.name] = np.array(values, np.str_)
        else:
            columns[column.name] = np.array([float(v or "nan") for v in values])
    return columns


def model_times(cases: Sequence[Case], gpu: str, profile: str) -> dict[tuple[str, ...], float]:
    """Seconds of cases as a profile predicts them; without those that it does not predict."""
    found: dict[tuple[str, ...], float] = {}
    for case in cases:
        if case.kind == "launch":
            found[case.key] = LAUNCH_S * case.number("kernels")
    for kind in {case.kind for case in cases} & set(_PREDICTORS):
        own = [case for case in cases if case.kind == kind]
        module, _, function = _PREDICTORS[kind].partition(":")
        (times,) = getattr(importlib.import_module(module), function)(
            columns_of(own, gpu), profile
        ).values()
        for case, seconds, skip in zip(own, times.predicted_s, times.skip, strict=True):
            if not skip:
                found[case.key] = float(seconds)
    return found


@dataclass
class FakeDevice:
    """Answers with known times, one microsecond where it knows none; `before` may raise.

    Its clock runs by `row_s` per case.
    """

    facts: DeviceFacts = H200
    scope: Scope = SCOPE
    times: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    before: Callable[[Case], None] = lambda case: None
    row_s: float = 0.05
    now_s: float = 0.0
    asked: list[Case] = field(default_factory=list)

    def measure(self, case: Case) -> Measurement:
        self.asked.append(case)
        self.now_s += self.row_s
        self.before(case)
        time_s = self.times.get(case.key, 1e-6)
        return Measurement(time_s, spread=0.01, repeats=20, timing="graph", std_s=0.0, error=1e-3)

    def clock(self) -> float:
        return self.now_s
