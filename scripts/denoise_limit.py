"""How well any estimator could denoise a table: one that knows far more than a table tells.

The posterior of the truth under exponential waiting, given its distribution and size, that it is
in proportion to the time of the call, and that prefill is a straight line: three unknowns instead
of six and no doubt about the noise. Drawn by an ensemble sampler (Goodman and Weare, CAMCoS 5,
2010), since the likelihood has a hard edge: no call is faster than the truth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WALKERS, STEPS, DISCARDED = 40, 1200, 300


def median_per_token(
    prompts: Array, outputs: Array, runtime_s: Array, mean_frac: float, truth: Array
) -> float:
    """Posterior median of the seconds per output token.

    prompts, outputs: sizes of cells, (cells,). runtime_s: (cells, repeats). mean_frac: of the
    waiting, as a share of the call. truth: (base, per prompt token, per output token), where the
    walkers start, just below.
    """
    random = np.random.default_rng(0)
    design = np.stack([np.ones(len(prompts)), prompts - 1.0, outputs - 1.0], axis=1)
    fastest_s, total_s = runtime_s.min(axis=1), runtime_s.sum(axis=1)

    def log_likelihood(x: Array) -> Array:
        alone_s = x @ design.T
        outside = (x <= 0.0).any(axis=1) | (alone_s > fastest_s).any(axis=1)
        safe = np.maximum(alone_s, 1e-12)
        value = -(total_s / safe).sum(axis=1) / mean_frac
        value -= runtime_s.shape[1] * np.log(safe).sum(axis=1)
        return np.where(outside, -np.inf, value)

    half = WALKERS // 2
    walkers = truth * (0.999 - 0.02 * random.random((WALKERS, len(truth))))
    likelihood = log_likelihood(walkers)
    kept = []
    for step in range(STEPS):
        for moving, others in ((slice(0, half), slice(half, None)),
                               (slice(half, None), slice(0, half))):  # fmt: skip
            stretch = (1.0 + random.random(half))[:, None] ** 2 / 2.0
            partner = walkers[others][random.integers(0, half, half)]
            proposed = partner + stretch * (walkers[moving] - partner)
            new = log_likelihood(proposed)
            gain = (len(truth) - 1.0) * np.log(stretch[:, 0]) + new - likelihood[moving]
            taken = np.log(random.random(half)) < gain
            walkers[moving] = np.where(taken[:, None], proposed, walkers[moving])
            likelihood[moving] = np.where(taken, new, likelihood[moving])
        if step >= DISCARDED:
            kept.append(walkers[:, -1].copy())
    return float(np.median(kept))
