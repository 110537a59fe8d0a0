"""Row layouts and codes: the contract between rtsim and its compiled core.

A row is a record of a NumPy structured dtype. Compiled code takes the record itself;
interpreted code takes the NamedTuple that `as_row` makes of it, since plain Python numbers are
many times faster there than NumPy scalars. Both are read as `row.field`.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any, NamedTuple

import numpy as np

# What bounds an operator.
BOUND_COMPUTE = 0
BOUND_MEMORY = 1
BOUND_LATENCY = 2  # launch, pipeline fill, fixed costs of a kernel
BOUND_LINK = 3
BOUND_HOST = 4  # only for whole layers: the host issues kernels more slowly than the GPU runs them
BOUND_NAMES = ("compute", "memory", "latency", "interconnect", "host")


class Coefficient(NamedTuple):
    """A fitted number of an operator model, declared beside the formula that uses it.

    The fit works on ln(value) with a normal prior of mean ln(prior) and deviation `spread`.
    """

    name: str
    prior: float  # physical guess, in `unit`
    spread: float  # sigma of ln(value) before any measurement
    lower: float
    upper: float
    unit: str
    meaning: str


def coefficient_dtype(coefficients: tuple[Coefficient, ...]) -> np.dtype[np.void]:
    """Row dtype with one float field per coefficient."""
    return np.dtype([(c.name, np.float64) for c in coefficients])


def coefficient_priors(coefficients: tuple[Coefficient, ...]) -> np.ndarray[Any, Any]:
    """One row, shape (), of the prior values."""
    return np.array(tuple(c.prior for c in coefficients), coefficient_dtype(coefficients))


# Datasheet facts of one GPU. Rates are peaks per GPU; the FLOP rate of a GEMM or an attention
# kernel is in that operator's own row because it depends on the number format.
DEVICE = np.dtype(
    [
        ("sm_count", np.float64),
        ("clock_hz", np.float64),  # boost clock
        ("hbm_bytes_per_s", np.float64),
        ("l2_bytes", np.float64),
        ("vector_flops_per_s", np.float64),  # fp32 on the ordinary cores
    ]
)


@cache
def _row_class(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names)  # noqa: PYI024  fields are known only at run time


def as_row(record: Any) -> Any:
    """The NamedTuple of Python numbers with the fields of a structured record (shape ())."""
    return _row_class(record.dtype.names)._make(record.item())
