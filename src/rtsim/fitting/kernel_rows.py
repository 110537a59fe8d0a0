"""Predicts the rows of kernel tables: gemm, attention_*, collective, elementwise.

Rows are grouped by what the kernels take once (GPU, stack, number format, machine); each group is
one call of the compiled core with the coefficients of a profile. How a table was measured (what
is in the L2, whether the launch is in the time) is known by the fit recipe of its kind, so a row
is predicted the way it was measured.

The interval is that of the operator kind in the profile, wider where the profile serves another
GPU than its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.catalog import load_gpu
from rtsim.device_facts import device_row, link_facts_of, threads_per_sm
from rtsim.errors import NotSupported, RtsimError
from rtsim.fitting import attention, collective, gemm, memory_bound
from rtsim.measurements import Columns
from rtsim.profile import Profile, choose_profile, interval_half_width, load_profile
from rtsim.row_times import RowTimes
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]
Labels = NDArray[np.str_]

_MIB = 2.0**20
# Upper limits of the size regimes; the last one has none. They say where errors are, no more.
GEMM_ROWS_LIMITS = ((16, "m to 16"), (128, "m to 128"), (1024, "m to 1024"), (0, "m above 1024"))
PREFILL_FLOP_LIMITS = ((1e9, "to 1 GFLOP"), (1e11, "to 100 GFLOP"), (0, "above 100 GFLOP"))
DECODE_BYTE_LIMITS = ((_MIB, "to 1 MiB"), (64 * _MIB, "to 64 MiB"), (0, "above 64 MiB"))
MESSAGE_LIMITS = ((65536, "to 64 KiB"), (_MIB, "to 1 MiB"), (32 * _MIB, "to 32 MiB"),
                  (0, "above 32 MiB"))  # fmt: skip
ELEMENTWISE_LIMITS = ((_MIB, "to 1 MiB"), (32 * _MIB, "to 32 MiB"), (0, "above 32 MiB"))


@dataclass(frozen=True)
class Group:
    """Rows that share a profile and the values of some columns."""

    key: dict[str, str]
    members: NDArray[np.intp]
    gpu: GpuSpec
    profile: Profile


# (rows of a group) -> seconds of each, in their order.
GroupSeconds = Callable[[Group], Array]


def predict_gemm(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of matrix products; regimes by the rows m of a product."""

    def seconds(group: Group) -> Array:
        dtype = group.key["dtype"]
        device = device_row(group.gpu)
        machine = gemm.machine_of(group.gpu, device, group.key["stack"], dtype)
        if machine is None:
            raise NotSupported(f"{group.gpu.name} states no rate for {dtype}")
        coefficients = group.profile.section("gemm", *_formats(dtype))
        return gemm.predict(gemm.rows_of(columns, group.members), machine, coefficients)

    regime = regimes(columns["m"], GEMM_ROWS_LIMITS)
    by = ("gpu", "stack", "dtype")
    return _predict(columns, profile, "gemm", gemm.usable(columns), by, seconds, regime)


