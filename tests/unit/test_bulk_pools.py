"""Pools for prompts and for decoding in tables and sweeps: the numbers of `rtsim.serve`."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import rtsim
from rtsim.cli.main import run as program
from rtsim.errors import RtsimError, SpecError

DENSE = {"model": "llama-3.1-70b", "gpu": "h100", "tp": 4, "input_len": 1000, "output_len": 200}
GROUPS = {
    "model": "deepseek-v3", "gpu": "b200", "attention_dp": 8, "ep": 8, "input_len": 3000,
    "output_len": 100,
}  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {**DENSE, "concurrency": 64, "prefill_workers": 2, "decode_workers": 3},
    {**DENSE, "concurrency": 64},  # no pools beside rows with some
    {**DENSE, "concurrency": 300, "prefill_workers": 2, "prefill_tp": 8, "prefix_hit": 0.5},
    {**DENSE, "concurrency": 16, "prefill_workers": 1, "output_len": 1},
    {**DENSE, "concurrency": 16, "prefill_workers": 1, "token_budget": 512, "policy": "mixed"},
    {
        **DENSE, "concurrency": 40, "prefill_workers": 1, "decode_workers": 2,
        "speculative_tokens": 2, "acceptance": 0.7,
    },
    {**GROUPS, "concurrency": 5000, "prefill_workers": 2, "decode_workers": 1},
    {**DENSE, "gpu.hbm_bytes_per_s": "2x", "concurrency": 64, "prefill_workers": 1},
    {**DENSE, "link.bytes_per_s": "0.25x", "concurrency": 64, "prefill_workers": 1},
]  # fmt: skip
WRONG: list[dict[str, Any]] = [
    {**DENSE, "concurrency": 16, "decode_workers": 2},
    {**DENSE, "concurrency": 16, "prefill_tp": 2},
    {**DENSE, "concurrency": 16, "prefill_workers": 0},
    {**DENSE, "concurrency": 16, "prefill_workers": 1.5},
    {**DENSE, "concurrency": 16, "prefill_workers": 1, "decode_workers": -1},
    {**DENSE, "concurrency": 16, "prefill_workers": 1, "prefill_tp": 3},
    {**DENSE, "concurrency": -1, "prefill_workers": 1},
]


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def served(row: dict[str, Any]) -> rtsim.ServingPrediction:
    changes = {name: value for name, value in row.items() if "." in name}
    asked = {name: value for name, value in row.items() if "." not in name}
    given = asked.pop("model"), asked.pop("gpu"), asked.pop("concurrency")
    return rtsim.serve(*given, **asked, **({"set": changes} if changes else {}))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return rtsim.predict_many(table(ROWS))


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_rows_are_those_of_serve(i: int, found: dict[str, Any]) -> None:
    one = served(ROWS[i])
    assert found["error"][i] == ""
    for name in (
        "ttft_s", "ttft_alone_s", "tpot_s", "e2e_latency_s", "request_throughput",
        "output_throughput", "gpu_throughput", "running", "decoding", "largest_running",
    ):  # fmt: skip
        stated = getattr(one.state, name)
        expected = math.nan if stated is None else stated
        assert found[name][i] == pytest.approx(expected, rel=1e-12, nan_ok=True), name
    assert found["num_gpus"][i] == one.num_gpus
    assert found["limit"][i] == one.state.limit
    assert found["cache_frac"][i] == pytest.approx(one.cache_frac, rel=1e-12)
    assert one.cost is not None
    assert found["usd_per_request"][i] == pytest.approx(one.cost.usd_per_request, rel=1e-12)
    assert found["energy_j"][i] == pytest.approx(one.energy_j, rel=1e-12)
    low, high = one.interval_90["ttft_s"]
    assert found["ttft_s_low"][i] == pytest.approx(low, rel=1e-12)
    assert found["ttft_s_high"][i] == pytest.approx(high, rel=1e-12)


def test_a_row_does_not_depend_on_its_neighbours(found: dict[str, Any]) -> None:
    again = rtsim.predict_many(table(ROWS[::-1]), threads=1)
    for name in ("ttft_s", "tpot_s", "usd_per_request"):
        assert np.array_equal(again[name][::-1], found[name], equal_nan=True)


@pytest.mark.parametrize("row", WRONG)
def test_what_serve_refuses_is_an_error_of_the_row(row: dict[str, Any]) -> None:
    with pytest.raises(RtsimError) as refused:
        served(row)
    both = rtsim.predict_many(table([row, ROWS[0]]))
    assert both["error"].tolist() == [str(refused.value), ""]
    assert math.isnan(both["ttft_s"][0])
    assert both["ttft_s"][1] > 0.0


def test_gpus_follow_from_the_workers() -> None:
    with pytest.raises(SpecError, match=r"num_gpus.*follows from the workers"):
        rtsim.predict_many(table([{**ROWS[0], "num_gpus": 8}]))
    with pytest.raises(SpecError, match=r"concurrency.*is needed with prefill_workers"):
        rtsim.predict_many(table([{**DENSE, "prefill_workers": 2}]))


def test_a_sweep_over_workers(capsys: pytest.CaptureFixture[str]) -> None:
    asked = (
        "sweep --arch llama-3.1-70b --gpu h100 --tp 4 --concurrency 64 --prefill-workers 1,2 "
        "--decode-workers 1,3 --input-len 1k --output-len 200 --json"
    )
    assert program(asked.split()) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert sorted((r["prefill_workers"], r["decode_workers"], r["num_gpus"]) for r in rows) == [
        (1, 1, 8), (1, 3, 16), (2, 1, 12), (2, 3, 20),
    ]  # fmt: skip
