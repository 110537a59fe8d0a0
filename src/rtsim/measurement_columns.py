"""What a column and a kind of a measurement table are, and short ways to write them down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ColumnType = Literal["text", "count", "real", "measured"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `default` stands for an absent value or column; None: it must be there.

    type: "text"; "count", an integer of at least `least`; "real", a finite number; "measured",
    a finite number above zero.
    """

    name: str
    type: ColumnType
    meaning: str
    default: str | int | float | None = None
    least: int = 1


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of table."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @property
    def required(self) -> tuple[Column, ...]:
        """The columns that must be there."""
        return tuple(c for c in self.columns if c.default is None)


NAN = float("nan")


def text(name: str, meaning: str, default: str | None = None) -> Column:
    """A column of text; without a default it must be there."""
    return Column(name, "text", meaning, default)


def count(name: str, meaning: str, default: int | None = None, least: int = 1) -> Column:
    """A column of whole numbers, `least` or more."""
    return Column(name, "count", meaning, default, least)


def flag(name: str, meaning: str, default: int | None = None) -> Column:
    """A column of yes or no."""
    return Column(name, "count", meaning + " (1 or 0)", default, 0)


def real(name: str, meaning: str, default: float | None = NAN) -> Column:
    """A column of numbers, NaN where there is none."""
    return Column(name, "real", meaning, default)


def measured(name: str, meaning: str) -> Column:
    """A column of what was measured: above zero."""
    return Column(name, "measured", meaning)
