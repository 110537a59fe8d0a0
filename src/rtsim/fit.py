"""Fit operator coefficients to measurements: robust, in log error, with physical priors.

The fitted vector is z with coefficient_i = prior_i * exp(spread_i * z_i), so that every z has a
standard normal prior, and the cost is

    sum_rows rho((ln predicted - ln measured) / row_sigma) + sum_i z_i^2

with rho the soft-L1 loss: one bad row costs what its distance is worth, not the square of it.
Coefficients that the rows do not pin down stay at their prior and are reported as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels.tables import Coefficient

Array = NDArray[np.float64]

# A coefficient counts as pinned down when the rows shrink its prior spread to half or less.
PINNED_SHRINKAGE = 0.5

# A prior keeps this factor from the bounds, so that the fit can move both ways.
_INSIDE = 1.02

# Step of the numerical derivative, in prior deviations.
DERIVATIVE_STEP = 0.02


@dataclass(frozen=True)
class Fit:
    """Fitted values with their uncertainty.

    values: coefficients in their own units, order of the `coefficients` passed in.
    covariance: of ln(value), shape (n, n), from the Gauss-Newton Hessian at the optimum.
    pinned: whether the rows, rather than the prior, set each value.
    log_residuals: ln(predicted / measured) of the fitted rows.
    priors: the values without any row.
    """

    names: tuple[str, ...]
    values: Array
    covariance: Array
    pinned: NDArray[np.bool_]
    log_residuals: Array
    priors: Array

    def first(self, count: int) -> Fit:
        """The fit of its first `count` coefficients, the others' uncertainty in theirs."""
        return replace(
            self,
            names=self.names[:count],
            values=self.values[:count],
            covariance=self.covariance[:count, :count],
            pinned=self.pinned[:count],
            priors=self.priors[:count],
        )


def fit_coefficients(
    predict: Callable[[Array], Array],
    measured_s: Array,
    coefficients: tuple[Coefficient, ...],
    *,
    row_sigma: float | Array = 0.08,
    max_evaluations: int = 60,
    start: Array | None = None,
    further_starts: Sequence[Mapping[str, float]] = (),
    derivative_steps: tuple[float, ...] = (DERIVATIVE_STEP,),
    relative: bool = False,
    many_sets: bool = False,
) -> Fit:
    """Fit `coefficients` so that predict(values) comes close to `measured_s` in log error.

    predict: values (n,) -> predicted seconds (rows,). row_sigma: scatter of ln(measured) that
    the model is not expected to explain (MODELING: one row is good to about 10 %), scalar or
    one per row.

    start: values to start from instead of the priors. further_starts: the fit is made from each of
    these too, coefficients by name in place of those of `start`: for one that decides between
    regimes, where the cost has several valleys. derivative_steps: the fit is repeated from
    where it came with each of these steps; a wide step first carries it across the small jumps
    of a piecewise model. The best of the results is returned.

    relative: residuals are predicted / measured - 1, the error that is reported, rather than the
    logarithm of the ratio. Where the scatter is wide the fit then comes out lower: twice too slow
    counts as much as infinitely fast.

    many_sets: `predict` also takes values (sets, n) and returns (sets, rows), so that a derivative
    is one call.
    """
    from scipy.optimize import least_squares

    prior = np.array([c.prior for c in coefficients])
    spread = np.array([c.spread for c in coefficients])
    lower = np.log(np.array([c.lower for c in coefficients]) / prior) / spread
    upper = np.log(np.array([c.upper for c in coefficients]) / prior) / spread
    log_measured = np.log(measured_s)
    sigma = np.broadcast_to(np.asarray(row_sigma, dtype=float), log_measured.shape)

    def values_of(z: Array) -> Array:
        return np.asarray(prior * np.exp(spread * z))

    def row_residuals(z: Array) -> Array:
        log_ratio = np.log(predict(values_of(z))) - log_measured
        return np.asarray((np.expm1(log_ratio) if relative else log_ratio) / sigma)

    def residuals(z: Array) -> Array:
        r = row_residuals(z)
        # Soft-L1 on the rows only: the priors stay quadratic.
        robust = np.sign(r) * np.sqrt(2.0 * (np.sqrt(1.0 + r * r) - 1.0))
        return np.concatenate([robust, z], axis=-1)

    def jacobian_with(width: float) -> Callable[[Array], Array]:
        def jacobian_of(z: Array) -> Array:
            # Times are only piecewise smooth (tiles, waves), so derivatives are taken over a
            # visible step, inwards where the outward one would leave the bounds.
            steps = np.where(z + width <= upper, width, -width)
            places = np.vstack([z, z + np.diag(steps)])
            found = residuals(places) if many_sets else np.stack([residuals(p) for p in places])
            return np.asarray((found[1:] - found[0]).T / steps)

        return jacobian_of

    first = prior if start is None else start
    solutions = []
    for changes in ({}, *further_starts):
        begin = np.array([changes.get(c.name, v) for c, v in zip(coefficients, first, strict=True)])
        z = np.log(begin / prior) / spread
        for width in derivative_steps:
            solutions.append(
                least_squares(
                    residuals,
                    np.clip(z, lower + 1e-6, upper - 1e-6),
                    jac=jacobian_with(width),
                    bounds=(lower, upper),
                    max_nfev=max_evaluations,
                )
            )
            z = solutions[-1].x
    solution = min(solutions, key=lambda s: float(s.cost))
    jacobian = solution.jac
    covariance_z = np.linalg.inv(jacobian.T @ jacobian)
    shrinkage = np.sqrt(np.diag(covariance_z))
    return Fit(
        names=tuple(c.name for c in coefficients),
        values=values_of(solution.x),
        covariance=covariance_z * np.outer(spread, spread),
        pinned=shrinkage <= PINNED_SHRINKAGE,
        log_residuals=np.log(predict(values_of(solution.x))) - log_measured,
        priors=prior,
    )


