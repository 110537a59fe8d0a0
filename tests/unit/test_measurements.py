"""Measurement tables: what is read, what is refused, and in which words."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from rtsim.errors import DataError, OutputError
from rtsim.measurement_schema import KINDS
from rtsim.measurements import UNKNOWN_KIND, read_table
from rtsim.table_text import write_table

GEMM = """\
source,gpu,stack,stack_version,kernel,dtype,op,model,tp,m,n,k,batch,time_us
lab,A100,vllm,0.1,,bf16,linear,,,64,12288,4096,1,190.5
lab,A100,vllm,0.1,,bf16,linear,opt,8,128,12288,4096,1,200.25
"""


def write(folder: Path, text: str, name: str = "gemm.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_columns_have_types_and_defaults(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, GEMM))
    assert table.kind == "gemm"
    assert len(table) == 2
    assert table.columns["m"].tolist() == [64, 128]
    assert table.columns["m"].dtype == np.int64
    assert table.columns["time_us"].tolist() == [190.5, 200.25]
    assert table.columns["tp"].tolist() == [0, 8]  # 0: not stated
    assert table.columns["model"].tolist() == ["", "opt"]
    assert table.lines.tolist() == [2, 3]
    assert set(table.columns) == {column.name for column in KINDS["gemm"].columns}


def test_absent_optional_columns_take_their_default(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "gpu,dtype,m,n,k,time_us\nA100,fp16,1,2,3,4\n"))
    assert table.kind == "gemm"
    assert table.columns["batch"].tolist() == [1]
    assert table.columns["op"].tolist() == ["linear"]


@pytest.mark.parametrize("name", ["gemm.csv.gz", "gemm.csv"])
def test_gzip_is_told_by_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(GEMM.encode()))
    assert read_table(path).columns["n"].tolist() == [12288, 12288]


def test_byte_order_mark_blank_lines_and_quotes(tmp_path: Path) -> None:
    header, first, second = GEMM.splitlines()
    quoted = first.replace("linear", '"lin\near"')
    text = "\ufeff" + "\n".join([header, "", quoted, second]) + "\n\n"
    table = read_table(write(tmp_path, text))
    assert table.columns["op"].tolist() == ["lin\near", "linear"]
    assert table.lines.tolist() == [4, 5]


def test_repeated_rows_are_marked_not_dropped(tmp_path: Path) -> None:
    last = GEMM.splitlines()[-1]
    table = read_table(write(tmp_path, GEMM + last + "\n"))
    assert table.repeated.tolist() == [False, False, True]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_what_is_written_reads_back(tmp_path: Path, suffix: str) -> None:
    columns = read_table(write(tmp_path, GEMM)).columns
    path = tmp_path / f"copy{suffix}"
    write_table(path, columns)
    again = read_table(path)
    assert again.kind == "gemm"
    for name, values in columns.items():
        assert again.columns[name].tolist() == values.tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["gemm.csv", path.name])


def test_equal_tables_are_equal_files(tmp_path: Path) -> None:
    columns = read_table(write(tmp_path, GEMM)).columns
    for name in ("a.csv.gz", "b.csv.gz"):
        write_table(tmp_path / name, columns)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_missing_numbers_survive_writing(tmp_path: Path) -> None:
    text = "model,prompt_tokens,prefill_s,per_output_token_s,overhead_s\nj1,8,0.1,0.2,0.3\n"
    columns = read_table(write(tmp_path, text, "d.csv")).columns
    write_table(tmp_path / "e.csv", {**columns, "extra": np.array([np.nan])})
    assert (tmp_path / "e.csv").read_text().splitlines()[1].endswith(",0.3,")


def test_unwritable_table_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        write_table(tmp_path / "no" / "gemm.csv", {"m": [1]})
    assert list(tmp_path.iterdir()) == []


ATTENTION = (
    "gpu,dtype,batch,query_tokens,context_tokens,num_heads,num_kv_heads,head_dim,time_us\n"
    "A100,bf16,1,{query},4096,32,8,128,100\n"
)


@pytest.mark.parametrize(
    ("name", "query", "kind"),
    [
        ("t.csv", 1, "attention_decode"),
        ("t.csv", 7, "attention_prefill"),
        ("attention_prefill.csv", 1, "attention_prefill"),
    ],
)
def test_attention_kinds(tmp_path: Path, name: str, query: int, kind: str) -> None:
    assert read_table(write(tmp_path, ATTENTION.format(query=query), name)).kind == kind


def test_other_tables_are_of_unknown_kind(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "gpu,price\nA100,2\nH100,3\n"))
    assert (table.kind, len(table), table.columns) == (UNKNOWN_KIND, 2, {})


def changed(old: str, new: str) -> str:
    assert old in GEMM
    return GEMM.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (" \n \n", "the file is empty"),
        (GEMM.splitlines()[0] + "\n", "a header but no rows"),
        (GEMM.replace(",", ";"), "line 1: not a CSV table"),
        (changed("time_us", "time_ms"), "column 'time_us' is missing; is it 'time_ms'?"),
        (changed("batch,time", "batches,time"), "unknown column 'batches'.* is it 'batch'?"),
        (changed("n,k,batch", "n,n,batch"), "column 'n' appears twice"),
        (changed("190.5", "nan"), "line 2, column time_us: 'nan' is not a finite number"),
        (changed("190.5", "inf"), "line 2, column time_us: 'inf' is not a finite number"),
        (changed("200.25", "-3"), "line 3, column time_us: -3 is not a measured value"),
        (changed("200.25", "0"), "line 3, column time_us: 0 is not a measured value"),
        (changed("200.25", "fast"), "line 3, column time_us: 'fast' is not a number"),
        (changed("200.25", ""), "line 3, column time_us: the value is missing"),
        (changed("128,", "12.5,"), "line 3, column m: 12.5 is not a whole number"),
        (changed("128,", "0,"), "line 3, column m: 0 is out of range"),
        (changed("128,", "-1,"), "line 3, column m: -1 is out of range"),
        (changed("128,", "1e300,"), "line 3, column m: 1e300 is out of range"),
        (changed("lab,A100,vllm", "lab,,vllm"), "line 2, column gpu: the value is missing"),
        (GEMM[:-20], r"line 3: 11 fields where the header has 14 \(is the file cut off\?\)"),
        (GEMM + 'lab,"A1', "malformed CSV"),
        (changed("opt", "opt,opt"), "line 3: 15 fields where the header has 14$"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_faulty_rows_are_counted(tmp_path: Path) -> None:
    text = GEMM.replace("190.5", "nan").replace("200.25", "0")
    with pytest.raises(DataError, match=r"line 2.*\(and 1 more such rows\)"):
        read_table(write(tmp_path, text))


def test_counts_may_be_written_as_floats(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, changed("128,", "128.0,"))).columns["m"].tolist() == [64, 128]


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="directory"):
        read_table(tmp_path)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(GEMM.encode())[:-9])
    with pytest.raises(DataError, match="truncated or damaged gzip"):
        read_table(tmp_path / "cut.csv.gz")
    (tmp_path / "latin.csv").write_bytes(b"gpu,m\nA\xe9,1\n")
    with pytest.raises(DataError, match="line 2: not a text file"):
        read_table(tmp_path / "latin.csv")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="damaged Parquet"):
        read_table(tmp_path / "cut.parquet")


def test_schema_is_documented() -> None:
    for kind in KINDS.values():
        names = [column.name for column in kind.columns]
        assert len(names) == len(set(names)), kind.name
        assert kind.meaning
        assert any(column.type == "measured" for column in kind.columns), kind.name
        for column in kind.columns:
            if column.type == "measured":
                assert column.name.endswith(("_us", "_ms", "_s", "_tokens")), column.name
            if column.default is not None and column.type == "count":
                assert isinstance(column.default, int)
                assert column.default >= column.least, column.name
