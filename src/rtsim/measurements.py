"""Reading, checking and writing measurement tables (the format is `measurement_schema`).

A table that is read is a dict of NumPy arrays, one per column of its kind: text as str, counts
as int64, everything else as float64. Faults that would spoil a result (a missing column, a
malformed row, NaN, a time that is not above zero) raise DataError with file and line. Repeated
rows are kept and marked.

Speed: about 200,000 rows a second.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import DataError, nearest_names
from rtsim.measurement_schema import KINDS, Column, Kind
from rtsim.output import replacing

Columns = dict[str, NDArray[Any]]

UNKNOWN_KIND = "unknown"
# A header with at least this share of a kind's required columns is taken for a faulty table of
# that kind; with less it is a table of something else.
LIKENESS = 0.6
_FIRST_DATA_LINE = 2
_ROWS_PER_BLOCK = 4096
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_LARGEST_COUNT = 2**53  # counts beyond it would lose digits as floats in the kernels


@dataclass(frozen=True)
class Table:
    """A measurement table. `columns` is empty when `kind` is UNKNOWN_KIND.

    `lines` are the line numbers of the rows in the file (row numbers from 1 for Parquet);
    `repeated` marks rows that are equal to an earlier one in every column.
    """

    file: str
    kind: str
    columns: Columns
    lines: NDArray[np.int64]
    repeated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lines)


def read_table(path: str | Path) -> Table:
    """Read and check one table: .csv, gzipped CSV or Parquet, told apart by content.

    Raises DataError (one line, with the file and, where there is one, the line).
    """
    content = _read_bytes(path)
    parse = _parse_parquet if content[:4] == _PARQUET_MAGIC else _parse_csv
    parsed = parse(path, content)
    kind = _kind_of(path, parsed)
    repeated = _repeated(parsed)
    if kind is None:
        return Table(str(path), UNKNOWN_KIND, {}, parsed.lines, repeated)
    columns: Columns = {}
    for column in kind.columns:
        if column.name in parsed.header:
            cells = parsed.columns[parsed.header.index(column.name)]
            columns[column.name] = _convert(path, column, cells, parsed.lines)
        else:
            columns[column.name] = _absent(column, len(parsed.lines))
    return Table(str(path), kind.name, columns, parsed.lines, repeated)


def read_cells(path: str | Path) -> tuple[dict[str, Sequence[str]], NDArray[np.int64]]:
    """A table of any kind as text: the cells of each column, and the line of each row.

    For readers that mark faulty rows instead of refusing the table. Raises DataError where it is
    no table at all.
    """
    content = _read_bytes(path)
    parse = _parse_parquet if content[:4] == _PARQUET_MAGIC else _parse_csv
    parsed = parse(path, content)
    return dict(zip(parsed.header, parsed.columns, strict=True)), parsed.lines


def write_table(path: str | Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
    """Write columns as CSV, gzipped for *.gz, Parquet for *.parquet; whole or not at all.

    Missing numbers (NaN) are written as empty fields. Raises OutputError.
    """
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"columns of different lengths: {sorted(lengths)}")
    suffix = Path(path).suffix
    if suffix == ".parquet":
        content = _parquet_bytes(columns)
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(_cells(column) for column in columns.values()), strict=True))
        content = text.getvalue().encode()
        if suffix == ".gz":
            content = gzip.compress(content, mtime=0)  # no clock: equal tables, equal files
    with replacing(path) as file:
        file.write(content)


def _read_bytes(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    except OSError as error:
        raise DataError(path, (error.strerror or str(error)).lower()) from error
    if content[:2] == _GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(path, "truncated or damaged gzip data") from error
    if not content.strip():
        raise DataError(path, "the file is empty")
    return content


@dataclass(frozen=True)
class _Parsed:
    """A table as text, before its kind is known. `columns`: the cells of each column."""

    header: list[str]
    columns: list[Sequence[str]]
    lines: NDArray[np.int64]
    may_repeat: bool  # whether looking for repeated rows is worth while


def _parse_csv(path: str | Path, content: bytes) -> _Parsed:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(path, "not a text file in UTF-8", line=line) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(filter(None, reader))]
        _check_header(path, header, reader.line_num)
        columns: list[list[str]] = [[] for _ in header]
        # By blocks of rows: rows that live no longer than that cost the garbage collector nothing.
        while block := list(islice(reader, _ROWS_PER_BLOCK)):
            if set(map(len, block)) != {len(header)}:
                block = [row for row in block if row]
                if any(len(row) != len(header) for row in block):
                    raise _wrong_width(path, text, len(header))
            for cells, new in zip(columns, zip(*block, strict=True), strict=False):
                cells.extend(new)
    except csv.Error as error:
        raise DataError(path, f"malformed CSV: {error}", line=reader.line_num) from None
    rows = len(columns[0])
    if rows == 0:
        raise DataError(path, "the table has a header but no rows")
    lines = np.arange(_FIRST_DATA_LINE, _FIRST_DATA_LINE + rows)
    if reader.line_num != int(lines[-1]):  # blank lines, or line breaks inside quotes
        lines = np.array([line for line, _ in _numbered_rows(text)][1:], np.int64)
    whole_lines = text.split("\n")
    return _Parsed(header, list(columns), lines, len(set(whole_lines)) < len(whole_lines))


def _check_header(path: str | Path, header: list[str], line: int) -> None:
    if len(header) == 1:
        raise DataError(path, "not a CSV table: no commas in the header", line=line)
    doubled = next((name for name in header if header.count(name) > 1), None)
    if doubled is not None:
        raise DataError(path, f"column '{doubled}' appears twice", line=line)


def _numbered_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of the line it ends on."""
    reader = csv.reader(io.StringIO(text, newline=""))
    for row in reader:
        if row:
            yield reader.line_num, row


