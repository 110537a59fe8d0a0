"""placeholder until the fitted model lands"""

from __future__ import annotations
import numpy as np
from typing import Any
from ._jit import jit
from .tables import BOUND_MEMORY, Coefficient, coefficient_dtype

MLA_DECODE_COEFFICIENTS = (Coefficient("launch_s", 1e-5, 0.5, 1e-6, 1e-3, "s", "x"),)
MLA_DECODE = np.dtype(
    [
        ("peak_flops_per_s", np.float64),
        ("kv_element_bytes", np.float64),
        *coefficient_dtype(MLA_DECODE_COEFFICIENTS).descr,
    ]
)


@jit
def mla_decode_work(
    n_sequences: float, context: float, n_heads: float, latent: float, rope: float, mla: Any
) -> tuple[float, float]:
    return 2.0 * n_sequences * context * n_heads * (2.0 * latent + rope), n_sequences * context * (
        latent + rope
    ) * mla.kv_element_bytes


@jit
def mla_decode_s(
    n_sequences: float,
    context: float,
    n_heads: float,
    latent: float,
    rope: float,
    mla: Any,
    device: Any,
    warm_frac: float,
) -> tuple[float, int]:
    flops, moved = mla_decode_work(n_sequences, context, n_heads, latent, rope, mla)
    return mla.launch_s + flops / (0.6 * mla.peak_flops_per_s) + moved / (
        0.8 * device.hbm_bytes_per_s
    ), BOUND_MEMORY
