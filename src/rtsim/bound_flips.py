"""Where bounds flip: the factor of a resource at which an operator is limited by something else.

Each resource is scanned from 1/8 to 8 times what it is, and the factor found to a few per cent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from rtsim.errors import SpecError
from rtsim.prediction import OperatorTime, Prediction, by_operator
from rtsim.varied_system import VariedSystem, name_of

_FACTORS = tuple(2.0 ** (k / 2) for k in range(-6, 7) if k)  # scanned, 1/8 to 8
_BISECTIONS = 4  # of a step of sqrt(2): to 2 %
_OPERATORS = 8  # the longest, whose bounds are watched


@dataclass(frozen=True, slots=True)
class Flip:
    """At `factor` times the resource, what bounds `what` in a phase changes.

    `what`: an operator, or "all of" phase, which has the bound of most of its time. The factor
    is the nearest to 1 on its side. `share_frac`: of all the time, without the change.
    """

    resource: str
    name: str
    factor: float
    what: str
    phase: str
    before: str
    after: str
    share_frac: float


# (what, phase) -> its bound
_Bounds = dict[tuple[str, str], str]


def _bounds(breakdown: tuple[OperatorTime, ...], corner: float) -> _Bounds:
    """Bounds of operators, and of the whole of each phase: that of most of its time.

    The host bounds a phase as soon as its track is the longer one, since the GPU's work lies within
    it: where the GPU waits for more than the soft corner of two equal tracks adds.
    """
    found: _Bounds = {}
    by_phase: dict[str, dict[str, float]] = {}
    for row in breakdown:
        of_phase = by_phase.setdefault(row.phase, {})
        of_phase[row.bound] = of_phase.get(row.bound, 0.0) + row.time_s
    for phase, times in by_phase.items():
        busy_s = sum(times.values()) - times.get("host", 0.0)
        if times.get("host", 0.0) > (2.0 ** (1.0 / corner) - 1.0) * busy_s:
            found[f"all of {phase}", phase] = "host"
            continue
        found[f"all of {phase}", phase] = max(times, key=lambda bound: times[bound])
    for (operator, phase), (_, bound) in by_operator(breakdown).items():
        if bound is not None and bound != "host":
            found[operator, phase] = bound
    return found


def flips_of(
    varied: VariedSystem, resource: str, sizes: tuple[int, int, int], base: Prediction
) -> Iterator[Flip]:
    """The nearest flips on each side of what the resource is now, of the longest operators."""
    total_s = base.e2e_latency_s
    times: dict[tuple[str, str], float] = {
        key: time_s for key, (time_s, _) in by_operator(base.breakdown).items()
    }
    corner = varied.made.profile.section("host")["corner"]
    now = _bounds(base.breakdown, corner)
    longest = sorted((key for key in now if key in times), key=lambda key: -times[key])
    watched = [key for key in now if key not in times] + longest[:_OPERATORS]
    phase_s = {"prefill": base.ttft_s, "decode": total_s - base.ttft_s}

    @cache
    def bounds(factor: float) -> _Bounds:
        try:
            changed, _ = varied.at(resource, factor)
        except SpecError:  # a figure that no part could have
            return {}
        return _bounds(changed.predict(*sizes, compiled=True).breakdown, corner)

    sides = [f for f in _FACTORS if f > 1.0], [f for f in reversed(_FACTORS) if f < 1.0]
    for key in watched:
        for side in sides:
            found = _first_change(lambda factor: bounds(factor).get(key), side, now[key])  # noqa: B023 (called here)
            if found is not None:
                factor, after = found
                share = times.get(key, phase_s[key[1]]) / total_s
                yield Flip(resource, name_of(resource), factor, *key, now[key], after, share)


def _first_change(
    bound_at: Callable[[float], str | None], factors: list[float], now: str
) -> tuple[float, str] | None:
    """(factor, bound) of the first change along `factors`, found closer by halving the step."""
    inside = 1.0
    for factor in factors:
        after = bound_at(factor)
        if after not in (None, now):
            outside = factor
            for _ in range(_BISECTIONS):
                middle = math.sqrt(inside * outside)
                bound = bound_at(middle)
                if bound in (None, now):
                    inside = middle
                else:
                    outside, after = middle, bound
            return outside, str(after)
        inside = factor
    return None
