"""Number formats as PyTorch names them, random data, and how far a result may be off.

Random data matters: products of zeros draw less power, so clocks and rates come out higher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rtsim.measure.device import Unsupported

# Unit of rounding of a format's results.
_ROUNDING = {"fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}
_TOLERANCE = 16.0  # roundings that a result may be off by, over the root mean square: large ones
#                    are four times that, and libraries add parts in the format itself
_MOST_SHAPES = 64  # that one function may be compiled for
_SAMPLE_ROWS = 64  # of a large result that are compared, and as many columns


def torch_dtype(name: str) -> Any:
    """The torch dtype in which a format is stored. Raises Unsupported."""
    import torch

    known = {
        "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16,
        "bf16": torch.bfloat16, "int8": torch.int8,
        "fp8": getattr(torch, "float8_e4m3fn", None),
    }  # fmt: skip
    found = known.get(name)
    if found is None:
        raise Unsupported(f"this PyTorch has no {name}")
    return found


def random(shape: tuple[int, ...], dtype: Any, device: str, scale: float = 1.0) -> Any:
    """Normal random numbers of a dtype, small whole ones for int8. The seed is the run's."""
    import torch

    if dtype == torch.int8:
        return torch.randint(-8, 9, shape, dtype=dtype, device=device)
    if dtype.itemsize == 1:  # fp8: made in 16 bits
        return (torch.randn(shape, dtype=torch.bfloat16, device=device) * scale).to(dtype)
    made = torch.randn(shape, dtype=dtype, device=device)
    return made.mul_(scale) if scale != 1.0 else made


def tolerance(dtype: str, inner: int) -> float:
    """Largest plausible error of sums of `inner` products, relative to their root mean square.

    Inputs are exact in their format; sums are kept in fp32, where errors grow with sqrt(inner),
    and rounded once. tf32 rounds its inputs as well.

    >>> tolerance("bf16", 4096) < 0.1 < tolerance("fp16", 4096) * 20
    True
    """
    rounding = _ROUNDING.get(dtype, _ROUNDING["bf16"])
    kept = 2.0**-24 * 4.0 * math.sqrt(inner)
    return _TOLERANCE * (rounding + kept)


def deviation(result: Any, reference: Any) -> float:
    """max |result - reference| / rms(reference), in float64."""
    import torch

    exact = reference.to(torch.float64)
    off = (result.to(torch.float64) - exact).abs().max()
    scale = exact.square().mean().sqrt().clamp_min(1e-30)
    found = float(off / scale)
    return found if math.isfinite(found) else math.inf


def relative_deviation(result: Any, reference: Any) -> float:
    """max |result - reference| / (|reference| + rms(reference)), in float64.

    For results that are rounded one by one, whatever their size.
    """
    import torch

    exact = reference.to(torch.float64)
    scale = exact.square().mean().sqrt().clamp_min(1e-30) + exact.abs()
    found = float(((result.to(torch.float64) - exact).abs() / scale).max())
    return found if math.isfinite(found) else math.inf


def sampled_rows(n_rows: int, device: str) -> Any:
    """Indices of rows to compare: all of a few, else ends and an even spread between them."""
    import torch

    if n_rows <= _SAMPLE_ROWS:
        return torch.arange(n_rows, device=device)
    return torch.linspace(0, n_rows - 1, _SAMPLE_ROWS, device=device).round().long()


def compiled(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
    """`function` as torch.compile makes it, whole or not at all: nothing falls back to eager."""
    import torch

    limits = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # the name depends on the version
        if hasattr(limits, name):
            setattr(limits, name, _MOST_SHAPES)
    made: Callable[..., Any] = torch.compile(function, dynamic=dynamic, fullgraph=True)
    return made


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Products of fp32 in TF32, or not."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def needs(owner: Any, name: str) -> Callable[..., Any]:
    """A function of PyTorch that not every version has. Raises Unsupported."""
    found: Callable[..., Any] | None = getattr(owner, name, None)
    if found is None:
        raise Unsupported(f"this PyTorch has no {name}")
    return found
