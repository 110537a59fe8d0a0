"""What the kernel inputs of every kind of table share: parallel arrays, one element per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import tables

from rtsim.device_facts import attention_peak_flops_per_s, device_row
from rtsim.specs.gpu import GpuSpec


@dataclass(frozen=True)
class MeasuredRows:
    """Base of a recipe's `Rows`; fields that are arrays have one element per row.

    table_rows: indices in the table. measured_s: seconds.
    """

    table_rows: NDArray[np.intp]
    measured_s: NDArray[np.float64]

    def take(self, chosen: NDArray[Any]) -> Self:
        """The same with only the `chosen` rows."""
        arrays = {name: v[chosen] for name, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)

    def __len__(self) -> int:
        return len(self.measured_s)


_Rows = TypeVar("_Rows", bound=MeasuredRows)


def joined(parts: Sequence[_Rows]) -> _Rows:
    """Rows of one kind, one part after the other."""
    first = parts[0]
    arrays: dict[str, Any] = {
        name: np.concatenate([vars(part)[name] for part in parts])
        for name, value in vars(first).items()
        if isinstance(value, np.ndarray)
    }
    return replace(first, **arrays)


def attention_facts(
    columns: Mapping[str, NDArray[Any]],
    members: NDArray[np.intp],
    gpu_of: Callable[[str], GpuSpec],
    bytes_of: Mapping[str, float],
    arriving_bytes: float,
) -> tuple[NDArray[np.float64], NDArray[np.void]]:
    """What attention on each table row runs on: (facts, DEVICE records).

    gpu_of: GPU by table name. bytes_of: bytes of an element by number format; an empty format of
    the cache is that of the math. arriving_bytes: of queries and outputs, at least. facts: shape
    (members, 3), peak FLOP/s and bytes per element of queries and of the cache.
    """
    keys = [
        columns[name][members].astype(np.str_).tolist() for name in ("gpu", "dtype", "kv_dtype")
    ]
    devices: dict[str, NDArray[np.void]] = {}
    facts: dict[tuple[str, str, str], tuple[float, float, float]] = {}
    for gpu, dtype, kv_dtype in set(zip(*keys, strict=True)):
        spec = gpu_of(gpu)
        devices[gpu] = device_row(spec)
        cache = kv_dtype or dtype
        peak = attention_peak_flops_per_s(spec, dtype, cache)
        facts[gpu, dtype, kv_dtype] = (
            peak, max(arriving_bytes, bytes_of[dtype]), bytes_of[cache],
        )  # fmt: skip
    return (
        np.array([facts[key] for key in zip(*keys, strict=True)]).reshape(-1, 3),
        np.array([devices[gpu] for gpu in keys[0]], tables.DEVICE),
    )


def of_many_sets(
    predict: Callable[[_Rows, dict[str, Any]], NDArray[np.float64]],
    rows: _Rows,
    names: Sequence[str],
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Seconds of `rows` by values (n,) or (sets, n), as `fit.fit_coefficients` asks for them.

    predict: of rows and coefficients by name, one value for all rows or one each.
    """
    repeated: dict[int, _Rows] = {}

    def seconds(values: NDArray[np.float64]) -> NDArray[np.float64]:
        if values.ndim == 1:
            return predict(rows, dict(zip(names, values.tolist(), strict=True)))
        n_sets = len(values)
        if n_sets not in repeated:
            repeated[n_sets] = rows.take(np.tile(np.arange(len(rows)), n_sets))
        of_rows = np.repeat(values, len(rows), axis=0).T
        found = predict(repeated[n_sets], dict(zip(names, of_rows, strict=True)))
        return found.reshape(n_sets, len(rows))

    return seconds