def centred(
    coefficients: tuple[Coefficient, ...], base: Mapping[str, float] | None, share: float = 1.0
) -> tuple[Coefficient, ...]:
    """`coefficients` with priors at the values of `base`, where it has them, inside the bounds.

    base: values from elsewhere: a joint fit of a family, the same stack on another GPU. share:
    of the declared spread that remains about them.

    >>> launch = Coefficient("launch_s", 1e-6, 0.5, 1e-7, 1e-5, "s", "start of a kernel")
    >>> moved, = centred((launch,), {"launch_s": 3e-6}, 0.5)
    >>> moved.prior, moved.spread
    (3e-06, 0.25)
    """
    if not base:
        return coefficients
    return tuple(
        c._replace(
            prior=float(np.clip(base[c.name], _INSIDE * c.lower, c.upper / _INSIDE)),
            spread=share * c.spread,
        )
        if c.name in base
        else c
        for c in coefficients
    )


def select_rows(features: Array, count: int) -> NDArray[np.intp]:
    """Indices of at most `count` rows that cover the feature space, most informative first.

    features: (rows, f), usually logarithms of the sizes. Starts at the row nearest the median,
    then always takes the row farthest from those taken (farthest-point design), so corners and
    gaps are covered and duplicates are never taken before something new. Deterministic, and a
    prefix of the answer is the answer for a smaller count.
    """
    scale = features.std(axis=0)
    scaled = (features - np.median(features, axis=0)) / np.where(scale > 0, scale, 1.0)
    first = int(np.argmin((scaled**2).sum(axis=1)))
    taken = [first]
    distance = ((scaled - scaled[first]) ** 2).sum(axis=1)
    distance[first] = -1.0  # below any: never twice
    while len(taken) < min(count, len(scaled)):
        farthest = int(np.argmax(distance))
        taken.append(farthest)
        distance = np.minimum(distance, ((scaled - scaled[farthest]) ** 2).sum(axis=1))
        distance[farthest] = -1.0
    return np.array(taken)


def quantile_regression(
    design: Array, observed: Array, weights: Array, level: float, ordered: Array,
    priced: Array | None = None,
) -> Array:  # fmt: skip
    """The x >= 0 for which design @ x is the `level` quantile of `observed`, linear program.

    Minimizes sum_i weights_i * (level * max(r_i, 0) + (1 - level) * max(-r_i, 0)) plus
    sum |priced @ x|, with r = observed - design @ x, subject to ordered @ x <= 0 (Koenker and
    Bassett, Econometrica 46, 1978; with second differences priced it is quantile trend
    filtering). design: (rows, n); ordered, priced: (any number, n).

    >>> times = np.array([1.0, 2.0, 9.0])
    >>> quantile_regression(np.ones((3, 1)), times, np.ones(3), 0.1, np.zeros((0, 1))).tolist()
    [1.0]
    """
    from scipy.optimize import linprog

    rows, n = design.shape
    bends = np.zeros((0, n)) if priced is None else priced
    k = len(bends)
    scale = float(weights.max())
    cost = np.concatenate([
        np.zeros(n), level * weights / scale, (1.0 - level) * weights / scale, np.ones(2 * k),
    ])  # fmt: skip
    slack = np.block([
        [design, np.eye(rows), -np.eye(rows), np.zeros((rows, 2 * k))],
        [bends / scale, np.zeros((k, 2 * rows)), np.eye(k), -np.eye(k)],
    ])  # fmt: skip
    limits = np.hstack([ordered, np.zeros((len(ordered), 2 * (rows + k)))])
    solution = linprog(
        cost, A_ub=limits if len(ordered) else None,
        b_ub=np.zeros(len(ordered)) if len(ordered) else None,
        A_eq=slack, b_eq=np.concatenate([observed, np.zeros(k)]), bounds=(0.0, None),
        method="highs",
    )  # fmt: skip
    return np.asarray(solution.x[:n], dtype=float)
