"""The two ceilings of a device: how fast it copies, and how fast it multiplies.

A copy far larger than the L2, and a square product in each 16- and 8-bit format. They say what
the device gives at best, beside the datasheet; the budget of a run is reckoned with them. They are
ordinary rows of `elementwise` and `gemm` as well.
"""

from __future__ import annotations

from dataclasses import replace

from rtsim.measure import gemm, memory_bound
from rtsim.measure.case import CALIBRATION, COLD, ELEMENT_BYTES, Case, Scope
from rtsim.measure.program import Program

_SQUARE, _TOY_SQUARE = 8192, 256
_COPY_BYTES, _TOY_COPY_BYTES = 2**30, 2**22
_COLS = 16384
_SQUARE_FP32 = 4096


def cases(scope: Scope) -> list[Case]:
    """A copy, then products."""
    copied = _TOY_COPY_BYTES if scope.toy else _COPY_BYTES
    cols = 1024 if scope.toy else _COLS
    rows = max(1, round(min(copied, 0.1 * scope.memory_bytes) / ELEMENT_BYTES[scope.float_dtype]
                        / cols))  # fmt: skip
    found = [memory_bound.case_of(scope, "copy", {"rows": rows, "cols": cols}, CALIBRATION, COLD)]
    for dtype in scope.products:
        side = _TOY_SQUARE if scope.toy else _SQUARE_FP32 if dtype == "fp32" else _SQUARE
        size = {"m": side, "n": side, "k": side, "batch": 1}
        found.append(gemm.case_of(dtype, "linear", size, CALIBRATION, COLD))
    return [replace(case, family="ceilings") for case in found]


def program(case: Case, device: str, copies: int) -> Program:
    """The program of the case's own kind."""
    make = gemm.program if case.kind == "gemm" else memory_bound.program
    return make(case, device, copies)
