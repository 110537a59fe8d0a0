"""Tables of any kind as text in columns: CSV, gzipped CSV and Parquet, told apart by content."""

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

from rtsim import units
from rtsim.errors import DataError
from rtsim.output import replacing

_FIRST_DATA_LINE = 2
_ROWS_PER_BLOCK = 4096
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"


def read_cells(path: str | Path) -> tuple[dict[str, Sequence[str]], NDArray[np.int64]]:
    """A table of any kind as text: the cells of each column, and the line of each row.

    For readers that mark faulty rows instead of refusing the table. Raises DataError where it is
    no table at all.
    """
    parsed = parse(path)
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


def parse(path: str | Path) -> Parsed:
    """A file as text in columns; DataError where it is no table."""
    content = _read_bytes(path)
    read = _parse_parquet if content[:4] == _PARQUET_MAGIC else _parse_csv
    return read(path, content)


@dataclass(frozen=True)
class Parsed:
    """A table as text, before its kind is known. `columns`: the cells of each column."""

    header: list[str]
    columns: list[Sequence[str]]
    lines: NDArray[np.int64]
    may_repeat: bool  # whether looking for repeated rows is worth while


def _parse_csv(path: str | Path, content: bytes) -> Parsed:
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
    return Parsed(header, list(columns), lines, len(set(whole_lines)) < len(whole_lines))


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
    problem = f"{units.counted(len(row), 'field')} where the header has {width}"
    if line == last and len(row) < width:
        problem += " (is the file cut off?)"
    return DataError(path, problem, line=line)


def _parse_parquet(path: str | Path, content: bytes) -> Parsed:
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
    return Parsed(list(table.column_names), columns, np.arange(1, table.num_rows + 1), True)


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