def _wrong_width(path: str | Path, text: str, width: int) -> DataError:
    last = text.rstrip("\r\n").count("\n") + 1
    line, row = next((n, row) for n, row in _numbered_rows(text) if len(row) != width)
    problem = f"{len(row)} fields where the header has {width}"
    if line == last and len(row) < width:
        problem += " (is the file cut off?)"
    return DataError(path, problem, line=line)


def _parse_parquet(path: str | Path, content: bytes) -> _Parsed:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(path, "reading Parquet needs pyarrow: pip install rtsim[parquet]") from None
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(path, f"damaged Parquet data: {str(error).splitlines()[0]}") from None
    if table.num_rows == 0:
        raise DataError(path, "the table has no rows")
    columns: list[Sequence[str]] = [
        ["" if cell is None else str(cell) for cell in column.to_pylist()]
        for column in table.columns
    ]
    return _Parsed(list(table.column_names), columns, np.arange(1, table.num_rows + 1), True)


def _parquet_bytes(columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("Parquet", "writing it needs pyarrow: pip install rtsim[parquet]") from None
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({k: list(v) for k, v in columns.items()}), buffer)
    return buffer.getvalue()


def _cells(column: Sequence[Any] | NDArray[Any]) -> list[Any]:
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return ["" if isinstance(v, float) and math.isnan(v) else v for v in values]


def _kind_of(path: str | Path, parsed: _Parsed) -> Kind | None:
    """The kind whose columns are there; None where the header resembles no kind.

    Raises DataError where a table is clearly of one kind but lacks or misnames a column.
    """
    header = parsed.header
    names = set(header)
    whole = [kind for kind in KINDS.values() if all(c.name in names for c in kind.required)]
    if whole:
        known = {kind.name: sum(c.name in names for c in kind.columns) for kind in whole}
        kind = max(whole, key=lambda k: known[k.name])
        if kind.name.startswith("attention_"):
            kind = _attention_kind(path, parsed.columns[header.index("query_tokens")])
        _refuse_misnamed(path, header, kind)
        return kind
    likeness = {
        name: sum(c.name in names for c in kind.required) / len(kind.required)
        for name, kind in KINDS.items()
    }
    best = max(likeness, key=lambda name: (likeness[name], name in Path(path).name))
    if likeness[best] < LIKENESS:
        return None
    missing = [c.name for c in KINDS[best].required if c.name not in names]
    others = [n for n in header if n not in {c.name for c in KINDS[best].columns}]
    near = nearest_names(missing[0], others, count=1)
    problem = f"looks like a table of kind {best}, but column '{missing[0]}' is missing"
    if len(missing) > 1:
        problem += f" (and {', '.join(missing[1:])})"
    if near:
        problem += f"; is it '{near[0]}'?"
    raise DataError(path, problem, line=1)


def _attention_kind(path: str | Path, query_tokens: Sequence[Any]) -> Kind:
    """Both attention kinds have the same columns: more than one new token is prefill."""
    if "prefill" in Path(path).name or any(cell.strip() != "1" for cell in query_tokens):
        return KINDS["attention_prefill"]
    return KINDS["attention_decode"]


