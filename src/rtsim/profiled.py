"""The paper's method for those who have measurements: fit the two-part form to their runtimes.

    T(p, o) = prefill(p) + (o - 1) * per_output_token

prefill is piecewise linear in p. Its knots are measured prompt lengths, added one at a time where
they lower the weighted squares most, as long as the Bayesian information criterion falls. Beside
the fit stands rtsim's own prediction, which needs no row of the table, and how many rows a fit
needs until it predicts the others as well as that.

Source: Narayanan et al., NeurIPS 2023, section 3 (R^2 of such fits 0.9999 on their runs).
Ignored: growth of the per-output-token time with the context, below 2 % up to 2,000 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.errors import DataError
from rtsim.fit import select_rows
from rtsim.fitting.generation import Configuration, configurations
from rtsim.latencies import read_latencies
from rtsim.measurements import read_table
from rtsim.system import System
from rtsim.table_text import read_cells

Array = NDArray[np.float64]

# What a runtime is good for: a clock of 1 ms, and 0.5 % between repeats (generation tables).
_CLOCK_S = 1e-3
_ROW_FRAC = 0.005
_MOST_KNOTS = 12
# Row counts tried to find how many a fit needs.
_SIZES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)


@dataclass(frozen=True, slots=True)
class ProfiledFit:
    """A fitted two-part form. prefill_s at `knots`, linear between and beyond them."""

    knots: tuple[int, ...]
    prefill_s: tuple[float, ...]
    per_output_token_s: float

    def runtime_s(self, prompt_tokens: Array, output_tokens: Array) -> Array:
        """Seconds at many sizes."""
        basis = _basis(np.asarray(prompt_tokens, dtype=float), self.knots)
        prefill = basis @ np.array(self.prefill_s)
        return np.asarray(prefill + (np.asarray(output_tokens) - 1.0) * self.per_output_token_s)


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of predictions: mean and median of the absolute ones, and the bias."""

    mean: float
    median: float
    bias: float


@dataclass(frozen=True, slots=True)
class Unprofiled:
    """rtsim's prediction of the same rows from a shipped profile, without fitting to them.

    rows_to_match: rows that a fit needs to predict the others as well; None: as many as were tried
    do not suffice. profile_rows: rows that the profile was fitted to, kernels and whole generations
    of all its models together (some may be rows of this table).
    """

    profile: str
    profile_rows: int | None
    errors: Errors
    per_output_token_s: float
    rows_to_match: int | None
    error_by_rows: tuple[tuple[int, float], ...]  # mean error of fits to so many rows on the rest


@dataclass(frozen=True, slots=True)
class ProfiledModel:
    """One model of a table: the fit, how good it is, and the prediction without profiling.

    residuals_s: measured - fitted, in the order of `lines`.
    """

    model: str
    system: str
    rows: int
    fit: ProfiledFit
    r_squared: float
    errors: Errors
    lines: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    runtime_s: tuple[float, ...]
    residuals_s: tuple[float, ...]
    unprofiled: Unprofiled | None
    notes: tuple[str, ...]


def profile_fit(
    path: str | Path, *, model: str | None = None, system: System | None = None
) -> list[ProfiledModel]:
    """Fit every model of a table of runtimes, in its order.

    A table of kind `generation` states the systems, and rtsim predicts them; another one needs
    the columns prompt_tokens, output_tokens and runtime_s (`rtsim.latencies`), and is compared
    with `system` if that is given. Raises DataError where the table cannot be fitted.
    """
    columns, _ = read_cells(path)
    if "num_layers" in columns:
        table = read_table(path)
        found = configurations(table.columns)
        if model is not None:
            labels = [c.label for c in found]
            found = [c for c in found if c.label == model]
            if not found:
                raise DataError(path, f"no row is of model '{model}'; there are {sorted(labels)}")
        return [_of_configuration(path, c, table.lines[c.rows]) for c in found]
    latencies = read_latencies(path, model)
    fitted = []
    for label, rows in latencies.by_model.items():
        sizes = [(row.prompt_tokens, row.output_tokens) for row in rows]
        times = np.array([row.runtime_s for row in rows])
        marked = [m for m in latencies.marked if m.model == label]
        notes = tuple(f"line {m.line}: {m.reason}" for m in marked)
        fitted.append(
            fit_table(path, label, sizes, times, [row.line for row in rows], system, 1, notes)
        )
    return fitted


