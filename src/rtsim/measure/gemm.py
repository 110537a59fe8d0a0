"""Matrix products: linear layers in every number format of the device, and batched products.

A linear layer keeps its weights as [n, k]. Cold cases rotate the weights and keep the activations,
as a model does: weights come from DRAM, activations from the kernel before. fp8 rows cast their
activations within the time, int8 rows multiply activations that were quantised before. A batched
product (`bmm`) reads activations on both sides.

Formats and the calls behind them: fp32, tf32, fp16, bf16 torch.matmul; fp8_static torch._scaled_mm
with scales of one; int8_sq torch._int_mm; int4_wo aten._weight_int4pack_mm with groups of 128.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from rtsim.measure.case import (
    CALIBRATION,
    COLD,
    STACK,
    VALIDATION,
    WARM,
    Case,
    Scope,
)
from rtsim.measure.design import Axis, Point, design
from rtsim.measure.device import Unsupported
from rtsim.measure.program import Program
from rtsim.measure.torch_formats import (
    deviation,
    needs,
    random,
    sampled_rows,
    tf32,
    tolerance,
    torch_dtype,
)
from rtsim.specs.dtype import operand_format

CALLS = {
    "fp32": "torch.matmul", "tf32": "torch.matmul", "fp16": "torch.matmul", "bf16": "torch.matmul",
    "fp8_static": "torch._scaled_mm", "int8_sq": "torch._int_mm",
    "int4_wo": "aten._weight_int4pack_mm",
}  # fmt: skip
INT4_GROUP = 128
INT4_INNER_TILES = 8

_FITTED, _VALIDATED, _WARM_EVERY = 48, 48, 4
_BATCHED_FITTED, _BATCHED_VALIDATED = 12, 12
_TOY_COUNT = 6
_MOST_FLOPS = 4e12  # about 6 ms on a large GPU
_SLOW_MOST_FLOPS = 4e11  # fp32 on the ordinary cores
# What pins coefficients: one token on small and large weights (launch, DRAM), long products at
# full rate (math, power), few columns, few rows of many, long sums (split-K).
_CORNERS = (
    {"m": 1, "n": 4096, "k": 4096}, {"m": 1, "n": 28672, "k": 8192},
    {"m": 8192, "n": 8192, "k": 8192}, {"m": 16, "n": 256, "k": 256},
    {"m": 16384, "n": 256, "k": 4096}, {"m": 64, "n": 1024, "k": 16384},
    {"m": 4096, "n": 16384, "k": 512}, {"m": 128, "n": 4096, "k": 4096},
)  # fmt: skip


def cases(scope: Scope) -> list[Case]:
    """Linear layers of every format, then batched products."""
    found: list[Case] = []
    for dtype in scope.products:
        found += _linear(scope, dtype)
    if scope.float_dtype in scope.products:
        found += _batched(scope, scope.float_dtype)
    return found


def _linear(scope: Scope, dtype: str) -> list[Case]:
    most = _SLOW_MOST_FLOPS if dtype == "fp32" else _MOST_FLOPS
    axes = [Axis("m", 1, 16384), Axis("n", 256, 32768, 128), Axis("k", 256, 28672, 128)]
    corners: tuple[dict[str, int], ...] = _CORNERS
    fitted, validated = _FITTED, _VALIDATED
    if scope.toy:
        axes = [Axis("m", 1, 64), Axis("n", 64, 512, 64), Axis("k", 128, 512, 128)]
        corners, fitted, validated = (), _TOY_COUNT, _TOY_COUNT // 2
    if dtype == "int8_sq":  # torch._int_mm takes more than 16 rows
        axes[0] = Axis("m", 32, axes[0].high, 8)
        corners = tuple({**c, "m": max(32, c["m"])} for c in corners)

    def accept(p: Point) -> bool:
        flops = 2.0 * p["m"] * p["n"] * p["k"]
        return flops <= most and scope.fits(_operand_bytes(dtype, p, 1)[2])

    points = design(axes, fitted + validated, accept=accept, corners=corners)
    found = []
    for i, point in enumerate(points):
        role = CALIBRATION if i < fitted else VALIDATION
        found.append(case_of(dtype, "linear", {**point, "batch": 1}, role, COLD))
        if i < fitted and i % _WARM_EVERY == 0:
            found.append(case_of(dtype, "linear", {**point, "batch": 1}, role, WARM))
    return found


def _batched(scope: Scope, dtype: str) -> list[Case]:
    axes = [Axis("m", 1, 2048, 8), Axis("n", 64, 4096, 64), Axis("k", 64, 4096, 64),
            Axis("batch", 8, 256, 8)]  # fmt: skip
    fitted, validated = _BATCHED_FITTED, _BATCHED_VALIDATED
    if scope.toy:
        axes = [Axis("m", 8, 32, 8), Axis("n", 64, 64), Axis("k", 64, 128, 64), Axis("batch", 2, 4)]
        fitted, validated = _TOY_COUNT // 2, 1

    def accept(p: Point) -> bool:
        flops = 2.0 * p["m"] * p["n"] * p["k"] * p["batch"]
        return flops <= _MOST_FLOPS and scope.fits(_operand_bytes(dtype, p, p["batch"])[2])

    points = design(axes, fitted + validated, accept=accept)
    return [
        case_of(dtype, "bmm", point, CALIBRATION if i < fitted else VALIDATION, WARM)
        for i, point in enumerate(points)
    ]


def _operand_bytes(dtype: str, p: Point, batch: int) -> tuple[float, float, float]:
    """Bytes of the activations as they arrive, of the weights, and of all with the result."""
    form = operand_format(dtype)
    if form is None:
        raise ValueError(f"no operand format {dtype}")
    arriving = form.quantize_bytes if dtype != "int8_sq" else 0.0
    a = batch * p["m"] * p["k"] * max(form.a_bytes, arriving)
    b = batch * p["n"] * p["k"] * form.b_bytes
    return a, b, a + b + batch * p["m"] * p["n"] * form.out_bytes


def case_of(dtype: str, op: str, p: Point, role: str, residency: str) -> Case:
    """The case of a point (m, n, k, batch) in a number format."""
    _, weights, every = _operand_bytes(dtype, p, p["batch"])
    return Case(
        family="gemm",
        kind="gemm",
        values={
            "stack": STACK, "kernel": CALLS[dtype] if op == "linear" else "torch.bmm",
            "dtype": dtype, "op": op, **p, "role": role, "residency": residency,
        },
        flops=2.0 * p["m"] * p["n"] * p["k"] * p["batch"],
        moved_bytes=every,
        memory_bytes=every,
        rotated_bytes=weights if residency == COLD else 0.0,
    )  # fmt: skip


# On the device -----------------------------------------------------------------------------------


def program(case: Case, device: str, copies: int) -> Program:
    """Products of a case with `copies` sets of weights. Raises Unsupported."""
    dtype = str(case.values["dtype"])
    m, n, k, batch = (case.number(name) for name in ("m", "n", "k", "batch"))
    if case.values["op"] == "bmm":
        return _batched_program(dtype, m, n, k, batch, device)
    make = {"fp8_static": _fp8, "int8_sq": _int8, "int4_wo": _int4}.get(dtype, _plain)
    return make(dtype, m, n, k, device, copies)


def _plain(dtype: str, m: int, n: int, k: int, device: str, copies: int) -> Program:
    import torch

    stored = torch_dtype(dtype)
    x = random((m, k), stored, device)
    weights = [random((n, k), stored, device) for _ in range(copies)]

    def call(w: Any) -> Any:
        with tf32(dtype == "tf32"):
            return torch.matmul(x, w.t())

    return Program(
        [partial(call, w) for w in weights],
        lambda: _error(call(weights[0]), x, weights[0]),
        tolerance(dtype, k),
        touch=(x,),
    )


def _error(result: Any, x: Any, w: Any) -> float:
    """Some rows and columns of x w' against float64."""
    import torch

    rows, columns = sampled_rows(len(x), str(x.device)), sampled_rows(len(w), str(x.device))
    exact = x[rows].to(torch.float64) @ w[columns].to(torch.float64).t()
    return deviation(result[rows][:, columns], exact)


