"""Sweeps: same rows as one by one, in files of each kind, resumed after any stop."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtsim
from rtsim import sweep_rows, table_file
from rtsim.bulk import METRICS
from rtsim.cli.main import run
from rtsim.errors import NotSupported, OutputError, RtsimError, SpecError, UnknownName
from rtsim.grid import make_grid
from rtsim.parts import FileStore
from rtsim.selection import frontier
from rtsim.sweep import sweep

GRID: dict[str, Any] = {
    "model": ["gpt3-175b", "gpt-j-6b"],
    "gpu": "a100,h100",
    "tp": "1,3,8",
    "gpu.hbm_bytes_per_s": "0.5x:2x:x2",
    "batch_size": "1,8",
    "input_len": "100,512",
    "output_len": "1,64",
}
N_ROWS = 2 * 2 * 3 * 3 * 2 * 2 * 2


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts also of a small grid."""
    monkeypatch.setattr(sweep_rows, "_LEAST_PART", 16)


def as_table(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: column.tolist() for name, column in columns.items()}


def test_rows_are_those_of_predict_many() -> None:
    found = sweep(GRID)
    assert found.n_rows == found.n_kept == N_ROWS
    assert found.n_failed == sum(bool(error) for error in found.columns["error"]) > 0
    axes = {name: found.columns[name] for name in make_grid(GRID).axes}
    expected = rtsim.predict_many(as_table(axes))
    for name in (*METRICS, "error"):
        np.testing.assert_array_equal(found.columns[name], expected[name], err_msg=name)


def test_threads_change_nothing() -> None:
    one, three = sweep(GRID, threads=1), sweep(GRID, threads=3)
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, three.columns[name], err_msg=name)