def _of_configuration(
    path: str | Path, c: Configuration, lines: NDArray[np.int64]
) -> ProfiledModel:
    if len(set(c.batch.tolist())) > 1:
        raise DataError(path, f"{c.label} has several batch sizes; the form is of one")
    sizes = list(zip(c.prompt_tokens.astype(int), c.output_tokens.astype(int), strict=True))
    return fit_table(
        path, c.label, [(int(p), int(o)) for p, o in sizes], c.runtime_s, lines.tolist(),
        c.system(), int(c.batch[0]), (),
    )  # fmt: skip


def fit_table(
    path: str | Path, label: str, sizes: Sequence[tuple[int, int]], runtime_s: Array,
    lines: Sequence[int], system: System | None = None, batch: int = 1, notes: tuple[str, ...] = (),
) -> ProfiledModel:  # fmt: skip
    """Fit one model's runtimes; sizes: (prompt, output) tokens of each row.

    Raises DataError, naming `path`, where they are of one output length or fewer than three.
    """
    prompts = np.array([float(p) for p, _ in sizes])
    outputs = np.array([float(o) for _, o in sizes])
    if len(set(outputs.tolist())) < 2:
        raise DataError(
            path,
            f"{label or 'the table'} has one output length ({int(outputs[0])}): the time of an "
            "output token needs at least two",
        )
    if len(sizes) < 3:
        raise DataError(
            path, f"{label or 'the table'} has {units.counted(len(sizes), 'row')}; a fit needs 3"
        )
    fit = fit_two_parts(prompts, outputs, runtime_s)
    fitted_s = fit.runtime_s(prompts, outputs)
    residuals = runtime_s - fitted_s
    unprofiled = None
    where = ""
    if system is not None:
        unprofiled = _unprofiled(system, batch, prompts, outputs, runtime_s)
        gpus = system.parallelism.num_gpus
        where = f"{gpus} x {system.gpu.name}, {system.profile.stack}"
    return ProfiledModel(
        model=label,
        system=where,
        rows=len(sizes),
        fit=fit,
        r_squared=_r_squared(runtime_s, residuals),
        errors=_errors(fitted_s, runtime_s),
        lines=tuple(lines),
        sizes=tuple(sizes),
        runtime_s=tuple(runtime_s.tolist()),
        residuals_s=tuple(residuals.tolist()),
        unprofiled=unprofiled,
        notes=notes,
    )


def fit_two_parts(prompts: Array, outputs: Array, runtime_s: Array) -> ProfiledFit:
    """The two-part form with as many knots as the rows support.

    >>> p, o = np.array([1.0, 1.0, 9.0, 9.0]), np.array([1.0, 3.0, 1.0, 3.0])
    >>> fit = fit_two_parts(p, o, 0.1 + 0.01 * p + 0.05 * (o - 1.0))
    >>> round(fit.per_output_token_s, 6), fit.knots
    (0.05, (1, 9))
    """
    weights = 1.0 / np.hypot(_CLOCK_S, _ROW_FRAC * runtime_s)
    candidates = sorted({int(p) for p in prompts})
    knots = [candidates[0]] if len(candidates) == 1 else [candidates[0], candidates[-1]]
    best, best_x = _fitted(prompts, outputs, runtime_s, weights, knots)
    rows = len(runtime_s)
    while len(knots) < _MOST_KNOTS and len(knots) + 2 < rows:
        trials = [sorted([*knots, p]) for p in candidates if p not in knots]
        results = [(_fitted(prompts, outputs, runtime_s, weights, t), t) for t in trials]
        if not results:
            break
        (squares, x), chosen = min(results, key=lambda result: result[0][0])
        # Bayesian information criterion with a knot more; 1.0: what the weights say is noise.
        gain = rows * np.log((best / rows + 1e-12) / (squares / rows + 1e-12))
        if gain <= np.log(rows):
            break
        knots, best, best_x = chosen, squares, x
    return ProfiledFit(tuple(knots), tuple(best_x[:-1].tolist()), float(best_x[-1]))


