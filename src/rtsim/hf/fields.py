"""Reading the fields of a configuration: under several names, checked, with errors that name them.

Configurations name one thing in many ways (hidden_size, n_embd, d_model), leave out what their
class has as default, and are edited by hand. Every value read here is checked for its kind and
range; an error names file, field, value and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rtsim.errors import SpecError, nearest_names

WIDEST = 1_000_000  # as in rtsim.specs: above any published model, catches slipped digits
_PLURAL_SHOWN = 3  # names of a missing field that an error lists


class Fields:
    """The fields of one (part of a) configuration.

    Attributes: `where` names the file in errors, `name` the model; `notes` collects what had to be
    assumed or left out and is shared with the parts (`part`).
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        where: str,
        *,
        name: str = "",
        prefix: str = "",
        notes: list[str] | None = None,
    ) -> None:
        self.data, self.where, self.prefix, self.name = data, where, prefix, name or where
        self.notes: list[str] = [] if notes is None else notes

    def note(self, text: str) -> None:
        """Remember, once, what the reader of the result should know."""
        if text not in self.notes:
            self.notes.append(text)

    def has(self, *names: str) -> bool:
        """Whether one of the fields is there and not null."""
        return any(self.data.get(name) is not None for name in names)

    def raw(self, *names: str) -> Any:
        """The first of the fields that is there and not null, unchecked; None for none."""
        return next((self.data[n] for n in names if self.data.get(n) is not None), None)

    def refuse(self, field: str, value: object, allowed: str) -> NoReturn:
        """Raise SpecError about one field."""
        raise SpecError(self.prefix + field, value, allowed, where=self.where)

    def missing(self, *names: str) -> NoReturn:
        """Raise SpecError about a field that is needed and not there."""
        others = ", ".join(names[1 : 1 + _PLURAL_SHOWN])
        allowed = "missing, but required" + (f" (or under the name {others})" if others else "")
        raise SpecError.of_missing(self.prefix + names[0], allowed, where=self.where)

    def whole_or_none(self, *names: str, low: int = 1, high: int = WIDEST) -> int | None:
        """A whole number from `low` to `high`, None where it is missing or null."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            number = _as_int(value)
            if number is None or not low <= number <= high:
                self.refuse(name, value, f"must be a whole number from {low} to {high}")
            return number
        return None

    def whole(
        self, *names: str, default: int | None = None, low: int = 1, high: int = WIDEST
    ) -> int:
        """A whole number from `low` to `high`; required unless there is a default."""
        found = self.whole_or_none(*names, low=low, high=high)
        if found is None:
            found = default
        if found is None:
            self.missing(*names)
        return found

    def number(self, *names: str, default: float, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            good = isinstance(value, int | float) and not isinstance(value, bool)
            if not good or not math.isfinite(value) or not low <= value <= high:
                self.refuse(name, value, f"must be a number from {low} to {high}")
            return float(value)
        return default

    def flag(self, *names: str, default: bool) -> bool:
        """True or false."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            if not isinstance(value, bool):
                self.refuse(name, value, "must be true or false")
            return value
        return default

    def text_or_none(self, *names: str) -> str | None:
        """Text, None where it is missing or null."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                self.refuse(name, value, "must be text")
            return value
        return None

    def items(self, name: str, length: int | None = None, spare: int = 0) -> list[Any] | None:
        """A list with an entry per layer, cut to `length`; None where it is missing or null.

        `spare` more entries are taken too: some lists go on with the layers of multi-token
        prediction.
        """
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.refuse(name, value, "must be a list")
        if length is not None and not length <= len(value) <= length + spare:
            shown = f"{len(value)} entries"
            self.refuse(name, shown, f"must hold one entry per layer, {length}")
        return value if length is None else value[:length]

    def kinds(
        self, name: str, length: int, allowed: Sequence[str], spare: int = 0
    ) -> list[str] | None:
        """A list of names out of `allowed`, one per layer."""
        values = self.items(name, length, spare)
        for i, value in enumerate(values or ()):
            if value not in allowed:
                near = nearest_names(value, allowed) if isinstance(value, str) else []
                raise SpecError(
                    f"{self.prefix}{name}[{i}]", value, f"must be one of {', '.join(allowed)}",
                    nearest=near, where=self.where,
                )  # fmt: skip
        return values

    def wholes(
        self, name: str, length: int | None, *, low: int = 0, high: int = WIDEST, spare: int = 0
    ) -> list[int] | None:
        """A list of whole numbers."""
        values = self.items(name, length, spare)
        if values is None:
            return None
        numbers = []
        for i, value in enumerate(values):
            number = _as_int(value)
            if number is None or not low <= number <= high:
                allowed = f"must be a whole number from {low} to {high}"
                self.refuse(f"{name}[{i}]", value, allowed)
            numbers.append(number)
        return numbers

    def part(self, name: str) -> Fields:
        """The fields of a table inside this one; empty where it is missing or null."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, Mapping):
            self.refuse(name, value, "must be an object")
        return Fields(
            value or {}, self.where, name=self.name, prefix=f"{self.prefix}{name}.",
            notes=self.notes,
        )  # fmt: skip


def _as_int(value: object) -> int | None:
    """Whole numbers, also those written as 4096.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value
