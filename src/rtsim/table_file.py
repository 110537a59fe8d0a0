"""Tables of rows as files: CSV, JSON (a list of objects), Parquet (with pyarrow).

Rows come in blocks, so that a table of any length is written. Missing numbers are empty in CSV,
null in JSON and Parquet.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rtsim.columns import coded
from rtsim.errors import NotSupported, SpecError
from rtsim.sweep_rows import TEXTS, Request

Array = NDArray[Any]
Block = dict[str, Array]

FORMATS = (".parquet", ".csv", ".json")


def check_format(path: str | Path, field: str = "output") -> None:
    """SpecError on `field` for another ending, NotSupported for Parquet without pyarrow."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise SpecError(field, str(path), f"must end in {', '.join(FORMATS)}")
    if ending == ".parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise NotSupported("Parquet needs pyarrow: pip install rtsim[parquet]") from None
    return pyarrow


def write_table(file: BinaryIO, request: Request, blocks: Iterable[Block], ending: str) -> None:
    """Write blocks of rows in the format of a file name's ending."""
    if ending == ".parquet":
        _write_parquet(file, request, blocks)
    else:
        _TEXT_WRITERS[ending](file, list(request.columns), blocks)


def write_columns(
    file: BinaryIO, columns: Mapping[str, type], blocks: Iterable[Block], ending: str
) -> None:
    """Write blocks of columns of stated types (int, float or str), the rows of any table."""
    if ending != ".parquet":
        _TEXT_WRITERS[ending](file, list(columns), blocks)
        return
    arrow = _pyarrow()
    kinds = {int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
    schema = arrow.schema([arrow.field(name, kinds[kind]) for name, kind in columns.items()])
    texts = [name for name, kind in columns.items() if kind is str]
    with arrow.parquet.ParquetWriter(file, schema, use_dictionary=texts) as writer:
        for block in blocks:
            arrays = [
                arrow.array(_cells(block[name]) if kind is str else block[name], kinds[kind],
                            mask=np.isnan(block[name]) if kind is float else None)
                for name, kind in columns.items()
            ]  # fmt: skip
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _cells(column: Array) -> list[Any]:
    """Plain Python values, None for missing ones."""
    values = column.tolist()
    if column.dtype.kind == "f" and np.isnan(column).any():
        missing = np.isnan(column).tolist()
        return [None if gone else v for v, gone in zip(values, missing, strict=True)]
    return values  # type: ignore[no-any-return]


def _write_csv(file: BinaryIO, columns: list[str], blocks: Iterable[Block]) -> None:
    """By pyarrow where it is installed, several times as fast; the same values either way."""
    try:
        _write_csv_by_arrow(file, columns, blocks, _pyarrow())
    except NotSupported:
        _write_csv_by_row(file, columns, blocks)


def _write_csv_by_arrow(
    file: BinaryIO, columns: list[str], blocks: Iterable[Block], arrow: Any
) -> None:
    import pyarrow.csv

    file.write((",".join(columns) + "\n").encode())
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
    for block in blocks:
        arrays = [_csv_array(block[name], arrow) for name in columns]
        if len(block[columns[0]]):
            pyarrow.csv.write_csv(arrow.Table.from_arrays(arrays, names=columns), file, options)


def _csv_array(column: Array, arrow: Any) -> Any:
    if column.dtype == object:
        found = coded(column, len(column))
        texts = arrow.array([value or None for value in found.values], arrow.string())
        return texts.take(arrow.array(found.codes))
    if column.dtype == np.bool_:
        return arrow.array(np.where(column, "True", "False"))
    return _arrow_array(column, arrow.from_numpy_dtype(column.dtype), arrow)


def _write_csv_by_row(file: BinaryIO, columns: list[str], blocks: Iterable[Block]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for block in blocks:
        writer.writerows(zip(*(_cells(block[name]) for name in columns), strict=True))
    text.flush()
    text.detach()


def _write_json(file: BinaryIO, columns: list[str], blocks: Iterable[Block]) -> None:
    before = b"[\n"
    encode = json.JSONEncoder(allow_nan=False).encode
    for block in blocks:
        cells = [_cells(block[name]) for name in columns]
        for row in zip(*cells, strict=True):
            file.write(before + encode(dict(zip(columns, row, strict=True))).encode())
            before = b",\n"
    file.write(b"\n]\n" if before == b",\n" else b"[]\n")


_TEXT_WRITERS = {".csv": _write_csv, ".json": _write_json}


def _write_parquet(file: BinaryIO, request: Request, blocks: Iterable[Block]) -> None:
    """Texts and axes are stored as codes into their values; numbers plainly: they hardly repeat."""
    arrow = _pyarrow()
    axes = set(request.grid.axes)
    schema = _schema(request, arrow)
    repeated = [name for name in request.columns if name in axes or name in (*TEXTS, "num_gpus")]
    with arrow.parquet.ParquetWriter(
        file, schema, use_dictionary=repeated, compression="snappy"
    ) as writer:
        for block in blocks:
            arrays = [
                _arrow_array(block[name], field.type, arrow)
                for name, field in zip(request.columns, schema, strict=True)
            ]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _schema(request: Request, arrow: Any) -> Any:
    text = arrow.dictionary(arrow.int32(), arrow.string())
    kinds = {"i": arrow.int64(), "f": arrow.float64(), "O": text}
    fields = []
    for name in request.columns:
        kind = arrow.float64()
        if name in request.grid.axes:
            kind = kinds[request.grid.arrays[name].dtype.kind]
        elif name in TEXTS:
            kind = text
        elif name in ("fits", "num_gpus"):
            kind = arrow.bool_() if name == "fits" else arrow.int64()
        fields.append(arrow.field(name, kind))
    return arrow.schema(fields)


def _arrow_array(column: Array, kind: Any, arrow: Any) -> Any:
    if column.dtype == object:
        found = coded(column, len(column))
        texts = ["" if value is None else value for value in found.values]
        codes = arrow.array(found.codes.astype(np.int32))
        return arrow.DictionaryArray.from_arrays(codes, arrow.array(texts, arrow.string()))
    if column.dtype.kind == "f":
        return arrow.array(column, kind, mask=np.isnan(column))
    return arrow.array(column, kind)
