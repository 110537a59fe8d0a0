"""Validation: error figures, groups, intervals, skipped rows. The predictor is a stand-in."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import rtsim
from rtsim.console import to_text
from rtsim.errors import DataError
from rtsim.measurements import Columns
from rtsim.report_validation import validation_to_json, validation_view
from rtsim.row_times import RowTimes

validation = sys.modules[rtsim.validate.__module__]

# time_us is the measured time; the stand-in predicts m microseconds, 20 % either way.
GEMM = """\
gpu,stack,dtype,model,m,n,k,time_us
A100,vllm,bf16,opt,110,1,1,100
A100,vllm,bf16,,80,1,1,100
H100,vllm,fp16,,150,1,1,100
H100,odd,fp16,,100,1,1,100
"""


def predict_m(columns: Columns, profile: str | None) -> Mapping[str, RowTimes]:
    predicted = columns["m"] * 1e-6
    skip = np.where(columns["stack"] == "odd", "unknown stack odd", "")
    return {
        "time": RowTimes(
            columns["time_us"] * 1e-6, predicted, predicted / 1.2, predicted * 1.2, skip
        )
    }


@pytest.fixture
def gemm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(validation, "_predictor", lambda kind: predict_m)
    path = tmp_path / "gemm.csv"
    path.write_text(GEMM)
    return path


def test_figures_by_hand(gemm: Path) -> None:
    (file,) = rtsim.validate(gemm).files
    assert (file.kind, file.rows, file.skipped) == ("gemm", 4, {"unknown stack odd": 1})
    total = file.metrics["time"].total
    assert total.rows == 3
    # errors +0.1, -0.2, +0.5
    assert total.mape == pytest.approx(0.8 / 3)
    assert total.median_ape == pytest.approx(0.2)
    assert total.p90_ape == pytest.approx(0.2 + 0.8 * 0.3)
    assert total.bias == pytest.approx(0.4 / 3)
    # 100 us in [91.7, 132], [66.7, 96], [125, 180]: only the first
    assert total.coverage_90 == pytest.approx(1 / 3)


def test_groups_leave_out_empty_labels_and_skipped_rows(gemm: Path) -> None:
    by = rtsim.validate(gemm).files[0].metrics["time"].by
    assert {gpu: stats.rows for gpu, stats in by["gpu"].items()} == {"A100": 2, "H100": 1}
    assert list(by["model"]) == ["opt"]
    assert list(by["stack"]) == ["vllm"]
    assert list(by["dtype"]) == ["bf16", "fp16"]
    assert by["gpu"]["A100"].bias == pytest.approx(-0.05)


def test_worst_rows_come_worst_first(gemm: Path) -> None:
    worst = rtsim.validate(gemm, worst=2).files[0].metrics["time"].worst
    assert [(row.line, round(row.error, 9)) for row in worst] == [(4, 0.5), (3, -0.2)]
    assert worst[0].what["gpu"] == "H100"


@pytest.mark.parametrize(
    ("time_us", "words"), [("0.1", "1/1,100 of"), ("1e5", "909 times"), ("110", "")]
)
def test_times_in_another_unit_are_doubted(gemm: Path, time_us: str, words: str) -> None:
    gemm.write_text(f"gpu,stack,dtype,model,m,n,k,time_us\nA100,vllm,bf16,opt,110,1,1,{time_us}\n")
    note = rtsim.validate(gemm).files[0].note
    assert (words in note) if words else note == ""
    assert ("is the unit right?" in note) == bool(words)


def test_repeated_rows_count_once(gemm: Path) -> None:
    gemm.write_text(GEMM + GEMM.splitlines()[1] + "\n")
    (file,) = rtsim.validate(gemm).files
    assert file.metrics["time"].total.rows == 3
    assert file.skipped == {"unknown stack odd": 1, validation.REPEATED_ROW: 1}


def test_json_has_the_contract_keys(gemm: Path) -> None:
    (file,) = validation_to_json(rtsim.validate([gemm]))["files"]
    figures = {"mape", "median_ape", "p90_ape", "bias", "coverage_90"}
    assert figures | {"file", "kind", "rows", "skipped", "by"} <= set(file)
    assert "metrics" not in file
    for grouping in ("gpu", "model", "stack"):
        for stats in file["by"][grouping].values():
            assert figures <= set(stats)


def test_two_metrics_and_no_interval(gemm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_two(columns: Columns, profile: str | None) -> Mapping[str, RowTimes]:
        nothing = np.full(4, np.nan)
        one = predict_m(columns, profile)["time"]
        other = RowTimes(one.measured_s, one.measured_s * 2, nothing, nothing, np.full(4, ""))
        return {"ttft": one, "tpot": other}

    monkeypatch.setattr(validation, "_predictor", lambda kind: predict_two)
    (file,) = validation_to_json(rtsim.validate(gemm))["files"]
    assert file["mape"] == file["metrics"]["tpot"]["mape"] == pytest.approx(1.0)
    assert file["coverage_90"] is None
    assert file["metrics"]["ttft"]["coverage_90"] == pytest.approx(1 / 3)


def test_nothing_predicted_is_null_not_nan(gemm: Path) -> None:
    gemm.write_text(GEMM.replace("vllm", "odd"))
    (file,) = validation_to_json(rtsim.validate(gemm))["files"]
    assert file["mape"] is None
    assert file["skipped"] == {"unknown stack odd": 4}


def test_unknown_kinds_are_named_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("gpu,price\nA100,2\n")
    (tmp_path / "scores.csv").write_text(
        "scenario,model,mean_prompt_tokens,mean_output_tokens,mean_runtime_s,exact_match\n"
        "boolq,davinci,1000,1,0.5,0.7\n"
    )
    report = rtsim.validate([tmp_path / "prices.csv", tmp_path / "scores.csv"])
    assert [file.kind for file in report.files] == ["unknown", "capability"]
    for file in validation_to_json(report)["files"]:
        assert file["rows"] == sum(file["skipped"].values()) == 1
    text = to_text(validation_view(report))
    assert "no kind of measurement table" in text
    assert "kind capability" in text


def test_text_has_groups_and_worst_rows(gemm: Path) -> None:
    text = to_text(validation_view(rtsim.validate(gemm)))
    assert "gpu A100" in text
    assert "+50.0%" in text
    assert "skipped 1: unknown stack odd" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_faulty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        rtsim.validate(tmp_path / "none.csv")


def test_stats_of_one_row_are_finite() -> None:
    stats = validation._stats(np.array([0.1]), np.array([np.nan]))
    assert stats.mape == pytest.approx(0.1)
    assert math.isnan(stats.coverage_90)