def predict_attention_prefill(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of fused prefill attention; regimes by the FLOPs of visible pairs (unmasked ones)."""
    pairs = columns["query_tokens"] * (columns["context_tokens"] - columns["query_tokens"] / 2.0)
    window = columns["window_size"]
    pairs = np.where(window > 0, np.minimum(pairs, columns["query_tokens"] * window), pairs)
    flops = 4.0 * columns["batch"] * columns["num_heads"] * columns["head_dim"] * pairs
    regime = regimes(flops, PREFILL_FLOP_LIMITS)
    return _predict_attention(columns, profile, attention.PREFILL, regime)


def predict_attention_decode(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of fused decode attention; regimes by the bytes of visible keys and values."""
    keys = np.where(
        columns["window_size"] > 0,
        np.minimum(columns["context_tokens"], columns["window_size"]),
        columns["context_tokens"],
    )
    formats = np.where(columns["kv_dtype"] == "", columns["dtype"], columns["kv_dtype"])
    names = sorted(set(formats.tolist()))
    element = np.array([attention.BYTES.get(name, 2.0) for name in names])
    element_bytes = element[np.searchsorted(names, formats)]
    heads = columns["batch"] * columns["num_kv_heads"]
    cached_bytes = 2.0 * heads * columns["head_dim"] * keys * element_bytes
    return _predict_attention(
        columns, profile, attention.DECODE, regimes(cached_bytes, DECODE_BYTE_LIMITS)
    )


def _predict_attention(
    columns: Columns, profile: str | None, kind: str, regime: Labels
) -> dict[str, RowTimes]:
    def seconds(group: Group) -> Array:
        rows = attention.rows_of(columns, group.members, kind, lambda _: group.gpu)
        variants = (group.key["kv_dtype"], *_formats(group.key["dtype"]))
        return attention.predict(rows, group.profile.section(kind, *variants))

    # An empty cache dtype stands for that of the queries.
    filled = np.where(columns["kv_dtype"] == "", columns["dtype"], columns["kv_dtype"])
    columns = {**columns, "kv_dtype": filled}
    by = ("gpu", "stack", "dtype", "kv_dtype")
    reasons = attention.usable(columns)
    return _predict(columns, profile, "attention", reasons, by, seconds, regime)


def predict_collective(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of communication between GPUs; regimes by message size."""

    def seconds(group: Group) -> Array:
        links = link_facts_of(group.gpu, group.key["topology"])
        machine = collective.Machine(links, device_row(group.gpu))
        rows = collective.rows_of(columns, group.members)
        variant = "tensor" if rows.own_kernel.any() else "nccl"
        coefficients = group.profile.section("collective", variant, "nccl", "tensor")
        limit_bytes = group.profile.traits.direct_all_reduce_bytes
        return collective.predict(rows, machine, coefficients, limit_bytes)

    regime = regimes(columns["message_bytes"], MESSAGE_LIMITS)
    by = ("gpu", "stack", "topology", "implementation")
    reasons = collective.usable(columns)
    return _predict(columns, profile, "collective", reasons, by, seconds, regime)


def predict_elementwise(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Times of memory-bound operators; regimes by bytes of the result."""

    def seconds(group: Group) -> Array:
        threads = threads_per_sm(group.gpu.compute_capability)
        machine = memory_bound.Machine(device_row(group.gpu), threads)
        rows = memory_bound.rows_of(columns, group.members)
        return memory_bound.predict(rows, machine, group.profile.section("memory_bound"))

    names = sorted(set(columns["dtype"].tolist()))
    element = np.array([memory_bound.ELEMENT_BYTES.get(name, 2.0) for name in names])
    result_bytes = columns["rows"] * columns["cols"] * element[
        np.searchsorted(names, columns["dtype"])
    ]  # fmt: skip
    reasons = memory_bound.usable(columns)
    return _predict(
        columns, profile, "memory_bound", reasons, ("gpu", "stack"), seconds,
        regimes(result_bytes, ELEMENTWISE_LIMITS),
    )  # fmt: skip


def _formats(dtype: str) -> tuple[str, ...]:
    """Formats whose coefficients serve `dtype`: fp16 and bf16 run the same kernels."""
    return (dtype, "bf16", "fp16") if dtype in ("bf16", "fp16") else (dtype,)


def _predict(
    columns: Columns,
    profile: str | None,
    error_group: str,
    reasons: Labels,
    by: Sequence[str],
    seconds: GroupSeconds,
    regime: Labels,
) -> dict[str, RowTimes]:
    """Predict all rows without a skip reason, group by group of the columns `by`.

    error_group: whose scatter in the profile makes the interval, one of `profile.GROUPS`.
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
        factor[members] = np.exp(_half_width(used, gpu, error_group))
    times = RowTimes(
        measured_s, predicted_s, predicted_s / factor, predicted_s * factor,
        skip.astype(np.str_), regime,
    )  # fmt: skip
    return {"time": times}


def _half_width(profile: Profile, gpu: GpuSpec, error_group: str) -> float:
    """Half-width of the 90 % interval in ln(seconds) of single kernels of a kind."""
    variance = profile.sigma_seen[error_group] ** 2
    if gpu.name != profile.gpu:
        variance += profile.transfer_sigma[error_group] ** 2
    one = np.ones(1)
    return float(interval_half_width(one, np.sqrt(variance) * one, profile.sigma_row))


def grouped(
    columns: Columns, by: Sequence[str], members: NDArray[np.intp]
) -> list[tuple[dict[str, str], NDArray[np.intp]]]:
    """The rows `members` by their values in the text columns `by`, in order of appearance."""
    if len(members) == 0:
        return []
    code = np.zeros(len(members), np.int64)
    for name in by:
        texts = columns[name][members].tolist()
        code_of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        own = np.fromiter(map(code_of.__getitem__, texts), np.int64, len(texts))
        code = code * len(code_of) + own
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.diff(code[order], prepend=-1))
    parts = [members[part] for part in np.split(order, starts[1:])]
    return [({name: str(columns[name][part[0]]) for name in by}, part) for part in parts]


def regimes(sizes: NDArray[Any], limits: Sequence[tuple[float, str]]) -> Labels:
    """A label for each size: the first whose limit it does not exceed, else the last.

    >>> regimes(np.array([3, 16, 17]), ((16, "small"), (0, "large"))).tolist()
    ['small', 'small', 'large']
    """
    names = np.array([name for _, name in limits])
    return np.asarray(names[np.searchsorted([limit for limit, _ in limits[:-1]], sizes)])
