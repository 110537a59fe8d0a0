"""What the kernel inputs of every kind of table share: parallel arrays, one element per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray


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
