"""Text and JSON of a prediction."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from rtsim.console import to_text
from rtsim.prediction import (
    Cost,
    GpuSummary,
    Interval,
    Intervals,
    MemoryUse,
    ModelSummary,
    OperatorTime,
    ParallelismSummary,
    Prediction,
    WorkloadSummary,
)
from rtsim.report import merge_phases, prediction_to_json, prediction_view

PREDICTION = Prediction(
    model=ModelSummary("gpt3-175b", 174_600_000_000, 174_600_000_000),
    gpu=GpuSummary("a100-sxm4-80gb", 312e12, 2.039e12, 85.9e9, 400.0),
    stack="megatron-lm",
    profile="megatron-lm-a100",
    num_gpus=8,
    parallelism=ParallelismSummary(tp=8),
    workload=WorkloadSummary(1, 512, 64, "fp16", "fp16"),
    ttft_s=0.179,
    tpot_s=0.0817,
    e2e_latency_s=5.326,
    output_throughput=12.016,
    prefill_flops=1.79e14,
    decode_flops=2.2e13,
    mfu=0.13,
    mbu=0.42,
    memory=MemoryUse(43.7e9, 0.35e9, 0.5e9, 2e9, 85.9e9, True),
    cost=Cost(0.0405, 634.0, 3.43, "a cloud [list price], 2026-09-01"),
    energy_j=17_000.0,
    interval_90=Intervals(Interval(0.16, 0.2), Interval(0.078, 0.085), Interval(5.1, 5.6)),
    breakdown=(
        OperatorTime("QKV projection", "prefill", 96, 0.04, "compute", 4e13, 1e10),
        OperatorTime("QKV projection", "decode", 96 * 63, 1.2, "memory", 4e12, 6e11),
        OperatorTime("attention output projection", "decode", 96 * 63, 3.0, "memory", 1e12, 2e11),
        OperatorTime("final norm", "prefill", 1, 1e-5, "latency", 1e3, 1e4),
        OperatorTime("sampling", "decode", 63, 1e-5, "latency", 1e3, 1e4),
    ),
    sources=("a paper",),
    notes=("a note that goes on " * 8,),
    assumed=("stack = megatron-lm (the best evidence for this GPU)",),
)


def test_json_holds_the_contract() -> None:
    body = prediction_to_json(PREDICTION)
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert {"name", "parameters", "active_parameters"} <= set(body["model"])
    assert body["gpu"]["name"] == "a100-sxm4-80gb"
    for key in ("ttft_s", "tpot_s", "e2e_latency_s", "output_throughput", "mfu", "mbu"):
        assert body[key] == getattr(PREDICTION, key)
    for key in ("prefill_flops", "decode_flops", "energy_j", "num_gpus", "stack"):
        assert body[key] == getattr(PREDICTION, key)
    memory = {"weights_bytes", "kv_cache_bytes", "activation_bytes", "capacity_bytes", "fits"}
    assert memory <= set(body["memory"])
    assert {"usd_per_request", "usd_per_million_output_tokens"} <= set(body["cost"])
    assert body["interval_90"] == {
        "ttft_s": [0.16, 0.2],
        "tpot_s": [0.078, 0.085],
        "e2e_latency_s": [5.1, 5.6],
    }
    operator = {"operator", "count", "time_s", "bound", "flops", "bytes"}
    assert all(operator <= set(row) for row in body["breakdown"])
    assert body["sources"] == ["a paper"]
    assert body["notes"]


def test_json_of_one_token_without_price_or_power() -> None:
    intervals = dataclasses.replace(PREDICTION.interval_90, tpot_s=None)
    bare = dataclasses.replace(
        PREDICTION, tpot_s=None, cost=None, energy_j=None, interval_90=intervals
    )
    body = prediction_to_json(bare)
    assert body["tpot_s"] is body["cost"] is body["energy_j"] is None
    assert body["interval_90"]["tpot_s"] is None
    text = to_text(prediction_view(bare))
    assert "it comes with the prompt" in text
    assert "no price is known" in text


def test_phases_merge_into_one_line() -> None:
    lines = merge_phases(PREDICTION.breakdown)
    assert [line.operator for line in lines] == [
        "attention output projection",
        "QKV projection",
        "2 smaller operators",
    ]
    qkv = lines[1]
    assert qkv.time_s == pytest.approx(1.24)
    assert qkv.bound == "compute/memory"
    assert qkv.flops == pytest.approx(4.4e13)
    assert sum(line.share_frac for line in lines) == pytest.approx(1.0)
    assert sum(line.time_s for line in lines) == pytest.approx(
        sum(row.time_s for row in PREDICTION.breakdown)
    )


def test_text_is_plain_and_narrow() -> None:
    text = to_text(prediction_view(PREDICTION))
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    for shown in (
        "gpt3-175b (175 B parameters) on 8 x a100-sxm4-80gb, tp 8",
        "batch 1, prompt 512, output 64, fp16, stack megatron-lm",
        "179 ms",
        "81.7 ms",
        "5.33 s",
        "90% within 5.10 s to 5.60 s",
        "$0.0405",
        "price: a cloud [list price], 2026-09-01",  # brackets are no markup
        "of 85.9 GB: fits",
        "QKV projection",
        "compute/memory",
        "stack = megatron-lm",
        "a paper",
    ):
        assert shown in text, shown


@pytest.mark.parametrize("peak", [71e12, 312e12, 989.4e12, 1.25e15])
def test_the_peak_stays_on_its_line(peak: float) -> None:
    gpu = dataclasses.replace(PREDICTION.gpu, peak_flops_per_s=peak)
    text = to_text(prediction_view(dataclasses.replace(PREDICTION, gpu=gpu)))
    (line,) = (line for line in text.splitlines() if "(MFU)" in line)
    assert line.endswith("per GPU, dense fp16")


@pytest.mark.parametrize(
    ("tp", "words"), [(16, "smallest that fits +tp 16"), (None, "fits +none +within one node")]
)
def test_what_does_not_fit_says_so(tp: int | None, words: str) -> None:
    memory = dataclasses.replace(PREDICTION.memory, fits=False, smallest_fitting_tp=tp)
    text = to_text(prediction_view(dataclasses.replace(PREDICTION, memory=memory)))
    assert "of 85.9 GB: DOES NOT FIT\n" in text
    assert re.search(words, text)


def test_empty_breakdown_is_no_fault() -> None:
    assert merge_phases(()) == []


@pytest.mark.parametrize(
    ("keeps", "label"),
    [("keys and values", "  KV cache "), ("states", "  states "),
     ("keys and values, states", "  KV cache, states "), ("nothing", None)],
)  # fmt: skip
def test_what_is_kept_has_its_name(keeps: str, label: str | None) -> None:
    model = dataclasses.replace(PREDICTION.model, keeps=keeps)
    text = to_text(prediction_view(dataclasses.replace(PREDICTION, model=model)))
    lines = [line for line in text.splitlines() if "350 MB" in line]
    assert [label is not None and line.startswith(label) for line in lines] == [True] * bool(label)


def test_an_encoder_has_one_pass_and_no_output() -> None:
    encoder = dataclasses.replace(
        PREDICTION,
        model=dataclasses.replace(PREDICTION.model, kind="encoder", keeps="nothing"),
        workload=WorkloadSummary(4, 512, 1, "fp16", "fp16"),
        tpot_s=None, e2e_latency_s=0.5,
    )  # fmt: skip
    text = to_text(prediction_view(encoder))
    assert "Time of the pass" in text
    assert re.search(r"Input throughput +4,096 tokens/s", text)
    assert re.search(r"Cost per million tokens +\$79\.10 +of input", text)
    for word in ("first token", "output token", "Decode", "of output", "KV cache"):
        assert word not in text, word


def test_work_that_ranks_repeat_is_said_to_be_in() -> None:
    alone = dataclasses.replace(PREDICTION, num_gpus=1, parallelism=ParallelismSummary())
    assert "what ranks repeat included" in to_text(prediction_view(PREDICTION))
    assert "what ranks repeat" not in to_text(prediction_view(alone))
