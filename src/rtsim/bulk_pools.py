"""Serving from pools of their own for prompts and decoding, for many rows of a system.

The numbers are those of `rtsim.serve` with `prefill_workers`: a compiled call for all rows of a
system and a tensor parallelism of the prefill workers (`rtsim_kernels.pools.disaggregated_many`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import RtsimError
from rtsim.served import LOAD, Served, Sizes
from rtsim.serving.serve import check_pools, check_workers
from rtsim.serving.transfer import transfer_s

Array = NDArray[Any]

NAMES = ("prefill_workers", "decode_workers", "prefill_tp")


def are_asked(sizes: Sizes) -> Array:
    """(rows,) whether a row names any of NAMES."""
    stated = np.stack([~np.isnan(sizes[name]) for name in NAMES])
    return np.asarray(stated.any(axis=0))


def error_of(row: Mapping[str, float]) -> str:
    """What `rtsim.serve` says of the numbers of pools, NaN where none is stated; "": nothing."""
    stated: dict[str, Any] = {
        name: None if math.isnan(value) else int(value) if value.is_integer() else value
        for name, value in row.items()
    }
    try:
        first = stated.pop("prefill_workers")
        check_pools(first, None, **stated)
        for name, value in {"prefill_workers": first, **stated}.items():
            check_workers(name, value)
    except RtsimError as error:
        return str(error)
    return ""


def found_of(one: Served, first: Served, sizes: Sizes) -> tuple[dict[str, Array], Array, list[str]]:
    """(figures for `bulk_serving.matrix_of`, (rows,) index of each row's error in texts, texts).

    one, first: the engines of a decode and of a prefill worker. sizes: filled, with NAMES, and
    none that is no load. Figures of rows with an error are NaN.
    """
    decode_workers = np.where(np.isnan(sizes["decode_workers"]), 1.0, sizes["decode_workers"])
    prefill_workers = sizes["prefill_workers"]
    none = np.zeros(len(prefill_workers))
    own = {**sizes, "prefix_hit": none, "concurrency": sizes["concurrency"] / decode_workers}
    prompts = {
        **sizes, "output_len": none + 1.0, "concurrency": sizes["concurrency"] / prefill_workers,
        **dict.fromkeys(("speculative_tokens", "acceptance", "draft_frac"), none),
    }  # fmt: skip
    capacity, loads, codes, texts = one.fitted(own)
    _, prompt_loads, prompt_codes, prompt_texts = first.fitted(prompts)
    codes = np.where((codes == 0) & (prompt_codes > 0), prompt_codes + len(texts) - 1, codes)
    texts = [*texts, *prompt_texts[1:]]
    lengths, of_rows = np.unique(sizes["input_len"], return_inverse=True)
    receiving = one.engine.system.parallelism.tp
    placement = first.engine.placement()
    sent = np.array([transfer_s(placement, n, receiving) for n in lengths.tolist()])[of_rows]
    kernels, decode_rows = one.engine.compiled()
    _, prompt_rows = first.engine.compiled()
    out = np.full((len(loads), 3), math.nan)
    good = codes == 0
    times = np.full((int(good.sum()), 3), math.nan)
    kernels.pools.disaggregated_many(
        np.ascontiguousarray(loads[good]), np.ascontiguousarray(prompt_loads[good]), sent[good],
        decode_rows[:3], prompt_rows[:3], one.engine.row[()],
        np.zeros_like(one.engine.scratch), np.zeros_like(first.engine.scratch), times,
    )  # fmt: skip
    out[good] = times
    ttft_s, tpot_s, alone_s = out.T
    decoded_s = np.where(np.isnan(tpot_s), 0.0, tpot_s * (sizes["output_len"] - 1.0))
    rate = sizes["concurrency"] / (ttft_s + decoded_s)
    p, q = one.engine.system.parallelism, first.engine.system.parallelism
    groups = p.sequence_groups * decode_workers
    largest = loads[:, LOAD["most_running"]] * groups
    running = rate * decoded_s
    return (
        {
            "ttft_s": ttft_s, "ttft_alone_s": alone_s + sent, "tpot_s": tpot_s,
            "decode_step_s": tpot_s, "itl_mixed_s": tpot_s, "prompt_frac": none,
            "request_throughput": rate, "running": running, "decoding": running,
            "largest_running": largest, "limit": np.where(sizes["concurrency"] > largest, 1.0, 0.0),
            "groups": groups, "capacity": capacity,
            "num_gpus": q.num_gpus * prefill_workers + p.num_gpus * decode_workers,
        },
        codes, texts,
    )  # fmt: skip
