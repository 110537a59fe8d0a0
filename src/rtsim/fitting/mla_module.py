"""Whole blocks of multi-head latent attention, put together from their kernels.

A block takes a token from the hidden state to the hidden state: one product down to the query and
key/value latents, a norm of each, the product up to the queries, rotation; then either the product
up to keys and values and ordinary attention (prefill), or a batched product that takes the queries
into the latent space, attention over the latent cache and one that takes the values out (decode,
and prefill where the stack absorbs there too); at last the product back to the hidden size. Widths
are those of DeepSeek-V3, which all tables hold.

Benchmarks repeat one block, so a weight comes round after all weights of the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import memory_bound

from rtsim.device_facts import device_row
from rtsim.fitting import mla
from rtsim.machine import absorb_row, gemm_row, memory_bound_row
from rtsim.profile import Profile
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]

HIDDEN, QUERY_LATENT = 7168.0, 1536.0
ACTIVATION_BYTES = 2.0
_KINDS = {"context_module": mla.PREFILL, "generation_module": mla.DECODE}
_SWITCH = 0.75  # of the coefficient `absorbed`


def module_s(
    columns: Mapping[str, NDArray[Any]],
    members: NDArray[np.intp],
    op: str,
    gemm_dtype: str,
    attention: Mapping[str, float],
    gpu: GpuSpec,
    profile: Profile,
) -> Array:
    """Seconds of the rows `members` of one operator, GPU and set of formats.

    attention: coefficients of the attention kernel in it. Raises NotSupported for a format that
    is not modelled.
    """
    from rtsim_kernels import compiled

    kernels = compiled()
    device = device_row(gpu)
    kind = _KINDS[op]
    rows = mla.rows_of(columns, members, kind, lambda _: gpu)
    tokens = rows.n_sequences * (rows.new_tokens if kind == mla.PREFILL else 1.0)
    heads = rows.n_heads
    absorbed = kind == mla.DECODE or attention["absorbed"] > _SWITCH

    down = QUERY_LATENT + mla.LATENT + mla.ROPE
    queries = heads * (mla.NOPE + mla.ROPE)
    products = [  # n, k, factors of the batch
        (down + 0.0 * heads, HIDDEN, 1.0),
        (queries, QUERY_LATENT, 1.0),
        (HIDDEN + 0.0 * heads, heads * mla.V_HEAD_DIM, 1.0),
    ]
    if not absorbed:
        products.append((heads * (mla.NOPE + mla.V_HEAD_DIM), mla.LATENT, 1.0))
    row = gemm_row(profile, gpu, gemm_dtype)
    batched = absorb_row(profile, gpu, "bf16")
    weights = sum(n * k for n, k, _ in products) * float(row["b_bytes"])

    def product_s(n: Any, k: Any, batch: Any, record: NDArray[np.void]) -> Array:
        n, k, batch = (np.broadcast_to(v, tokens.shape).astype(float) for v in (n, k, batch))
        copies = np.maximum(1.0, weights / (n * k * batch * float(record["b_bytes"])))
        return np.asarray(
            kernels.gemm.gemm_many(tokens, n, k, batch, copies, record[()], device[()])
        )

    total = mla.predict(rows, attention)
    for n, k, batch in products:
        total = total + product_s(n, k, batch, row)
    if absorbed:
        total = total + product_s(mla.LATENT, mla.NOPE, heads, batched)
        total = total + product_s(mla.V_HEAD_DIM, mla.LATENT, heads, batched)

    memory = memory_bound_row(profile, gpu)
    for work, width in (
        ("rmsnorm", QUERY_LATENT + 0.0 * heads),
        ("rmsnorm", mla.LATENT + 0.0 * heads),
        ("rope", (heads + 1.0) * mla.ROPE),
    ):
        counts = memory_bound.OPERATORS[work]
        elements = tokens * width
        same = np.ones(len(tokens))
        total = total + kernels.memory_bound.memory_bound_many(
            np.full(len(tokens), counts.kind), tokens, width,
            elements * counts.read_elements * ACTIVATION_BYTES,
            elements * counts.written_elements * ACTIVATION_BYTES,
            elements * counts.flops, same, memory[()], device[()],
        )  # fmt: skip
    return np.asarray(total)
