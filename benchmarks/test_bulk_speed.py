"""How fast many predictions are. Not part of the test run:

    python -m pytest benchmarks/test_bulk_speed.py --benchmark-enable

"extra_info" of --benchmark-json has rows a second and, since times of other machines mean little,
the time of a row as a multiple of one `System.times` call. `scripts/speed.py` writes docs/speed.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtsim.bulk import predict_many, warm_up
from rtsim.named_system import system
from rtsim.specs import ModelSpec
from rtsim.sweep import sweep

BASE: dict[str, Any] = {"model": "llama-3.1-70b", "gpu": "h100", "tp": 8}
BATCHES = [2**i for i in range(10)]
PROMPTS = [2**i for i in range(7, 17)]
OUTPUTS = [2**i for i in range(10)]
SIZES = {"batch_size": BATCHES, "input_len": PROMPTS, "output_len": OUTPUTS}
MILLION: dict[str, Any] = {
    "model": "llama-3.1-70b", "gpu": "a100,h100,h200,b200", "tp": "1,2,4,8",
    "gpu.hbm_bytes_per_s": [1e12 * 1.025**i for i in range(63)], **SIZES,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


def one_call_s() -> float:
    made = system("llama-3.1-70b", "h100", 8)

    def batch() -> float:
        start = time.perf_counter()
        for _ in range(200):
            made.times(8, 1024, 256)
        return (time.perf_counter() - start) / 200

    return min(batch() for _ in range(5))


def timed(benchmark: Any, function: Callable[[], Any], n_rows: int, rounds: int = 3) -> Any:
    """Benchmark a call, and note the rate of its rows."""
    result = benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
    if benchmark.stats:
        row_s = benchmark.stats.stats.min / n_rows
        benchmark.extra_info["rows_per_s"] = round(1.0 / row_s)
        benchmark.extra_info["row_of_one_call"] = round(row_s / one_call_s(), 4)
    return result


@pytest.mark.parametrize("n_systems", [1, 10, 100, 1000])
def test_rows(benchmark: Any, n_systems: int) -> None:
    """Thousand workloads on each of some systems, in memory; cost per row against rows."""
    grid = {**BASE, "gpu.hbm_bytes_per_s": [1e12 + 1e9 * i for i in range(n_systems)], **SIZES}
    found = timed(benchmark, lambda: sweep(grid, where="ttft_s < 0"), 1000 * n_systems)
    assert found.n_rows == 1000 * n_systems


@pytest.mark.parametrize("n_rows", [1, 100])
def test_few_rows(benchmark: Any, n_rows: int) -> None:
    """What a call costs beside its rows."""
    table = {**BASE, "batch_size": np.arange(1, n_rows + 1)}
    assert len(timed(benchmark, lambda: predict_many(table), n_rows, 20)["ttft_s"]) == n_rows


@pytest.mark.parametrize("n_kinds", [1, 8, 32])
def test_operators(benchmark: Any, n_kinds: int) -> None:
    """Cost per row against the operators of a step: kinds of layers that differ."""
    layer = {"count": 4, "attention": {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128}}
    layers = [{**layer, "mlp": {"ffn_size": 8192 + 512 * i}} for i in range(n_kinds)]
    model = ModelSpec.from_mapping(
        {"name": "layered", "hidden_size": 4096, "vocab_size": 32000, "max_positions": 10**6,
         "layers": layers}
    )  # fmt: skip
    grid = {"model": [model], "gpu": "h100", **SIZES}
    assert timed(benchmark, lambda: sweep(grid), 1000).n_kept == 1000
    benchmark.extra_info["operators"] = len(system(model, "h100").table.rows)


@pytest.mark.parametrize("path", ["gpu.hbm_bytes_per_s", "gpu.peak_bf16_flops_per_s"])
def test_systems(benchmark: Any, path: str) -> None:
    """Systems a second: a bandwidth is written into known rows, another figure makes them anew."""
    made = iter(range(10**6))

    def fresh() -> Any:
        start = 1e12 + 1e9 * next(made)
        table = {**BASE, path: start + 1e3 * np.arange(500), "batch_size": 8}
        return predict_many(table, threads=1)

    assert (timed(benchmark, fresh, 500)["error"] == "").all()


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_a_table_of_a_million_rows(benchmark: Any, order: str) -> None:
    """`predict_many` of columns, in the order of a grid and in none."""
    made = sweep(MILLION).columns
    rows = np.arange(len(made["tp"]))
    if order == "shuffled":
        np.random.default_rng(1).shuffle(rows)
    names = ("model", "gpu", "tp", "gpu.hbm_bytes_per_s", *SIZES)
    table = {name: made[name][rows] for name in names}
    found = timed(benchmark, lambda: predict_many(table), len(rows))
    np.testing.assert_array_equal(found["e2e_latency_s"], made["e2e_latency_s"][rows])


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_million_rows_to_a_file(benchmark: Any, tmp_path: Path, ending: str) -> None:
    """Budget: 5 s to Parquet. CSV a tenth of that many rows."""
    grid = MILLION if ending == "parquet" else {**MILLION, "gpu.hbm_bytes_per_s": "1e12:7e12:1e12"}
    path = tmp_path / f"out.{ending}"
    result = timed(benchmark, lambda: sweep(grid, output=path), 1_008_000 if ending == "parquet"
                   else 112_000)  # fmt: skip
    assert result.n_kept == result.n_rows
