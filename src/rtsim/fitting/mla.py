"""Multi-head latent attention: from `mla` rows to kernel inputs, and the coefficients.

A table holds several operators (`op`): `context_attention` and `generation_attention` are fitted
into the sections mla_prefill and mla_decode; `bmm_pre` and `bmm_post`, the batched products that
take queries into the latent space and values out of it, into gemm.absorb; the whole blocks
`context_module` and `generation_module` are put together from all of them (mla_module.py); the
attention in them is fitted only for stacks of which nothing else was measured.

Widths are those of DeepSeek-V2 and -V3, which all tables hold. Benchmarks repeat one buffer, so
operands are warm as far as the L2 holds them.

Split: `choose_rows` takes the fitted rows from sizes alone; all others are unseen. Discrete facts
of a stack's kernels (`CANDIDATES`) are chosen by the cost of the fit; a value other than the
usual one has to pay for itself by `SURPRISE`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import mla, tables

from rtsim.fit import Fit, centred, fit_coefficients
from rtsim.fitting import gemm
from rtsim.fitting.across import Part, fit_alike
from rtsim.fitting.attention_kernels import (
    ABSORBING,
    ADAPTED,
    GENERATED,
    MADE_FOR_IT,
    TRITON,
)
from rtsim.fitting.cluster import cluster_rows, spread
from rtsim.fitting.measured_rows import MeasuredRows, attention_facts, of_many_sets
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

PREFILL = "mla_prefill"
DECODE = "mla_decode"
COEFFICIENTS = {PREFILL: mla.MLA_PREFILL_COEFFICIENTS, DECODE: mla.MLA_DECODE_COEFFICIENTS}
ROW_DTYPES = {PREFILL: mla.MLA_PREFILL, DECODE: mla.MLA_DECODE}

# Section kind by operator of a table; whole blocks have no section of their own.
SECTION_KINDS = {
    "context_attention": PREFILL,
    "generation_attention": DECODE,
    "bmm_pre": "gemm",
    "bmm_post": "gemm",
}
MODULES = ("context_module", "generation_module")
PRODUCTS = ("bmm_pre", "bmm_post")

# Widths of DeepSeek-V2 and -V3.
LATENT, ROPE, NOPE, V_HEAD_DIM = 512.0, 64.0, 128.0, 128.0

BYTES = {"fp16": 2.0, "bf16": 2.0, "fp8": 1.0}
ARRIVING_BYTES = 2.0  # queries arrive, and outputs leave, in 16 bits also where the math is fp8
BENCHMARK_COPIES = 1.0  # sets of weights of a batched product before re-use

ROW_SIGMA = 0.05
FINALISTS = 3  # sets of discrete facts that are fitted from further starts
STARTS = 8
START_SPREAD = 0.7  # prior deviations by which further starts are moved
DERIVATIVE_STEPS = (0.3, 0.1, 0.02)  # tiles and rounds make times jump: wide first
SURPRISE = 10.0  # cost (squared deviations) that an unusual value must save

YES_NO = (0.5, 1.0)  # no, and yes

# Values of discrete facts, the usual ones first; facts that belong together stand together.
CANDIDATES: dict[str, tuple[tuple[dict[str, float], ...], ...]] = {
    PREFILL: (
        ({"tile_rows": 128.0}, {"tile_rows": 64.0}, {"tile_rows": 256.0}),
        (
            {"absorbed": 0.5, "converted": 0.5},
            {"absorbed": 1.0, "converted": 0.5},
            {"absorbed": 1.0, "converted": 1.0},
        ),
    ),
    DECODE: (
        tuple({"tile_rows": rows} for rows in (64.0, 128.0, 16.0, 32.0)),
        (
            {"least_splits": 1.0, "most_splits": 64.0},
            {"least_splits": 1.0, "most_splits": 1.0},
            {"least_splits": 8.0, "most_splits": 8.0},
            {"least_splits": 8.0, "most_splits": 32.0},
        ),
        ({"converted": 0.5}, {"converted": 1.0}),
    ),
}

# Discrete facts by kind of kernels, as the stacks' sources state them, for GPUs without rows.
_ONE_CTA = {"least_splits": 1.0, "most_splits": 1.0, "converted": 0.5}
_SPLIT = {"least_splits": 1.0, "most_splits": 64.0, "converted": 0.5}
_PER_HEAD = {"absorbed": 0.5, "converted": 0.5}
KERNEL_FACTS: dict[str, dict[str, dict[str, float]]] = {
    PREFILL: {
        GENERATED: {"tile_rows": 256.0, **_PER_HEAD},
        MADE_FOR_IT: {"tile_rows": 128.0, **_PER_HEAD},
        ABSORBING: {"tile_rows": 64.0, "absorbed": 1.0, "converted": 1.0},
        ADAPTED: {"tile_rows": 128.0, **_PER_HEAD},
        TRITON: {"tile_rows": 64.0, **_PER_HEAD},
    },
    DECODE: {
        GENERATED: {"tile_rows": 128.0, **_SPLIT},
        MADE_FOR_IT: {"tile_rows": 128.0, **_SPLIT},
        ABSORBING: {"tile_rows": 64.0, **_SPLIT, "converted": 1.0},
        ADAPTED: {"tile_rows": 64.0, **_ONE_CTA},
        TRITON: {
            "tile_rows": 16.0, "least_splits": 8.0, "most_splits": 32.0, "converted": 0.5,
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Rows(MeasuredRows):
    """Kernel inputs of rows of one kind (prefill or decode); arrays of equal length.

    `facts`: shape (rows, 3), peak FLOP/s and bytes per element of queries and of the cache.
    `device`: DEVICE records. rest_s: seconds of other kernels in the measured time.
    """

    kind: str
    n_sequences: Array
    new_tokens: Array
    context: Array
    n_heads: Array
    warm_frac: Array
    facts: Array
    device: NDArray[np.void]
    rest_s: Array


def is_absorbed(coefficients: Mapping[str, float]) -> bool:
    """Whether prefill attention with these coefficients reads the latent cache."""
    return coefficients["absorbed"] > mla.SWITCH


def usable(columns: Columns) -> NDArray[np.str_]:
    """Why each row cannot be fitted, "" where it can."""
    reasons = predictable(columns)
    whole = np.isin(columns["op"], MODULES) & (reasons == "")
    reasons[whole] = "a whole block, predicted from its parts"
    return reasons


def predictable(columns: Columns) -> NDArray[np.str_]:
    """Why each row cannot be predicted, "" where it can."""
    reasons = np.full(len(columns["time_us"]), "", dtype="U64")

    def mark(bad: NDArray[np.bool_], reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    product = np.isin(columns["op"], PRODUCTS)
    mark(~(columns["time_us"] > 0), "time is not above zero")
    mark(~np.isin(columns["op"], (*SECTION_KINDS, *MODULES)), "operator is not modelled")
    mark(~np.isin(columns["dtype"], list(BYTES)), "dtype is not modelled")
    mark(~np.isin(columns["kv_dtype"], ["", *BYTES]), "cache dtype is not modelled")
    mark(
        ~product & (columns["context_tokens"] < columns["query_tokens"]),
        "context without the new tokens",
    )
    return reasons


def rows_of(
    columns: Columns, members: NDArray[np.intp], kind: str, gpu_of: Callable[[str], GpuSpec]
) -> Rows:
    """Kernel inputs of the table rows `members`, which are usable. gpu_of: GPU by table name."""

    def column(name: str) -> Array:
        return np.asarray(columns[name][members], dtype=float)

    facts, device = attention_facts(columns, members, gpu_of, BYTES, ARRIVING_BYTES)
    return Rows(
        kind=kind,
        table_rows=members,
        n_sequences=column("batch"),
        new_tokens=column("query_tokens"),
        context=column("context_tokens"),
        n_heads=column("num_heads"),
        warm_frac=np.ones(len(members)),
        facts=facts,
        device=device,
        rest_s=np.zeros(len(members)),
        measured_s=column("time_us") * 1e-6,
    )


def product_rows(columns: Columns, members: NDArray[np.intp]) -> gemm.Rows:
    """Batched products of `bmm_*` rows as GEMM inputs: one factor of the batch per head."""
    before = columns["op"] == "bmm_pre"
    sizes = {
        **columns,
        "m": columns["batch"],
        "n": np.where(before, LATENT, V_HEAD_DIM),
        "k": np.where(before, NOPE, LATENT),
        "batch": columns["num_heads"],
    }
    rows = gemm.rows_of(sizes, members)
    return replace(rows, weight_copies=np.full(len(rows), BENCHMARK_COPIES))


def choose_rows(rows: Rows, count: int = 64, seed: int = 0) -> NDArray[np.intp]:
    """Positions of at most `count` rows to fit, from sizes alone."""
    points = spread([np.log2(rows.n_sequences), np.log2(rows.context), np.log2(rows.n_heads)])
    return np.sort(cluster_rows(points, count, seed))


def predict(rows: Rows, coefficients: Mapping[str, float | Array]) -> Array:
    """Seconds of every row, compiled. coefficients: one value for all rows, or one each."""
    from rtsim_kernels import compiled

    resolved = np.zeros(len(rows), ROW_DTYPES[rows.kind])
    for i, name in enumerate(("peak_flops_per_s", "query_element_bytes", "kv_element_bytes")):
        resolved[name] = rows.facts[:, i]
    for c in COEFFICIENTS[rows.kind]:
        resolved[c.name] = coefficients[c.name]
    latent, rope, nope, v_head_dim = (
        np.full(len(rows), width) for width in (LATENT, ROPE, NOPE, V_HEAD_DIM)
    )
    if rows.kind == DECODE:
        seconds = compiled().mla.mla_decode_many(
            rows.n_sequences, rows.context, rows.n_heads, latent, rope, rows.warm_frac,
            resolved, rows.device,
        )  # fmt: skip
    else:
        seconds = compiled().mla.mla_prefill_many(
            rows.n_sequences, rows.new_tokens, rows.context, rows.n_heads, nope, rope,
            v_head_dim, latent, rows.warm_frac, resolved, rows.device,
        )  # fmt: skip
    return np.asarray(seconds + rows.rest_s)


def work(rows: Rows) -> tuple[Array, Array]:
    """(FLOPs, compulsory bytes) of every row, each head with keys of its own in prefill."""
    if rows.kind == DECODE:
        flops = 2.0 * rows.n_sequences * rows.n_heads * rows.context * (2.0 * LATENT + ROPE)
        cached = rows.n_sequences * rows.context * (LATENT + ROPE)
        return flops, cached * rows.facts[:, 2]
    pairs = rows.new_tokens * (rows.context - 0.5 * (rows.new_tokens - 1.0))
    width = NOPE + ROPE + V_HEAD_DIM
    heads = rows.n_sequences * rows.n_heads
    moved = heads * width * rows.new_tokens * rows.facts[:, 1]
    return 2.0 * heads * pairs * width, moved


def fit_rows(
    rows: Rows,
    base: Mapping[str, float] | None = None,
    base_spread: float = 1.0,
    *,
    quick: bool = False,
    seed: int = 0,
) -> Fit:
    """Fit one set of coefficients to rows of one stack and format, on one or more GPUs.

    base, base_spread: priors from elsewhere, see `fit.centred`. quick: fewer starts.
    """
    declared = centred(COEFFICIENTS[rows.kind], base, base_spread)
    names = tuple(c.name for c in declared)
    narrow = bool((rows.facts[:, 2] < rows.facts[:, 1]).any())
    options = [
        [facts for facts in group if narrow or facts.get("converted", YES_NO[0]) == YES_NO[0]]
        for group in CANDIDATES[rows.kind]
    ]
    moves = np.random.default_rng(seed).normal(
        scale=START_SPREAD, size=(2 if quick else STARTS, len(declared))
    )
    moves[0] = 0.0
    seconds = of_many_sets(predict, rows, names)

    def fitted(chosen: Mapping[str, float], move: Array) -> tuple[float, Fit]:
        """(cost but for surprise, fit) with some discrete facts, from priors moved by `move`."""
        coefficients = tuple(
            c._replace(prior=chosen[c.name]) if c.name in chosen else c for c in declared
        )
        pairs = zip(coefficients, move.tolist(), strict=True)
        fit = fit_coefficients(
            seconds,
            rows.measured_s,
            coefficients,
            row_sigma=ROW_SIGMA,
            start=np.array([c.prior * np.exp(c.spread * z) for c, z in pairs]),
            derivative_steps=DERIVATIVE_STEPS,
            many_sets=True,
        )
        values = [chosen.get(n, v) for n, v in zip(names, fit.values.tolist(), strict=True)]
        fit = replace(fit, values=np.array(values))
        return _cost(fit, coefficients), fit

    found = []
    for combination in itertools.product(*options):
        chosen = {name: v for facts in combination for name, v in facts.items()}
        unusual = sum(facts != usual[0] for facts, usual in zip(combination, options, strict=True))
        cost, fit = fitted(chosen, moves[0])
        found.append((cost + SURPRISE * unusual, SURPRISE * unusual, chosen, fit))
    found.sort(key=lambda entry: entry[0])
    best_cost, _, _, best = found[0]
    for _, surprise, chosen, _ in found[:FINALISTS]:
        for move in moves[1:]:
            cost, fit = fitted(chosen, move)
            if cost + surprise < best_cost:
                best_cost, best = cost + surprise, fit
    return best


def fit_family(alike: Sequence[Rows], generation: Sequence[Rows], kernels: str) -> Fit:
    """Fit rows of several GPUs and stacks for a GPU that was not measured.

    One part per GPU, stack and format. alike: of the same kernels. generation: of all GPUs that
    have kernels made for latent attention, or of those that have not: one fit over both serves
    neither. kernels: a key of KERNEL_FACTS.
    """
    facts = {id(part): discrete_facts(part) for part in (*alike, *generation)}
    kind = generation[0].kind
    return fit_alike(
        [Part(part, facts[id(part)]) for part in alike],
        [Part(part, facts[id(part)]) for part in generation],
        COEFFICIENTS[kind], predict, KERNEL_FACTS[kind][kernels], DERIVATIVE_STEPS,
    )  # fmt: skip


def discrete_facts(rows: Rows) -> dict[str, float]:
    """Discrete facts of rows of one GPU, by a fit of their own."""
    fit = fit_rows(rows, quick=True)
    values = dict(zip(fit.names, fit.values.tolist(), strict=True))
    return {name: values[name] for name in next(iter(KERNEL_FACTS[rows.kind].values()))}


def _cost(fit: Fit, coefficients: tuple[tables.Coefficient, ...]) -> float:
    """What the fit minimises: soft-L1 of the rows plus squared deviations from the priors."""
    r = fit.log_residuals / ROW_SIGMA
    prior = np.array([c.prior for c in coefficients])
    spreads = np.array([c.spread for c in coefficients])
    z = np.log(fit.values / prior) / spreads
    return float(2.0 * (np.sqrt(1.0 + r * r) - 1.0).sum() + (z * z).sum())
