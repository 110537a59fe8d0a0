"""What the kernel inputs of every kind of table share: parallel arrays, one element per row."""

from __future__ import annotations

from collections.abc import Sequence
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
