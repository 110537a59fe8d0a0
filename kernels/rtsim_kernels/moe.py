"""placeholder until the fitted model lands"""

from __future__ import annotations
import numpy as np
from typing import Any
from ._jit import jit
from .tables import BOUND_MEMORY, Coefficient, coefficient_dtype

MOE_COEFFICIENTS = (Coefficient("launch_s", 1e-5, 0.5, 1e-6, 1e-3, "s", "x"),)
MOE = np.dtype(
    [
        ("peak_flops_per_s", np.float64),
        ("b_bytes", np.float64),
        ("a_bytes", np.float64),
        *coefficient_dtype(MOE_COEFFICIENTS).descr,
    ]
)


@jit
def moe_work(
    n_tokens: float,
    hidden: float,
    width: float,
    n_experts: float,
    n_local: float,
    top_k: float,
    matrices: float,
    skew: float,
    moe: Any,
) -> tuple[float, float]:
    routed = n_tokens * top_k * n_local / n_experts
    hit = n_local * (1.0 - (1.0 - top_k / n_experts) ** n_tokens)
    return (
        2.0 * routed * matrices * hidden * width,
        hit * matrices * hidden * width * moe.b_bytes + 2.0 * n_tokens * hidden * moe.a_bytes,
    )


@jit
def moe_s(
    n_tokens: float,
    hidden: float,
    width: float,
    n_experts: float,
    n_local: float,
    top_k: float,
    matrices: float,
    skew: float,
    moe: Any,
    device: Any,
) -> tuple[float, int]:
    flops, moved = moe_work(n_tokens, hidden, width, n_experts, n_local, top_k, matrices, skew, moe)
    return moe.launch_s + flops / (0.6 * moe.peak_flops_per_s) + moved / (
        0.8 * device.hbm_bytes_per_s
    ), BOUND_MEMORY
