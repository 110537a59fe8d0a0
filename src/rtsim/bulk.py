"""Predictions of many rows at once, on all cores: columns in, columns out.

Rows are grouped by system, sorted within each, and handed in chunks to the compiled kernels. What
is predicted of a row is a `Question`: a batch generated to its end (`rtsim.bulk_generations`), or,
where a column says how many requests are in flight, serving (`rtsim.bulk_serving`). Threads take
chunks; kernels and sorting run without the GIL. A row costs no Python object, and a row's numbers
do not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import Any, NamedTuple

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray

from rtsim import bulk_generations, bulk_serving, served, units
from rtsim.columns import Coded, coded, columns_of
from rtsim.errors import SpecError, nearest_names
from rtsim.serving.serve import DEFAULT_STACK
from rtsim.system_rows import FIELDS, Systems
from rtsim.whatif import known_paths

Array = NDArray[Any]


class Question(NamedTuple):
    """What is predicted of a row.

    sizes: columns of numbers that are the row's, not its system's. sorted_by: those of them that
    repeated work depends on. evaluate: `bulk_generations.evaluate`, or one like it. stack: where a
    row names none.
    """

    sizes: tuple[str, ...]
    metrics: tuple[str, ...]
    sorted_by: tuple[str, ...]
    evaluate: Callable[..., tuple[Array, list[str]]]
    stack: str | None


GENERATION = Question(
    bulk_generations.SIZES, bulk_generations.METRICS, bulk_generations.SIZES[:2],
    bulk_generations.evaluate, None,
)  # fmt: skip
SERVING = Question(
    bulk_serving.SIZES, bulk_serving.METRICS, (), bulk_serving.evaluate, DEFAULT_STACK
)
METRICS = GENERATION.metrics
ALL_SIZES = tuple(dict.fromkeys((*GENERATION.sizes, *SERVING.sizes)))
OTHER_NAMES = {"arch": "model"}
CHUNK_ROWS = 1 << 15
_ROOTS = ("gpu.", "link.", "network.", "model.")
# Columns that serving has no use for.
_NOT_SERVED = {
    "batch_size": "the engine batches: give concurrency alone",
    "micro_batches": "the engine splits its batch over the stages: not with concurrency",
    "cp": "is not served: not with concurrency",
}


def question_of(names: Collection[str]) -> Question:
    """What a table with these columns asks; SpecError where they do not go together."""
    if "concurrency" in names:
        for name, why in _NOT_SERVED.items():
            if name in names:
                raise SpecError("column", name, why)
        if "prefill_workers" in names and "num_gpus" in names:
            raise SpecError(
                "column", "num_gpus", "follows from the workers: leave it out, or those"
            )
        return SERVING
    for name in SERVING.sizes:
        if name in names and name not in GENERATION.sizes:
            raise SpecError.of_missing("concurrency", f"is needed with {name}")
    return GENERATION


def column_name(name: str) -> str:
    """The name of an input column, or SpecError with the nearest one."""
    name = OTHER_NAMES.get(name, name)
    if name in (*FIELDS, *ALL_SIZES) or name.startswith(_ROOTS):
        return name
    known = [*FIELDS, *ALL_SIZES, *OTHER_NAMES, *known_paths()]
    raise SpecError(
        "column", name, "must be an option of predict or a figure's path, such as "
        "gpu.hbm_bytes_per_s", nearest=nearest_names(name, known),
    )  # fmt: skip


_MOST_THREADS = 1024


def n_threads(threads: int | None = None) -> int:
    """Threads to use: as asked, else one per core that this process may use. Raises SpecError."""
    if threads is not None:
        if not units.is_number(threads, whole=True) or not 1 <= threads <= _MOST_THREADS:
            raise SpecError(
                "threads", threads, f"must be a whole number from 1 to {_MOST_THREADS:,}"
            )
        return int(threads)
    return rtsim_kernels.n_cores()


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

    A column `concurrency` asks for serving in its steady state, as `rtsim.serve`, with that many
    requests in flight on the whole system. Further columns may be `policy`, `token_budget`,
    `max_sequences`, `memory_frac`, `prefix_hit`, `speculative_tokens`, `acceptance`, `draft_frac`,
    and `prefill_workers`, `decode_workers` and `prefill_tp` for pools of their own for prompts and
    decoding. It returns `bulk_serving.METRICS`: see docs/sweep.md. Without it the rows are batches,
    each generated to its end:

    Returns `METRICS`: `ttft_s`, `tpot_s` (NaN where one token is generated), `e2e_latency_s`,
    `output_throughput`, the ends of their 90 % intervals (`ttft_s_low`, ...), `num_gpus`,
    `memory_bytes` and `capacity_bytes` of the fullest GPU, `fits`, `usd_per_request`,
    `usd_per_million_output_tokens` and `energy_j` (NaN where price or power is not known), `mfu`,
    `mbu`; and `error`: "" or why the row has no prediction, its numbers then NaN. The numbers are
    those of `rtsim.predict`, or `rtsim.serve`, to 1e-12. Raises SpecError for a table that cannot
    be read.

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
    asked = question_of(by_name)
    of_systems = {n: coded(c, n_rows) for n, c in by_name.items() if n not in asked.sizes}
    systems = Systems({name: column.values for name, column in of_systems.items()}, asked.stack)
    sizes = {name: coded(by_name.get(name, np.nan), n_rows) for name in asked.sizes}
    keys, distinct = combined(list(of_systems.values()), n_rows)
    numbers = {name: _size_values(name, size) for name, size in sizes.items()}
    order = _order(keys, [sizes[name] for name in asked.sorted_by])
    rtsim_kernels.compiled()  # once, before the threads
    values = np.empty((len(asked.metrics), n_rows))
    codes = np.zeros(n_rows, np.int64)
    known = {"": 0}
    lock = Lock()

    def run(first: int) -> None:
        last = min(first + CHUNK_ROWS, n_rows)
        rows: Any = slice(first, last) if order is None else order[first:last]
        own = keys[rows]
        starts = np.flatnonzero(np.concatenate(([True], own[1:] != own[:-1])))
        chosen = tuple(numbers[name][size.codes[rows]] for name, size in sizes.items())
        targets = np.arange(first, last) if order is None else order[first:last]
        errors, found = asked.evaluate(
            systems, distinct[own[starts]], np.append(starts, last - first), chosen,
            values, targets,
        )  # fmt: skip
        if len(found) > 1:
            with lock:
                places = [known.setdefault(text, len(known)) for text in found]
            codes[rows] = np.array(places)[errors]

    each(run, range(0, n_rows, CHUNK_ROWS), min(n_threads(threads), -(-n_rows // CHUNK_ROWS) or 1))
    return as_columns(asked, values, codes, list(known))


def as_columns(asked: Question, values: Array, codes: Array, texts: list[str]) -> dict[str, Array]:
    """The columns of `predict_many`; codes: (rows,) index of each row's error in `texts`."""
    found: dict[str, Array] = dict(zip(asked.metrics, values, strict=True))
    found["fits"] = found["fits"] == 1.0
    gpus = found["num_gpus"]
    found["num_gpus"] = np.where(np.isnan(gpus), 0.0, gpus).astype(np.int64)
    if "limit" in found:  # a code, NaN: none
        limits = np.where(np.isnan(found["limit"]), 0.0, found["limit"] + 1.0).astype(np.int64)
        found["limit"] = _texts(["", *bulk_serving.LIMITS])[limits]
    found["error"] = _texts(texts)[codes]
    return found


def _texts(texts: list[str]) -> Array:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


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
    """An order of the rows by system and sizes; None where they have it."""
    if len(keys) == 0:
        return None
    key = keys
    for size in sizes:
        key = key * len(size.values) + size.codes
    if (key[1:] >= key[:-1]).all():
        return None
    return np.argsort(key, kind="stable")


def _size_values(name: str, column: Coded) -> Array:
    """Distinct sizes as floats, NaN = missing."""
    return np.array([size_number(name, value) for value in column.values], float)


def size_number(name: str, value: Any) -> float:
    """A size as a number, None as NaN; SpecError, or UnknownName for a policy."""
    if value is None:
        return np.nan
    if name == "policy":
        return served.policy_code(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        whole = name in GENERATION.sizes
        raise SpecError(name, value, "must be a whole number" if whole else "must be a number")
    return value


def warm_up() -> None:
    """Compile the bulk kernels, or load them from the cache on disk."""
    one = {"model": "gpt3-6.7b", "gpu": "a100-sxm4-80gb"}
    predict_many({**one, "batch_size": 1})
    predict_many({**one, "concurrency": 1})
