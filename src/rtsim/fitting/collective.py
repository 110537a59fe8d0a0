"""Collectives: from table rows to kernel inputs, and the coefficients of one stack.

What is fitted are the coefficients of `rtsim_kernels.collective`. Three facts about the software
or the machine cannot be slid along and are tried one by one, the cheapest first: the largest
message that a stack's own kernel takes, whether in-switch reduction is used, and whether the
link that the topology promises carries the traffic at all. A fact other than the stated one is
taken only where it lowers the cost of the fitted rows by more than FACT_MARGIN.

Split: `choose_rows` takes the fitted rows from sizes alone; all others are unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import collective

from rtsim.device_facts import LinkFacts
from rtsim.fit import Fit, centred, fit_coefficients, select_rows
from rtsim.fitting.measured_rows import MeasuredRows

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

# Repeats of one collective differ by about a tenth; small messages of a profiled rank wait for
# the other ranks and vary threefold, hence a constant part (0.5 us) as well.
ROW_SIGMA = 0.08
CLOCK_SIGMA_S = 0.5e-6

# Facts are tried in this order; a later one must lower the cost by the margin (half the square
# of one deviation, so two rows' worth of evidence).
FACT_MARGIN = 1.0
_MIB = 2.0**20
NO_LIMIT_BYTES = 1e12
# 8 MiB is the buffer of the all-reduce that vLLM and SGLang share.
DIRECT_LIMITS_BYTES = (8 * _MIB, NO_LIMIT_BYTES, *(2.0**k * _MIB for k in (-2, -1, 0, 1, 2, 4, 5)))

LIBRARY_IMPLEMENTATIONS = ("nccl", "nccl-tests")
_PAIR = 2.0  # GPUs of an NVLink bridge
EAGER = "custom_eager"
GRAPH = "custom_graph"
IMPLEMENTATIONS = (*LIBRARY_IMPLEMENTATIONS, GRAPH, EAGER)


@dataclass(frozen=True)
class Rows(MeasuredRows):
    """Kernel inputs of rows of one GPU and topology; arrays of equal length.

    op: codes of the kernel module. eager: launched one by one from the host. own_kernel:
        the stack's own all-reduce rather than the library's.
    """

    op: NDArray[np.int64]
    message_bytes: Array
    ranks: Array
    ranks_per_node: Array
    eager: NDArray[np.bool_]
    own_kernel: NDArray[np.bool_]


def usable(columns: Columns) -> NDArray[np.str_]:
    """Why each row cannot be used, "" where it can."""
    reasons = np.full(len(columns["time_us"]), "", dtype="U64")

    def mark(bad: NDArray[np.bool_], reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    mark(~np.isin(columns["collective"], collective.OPERATION_NAMES), "unknown collective")
    mark(~np.isin(columns["implementation"], IMPLEMENTATIONS), "unknown implementation")
    mark(~(columns["time_us"] > 0), "time is not above zero")
    mark(~(columns["message_bytes"] > 0), "message is empty")
    mark(columns["num_gpus"] < 2, "one GPU does not communicate")
    nodes = np.maximum(columns["num_nodes"], 1)
    mark(columns["num_gpus"] % nodes != 0, "GPUs do not divide evenly over nodes")
    return reasons


def rows_of(columns: Columns, members: NDArray[np.intp]) -> Rows:
    """Kernel inputs of the table rows `members`, which share GPU and topology and are usable."""
    code = {name: i for i, name in enumerate(collective.OPERATION_NAMES)}
    implementation = columns["implementation"][members]
    ranks = columns["num_gpus"][members].astype(float)
    return Rows(
        table_rows=members,
        op=np.array([code[name] for name in columns["collective"][members].tolist()], np.int64),
        message_bytes=columns["message_bytes"][members].astype(float),
        ranks=ranks,
        ranks_per_node=ranks / np.maximum(columns["num_nodes"][members], 1),
        eager=implementation == EAGER,
        own_kernel=~np.isin(implementation, LIBRARY_IMPLEMENTATIONS),
        measured_s=columns["time_us"][members].astype(float) * 1e-6,
    )


def features(rows: Rows) -> Array:
    """Coordinates for `fit.select_rows`: sizes in logarithms, kinds far apart."""
    kinds = [2.0 * (rows.op == code) for code in range(len(collective.OPERATION_NAMES) - 1)]
    return np.stack(
        [
            np.log(rows.message_bytes),
            2.0 * np.log(rows.ranks),
            3.0 * (rows.ranks_per_node < rows.ranks),
            2.0 * rows.eager,
            *kinds,
        ],
        axis=1,
    )


def choose_rows(rows: Rows, count: int = 64, seed: int = 0) -> NDArray[np.intp]:
    """Positions of at most `count` rows to fit, from sizes alone.

    A seeded half of the rows (at least four times `count`) is the pool; from it the rows that
    cover the sizes best. The pool keeps repeats and neighbours of the fitted rows unseen.
    """
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    pool = shuffled[: max(4 * count, len(rows) // 2)]
    return np.asarray(pool[select_rows(features(rows)[pool], count)])


@dataclass(frozen=True)
class Machine:
    """Where rows were measured: link facts and the DEVICE record of the GPU."""

    links: LinkFacts
    device: Any


def machine_row(
    links: LinkFacts,
    coefficients: Mapping[str, float],
    *,
    direct_limit_bytes: float,
    staged: bool,
) -> NDArray[np.void]:
    """COLLECTIVE record, shape (), of facts and coefficients."""
    values = {**vars(links), **coefficients}
    values["direct_limit_bytes"] = direct_limit_bytes
    values["staged"] = float(staged)
    names = collective.COLLECTIVE.names or ()
    return np.array(tuple(values[name] for name in names), collective.COLLECTIVE)


def predict(
    rows: Rows,
    machine: Machine,
    coefficients: Mapping[str, float],
    direct_limit_bytes: float = 0.0,
) -> Array:
    """Seconds of every row, compiled. The stack's own kernels only where the rows name them."""
    from rtsim_kernels import compiled

    seconds = np.empty(len(rows))
    for eager, own in product((False, True), repeat=2):
        chosen = (rows.eager == eager) & (rows.own_kernel == own)
        if chosen.any():
            row = machine_row(
                machine.links,
                coefficients,
                direct_limit_bytes=direct_limit_bytes if own else 0.0,
                staged=eager,
            )
            seconds[chosen] = compiled().collective.collective_many(
                rows.op[chosen],
                rows.message_bytes[chosen],
                rows.ranks[chosen],
                rows.ranks_per_node[chosen],
                row[()],
                machine.device[()],
            )
    return seconds


