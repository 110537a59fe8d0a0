"""Parts of a sweep: kept in memory, or in a folder beside the file that they will be joined to.

`FILE.parts/` holds a manifest with a key of the request and of rtsim's version, and one array per
finished part, each written beside its place and renamed, so that a part that is there is whole. A
sweep that was stopped (Ctrl-C, kill, full disk) finds the parts of its own request and computes
the others; another request, or another version, is told so. At the end the rows are written to
FILE, also beside it and renamed, and the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import OutputError, SpecError
from rtsim.output import replacing, write_text
from rtsim.selection import Metric, frontier
from rtsim.sweep_rows import Part, Request, columns_at
from rtsim.table_file import check_format, write_table

Array = NDArray[Any]

BLOCK_ROWS = 1 << 16  # rows of the result that are made at a time
_MAPPED_BYTES = 1 << 20  # larger parts are mapped, not read
_MANIFEST, _LOCK = "manifest.json", "lock"


class Store:
    """Parts in memory. `load` ends the storing; rows are then numbered through all parts."""

    def __init__(self) -> None:
        self._parts: dict[int, Part] = {}
        self._starts: Array = np.zeros(1, np.int64)
        self._failures: dict[str, int] = {}
        self._sampled: list[Array] = []
        self._frontiers: list[Array] = []

    def has(self, number: int) -> bool:
        """Whether a part is there and whole."""
        return number in self._parts

    def put(self, number: int, part: Part) -> None:
        """Keep a part. Called by several threads."""
        self._parts[number] = part

    def _get(self, number: int) -> Part:
        return self._parts[number]

    def load(self, n_parts: int) -> None:
        """All parts are there: number their rows."""
        lengths = []
        for number in range(n_parts):
            part = self._get(number)
            lengths.append(part.matrix.shape[1])
            self._sampled.append(part.sampled)
            self._frontiers.append(part.frontier)
            for text, count in part.counts.items():
                self._failures[text] = self._failures.get(text, 0) + count
        self._starts = np.concatenate(([0], np.cumsum(lengths)))

    @property
    def n_rows(self) -> int:
        """Rows in all parts."""
        return int(self._starts[-1])

    @property
    def failures(self) -> dict[str, int]:
        """Error -> rows of the grid that have it."""
        return self._failures

    def sampled(self) -> Array:
        """(2, points) for a figure."""
        return np.concatenate(self._sampled, axis=1)

    def frontier(self, axes: tuple[Metric, Metric]) -> Array:
        """(2, points) of the frontier of all rows that met the condition, kept or not."""
        points = np.concatenate(self._frontiers, axis=1)
        named = {metric.column: row for metric, row in zip(axes, points, strict=True)}
        return points[:, frontier(*(metric.of(named) for metric in axes))]

    def columns(self, request: Request, wanted: set[str]) -> dict[str, Array]:
        """Some columns of all rows."""
        parts = [self._columns_of(request, n, wanted) for n in range(len(self._starts) - 1)]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def _columns_of(
        self, request: Request, number: int, wanted: set[str] | None, at: Any = slice(None)
    ) -> dict[str, Array]:
        part = self._get(number)
        rows, codes = part.matrix[0, at].astype(np.int64), part.matrix[1, at].astype(np.int64)
        return columns_at(request, rows, part.matrix[2:, at], codes, part.texts, wanted)

    def everything(self, request: Request) -> dict[str, Array]:
        """All columns of all rows."""
        blocks = list(self.blocks(request, None))
        if not blocks:
            return self.block(request, np.arange(0))
        return {name: np.concatenate([b[name] for b in blocks]) for name in request.columns}

    def block(self, request: Request, rows: Array) -> dict[str, Array]:
        """All columns of rows by their numbers, in that order."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(which, kind="stable")
        ends = np.flatnonzero(np.diff(which[order])) + 1
        pieces = []
        for at in np.split(order, ends) if len(order) else [order]:
            number = int(which[at[0]]) if len(at) else 0
            inside = rows[at] - self._starts[number]
            pieces.append(self._columns_of(request, number, None, inside))
        found = {}
        for name in request.columns:
            joined = np.concatenate([piece[name] for piece in pieces])
            found[name] = np.empty_like(joined)
            found[name][order] = joined
        return found

    def blocks(self, request: Request, rows: Array | None) -> Iterator[dict[str, Array]]:
        """The columns of rows, or of all, in pieces of at most BLOCK_ROWS rows."""
        if rows is not None:
            for start in range(0, len(rows), BLOCK_ROWS):
                yield self.block(request, rows[start : start + BLOCK_ROWS])
            return
        for number, length in enumerate(np.diff(self._starts).tolist()):
            for start in range(0, length, BLOCK_ROWS):
                at = slice(start, start + BLOCK_ROWS)
                yield self._columns_of(request, number, None, at)

    def write(self, request: Request, rows: Array | None, path: str) -> None:
        """Write the result: rows by their numbers in that order, or all."""
        try:
            with replacing(path) as file:
                write_table(file, request, self.blocks(request, rows), Path(path).suffix.lower())
        except OutputError as error:
            raise self._stopped(error) from error

    def _stopped(self, error: OutputError) -> OutputError:
        return error