def test_conditions_orders_and_frontiers() -> None:
    everything = sweep(GRID).columns
    fits = everything["fits"] & (everything["tpot_s"] < 0.05)
    found = sweep(GRID, where="fits and tpot_s < 0.05", sort="output_throughput:desc", top=7)
    expected = np.sort(everything["output_throughput"][fits])[::-1][:7]
    np.testing.assert_array_equal(found.columns["output_throughput"], expected)
    best = sweep(GRID, where="fits", pareto="ttft_s,max:output_throughput", sort="ttft_s").columns
    assert (np.diff(best["ttft_s"]) >= 0).all()
    assert (np.diff(best["output_throughput"]) >= 0).all()
    only = sweep(GRID, where="model == 'gpt-j-6b' and batch_size * 2 == 16 and error == ''")
    assert set(only.columns["model"]) == {"gpt-j-6b"}
    assert set(only.columns["batch_size"]) == {8}
    none = sweep(GRID, where="ttft_s < 0")
    assert none.n_kept == 0
    assert all(len(column) == 0 for column in none.columns.values())


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
@pytest.mark.parametrize("options", [{}, {"where": "fits", "sort": "tpot_s:desc"}, {"top": 5}])
def test_files_hold_the_same_rows(tmp_path: Path, ending: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"out.{ending}"
    written = sweep(GRID, output=path, **options)
    expected = sweep(GRID, **options).columns
    rows = read(path)
    assert written.columns == {}
    assert len(rows) == written.n_kept == len(expected["ttft_s"])
    for i, row in enumerate(rows):
        for name, column in expected.items():
            value, cell = column[i], row[name]
            if isinstance(value, float) and np.isnan(value):
                assert cell in (None, "")
            else:
                assert type(value)(cell == "True" if cell in ("True", "False") else cell) == value
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_csv_without_pyarrow_holds_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers may be written otherwise (1e+12), and texts with commas are quoted."""
    grid = {**GRID, "gpu": "h100,a100", "tp": "8,7"}  # 7 has no prediction: an error of some words
    sweep(grid, output=tmp_path / "arrow.csv")

    def missing() -> None:
        raise NotSupported("no pyarrow")

    monkeypatch.setattr(table_file, "_pyarrow", missing)
    sweep(grid, output=tmp_path / "plain.csv")
    fast, plain = read(tmp_path / "arrow.csv"), read(tmp_path / "plain.csv")
    assert len(fast) == len(plain) > 0
    assert any("," in row["error"] for row in plain)
    for one, other in zip(fast, plain, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            texts = name in ("model", "gpu", "gpu.hbm_bytes_per_s", "fits", "error") or "" in (
                one[name],
                other[name],
            )
            read_as = str if texts else float
            assert read_as(one[name]) == read_as(other[name]), name


def test_csv_and_json_of_no_rows(tmp_path: Path) -> None:
    for ending in ("csv", "json", "parquet"):
        sweep(GRID, where="ttft_s < 0", output=tmp_path / f"out.{ending}")
        assert read(tmp_path / f"out.{ending}") == []


# Stopping and going on ---------------------------------------------------------------------------


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("options", [{}, {"pareto": "ttft_s,max:output_throughput"}])
def test_a_stop_after_any_part_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    whole = tmp_path / "whole.csv"
    sweep(GRID, output=whole, **options)
    n_parts = sweep_rows.Request(make_grid(GRID)).n_parts
    assert n_parts > 5
    put = FileStore.put
    for stop in range(n_parts):
        path = tmp_path / f"{stop}.csv"
        stored: list[int] = []

        def stopping(self, number, part, stored=stored, stop=stop):
            if len(stored) == stop:
                raise Stopped
            put(self, number, part)
            stored.append(number)

        monkeypatch.setattr(FileStore, "put", stopping)
        with pytest.raises(Stopped):
            sweep(GRID, output=path, threads=1, **options)
        assert not path.exists()
        again: list[int] = []

        def noting(self, number, part, again=again):
            put(self, number, part)
            again.append(number)

        monkeypatch.setattr(FileStore, "put", noting)
        sweep(GRID, output=path, threads=1, **options)
        monkeypatch.setattr(FileStore, "put", put)
        assert sorted(stored + again) == list(range(n_parts))
        assert path.read_bytes() == whole.read_bytes()
        assert not Path(f"{path}.parts").exists()


def test_a_part_that_was_cut_off_is_computed_again(tmp_path: Path, monkeypatch) -> None:
    whole, path = tmp_path / "whole.csv", tmp_path / "out.csv"
    sweep(GRID, output=whole)
    write = FileStore.write
    monkeypatch.setattr(FileStore, "write", lambda *_: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        sweep(GRID, output=path)
    monkeypatch.setattr(FileStore, "write", write)
    folder = Path(f"{path}.parts")
    cut = sorted(folder.glob("*.npy"))[2]
    cut.write_bytes(cut.read_bytes()[:-100])
    (folder / ".0000001.npy.123.part").write_bytes(b"half")
    sorted(folder.glob("0*.json"))[4].unlink()
    sweep(GRID, output=path)
    assert path.read_bytes() == whole.read_bytes()


# A process of its own: a fork of one with threads may hang on their locks.
SLOW = f"""
import sys, time
from rtsim import sweep_rows
from rtsim.parts import FileStore
from rtsim.selection import frontier
from rtsim.sweep import sweep
put = FileStore.put
def slow(self, number, part):
    put(self, number, part)
    time.sleep(0.05)
FileStore.put = slow
sweep_rows._LEAST_PART = 16
sweep({GRID!r}, output=sys.argv[1], threads=1)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_continued(tmp_path: Path, sign: signal.Signals) -> None:
    whole, path = tmp_path / "whole.csv", tmp_path / "out.csv"
    sweep(GRID, output=whole)
    folder = Path(f"{path}.parts")
    command = [sys.executable, "-c", SLOW, str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        for _ in range(3000):
            if len(list(folder.glob("*.npy"))) >= 3 or process.poll() is not None:
                break
            time.sleep(0.02)
        process.send_signal(sign)
    done = len(list(folder.glob("[0-9]*.npy")))
    assert done >= 3
    assert not path.exists()
    sweep(GRID, output=path)
    assert path.read_bytes() == whole.read_bytes()


def test_another_sweep_to_the_same_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "out.csv"
    write = FileStore.write
    monkeypatch.setattr(FileStore, "write", lambda *_: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        sweep(GRID, output=path)
    monkeypatch.setattr(FileStore, "write", write)
    kept = sorted(entry.name for entry in Path(f"{path}.parts").iterdir())
    for other in ({"where": "fits"}, {"top": 3}, {"sort": "ttft_s"}):
        with pytest.raises(OutputError, match="another sweep"):
            sweep(GRID, output=path, **other)
    with pytest.raises(OutputError, match="another sweep"):
        sweep({**GRID, "tp": "1"}, output=path)
    assert sorted(entry.name for entry in Path(f"{path}.parts").iterdir()) == kept
    sweep(GRID, output=path)
    assert len(read(path)) == N_ROWS


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    seen: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if not seen:
            seen.append("")
            with pytest.raises(OutputError, match="another sweep is writing"):
                sweep(GRID, output=path)

    sweep(GRID, output=path, progress=meanwhile)
    assert seen
    assert len(read(path)) == N_ROWS


def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch) -> None:
    whole, path = tmp_path / "whole.csv", tmp_path / "out.csv"
    sweep(GRID, output=whole)
    real = np.lib.format.write_array_header_1_0
    calls: list[int] = []

    def full(file, header):
        calls.append(1)
        if len(calls) == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        real(file, header)

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OutputError, match="no space left on device; the same command goes on"):
        sweep(GRID, output=path, threads=1)
    assert not path.exists()
    assert len(list(Path(f"{path}.parts").glob("*.npy"))) == 3
    sweep(GRID, output=path, threads=1)
    assert path.read_bytes() == whole.read_bytes()


def test_what_was_at_the_file_stays_until_the_end(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "out.csv"
    path.write_text("mine")
    monkeypatch.setattr(FileStore, "write", lambda *_: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        sweep(GRID, output=path)
    assert path.read_text() == "mine"


# Bad input ---------------------------------------------------------------------------------------

SMALL = {"model": "gpt3-175b", "gpu": "a100", "tp": "8"}


@pytest.mark.parametrize(
    ("grid", "options", "error", "why"),
    [
        ({**SMALL, "tp": []}, {}, SpecError, "empty"),
        (SMALL, {"where": "fitz"}, UnknownName, "fits"),
        (SMALL, {"sort": "tpot"}, UnknownName, "tpot_s"),
        (SMALL, {"sort": "model"}, UnknownName, "column"),
        (SMALL, {"pareto": "tpot_s"}, SpecError, "two columns"),
        (SMALL, {"pareto": "tpot_s,max:tpot_s"}, SpecError, "tpot_s twice"),
        (SMALL, {"top": 0}, SpecError, "at least 1"),
        (SMALL, {"top": 1.5}, SpecError, "whole number"),
        (SMALL, {"threads": 0}, SpecError, "threads = 0"),
        (SMALL, {"threads": 1_000_000}, SpecError, "at most|1 to 1,024"),
        (None, {}, SpecError, "mapping of axes"),
        (SMALL, {"output": "/nowhere/out.csv"}, OutputError, "no folder"),
        (SMALL, {"output": "out.xls"}, SpecError, "parquet"),
        (SMALL, {"plot": "out.txt"}, SpecError, "png"),
        ({**SMALL, "tp": "7"}, {}, SpecError, "none has a prediction: tp = 7"),
        ({**SMALL, "gpu": "a1000"}, {}, UnknownName, "a100"),
        (
            {**SMALL, "batch_size": "1:1000000", "input_len": "1:1000000", "output_len": "1:4"},
            {}, SpecError, "--yes",
        ),
        (
            {**SMALL, **dict.fromkeys(("batch_size", "input_len", "output_len"), "1:1000000")},
            {"yes": True}, SpecError, "at most",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(grid, options, error, why) -> None:
    with pytest.raises(error, match=why) as caught:
        sweep(grid, **options)
    assert isinstance(caught.value, RtsimError)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_rows_without_a_prediction_keep_their_number_of_gpus() -> None:
    grid = {"model": "gpt-j-6b", "gpu": "a100", "tp": "2", "num_gpus": [1, 2, 3]}
    found = sweep(grid).columns
    assert sorted(zip(found["num_gpus"], found["error"] != "", strict=True)) == [
        (1, True), (2, False), (3, True),
    ]  # fmt: skip


def test_no_parts_are_left_by_a_sweep_without_a_row(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        sweep({**SMALL, "tp": "7"}, output=tmp_path / "out.csv")
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_says_what_is_missing(monkeypatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NotSupported, match=r"pip install rtsim\[parquet\]"):
        sweep(SMALL, output=tmp_path / "out.parquet")


# Command line ------------------------------------------------------------------------------------

COMMAND = ["sweep", "--arch", "gpt3-175b", "--gpu", "a100", "--tp", "2,8", "--batch-size", "1:8:x2"]


def test_the_command_shows_the_best_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMAND, "--where", "fits", "--top", "2"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split()[:2] == ["tp", "Batch"]
    assert [line.split()[:2] for line in lines[1:3]] == [["8", "8"], ["8", "4"]]
    assert "8 rows, 2 rows kept" in shown.out
    assert shown.err == ""


def test_a_wide_table_goes_on_below(capsys: pytest.CaptureFixture[str]) -> None:
    """All columns of all rows are there, within the width."""
    command = [
        "sweep", "--arch", "gpt-j-6b,llama-2-7b", "--gpu", "h100,gb200-nvl72", "--tp", "1,2",
        "--pp", "1,2", "--batch-size", "1,8", "--input-len", "64,512", "--set",
        "gpu.hbm_bytes_per_s=1x,2x", "--top", "3",
    ]  # fmt: skip
    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if line.startswith("#")]
    assert [head[0] for head in heads] == ["#"] * len(heads)
    titles = "Model GPU tp pp gpu.hbm_bytes_per_s Batch Prompt TTFT TPOT Latency Tok/s GPUs Memory"
    assert [title for head in heads for title in head[1:]] == [*titles.split(), "$/Mtok"]
    for number in "123":
        assert sum(line.startswith(f"{number} ") for line in lines) == len(heads) > 1
    assert run([*command, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["rows"][0]
    assert lines[1].split()[1:3] == [first["model"], first["gpu"]]


def test_the_command_writes_files_and_json(capsys, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, figure = tmp_path / "out.csv", tmp_path / "out.svg"
    arguments = [*COMMAND, "--pareto", "tpot_s,max:output_throughput"]
    assert run([*arguments, "-o", str(path), "--plot", str(figure)]) == 0
    assert f"to{path}" in "".join(capsys.readouterr().out.split())
    assert figure.read_text().startswith("<?xml")
    assert run([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == len(read(path))


def test_the_command_says_what_is_wrong(capsys) -> None:
    for more in (
        ["--where", "fit"],
        ["--tp", "5:1"],
        ["--set", "gpu.hbm_bytes_per_s"],
        ["--top", "x"],
    ):
        assert run([*COMMAND, *more]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1


def test_stacks_that_nobody_named_are_said_to_differ(capsys) -> None:
    grid = {"model": "gpt3-6.7b", "gpu": ["a100", "h100"], "output_len": 2}
    (note,) = sweep(grid).notes
    assert "a100-sxm4-80gb with megatron-lm, h100-sxm5-80gb with vllm" in note
    assert not sweep({**grid, "stack": "vllm"}).notes
    assert not sweep({**grid, "gpu": ["a100", "v100"]}).notes
    command = ["sweep", "--arch", "gpt3-6.7b", "--gpu", "a100,h100", "--output-len", "2"]
    assert run(command) == 0
    assert "Note: stacks differ" in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]


def test_the_figure_shows_the_frontier_of_all_rows(tmp_path: Path) -> None:
    """Whatever few rows are kept, and with what was computed before a stop."""
    every = sweep({**GRID}, where="fits", plot=tmp_path / "a.svg")
    few = sweep({**GRID}, where="fits", top=1, sort="tpot_s", plot=tmp_path / "b.svg")
    assert few.n_kept == 1
    x, y = (every.columns[name] for name in ("tpot_s", "usd_per_million_output_tokens"))
    best = frontier(x, y)
    assert len(best) > 1
    expected = sorted(zip(x[best], y[best], strict=True))
    for found in (every, few):
        assert sorted(zip(*found.frontier, strict=True)) == expected
    text = (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "time per output token (ms)" in text
    assert "USD per million output tokens" in text
