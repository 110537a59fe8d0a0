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
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.device_facts import device_row
from rtsim.fitting import mla
from rtsim.kernel_records import absorb_row, gemm_row
from rtsim.profile import Profile
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]

HIDDEN, QUERY_LATENT = 7168.0, 1536.0
ACTIVATION_BYTES = 2.0
HELPERS, HELPER_S, STREAM_FRAC = 3.0, 2e-6, 0.8  # kernels, start of one, share of HBM
KINDS = {"context_module": mla.PREFILL, "generation_module": mla.DECODE}


def rows_of(
    columns: Mapping[str, NDArray[Any]],
    members: NDArray[np.intp],
    op: str,
    gpu: GpuSpec,
    profile: Profile,
    *,
    absorbed: bool,
) -> mla.Rows:
    """Attention inputs of the rows `members` of one operator and GPU, with the time of the rest.

    absorbed: whether attention reads the latent cache (always, in decode). Raises NotSupported for
    a number format that is not modelled.
    """
    rows = mla.rows_of(columns, members, KINDS[op], lambda _: gpu)
    rest_s = np.zeros(len(members))
    form = np.where(columns["gemm_dtype"] == "", columns["dtype"], columns["gemm_dtype"])[members]
    for name in dict.fromkeys(form.tolist()):
        of_form = form == name
        part = rows.take(of_form)
        rest_s[of_form] = _rest_s(part, name, gpu, profile, absorbed or rows.kind == mla.DECODE)
    return replace(rows, rest_s=rest_s)


def _rest_s(rows: mla.Rows, form: str, gpu: GpuSpec, profile: Profile, absorbed: bool) -> Array:
    """Seconds of all kernels of a block but attention. form: number format of the products."""
    from rtsim_kernels import compiled

    kernels = compiled()
    device = device_row(gpu)
    tokens = rows.n_sequences * (rows.new_tokens if rows.kind == mla.PREFILL else 1.0)
    heads = rows.n_heads
    down = QUERY_LATENT + mla.LATENT + mla.ROPE
    queries = heads * (mla.NOPE + mla.ROPE)
    products: list[tuple[Any, Any, float]] = [  # n, k, factors of the batch
        (down + 0.0 * heads, HIDDEN, 1.0),
        (queries, QUERY_LATENT, 1.0),
        (HIDDEN + 0.0 * heads, heads * mla.V_HEAD_DIM, 1.0),
    ]
    if not absorbed:
        products.append((heads * (mla.NOPE + mla.V_HEAD_DIM), mla.LATENT, 1.0))
    row = gemm_row(profile, gpu, form)
    batched = absorb_row(profile, gpu, "bf16")
    weights = sum(n * k for n, k, _ in products) * float(row["b_bytes"])

    def product_s(n: Any, k: Any, batch: Any, record: NDArray[np.void]) -> Array:
        n, k, batch = (np.broadcast_to(v, tokens.shape).astype(float) for v in (n, k, batch))
        copies = np.maximum(1.0, weights / (n * k * batch * float(record["b_bytes"])))
        return np.asarray(
            kernels.gemm.gemm_many(tokens, n, k, batch, copies, record[None], device[()])[0]
        )

    total = np.zeros(len(rows))
    for n, k, batch in products:
        total = total + product_s(n, k, batch, row)
    if absorbed:
        total = total + product_s(mla.LATENT, mla.NOPE, heads, batched)
        total = total + product_s(mla.V_HEAD_DIM, mla.LATENT, heads, batched)

    # Two norms and the rotation, read and written once by one kernel each: streams of bytes. (The
    # norms of the tables of memory-bound kernels are those of an older stack, far slower.)
    elements = tokens * (QUERY_LATENT + mla.LATENT + (heads + 1.0) * mla.ROPE)
    moved = 2.0 * elements * ACTIVATION_BYTES
    total = total + HELPERS * HELPER_S + moved / (STREAM_FRAC * gpu.hbm_bytes_per_s)
    return np.asarray(total)
