"""`rtsim simulate`: what it prints, writes and refuses, and how traces are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from rtsim.cli import main as program
from rtsim.errors import DataError
from rtsim.serving import trace
from rtsim.serving.arrivals import Generated, played
from rtsim.serving.trace import read_trace

SYSTEM = ("simulate", "--arch", "llama-3.2-1b", "--gpu", "h100", "--stack", "vllm")
LENGTHS = ("--input-len", "100", "--output-len", "5")
HEAD = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = program.run(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_text_and_json_say_the_same(run):
    load = (*LENGTHS, "--rate", "20", "--requests", "60", "--level", "chat")
    status, text, _ = run(*SYSTEM, *load)
    assert status == 0
    assert "60 requests, 20 a second, poisson arrivals, seed 0" in text
    assert "99.0% asked: met" in " ".join(text.split())
    body = json.loads(run(*SYSTEM, *load, "--json")[1])
    assert body["n_finished"] == 60
    assert body["ttft"]["p50_s"] <= body["ttft"]["p99_s"] <= body["ttft"]["max_s"]
    assert body["level"] == {"name": "chat", "ttft_s": 2.0, "tpot_s": 0.2}
    assert len(body["over_time"]["start_s"]) == len(body["over_time"]["waiting"])
    assert body["capacity"] is None


def test_capacity_and_figures(run, tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "g.png"
    status, text, _ = run(
        *SYSTEM, *LENGTHS, "--requests", "100", "--capacity", "--level", "interactive",
        "--tolerance", "0.2", "--plot", str(figure), "--plot-kind", "goodput",
    )  # fmt: skip
    assert status == 0
    assert "highest that meets it" in text
    assert figure.stat().st_size > 5000
    for kind in ("latency", "timeline"):
        drawn = tmp_path / f"{kind}.svg"
        load = ("--rate", "9", "--requests", "30", "--plot", str(drawn), "--plot-kind", kind)
        assert run(*SYSTEM, *LENGTHS, *load)[0] == 0
        assert drawn.stat().st_size > 5000


def test_overload_and_refusals_are_noted(run, tmp_path):
    file = tmp_path / "t.csv"
    rows = [f"{i * 0.001:.3f},500,50" for i in range(1500)]
    file.write_text(HEAD + "\n".join(rows) + "\n1.5,0,5\n1.5,100,0\n1.5,900000,5\n")
    status, text, _ = run(*SYSTEM, "--trace", str(file), "--max-sequences", "8")
    text = " ".join(text.split())
    assert status == 0
    assert "2 of 1,503 requests were rejected: no prompt or no output token" in text
    assert "1 of 1,503 requests were rejected: longer than the context of 131,072 tokens" in text
    assert "are carried:" in text
    assert "were waiting at the last arrival" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("rate", "--trace")),
        (("--rate", "1"), ("input_len",)),
        (("--rate", "0", *LENGTHS), ("rate = 0.0",)),
        (("--rate", "nan", *LENGTHS), ("rate = nan",)),
        (("--rate", "1", "--input-len", "0", "--output-len", "5"), ("input_len = 0",)),
        (("--concurrency", "0", *LENGTHS), ("concurrency = 0",)),
        (("--rate", "1", "--concurrency", "2", *LENGTHS), ("concurrency = 2", "one of them")),
        (("--rate", "1", "--seed", "-1", *LENGTHS), ("seed = -1", "2^63")),
        (("--rate", "1", "--seed", "9" * 20, *LENGTHS), ("seed",)),
        (("--rate", "1", "--percentiles", "0", *LENGTHS), ("percentiles = 0.0",)),
        (("--rate", "1", "--percentiles", "50,x", *LENGTHS), ("percentiles", "50,90")),
        (("--rate", "1", "--requests", "0", *LENGTHS), ("requests = 0",)),
        (("--rate", "1", "--dp", "0", *LENGTHS), ("dp = 0",)),
        (("--rate", "1", "--prefill-workers", "0", *LENGTHS), ("prefill_workers = 0",)),
        (("--rate", "1", "--decode-workers", "2", *LENGTHS), ("--prefill-workers",)),
        (("--rate", "1", "--policy", "statik", *LENGTHS), ("policy", "nearest: static")),
        (("--rate", "1", "--arrivals", "poison", *LENGTHS), ("nearest: poisson",)),
        (("--rate", "1", "--arrivals", "bursty", "--cv", "0", *LENGTHS), ("cv = 0.0",)),
        (("--rate", "1", "--share", "2", *LENGTHS), ("share = 2.0",)),
        (("--rate", "1", "--token-budget", "0", *LENGTHS), ("token_budget = 0",)),
        (("--rate", "1", "--memory-frac", "0.01", *LENGTHS), ("gpu", "more GPUs")),
        (("--rate", "1", "--cp", "2", *LENGTHS), ("context parallelism",)),
        (("--capacity", *LENGTHS), ("level",)),
        (("--capacity", "--level", "chat", "--tolerance", "9", *LENGTHS), ("tolerance = 9",)),
        (("--rate", "1", "--plot", "x.png", "--plot-kind", "goodput", *LENGTHS), ("--capacity",)),
        (("--rate", "1", "--records", "x.txt", *LENGTHS), (".parquet",)),
        (("--trace", "missing.csv"), ("missing.csv", "no such file")),
        (("--trace", "missing.csv", *LENGTHS), ("the trace says it",)),
    ],
)
def test_bad_input_is_one_line(run, arguments, words):
    status, out, err = run(*SYSTEM, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("empty",)),
        (HEAD, ("no request",)),
        ("arrival,prompt_tokens,output_tokens\n0,1,1\n", ("line 1", "is it 'arrival'")),
        (HEAD + "0,10,5\n2,10,5\n1,10,5\n", ("line 4", "before 2", "sort")),
        (HEAD + "0,10,5\n1,ten,5\n", ("line 3", "prompt_tokens", "'ten'")),
        (HEAD + "0,10,5\n1,,5\n", ("line 3", "is missing")),
        (HEAD + "0,10,5\n1,10\n", ("line 3", "2 cells")),
        (HEAD + "0,10.5,5\n", ("line 2", "10.5")),
        (HEAD + "0,10,-5\n", ("line 2", "output_tokens", "-5")),
        (HEAD + "nan,10,5\n", ("line 2", "arrival_s")),
        (HEAD + "-1,10,5\n", ("line 2", "arrival_s")),
        (HEAD + "0,1e300,5\n", ("line 2", "1e+300")),
    ],
)
def test_faulty_traces_are_refused_with_their_line(run, tmp_path, text, words):
    file = tmp_path / "t.csv"
    file.write_text(text)
    records = tmp_path / "r.csv"
    status, _, err = run(*SYSTEM, "--trace", str(file), "--records", str(records))
    assert status == 2
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_records_of_an_interrupted_run_are_not_left_half_written(tmp_path, monkeypatch):
    from rtsim import simulation

    def stops(run, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "_columns", stops)
    arguments = (*SYSTEM, *LENGTHS, "--rate", "9", "--requests", "20")
    program.run((*arguments, "--records", str(tmp_path / "r.csv")))
    assert list(tmp_path.iterdir()) == []


# Traffic ------------------------------------------------------------------------------------------


def test_traces_are_read_in_blocks_and_zipped(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "BLOCK_ROWS", 7)
    text = "output_tokens,arrival_s,prompt_tokens,priority\n"
    text += "".join(f"{i + 1},{i / 4},{i},{i % 3}\n" for i in range(40)) + "\n"
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("t.csv", "t.gz"):
        found = read_trace(tmp_path / name)
        assert found.arrival_s.tolist() == [i / 4 for i in range(40)]
        assert found.prompt_tokens.tolist() == list(range(40))
        assert found.priority.tolist() == [i % 3 for i in range(40)]
    damaged = tmp_path / "d.gz"
    damaged.write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(DataError, match="damaged gzip"):
        read_trace(damaged)


def test_a_trace_is_cut_repeated_and_played_faster(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(HEAD + "0,1,1\n2,2,2\n4,3,3\n")

    def times(**options):
        return np.concatenate([block.arrival_s for block in played(file, **options).blocks()])

    assert times().tolist() == [0, 2, 4]
    assert times(n_requests=2).tolist() == [0, 2]
    assert times(n_requests=5).tolist() == [0, 2, 4, 6, 8]
    assert times(n_requests=4, rate_per_s=1.0).tolist() == [0, 1, 2, 3]
    assert played(file).in_memory().at_rate(0.25).rate_per_s == pytest.approx(0.25)


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("constant", 0.0), ("bursty", 3.0)])
def test_gaps_between_arrivals_vary_as_stated(process, cv):
    from rtsim.lengths import fixed

    traffic = Generated(5.0, fixed(10, 5), 40_000, process, cv or 1.0, seed=2)
    times = np.concatenate([block.arrival_s for block in traffic.blocks()])
    gaps = np.diff(times)
    assert len(times) == 40_000
    assert gaps.mean() == pytest.approx(0.2, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.15)
    faster = np.concatenate([block.arrival_s for block in traffic.at_rate(10.0).blocks()])
    assert faster == pytest.approx(times / 2.0)


def test_two_outputs_in_one_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = str(tmp_path / "a.json")
    status = program.run(
        (
            *("simulate", "--arch", "llama-3.1-8b", "--gpu", "h100", "--rate", "1"),
            *("--requests", "5", "--input-len", "10", "--output-len", "5"),
            *("--records", both, "--chrome-trace", both),
        )
    )
    assert status == 2
    assert "also written by --records" in capsys.readouterr().err
    assert not Path(both).exists()


def test_a_share_is_never_rounded_up_to_what_was_asked():
    """98.996% is not 99.0%: more digits until the text is below what was asked."""
    from types import SimpleNamespace

    from rtsim.cli.simulate_view import _met

    def said(met: float, share: float) -> str:
        return _met(SimpleNamespace(met_frac=met, share=share))  # type: ignore[arg-type]

    assert said(0.98996, 0.99) == "98.996%"
    assert said(0.9, 0.99) == "90.0%"
    assert said(0.9996, 1.0) == "99.96%"
    assert said(1.0, 1.0) == "100.0%"
    assert said(0.99, 0.99) == "99.0%"


def test_rates_at_which_requests_pile_up_say_so(run):
    status, text, _ = run(
        *SYSTEM, "--requests", "200", "--input-len", "1000", "--output-len", "50", "--level",
        "batch", "--capacity", "--tolerance", "0.3",
    )  # fmt: skip
    assert status == 0
    table = text[text.index("Requests/s") : text.index("Time to first token")]
    assert "overloaded" in table
    assert "misses" not in table
    assert "highest that meets it" in table
