"""Which sizes to measure: corners first, then points that fill the space evenly in logarithms.

The points are those of Roberts' R_d sequence: every prefix of it is spread evenly, so a run that
ends early has covered the space more coarsely instead of half of it. The first points of a design
are the ones to fit, the next ones are kept for validation: they lie between the fitted ones.
Everything is deterministic, so that a run can be resumed by anyone at any time.

Source: M. Roberts, The Unreasonable Effectiveness of Quasirandom Sequences (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_MOST_DRAWS = 200  # per wanted point, before a design gives up on what it may accept

Point = dict[str, int]


@dataclass(frozen=True)
class Axis:
    """One size: from `low` to `high` in whole multiples, or one of `choices`.

    >>> Axis("m", 1, 4096).at(0.5), Axis("n", 256, 4096, multiple=64).at(0.3)
    (64, 576)
    >>> Axis("head_dim", choices=(64, 128)).at(0.6)
    128
    """

    name: str
    low: int = 1
    high: int = 1
    multiple: int = 1
    choices: tuple[int, ...] = ()

    def at(self, place: float) -> int:
        """The value at a place in [0, 1)."""
        if self.choices:
            return self.choices[int(place * len(self.choices))]
        size = math.exp(math.log(self.low) + place * math.log(self.high / self.low))
        return max(self.low, round(size / self.multiple) * self.multiple)


def sequence(dimensions: int) -> Iterator[tuple[float, ...]]:
    """Points in the unit cube, without end: frac(1/2 + i / g^j), g the root of g^(d+1) = g + 1.

    >>> next(sequence(2)) == (0.5, 0.5)
    True
    """
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    steps = [root ** -(j + 1) for j in range(dimensions)]
    i = 0
    while True:
        yield tuple((0.5 + i * step) % 1.0 for step in steps)
        i += 1


def design(
    axes: Sequence[Axis],
    count: int,
    *,
    accept: Callable[[Point], bool] = lambda _: True,
    corners: Sequence[Mapping[str, int]] = (),
) -> list[Point]:
    """At most `count` different points that `accept` takes: the corners, then a filling.

    A corner may leave axes out: they then stand in their middle.
    """
    taken: dict[tuple[int, ...], Point] = {}

    def take(point: Point) -> None:
        key = tuple(point.values())
        if len(taken) < count and key not in taken and accept(point):
            taken[key] = point

    for corner in corners:
        take({axis.name: corner.get(axis.name, axis.at(0.5)) for axis in axes})
    places = sequence(len(axes))
    for _ in range(_MOST_DRAWS * max(count, 1)):
        if len(taken) >= count:
            break
        take({axis.name: axis.at(u) for axis, u in zip(axes, next(places), strict=True)})
    return list(taken.values())