def _fitted(
    prompts: Array, outputs: Array, runtime_s: Array, weights: Array, knots: Sequence[int]
) -> tuple[float, Array]:
    """(weighted squares, prefill at the knots and seconds per output token)."""
    design = np.column_stack([_basis(prompts, knots), outputs - 1.0])
    x, *_ = np.linalg.lstsq(design * weights[:, None], runtime_s * weights, rcond=None)
    residuals = (runtime_s - design @ x) * weights
    return float(residuals @ residuals), np.asarray(x)


def _basis(prompts: Array, knots: Sequence[int]) -> Array:
    """Weights of the prefill at the knots, (rows, knots); the end pieces go on beyond the ends."""
    if len(knots) == 1:
        return np.ones((len(prompts), 1))
    at = np.array(knots, dtype=float)
    piece = np.clip(np.searchsorted(at, prompts, side="right") - 1, 0, len(at) - 2)
    share = (prompts - at[piece]) / (at[piece + 1] - at[piece])
    basis = np.zeros((len(prompts), len(at)))
    rows = np.arange(len(prompts))
    basis[rows, piece] = 1.0 - share
    basis[rows, piece + 1] = share
    return basis


def _unprofiled(
    system: System, batch: int, prompts: Array, outputs: Array, runtime_s: Array
) -> Unprofiled:
    batches = np.full(len(prompts), float(batch))
    predicted_s = system.runtimes(batches, prompts, outputs).sum(axis=(1, 2))
    errors = _errors(predicted_s, runtime_s)
    learning = _learning_curve(prompts, outputs, runtime_s)
    needed = next((rows for rows, error in learning if error <= errors.mean), None)
    middle = float(np.median(prompts))
    longest = float(outputs.max())
    ends = system.runtimes(
        np.full(2, float(batch)), np.full(2, middle), np.array([1.0, longest])
    ).sum(axis=(1, 2))  # fmt: skip
    return Unprofiled(
        system.profile.name, _rows_of(system), errors,
        float((ends[1] - ends[0]) / (longest - 1.0)), needed, tuple(learning),
    )  # fmt: skip


def _learning_curve(prompts: Array, outputs: Array, runtime_s: Array) -> list[tuple[int, float]]:
    """Mean error on the other rows of fits to ever more rows, chosen to cover the sizes."""
    order = select_rows(np.column_stack([prompts, outputs]), len(prompts))
    found = []
    for count in _SIZES:
        if count >= len(prompts):
            break
        used, rest = order[:count], order[count:]
        if len(set(outputs[used].tolist())) < 2:
            continue
        fit = fit_two_parts(prompts[used], outputs[used], runtime_s[used])
        fitted_s = fit.runtime_s(prompts[rest], outputs[rest])
        found.append((count, _errors(fitted_s, runtime_s[rest]).mean))
    return found


def _rows_of(system: System) -> int | None:
    rows = system.profile.provenance.get("rows")
    return int(rows) if isinstance(rows, int | float) else None


def _r_squared(runtime_s: Array, residuals: Array) -> float:
    total = float(((runtime_s - runtime_s.mean()) ** 2).sum())
    return 1.0 - float((residuals**2).sum()) / total if total > 0.0 else 0.0


def _errors(predicted_s: Array, measured_s: Array) -> Errors:
    error = predicted_s / measured_s - 1.0
    size = np.abs(error)
    return Errors(float(size.mean()), float(np.median(size)), float(error.mean()))