@dataclass(frozen=True)
class CollectiveFit:
    """A fitted stack: coefficients, the facts that the rows decided, and the scatter.

    machines: the machines of the fitted rows, with multicast and domain as decided. multicast:
    whether in-switch reduction is used where there is any; linked: whether bridged pairs are.
    """

    fit: Fit
    machines: tuple[Machine, ...]
    direct_limit_bytes: float
    multicast: bool
    linked: bool

    @property
    def coefficients(self) -> dict[str, float]:
        return dict(zip(self.fit.names, self.fit.values.tolist(), strict=True))


def fit_rows(
    groups: Sequence[tuple[Rows, Machine]],
    base: Mapping[str, float] | None = None,
    base_spread: float = 1.0,
) -> CollectiveFit:
    """Fit one set of coefficients to rows of one stack on one or more machines.

    base, base_spread: priors from elsewhere, see `fit.centred`.
    """
    declared = centred(collective.COLLECTIVE_COEFFICIENTS, base, base_spread)
    measured_s = np.concatenate([rows.measured_s for rows, _ in groups])
    own = any(rows.own_kernel.any() for rows, _ in groups)
    best: tuple[float, CollectiveFit] | None = None
    for limit_bytes, multicast, linked in product(
        DIRECT_LIMITS_BYTES if own else (0.0,),
        (True, False) if any(m.links.multicast for _, m in groups) else (True,),
        (True, False) if any(m.links.link_domain == _PAIR for _, m in groups) else (True,),
    ):
        machines = tuple(_decided(machine, multicast, linked) for _, machine in groups)

        def seconds(values: Array, limit: float = limit_bytes, at: Any = machines) -> Array:
            named = dict(zip(_NAMES, values.tolist(), strict=True))
            parts = zip(groups, at, strict=True)
            return np.concatenate([predict(rows, m, named, limit) for (rows, _), m in parts])

        fit = fit_coefficients(
            seconds,
            measured_s,
            declared,
            row_sigma=np.hypot(ROW_SIGMA, CLOCK_SIGMA_S / measured_s),
        )
        cost = robust_cost(fit.log_residuals)
        if best is None or cost < best[0] - FACT_MARGIN:
            best = cost, CollectiveFit(fit, machines, limit_bytes, multicast, linked)
    if best is None:
        raise ValueError("no rows to fit")
    return best[1]


_NAMES = tuple(c.name for c in collective.COLLECTIVE_COEFFICIENTS)


def robust_cost(log_residuals: Array) -> float:
    """Soft-L1 cost of the rows, as the fit counts it."""
    return float(np.sum(np.sqrt(1.0 + (log_residuals / ROW_SIGMA) ** 2) - 1.0))


def _decided(machine: Machine, multicast: bool, linked: bool) -> Machine:
    links = machine.links
    if not multicast:
        links = replace(links, multicast=0.0)
    if not linked and links.link_domain == _PAIR:  # a bridge that the traffic does not take
        links = replace(links, link_domain=1.0)
    return replace(machine, links=links)


def cross_validated_sigma(
    groups: Sequence[tuple[Rows, Machine]], folds: int = 4, seed: int = 0
) -> float:
    """Deviation of ln(predicted / measured) on folds left out of the fit.

    Robust: the 68 % point of |ln error|, since small messages have heavy tails.
    """
    errors: list[Array] = []
    fold = [np.random.default_rng(seed).permutation(len(rows)) % folds for rows, _ in groups]
    for k in range(folds):
        kept = [(r.take(f != k), m) for (r, m), f in zip(groups, fold, strict=True)]
        fitted = fit_rows([(r, m) for r, m in kept if len(r)])
        for (rows, machine), f in zip(groups, fold, strict=True):
            left = rows.take(f == k)
            if len(left):
                at = as_decided(machine, fitted)
                p = predict(left, at, fitted.coefficients, fitted.direct_limit_bytes)
                errors.append(np.log(p / left.measured_s))
    return float(np.quantile(np.abs(np.concatenate(errors)), 0.68))


def as_decided(machine: Machine, fitted: CollectiveFit) -> Machine:
    """`machine` with the facts that a fit decided."""
    return _decided(machine, fitted.multicast, fitted.linked)


def by_machine(columns: Columns, members: Iterable[int]) -> dict[tuple[str, str], NDArray[np.intp]]:
    """Table rows `members` by (gpu, topology)."""
    found: dict[tuple[str, str], list[int]] = {}
    for i in members:
        found.setdefault((str(columns["gpu"][i]), str(columns["topology"][i])), []).append(i)
    return {key: np.array(rows) for key, rows in found.items()}