def _refuse_misnamed(path: str | Path, header: list[str], kind: Kind) -> None:
    """A foreign column that is nearly an absent optional one is taken for a misspelling."""
    known = {c.name for c in kind.columns}
    absent = [c.name for c in kind.columns if c.name not in header]
    for name in header:
        if name in known:
            continue
        near = nearest_names(name, absent, count=1)
        if near:
            problem = f"unknown column '{name}' in a table of kind {kind.name}"
            raise DataError(path, f"{problem}; is it '{near[0]}'?", line=1)


def _absent(column: Column, rows: int) -> NDArray[Any]:
    # No dtype for text: np.str_ would cut it to one character.
    dtype: Any = {"text": None, "count": np.int64}.get(column.type, np.float64)
    return np.full(rows, column.default, dtype)


def _convert(
    path: str | Path, column: Column, cells: Sequence[str], lines: NDArray[np.int64]
) -> NDArray[Any]:
    """Cells of one column as an array; raises DataError naming the first faulty line."""
    if column.type == "text":
        return _convert_text(path, column, cells, lines)
    try:
        if column.default is not None:
            absent = str(column.default)
            cells = [cell or absent for cell in cells]
        if column.type == "count":
            counts = np.fromiter(map(int, cells), np.int64, len(cells))
            faulty = (counts < column.least) | (counts > _LARGEST_COUNT)
            if not faulty.any():
                return counts
        else:
            numbers = np.fromiter(map(float, cells), np.float64, len(cells))
            right = np.isfinite(numbers)
            if column.type == "measured":
                right &= numbers > 0.0
            elif _may_be_nan(column):
                right |= np.isnan(numbers)
            if right.all():
                return numbers
    except (ValueError, OverflowError):
        pass  # an absent value, "8.0" for a count, or a fault: cell by cell below
    return _convert_slowly(path, column, cells, lines)


def _convert_text(
    path: str | Path, column: Column, cells: Sequence[str], lines: NDArray[np.int64]
) -> NDArray[np.str_]:
    # Few texts, many rows: converting each text once is five times as fast.
    code_of = {text: i for i, text in enumerate(dict.fromkeys(cells))}
    if "" in code_of and column.default is None:
        line = int(lines[cells.index("")])
        raise DataError(path, "the value is missing", line=line, column=column.name)
    texts = np.array([text or column.default for text in code_of], np.str_)
    return texts[np.fromiter(map(code_of.__getitem__, cells), np.intp, len(cells))]


def _convert_slowly(
    path: str | Path, column: Column, cells: Sequence[str], lines: NDArray[np.int64]
) -> NDArray[Any]:
    values: list[Any] = []
    problems: list[tuple[int, str]] = []
    for cell, line in zip(cells, lines.tolist(), strict=True):
        value, problem = _number(column, cell)
        values.append(value)
        if problem:
            problems.append((line, problem))
    if problems:
        line, problem = problems[0]
        if len(problems) > 1:
            problem += f" (and {len(problems) - 1} more such rows)"
        raise DataError(path, problem, line=line, column=column.name)
    return np.array(values, np.int64 if column.type == "count" else np.float64)


def _number(column: Column, cell: str) -> tuple[Any, str]:
    """The value of a cell and "", or a stand-in and what is wrong with it."""
    text = cell.strip()
    if not text:
        if column.default is None:
            return 0, "the value is missing"
        return column.default, ""
    try:
        number = float(text)
    except ValueError:
        return 0, f"'{text}' is not a number"
    if not math.isfinite(number) and not (math.isnan(number) and _may_be_nan(column)):
        return 0, f"'{text}' is not a finite number"
    if column.type == "measured" and number <= 0.0:
        return 0, f"{text} is not a measured value: it must be above zero"
    if column.type != "count":
        return number, ""
    if number != int(number):
        return 0, f"{text} is not a whole number"
    if not column.least <= number <= _LARGEST_COUNT:
        return 0, f"{text} is out of range: it must be at least {column.least}"
    return int(number), ""


def _may_be_nan(column: Column) -> bool:
    return isinstance(column.default, float) and math.isnan(column.default)


def _repeated(parsed: _Parsed) -> NDArray[np.bool_]:
    """Marks rows that are equal to an earlier one."""
    marks: NDArray[np.bool_] = np.zeros(len(parsed.lines), np.bool_)
    if not parsed.may_repeat:
        return marks
    seen: set[tuple[str, ...]] = set()
    for i, row in enumerate(zip(*parsed.columns, strict=True)):
        marks[i] = row in seen
        seen.add(row)
    return marks
