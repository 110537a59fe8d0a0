"""Grids: products of lists of values, and how lists are written ("1,2,4", "1:512:x2").

A grid is never laid out: rows are numbered, systems slowest and output lengths fastest, so that
rows which share work lie together, and the values of a range of rows follow from their numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.bulk import ALL_SIZES, Question, column_name, question_of, size_number
from rtsim.catalog import load_gpu, load_model
from rtsim.errors import SpecError
from rtsim.specs.changes import factor_in
from rtsim.system_rows import FIELDS

Array = NDArray[Any]

MOST_VALUES = 10_000_000  # of one axis
NAMED = ("model", "gpu", "stack", "profile", "dtype", "kv_cache_dtype", "quantization", "policy")
_SHARES = ("memory_frac", "prefix_hit", "acceptance", "draft_frac")  # no whole numbers
_ENDING = 1e-9  # a range includes its end despite rounding
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_COUNT = re.compile(r"([+-]?\d[\d_]*)([kKmM])")
_SUFFIXES = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}


@dataclass(frozen=True)
class Grid:
    """A product of axes in canonical order: systems, then sizes of rows (`Question.sizes`)."""

    axes: dict[str, tuple[Any, ...]]

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return math.prod(len(values) for values in self.axes.values())

    @cached_property
    def question(self) -> Question:
        """What is predicted of its rows."""
        return question_of(self.axes)

    @property
    def system_axes(self) -> dict[str, tuple[Any, ...]]:
        """Axes that tell systems apart."""
        sizes = self.question.sizes
        return {name: values for name, values in self.axes.items() if name not in sizes}

    @property
    def n_systems(self) -> int:
        """Systems in all."""
        return math.prod(len(values) for values in self.system_axes.values())

    @cached_property
    def text_axes(self) -> list[str]:
        """Axes with a text among their values."""
        return [
            n for n, v in self.axes.items() if any(issubclass(k, str) for k in set(map(type, v)))
        ]

    @cached_property
    def factor_axes(self) -> list[str]:
        """Axes of which every value is a factor, such as "2x"."""
        return [
            name for name in self.text_axes
            if all(factor_in(value) is not None for value in self.axes[name])
        ]  # fmt: skip

    def codes(self, rows: Array) -> dict[str, Array]:
        """Which value of each axis the rows with these numbers have, (rows,) each."""
        found = {}
        rest = rows
        for name in reversed(self.axes):
            rest, found[name] = np.divmod(rest, len(self.axes[name]))
        return {name: found[name] for name in self.axes}

    def systems(self, first: int, last: int) -> tuple[Array, Array]:
        """Systems of the rows first .. last - 1: (codes (systems, axes), first rows of each)."""
        per_system = self.n_rows // self.n_systems
        numbers = np.arange(first // per_system, (last - 1) // per_system + 1)
        starts = np.maximum(numbers * per_system, first) - first
        codes = []
        rest = numbers
        for values in reversed(self.system_axes.values()):
            rest, code = np.divmod(rest, len(values))
            codes.append(code)
        return np.stack(codes[::-1], axis=1), np.append(starts, last - first)

    @cached_property
    def _size_arrays(self) -> dict[str, Array]:
        found = {}
        for name in self.question.sizes:
            values = self.axes.get(name)
            if values is not None:
                plain = name in self.text_axes
                found[name] = np.array([size_number(name, v) for v in values] if plain else values,
                                       float)  # fmt: skip
        return found

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Values of each axis as an array: numbers, or texts (names of specifications)."""
        return {name: _axis_array(name, values) for name, values in self.axes.items()}

    def sizes(self, first: int, last: int) -> tuple[Array, ...]:
        """Sizes of the question of the rows first .. last - 1, NaN = the default."""
        rest: Array = np.arange(first, last)
        columns = []
        for name in reversed(self.question.sizes):
            values = self.axes.get(name)
            if values is None:
                columns.append(np.full(last - first, np.nan))
                continue
            rest, code = np.divmod(rest, len(values))
            columns.append(self._size_arrays[name][code])
        return tuple(columns[::-1])


def _axis_array(name: str, values: tuple[Any, ...]) -> Array:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and name not in NAMED:
        return np.array(values)
    array = np.empty(len(values), object)
    array[:] = ["" if v is None else str(getattr(v, "name", v)) for v in values]
    return array


def make_grid(axes: Mapping[str, Any]) -> Grid:
    """A grid of axes by name; values are lists, single values, or texts as `parse_axis` reads.

    Raises SpecError: an unknown axis, an empty one, a value twice, a size that is no number.
    """
    if not isinstance(axes, Mapping):
        raise SpecError(
            "grid", axes, "must be a mapping of axes, such as {'model': ..., 'gpu': ...}"
        )
    given: dict[str, tuple[Any, ...]] = {}
    for raw, values in axes.items():
        name = column_name(str(raw))
        if name in given:
            raise SpecError(name, str(raw), "is an axis twice")
        given[name] = _values(name, values)
    for name in ("model", "gpu"):
        if name not in given:
            raise SpecError(name, [], "must be given: a sweep needs models and GPUs")
    sizes = question_of(given).sizes
    order = [*(n for n in FIELDS if n in given), *(n for n in given if n not in (*FIELDS, *sizes))]
    order += [n for n in sizes if n in given]
    return Grid({name: given[name] for name in order})


