"""Fused attention: from `attention_prefill` and `attention_decode` rows to coefficients.

Micro-benchmarks repeat one buffer, so operands are warm as far as the L2 holds them, unless rows
say otherwise. Products run
in fp8 where the queries are fp8, and where only the cache is but the GPU is Hopper or newer:
stacks quantise the queries there.

One set of coefficients serves one stack and format (query dtype, cache dtype), on one GPU or
fitted jointly over several. Left out of it are fallback kernels (generic Triton ones, FlashInfer
within TensorRT-LLM), which stacks use for head sizes and windows that their own kernels lack, and
which are up to twenty times slower.

Split: `choose_rows` takes the fitted rows from sizes alone: clusters of the shapes, one row at
the centre of each, so that the rows stand for the table. All others are unseen.

Discrete facts of a stack's kernels (`CANDIDATES`) are chosen by the cost of the fit; a value other
than the usual one has to pay for itself by `SURPRISE`.

For GPUs that nobody measured, `fit_family` fits decode rows of several GPUs: first all stacks
together, then those whose kernels are of the kind that the stack runs on the GPU, with that fit as
their prior (`across`). Each part's discrete facts are those of its own fit. Prefill kernels of a
stack are more alike: there a joint fit of that stack alone is better.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import attention
from rtsim_kernels.tables import Coefficient

from rtsim.fit import Fit, fit_coefficients
from rtsim.fitting.across import Part, fit_alike
from rtsim.fitting.cluster import cluster_rows
from rtsim.fitting.measured_rows import MeasuredRows, attention_facts, of_many_sets
from rtsim.fitting.method import by_residency
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

PREFILL = "attention_prefill"
DECODE = "attention_decode"
COEFFICIENTS = {
    PREFILL: attention.ATTENTION_PREFILL_COEFFICIENTS,
    DECODE: attention.ATTENTION_DECODE_COEFFICIENTS,
}
ROW_DTYPES = {PREFILL: attention.ATTENTION_PREFILL, DECODE: attention.ATTENTION_DECODE}

# Error from which a row counts by its distance rather than its square: repeats scatter less, but
# kernel choice moves single shapes by 10 % and more.
ROW_SIGMA = 0.05

# Values of discrete facts, the usual one first.
CANDIDATES: dict[str, dict[str, tuple[float, ...]]] = {
    PREFILL: {"tile_rows": (128.0, 64.0, 256.0), "single_pack_frac": (1.0, 0.02)},
    DECODE: {"split_rule": (1.0, 0.5, 2.0), "max_group": (1024.0, 32.0)},
}
SURPRISE = 10.0  # cost (squared deviations) that an unusual value must save
# Facts that change with the GPU's generation: not chosen where rows of several GPUs are fitted.
OF_ONE_GPU = ("split_rule",)

STARTS = 3
START_SPREAD = 0.7  # prior deviations by which further starts are moved
# Tiles and rounds make times jump: wide derivative steps first.
DERIVATIVE_STEPS = (0.3, 0.1, 0.02)

LARGEST_HEAD = 256
FALLBACK_KERNELS = ("triton", "torch_flow_flashinfer")
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "fp8_static": 1.0}
ARRIVING_BYTES = 2.0  # queries arrive, and outputs leave, in 16 bits also where the math is fp8


@dataclass(frozen=True)
class Rows(MeasuredRows):
    """Kernel inputs of rows of one kind (prefill or decode); arrays of equal length.

    `facts`: shape (rows, 3), peak FLOP/s and bytes per element of
    queries and of the cache. `device`: DEVICE records.
    """

    kind: str
    n_sequences: Array
    new_tokens: Array
    context: Array
    n_heads: Array
    n_kv_heads: Array
    head_dim: Array
    window: Array
    causal: Array
    warm_frac: Array
    facts: Array
    device: NDArray[np.void]


def usable(columns: Columns) -> NDArray[np.str_]:
    """Why each row cannot be used, "" where it can."""
    reasons = np.full(len(columns["time_us"]), "", dtype="U64")

    def mark(bad: NDArray[np.bool_], reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    heads, kv_heads = columns["num_heads"], columns["num_kv_heads"]
    mark(~(columns["time_us"] > 0), "time is not above zero")
    mark(~((columns["batch"] > 0) & (columns["query_tokens"] > 0)), "no tokens")
    mark(columns["context_tokens"] < columns["query_tokens"], "context without the new tokens")
    mark(~((kv_heads > 0) & (heads >= kv_heads)), "more KV heads than heads")
    mark(columns["head_dim"] > LARGEST_HEAD, f"head size above {LARGEST_HEAD}")
    mark(~np.isin(columns["dtype"], list(BYTES)), "dtype without fused attention")
    mark(~np.isin(columns["kv_dtype"], list(BYTES)), "cache dtype without fused attention")
    if "kernel" in columns:
        names = columns["kernel"].astype(np.str_)
        for fallback in FALLBACK_KERNELS:
            mark(np.char.find(names, fallback) >= 0, f"fallback kernel ({fallback})")
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
        n_kv_heads=column("num_kv_heads"),
        head_dim=column("head_dim"),
        window=column("window_size"),
        causal=column("causal"),
        warm_frac=by_residency(columns, members, np.ones(len(members)), cold=0.0, warm=1.0),
        facts=facts,
        device=device,
        measured_s=column("time_us") * 1e-6,
    )


def features(rows: Rows) -> Array:
    """Coordinates of shapes for `choose_rows`: sizes in doublings, traits as distances.

    The weights say how much a difference tells: kernels are chosen by head size, window and
    grouping; batch and heads mostly act as a product.
    """
    group = rows.n_heads / rows.n_kv_heads
    heads = rows.n_heads if rows.kind == PREFILL else rows.n_kv_heads
    shared = [
        np.log2(rows.n_sequences * heads),
        0.7 * np.log2(group),
        np.log2(rows.context),
        2.5 * np.log2(rows.head_dim),
        2.0 * (rows.window > 0),
        0.5 * np.log2(rows.n_sequences),
    ]
    if rows.kind == PREFILL:
        traits = [3.0 * (rows.causal == 0), 3.0 * (rows.new_tokens == 1)]
    else:
        traits = [3.0 * (group == 1), 4.0 * (group > min(CANDIDATES[DECODE]["max_group"]))]
    return np.stack([np.asarray(f, dtype=float) for f in [*shared, *traits]], axis=1)


def choose_rows(rows: Rows, count: int = 64, seed: int = 0, rounds: int = 15) -> NDArray[np.intp]:
    """Positions of at most `count` rows to fit, from sizes alone: centres of clusters."""
    return cluster_rows(features(rows), count, seed, rounds)


def predict(rows: Rows, coefficients: Mapping[str, float | Array]) -> Array:
    """Seconds of every row, compiled. coefficients: one value for all rows, or one each."""
    from rtsim_kernels import compiled

    dtype = ROW_DTYPES[rows.kind]
    resolved = np.zeros(len(rows), dtype)
    for i, name in enumerate(("peak_flops_per_s", "query_element_bytes", "kv_element_bytes")):
        resolved[name] = rows.facts[:, i]
    for c in COEFFICIENTS[rows.kind]:
        resolved[c.name] = coefficients[c.name]
    if rows.kind == PREFILL:
        seconds = compiled().attention.attention_prefill_many(
            rows.n_sequences,
            rows.new_tokens,
            rows.context,
            rows.n_heads,
            rows.n_kv_heads,
            rows.head_dim,
            rows.head_dim,
            rows.window,
            rows.causal,
            rows.warm_frac,
            resolved,
            rows.device,
        )
    else:
        seconds = compiled().attention.attention_decode_many(
            rows.n_sequences,
            rows.context,
            rows.n_heads,
            rows.n_kv_heads,
            rows.head_dim,
            rows.head_dim,
            rows.window,
            rows.warm_frac,
            resolved,
            rows.device,
        )
    return np.asarray(seconds)


def fit_rows(rows: Rows, *, starts: int = STARTS, seed: int = 0) -> Fit:
    """Fit one set of coefficients to rows of one stack and format, on one or more GPUs."""
    declared = COEFFICIENTS[rows.kind]
    names = tuple(c.name for c in declared)
    several = len(np.unique(rows.device)) > 1
    options = {
        name: values[:1] if several and name in OF_ONE_GPU else values
        for name, values in CANDIDATES[rows.kind].items()
    }
    rng = np.random.default_rng(seed)
    moves = rng.normal(scale=START_SPREAD, size=(starts, len(declared)))
    moves[0] = 0.0

    seconds = of_many_sets(predict, rows, names)
    best: tuple[float, Fit] | None = None
    for values in itertools.product(*options.values()):
        chosen = dict(zip(options, values, strict=True))
        unusual = sum(chosen[name] != options[name][0] for name in options)
        coefficients = tuple(
            c._replace(prior=chosen[c.name]) if c.name in chosen else c for c in declared
        )
        for move in moves:
            fit = fit_coefficients(
                seconds,
                rows.measured_s,
                coefficients,
                row_sigma=ROW_SIGMA,
                start=_moved(coefficients, move),
                derivative_steps=DERIVATIVE_STEPS,
                relative=several,
                many_sets=True,
            )
            fit = replace(fit, values=_exact(fit, chosen))
            cost = _cost(fit, coefficients) + SURPRISE * unusual
            if best is None or cost < best[0]:
                best = (cost, fit)
    if best is None:
        raise ValueError("starts must be at least 1")
    return best[1]


def fit_family(
    own: Sequence[Rows],
    alike: Sequence[Rows],
    every: Sequence[Rows],
    of_generation: Sequence[Rows],
) -> Fit:
    """Fit decode rows of several GPUs and stacks for a GPU that was not measured.

    One part per GPU, stack and format. own: of the stack in question. alike: of kernels of its
    kind, see `attention_kernels.decode_kernels`. every: all. of_generation: those of `own` on GPUs
    of the same generation, whose split rule holds.
    """
    facts = {id(part): discrete_facts(part) for part in (*own, *alike, *every)}
    usual = {}
    for name, values in CANDIDATES[DECODE].items():
        deciding = of_generation if name in OF_ONE_GPU else own
        found = Counter(facts[id(part)][name] for part in deciding)
        usual[name] = max(values, key=found.__getitem__) if found else values[0]
    return fit_alike(
        [Part(part, facts[id(part)]) for part in alike],
        [Part(part, facts[id(part)]) for part in every],
        COEFFICIENTS[DECODE], predict, usual, DERIVATIVE_STEPS,
    )  # fmt: skip


def discrete_facts(rows: Rows) -> dict[str, float]:
    """Discrete facts of rows of one GPU, by a fit of their own."""
    fitted = named(fit_rows(rows, starts=1))
    return {name: fitted[name] for name in CANDIDATES[rows.kind]}


def _moved(coefficients: tuple[Coefficient, ...], move: Array) -> Array:
    return np.array(
        [c.prior * np.exp(c.spread * z) for c, z in zip(coefficients, move, strict=True)]
    )


def _exact(fit: Fit, chosen: Mapping[str, float]) -> Array:
    """Fitted values with the discrete facts exactly as chosen."""
    return np.array(
        [chosen.get(name, v) for name, v in zip(fit.names, fit.values.tolist(), strict=True)]
    )


def _cost(fit: Fit, coefficients: tuple[Coefficient, ...]) -> float:
    """What the fit minimises: soft-L1 of the rows plus squared deviations from the priors."""
    r = fit.log_residuals / ROW_SIGMA
    prior = np.array([c.prior for c in coefficients])
    spread = np.array([c.spread for c in coefficients])
    z = np.log(fit.values / prior) / spread
    return float(2.0 * (np.sqrt(1.0 + r * r) - 1.0).sum() + (z * z).sum())


def named(fit: Fit) -> dict[str, float]:
    """Fitted values by coefficient name."""
    return dict(zip(fit.names, fit.values.tolist(), strict=True))


def cross_validated_sigma(rows: Rows, folds: int = 4, seed: int = 0) -> float:
    """Deviation of ln(predicted / measured) on folds left out of the fit (68 % point)."""
    fold = np.random.default_rng(seed).permutation(len(rows)) % folds
    errors = []
    for k in range(folds):
        left = rows.take(fold == k)
        if len(left) and (fold != k).any():
            fitted = named(fit_rows(rows.take(fold != k), starts=1))
            errors.append(np.log(predict(left, fitted) / left.measured_s))
    return float(np.quantile(np.abs(np.concatenate(errors)), 0.68))
