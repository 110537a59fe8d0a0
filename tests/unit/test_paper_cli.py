"""The commands compare, profile-fit, denoise and tradeoff: answers, files, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rtsim.cli import main as program

TABLES = Path(__file__).parents[1] / "tables"
LATENCIES = str(TABLES / "api_latency_j1_large.csv")
DENOISED = str(TABLES / "denoised_part.csv")
SCORES = str(TABLES / "capability_part.csv")
GENERATION = str(Path(__file__).parents[2] / "calibration" / "tables" / "generation_a100.csv")
COMPARE = ("compare", "--arch", "gpt3-175b,gpt3-6.7b")


@pytest.fixture
def rtsim(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RTSIM_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> str:
        status = program.run(arguments)
        out, err = capsys.readouterr()
        assert (status, err) == (0, ""), err
        assert all(len(line) <= 80 for line in out.splitlines()) or "{" in out
        return out

    return run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# compare


def test_compare_text_and_json(rtsim) -> None:
    text = rtsim(*COMPARE, "--stack", "megatron-lm")
    for word in ("gpt3-175b", "Per output token", "on a100-sxm4-80gb with megatron-lm", "Rank"):
        assert word in text
    body = json.loads(rtsim(*COMPARE, "--energy-model", "utilisation", "--json"))
    one = body["systems"][0]
    low, high = one["cost_usd_per_request_interval_90"]
    assert low < one["cost_usd_per_request"] < high
    assert one["cost_usd_per_output_token"] == pytest.approx(one["cost_usd_per_request"] / 64)
    assert one["min_gpus"] <= one["num_gpus"]
    assert set(one["ranks"]) == {"runtime", "cost", "energy"}


def test_compare_side_by_side(rtsim, tmp_path: Path) -> None:
    arguments = ("compare", "--arch", "llama-2-7b", "--gpu", "a100,h100", "--stack",
                 "megatron-lm,vllm")  # fmt: skip
    text = rtsim(*arguments)
    assert "A = a100-sxm4-80gb with megatron-lm" in text
    assert "host track -" in text
    path = tmp_path / "c.csv"
    rtsim(*arguments, "-o", str(path))
    rows = read(path)
    assert len(rows) == 4
    for row in rows:
        groups = ("host_track", "attention", "collectives", "matrix_products", "other_kernels")
        total = sum(float(row[f"{group}_s"]) for group in groups)
        assert total == pytest.approx(float(row["runtime_s"]))


def test_the_study(rtsim, tmp_path: Path) -> None:
    plot = tmp_path / "s.png"
    text = rtsim("compare", "--study", "paper", "--plot", str(plot))
    assert "mt-nlg-530b" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare",), "name models"),
        (("compare", "--study", "papper"), "nearest: paper"),
        (("compare", "--study", "x.toml"), "no such file"),
        ((*COMPARE, "--gpu", "a1000"), "nearest: a100"),
        ((*COMPARE, "--stack", "vlm"), "nearest: vllm"),
        ((*COMPARE, "--arch", "gpt3-175b,nope"), "unknown model 'nope'"),
        ((*COMPARE, "--input-len", "0"), "input_len"),
        ((*COMPARE, "--output-len", "-1"), "output_len"),
        ((*COMPARE, "--num-gpus", "0"), "num_gpus"),
        ((*COMPARE, "--energy-model", "solar"), "power, utilisation"),
        ((*COMPARE, "--plot", "x.gif"), ".png"),
        ((*COMPARE, "-o", "/no/such/folder/x.csv"), "there is no folder"),
    ],
)
def test_compare_bad_input(refused, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(*arguments)


# profile-fit


def test_profile_fit(rtsim, tmp_path: Path) -> None:
    plot = tmp_path / "p.png"
    text = rtsim("profile-fit", GENERATION, "--plot", str(plot))
    assert "openai_davinci" in text
    assert "Rows to match" in text
    assert plot.exists()
    body = json.loads(rtsim("profile-fit", GENERATION, "--model", "openai_ada", "--json"))
    (one,) = body["models"]
    assert one["r_squared"] > 0.999
    assert len(one["residuals_s"]) == one["rows"]
    assert one["unprofiled"]["errors"]["mean"] < 0.03


def test_profile_fit_of_a_plain_table(rtsim, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{p},{o},{0.05 + 1e-4 * p + 0.02 * o}" for p in (1, 512, 1024) for o in (1, 8, 32)]
    path.write_text("prompt_tokens,output_tokens,runtime_s\n" + "\n".join(rows) + "\n")
    out = rtsim("profile-fit", str(path), "--arch", "gpt3-6.7b", "--gpu", "a100", "--json")
    (one,) = json.loads(out)["models"]
    assert one["fit"]["per_output_token_s"] == pytest.approx(0.02)
    assert one["unprofiled"]["errors"]["mean"] > 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no.csv",), "no such file"),
        ((GENERATION, "--model", "opneai_ada"), "no row is of model"),
        ((GENERATION, "--gpu", "a100"), "--arch"),
        ((SCORES,), "'prompt_tokens' is missing"),
        ((GENERATION, "--plot", "x"), "must end in"),
    ],
)
def test_profile_fit_bad_input(refused, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("profile-fit", *arguments)


# denoise


def test_denoise(rtsim, tmp_path: Path) -> None:
    plot, out = tmp_path / "d.png", tmp_path / "d.csv"
    text = rtsim("denoise", LATENCIES, "--bootstraps", "30", "--plot", str(plot))
    assert "ai21/j1-large" in text
    assert "cells too thin, 28 of 28" in text
    assert plot.exists()
    rtsim("denoise", LATENCIES, "--bootstraps", "30", "-o", str(out))
    assert {row["model"] for row in read(out)} == {"ai21/j1-large"}
    body = json.loads(rtsim("denoise", LATENCIES, "--bootstraps", "30", "--json"))
    (one,) = body["models"]
    assert one["per_output_token_s"] == pytest.approx(0.016, rel=0.1)
    low, high = one["per_output_token_interval_s"]
    assert low < one["per_output_token_s"] < high


def test_denoise_names_the_rows_left_out(rtsim, tmp_path: Path, capsys) -> None:
    lines = Path(LATENCIES).read_text().splitlines()
    lines[5] = lines[5].rpartition(",")[0] + ",-1"
    lines.append(lines[6].replace("j1-large", "other").rpartition(",")[0] + ",x")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(lines) + "\n")
    options = ("denoise", str(table), "--bootstraps", "20")
    assert "line 6: runtime_s -1 is not above zero" in rtsim(*options)
    body = json.loads(rtsim(*options, "--json"))
    assert [row["line"] for row in body["left_out"]] == [6, len(lines)]
    assert program.run((*options, "-o", str(tmp_path / "d.csv"))) == 0
    assert f"lines 6, {len(lines)}" in capsys.readouterr().err


def test_denoised_against_idealized(rtsim) -> None:
    text = rtsim("denoise", DENOISED, "--gpu", "a100", "--stack", "trtllm")
    assert "By GPUs" in text
    body = json.loads(rtsim("denoise", DENOISED, "--gpu", "a100", "--json"))
    found = {one["model"]: one for one in body["against_idealized"]}
    assert found["openai/davinci"]["num_gpus"] == 8
    assert found["openai/curie"]["ratio"] < 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no.csv",), "no such file"),
        ((LATENCIES, "--model", "ai21/j1-larg"), "nearest: ai21/j1-large"),
        ((LATENCIES, "--stack", "vllm"), "--gpu"),
        ((LATENCIES, "--gpu", "a1000"), "nearest: a100"),
        ((LATENCIES, "--bootstraps", "1"), "bootstraps"),
        ((DENOISED, "--plot", "x.png"), "needs a table of latencies"),
        ((GENERATION, "--map", "x.toml"), "--gpu"),
        ((SCORES,), "is missing"),
    ],
)
def test_denoise_bad_input(refused, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("denoise", *arguments)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1,8,0.5\n2,8,0.6\n", "one output length (8)"),
        ("1,8,0\n", "did the clock jump"),
        ("1,8,-4\n1,9,\n", "no usable row"),
        ("1,8\n", "2 fields where the header has 3"),
        ("", "no rows"),
    ],
)
def test_latencies_that_cannot_be_fitted(refused, tmp_path: Path, rows: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt_tokens,output_tokens,runtime_s\n" + rows)
    assert words in refused("denoise", str(path))


# tradeoff


def test_tradeoff(rtsim, tmp_path: Path) -> None:
    plots = tmp_path / "a.png", tmp_path / "b.svg"
    text = rtsim(
        "tradeoff", SCORES, "--x", "raw_runtime,denoised_runtime,idealized_cost", "--denoised",
        DENOISED, "--plot", str(plots[0]), "--plot-scenarios", str(plots[1]),
    )  # fmt: skip
    for word in ("Dominated by", "(frontier)", "order agrees by Kendall tau", "mapping file"):
        assert word in " ".join(text.split())
    assert all(path.stat().st_size > 1000 for path in plots)
    out = tmp_path / "t.csv"
    rtsim("tradeoff", SCORES, "--x", "idealized_cost", "-o", str(out))
    rows = read(out)
    unknown = [row for row in rows if not row["x"]]
    assert {row["model"] for row in unknown} == {"anthropic/stanford-online-helpful-v4-s3"}
    body = json.loads(rtsim("tradeoff", SCORES, "--x", "raw_runtime", "--json"))
    assert body["views"][0]["overall"]["frontier"]
    assert "piqa" in rtsim(
        "tradeoff", SCORES, "--scenario", "commonsense_qa:dataset=piqa,method=mcqa"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no.csv",), "no such file"),
        ((SCORES, "--x", "cost"), "must be one of"),
        ((SCORES, "--y", "exactmatch"), "is it 'exact_match'"),
        ((SCORES, "--x", "denoised_runtime"), "needs a table of denoised"),
        ((SCORES, "--map", "no.toml"), "no such file"),
        ((SCORES, "--scenario", "imbd"), "nearest: imdb"),
        ((SCORES, "--gpu", "h1000"), "nearest: h100"),
        ((SCORES, "--stack", "vlm"), "vllm"),
        ((LATENCIES,), "'scenario' is missing"),
        ((SCORES, "--plot", "x.bmp"), "must end in"),
    ],
)
def test_tradeoff_bad_input(refused, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("tradeoff", *arguments)
