"""Operators bound by memory: norms, activations, rotary embedding, residuals, softmax, copies.

Each as PyTorch runs it: one kernel of the library where there is one, else (`COMPILED`: gated
activations, rotary embedding) the one that torch.compile makes. Every size is timed cold, all
inputs rotated, and warm, one set repeated, as the kernel before leaves its output. What an
operator moves is `rtsim_kernels.memory_bound.OPERATORS`, from which rtsim predicts; `argmax`
(greedy sampling) is timed for the record, rtsim counts it with the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rtsim_kernels.memory_bound import OPERATORS

from rtsim.measure.case import (
    CALIBRATION,
    COLD,
    ELEMENT_BYTES,
    STACK,
    VALIDATION,
    VARIANT,
    WARM,
    Case,
    Scope,
)
from rtsim.measure.design import Axis, design
from rtsim.measure.program import Program
from rtsim.measure.torch_formats import (
    compiled,
    needs,
    random,
    relative_deviation,
    sampled_rows,
    tolerance,
    torch_dtype,
)

ARGMAX, EMBEDDING, QUANTIZE = "argmax", "embedding", "fp8_static_quantize"
PLAIN = ("add", "mul", "add_scalar", "copy", "relu", "gelu", "silu", "softmax", "layernorm",
         "rmsnorm", EMBEDDING)  # fmt: skip
COMPILED = ("silu_and_mul", "rope")
ROPE_HEAD = 128
_TABLE_BYTES, _TOY_TABLE_BYTES = 2.0**30, 2.0**22  # of an embedding: far more than an L2 holds
_COMPILE_S = 8.0  # of one fused kernel, for the first size of each operator

_FITTED, _VALIDATED = 5, 4
_TOY_FITTED, _TOY_VALIDATED = 2, 1
_CORNERS = ({"rows": 1, "cols": 4096}, {"rows": 8192, "cols": 8192}, {"rows": 64, "cols": 4096})


def cases(scope: Scope) -> list[Case]:
    """Every operator at a few sizes, cold and warm."""
    operators = [*PLAIN, *(COMPILED if scope.compiler else ()), ARGMAX]
    if "fp8_static" in scope.products:
        operators.append(QUANTIZE)
    axes = [Axis("rows", 1, 65536), Axis("cols", 512, 32768, 128)]
    corners: tuple[dict[str, int], ...] = _CORNERS
    fitted, validated = _FITTED, _VALIDATED
    if scope.toy:
        axes = [Axis("rows", 1, 64), Axis("cols", 256, 1024, 128)]
        corners, fitted, validated = (), _TOY_FITTED, _TOY_VALIDATED
    element = ELEMENT_BYTES[scope.float_dtype]

    def accept(p: dict[str, int]) -> bool:
        return p["rows"] * p["cols"] <= 2**28 and scope.fits(3 * p["rows"] * p["cols"] * element)

    points = design(axes, fitted + validated, accept=accept, corners=corners)
    found = []
    for i, point in enumerate(points):  # sizes outside: a short run has all operators
        role = CALIBRATION if i < fitted else VALIDATION
        for name in operators:
            setup_s = _COMPILE_S if name in COMPILED and i == 0 else 0.0
            for residency in (COLD, WARM):
                found.append(case_of(scope, name, point, role, residency, setup_s))
    return found


def case_of(
    scope: Scope, name: str, size: dict[str, int], role: str, residency: str, setup_s: float = 0.0
) -> Case:
    """The case of one operator. Raises KeyError for one that there is not."""
    element = ELEMENT_BYTES[scope.float_dtype]
    elements = float(size["rows"]) * size["cols"]
    work = OPERATORS["copy" if name == ARGMAX else name]
    read = elements * work.read_elements * element
    written = elements * (1.0 if name == QUANTIZE else element) * work.written_elements
    if name == ARGMAX:
        written, role = 8.0 * size["rows"], VARIANT
    return Case(
        family="memory_bound",
        kind="elementwise",
        values={
            "stack": STACK, "kernel": "inductor" if name in COMPILED else "aten", "op": name,
            "dtype": scope.float_dtype, **size, "role": role, "residency": residency,
        },
        flops=elements * work.flops,
        moved_bytes=read + written,
        memory_bytes=read + written + (_table_bytes(scope.toy) if name == EMBEDDING else 0.0),
        rotated_bytes=read if residency == COLD else 0.0,
        setup_s=setup_s,
    )  # fmt: skip


def _table_bytes(toy: bool) -> float:
    return _TOY_TABLE_BYTES if toy else _TABLE_BYTES


# On the device -----------------------------------------------------------------------------------


def program(case: Case, device: str, copies: int) -> Program:
    """Calls of an operator on `copies` sets of inputs. Raises Unsupported."""
    dtype = str(case.values["dtype"])
    name = str(case.values["op"])
    rows, cols = case.number("rows"), case.number("cols")
    operator = _operator(name, dtype, cols, device)
    make = _inputs(name, dtype, rows, cols, device)
    sets = [make() for _ in range(copies)]
    reference = _references()[name]

    def error() -> float:
        # Every operator works row by row: a sample of rows is compared.
        chosen = sampled_rows(rows, device)
        result = operator(*sets[0])[chosen]
        first = tuple(
            t[chosen] if len(t) == rows and (t.dim() > 1 or (name == EMBEDDING and i == 0)) else t
            for i, t in enumerate(sets[0])
        )
        if name == ARGMAX:  # of equal values any place is right
            best = first[0].gather(1, result[:, None])
            return relative_deviation(best, first[0].amax(dim=1, keepdim=True))
        if name != EMBEDDING:  # there nothing is computed
            first = tuple(t.double() for t in first)
        return relative_deviation(result, reference(*first))

    # Three bits of mantissa: half of an eighth.
    allowed = 0.07 if name == QUANTIZE else 0.5 * tolerance(dtype, 1)
    return Program([partial(operator, *s) for s in sets], error, allowed)


def _inputs(
    name: str, dtype: str, rows: int, cols: int, device: str
) -> Callable[[], tuple[Any, ...]]:
    import torch

    stored = torch_dtype(dtype)
    if name == EMBEDDING:
        entries = max(1, round(_table_bytes(device == "cpu") / (cols * stored.itemsize)))
        weights = random((entries, cols), stored, device)
        return lambda: (torch.randint(0, len(weights), (rows,), device=device), weights)
    if name == "rope":
        angles = torch.rand((rows, 1, ROPE_HEAD // 2), device=device) * 6.28
        cos, sin = angles.cos().to(stored), angles.sin().to(stored)
        heads = cols // ROPE_HEAD
        return lambda: (random((rows, heads, ROPE_HEAD), stored, device), cos, sin)
    if name == "silu_and_mul":
        return lambda: (random((rows, 2 * cols), stored, device),)
    if name in ("add", "mul"):
        return lambda: (random((rows, cols), stored, device), random((rows, cols), stored, device))
    if name in ("layernorm", "rmsnorm"):
        weight = random((cols,), stored, device)
        return lambda: (random((rows, cols), stored, device), weight)
    return lambda: (random((rows, cols), stored, device),)


def _operator(name: str, dtype: str, cols: int, device: str) -> Callable[..., Any]:
    import torch
    from torch.nn import functional

    if name in COMPILED:
        return _compiled(name)
    if name == "rmsnorm":
        rms_norm = needs(functional, "rms_norm")
        return lambda x, w: rms_norm(x, (cols,), w, 1e-5)
    if name == QUANTIZE:
        narrow = torch_dtype("fp8")
        return lambda x: x.to(narrow)
    plain: dict[str, Callable[..., Any]] = {
        "add": torch.add,
        "mul": torch.mul,
        "add_scalar": lambda x: torch.add(x, 1.5),
        "copy": torch.clone,
        "relu": torch.relu,
        "gelu": functional.gelu,
        "silu": functional.silu,
        "softmax": lambda x: torch.softmax(x, -1),
        "layernorm": lambda x, w: functional.layer_norm(x, (cols,), w),
        EMBEDDING: functional.embedding,
        ARGMAX: lambda x: torch.argmax(x, -1),
    }
    return plain[name]


_made: dict[str, Callable[..., Any]] = {}  # compiled once for all sizes


def _compiled(name: str) -> Callable[..., Any]:
    if name not in _made:
        _made[name] = compiled(_references()[name], dynamic=True)
    return _made[name]


def _references() -> dict[str, Callable[..., Any]]:
    """Each operator by its definition, to be run in float64."""
    import torch
    from torch.nn import functional

    def silu_and_mul(x: Any) -> Any:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def rope(x: Any, cos: Any, sin: Any) -> Any:
        one, two = x.chunk(2, dim=-1)
        return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)

    def rms_norm(x: Any, w: Any) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w

    def layer_norm(x: Any, w: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * w

    return {
        "add": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "add_scalar": lambda x: x + 1.5,
        "copy": lambda x: x,
        "relu": lambda x: x.clamp_min(0),
        "gelu": lambda x: 0.5 * x * (1.0 + torch.erf(x * 0.5**0.5)),
        "silu": lambda x: x / (1.0 + torch.exp(-x)),
        "softmax": lambda x: (
            (x - x.amax(-1, keepdim=True)).exp()
            / (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
        ),
        "layernorm": layer_norm,
        "rmsnorm": rms_norm,
        EMBEDDING: lambda i, w: w[i],
        "silu_and_mul": silu_and_mul,
        "rope": rope,
        ARGMAX: lambda x: x.argmax(-1),
        QUANTIZE: lambda x: x,
    }