class FileStore(Store):
    """Parts in a folder, see the module."""

    def __init__(self, request: Request, path: str) -> None:
        super().__init__()
        self.path = path
        self.folder = Path(path + ".parts")
        self._there: set[int] = set()
        self._open(request)

    def _open(self, request: Request) -> None:
        manifest = {
            "what": "parts of an rtsim sweep: run the same command again to finish it",
            "key": request_key(request),
            "n_parts": request.n_parts,
        }
        file = self.folder / _MANIFEST
        try:
            self.folder.mkdir(exist_ok=True)
            if file.exists():
                self._check(manifest, json.loads(file.read_text(encoding="utf-8")))
            elif any(entry.name != _LOCK for entry in self.folder.iterdir()):
                raise OutputError(self.path, f"the folder {self.folder} is there and not a sweep's")
            else:
                write_text(file, json.dumps(manifest, indent=2) + "\n")
            for entry in self.folder.iterdir():
                if entry.name.endswith(".part"):  # of a write that was cut off
                    entry.unlink()
        except OSError as error:
            raise OutputError(self.path, (error.strerror or str(error)).lower()) from error
        except ValueError:
            raise OutputError(self.path, f"{file} is not readable; remove {self.folder}") from None
        names = {entry.name for entry in self.folder.iterdir()}
        self._there = {n for n in range(request.n_parts) if self._array(n).name in names}

    def _check(self, own: dict[str, Any], found: dict[str, Any]) -> None:
        if found.get("key") == own["key"]:
            return
        raise OutputError(
            self.path,
            f"{self.folder} holds the parts of another sweep, or of another version of rtsim; "
            "give another file, or remove that folder",
        )

    def _array(self, number: int) -> Path:
        return self.folder / f"{number:07d}.npy"

    def _facts(self, number: int) -> Path:
        return self.folder / f"{number:07d}.json"

    def has(self, number: int) -> bool:
        if number not in self._there:
            return False
        with suppress(OSError, ValueError, KeyError):
            self._get(number)
            return True
        self._there.discard(number)
        return False

    def put(self, number: int, part: Part) -> None:
        facts = {
            "texts": part.texts, "counts": part.counts, "sampled": part.sampled.tolist(),
            "frontier": part.frontier.tolist(),
        }  # fmt: skip
        # The array goes last: a part is there when it is.
        try:
            write_text(self._facts(number), json.dumps(facts))
            with replacing(self._array(number)) as file:
                header = np.lib.format.header_data_from_array_1_0(part.matrix)
                np.lib.format.write_array_header_1_0(file, header)
                file.write(part.matrix.data)
        except OutputError as error:
            raise self._stopped(error) from error
        self._there.add(number)

    def _stopped(self, error: OutputError) -> OutputError:
        kept = f"the same command goes on from what is in {self.folder}"
        return OutputError(self.path, f"{error.problem}; {kept}")

    def _get(self, number: int) -> Part:
        facts = json.loads(self._facts(number).read_text(encoding="utf-8"))
        file = self._array(number)
        large = file.stat().st_size > _MAPPED_BYTES
        matrix = np.load(file, mmap_mode="r" if large else None)
        points = (np.array(facts[name], float).reshape(2, -1) for name in ("sampled", "frontier"))
        return Part(matrix, facts["texts"], facts["counts"], *points)

    def remove(self) -> None:
        """The result is there: the parts can go."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def store_for(request: Request, output: str | Path | None) -> Iterator[Store]:
    """The store of a sweep; parts in files go when the block ends well."""
    if output is None:
        yield Store()
        return
    path = os.path.realpath(output)
    folder = Path(path + ".parts")
    fresh = not folder.exists()
    store: FileStore | None = None
    with _locked(folder, str(output)):
        store = FileStore(request, path)
        try:
            yield store
        except SpecError:  # there is nothing to go on with
            if fresh:
                store.remove()
            raise
        store.remove()


@contextmanager
def _locked(folder: Path, path: str) -> Iterator[None]:
    """One process at a time; the lock falls with the process, however it ends."""
    try:
        folder.mkdir(exist_ok=True)
        file = (folder / _LOCK).open("w")
    except OSError as error:
        raise OutputError(path, (error.strerror or str(error)).lower()) from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no such locks on this system
        except OSError:
            raise OutputError(path, f"another sweep is writing to {folder}") from None
        yield


def request_key(request: Request) -> str:
    """Hash of a request and of what its numbers come from."""
    import hashlib
    from importlib.metadata import version

    axes = {name: [_plain(value) for value in values] for name, values in request.grid.axes.items()}
    parts: list[Any] = [
        version("rtsim"),
        axes,
        request.where,
        request.sort,
        request.top,
        request.pareto,
    ]
    drawn = request.drawn and [(metric.column, metric.largest) for metric in request.drawn]
    parts += [drawn, request.part_rows]
    return hashlib.sha256(json.dumps(parts, sort_keys=False).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump_json"):
        return value.model_dump_json()
    if isinstance(value, str) and value.endswith(".toml"):
        with suppress(OSError):
            return [value, Path(value).read_text(encoding="utf-8")]
    return value


def check_file(path: str | Path) -> None:
    """Raise SpecError, OutputError or NotSupported where a result could not go, before any work."""
    check_format(path)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(path, "it is a folder")
    if not target.parent.is_dir():
        raise OutputError(path, f"there is no folder {Path(path).parent}")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(path, "the folder is not writable")
