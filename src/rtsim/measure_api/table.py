"""The table that a collector writes: a row as soon as it is known, and resumed where it stopped.

Columns as in tables of kind `api_latency`, with what a stream adds. Rows are appended and synced
one by one, so that a crash loses at most the call under way; a last line that a crash cut off is
completed to a line of its own and its call is repeated.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from rtsim.errors import DataError, OutputError

OK = "ok"
SHORT = "short"  # fewer or more tokens than asked came back


@dataclass(frozen=True, slots=True)
class Row:
    """One call. Times in seconds; gap_*: between pieces of the stream, "" where there is none."""

    source: str
    measured: str
    provider: str
    model: str
    prompt_tokens: int
    output_tokens: int
    repeat: int
    runtime_s: float | str
    ttft_s: float | str
    gap_median_s: float | str
    gap_max_s: float | str
    counted_prompt_tokens: int | str
    received_tokens: int | str
    attempts: int
    status: str

    @property
    def cell(self) -> tuple[int, int, int]:
        """(prompt tokens, output tokens, repeat)."""
        return self.prompt_tokens, self.output_tokens, self.repeat


HEADER = tuple(field.name for field in fields(Row))


class ResultsTable:
    """The file of a collection. `done`: cells that need no further call."""

    def __init__(self, path: str | Path, provider: str, model: str) -> None:
        """Opens or begins the file.

        Raises DataError where it is a table of something else, of another provider or model.
        """
        self.path = Path(path)
        self.done: set[tuple[int, int, int]] = set()
        self.failed = 0
        text = self._read()
        if text:
            self._resume(text, provider, model)
        else:
            self._append(_line(HEADER))

    def add(self, row: Row) -> None:
        """Append one row and sync it to the disk. Raises OutputError."""
        self._append(_line(astuple(row)))
        if row.status in (OK, SHORT):
            self.done.add(row.cell)

    def _read(self) -> str:
        try:
            return self.path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise OutputError(self.path, f"there is no folder {self.path.parent}") from None
            return ""
        except UnicodeDecodeError:
            raise DataError(self.path, "not a text file in UTF-8") from None
        except OSError as error:
            raise OutputError(self.path, (error.strerror or str(error)).lower()) from None

    def _resume(self, text: str, provider: str, model: str) -> None:
        rows = list(csv.reader(io.StringIO(text)))
        if tuple(rows[0]) != HEADER:
            raise DataError(
                self.path, "is no table of a collection: nothing was written to it", line=1
            )
        for number, cells in enumerate(rows[1:], start=2):
            if len(cells) != len(HEADER):
                continue  # cut off by a crash: its call is repeated
            row = dict(zip(HEADER, cells, strict=True))
            for name, wanted in (("provider", provider), ("model", model)):
                if row[name] != wanted:
                    raise DataError(
                        self.path,
                        f"holds rows of {name} '{row[name]}', not '{wanted}'; name another file",
                        line=number,
                    )
            if row["status"] in (OK, SHORT):
                sizes = (row["prompt_tokens"], row["output_tokens"], row["repeat"])
                if all(size.isdigit() for size in sizes):
                    self.done.add((int(sizes[0]), int(sizes[1]), int(sizes[2])))
        if not text.endswith("\n"):  # a whole row may lack its end, too
            self._append("\n")

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(self.path, (error.strerror or str(error)).lower()) from None


def _line(cells: tuple[object, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
