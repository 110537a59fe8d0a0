"""Matrix products: from `gemm` rows to kernel inputs, and the coefficients.

One fit covers one stack and number format on one or more GPUs. The number format sets what is
read, at which peak it is multiplied and whether activations are quantised first
(`specs.dtype.operand_format`).

Residency is what the rows say, else it follows the method of a table (`gemm_method`).

Fitted is the relative error, predicted / measured - 1, with a robust loss: libraries pick a slow
kernel here and there, and the logarithm would come out too slow for the rest.

Split: `choose_rows` takes the fitted rows from sizes alone; all others are unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import gemm

from rtsim.device_facts import l2_partitions, least_step, sustained_flops_per_s
from rtsim.fit import DERIVATIVE_STEP, Fit, fit_coefficients, select_rows
from rtsim.fitting.gemm_method import method_of, weight_copies
from rtsim.fitting.gemm_priors import HALF, coefficients_for
from rtsim.fitting.measured_rows import MeasuredRows
from rtsim.fitting.method import by_residency, stated
from rtsim.specs.dtype import operand_format
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

# Scatter that the model cannot explain (libraries pick a slower kernel for single shapes); small,
# so that the robust loss counts absolute errors. Tables printed to 1 us add that rounding.
ROW_SIGMA = 0.05
ROUNDING_S = 0.3e-6
# The cost has valleys where single rows pass in and out of the L2, and two for how a library picks
# its kernels: by a heuristic (16-bit products), or by trying them.
L2_STARTS = ({"l2_use": 0.3}, {"l2_use": 0.6}, {"l2_use": 1.0})
HEURISTIC_START = {"largest_waves": 1.0}
WIDE_STEP = 0.2  # of a first derivative, in prior deviations
# `choose_rows` spreads its rows over a sample: this part of a table, but so many rows at least.
SAMPLE_PART = 8
SAMPLE_LEAST = 256

# Left out of fits, which their few slow kernels would pull; predicted all the same.
MISALIGNED = "rows are not a multiple of 16 bytes"
FAST_PATH_BYTES = 16  # rows of n and k elements must be a multiple of this for tensor cores

# (stack, dtype) whose tables time the product alone, activations quantised beforehand: products of
# few columns take half as long as reading 16-bit activations from DRAM would (8192 x 128 x 7168 on
# L40S), where those of all other stacks and formats take twice as long and more.
QUANTISED_BEFORE = (("sglang", "fp8_static"), ("trtllm", "int8_sq"), ("pytorch", "int8_sq"))


@dataclass(frozen=True)
class Rows(MeasuredRows):
    """Kernel inputs of rows of one GPU, stack and dtype; arrays of equal length.

    m, n, k, batch: sizes. weight_copies: sets of weights cycled through, see `gemm_method`.
    """

    m: Array
    n: Array
    k: Array
    batch: Array
    weight_copies: Array


@dataclass(frozen=True)
class Machine:
    """Where rows were measured: the DEVICE record, and the GEMM record but for coefficients."""

    device: Any
    facts: dict[str, float]


def machine_of(
    gpu: GpuSpec, device: Any, stack: str, dtype: str, release: str = ""
) -> Machine | None:
    """Facts of one GPU, stack, its release and dtype; None where the GPU has no such math."""
    form = operand_format(dtype)
    peak = None if form is None else gpu.peak_flops_per_s(form.math_dtype)
    if form is None or peak is None:
        return None
    facts = {
        "peak_flops_per_s": sustained_flops_per_s(gpu, form.math_dtype, float(peak)),
        "a_bytes": form.a_bytes,
        "b_bytes": form.b_bytes,
        "out_bytes": form.out_bytes,
        "quantize_bytes": 0.0 if (stack, dtype) in QUANTISED_BEFORE else form.quantize_bytes,
        "activation_copies": method_of(stack, dtype, release).activation_copies,
        "l2_partitions": l2_partitions(gpu.compute_capability),
        "least_step": least_step(gpu.compute_capability),
    }
    return Machine(device, facts)


def usable(columns: Columns) -> NDArray[np.str_]:
    """Why each row cannot be used, "" where it can."""
    dtypes = columns["dtype"]
    reasons = np.full(len(dtypes), "", dtype="U64")
    forms = {name: operand_format(name) for name in set(dtypes.tolist())}

    def mark(bad: Any, reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    mark(np.array([forms[name] is None for name in dtypes.tolist()]), "dtype is not modelled")
    mark(~(columns["time_us"] > 0), "time is not above zero")
    sizes = np.stack([columns[name] for name in ("m", "n", "k", "batch")])
    mark(~(sizes > 0).all(axis=0), "a size is not above zero")
    # Tensor cores need whole 16-byte rows; fp32 on the ordinary cores does not.
    # (Scales are stored apart: a whole byte and scales make byte-wide rows.)
    element = np.array([form.b_bytes if form else 1.0 for form in map(forms.get, dtypes.tolist())])
    element = np.where(element >= 1.0, np.floor(element), element)
    ragged = (columns["n"] * element % FAST_PATH_BYTES != 0) | (
        columns["k"] * element % FAST_PATH_BYTES != 0
    )
    mark(ragged & (dtypes != "fp32") & (element >= 1.0), MISALIGNED)
    return reasons


def rows_of(columns: Columns, members: NDArray[np.intp], l2_bytes: float = 0.0) -> Rows:
    """Kernel inputs of the table rows `members`, which are usable and share a GPU and dtype.

    l2_bytes: of the GPU, which some benchmarks fill; 0: not known.
    """
    m, n, k, batch = (columns[name][members].astype(float) for name in ("m", "n", "k", "batch"))
    return Rows(
        table_rows=members,
        m=m,
        n=n,
        k=k,
        batch=batch,
        weight_copies=by_residency(
            columns, members, _copies(columns, members, n * k * batch, l2_bytes),
            cold=math.inf, warm=1.0,
        ),
        measured_s=columns["time_us"][members].astype(float) * 1e-6,
    )  # fmt: skip


def _copies(columns: Columns, members: NDArray[np.intp], elements: Array, l2_bytes: float) -> Array:
    """Sets of weights by the method of each row's table. elements: of one set of weights."""
    stacks, dtypes = (columns[name][members].astype(np.str_) for name in ("stack", "dtype"))
    releases = stated(columns, "stack_version", members)
    copies = np.ones(len(members))
    for stack, dtype, release in {*zip(stacks, dtypes, releases, strict=True)}:
        of_table = (stacks == stack) & (dtypes == dtype) & (releases == release)
        form = operand_format(str(dtype))
        method = method_of(str(stack), str(dtype), str(release))
        weight_bytes = elements[of_table] * (form.b_bytes if form else 1.0)
        copies[of_table] = weight_copies(method, weight_bytes, l2_bytes)
    return copies


