"""One fit over rows of several GPUs and stacks, for GPUs that nobody measured.

First all of them together, then those whose kernels are alike with that fit as their prior. Every
part keeps the discrete facts of its own kernels. A row weighs less than in a fit of one GPU, since
kernels differ more between GPUs than rows scatter on one, and residuals are relative errors, so
that where kernels differ twofold the fit does not side with the slow ones.

The three constants were set by leaving GPUs out (docs/accuracy-kernels.md); between 0.15 and 0.6
they move the error by about one per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels.tables import Coefficient

from rtsim.fit import Fit, centred, fit_coefficients
from rtsim.fitting.measured_rows import MeasuredRows, joined

Array = NDArray[np.float64]

EVERY_SIGMA = 0.6  # deviation of relative errors that kernels of all GPUs and stacks explain
ALIKE_SIGMA = 0.4  # the same of like kernels
ALIKE_SHARE = 0.3  # of the declared spreads: how far like kernels may be from all

_Rows = TypeVar("_Rows", bound=MeasuredRows)


@dataclass(frozen=True)
class Part(Generic[_Rows]):
    """Rows of one GPU and stack, and the discrete facts of its kernels."""

    rows: _Rows
    facts: Mapping[str, float]


def fit_alike(
    alike: Sequence[Part[_Rows]],
    every: Sequence[Part[_Rows]],
    declared: tuple[Coefficient, ...],
    predict: Callable[[_Rows, dict[str, Any]], Array],
    facts: Mapping[str, float],
    derivative_steps: tuple[float, ...],
) -> Fit:
    """Fit `every` part, then `alike` ones near that; the result has the discrete `facts`.

    predict: seconds of rows by coefficients, one value for all rows or one each. Where nothing is
    alike, the fit of all stands.
    """

    def fitted(
        parts: Sequence[Part[_Rows]], coefficients: tuple[Coefficient, ...], sigma: float
    ) -> Fit:
        rows = joined([part.rows for part in parts])
        counts = [len(part.rows) for part in parts]
        of_rows = {name: np.repeat([p.facts[name] for p in parts], counts) for name in facts}
        names = tuple(c.name for c in coefficients)

        def seconds(values: Array) -> Array:
            return predict(rows, {**dict(zip(names, values.tolist(), strict=True)), **of_rows})

        fit = fit_coefficients(
            seconds, rows.measured_s, coefficients, row_sigma=sigma,
            derivative_steps=derivative_steps, relative=True,
        )  # fmt: skip
        pairs = zip(fit.names, fit.values.tolist(), strict=True)
        return replace(fit, values=np.array([facts.get(name, value) for name, value in pairs]))

    usual = tuple(c._replace(prior=facts.get(c.name, c.prior)) for c in declared)
    fit = fitted(every, usual, EVERY_SIGMA)
    if not alike:
        return fit
    base = {n: v for n, v in zip(fit.names, fit.values.tolist(), strict=True) if n not in facts}
    return fitted(alike, centred(usual, base, ALIKE_SHARE), ALIKE_SIGMA)
