"""Columns of any table as codes into their distinct values, without an object per row.

A table may be a mapping of columns (scalars hold for all rows), a NumPy structured array, a
pandas or polars frame, or an Arrow table; they are told apart by what they can do, and nothing is
imported for them. Missing values (None, NaN, "") are None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import SpecError

Array = NDArray[Any]
Codes = NDArray[np.int64]

_SMALL_RANGE = 1 << 22  # whole numbers in a range up to this are coded without sorting


class Coded(NamedTuple):
    """A column: row i holds values[codes[i]]. Values are plain Python objects, None = missing."""

    codes: Codes
    values: list[Any]


def columns_of(table: Any) -> tuple[dict[str, Any], int]:
    """(columns as arrays or lists by name, number of rows) of a table of any kind.

    Raises SpecError for what is no table, and for columns of unequal length.
    """
    if isinstance(table, Mapping):
        found = {str(name): column for name, column in table.items()}
    elif isinstance(table, np.ndarray) and table.dtype.names:
        found = {name: table[name] for name in table.dtype.names}
    elif hasattr(table, "column_names") and hasattr(table, "column"):  # Arrow
        found = {name: table.column(name) for name in table.column_names}
    elif hasattr(table, "get_columns"):  # polars
        found = {column.name: column for column in table.get_columns()}
    elif hasattr(table, "iloc") and hasattr(table, "columns"):  # pandas
        found = {str(name): table[name] for name in table.columns}
    else:
        raise SpecError(
            "table", type(table).__name__,
            "must be a mapping of columns, a structured array, a data frame or an Arrow table",
        )  # fmt: skip
    arrays = {
        name: column if _is_scalar(column) else _array(column) for name, column in found.items()
    }
    lengths = {name: len(column) for name, column in arrays.items() if not _is_scalar(column)}
    n_rows = next(iter(lengths.values()), 1 if arrays else 0)
    for name, length in lengths.items():
        if length != n_rows:
            raise SpecError(
                "table", f"{length} rows", f"column {name} must have {n_rows} as others"
            )
    return arrays, n_rows


def _is_scalar(column: Any) -> bool:
    if isinstance(column, str | int | float | None):
        return True
    if isinstance(column, np.ndarray):
        return column.ndim == 0
    return not hasattr(column, "__len__")


def _array(column: Any) -> Array:
    """A column as a NumPy array of one axis."""
    if isinstance(column, np.ndarray):
        array = column
    elif hasattr(column, "to_numpy"):  # pandas, polars and Arrow
        kind = str(getattr(column, "type", ""))
        if kind.startswith("dictionary"):
            column = column.cast(column.type.value_type)
        options = {"zero_copy_only": False} if hasattr(column, "null_count") and kind and not (
            hasattr(column, "chunks")
        ) else {}  # fmt: skip
        array = column.to_numpy(**options)
    else:
        items = list(column)
        plain = all(isinstance(item, int | float) and not isinstance(item, bool) for item in items)
        array = np.array(items) if plain and items else _objects(items)
    if array.ndim != 1:
        raise SpecError("table", f"shape {array.shape}", "columns must have one axis")
    return array


def _objects(items: Sequence[Any]) -> Array:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def coded(column: Any, n_rows: int) -> Coded:
    """Codes and distinct values of a column; numbers come sorted."""
    if _is_scalar(column):
        value = column.item() if isinstance(column, np.ndarray | np.generic) else column
        return Coded(np.zeros(n_rows, np.int64), [_plain(value)])
    if len(column) == 0:
        return Coded(np.zeros(0, np.int64), [])
    distinct = _of_objects if column.dtype == object else _distinct
    runs = _runs(column)
    if runs is not None:
        starts, lengths = runs
        short = distinct(column[starts])
        return Coded(np.repeat(short.codes, lengths), short.values)
    return distinct(column)


def _runs(column: Array) -> tuple[Array, Array] | None:
    """(starts, lengths) of runs of equal values, where that makes the column much shorter."""
    starts = np.concatenate(([0], np.flatnonzero(column[1:] != column[:-1]) + 1))
    if len(starts) > len(column) // 4:
        return None
    return starts, np.diff(np.append(starts, len(column)))


def _distinct(column: Array) -> Coded:
    if column.dtype.kind in "iub":
        low, high = int(column.min()), int(column.max())
        if high - low < _SMALL_RANGE:
            offsets = column.astype(np.int64) - low
            there = np.zeros(high - low + 1, np.bool_)
            there[offsets] = True
            places = np.cumsum(there) - 1
            return Coded(places[offsets], (np.flatnonzero(there) + low).tolist())
    if column.dtype.kind == "f":
        whole = np.isfinite(column) & (column == np.floor(column)) & (np.abs(column) < 2.0**53)
        if whole.all():
            whole_numbers = _distinct(column.astype(np.int64))
            return Coded(whole_numbers.codes, list(map(float, whole_numbers.values)))
    values, codes = np.unique(column, return_inverse=True)
    return Coded(codes.astype(np.int64, copy=False), [_plain(value) for value in values.tolist()])


def _of_objects(column: Array) -> Coded:
    """Of Python objects that are there already; equal ones share a code."""
    known: dict[Any, int] = {}
    values: list[Any] = []
    codes = np.empty(len(column), np.int64)
    for i, item in enumerate(column):
        try:
            code = known.get(item)
        except TypeError:
            raise SpecError("table", item, "cells must be names or numbers") from None
        if code is None:
            code = known[item] = len(values)
            values.append(_plain(item))
        codes[i] = code
    return Coded(codes, values)


def _plain(value: Any) -> Any:
    """A cell as a plain Python object, a missing one as None."""
    if isinstance(value, np.generic):
        value = value.item()
    missing = (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
        or type(value).__name__ in ("NAType", "NaTType")
    )
    return None if missing else value
