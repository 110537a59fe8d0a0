"""Choose rows that stand for a table: k-means clusters of shapes, the row nearest each centre."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cluster_rows(points: Array, count: int, seed: int = 0, rounds: int = 15) -> NDArray[np.intp]:
    """Positions of `count` rows (all, if fewer): one at the centre of each cluster of `points`.

    points: (rows, features), scaled so that distances mean something. Lloyd's algorithm (1982)
    from seeded rows.
    """
    count = min(count, len(points))
    centres = points[np.random.default_rng(seed).permutation(len(points))[:count]].copy()
    for _ in range(rounds):
        nearest = _squared_distances(points, centres).argmin(axis=1)
        for k in range(count):
            members = nearest == k
            if members.any():
                centres[k] = points[members].mean(axis=0)
    distance = _squared_distances(points, centres)
    free = np.ones(len(points), bool)
    taken = []
    for k in range(count):
        row = int(np.where(free, distance[:, k], np.inf).argmin())
        free[row] = False
        taken.append(row)
    return np.array(taken, dtype=np.intp)


def spread(columns: list[NDArray[Any]]) -> Array:
    """Features (rows, columns), each scaled to a deviation of 1."""
    features = np.stack([np.asarray(c, dtype=float) for c in columns], axis=1)
    scale = features.std(axis=0)
    return np.asarray((features - features.mean(axis=0)) / np.where(scale > 0, scale, 1.0))


def _squared_distances(points: Array, centres: Array) -> Array:
    inner = points @ centres.T
    return np.asarray(
        (points**2).sum(axis=1)[:, None] - 2.0 * inner + (centres**2).sum(axis=1)[None]
    )
