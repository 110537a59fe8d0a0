"""How a row was timed, for the recipes: what the L2 held, and whether the launch is in the time.

Tables can say it themselves (columns `timing` and `residency`); where they do not, a recipe knows
how the tables of a stack are made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, NDArray[Any]]

# One call between two events from the host, or on the host's clock: launch and event are in it.
_LAUNCHED = ("events", "wall")
VALIDATION = ("validation", "variant")  # roles of rows that no fit may see


def stated(columns: Columns, name: str, members: NDArray[np.intp]) -> NDArray[np.str_]:
    """A text column of the rows `members`, "" where the table has none of the name.

    >>> stated({"timing": np.array(["graph", "wall"])}, "timing", np.array([1])).tolist()
    ['wall']
    >>> stated({}, "timing", np.array([0, 1])).tolist()
    ['', '']
    """
    if name not in columns:
        return np.full(len(members), "")
    return np.asarray(columns[name][members].astype(np.str_))


def version(text: str) -> tuple[int, ...]:
    """For comparison: 1.3.0rc20 is newer than 1.3.0rc5.

    >>> version("1.3.0rc20") > version("1.3.0rc5")
    True
    """
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", text))


def launched(timing: str, eager_stack: bool) -> bool:
    """Whether a launch from the host is in a time. eager_stack: the stack's tables are made so.

    >>> launched("graph", True), launched("", True), launched("wall", False)
    (False, True, True)
    """
    return timing in _LAUNCHED if timing else eager_stack


def issued_ahead(launch: float, prior: float, eager: float, timing: str) -> float:
    """A launch coefficient for rows of a `timing`, in the unit of all three.

    Where rows were replayed from a graph and `launch` was fitted to rows that the host issued one
    by one (it is more than half of `eager`, such a launch), the declared `prior` of kernels in a
    queue stands in.

    >>> issued_ahead(18e-6, 1e-6, 15e-6, "graph"), issued_ahead(18e-6, 1e-6, 15e-6, "")
    (1e-06, 1.8e-05)
    >>> issued_ahead(3e-6, 1e-6, 15e-6, "graph")
    3e-06
    """
    return prior if timing == "graph" and launch > 0.5 * eager else launch


def by_residency(
    columns: Columns, members: NDArray[np.intp], otherwise: NDArray[np.float64],
    *, cold: float, warm: float,
) -> NDArray[np.float64]:  # fmt: skip
    """A number per row that depends on what the L2 held; `otherwise` where rows do not say."""
    said = stated(columns, "residency", members)
    return np.where(said == "cold", cold, np.where(said == "warm", warm, otherwise))
