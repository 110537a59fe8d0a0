"""Columns that say how a row was timed: what fits and predictions make of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtsim.calibrate import calibrate
from rtsim.catalog import load_gpu
from rtsim.errors import SpecError
from rtsim.fitting import attention, gemm, generation, kernel_rows, kinds, memory_bound, resolve
from rtsim.fitting.gemm_method import method_of
from rtsim.fitting.gemm_priors import coefficients_for
from rtsim.fitting.generation_rows import predict_rows, with_traits
from rtsim.profile import load_profile
from rtsim.table_text import write_table
from rtsim.validate import validate

GPU = "h100-sxm5-80gb"


def columns(count: int, /, **values: Any) -> dict[str, np.ndarray]:
    return {name: np.resize(np.asarray(value), count) for name, value in values.items()}


def products(**more: Any) -> dict[str, np.ndarray]:
    return columns(3, gpu="H100", stack="pytorch", dtype="bf16", m=1, n=4096, k=4096, batch=1,
                   time_us=10.0, **more)  # fmt: skip


SAID = {"residency": ["cold", "warm", ""]}
ALL = np.arange(3)


# What the L2 held --------------------------------------------------------------------------------


def test_weights_of_a_product_are_where_the_row_says() -> None:
    copies = gemm.rows_of(products(**SAID), ALL).weight_copies
    assert copies.tolist() == [math.inf, 1.0, method_of("pytorch", "bf16").weight_copies]
    assert gemm.rows_of(products(), ALL).weight_copies.tolist() == [1.0, 1.0, 1.0]


def test_operands_of_attention_and_memory_bound_operators_are_where_the_row_says() -> None:
    heads = {"num_heads": 8, "num_kv_heads": 8, "head_dim": 128, "window_size": 0, "causal": 1}
    table = columns(3, gpu="H100", stack="pytorch", dtype="bf16", kv_dtype="bf16", batch=4,
                    query_tokens=1, context_tokens=2048, time_us=10.0, **heads, **SAID)  # fmt: skip
    rows = attention.rows_of(table, ALL, attention.DECODE, load_gpu)
    assert rows.warm_frac.tolist() == [0.0, 1.0, 1.0]
    table = columns(3, gpu="H100", stack="vllm", dtype="bf16", op=["add", "embedding", "embedding"],
                    rows=64, cols=4096, time_us=10.0, **SAID)  # fmt: skip
    assert memory_bound.rows_of(table, ALL).warm_frac.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", ["gemm", "moe", "elementwise", "attention_decode"])
def test_cold_operands_take_longer(kind: str) -> None:
    """Sizes that fit the L2: read from there, they take less time."""
    shared = {"gpu": "H100", "stack": "pytorch", "dtype": "bf16", "kernel": "", "timing": "graph",
              "time_us": 10.0, "residency": ["cold", "warm"]}  # fmt: skip
    sizes: dict[str, dict[str, Any]] = {
        "gemm": {"op": "linear", "m": 1, "n": 4096, "k": 2048, "batch": 1},
        "moe": {"distribution": "balanced", "num_tokens": 16, "hidden_size": 1024, "top_k": 2,
                "intermediate_size": 512, "num_experts": 8, "tp": 1, "ep": 1},
        "elementwise": {"op": "add", "rows": 512, "cols": 4096},
        "attention_decode": {"kv_dtype": "bf16", "causal": 1, "batch": 8, "query_tokens": 1,
                             "context_tokens": 512, "num_heads": 32, "num_kv_heads": 8,
                             "head_dim": 128, "window_size": 0},
    }  # fmt: skip
    predictor = getattr(kernel_rows, f"predict_{kind}")
    times = predictor(columns(2, **shared, **sizes[kind]), "vllm-h100-sxm5-80gb")["time"]
    assert times.skip.tolist() == ["", ""]
    cold, warm = times.predicted_s
    assert cold > 1.02 * warm


# Whether the launch is in the time ---------------------------------------------------------------


def test_priors_of_a_launch_follow_how_rows_were_timed() -> None:
    def launched(**more: Any) -> bool:
        (block,) = kinds.blocks_of("gemm", products(**more), ALL, load_gpu, "pytorch")
        return block.launched

    assert launched()  # as the library's tables are made
    assert launched(timing="events")
    assert not launched(timing="graph")
    (block,) = kinds.blocks_of("gemm", {**products(timing="wall"), "stack": np.full(3, "vllm")},
                               ALL, load_gpu, "vllm")  # fmt: skip
    assert block.launched
    eager, graph = (
        {c.name: c.prior for c in coefficients_for("pytorch", "bf16", flag)}["launch_clocks"]
        for flag in (True, False)
    )
    assert eager > 5 * graph


def test_rows_with_their_launch_are_not_fitted_beside_rows_without(tmp_path: Path) -> None:
    table = products_table(40)
    table["timing"] = np.resize(["graph", "graph", "graph", "events"], 40)
    table["time_us"] = np.where(table["timing"] == "events", 40.0, 10.0)
    write_table(tmp_path / "gemm.csv", table)
    result = calibrate(tmp_path, GPU, "pytorch")
    assert result.sections[0].rows == 30
    assert "gemm.bf16: 10 rows timed with their launch are not fitted" in " ".join(result.notes)
    table["timing"] = np.full(40, "events")
    write_table(tmp_path / "gemm.csv", table)
    assert calibrate(tmp_path, GPU, "pytorch").sections[0].rows == 40


@pytest.mark.parametrize("kind", ["gemm", "elementwise"])
def test_a_profile_of_eager_calls_predicts_replayed_ones_without_their_launch(kind: str) -> None:
    sizes: dict[str, Any] = {"op": "linear", "m": 16, "n": 1024, "k": 1024, "batch": 1}
    if kind == "elementwise":
        sizes = {"op": "add", "rows": 16, "cols": 4096}
    table = columns(2, gpu="A100-PCIE-40GB", stack="pytorch", dtype="fp32",
                    timing=["graph", ""], time_us=10.0, **sizes)  # fmt: skip
    predictor = getattr(kernel_rows, f"predict_{kind}")
    replayed, issued = predictor(table, "pytorch-a100-pcie-40gb")["time"].predicted_s
    assert issued > 15e-6
    assert replayed < issued - 12e-6
    own = predictor({**table, "dtype": np.full(2, "bf16")}, "vllm-h100-sxm5-80gb")["time"]
    if kind == "gemm":
        assert own.predicted_s[0] == own.predicted_s[1]  # it never held one


def products_table(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {**columns(rows, gpu="H100-SXM5-80GB", stack="pytorch", dtype="bf16", batch=1,
                      time_us=10.0),
            "m": 16 * rng.permutation(np.arange(1, rows + 1)), "n": 128 * rng.integers(2, 16, rows),
            "k": 128 * rng.integers(2, 16, rows)}  # fmt: skip


# What a row is for -------------------------------------------------------------------------------


def test_rows_kept_for_validation_are_not_fitted_and_are_told_apart(tmp_path: Path) -> None:
    table = products_table(40)
    table["timing"] = np.full(40, "graph")
    table["role"] = np.resize(["calibration", "", "validation", "variant"], 40)
    table["time_us"] = np.where(np.isin(table["role"], ["validation", "variant"]), 500.0, 10.0)
    write_table(tmp_path / "gemm.csv", table)
    result = calibrate(tmp_path, GPU, "pytorch", output=tmp_path / "p.toml")
    assert result.files[0].skipped == {"kept for validation": 10, "not the usual kernel": 10}
    assert result.files[0].used == 20
    report = validate(tmp_path, str(tmp_path / "p.toml")).files[0].metrics["time"].by["role"]
    assert set(report) == {"calibration", "validation", "variant"}
    assert report["calibration"].mape < 0.5
    assert report["validation"].bias < -0.9  # the fit saw none of the slow ones


# Whole generations -------------------------------------------------------------------------------


def generations(**changes: Any) -> dict[str, np.ndarray]:
    values = {
        "gpu": "H100-SXM5-80GB", "stack": "mine", "dtype": "bf16", "model": "m", "num_layers": 8,
        "hidden_size": 2048, "num_heads": 16, "num_kv_heads": 4, "head_dim": 128, "ffn_size": 4096,
        "gated_mlp": 1, "vocab_size": 32000, "max_positions": 4096, "tp": 1, "pp": 1, "num_gpus": 1,
        "parameters_per_gpu": 0, "batch": 1, "prompt_tokens": [128, 512, 1024, 128, 512, 1024],
        "output_tokens": [1, 1, 1, 8, 8, 8], "num_experts": 0, "top_k": 0, "traits": "",
        "bare_loop": 0, "role": "", "runtime_s": [0.004, 0.005, 0.006, 0.02, 0.021, 0.022],
    }  # fmt: skip
    return columns(6, **{**values, **changes})


def test_traits_of_rows_become_those_of_the_profile(tmp_path: Path) -> None:
    stated = "attention=fused logits=last fused_norm=0 eager_copies=1"
    write_table(tmp_path / "g.csv", generations(traits=stated))
    traits = calibrate(tmp_path, GPU, "mine").profile.traits
    assert (traits.attention, traits.logits) == ("fused", "last")
    assert (traits.fused_norm, traits.eager_copies) == (False, True)
    write_table(tmp_path / "g.csv", generations(traits=["logits=last", "logits=all"]))
    with pytest.raises(SpecError, match="rows of one stack must agree"):
        calibrate(tmp_path, GPU, "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [("atention=fused", "nearest: attention"), ("fused_norm=yes", "fused_norm = 'yes'"),
     ("attention=flash", "must be one of fused, unfused"), ("logits", "logits = ''")],
)  # fmt: skip
def test_faulty_traits_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        with_traits(load_profile("pytorch-t4"), text)


def test_traits_and_experts_of_a_row_decide_its_prediction() -> None:
    def predicted(**changes: Any) -> np.ndarray:
        times = predict_rows(generations(**changes), "vllm-h100-sxm5-80gb")["runtime"]
        assert set(times.skip) == {""}
        return times.predicted_s

    plain = predicted()
    assert predicted(traits="attention=unfused")[2] > 1.1 * plain[2]  # the longest prompt
    assert (predicted(num_experts=8, top_k=2)[3:] > plain[3:]).all()
    model = generation.configurations(generations(num_experts=8, top_k=2))[0].model
    assert model.parameters > 3 * generation.configurations(generations())[0].model.parameters


def test_a_bare_loop_does_not_start_from_a_servers_host_track(tmp_path: Path) -> None:
    def prior(bare: int) -> float:
        write_table(tmp_path / "g.csv", generations(bare_loop=bare))
        (host,) = calibrate(tmp_path, GPU, "mine").sections
        return next(c.prior for c in host.coefficients if c.name == "prompt_token_s")

    assert prior(1) < prior(0) / 100


def test_launch_rows_say_where_the_host_track_starts(tmp_path: Path) -> None:
    write_table(tmp_path / "g.csv", generations())
    table = columns(3, gpu="H100-SXM5-80GB", stack=["mine", "mine", "other"], mode="eager",
                    kernels=[100, 200, 100], time_us=[400.0, 800.0, 9000.0])  # fmt: skip
    write_table(tmp_path / "launch.csv", table)
    result = calibrate(tmp_path, GPU, "mine")
    host = next(s for s in result.sections if s.section == "host")
    assert next(c.prior for c in host.coefficients if c.name == "launch_s") == pytest.approx(4e-6)
    launch = next(f for f in result.files if f.kind == "launch")
    assert (launch.used, launch.skipped) == (2, {"another GPU or stack": 1})


# Releases ----------------------------------------------------------------------------------------


def test_older_releases_of_products_are_sections_of_their_own() -> None:
    versions = ["1.3.0rc20", "1.3.0rc5", "1.3.0rc20"]
    blocks = kinds.blocks_of(
        "gemm", {**products(), "stack_version": np.array(versions)}, ALL, load_gpu
    )
    found = {b.section: b.table_rows.tolist() for b in kinds.older_releases(blocks)}
    assert found == {"gemm.bf16": [0, 2], "gemm.bf16@1.3.0rc5": [1]}


def test_rows_of_a_release_are_predicted_by_its_section() -> None:
    row = {"dtype": "fp8", "stack_version": "0.19.0"}
    assert resolve.released_variants("gemm", row)[0] == "fp8@0.19.0"
    profile = load_profile("vllm-h100-sxm5-80gb")
    release, (section, *_) = next(iter(profile.kernel_releases().items()))
    dtype = section.partition(".")[2]
    sizes = {"stack": "vllm", "dtype": dtype, "m": 4096}
    newest, older, unknown = (
        kernel_rows.predict_gemm(
            {**products(stack_version=version), **columns(3, **sizes)}, profile.name
        )["time"].predicted_s[0]
        for version in ("", release, "99.0")
    )
    assert older != newest
    assert unknown == newest
