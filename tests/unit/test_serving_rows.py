"""What rows of serving tables say, what is read into them, and fits to runs with known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtsim_kernels.load
from rtsim_kernels import mixed

from rtsim.calibrate import calibrate
from rtsim.catalog import load_gpu, load_model
from rtsim.errors import DataError, SpecError, UnknownName
from rtsim.fitting.serving import predict_batches, predict_serving
from rtsim.fitting.serving_cases import Case, batch_cases, serving_cases, times_of
from rtsim.fitting.serving_fit import choose_rows, fit_serving
from rtsim.fitting.serving_rows import (
    Deployments,
    parallelism_of,
    served_model,
    with_batch_columns,
    with_formats,
)
from rtsim.measurements import Table, read_table
from rtsim.profile import load_profile
from rtsim.table_text import write_table
from rtsim.validate import validate

B200, H100 = load_gpu("b200-hgx-180gb"), load_gpu("h100-sxm5-80gb")


def test_formats_are_read_as_models_are_published() -> None:
    def parts(name: str, gpu: Any, dense: str, experts: str) -> tuple[str, str, str, str | None]:
        model, cache = with_formats(load_model(name), gpu, dense, experts)
        q = model.quantization
        return q.attention, q.mlp, q.experts, cache

    # Published in blocks of fp8: whatever scale the row names.
    assert parts("deepseek-v3", B200, "fp8", "fp8") == ("fp8_block",) * 3 + ("fp8",)
    # NVIDIA's 4-bit checkpoints of mixtures leave attention alone, of dense models they do not.
    assert parts("deepseek-v3", B200, "nvfp4", "nvfp4") == ("none", "nvfp4", "nvfp4", "fp8")
    assert parts("llama-3.1-70b", B200, "nvfp4", "nvfp4")[:2] == ("nvfp4", "nvfp4")
    assert parts("llama-3.1-70b", H100, "", "") == ("none", "none", "none", None)
    # mxfp4 experts get narrow activations where the GPU has 4-bit units.
    assert parts("gpt-oss-120b", B200, "nvfp4", "nvfp4")[2:] == ("w4a8_mxfp4_mxfp8", "fp8")
    assert parts("gpt-oss-120b", H100, "nvfp4", "nvfp4")[2:] == ("w4a16_mxfp4", None)
    assert parts("kimi-k2.5", B200, "int4_wo", "int4_wo") == ("none", "none", "int4_wo", None)


def test_a_twin_in_other_formats_is_the_model() -> None:
    assert served_model("Qwen/Qwen3-235B-A22B-FP8").name == "qwen3-235b-a22b"
    assert served_model("nvidia/DeepSeek-R1-NVFP4").name == "deepseek-v3"
    with pytest.raises(UnknownName):
        served_model("nobody/Unheard-Of-7B-FP8")


def degrees(tp: int, attention_dp: int, moe_tp: int, moe_ep: int) -> dict[str, int]:
    return {
        "tp": tp, "pp": 1, "attention_dp": attention_dp, "moe_tp": moe_tp, "moe_ep": moe_ep
    }  # fmt: skip


def test_degrees_multiplied_twice_are_taken_back() -> None:
    model = load_model("deepseek-v3")
    for stated, (tp, attention_dp, ep) in (
        (degrees(8, 1, 8, 1), (8, 1, 1)),
        (degrees(64, 1, 8, 8), (8, 1, 8)),
        (degrees(16, 1, 4, 4), (4, 1, 4)),
        (degrees(1, 64, 8, 8), (1, 8, 8)),
        (degrees(4, 4, 1, 16), (1, 4, 4)),
        (degrees(1, 8, 1, 8), (1, 8, 8)),
    ):
        split = parallelism_of(stated, model, B200)
        assert (split.tp, split.attention_dp, split.ep) == (tp, attention_dp, ep)
        assert split.num_gpus <= 8
    with pytest.raises(SpecError, match="more than a node has"):
        parallelism_of(degrees(12, 1, 1, 1), model, B200)
    with pytest.raises(SpecError, match="must divide"):
        parallelism_of(degrees(4, 1, 1, 3), model, B200)
    dense = parallelism_of(degrees(8, 1, 1, 1), load_model("qwen3-32b"), H100)
    assert (dense.tp, dense.ep) == (8, 1)


def test_batches_name_their_split_in_words() -> None:
    def split(gpus: int, text: str) -> tuple[int, int, int]:
        row = with_batch_columns({"num_gpus": gpus, "parallelism": text, "weight_dtype": "fp16"})
        return row["tp"], row["pp"], row["moe_ep"]

    assert split(4, "") == split(4, "tp") == (4, 1, 1)
    assert split(4, "pp") == (1, 4, 1)
    assert split(4, "tp2-pp2") == (2, 2, 1)
    assert split(4, "ep") == (4, 1, 4)
    assert split(4, "tp2-ep2") == (4, 1, 2)
    with pytest.raises(SpecError, match="tp2-pp2"):
        split(4, "xy")


# Tables with known truth ---------------------------------------------------------------------

ROWS = [
    (model, gemm, n, prompt, output, tp, release)
    for model, gemm in (
        ("Qwen/Qwen3-32B", ""), ("Qwen/Qwen3-32B", "fp8"), ("meta-llama/Llama-3.1-8B", ""),
        ("openai/gpt-oss-120b", "nvfp4"),
    )
    for n, tp in ((2, 8), (16, 2), (64, 4), (200, 8))
    for prompt, output, release in ((256, 128, "1.0"), (1024, 1024, "2.0"), (8192, 512, "1.0"))
]  # fmt: skip


def table(tmp_path: Path, rows: list[tuple[Any, ...]] = ROWS) -> Table:
    """A serving table of H100 and vLLM; every time is one second."""
    model, gemm, n, prompt, output, tp, release = zip(*rows, strict=True)
    many = len(rows)
    path = tmp_path / "serving.csv"
    write_table(
        path,
        {
            "source": ["made up"] * many, "gpu": ["H100-SXM5-80GB"] * many,
            "stack": ["vllm"] * many, "stack_version": release, "model": model,
            "gemm_dtype": gemm, "moe_dtype": gemm, "mode": ["agg"] * many,
            "input_tokens": prompt, "output_tokens": output, "concurrency": n, "tp": tp,
            "pp": [1] * many, "attention_dp": [1] * many, "moe_tp": tp, "moe_ep": [1] * many,
            "ttft_ms": [1000.0] * many, "tpot_ms": [1000.0] * many,
        },
    )  # fmt: skip
    return read_table(path)


TRUTH = {c.name: c.prior for c in mixed.ENGINE_COEFFICIENTS} | {
    "step_s": 2.2e-3, "sequence_s": 4e-5, "gemm_frac": 1.25, "attention_frac": 1.1,
    "request_s": 0.08, "bunching": 0.3,
}  # fmt: skip
RELEASE = {"1.0": 1.0, "2.0": 0.8}


def true_times(case: Case) -> tuple[float, float]:
    ttft_s, tpot_s = times_of(case, TRUTH)
    frac = RELEASE[case.deployment.version]
    return ttft_s * frac, tpot_s * frac


def measured(cases: list[Case], scatter: float) -> list[Case]:
    random = np.random.default_rng(0)
    made = []
    for case in cases:
        ttft_s, tpot_s = (s * np.exp(scatter * random.standard_normal()) for s in true_times(case))
        made.append(replace(case, ttft_s=ttft_s, tpot_s=tpot_s))
    return made


def test_a_fit_finds_the_truth_again_on_rows_it_did_not_see(tmp_path: Path) -> None:
    cases, reasons = serving_cases(table(tmp_path).columns, Deployments())
    assert reasons == {}
    every = measured(cases, 0.03)
    chosen = choose_rows(every, 24)
    assert len(chosen) == 24
    seen = {case.index for case in chosen}
    fit = fit_serving(chosen)
    engine = fit.sections["serving.engine"]
    # What is common to both releases may stand in their factors or in the engine.
    first = fit.releases["1.0"]
    step_s, request_s = (engine[name] for name in ("step_s", "request_s"))
    assert step_s * first["tpot_frac"] == pytest.approx(TRUTH["step_s"], rel=0.25)
    assert request_s * first["ttft_frac"] == pytest.approx(TRUTH["request_s"], rel=0.3)
    ratio = fit.releases["2.0"]["tpot_frac"] / fit.releases["1.0"]["tpot_frac"]
    assert ratio == pytest.approx(0.8, abs=0.06)
    rest = [case for case in every if case.index not in seen]
    errors = [np.array(fit.predicted(case)) / np.array(true_times(case)) - 1.0 for case in rest]
    ttft, tpot = np.abs(np.array(errors)).mean(axis=0)
    assert tpot < 0.05
    assert ttft < 0.10
    without = [times_of(c, {k.name: k.prior for k in mixed.ENGINE_COEFFICIENTS}) for c in rest]
    off = np.abs(np.array(without)[:, 1] / np.array([true_times(c)[1] for c in rest]) - 1.0)
    assert off.mean() > 3 * tpot, "the fit has to be what brings the error down"


def test_rows_are_chosen_without_a_look_at_times(tmp_path: Path) -> None:
    cases, _ = serving_cases(table(tmp_path).columns, Deployments())
    one, other = (choose_rows(measured(cases, s), 12) for s in (0.0, 0.5))
    assert [c.index for c in one] == [c.index for c in other]
    models = {c.labels[0] for c in one}
    assert len(models) == 3


def test_calibrate_and_validate_take_the_tables(tmp_path: Path) -> None:
    base = load_profile("vllm-h100-sxm5-80gb")
    source = table(tmp_path)
    cases, _ = serving_cases(source.columns, Deployments(base))
    columns = dict(source.columns)
    for case in measured(cases, 0.02):
        columns["ttft_ms"][case.index] = case.ttft_s * 1e3
        columns["tpot_ms"][case.index] = case.tpot_s * 1e3
    runs = tmp_path / "runs.csv"
    write_table(runs, columns)
    made = calibrate(
        runs, "h100-sxm5-80gb", "vllm", base=base.name, max_points=24,
        output=tmp_path / "own.toml",
    )  # fmt: skip
    sections = {report.section: report for report in made.sections}
    assert set(sections) == {"serving.engine (ttft)", "serving.engine (tpot)"}
    assert sections["serving.engine (tpot)"].fitted_rows == 24
    own = validate(runs, str(tmp_path / "own.toml")).files[0]
    shipped = validate(runs).files[0]
    assert own.headline == "tpot"
    assert own.metrics["tpot"].total.mape < 0.05 < shipped.metrics["tpot"].total.mape
    assert own.metrics["tpot"].total.coverage_90 > 0.8


def test_too_few_runs_are_left_out_with_a_note(tmp_path: Path) -> None:
    source = table(tmp_path, ROWS[:5])
    made = calibrate(source.file, "h100-sxm5-80gb", "vllm")
    assert any("fewer than 12 runs" in note for note in made.notes)
    with pytest.raises(DataError, match="no row of sglang"):
        calibrate(source.file, "h100-sxm5-80gb", "sglang")


def test_every_row_is_answered_or_says_why_not(tmp_path: Path) -> None:
    odd = [
        ("nobody/Unheard-Of", "", 4, 100, 100, 1, ""),
        ("Qwen/Qwen3-32B", "", 4, 100, 100, 7, ""),
        ("Qwen/Qwen3-32B", "", 0, 100, 100, 2, ""),
        ("Qwen/Qwen3-32B", "", 4, 100, 100, 2, ""),
    ]
    times = predict_serving(table(tmp_path, odd).columns, None)["tpot"]
    assert ["unknown model" in times.skip[0], "tp = 7" in times.skip[1]] == [True, True]
    assert "concurrency" in times.skip[2]
    assert times.skip[3] == ""
    assert np.isfinite(times.predicted_s).tolist() == [False, False, False, True]
    assert times.low_s[3] < times.predicted_s[3] < times.high_s[3]


# Pools of their own -----------------------------------------------------------------------------


def pools(tmp_path: Path, **stated: Any) -> Table:
    """A row of DeepSeek-V3 on B200 in pools of 8 GPUs a worker, with what is stated changed."""
    worker = {"tp": 8, "pp": 1, "attention_dp": 1, "moe_tp": 8, "moe_ep": 1}
    row = {
        "source": "made up", "gpu": "B200-SXM", "stack": "sglang", "stack_version": "0.5.8",
        "model": "deepseek-ai/DeepSeek-V3", "gemm_dtype": "fp8_block", "moe_dtype": "fp8_block",
        "mode": "disagg", "input_tokens": 1024, "output_tokens": 1024, "concurrency": 64,
        **{f"{side}_{name}": n for side in ("prefill", "decode") for name, n in worker.items()},
        "ttft_ms": 500.0, "tpot_ms": 10.0, **stated,
    }  # fmt: skip
    path = tmp_path / "pools.csv"
    write_table(path, {name: [value] for name, value in row.items()})
    return read_table(path)


def case_of(source: Table) -> Case:
    (case,), reasons = serving_cases(source.columns, Deployments())
    assert reasons == {}
    return case


COUNTED = {"prefill_workers": 1, "decode_workers": 4}


def test_pools_without_counts_decode_on_as_many_gpus_as_others(tmp_path: Path) -> None:
    eight = case_of(pools(tmp_path))
    assert not eight.counted
    assert eight.load[0] == 64 / (32 / 8)
    four = case_of(pools(tmp_path, decode_tp=4, decode_moe_tp=4))
    assert four.load[0] == 64 / (32 / 4)
    stated = case_of(pools(tmp_path, prefill_workers=1, decode_workers=2))
    assert stated.counted
    assert stated.load[0] == 64 / 2


def test_pools_without_counts_may_draft(tmp_path: Path) -> None:
    """With the layers that the model brings; rows that count their workers say what they did."""
    names = rtsim_kernels.load.Load._fields
    drafted = dict(zip(names, case_of(pools(tmp_path)).load, strict=True))
    assert (drafted["speculated"], drafted["acceptance"]) == (1.0, 0.8)
    assert drafted["draft_frac"] == pytest.approx(1 / 61)
    plain = dict(zip(names, case_of(pools(tmp_path, **COUNTED)).load, strict=True))
    assert plain["speculated"] == 0.0
    dense = pools(tmp_path, model="Qwen/Qwen3-32B", decode_moe_tp=1, prefill_moe_tp=1)
    assert dict(zip(names, case_of(dense).load, strict=True))["speculated"] == 0.0


def test_what_is_not_stated_widens_the_interval(tmp_path: Path) -> None:
    sure = predict_serving(pools(tmp_path, **COUNTED).columns, None)["tpot"]
    unsure = predict_serving(pools(tmp_path).columns, None)["tpot"]
    widths = [float((t.high_s / t.low_s)[0]) for t in (sure, unsure)]
    assert widths[1] > 1.5 * widths[0]
    assert [t.regime[0] for t in (sure, unsure)] == ["disagg", "disagg, workers not stated"]


def batches(tmp_path: Path, runtime_s: float) -> Table:
    path = tmp_path / "batches.csv"
    write_table(
        path,
        {
            "source": ["made up"], "gpu": ["H100-SXM5-80GB"], "stack": ["vllm"],
            "weight_dtype": ["fp16"], "kv_dtype": ["fp16"], "model": ["meta-llama/Llama-3.1-8B"],
            "num_gpus": [2], "parallelism": ["pp"], "batch": [16], "prompt_tokens": [500],
            "output_tokens": [500], "runtime_s": [runtime_s],
        },
    )  # fmt: skip
    return read_table(path)


def test_batches_faster_than_the_memory_are_refused(tmp_path: Path) -> None:
    assert predict_batches(batches(tmp_path, 10.0).columns, None)["runtime"].skip[0] == ""
    skip = predict_batches(batches(tmp_path, 0.05).columns, None)["runtime"].skip[0]
    assert "faster than the hardware allows" in skip


def test_more_sequences_in_a_batch_never_take_less(tmp_path: Path) -> None:
    (case,), _ = batch_cases(batches(tmp_path, 10.0).columns, Deployments())
    values = {c.name: c.prior for c in mixed.ENGINE_COEFFICIENTS}
    seconds = [
        times_of(replace(case, load=(float(n), *case.load[1:])), values)[1]
        for n in (1, 2, 8, 64, 512, 4096)
    ]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 8 * seconds[-2] * 0.5  # beyond the limit, in waves
