"""Recurrent token mixers of one layer on one GPU: Mamba, gated delta rule, linear attention.

A state of n_v_heads x key_dim x value_dim per sequence is decayed, updated by every token's key
and value, and read by its query. Kernels work through a prompt in chunks of C tokens: products
within a chunk on the tensor cores, states passed from chunk to chunk.

    within   C (n_k_heads key_dim + n_v_heads value_dim)      FLOPs per token, causal half
    across   4 n_v_heads key_dim value_dim                    update and read of the state
    math     tokens (within (1 + DELTA_WITHIN) + across (1 + 1/2)) / (tensor_frac peak)   with the
             delta rule; without it the factors are 1
    memory   (passes over inputs and outputs + states of chunks, written and read) / (hbm_frac HBM)
    t        launch_s + chunks pass_s + (math^4 + memory^4)^(1/4)

Mamba (a decay per channel and state) has no such products: every state element takes
CHANNEL_FLOPS on the ordinary cores, at vector_frac of their peak, in one kernel that runs along
the tokens.

One new token is a pass over the states, read and written:

    t        launch_s + 2 sequences state bytes / (hbm_frac HBM)

Monotone in tokens, sequences, heads and sizes; never below max(FLOPs of the recurrence / peak,
compulsory bytes / bandwidth). Ignored: L2 hits of states (a model's other layers pass in
between), the short convolution (a memory-bound operator of its own).

Sources: Mamba-2 (Dao and Gu 2024, arXiv:2405.21060, section 6: chunked algorithm), Gated DeltaNet
(Yang et al. 2024, arXiv:2412.06464, section 3.3: chunks of 64), Mamba (arXiv:2312.00752).
Coefficients are stated, not fitted: no measurements of these kernels were available. Known
error: none measured; expect a factor of 1.5 for prompts and 20 % for decode, where bytes count.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import inner
from .tables import BOUND_COMPUTE, BOUND_LATENCY, BOUND_MEMORY, Coefficient, coefficient_dtype

CHUNK = 256.0  # tokens per chunk: Mamba-2's own kernels
DELTA_CHUNK = 64.0  # the delta rule's, which solves a triangle per chunk
DELTA_WITHIN = 1.5  # key-key products and the triangular solve, over the products of attention
CHANNEL_FLOPS = 16.0  # per state element and token of Mamba: exponential, decay, update, read
STATE_BYTES = 4.0  # fp32
NORM = 4.0

# fmt: off
SCAN_COEFFICIENTS = (
    Coefficient("launch_s", 6e-6, 0.5, 1e-6, 1e-4, "s", "start and end of the kernels"),
    Coefficient("tensor_frac", 0.25, 0.4, 0.02, 1.0, "1",
                "share of the tensor peak that products within chunks reach"),
    Coefficient("vector_frac", 0.3, 0.4, 0.02, 1.0, "1",
                "share of the ordinary cores' peak that a scan per channel reaches"),
    Coefficient("hbm_frac", 0.75, 0.15, 0.2, 1.0, "1", "share of the DRAM bandwidth reached"),
    Coefficient("passes", 2.0, 0.4, 1.0, 8.0, "1",
                "reads and writes of inputs and outputs by the kernels of a prompt"),
    Coefficient("pass_s", 4e-7, 0.6, 1e-8, 1e-5, "s", "handing states from chunk to chunk"),
)
# fmt: on

# Facts of the number format, then the coefficients.
SCAN = np.dtype(
    [
        ("peak_flops_per_s", np.float64),  # dense, of the activations' format
        ("element_bytes", np.float64),  # of inputs and outputs
        *coefficient_dtype(SCAN_COEFFICIENTS).descr,
    ]
)


@inner
def scan_work(
    n_sequences: float,
    new_tokens: float,
    n_k_heads: float,
    key_dim: float,
    n_v_heads: float,
    value_dim: float,
    delta: float,
    channel_gate: float,
    scan: Any,
) -> tuple[float, float]:
    """(FLOPs of the recurrence, compulsory bytes) of one layer in one step.

    Per token and state element a multiply-add to update and one to read, one more with the delta
    rule. Bytes: inputs and outputs once, states read and written once.
    """
    tokens = n_sequences * new_tokens
    state = n_v_heads * key_dim * value_dim
    flops = tokens * state * (6.0 if delta > 0.0 else 4.0)
    gates = n_v_heads * key_dim if channel_gate > 0.0 and delta > 0.0 else n_v_heads
    inputs = 2.0 * n_k_heads * key_dim + 2.0 * n_v_heads * value_dim + gates
    moved = tokens * inputs * scan.element_bytes + 2.0 * n_sequences * state * STATE_BYTES
    return flops, moved


@inner
def scan_s(
    n_sequences: float,
    new_tokens: float,
    n_k_heads: float,
    key_dim: float,
    n_v_heads: float,
    value_dim: float,
    delta: float,
    channel_gate: float,
    scan: Any,
    device: Any,
) -> tuple[float, int]:
    """Seconds and bound code of one recurrent mixer, heads being one GPU's share.

    delta: 1 for the delta rule. channel_gate: 1 where every channel has a decay of its own;
    without the delta rule that is Mamba, which runs on the ordinary cores.
    """
    flops, moved = scan_work(
        n_sequences, new_tokens, n_k_heads, key_dim, n_v_heads, value_dim, delta, channel_gate, scan
    )
    tokens = n_sequences * new_tokens
    state = n_v_heads * key_dim * value_dim
    by_channel = channel_gate > 0.0 and delta == 0.0
    state_bytes = 2.0 * n_sequences * state * STATE_BYTES
    handed_s = 0.0
    memory_bytes = moved
    if by_channel:
        rate = scan.vector_frac * device.vector_flops_per_s
        math_s = tokens * state * CHANNEL_FLOPS / rate
    else:
        rate = scan.tensor_frac * scan.peak_flops_per_s
        if new_tokens <= 1.0:
            math_s = flops / rate
        else:
            chunk = DELTA_CHUNK if delta > 0.0 else CHUNK
            chunks = math.ceil(new_tokens / chunk)
            within = min(chunk, new_tokens) * (n_k_heads * key_dim + n_v_heads * value_dim)
            across = 4.0 * state
            if delta > 0.0:
                within *= 1.0 + DELTA_WITHIN
                across *= 1.5
            math_s = tokens * (within + across) / rate
            memory_bytes = (moved - state_bytes) * scan.passes + state_bytes * chunks
            handed_s = chunks * scan.pass_s
    memory_s = memory_bytes / (scan.hbm_frac * device.hbm_bytes_per_s)
    busy_s = (math_s**NORM + memory_s**NORM) ** (1.0 / NORM)
    seconds = scan.launch_s + handed_s + busy_s
    bound = BOUND_MEMORY
    if scan.launch_s + handed_s >= busy_s:
        bound = BOUND_LATENCY
    elif math_s > memory_s:
        bound = BOUND_COMPUTE
    return seconds, bound
