"""Candidates of a plan as columns: replicas at a load, and how many of them the demand takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.plan_space import Replica

Array = NDArray[Any]

ROUNDING = 1e-12  # of a share, or of a number of replicas


@dataclass(frozen=True, slots=True)
class Demand:
    """What has to be carried, and what may be spent on it; one of rate and budget is there."""

    rate_per_s: float | None
    budget_usd_per_hour: float | None
    max_gpus: int | None


@dataclass(frozen=True, eq=False)
class Candidates:
    """columns: figures of the candidates by name, (candidates,) each.

    which: index of each one's replica; errors: "" or why there is no prediction.
    """

    replicas: Sequence[Replica]
    which: Array
    columns: dict[str, Array]
    errors: Array

    @property
    def gpu(self) -> Array:
        """(candidates,) index of each one's GPU."""
        return np.array([one.gpu for one in self.replicas], np.int64)[self.which]

    def replica(self, i: int) -> Replica:
        """The replica of a candidate."""
        return self.replicas[int(self.which[i])]

    def order(self, rows: Array, objective: str, demand: Demand) -> Array:
        """These rows, the best first; ties go to cost, latency, GPUs, the list."""
        c = {name: column[rows] for name, column in self.columns.items()}
        if objective == "latency":
            key = c["e2e_latency_s"]
        elif objective == "energy":
            key = c["energy_j_per_request"]
        else:
            key = c["usd_per_hour"] if demand.rate_per_s is not None else -c["requests_per_s"]
        order = np.lexsort((rows, c["num_gpus"], c["e2e_latency_s"], c["usd_per_hour"], key))
        return np.asarray(rows[order])

    def most_of_each(self, values: Array, rows: Array) -> Array:
        """(candidates,) the largest value that any of these rows of the same replica has."""
        most = np.full(len(self.replicas), -np.inf)
        np.maximum.at(most, self.which[rows], values[rows])
        return np.asarray(most[self.which])

    def best_of_each(self, order: Array) -> Array:
        """The first of each replica in an order of rows, in that order."""
        _, first = np.unique(self.which[order], return_index=True)
        return np.asarray(order[np.sort(first)])


def replicas_for(
    demand: Demand, capacity: Array, replica_gpus: Array, usd_per_replica_hour: Array
) -> Array:
    """Replicas that carry the rate, each of which carries `capacity` requests a second.

    Without a rate, as many as the budget and max_gpus allow. At least one.
    """
    with np.errstate(invalid="ignore"):
        if demand.rate_per_s is not None:
            dp = np.ceil(demand.rate_per_s / capacity * (1.0 - ROUNDING))
        else:
            budget = demand.budget_usd_per_hour or 0.0
            dp = np.floor(budget / usd_per_replica_hour * (1.0 + ROUNDING))
            if demand.max_gpus is not None:
                dp = np.minimum(dp, demand.max_gpus // replica_gpus)
    return np.maximum(dp, 1.0)