def features(rows: Rows) -> Array:
    """Coordinates for `fit.select_rows`: ranks of the sizes, in [0, 1].

    Ranks rather than logarithms: farthest-point choices then spread over the rows that there
    are, and not over the empty corners of the space.
    """
    columns = [rows.m, rows.n, rows.k]
    if np.ptp(rows.batch) > 0:
        columns.append(rows.batch)
    return np.stack([np.searchsorted(np.sort(x), x) / max(len(x), 1) for x in columns], axis=1)


def choose_rows(rows: Rows, count: int = 64, seed: int = 0) -> NDArray[np.intp]:
    """Positions of at most `count` rows to fit, from sizes alone: spread over a seeded sample.

    The smaller the sample, the less the farthest points of it are corners that few rows are like.
    """
    members = np.random.default_rng(seed).permutation(len(rows))
    pool = np.sort(members[: max(count, SAMPLE_LEAST, len(rows) // SAMPLE_PART)])
    return pool[select_rows(features(rows.take(pool)), count)]


def predict(rows: Rows, machine: Machine, coefficients: Mapping[str, float | Array]) -> Array:
    """Seconds of every row, compiled; (sets, rows) where coefficients are arrays (sets,)."""
    from rtsim_kernels import compiled

    values = {**machine.facts, **coefficients}
    shape = np.broadcast_shapes(*(np.shape(value) for value in values.values()))
    sets = np.empty(shape, gemm.GEMM)
    for name in gemm.GEMM.names or ():
        sets[name] = values[name]
    seconds = compiled().gemm.gemm_many(
        rows.m, rows.n, rows.k, rows.batch, rows.weight_copies, sets.reshape(-1), machine.device[()]
    )
    return np.asarray(seconds if shape else seconds[0])


def fit_rows(
    groups: Sequence[tuple[Rows, Machine]],
    stack: str,
    dtype: str,
    base: Mapping[str, float] | None = None,
    base_spread: float = 1.0,
    launched: bool | None = None,
) -> Fit:
    """Fit one set of coefficients to rows of one stack and dtype on one or more GPUs.

    base: priors from elsewhere (a joint fit of a family or of the stacks of one GPU).
    base_spread: spread of ln(coefficient) about `base`, as a share of the declared spread.
    launched: see `coefficients_for`.
    """
    measured_s = np.concatenate([rows.measured_s for rows, _ in groups])
    facts = [machine.facts for _, machine in groups]
    coefficients = coefficients_for(stack, dtype, launched, facts)
    if base:
        coefficients = tuple(
            c._replace(
                prior=float(np.clip(base[c.name], 1.02 * c.lower, 0.98 * c.upper)),
                spread=base_spread * c.spread,
            )
            if c.name in base
            else c
            for c in coefficients
        )
    names = tuple(c.name for c in coefficients)
    # Few rows of one machine jump as tiles change; many machines together are smooth.
    steps = (WIDE_STEP, DERIVATIVE_STEP) if len(groups) == 1 else (DERIVATIVE_STEP,)

    def seconds(values: Array) -> Array:
        by_name = dict(zip(names, values.T, strict=True))
        parts = [predict(rows, machine, by_name) for rows, machine in groups]
        return np.concatenate(parts, axis=-1)

    return fit_coefficients(
        seconds,
        measured_s,
        coefficients,
        row_sigma=np.hypot(ROW_SIGMA, ROUNDING_S / measured_s),
        further_starts=(*L2_STARTS, HEURISTIC_START) if dtype in HALF else L2_STARTS,
        derivative_steps=steps,
        relative=True,
        many_sets=True,
    )


def named(fit: Fit) -> dict[str, float]:
    """Fitted values by coefficient name."""
    return dict(zip(fit.names, fit.values.tolist(), strict=True))


def cross_validated_sigma(
    groups: Sequence[tuple[Rows, Machine]], stack: str, dtype: str, folds: int = 4, seed: int = 0
) -> float:
    """Deviation of ln(predicted / measured) on folds left out of the fit (68 % point)."""
    rng = np.random.default_rng(seed)
    fold = [rng.permutation(len(rows)) % folds for rows, _ in groups]
    errors: list[Array] = []
    for k in range(folds):
        kept = [(r.take(f != k), m) for (r, m), f in zip(groups, fold, strict=True)]
        fitted = named(fit_rows([(r, m) for r, m in kept if len(r)], stack, dtype))
        for (rows, machine), f in zip(groups, fold, strict=True):
            left = rows.take(f == k)
            if len(left):
                errors.append(np.log(predict(left, machine, fitted) / left.measured_s))
    return float(np.quantile(np.abs(np.concatenate(errors)), 0.68))


def by_machine(
    columns: Columns, members: Iterable[int]
) -> dict[tuple[str, str, str], NDArray[np.intp]]:
    """Table rows `members` by (GPU, stack, dtype)."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for i in members:
        key = (str(columns["gpu"][i]), str(columns["stack"][i]), str(columns["dtype"][i]))
        found.setdefault(key, []).append(i)
    return {key: np.array(rows) for key, rows in found.items()}
