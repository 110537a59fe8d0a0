"""Request traces: when requests of a service arrived, and how many tokens they had.

A CSV table, plain or gzipped, with columns `arrival_s` (seconds, rising),
`prompt_tokens`, `output_tokens` and, where there is one, `priority` (lower goes first). It is read
in blocks, so that a trace of any length needs little memory. What no server could be sent (text,
fractions of tokens, times that go back) is refused with its line; zero tokens, or more than a model
takes, are sent to the simulated server, which rejects them.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import DataError, nearest_names

Array = NDArray[Any]

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
BLOCK_ROWS = 16_384
_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_S = 1e9  # thirty years
_MOST = 2**53  # beyond it floats lose digits


class Requests(NamedTuple):
    """Requests in order of arrival: seconds, tokens, tokens, priority; arrays (requests,)."""

    arrival_s: Array
    prompt_tokens: Array
    output_tokens: Array
    priority: Array


def read_blocks(path: str | Path) -> Iterator[Requests]:
    """The requests of a trace in blocks of BLOCK_ROWS. Raises DataError with the line."""
    try:
        with Path(path).open("rb") as file:
            packed = file.read(2) == _GZIP_MAGIC
        with Path(path).open("rb") as file, gzip.GzipFile(fileobj=file) as unpacked:
            binary: Any = unpacked if packed else file
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
                yield from _blocks(path, text)
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(path, "truncated or damaged gzip data") from None
    except UnicodeDecodeError:
        raise DataError(path, "is no text in UTF-8") from None
    except OSError as error:
        raise DataError(path, (error.strerror or str(error)).lower()) from error


def read_trace(path: str | Path) -> Requests:
    """A whole trace in memory, 32 bytes a request."""
    blocks = list(read_blocks(path))
    return Requests(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))


def _blocks(path: str | Path, text: io.TextIOWrapper) -> Iterator[Requests]:
    rows = csv.reader(text)
    try:
        header = [name.strip() for name in next(rows, [])]
        if not header:
            raise DataError(path, "the file is empty")
        places = [_place(path, header, name) for name in COLUMNS]
        urgent = header.index("priority") if "priority" in header else None
        last_s = -math.inf
        line = 1
        while cells := list(islice(rows, BLOCK_ROWS)):
            lines = list(range(line + 1, line + 1 + len(cells)))
            line += len(cells)
            kept = [(n, row) for n, row in zip(lines, cells, strict=True) if row]
            if not kept:
                continue
            block = _block(path, kept, header, places, urgent)
            _check_order(path, block.arrival_s, last_s, [n for n, _ in kept])
            last_s = float(block.arrival_s[-1])
            yield block
    except csv.Error as error:
        raise DataError(path, f"is no CSV: {error}", line=rows.line_num) from None
    if last_s == -math.inf:
        raise DataError(path, "there is no request in it")


def _place(path: str | Path, header: list[str], name: str) -> int:
    if name in header:
        return header.index(name)
    near = nearest_names(name, header, count=1)
    hint = f"; is it '{near[0]}'?" if near else f"; it needs {', '.join(COLUMNS)}"
    raise DataError(path, f"column '{name}' is missing{hint}", line=1)


def _block(path: str | Path, kept: list[tuple[int, list[str]]], header: list[str],
           places: list[int], urgent: int | None) -> Requests:  # fmt: skip
    for n, row in kept:
        if len(row) != len(header):
            raise DataError(path, f"{len(row)} cells under {len(header)} columns", line=n)
    lines = [n for n, _ in kept]
    arrival, prompt, output = (
        _numbers(path, [row[place] for _, row in kept], lines, name)
        for place, name in zip(places, COLUMNS, strict=True)
    )
    _check(path, arrival, lines, "arrival_s", (arrival >= 0) & (arrival <= _LONGEST_S),
           "must be seconds from the start, 0 to 10^9")  # fmt: skip
    whole = "must be a whole number of tokens"
    for name, column in (("prompt_tokens", prompt), ("output_tokens", output)):
        good = (column == np.floor(column)) & (column >= 0) & (column < _MOST)
        _check(path, column, lines, name, good, whole)
    if urgent is None:
        priority = np.zeros(len(lines))
    else:
        priority = _numbers(path, [row[urgent] for _, row in kept], lines, "priority")
        good = (priority == np.floor(priority)) & (np.abs(priority) < _MOST)
        _check(path, priority, lines, "priority", good, "must be a whole number")
    return Requests(arrival, *(column.astype(np.int64) for column in (prompt, output, priority)))


def _numbers(path: str | Path, cells: list[str], lines: list[int], name: str) -> Array:
    try:
        return np.array(cells).astype(np.float64)
    except ValueError:
        for n, cell in zip(lines, cells, strict=True):
            try:
                float(cell)
            except ValueError:
                problem = f"'{cell[:40]}' is no number" if cell.strip() else "is missing"
                raise DataError(path, problem, line=n, column=name) from None
        raise


def _check(path: str | Path, values: Array, lines: list[int], name: str, good: Array,
           allowed: str) -> None:  # fmt: skip
    if not good.all():
        first = int(np.argmin(good))
        shown = f"{values[first]:.10g}"
        raise DataError(path, f"{shown} {allowed}", line=lines[first], column=name)


def _check_order(path: str | Path, arrival_s: Array, last_s: float, lines: list[int]) -> None:
    before = np.concatenate(([last_s], arrival_s[:-1]))
    wrong = arrival_s < before
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            path,
            f"{arrival_s[first]:.10g} is before {before[first]:.10g}, the arrival above it: sort "
            "the rows by arrival_s",
            line=lines[first], column="arrival_s",
        )  # fmt: skip
