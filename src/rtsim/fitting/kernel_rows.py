"""Predicts the rows of kernel tables: gemm, attention_*, collective, elementwise, moe, mla.

Rows are grouped by what the kernels take once (GPU, stack, number format, machine); each group is
one call of the compiled core with the coefficients of a profile. How a table was measured (what
is in the L2, whether the launch is in the time) is known by the fit recipe of its kind, so a row
is predicted the way it was measured.

The interval is that of the operator kind in the profile, wider where the profile serves another
GPU than its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels.gemm import GEMM_COEFFICIENTS
from rtsim_kernels.memory_bound import MEMORY_BOUND_COEFFICIENTS
from rtsim_kernels.tables import Coefficient

from rtsim.catalog import load_gpu
from rtsim.device_facts import device_row
from rtsim.errors import NotSupported, RtsimError
from rtsim.fitting import attention, collective, gemm, memory_bound, mla, mla_module, moe, resolve
from rtsim.fitting.gemm_method import method_of
from rtsim.fitting.gemm_priors import EAGER_CLOCK_HZ, EAGER_LAUNCH_S
from rtsim.fitting.method import issued_ahead, stated
from rtsim.kernel_records import absorb_row, gemm_row
from rtsim.measurements import Columns
from rtsim.profile import Profile, interval_half_width, load_profile
from rtsim.profile_choice import choose_profile
from rtsim.row_times import RowTimes
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]
Labels = NDArray[np.str_]

_MIB = 2.0**20
_ALL = np.ones(1)  # a kernel's time is all owed to one kind of operator
# Upper limits of the size regimes; the last one has none. They say where errors are, no more.
GEMM_ROWS_LIMITS = ((16, "m to 16"), (128, "m to 128"), (1024, "m to 1024"), (0, "m above 1024"))
PREFILL_FLOP_LIMITS = ((1e9, "to 1 GFLOP"), (1e11, "to 100 GFLOP"), (0, "above 100 GFLOP"))
DECODE_BYTE_LIMITS = ((_MIB, "to 1 MiB"), (64 * _MIB, "to 64 MiB"), (0, "above 64 MiB"))
MESSAGE_LIMITS = ((65536, "to 64 KiB"), (_MIB, "to 1 MiB"), (32 * _MIB, "to 32 MiB"),
                  (0, "above 32 MiB"))  # fmt: skip
ROUTED_ROW_LIMITS = ((1.0, "to 1 row per expert"), (8.0, "to 8 rows per expert"),
                     (64.0, "to 64 rows per expert"), (0, "above 64 rows per expert"))  # fmt: skip
ELEMENTWISE_LIMITS = ((_MIB, "to 1 MiB"), (32 * _MIB, "to 32 MiB"), (0, "above 32 MiB"))


@dataclass(frozen=True)
class Group:
    """Rows that share a profile and the values of some columns."""

    key: dict[str, str]
    members: NDArray[np.intp]
    gpu: GpuSpec
    profile: Profile


@dataclass(frozen=True)
class Sizes:
    """Size of each row and the regimes it can be in: (upper limit, label), smallest first.

    >>> Sizes(np.array([3, 16, 17]), ((16, "small"), (0, "large"))).regimes().tolist()
    ['small', 'small', 'large']
    """

    sizes: NDArray[Any]
    limits: Sequence[tuple[float, str]]

    def regimes(self) -> Labels:
        """The first label whose limit a size does not exceed, else the last."""
        names = np.array([name for _, name in self.limits])
        return np.asarray(names[np.searchsorted([u for u, _ in self.limits[:-1]], self.sizes)])


# (rows of a group) -> seconds of each, in their order.
GroupSeconds = Callable[[Group], Array]


def predict_gemm(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of matrix products; regimes by the rows m of a product."""

    def seconds(group: Group) -> Array:
        rows = gemm.rows_of(columns, group.members, group.gpu.l2_bytes)
        key = group.key
        copies = method_of(key["stack"], key["dtype"], key["stack_version"]).activation_copies
        row = gemm_row(
            group.profile, group.gpu, group.key["dtype"], activation_copies=copies,
            variants=resolve.released_variants("gemm", group.key)[:1],
        )  # fmt: skip
        if (group.key["stack"], group.key["dtype"]) in gemm.QUANTISED_BEFORE:
            row["quantize_bytes"] = 0.0
        row["launch_clocks"] = issued_ahead(
            float(row["launch_clocks"]), _prior(GEMM_COEFFICIENTS, "launch_clocks"),
            EAGER_LAUNCH_S * EAGER_CLOCK_HZ, group.key["timing"],
        )  # fmt: skip
        device = device_row(group.gpu)
        return np.asarray(
            rtsim_kernels.compiled().gemm.gemm_many(
                rows.m, rows.n, rows.k, rows.batch, rows.weight_copies, row[None], device[()]
            )[0]
        )

    by = ("gpu", "stack", "stack_version", "dtype", "timing")
    sizes = Sizes(columns["m"], GEMM_ROWS_LIMITS)
    reasons = gemm.usable(columns)
    reasons[reasons == gemm.MISALIGNED] = ""
    return _predict(columns, profile, "gemm", reasons, by, seconds, sizes)


