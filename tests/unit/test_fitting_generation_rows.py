"""Rows of generation tables: the model is the shape, and many rows are predicted as one is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtsim.catalog import load_model
from rtsim.errors import UnknownName
from rtsim.fitting.generation_rows import PROMPT_ONLY, WITH_DECODE, model_of, predict_rows
from rtsim.measurements import Columns
from rtsim.predict import predict

DAVINCI: dict[str, Any] = {
    "gpu": "A100-SXM4-80GB",
    "stack": "megatron-lm",
    "dtype": "fp16",
    "model": "openai_davinci",
    "num_layers": 96,
    "hidden_size": 12288,
    "num_heads": 96,
    "num_kv_heads": 96,
    "head_dim": 128,
    "ffn_size": 49152,
    "gated_mlp": 0,
    "vocab_size": 51200,
    "max_positions": 2048,
    "tp": 8,
    "pp": 1,
    "num_gpus": 8,
    "batch": 1,
    "prompt_tokens": 512,
    "output_tokens": 64,
    "runtime_s": 5.326,
}


def columns_of(*rows: dict[str, Any]) -> Columns:
    full = [{**DAVINCI, **row} for row in rows]
    return {name: np.array([row[name] for row in full]) for name in DAVINCI}


def test_parameters_are_those_the_run_printed() -> None:
    printed_per_gpu = 21_855_215_616  # by the measured run, tp 8
    assert model_of(DAVINCI).parameters == pytest.approx(8 * printed_per_gpu, rel=0.005)


def test_what_is_not_stated_follows_from_the_shape() -> None:
    bare = {**DAVINCI, "num_kv_heads": 0, "head_dim": 0, "max_positions": 0}
    attention = model_of(bare).layers[0].attention
    assert (attention.n_kv_heads, attention.head_dim) == (96, 128)


def test_gated_shapes_are_of_the_llama_kind() -> None:
    llama = load_model("llama-2-7b")
    row = {
        **DAVINCI,
        "num_layers": 32,
        "hidden_size": 4096,
        "num_heads": 32,
        "num_kv_heads": 32,
        "ffn_size": 11008,
        "gated_mlp": 1,
        "vocab_size": 32000,
    }
    assert model_of(row).parameters == llama.parameters


def test_rows_are_predicted_as_one_by_one() -> None:
    lengths = [(512, 1), (512, 64), (1024, 32), (7, 3)]
    rows = [{"prompt_tokens": prompt, "output_tokens": output} for prompt, output in lengths]
    times = predict_rows(columns_of(*rows), None)["runtime"]
    assert times.skip.tolist() == [""] * len(rows)
    assert times.regime is not None
    assert times.regime.tolist() == [PROMPT_ONLY, *[WITH_DECODE] * 3]
    for i, (prompt, output) in enumerate(lengths):
        one = predict(
            model_of(DAVINCI), "a100", tp=8, stack="megatron-lm", input_len=prompt,
            output_len=output, dtype="fp16", compiled=False,
        )  # fmt: skip
        assert times.predicted_s[i] == pytest.approx(one.e2e_latency_s, rel=1e-9)
        interval = one.interval_90.e2e_latency_s
        assert times.low_s[i] == pytest.approx(interval.low, rel=1e-6)
        assert times.high_s[i] == pytest.approx(interval.high, rel=1e-6)


def test_impossible_rows_say_why() -> None:
    times = predict_rows(
        columns_of(
            {"gpu": "Z9000"},
            {"stack": "no-such-stack"},
            {"tp": 7, "num_gpus": 7},
            {"num_gpus": 9},
            {},
        ),
        None,
    )["runtime"]
    for reason, words in zip(
        times.skip.tolist(), ["Z9000", "no-such-stack", "tp = 7", "num_gpus = 9", ""], strict=True
    ):
        assert words in reason
    assert np.isnan(times.predicted_s).tolist() == [True] * 4 + [False]


def test_a_named_profile_serves_every_stack() -> None:
    columns = columns_of({"stack": "no-such-stack"})
    assert predict_rows(columns, "megatron-lm-a100-sxm4-80gb")["runtime"].skip.tolist() == [""]
    with pytest.raises(UnknownName):
        predict_rows(columns, "no-such-profile")
