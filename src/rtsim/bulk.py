"""Predictions of many rows at once, on all cores: columns in, columns out.

Rows are grouped by system, sorted by batch and prompt within each, and handed in chunks to the
compiled kernels (`rtsim_kernels.bulk`), which do repeated work once. Threads take chunks; kernels
and sorting run without the GIL. A row costs no Python object, and a row's numbers do not depend on
the other rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import row_figures, tables

from rtsim.columns import Coded, coded, columns_of
from rtsim.errors import RtsimError, SpecError, nearest_names
from rtsim.specs.workload import WorkloadSpec
from rtsim.system_rows import FIELDS, Packed, Systems
from rtsim.whatif import known_paths

Array = NDArray[Any]

SIZES = ("batch_size", "input_len", "output_len")
METRICS = row_figures.COLUMNS
OTHER_NAMES = {"arch": "model"}
CHUNK_ROWS = 1 << 15
_ROOTS = ("gpu.", "link.", "network.", "model.")
_MISSING = {"batch_size": 1.0, "input_len": 512.0}
_DECODER_OUTPUT, _ENCODER_OUTPUT = 64.0, 1.0


def column_name(name: str) -> str:
    """The name of an input column, or SpecError with the nearest one."""
    name = OTHER_NAMES.get(name, name)
    if name in (*FIELDS, *SIZES) or name.startswith(_ROOTS):
        return name
    known = [*FIELDS, *SIZES, *OTHER_NAMES, *known_paths()]
    raise SpecError(
        "column", name, "must be an option of predict or a figure's path, such as "
        "gpu.hbm_bytes_per_s", nearest=nearest_names(name, known),
    )  # fmt: skip


def evaluate(
    systems: Systems,
    codes: Array,
    first_rows: Array,
    sizes: tuple[Array, Array, Array],
    values: Array,
    targets: Array,
) -> tuple[Array, list[str]]:
    """Predict rows sorted by system, batch and prompt.

    codes: (systems, columns) of `systems`; first_rows: (systems + 1,); sizes: batch, prompt and
    output (rows,), NaN = the default. Writes columns `targets`, (rows,), of `values`, whose rows
    are METRICS. Returns (rows,) the index of each row's error in a list of texts, and that list,
    of which the first is "".
    """
    packed = systems.pack(codes)
    n_rows = len(sizes[0])
    errors = np.zeros(n_rows, np.int64)
    filled = _filled(packed, first_rows, sizes)
    if len(packed.machines):
        kernels = rtsim_kernels.compiled()
        given = (
            packed.systems,
            packed.machines,
            kernels.bulk_rows.Tables(**packed.tables),
            np.ascontiguousarray(first_rows, np.int64),
            *filled,
            np.ascontiguousarray(targets, np.int64),
            values,
            errors,
        )
        model_kinds = packed.machines["plan"]["model_kind"]
        if (model_kinds == tables.DECODER).any():
            kernels.bulk.predict_rows(*given)
        if (model_kinds != tables.DECODER).any():
            kernels.bulk_encoders.predict_encoder_rows(*given)
    texts = [""]
    known = {"": 0}
    row_codes = np.zeros(n_rows, np.int64)
    for i, error in enumerate(packed.errors):
        if error:
            code = known.setdefault(error, len(texts))
            texts += [error] if code == len(texts) else []
            row_codes[first_rows[i] : first_rows[i + 1]] = code
            values[:, targets[first_rows[i] : first_rows[i + 1]]] = np.nan
    wrong = np.flatnonzero(errors)
    if len(wrong):
        _explain(packed, first_rows, filled, sizes, wrong, row_codes, texts, known)
    return row_codes, texts


def _filled(packed: Packed, first_rows: Array, sizes: tuple[Array, Array, Array]) -> list[Array]:
    """Sizes with defaults in place of NaN."""
    filled = []
    for name, size in zip(SIZES, sizes, strict=True):
        missing = np.isnan(size)
        if missing.any():
            default: Any = _MISSING.get(name)
            if default is None:
                kinds = [
                    base is not None and base.made.model.kind == "encoder" for base in packed.bases
                ]
                outputs = np.where(kinds, _ENCODER_OUTPUT, _DECODER_OUTPUT)
                default = np.repeat(outputs, np.diff(first_rows))[missing]
            full = size.copy()
            full[missing] = default
            filled.append(full)
        else:
            filled.append(np.ascontiguousarray(size, np.float64))
    return filled


def _explain(packed: Packed, first_rows: Array, filled: list[Array], sizes: Any, wrong: Array,
             row_codes: Array, texts: list[str], known: dict[str, int]) -> None:  # fmt: skip
    """Errors of rows whose sizes a model cannot take, in the words of `predict`."""
    at = np.searchsorted(first_rows, wrong, side="right") - 1
    models, of_model = {}, np.empty(len(wrong), np.int64)
    for system in np.unique(at).tolist():
        base = packed.bases[system]
        if base is not None:
            models[system] = base.made.model
    keys = np.stack([at.astype(np.float64), *(size[wrong] for size in filled)])
    distinct, of_model = np.unique(keys, axis=1, return_inverse=True)
    codes = np.empty(distinct.shape[1], np.int64)
    for i, (system, *numbers) in enumerate(distinct.T.tolist()):
        text = _size_error(models[int(system)], numbers)
        code = known.setdefault(text, len(texts))
        texts += [text] if code == len(texts) else []
        codes[i] = code
    row_codes[wrong] = codes[of_model.reshape(-1)]


def _size_error(model: Any, numbers: list[float]) -> str:
    plain = [int(n) if np.isfinite(n) and n == int(n) else n for n in numbers]
    try:
        WorkloadSpec.from_mapping(dict(zip(SIZES, plain, strict=True))).check_model(model)
    except RtsimError as error:
        return str(error)
    return "batch_size, input_len or output_len is out of range"


def n_threads(threads: int | None = None) -> int:
    """Threads to use: as asked, else one per core that this process may use."""
    if threads is not None:
        return max(1, threads)
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def each(work: Callable[[Any], Any], items: Iterable[Any], threads: int) -> None:
    """Run `work` on every item, in `threads` threads. The first error ends it and is raised."""
    if threads == 1:
        for item in items:
            work(item)
        return
    waiting, lock, stop = iter(items), Lock(), Event()

    def take() -> None:
        while not stop.is_set():
            with lock:
                item = next(waiting, _END)
            if item is _END:
                return
            work(item)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for future in as_completed([pool.submit(take) for _ in range(threads)]):
                future.result()
        except BaseException:
            stop.set()  # what is being worked on is finished
            raise


_END = object()


def predict_many(table: Any, *, threads: int | None = None) -> dict[str, Array]:
    """Predict every row of a table; columns of the same length come back.

    table: a mapping of columns, a NumPy structured array, a pandas or polars frame or an Arrow
    table, with columns named as the arguments of `rtsim.predict` (`model` or `arch`, `gpu`, `tp`,
    ..., `batch_size`, `input_len`, `output_len`) and as figures to change
    (`gpu.hbm_bytes_per_s`, `model.n_layers`). Missing cells take predict's defaults.

    Returns `METRICS`: `ttft_s`, `tpot_s` (NaN where one token is generated), `e2e_latency_s`,
    `output_throughput`, the ends of their 90 % intervals (`ttft_s_low`, ...), `num_gpus`,
    `memory_bytes` and `capacity_bytes` of the fullest GPU, `fits`, `usd_per_request`,
    `usd_per_million_output_tokens` and `energy_j` (NaN where price or power is not known), `mfu`,
    `mbu`; and `error`: "" or why the row has no prediction, its numbers then NaN. The numbers are
    those of `rtsim.predict` to 1e-12. Raises SpecError for a table that cannot be read.

    >>> found = predict_many({"model": "gpt3-175b", "gpu": "a100", "tp": [4, 8], "batch_size": 1})
    >>> found["num_gpus"].tolist(), found["fits"].tolist()
    ([4, 8], [False, True])
    """
    columns, n_rows = columns_of(table)
    by_name = {column_name(name): column for name, column in columns.items()}
    if len(by_name) < len(columns):
        raise SpecError("column", "arch", "is there as model too")
    for name in ("model", "gpu"):
        if name not in by_name:
            raise SpecError("table", name, "is a column that must be there")
    of_systems = {n: coded(c, n_rows) for n, c in by_name.items() if n not in SIZES}
    systems = Systems({name: column.values for name, column in of_systems.items()})
    sizes = [coded(by_name.get(name, np.nan), n_rows) for name in SIZES]
    keys, distinct = combined(list(of_systems.values()), n_rows)
    numbers = [_size_values(name, size) for name, size in zip(SIZES, sizes, strict=True)]
    order = _order(keys, sizes)
    rtsim_kernels.compiled()  # once, before the threads
    values = np.empty((len(METRICS), n_rows))
    codes = np.zeros(n_rows, np.int64)
    known = {"": 0}
    lock = Lock()

    def run(first: int) -> None:
        last = min(first + CHUNK_ROWS, n_rows)
        rows: Any = slice(first, last) if order is None else order[first:last]
        own = keys[rows]
        starts = np.flatnonzero(np.concatenate(([True], own[1:] != own[:-1])))
        chosen = tuple(n[size.codes[rows]] for n, size in zip(numbers, sizes, strict=True))
        targets = np.arange(first, last) if order is None else order[first:last]
        errors, found = evaluate(
            systems, distinct[own[starts]], np.append(starts, last - first), chosen,
            values, targets,
        )  # fmt: skip
        if len(found) > 1:
            with lock:
                places = [known.setdefault(text, len(known)) for text in found]
            codes[rows] = np.array(places)[errors]

    each(run, range(0, n_rows, CHUNK_ROWS), min(n_threads(threads), -(-n_rows // CHUNK_ROWS) or 1))
    return as_columns(values, codes, list(known))


def as_columns(values: Array, codes: Array, texts: list[str]) -> dict[str, Array]:
    """The columns of `predict_many`; codes: (rows,) index of each row's error in `texts`."""
    found: dict[str, Array] = dict(zip(METRICS, values, strict=True))
    found["fits"] = values[METRICS.index("fits")] == 1.0
    gpus = values[METRICS.index("num_gpus")]
    found["num_gpus"] = np.where(np.isnan(gpus), 0.0, gpus).astype(np.int64)
    error = np.empty(len(texts), object)
    error[:] = texts
    found["error"] = error[codes]
    return found


