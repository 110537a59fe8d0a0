"""Tables of serving rows: the numbers of `rtsim.serve`, its refusals, and sweeps of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtsim import sweep_rows
from rtsim.bulk import SERVING, predict_many
from rtsim.cli.main import run
from rtsim.errors import RtsimError, SpecError, UnknownName
from rtsim.grid import make_grid
from rtsim.serving.serve import ServingPrediction, serve
from rtsim.sweep import sweep

# Rows of unlike systems, loads and limits; "" and NaN are cells that are missing.
ROWS = [
    {"model": "llama-3.1-70b", "gpu": "h100", "tp": 4, "concurrency": 100.0, "input_len": 1000},
    {"model": "llama-3.1-70b", "gpu": "h100", "tp": 4, "concurrency": 3000.0, "output_len": 1},
    {"model": "llama-3.1-70b", "gpu": "h100", "tp": 2, "concurrency": 2.5, "max_sequences": 2},
    {"model": "llama-3.1-70b", "gpu": "h100", "tp": 1, "concurrency": 1.0},
    {"model": "llama-3.1-70b", "gpu": "h200", "tp": 2, "pp": 2, "concurrency": 64.0,
     "gpu.hbm_bytes_per_s": "2x", "policy": "prefill-first", "token_budget": 2048},
    {"model": "mixtral-8x7b", "gpu": "b200", "tp": 2, "dp": 3, "concurrency": 50.0,
     "speculative_tokens": 3, "acceptance": 0.7, "draft_frac": 0.05, "stack": "trtllm"},
    {"model": "gpt-oss-20b", "gpu": "h100", "concurrency": 40.0, "input_len": 9000,
     "prefix_hit": 0.4, "memory_frac": 0.8, "stack": "sglang", "quantization": "mxfp4"},
    {"model": "deepseek-v3", "gpu": "h200", "attention_dp": 8, "ep": 8, "concurrency": 700.0,
     "quantization": "fp8", "input_len": 9000, "output_len": 3000},
]  # fmt: skip
NO_ROOM = 3  # the row whose weights do not fit
STATE = (
    "ttft_s", "ttft_alone_s", "tpot_s", "e2e_latency_s", "decode_step_s", "itl_mixed_s",
    "request_throughput", "output_throughput", "gpu_throughput", "running", "decoding",
    "largest_running", "limit", "prompt_frac",
)  # fmt: skip


def as_table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def one_by_one(row: dict[str, Any]) -> ServingPrediction:
    changes = {name: value for name, value in row.items() if "." in name}
    given = {name: value for name, value in row.items() if name not in ("model", "gpu", *changes)}
    return serve(row["model"], row["gpu"], **given, **({"set": changes} if changes else {}))


def test_rows_are_those_of_serve() -> None:
    found = predict_many(as_table(ROWS))
    limits = set()
    for i, row in enumerate(ROWS):
        if i == NO_ROOM:
            with pytest.raises(SpecError) as caught:
                one_by_one(row)
            assert found["error"][i] == str(caught.value)
            assert not found["fits"][i]
            assert np.isnan(found["ttft_s"][i])
            continue
        made = one_by_one(row)
        assert (found["error"][i], found["fits"][i]) == ("", True)
        cost = made.cost
        expected = {
            **{name: getattr(made.state, name) for name in STATE},
            "num_gpus": made.num_gpus, "cache_frac": made.cache_frac, "energy_j": made.energy_j,
            "usd_per_request": cost and cost.usd_per_request,
            "usd_per_million_output_tokens": cost and cost.usd_per_million_output_tokens,
        }  # fmt: skip
        for name in ("ttft_s", "tpot_s"):
            ends = made.interval_90[name] or (None, None)
            expected |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
        for name, value in expected.items():
            if isinstance(value, str):
                assert found[name][i] == value
            else:
                plain = np.nan if value is None else value
                assert found[name][i] == pytest.approx(plain, rel=1e-12, nan_ok=True), (i, name)
        limits.add(made.state.limit)
        assert found["e2e_latency_s_low"][i] < made.state.e2e_latency_s
        assert found["memory_bytes"][i] <= found["capacity_bytes"][i]
    assert limits == {"concurrency", "cache", "max_sequences"}


def test_rows_do_not_depend_on_each_other() -> None:
    table = as_table(ROWS * 3)
    order = np.random.default_rng(3).permutation(len(ROWS) * 3)
    mixed = predict_many({name: [c[i] for i in order] for name, c in table.items()}, threads=2)
    alone = predict_many(as_table(ROWS))
    for name, column in alone.items():
        np.testing.assert_array_equal(mixed[name], column[order % len(ROWS)], err_msg=name)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"concurrency": 0}, "concurrency = 0: must be above 0"),
        ({"concurrency": None}, "must be above 0"),
        ({"concurrency": 1, "prefix_hit": 1}, "from 0 to below 1"),
        ({"concurrency": 1, "input_len": 1.5}, "input_len"),
        ({"concurrency": 1, "output_len": 0}, "output_len"),
        ({"concurrency": 1, "speculative_tokens": 0.5}, "speculative_tokens"),
        ({"concurrency": 1, "acceptance": 2}, "acceptance"),
        ({"concurrency": 1, "draft_frac": -1}, "draft_frac"),
        ({"concurrency": 1, "memory_frac": 0}, "memory_frac"),
        ({"concurrency": 1, "token_budget": 0}, "token_budget"),
        ({"concurrency": 1, "max_sequences": 0}, "max_sequences"),
        ({"concurrency": 1, "model": "bert-large"}, "must be a decoder"),
        ({"concurrency": 1, "model": "opt-13b", "input_len": 4000}, "2048 learned positions"),
        ({"concurrency": 1, "input_len": 10_000_000}, "not one request of these lengths fits"),
    ],
    ids=str,
)
def test_a_load_that_is_none_has_an_error(load: dict[str, Any], words: str) -> None:
    table = {"model": "llama-3.1-8b", "gpu": "h100", **load}
    good = {"model": "llama-3.1-8b", "gpu": "h100", "concurrency": 1, "input_len": 9}
    found = predict_many(as_table([table, good]))
    assert words in found["error"][0]
    assert np.isnan(found["ttft_s"][0])
    assert not found["fits"][0]
    assert found["num_gpus"][0] == 0
    assert found["error"][1] == ""


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        ({"concurrency": 1, "policy": "static"}, UnknownName, "known: mixed, prefill-first"),
        ({"concurrency": "many"}, SpecError, "must be a number"),
        ({"concurrency": 1, "batch_size": 4}, SpecError, "the engine batches"),
        ({"concurrency": 1, "micro_batches": 4}, SpecError, "the engine splits"),
        ({"prefix_hit": 0.5}, SpecError, "concurrency: is needed with prefix_hit"),
        ({"concurency": 1}, SpecError, "nearest: concurrency"),
    ],
    ids=str,
)
def test_columns_that_do_not_go_together(
    columns: dict[str, Any], error: type[RtsimError], words: str
) -> None:
    with pytest.raises(error, match=words):
        predict_many({"model": "llama-3.1-8b", "gpu": "h100", **columns})


# Sweeps ------------------------------------------------------------------------------------------

GRID: dict[str, Any] = {
    "model": "llama-3.1-70b", "gpu": "h100,b200", "tp": "1,4", "gpu.hbm_bytes_per_s": "1x,2x",
    "concurrency": "1:512:x8", "prefix_hit": "0:0.5:0.5", "policy": "mixed,prefill-first",
    "input_len": 1000, "output_len": "64,256",
}  # fmt: skip
COMMAND = ["sweep", "--arch", "llama-3.1-70b", "--gpu", "h100", "--tp", "4"]


def test_a_sweep_has_the_rows_of_its_table() -> None:
    found = sweep(GRID)
    axes = {name: found.columns[name].tolist() for name in make_grid(GRID).axes}
    expected = predict_many(axes)
    assert found.n_failed > 0
    for name in (*SERVING.metrics, "error"):
        np.testing.assert_array_equal(found.columns[name], expected[name], err_msg=name)


def test_a_stopped_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_rows, "_LEAST_PART", 16)
    whole, again = tmp_path / "whole.csv", tmp_path / "again.csv"
    sweep(GRID, where="limit != 'cache'", output=whole)

    def stop(done: int, total: int) -> None:
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(GRID, where="limit != 'cache'", output=again, progress=stop, threads=1)
    assert any(Path(f"{again}.parts").glob("*.npy"))
    sweep(GRID, where="limit != 'cache'", output=again)
    assert again.read_bytes() == whole.read_bytes()
    rows = list(csv.DictReader(whole.read_text(encoding="utf-8").splitlines()))
    assert {row["limit"] for row in rows} == {"concurrency", ""}


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_files_hold_the_limit_as_text(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    grid = {**GRID, "tp": 4, "concurrency": "8,4096"}
    sweep(grid, output=path)
    if ending == "json":
        limits = {row["limit"] for row in json.loads(path.read_text(encoding="utf-8"))}
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        limits = set(parquet.read_table(path)["limit"].to_pylist())
    assert limits == {"concurrency", "cache", "max_sequences"}


def test_the_command_thins_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "front.svg"
    options = ["--concurrency", "1:4096:x4", "--where", "limit == 'concurrency'", "--pareto",
               "tpot_s,max:gpu_throughput", "--plot", str(file)]  # fmt: skip
    assert run([*COMMAND, *options]) == 0
    out = capsys.readouterr().out
    assert "In flight" in out
    assert "7 rows, 5 rows kept" in out
    assert file.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prefix-hit", "0.5"], "concurrency: is needed with prefix_hit"),
        (["--concurrency", "1:8", "--batch-size", "4"], "the engine batches"),
        (["--concurrency", "1", "--policy", "mixd"], "nearest: mixed"),
        (["--concurrency", "1", "--acceptance", "most"], "must be a number"),
        (["--concurrency", "0"], "none has a prediction: concurrency = 0: must be above 0"),
        (["--concurrency", "1", "--sort", "limit"], "unknown column 'limit'"),
        (["--concurrency", "1", "--where", "mfu > 0"], "unknown column 'mfu'"),
    ],
)
def test_bad_options(refused, options: list[str], words: str) -> None:
    assert words in refused(*COMMAND, *options)
