"""Groups of attention data parallelism step in lockstep: a step is as long as its longest group.

Prompts that start in a step, a Poisson number j of mean L over all G groups, go to the groups in
turn, as servers balance them: min(j, G) groups have some, the fullest ceil(j / G). So a step has
prompts with the chance 1 - exp(-L), which grows with G where the share of a group's own steps
does not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ._jit import inner

_MANY = 60.0  # as many as all groups together rarely have; beyond, fluctuations are left out
_LEFT = 1e-7


class Shared(NamedTuple):
    """Of a step: the chance that any group has prompts, and that one group has; prompts of a group
    that has some, and of the fullest where any has.
    """

    any_chance: float
    chance: float
    together: float
    most: float


@inner
def prompts_in_lockstep(mean: float, groups: float) -> Any:
    """`Shared` of `mean` prompts a step and group."""
    total = max(1e-9, mean * groups)
    if total > _MANY:
        each = max(1.0, mean)
        return Shared(1.0, min(1.0, mean), each, max(1.0, mean + 0.5 * (1.0 - 1.0 / groups)))
    term = math.exp(-total)
    any_chance = -math.expm1(-total)
    left = any_chance
    with_some = 0.0
    fullest = 0.0
    j = 0.0
    while left > _LEFT * any_chance:
        j += 1.0
        term *= total / j
        left -= term
        with_some += term * min(j, groups)
        fullest += term * math.ceil(j / groups)
    return Shared(
        any_chance, with_some / groups, max(1.0, total / with_some), max(1.0, fullest / any_chance)
    )