def predict_attention_prefill(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of fused prefill attention; regimes by the FLOPs of pairs before the last token."""
    pairs = columns["query_tokens"] * (columns["context_tokens"] - columns["query_tokens"] / 2.0)
    window = columns["window_size"]
    pairs = np.where(window > 0, np.minimum(pairs, columns["query_tokens"] * window), pairs)
    flops = 4.0 * columns["batch"] * columns["num_heads"] * columns["head_dim"] * pairs
    return _predict_attention(
        _with_kv_dtype(columns), profile, attention.PREFILL, Sizes(flops, PREFILL_FLOP_LIMITS)
    )


def predict_attention_decode(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of fused decode attention; regimes by the bytes of visible keys and values."""
    columns = _with_kv_dtype(columns)
    window, context = columns["window_size"], columns["context_tokens"]
    keys = np.where(window > 0, np.minimum(context, window), context)
    heads = columns["batch"] * columns["num_kv_heads"]
    elements = 2.0 * heads * columns["head_dim"] * keys
    cached_bytes = elements * _looked_up(columns["kv_dtype"], attention.BYTES)
    return _predict_attention(
        columns, profile, attention.DECODE, Sizes(cached_bytes, DECODE_BYTE_LIMITS)
    )


def _prior(declared: tuple[Coefficient, ...], name: str) -> float:
    return next(c.prior for c in declared if c.name == name)


def _with_kv_dtype(columns: Columns) -> Columns:
    """An empty cache dtype stands for that of the queries."""
    filled = np.where(columns["kv_dtype"] == "", columns["dtype"], columns["kv_dtype"])
    return {**columns, "kv_dtype": filled}


def _predict_attention(
    columns: Columns, profile: str | None, kind: str, sizes: Sizes
) -> dict[str, RowTimes]:
    def seconds(group: Group) -> Array:
        rows = attention.rows_of(columns, group.members, kind, lambda _: group.gpu)
        return attention.predict(rows, resolve.coefficients(group.profile, kind, group.key))

    by = ("gpu", "stack", "dtype", "kv_dtype")
    reasons = attention.usable(columns)
    return _predict(columns, profile, kind, reasons, by, seconds, sizes)


def predict_collective(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of communication between GPUs; regimes by message size."""

    def seconds(group: Group) -> Array:
        machine, limit_bytes = resolve.collective_machine(
            group.profile, group.gpu, group.key["topology"], group.key["implementation"]
        )
        rows = collective.rows_of(columns, group.members)
        coefficients = resolve.coefficients(group.profile, "collective", group.key)
        return collective.predict(rows, machine, coefficients, limit_bytes)

    by = ("gpu", "stack", "topology", "implementation")
    sizes = Sizes(columns["message_bytes"], MESSAGE_LIMITS)
    reasons = collective.usable(columns)
    return _predict(columns, profile, "collective", reasons, by, seconds, sizes)


def predict_elementwise(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of memory-bound operators; regimes by bytes of the result."""

    def seconds(group: Group) -> Array:
        rows = memory_bound.rows_of(columns, group.members)
        coefficients = resolve.coefficients(group.profile, "memory_bound", group.key)
        coefficients["launch_s"] = issued_ahead(
            coefficients["launch_s"], _prior(MEMORY_BOUND_COEFFICIENTS, "launch_s"),
            memory_bound.EAGER_LAUNCH_S, group.key["timing"],
        )  # fmt: skip
        return memory_bound.predict(rows, resolve.memory_bound_machine(group.gpu), coefficients)

    element_bytes = _looked_up(columns["dtype"], memory_bound.ELEMENT_BYTES)
    sizes = Sizes(columns["rows"] * columns["cols"] * element_bytes, ELEMENTWISE_LIMITS)
    reasons = memory_bound.usable(columns)
    by = ("gpu", "stack", "op", "timing")
    return _predict(columns, profile, "memory_bound", reasons, by, seconds, sizes)


def predict_moe(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of mixture-of-experts layers; regimes by the mean rows of an expert."""

    def seconds(group: Group) -> Array:
        key = group.key
        machine = moe.machine_of(group.gpu, device_row(group.gpu), key["dtype"], key["residency"])
        if machine is None:
            raise NotSupported(f"{group.gpu.name} states no rate for {group.key['dtype']}")
        rows = moe.rows_of(columns, group.members)
        return moe.predict(rows, machine, resolve.coefficients(group.profile, "moe", group.key))

    by = ("gpu", "stack", "dtype", "kernel", "residency")
    load = columns["num_tokens"] * columns["top_k"] / columns["num_experts"]
    sizes = Sizes(load, ROUTED_ROW_LIMITS)
    return _predict(columns, profile, "moe", moe.usable(columns), by, seconds, sizes)


def predict_mla(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of latent attention, of its batched products and of whole blocks; regimes by which."""
    columns = {**columns, "gemm_dtype": _or_dtype(columns, "gemm_dtype")}
    regimes = (*mla.SECTION_KINDS, *mla.MODULES)
    times = None
    for op in regimes:
        reasons = mla.predictable(columns)
        reasons[(reasons == "") & (columns["op"] != op)] = _OTHER_OPERATOR
        part = _predict_mla_operator(columns, profile, op, reasons)
        if times is None:
            times = part
            continue
        own = columns["op"] == op
        for name in ("predicted_s", "low_s", "high_s"):
            getattr(times, name)[own] = getattr(part, name)[own]
        times = replace(times, skip=np.where(own, part.skip, times.skip))
    if times is None:
        raise ValueError("no operators")
    return {"time": replace(times, regime=columns["op"], regimes=regimes)}


_OTHER_OPERATOR = "another operator"


def _or_dtype(columns: Columns, name: str) -> Labels:
    return np.asarray(np.where(columns[name] == "", columns["dtype"], columns[name]))


def _predict_mla_operator(
    columns: Columns, profile: str | None, op: str, reasons: Labels
) -> RowTimes:
    kind = mla.SECTION_KINDS.get(op)
    if op in mla.MODULES:
        kind = mla.PREFILL if op == "context_module" else mla.DECODE

    def seconds(group: Group) -> Array:
        members, gpu, key = group.members, group.gpu, group.key
        if kind == "gemm":
            rows = mla.product_rows(columns, members)
            row = absorb_row(group.profile, gpu, key["dtype"])
            device = device_row(gpu)
            return np.asarray(
                rtsim_kernels.compiled().gemm.gemm_many(
                    rows.m, rows.n, rows.k, rows.batch, rows.weight_copies, row[None], device[()]
                )[0]
            )
        coefficients = resolve.coefficients(group.profile, str(kind), key)
        if op in mla.MODULES:
            absorbed = kind == mla.DECODE or mla.is_absorbed(coefficients)
            whole = mla_module.rows_of(columns, members, op, gpu, group.profile, absorbed=absorbed)
            return mla.predict(whole, coefficients)
        return mla.predict(mla.rows_of(columns, members, str(kind), lambda _: gpu), coefficients)

    by = ("gpu", "stack", "dtype", "kv_dtype", "gemm_dtype", "op")
    sizes = Sizes(np.zeros(len(reasons)), ((0, op),))
    columns = _with_kv_dtype(columns)
    return _predict(columns, profile, str(kind), reasons, by, seconds, sizes)["time"]


def _looked_up(names: Labels, values: Mapping[str, float]) -> Array:
    """The value of each name, NaN for one without."""
    different, position = np.unique(names, return_inverse=True)
    return np.array([values.get(name, np.nan) for name in different.tolist()])[position]


def _predict(
    columns: Columns,
    profile: str | None,
    kind: str,
    reasons: Labels,
    by: Sequence[str],
    seconds: GroupSeconds,
    sizes: Sizes,
) -> dict[str, RowTimes]:
    """Predict all rows without a skip reason, group by group of the columns `by`.

    kind: of the profile's sections.
    Raises UnknownName or DataError where `profile` is no profile.
    """
    chosen = None if profile is None else load_profile(profile)
    measured_s = columns["time_us"] * 1e-6
    predicted_s, factor = (np.full(len(measured_s), np.nan) for _ in range(2))
    skip = reasons.astype(object)  # of any length; few different ones
    for key, members in grouped(columns, by, np.flatnonzero(reasons == "")):
        try:
            gpu = load_gpu(key["gpu"]).one_device()
            # A profile that was asked for serves every row, whatever its stack.
            used = chosen or choose_profile(gpu, key["stack"] or None)[0]
            predicted_s[members] = seconds(Group(key, members, gpu, used))
        except RtsimError as error:
            skip[members] = str(error)
            continue
        sigma = resolve.sigma(used, gpu, kind, key)
        factor[members] = np.exp(interval_half_width(_ALL, sigma * _ALL, used.sigma_row))
    times = RowTimes(
        measured_s, predicted_s, predicted_s / factor, predicted_s * factor,
        skip.astype(np.str_), sizes.regimes(), tuple(name for _, name in sizes.limits),
    )  # fmt: skip
    return {"time": times}


def grouped(
    columns: Columns, by: Sequence[str], members: NDArray[np.intp]
) -> list[tuple[dict[str, str], NDArray[np.intp]]]:
    """The rows `members` by their values in the text columns `by`, in order of appearance."""
    if len(members) == 0:
        return []
    code = np.zeros(len(members), np.int64)
    for name in by:
        texts = stated(columns, name, members).tolist()
        code_of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        own = np.fromiter(map(code_of.__getitem__, texts), np.int64, len(texts))
        code = code * len(code_of) + own
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.diff(code[order], prepend=-1))
    parts = [members[part] for part in np.split(order, starts[1:])]
    return [
        ({name: str(stated(columns, name, part[:1])[0]) for name in by}, part) for part in parts
    ]
