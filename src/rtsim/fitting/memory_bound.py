"""Memory-bound operators: from `elementwise` rows to kernel inputs, and the coefficients.

What each named operator counts is `rtsim_kernels.memory_bound.OPERATORS`, the same table from
which a Transformer is lowered. `COMPOSITES` are calls that run several kernels of one kind.

Residency is what the rows say, else it follows the method of a table: kernels timed inside a layer
find what the kernel before wrote, and kernels repeated on one buffer find all of it, as far as the
L2 holds it. Only gathered rows (embedding) come cold.

Split: `choose_rows` takes the fitted rows from names and sizes alone, the same number of each
operator; all others are unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import memory_bound
from rtsim_kernels.tables import Coefficient

from rtsim.fit import Fit, centred, fit_coefficients, select_rows
from rtsim.fitting.measured_rows import MeasuredRows
from rtsim.fitting.method import by_residency, launched, stated

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

# Scatter of repeats; tables printed to 1 us add the deviation of that rounding, 1 us / sqrt(12).
ROW_SIGMA = 0.06
ROUNDING_S = 0.3e-6

# Operators that run `count` kernels of another operator.
COMPOSITES = {"add3": ("add", 2)}

# Bytes per element read and written, by dtype of a table.
ELEMENT_BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0}
QUANTIZED_BYTES = 1.0  # of fp8 output

COLD_INPUTS = ("embedding",)

# One call between two events from the host: 15-25 us of launch and event are in each time.
EAGER_STACKS = ("pytorch",)
EAGER_LAUNCH_S = 15e-6
# Host time of one eager call in launches of an add: three results to allocate, not one.
EAGER_LAUNCHES = {"layernorm": 2.5}


@dataclass(frozen=True)
class Rows(MeasuredRows):
    """Kernel inputs of rows of one GPU and stack; arrays of equal length.

    op: operator names. kind: codes of the kernel module.
    kernels: kernels that one call runs. The bytes and FLOPs are those of one kernel.
    further_launches: host time of the call beyond that, in launches.
    """

    op: NDArray[np.str_]
    kind: NDArray[np.int64]
    rows: Array
    cols: Array
    read_bytes: Array
    written_bytes: Array
    flops: Array
    warm_frac: Array
    kernels: Array
    further_launches: Array


@dataclass(frozen=True)
class Machine:
    """Where rows were measured: the DEVICE record of the GPU and the threads of its SMs."""

    device: Any
    threads_per_sm: float


def usable(columns: Columns) -> NDArray[np.str_]:
    """Why each row cannot be used, "" where it can."""
    reasons = np.full(len(columns["time_us"]), "", dtype="U64")

    def mark(bad: NDArray[np.bool_], reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    mark(~np.isin(columns["op"], [*memory_bound.OPERATORS, *COMPOSITES]), "unknown operator")
    mark(~np.isin(columns["dtype"], list(ELEMENT_BYTES)), "dtype is not of 16 or 32 bits")
    mark(~(columns["time_us"] > 0), "time is not above zero")
    mark(~((columns["rows"] > 0) & (columns["cols"] > 0)), "no elements")
    return reasons


def rows_of(columns: Columns, members: NDArray[np.intp]) -> Rows:
    """Kernel inputs of the table rows `members`, which are usable."""
    eager = np.array(
        [
            launched(timing, stack in EAGER_STACKS)
            for timing, stack in zip(
                stated(columns, "timing", members), columns["stack"][members].tolist(), strict=True
            )
        ],
        bool,
    )
    op = columns["op"][members].astype(np.str_)
    kernel = [COMPOSITES.get(name, (name, 1)) for name in op.tolist()]
    work = [memory_bound.OPERATORS[name] for name, _ in kernel]
    rows = columns["rows"][members].astype(float)
    cols = columns["cols"][members].astype(float)
    element = np.array([ELEMENT_BYTES[name] for name in columns["dtype"][members].tolist()])
    written = np.where(np.char.find(op, "quantize") >= 0, QUANTIZED_BYTES, element)
    elements = rows * cols
    return Rows(
        table_rows=members,
        op=op,
        kind=np.array([w.kind for w in work], np.int64),
        rows=rows,
        cols=cols,
        read_bytes=elements * element * np.array([w.read_elements for w in work]),
        written_bytes=elements * written * np.array([w.written_elements for w in work]),
        flops=elements * np.array([w.flops for w in work]),
        warm_frac=by_residency(
            columns, members, np.where(np.isin(op, COLD_INPUTS), 0.0, 1.0), cold=0.0, warm=1.0
        ),
        kernels=np.array([float(count) for _, count in kernel]),
        further_launches=np.where(
            eager, np.array([EAGER_LAUNCHES.get(name, 1.0) for name in op.tolist()]) - 1.0, 0.0
        ),
        measured_s=columns["time_us"][members].astype(float) * 1e-6,
    )


def features(rows: Rows) -> Array:
    """Coordinates for `fit.select_rows` within one operator: sizes in logarithms."""
    return np.stack([np.log(rows.rows), np.log(rows.cols)], axis=1)


def choose_rows(rows: Rows, count: int = 64, seed: int = 0) -> NDArray[np.intp]:
    """Positions of at most `count` rows to fit, from names and sizes alone.

    Each operator gets an equal share, so that none stays unfitted; within it a seeded half of
    the rows (at least six times the share) is the pool, and the rows covering it best are taken.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(rows.op.tolist()))
    taken: list[NDArray[np.intp]] = []
    for i, name in enumerate(names):
        share = count // len(names) + (i < count % len(names))
        members = rng.permutation(np.flatnonzero(rows.op == name))
        pool = members[: max(6 * share, len(members) // 2)]
        if share:
            taken.append(pool[select_rows(features(rows.take(pool)), share)])
    return np.concatenate(taken)


def predict(rows: Rows, machine: Machine, coefficients: Mapping[str, float]) -> Array:
    """Seconds of every row, compiled. `threads_per_sm` is the machine's."""
    from rtsim_kernels import compiled

    values = {**coefficients, "threads_per_sm": machine.threads_per_sm}
    names = memory_bound.MEMORY_BOUND.names or ()
    row = np.array(tuple(values[name] for name in names), memory_bound.MEMORY_BOUND)
    seconds = compiled().memory_bound.memory_bound_many(
        rows.kind,
        rows.rows,
        rows.cols,
        rows.read_bytes,
        rows.written_bytes,
        rows.flops,
        rows.warm_frac,
        row[()],
        machine.device[()],
    )
    further_s = rows.further_launches * values["launch_s"]
    return np.asarray(seconds * rows.kernels + further_s)


def coefficients_for(stack: str, launched: bool | None = None) -> tuple[Coefficient, ...]:
    """The declared coefficients, with the launch of an eager stack where it is in the times.

    launched: whether it is; None: as the tables of `stack` are made.
    """
    if not (stack in EAGER_STACKS if launched is None else launched):
        return memory_bound.MEMORY_BOUND_COEFFICIENTS
    return tuple(
        c._replace(prior=EAGER_LAUNCH_S) if c.name == "launch_s" else c
        for c in memory_bound.MEMORY_BOUND_COEFFICIENTS
    )


def fit_rows(
    groups: Sequence[tuple[Rows, Machine]],
    stack: str = "",
    base: Mapping[str, float] | None = None,
    base_spread: float = 1.0,
    launched: bool | None = None,
) -> Fit:
    """Fit one set of coefficients to rows of one stack on one or more GPUs.

    base, base_spread: priors from elsewhere, see `fit.centred`. launched: see `coefficients_for`.
    """
    measured_s = np.concatenate([rows.measured_s for rows, _ in groups])
    coefficients = centred(coefficients_for(stack, launched), base, base_spread)
    names = tuple(c.name for c in coefficients)

    def seconds(values: Array) -> Array:
        named = dict(zip(names, values.tolist(), strict=True))
        return np.concatenate([predict(rows, machine, named) for rows, machine in groups])

    return fit_coefficients(
        seconds,
        measured_s,
        coefficients,
        row_sigma=np.hypot(ROW_SIGMA, ROUNDING_S / measured_s),
    )


def named(fit: Fit) -> dict[str, float]:
    """Fitted values by coefficient name."""
    return dict(zip(fit.names, fit.values.tolist(), strict=True))


def cross_validated_sigma(
    groups: Sequence[tuple[Rows, Machine]], stack: str = "", folds: int = 4, seed: int = 0
) -> float:
    """Deviation of ln(predicted / measured) on folds left out of the fit (68 % point)."""
    rng = np.random.default_rng(seed)
    fold = [rng.permutation(len(rows)) % folds for rows, _ in groups]
    errors: list[Array] = []
    for k in range(folds):
        kept = [(r.take(f != k), m) for (r, m), f in zip(groups, fold, strict=True)]
        fitted = named(fit_rows([(r, m) for r, m in kept if len(r)], stack))
        for (rows, machine), f in zip(groups, fold, strict=True):
            left = rows.take(f == k)
            if len(left):
                errors.append(np.log(predict(left, machine, fitted) / left.measured_s))
    return float(np.quantile(np.abs(np.concatenate(errors)), 0.68))


def by_gpu(columns: Columns, members: Iterable[int]) -> dict[str, NDArray[np.intp]]:
    """Table rows `members` by GPU name."""
    found: dict[str, list[int]] = {}
    for i in members:
        found.setdefault(str(columns["gpu"][i]), []).append(i)
    return {gpu: np.array(rows) for gpu, rows in found.items()}