def _fp8(dtype: str, m: int, n: int, k: int, device: str, copies: int) -> Program:
    import torch

    scaled_mm = needs(torch, "_scaled_mm")
    narrow, wide = torch_dtype("fp8"), torch_dtype("bf16")
    x = random((m, k), wide, device)
    weights = [random((n, k), narrow, device) for _ in range(copies)]
    one = torch.ones((), device=device)

    def call(w: Any) -> Any:
        return scaled_mm(x.to(narrow), w.t(), scale_a=one, scale_b=one, out_dtype=wide)

    def error() -> float:
        rounded = x.to(narrow).to(torch.float32)
        return _error(call(weights[0]), rounded, weights[0].to(torch.float32))

    # Hopper's tensor cores add fp8 products in about 14 bits.
    return Program([partial(call, w) for w in weights], error, 2.0 * tolerance("bf16", k),
                   touch=(x,))  # fmt: skip


def _int8(dtype: str, m: int, n: int, k: int, device: str, copies: int) -> Program:
    import torch

    int_mm = needs(torch, "_int_mm")
    x = random((m, k), torch.int8, device)
    weights = [random((n, k), torch.int8, device) for _ in range(copies)]
    return Program(
        [partial(int_mm, x, w.t()) for w in weights],
        lambda: _error(int_mm(x, weights[0].t()), x, weights[0]),
        1e-12,  # whole numbers: exact
        touch=(x,),
    )


def _int4(dtype: str, m: int, n: int, k: int, device: str, copies: int) -> Program:
    import torch

    if device == "cpu":
        raise Unsupported("int4 weights are packed for CUDA alone here")
    pack = needs(torch.ops.aten, "_convert_weight_to_int4pack")
    product = needs(torch.ops.aten, "_weight_int4pack_mm")
    x = random((m, k), torch.bfloat16, device)
    scales = torch.full((k // INT4_GROUP, n, 2), 0.1, dtype=torch.bfloat16, device=device)
    scales[..., 1] = 0.0
    first = torch.randint(0, 16, (n, k), dtype=torch.int32, device=device)
    # Two codes to a byte, the even one in the upper half.
    packed = pack((first[:, ::2] << 4 | first[:, 1::2]).to(torch.uint8), INT4_INNER_TILES)
    weights = [packed.clone() for _ in range(copies)]

    def call(w: Any) -> Any:
        return product(x, w, INT4_GROUP, scales)

    def error() -> float:
        return _error(call(weights[0]), x, (first.float() - 8.0) * float(scales[0, 0, 0]))

    return Program([partial(call, w) for w in weights], error, 2.0 * tolerance("bf16", k),
                   touch=(x,))  # fmt: skip


def _batched_program(dtype: str, m: int, n: int, k: int, batch: int, device: str) -> Program:
    import torch

    stored = torch_dtype(dtype)
    a, b = random((batch, m, k), stored, device), random((batch, k, n), stored, device)

    def error() -> float:
        exact = torch.bmm(a[:2].to(torch.float64), b[:2].to(torch.float64))
        return deviation(torch.bmm(a, b)[:2], exact)

    return Program([lambda: torch.bmm(a, b)], error, tolerance(dtype, k))
