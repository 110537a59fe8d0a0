"""`rtsim simulate`: what it prints, writes and refuses, and how traces are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rtsim import plots_serving
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
    assert body["met_frac"] == 1.0
    without = json.loads(run(*SYSTEM, *LENGTHS, "--rate", "20", "--requests", "9", "--json")[1])
    assert [without[name] for name in ("met_frac", "share", "goodput_per_s")] == [None] * 3


def test_a_search_says_why_a_rate_misses_a_level_without_limits(run):
    load = ("--input-len", "100", "--output-len", "40", "--requests", "60", "--max-sequences", "4")
    text = run(*SYSTEM, *load, "--capacity", "--level", "batch", "--percentiles", "50,90")[1]
    assert "TTFT p90" in text
    misses = [line for line in text.splitlines() if "misses" in line]
    assert misses
    assert all("100.0%" in line and line.endswith("misses: piles up") for line in misses)


@pytest.mark.parametrize(("rate", "overloaded"), [("5", False), ("400", True)])
def test_static_batches_count_as_overloaded_by_what_they_carry(run, rate, overloaded):
    load = ("--input-len", "1k", "--output-len", "200", "--requests", "500", "--rate", rate)
    system = ("simulate", "--arch", "llama-3.1-8b", "--gpu", "h100", "--max-sequences", "32")
    body = json.loads(run(*system, *load, "--policy", "static", "--json")[1])
    assert body["overloaded"] is overloaded
    if overloaded:
        assert body["carried_per_s"] < body["arrival_rate_per_s"]
    else:
        assert (body["carried_per_s"], body["notes"]) == (None, [])


def test_a_chrome_trace_is_zipped_where_its_name_says_so(run, tmp_path):
    files = [tmp_path / "t.json", tmp_path / "t.json.gz"]
    for file in files:
        load = (*LENGTHS, "--rate", "9", "--requests", "5", "--chrome-trace", str(file))
        assert run(*SYSTEM, *load)[0] == 0
    assert gzip.decompress(files[1].read_bytes()) == files[0].read_bytes()
    assert len(json.loads(files[0].read_text())["traceEvents"]) > 10


def test_a_load_of_which_nothing_can_be_served_is_refused(refused, tmp_path):
    load = (*LENGTHS, "--rate", "9", "--requests", "5", "--max-model-len", "50")
    err = refused(*SYSTEM, *load, "--records", str(tmp_path / "r.csv"))
    assert "requests = 5: none can be served: longer than the context of 50 tokens (5)" in err
    assert list(tmp_path.iterdir()) == []


def test_a_closed_loop_has_no_process_of_arrivals(run):
    text = run(*SYSTEM, *LENGTHS, "--concurrency", "3", "--requests", "9")[1]
    assert "9 requests, 3 kept in flight, seed 0\n" in text


def test_a_short_closed_loop_says_that_its_start_counts(run):
    loop = (*SYSTEM, "--concurrency", "8", "--input-len", "2000", "--output-len", "20", "--json")
    short, long = (
        json.loads(run(*loop, "--requests", n)[1]) for n in ("16", "800")
    )  # fmt: skip
    assert short["ttft"]["mean_s"] > 1.2 * long["ttft"]["mean_s"]
    assert any("the first 8 of 16 requests" in note for note in short["notes"])
    assert not any("at one time" in note for note in long["notes"])


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


@pytest.mark.parametrize(("rates", "scale"), [((1.0, 4.0, 40.0), "log"), ((4.0, 20.0), "linear")])
def test_rates_that_span_decades_stand_on_a_logarithmic_axis(rates, scale):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    result = SimpleNamespace(goodput_per_s=1.0, requests_per_s=1.0)
    tried = [SimpleNamespace(rate_per_s=rate, result=result) for rate in rates]
    searched = SimpleNamespace(tried=tried, rate_per_s=rates[0])
    plots_serving._goodput(figure, SimpleNamespace(capacity=searched))
    assert figure.axes[0].get_xscale() == scale


def test_stretches_of_time_are_joined_by_their_means():
    assert plots_serving._means(np.array([1.0, 3.0, 5.0]), 2).tolist() == [2.0, 5.0]
    assert plots_serving._means(np.array([1.0, 3.0]), 1).tolist() == [1.0, 3.0]


def test_overload_and_refusals_are_noted(run, tmp_path):
    file = tmp_path / "t.csv"
    rows = [f"{i * 0.001:.3f},500,50" for i in range(1500)]
    file.write_text(HEAD + "\n".join(rows) + "\n1.5,0,5\n1.5,100,0\n1.5,900000,5\n")
    status, text, _ = run(*SYSTEM, "--trace", str(file), "--max-sequences", "8")
    text = " ".join(text.split())
    assert status == 0
    assert "2 of 1,503 requests were rejected: no prompt or no output token" in text
    assert "1 of 1,503 requests was rejected: longer than the context of 131,072 tokens" in text
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
        (("--concurrency", "2", "--arrivals", "constant", *LENGTHS), ("arrivals", "closed loop")),
        (("--rate", "1", "--seed", "-1", *LENGTHS), ("seed = -1", "2^63")),
        (("--rate", "1", "--seed", "9" * 20, *LENGTHS), ("seed",)),
        (("--rate", "1", "--percentiles", "0", *LENGTHS), ("percentiles = 0.0",)),
        (("--rate", "1", "--percentiles", "50,x", *LENGTHS), ("percentiles", "50,90")),
        (("--rate", "1", "--requests", "0", *LENGTHS), ("requests = 0",)),
        (("--rate", "1", "--dp", "0", *LENGTHS), ("dp = 0",)),
        (("--rate", "1", "--prefill-workers", "0", *LENGTHS), ("prefill_workers = 0",)),
        (("--rate", "1", "--decode-workers", "2", *LENGTHS), ("--prefill-workers",)),
        (
            (
                "--rate",
                "1",
                "--prefill-workers",
                "1",
                "--decode-workers",
                "3",
                "--dp",
                "2",
                *LENGTHS,
            ),
            ("dp = 2", "decode_workers = 3"),
        ),
        (("--rate", "1", "--prefill-workers", "1", "--num-gpus", "4", *LENGTHS), ("num_gpus = 4",)),
        (("--capacity", "--level", "chat", "--requests", "1", *LENGTHS), ("requests = 1",)),
        (("--rate", "1", "--transfer-rate", "5GB/s", *LENGTHS), ("--prefill-workers",)),
        (("--rate", "1", "--plot-kind", "timeline", *LENGTHS), ("plot_kind", "--plot FILE")),
        (("--rate", "1", "--policy", "statik", *LENGTHS), ("policy", "nearest: static")),
        (("--rate", "1", "--arrivals", "poison", *LENGTHS), ("nearest: poisson",)),
        (("--rate", "1", "--arrivals", "bursty", "--cv", "0", *LENGTHS), ("cv = 0.0",)),
        (("--rate", "1", "--share", "2", *LENGTHS), ("share = 2.0",)),
        (("--rate", "1", "--token-budget", "0", *LENGTHS), ("token_budget = 0",)),
        (("--rate", "1", "--memory-frac", "0.01", *LENGTHS), ("gpu", "more GPUs")),
        (("--rate", "1", "--cp", "2", *LENGTHS), ("context parallelism",)),
        (("--rate", "1", "--chrome-trace", "x.txt", *LENGTHS), (".json.gz", "chrome_trace")),
        (("--rate", "1", "--ttft", "-5", *LENGTHS), ("ttft = '-5'", "500ms")),
        (("--rate", "1", "--transfer-rate", "5", *LENGTHS), ("transfer_rate = '5'", "50GB/s")),
        (("--capacity", "--level", "chat", "--rate", "1", *LENGTHS), ("rate = 1.0", "--capacity")),
        (("--capacity", *LENGTHS), ("level",)),
        (("--capacity", "--level", "chat", "--tolerance", "9", *LENGTHS), ("tolerance = 9",)),
        (("--rate", "1", "--plot", "x.png", "--plot-kind", "goodput", *LENGTHS), ("--capacity",)),
        (("--rate", "1", "--records", "x.txt", *LENGTHS), ("records = 'x.txt'", ".parquet")),
        (("--trace", "missing.csv"), ("missing.csv", "no such file")),
        (("--trace", "missing.csv", *LENGTHS), ("the trace says it",)),
    ],
)
def test_bad_input_is_one_line(refused, arguments, words):
    err = refused(*SYSTEM, *arguments)
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
def test_faulty_traces_are_refused_with_their_line(refused, tmp_path, text, words):
    file = tmp_path / "t.csv"
    file.write_text(text)
    records = tmp_path / "r.csv"
    err = refused(*SYSTEM, "--trace", str(file), "--records", str(records))
    for word in words:
        assert word in err
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_trace_that_arrives_at_once_has_no_rate(run, refused, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(HEAD + "7,10,5\n7,10,5\n")
    assert "2 requests, all at one time" in run(*SYSTEM, "--trace", str(file))[1]
    assert (
        json.loads(run(*SYSTEM, "--trace", str(file), "--json")[1])["traffic"]["rate_per_s"] is None
    )
    for options in (("--rate", "5"), ("--capacity", "--level", "chat")):
        assert "all at one time" in refused(*SYSTEM, "--trace", str(file), *options)


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
    file.write_text(HEAD + "3000,1,1\n3002,2,2\n3004,3,3\n")  # a part of a longer trace
    assert times(n_requests=5).tolist() == [0, 2, 4, 6, 8]
    assert played(file).rate_per_s == 0.5
    assert times(rate_per_s=1.0).tolist() == [0, 1, 2]
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


def test_two_outputs_in_one_file_are_refused(refused, tmp_path: Path) -> None:
    both = tmp_path / "a.json"
    load = (*LENGTHS, "--rate", "1", "--requests", "5")
    err = refused(*SYSTEM, *load, "--records", str(both), "--chrome-trace", str(both))
    assert "also written by --records" in err
    assert not both.exists()


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