def _values(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str):
        found = parse_axis(name, values)
    elif isinstance(values, range | Sequence) or hasattr(values, "tolist"):
        found = list(values.tolist() if hasattr(values, "tolist") else values)
    else:
        found = [values]
    if not found:
        raise SpecError(name, values, "is an empty list: the grid would have no rows")
    if len(found) > MOST_VALUES:
        raise SpecError(name, f"{len(found)} values", f"must be at most {MOST_VALUES:,} values")
    if name in ("model", "gpu"):
        found = [_specification(name, value) for value in found]
    kinds = set(map(type, found))
    numbers = all(issubclass(kind, int | float) and kind is not bool for kind in kinds)
    if name in ALL_SIZES and not numbers:
        for value in found:
            if value is None or not np.isfinite(size_number(name, value)):
                raise SpecError(name, value, "must be a number")
    # Numbers that differ are written differently: a million texts would take a second.
    if len(set(found if numbers else map(str, found))) < len(found):
        seen: set[str] = set()
        twice = next(v for v in found if str(v) in seen or seen.add(str(v)))  # type: ignore[func-returns-value]
        raise SpecError(name, twice, "is in the list twice")
    return tuple(found)


def _specification(name: str, value: Any) -> Any:
    """A model or GPU as it is, or of a file what is in it; the names are checked."""
    if not isinstance(value, str):
        return value
    loaded = load_model(value) if name == "model" else load_gpu(value)
    return loaded if value.lower().endswith((".toml", ".json")) else value


def parse_axis(name: str, text: str) -> list[Any]:
    """The values that a text of an axis stands for.

    A list "1,2,4"; a range "1:9:2" (1, 3, 5, 7, 9), "1:4" (in steps of 1); a geometric range
    "1:512:x2" (1, 2, 4, ... 512). Numbers may end in k, K, m, M (1000, 1024, ...), and all three
    parts of a range of figures may be factors: "0.5x:4x:x2".

    >>> parse_axis("tp", "1,2,4"), parse_axis("batch_size", "1:512:x8,1k")
    ([1, 2, 4], [1, 8, 64, 512, 1000])
    >>> parse_axis("gpu.hbm_bytes_per_s", "0.5x:2x:x2")
    ['0.5x', '1x', '2x']
    """
    values: list[Any] = []
    for part in map(str.strip, text.split(",")):
        if not part:
            raise SpecError(name, text, "has an empty entry; write values as 1,2,4 or 1:512:x2")
        if name in NAMED:
            values.append(part)
        elif ":" in part:
            values += _range(name, part)
        else:
            values.append(_value(name, part))
    return list(dict.fromkeys(values)) if name not in NAMED else values


def _value(name: str, text: str) -> Any:
    """A number where the text is one, else the text (a factor, or a figure with its unit)."""
    number = _number(text)
    if number is not None:
        return number
    if "." in name:
        return text
    if name in _SHARES:
        raise SpecError(name, text, "must be a number, such as 0.5, or a range 0:0.8:0.2")
    raise SpecError(name, text, "must be a whole number, such as 512 or 4k, or a range 1:512:x2")


def _number(text: str) -> int | float | None:
    count = _COUNT.fullmatch(text)
    if count is not None:
        return int(count.group(1).replace("_", "")) * _SUFFIXES[count.group(2)]
    if _NUMBER.fullmatch(text) is None:
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


def _range(name: str, text: str) -> list[Any]:
    pieces = [piece.strip() for piece in text.split(":")]
    if len(pieces) not in (2, 3) or not all(pieces):
        raise SpecError(name, text, "a range is FIRST:LAST:STEP, or FIRST:LAST:xFACTOR")
    ends = pieces[:2]
    step_text = pieces[2] if len(pieces) == 3 else "1"
    factors = [factor_in(end) for end in ends]
    relative = None not in factors
    if relative and "." not in name:
        raise SpecError(name, text, "factors are for figures of --set; give numbers")
    first, last = factors if relative else map(_number, ends)
    geometric = step_text[0] in "xX×"
    step = _number(step_text[1:]) if geometric else (
        factor_in(step_text) if relative and factor_in(step_text) else _number(step_text)
    )  # fmt: skip
    if first is None or last is None or step is None:
        raise SpecError(name, text, "a range is of numbers: FIRST:LAST:STEP or FIRST:LAST:xFACTOR")
    found = _geometric(name, text, first, last, step) if geometric else _steps(
        name, text, first, last, step
    )  # fmt: skip
    if relative:
        return [f"{value:.12g}x" for value in found]
    return found


def _steps(name: str, text: str, first: float, last: float, step: float) -> list[Any]:
    if step == 0 or (last - first) * step < 0 or not math.isfinite(first + last + step):
        raise SpecError(
            name, text, f"goes nowhere: from {first:g} in steps of {step:g} to {last:g}"
        )
    count = math.floor((last - first) / step * (1 + _ENDING) + _ENDING) + 1
    _check_count(name, text, count)
    return [first + i * step for i in range(count)]


def _geometric(name: str, text: str, first: float, last: float, factor: float) -> list[Any]:
    grows = factor > 1 and last >= first
    falls = 0 < factor < 1 and last <= first
    if not (first > 0 and last > 0 and (grows or falls) and math.isfinite(last * factor)):
        raise SpecError(name, text, f"goes nowhere: from {first:g} times {factor:g} to {last:g}")
    count = math.floor(math.log(last / first) / math.log(factor) + _ENDING) + 1
    _check_count(name, text, count)
    values = [first * factor**i for i in range(count)]
    if "." in name or name in _SHARES:
        return values
    # Sizes are whole: each is rounded, and stands once.
    return list(dict.fromkeys(round(value) for value in values))


def _check_count(name: str, text: str, count: int) -> None:
    if count > MOST_VALUES:
        raise SpecError(name, text, f"is {count:,} values; at most {MOST_VALUES:,} are taken")
