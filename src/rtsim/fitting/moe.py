"""Mixture-of-experts layers: from `moe` rows to kernel inputs, and the coefficients.

One fit covers one stack, number format and family of kernels (`backend_of`): stacks switch
between libraries by shape, and the same layer then takes up to three times as long.

Benchmarks repeat one layer's weights, so small layers are found in the L2. With `ep` > 1 the
tables time the GPU with most of the load; a quarter of the fitted rows are such.

Split: `choose_rows` takes the fitted rows from sizes alone; all others are unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import moe

from rtsim.device_facts import l2_partitions
from rtsim.fit import Fit, centred, fit_coefficients
from rtsim.fitting.cluster import cluster_rows, spread
from rtsim.fitting.measured_rows import MeasuredRows
from rtsim.specs.dtype import operand_format
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

# Families of kernels, by words in kernel names; a name can hold several, the most telling first.
# "marlin_int4": what vLLM 0.19's tables of int4 experts time; it takes 2 to 4 times as long as the
# Marlin kernels themselves in vLLM 0.14, in SGLang and in vLLM's own serving runs.
_TELLING = (
    "expert_loop",
    "min_latency",
    "marlin_int4",
    "marlin",
    "deepgemm",
    "cutedsl",
    "triton",
    "cutlass",
    "trtllm",
)

ROW_SIGMA = 0.05
# Of relative errors, where rows of several GPUs are fitted: kernels differ more than rows scatter.
ACROSS_SIGMA = 0.2
DERIVATIVE_STEPS = (0.3, 0.1, 0.02)  # wide first: tiles make times jump
REMOTE_SHARE = 0.25  # of the fitted rows, with experts on other GPUs
MATRICES = 3.0  # all tables hold gated layers
BENCHMARK_COPIES = 1.0  # layers cycled through before re-use
COLD_COPIES = 1e5  # nothing left in the L2; endless ones stand for tokens that draw experts, too
DISTRIBUTION = re.compile(r"(balanced)|power_law_([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Rows(MeasuredRows):
    """Kernel inputs of rows of one GPU, stack and format; arrays of equal length."""

    n_tokens: Array
    hidden_size: Array
    expert_width: Array
    n_experts: Array
    n_local_experts: Array
    top_k: Array
    skew: Array


@dataclass(frozen=True)
class Machine:
    """Where rows were measured: the DEVICE record, and the MOE record but for coefficients."""

    device: Any
    facts: dict[str, float]


def backend_of(kernel: str) -> str:
    """Family of kernels by a kernel's name, "" where it does not tell.

    >>> backend_of("sglang_fused_moe_triton"), backend_of("moe_torch_flow")
    ('triton', '')
    """
    return next((word for word in _TELLING if word in kernel), "")


def skew_of(distribution: str) -> float | None:
    """Exponent of the loads' power law; None for a distribution that is not modelled.

    >>> skew_of("power_law_1.2"), skew_of("balanced"), skew_of("uniform")
    (1.2, 0.0, None)
    """
    found = DISTRIBUTION.fullmatch(distribution)
    if found is None:
        return None
    return 0.0 if found[1] else float(found[2])


def machine_of(gpu: GpuSpec, device: Any, dtype: str, residency: str = "") -> Machine | None:
    """Facts of one GPU and number format; None where the GPU has no such math or format.

    residency: as the rows say, "cold" where other weights pass between two uses of a layer's.
    """
    form = operand_format(dtype)
    peak = None if form is None else gpu.peak_flops_per_s(form.math_dtype)
    if form is None or peak is None:
        return None
    facts = {
        "peak_flops_per_s": float(peak), "a_bytes": form.a_bytes, "b_bytes": form.b_bytes,
        "out_bytes": form.out_bytes,
        "weight_copies": COLD_COPIES if residency == "cold" else BENCHMARK_COPIES,
        "l2_partitions": l2_partitions(gpu.compute_capability),
    }  # fmt: skip
    return Machine(device, facts)


def usable(columns: Columns) -> NDArray[np.str_]:
    """Why each row cannot be used, "" where it can."""
    reasons = np.full(len(columns["time_us"]), "", dtype="U64")

    def mark(bad: Any, reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    forms = {name: operand_format(name) for name in set(columns["dtype"].tolist())}
    skews = {name: skew_of(name) for name in set(columns["distribution"].tolist())}
    mark(~(columns["time_us"] > 0), "time is not above zero")
    mark(
        np.array([forms[name] is None for name in columns["dtype"].tolist()]),
        "dtype is not modelled",
    )
    mark(
        np.array([skews[name] is None for name in columns["distribution"].tolist()]),
        "distribution is not modelled",
    )
    mark(columns["top_k"] > columns["num_experts"], "more experts per token than experts")
    mark(columns["ep"] > columns["num_experts"], "more GPUs than experts")
    mark(columns["tp"] > columns["intermediate_size"], "more GPUs than columns of an expert")
    return reasons


def rows_of(columns: Columns, members: NDArray[np.intp]) -> Rows:
    """Kernel inputs of the table rows `members`, which are usable and share a GPU and format."""

    def column(name: str) -> Array:
        return np.asarray(columns[name][members], dtype=float)

    skews = [skew_of(name) for name in columns["distribution"][members].tolist()]
    return Rows(
        table_rows=members,
        n_tokens=column("num_tokens"),
        hidden_size=column("hidden_size"),
        expert_width=column("intermediate_size") / column("tp"),
        n_experts=column("num_experts"),
        n_local_experts=column("num_experts") / column("ep"),
        top_k=column("top_k"),
        skew=np.array(skews, dtype=float),
        measured_s=column("time_us") * 1e-6,
    )


def features(rows: Rows) -> Array:
    """Coordinates of shapes for `choose_rows`: sizes in doublings, all weighing alike."""
    return spread(
        [
            np.log2(rows.n_tokens), np.log2(rows.hidden_size), np.log2(rows.expert_width),
            np.log2(rows.n_experts), np.log2(rows.top_k), rows.skew > 0,
            np.log2(rows.n_experts / rows.n_local_experts),
        ]
    )  # fmt: skip


def choose_rows(rows: Rows, count: int = 64, seed: int = 0) -> NDArray[np.intp]:
    """Positions of at most `count` rows to fit, from sizes alone; see REMOTE_SHARE."""
    whole = rows.n_local_experts == rows.n_experts
    here, apart = np.flatnonzero(whole), np.flatnonzero(~whole)
    remote = min(len(apart), round(REMOTE_SHARE * count))
    if len(here) < count - remote:
        remote = min(len(apart), count - len(here))
    points = features(rows)
    chosen = here[cluster_rows(points[here], count - remote, seed)] if len(here) else here
    if remote:
        chosen = np.concatenate([chosen, apart[cluster_rows(points[apart], remote, seed)]])
    return np.sort(chosen)


def predict(rows: Rows, machine: Machine, coefficients: Mapping[str, float]) -> Array:
    """Seconds of every row, compiled."""
    from rtsim_kernels import compiled

    row = resolved(machine, coefficients)
    return np.asarray(
        compiled().moe.moe_many(
            rows.n_tokens, rows.hidden_size, rows.expert_width, rows.n_experts,
            rows.n_local_experts, rows.top_k, np.full(len(rows), MATRICES), rows.skew,
            row[()], machine.device[()],
        )
    )  # fmt: skip


def resolved(machine: Machine, coefficients: Mapping[str, float]) -> NDArray[np.void]:
    """The MOE record of a machine with coefficients."""
    values = {**machine.facts, **coefficients}
    return np.array(tuple(values[name] for name in moe.MOE.names or ()), moe.MOE)


def work(rows: Rows, machine: Machine) -> tuple[Array, Array]:
    """(FLOPs, compulsory bytes) of every row."""
    from rtsim_kernels import tables

    row = tables.as_row(resolved(machine, {c.name: c.prior for c in moe.MOE_COEFFICIENTS}))
    sizes = zip(
        *(values.tolist() for values in (
            rows.n_tokens, rows.hidden_size, rows.expert_width, rows.n_experts,
            rows.n_local_experts, rows.top_k, rows.skew,
        )),
        strict=True,
    )  # fmt: skip
    found = [
        moe.moe_work(tokens, hidden, width, experts, local, top_k, MATRICES, skew, row)
        for tokens, hidden, width, experts, local, top_k, skew in sizes
    ]
    flops, moved = np.array(found, dtype=float).reshape(-1, 2).T
    return flops, moved


def fit_rows(
    groups: Sequence[tuple[Rows, Machine]],
    base: Mapping[str, float] | None = None,
    base_spread: float = 1.0,
    *,
    quick: bool = False,
) -> Fit:
    """Fit one set of coefficients to rows of one stack and format on one or more GPUs.

    base, base_spread: priors from elsewhere, see `fit.centred`. quick: fewer derivative steps.
    """
    measured_s = np.concatenate([rows.measured_s for rows, _ in groups])
    coefficients = centred(moe.MOE_COEFFICIENTS, base, base_spread)
    names = tuple(c.name for c in coefficients)

    def seconds(values: Array) -> Array:
        by_name = dict(zip(names, values.tolist(), strict=True))
        return np.concatenate([predict(rows, machine, by_name) for rows, machine in groups])

    several = len({machine.device.tobytes() for _, machine in groups}) > 1
    return fit_coefficients(
        seconds,
        measured_s,
        coefficients,
        row_sigma=ACROSS_SIGMA if several else ROW_SIGMA,
        relative=several,
        derivative_steps=DERIVATIVE_STEPS[1:2] if quick else DERIVATIVE_STEPS,
    )
