"""Predictions in bulk are those of `predict`, row by row, whatever the other rows are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtsim
from rtsim.bulk import METRICS, predict_many
from rtsim.errors import RtsimError

MODELS = (
    "gpt3-175b", "llama-3.1-70b", "mistral-7b", "gpt-j-6b", "bloom-176b", "opt-1.3b",
    "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "qwen3-next-80b-a3b", "gemma-3-27b",
    "t5-11b", "bert-large",
)  # fmt: skip
GPUS = ("a100", "h100", "v100-sxm2-32gb", "b200", "mi250", "l40s", "t4", "gb200-nvl72")
OPTIONS: dict[str, Any] = {
    "tp": st.sampled_from((None, 1, 2, 3, 4, 8, 16)),
    "pp": st.sampled_from((None, 1, 2, 5)),
    "ep": st.sampled_from((None, None, 1, 2, 8)),
    "dp": st.sampled_from((None, 1, 3)),
    "attention_dp": st.sampled_from((None, None, None, 2)),
    "cp": st.sampled_from((None, 1, 2)),
    "micro_batches": st.sampled_from((None, 1, 3)),
    "num_gpus": st.sampled_from((None, None, None, 8, 9)),
    "stack": st.sampled_from((None, "vllm", "megatron-lm", "pytorch", "vlm")),
    "dtype": st.sampled_from((None, "fp16", "fp8")),
    "kv_cache_dtype": st.sampled_from((None, "fp8")),
    "quantization": st.sampled_from((None, None, "int4_wo", "int5")),
    "batch_size": st.sampled_from((None, 1, 2, 7, 64, 300, 0)),
    "input_len": st.sampled_from((None, 1, 2, 3, 100, 512, 777, 3000, 40_000)),
    "output_len": st.sampled_from((None, 1, 2, 64, 333, 5000)),
}
CHANGES: dict[str, Any] = {
    "gpu.hbm_bytes_per_s": st.sampled_from((None, "2x", "1x", 3.35e12, "4 TB/s", 1.0)),
    "link.bytes_per_s": st.sampled_from((None, None, "0.5x", 6e11)),
    "network.bytes_per_s": st.sampled_from((None, None, 1e11)),
    "gpu.peak_bf16_flops_per_s": st.sampled_from((None, None, None, "1.5x")),
    "model.n_layers": st.sampled_from((None, None, None, 40)),
}
COLUMNS = ("model", "gpu", *OPTIONS, *CHANGES)
wild_rows = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "gpu": st.sampled_from(GPUS),
        **OPTIONS,
        **CHANGES,
    }
)
# Most of what those hold is refused; of this most is predicted.
TAME: dict[str, Any] = {
    **{name: st.none() for name in (*OPTIONS, *CHANGES)},
    "tp": st.sampled_from((None, 1, 2, 4, 8)),
    "pp": st.sampled_from((None, None, 2)),
    "dp": st.sampled_from((None, None, 3)),
    "micro_batches": st.sampled_from((None, None, 2)),
    "stack": st.sampled_from((None, None, "vllm", "megatron-lm")),
    "kv_cache_dtype": st.sampled_from((None, None, "fp8")),
    "quantization": st.sampled_from((None, None, None, "int4_wo", "fp8")),
    "batch_size": st.sampled_from((None, 1, 2, 7, 64, 300)),
    "input_len": st.sampled_from((None, 1, 2, 3, 100, 512, 777)),
    "output_len": st.sampled_from((None, 1, 2, 64, 200)),
    "gpu.hbm_bytes_per_s": st.sampled_from((None, None, "2x", "1x", 3.35e12, "4 TB/s")),
    "model.n_layers": st.sampled_from((None, None, None, 40)),
}
tame_rows = st.fixed_dictionaries(
    {"model": st.sampled_from(MODELS), "gpu": st.sampled_from(("a100", "h100", "b200")), **TAME}
)
rows = wild_rows | tame_rows | tame_rows
tables = st.lists(rows, min_size=1, max_size=12)


def as_table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in COLUMNS}


def one_by_one(row: dict[str, Any]) -> dict[str, Any] | str:
    """The same figures from `predict`, or its error."""
    given_ = {name: row[name] for name in COLUMNS if row[name] is not None}
    changes = {path: given_.pop(path) for path in CHANGES if path in given_}
    model, gpu = given_.pop("model"), given_.pop("gpu")
    try:
        p = rtsim.predict(model, gpu, **given_, set=changes or None, compiled=True)
    except RtsimError as error:
        return str(error)
    nan = math.nan
    ranges = p.interval_90
    tpot = ranges.tpot_s or rtsim.prediction.Interval(nan, nan)
    tokens = p.workload.batch_size * p.workload.output_len
    e2e = ranges.e2e_latency_s
    return {
        "ttft_s": p.ttft_s,
        "tpot_s": nan if p.tpot_s is None else p.tpot_s,
        "e2e_latency_s": p.e2e_latency_s,
        "output_throughput": p.output_throughput,
        "ttft_s_low": ranges.ttft_s.low,
        "ttft_s_high": ranges.ttft_s.high,
        "tpot_s_low": tpot.low,
        "tpot_s_high": tpot.high,
        "e2e_latency_s_low": e2e.low,
        "e2e_latency_s_high": e2e.high,
        "output_throughput_low": tokens / e2e.high,
        "output_throughput_high": tokens / e2e.low,
        "num_gpus": p.num_gpus,
        "memory_bytes": p.memory.used_bytes,
        "capacity_bytes": p.memory.capacity_bytes,
        "fits": p.memory.fits,
        "usd_per_request": nan if p.cost is None else p.cost.usd_per_request,
        "usd_per_million_output_tokens": (
            nan if p.cost is None else p.cost.usd_per_million_output_tokens
        ),
        "energy_j": nan if p.energy_j is None else p.energy_j,
        "mfu": p.mfu,
        "mbu": p.mbu,
    }


def check(found: dict[str, Any], i: int, expected: dict[str, Any] | str) -> None:
    if isinstance(expected, str):
        assert found["error"][i] == expected
        assert np.isnan(found["ttft_s"][i])
        return
    assert found["error"][i] == ""
    for name in METRICS:
        assert found[name][i] == pytest.approx(expected[name], rel=1e-12, nan_ok=True), name


@settings(max_examples=150, deadline=None)
@given(tables)
def test_every_row_is_that_of_predict(rows) -> None:
    found = predict_many(as_table(rows))
    for i, row in enumerate(rows):
        check(found, i, one_by_one(row))


@settings(max_examples=30, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(rows, random) -> None:
    picked = [random.randrange(len(rows)) for _ in range(3 * len(rows))]
    alone = predict_many(as_table(rows))
    again = predict_many(as_table([rows[i] for i in picked]), threads=2)
    for name, column in alone.items():
        np.testing.assert_array_equal(column[picked], again[name], err_msg=name)