def combined(columns: list[Coded], n_rows: int) -> tuple[Array, Array]:
    """(system of each row, codes of each system): rows that agree in all columns share one."""
    keys = np.zeros(n_rows, np.int64)
    size = 1
    for column in columns:
        size *= max(1, len(column.values))
        if size >= 1 << 62:
            keys, size = _compressed(keys)
            size *= len(column.values)
        keys = keys * max(1, len(column.values)) + column.codes
    keys, n_systems = _compressed(keys)
    if n_rows == 0:
        return keys, np.zeros((0, len(columns)), np.int64)
    first = np.zeros(n_systems, np.int64)
    first[keys[::-1]] = np.arange(n_rows - 1, -1, -1)
    distinct = np.stack([column.codes[first] for column in columns], axis=1)
    return keys, distinct


def _compressed(keys: Array) -> tuple[Array, int]:
    """Keys numbered without gaps, in their order, and how many there are."""
    found = coded(keys, len(keys))
    return found.codes, max(1, len(found.values))


def _order(keys: Array, sizes: list[Coded]) -> Array | None:
    """An order of the rows by system, batch and prompt; None where they have it."""
    if len(keys) == 0:
        return None
    key = keys
    for size in sizes[:2]:
        key = key * len(size.values) + size.codes
    if (key[1:] >= key[:-1]).all():
        return None
    return np.argsort(key, kind="stable")


def _size_values(name: str, column: Coded) -> Array:
    """Distinct sizes as floats, NaN = missing."""
    values = np.empty(len(column.values))
    for i, value in enumerate(column.values):
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise SpecError(name, value, "must be a whole number")
        values[i] = np.nan if value is None else value
    return values


def warm_up() -> None:
    """Compile the bulk kernels, or load them from the cache on disk."""
    predict_many({"model": "gpt3-6.7b", "gpu": "a100-sxm4-80gb", "batch_size": 1})
