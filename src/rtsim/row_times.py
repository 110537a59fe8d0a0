"""What a predictor of measurement rows returns: measured and predicted seconds of every row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RowTimes:
    """Times of all rows of a table, arrays of one element per row, NaN where there is none.

    `skip` says why a row is not predicted, "" where it is. `regime` is an optional label of the
    size of each row, to see where the errors are; `regimes` are its labels in order of size.
    """

    measured_s: Array
    predicted_s: Array
    low_s: Array  # of the 90% interval; NaN: no interval
    high_s: Array
    skip: NDArray[np.str_]
    regime: NDArray[np.str_] | None = None
    regimes: tuple[str, ...] = ()
