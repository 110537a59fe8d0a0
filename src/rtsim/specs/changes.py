"""Changes of a specification by field path and value: absolute, or a factor such as "2x".

Works on the plain data of a specification (what its TOML file would hold), so that the changed
one is validated, and infers what was left out, like any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rtsim.errors import SpecError, model_in, nearest_names, path_text

_FACTOR = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*[xX×]\s*")
_WHOLE_TOLERANCE = 1e-9  # 1.1 * 100 is 110.00000000000001
_FIELDS_LISTED = 8  # of a part without a near name; more would make the line long


class Whole:
    """Marks, in the annotation of a field, numbers that count something."""


def factor_in(value: object) -> float | None:
    """The factor that a text such as "1.5x" states; None for anything else.

    >>> factor_in("1.5x"), factor_in("900 GB/s"), factor_in(2)
    (1.5, None, None)
    """
    match = _FACTOR.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else float(match.group(1))


def set_at(
    spec: BaseModel | None,
    model: type[BaseModel],
    data: dict[str, Any],
    path: str,
    value: Any,
    where: str | None,
) -> None:
    """Set the dotted `path` in `data`, the plain data of `spec`, which is a `model`.

    A factor multiplies the value that `spec` has there. Raises SpecError for an unknown path and
    for a factor of nothing, or one that breaks a whole number.
    """
    step, _, rest = path.partition(".")
    fields = model.model_fields
    if step not in fields:
        near = nearest_names(step, fields)
        listed = not near and len(fields) <= _FIELDS_LISTED
        allowed = "no such field"
        allowed += f"; there are {', '.join(fields)}" if listed else ""
        raise SpecError(path, value, allowed, nearest=near, where=where)
    current = getattr(spec, step, None)
    if not rest:
        data[step] = _new_value(fields[step], current, path, value, where)
        return
    inner = type(current) if isinstance(current, BaseModel) else model_in(fields[step].annotation)
    if inner is None:
        raise SpecError(path, value, f"{step} has no fields of its own", where=where)
    if data.get(step) is None:
        data[step] = {}
    if not isinstance(data[step], dict | list | tuple):
        raise SpecError(path, value, f"{step} is set to {data[step]!r} as well", where=where)
    if isinstance(data[step], list | tuple):
        entries = data[step] = list(data[step])
        index, _, after = rest.partition(".")
        if index.isdigit():
            if int(index) >= len(entries) or not after:
                allowed = f"{path_text([step])} has {len(entries)} entries, counted from 0"
                raise SpecError(path, value, allowed, where=where)
            set_at(current[int(index)] if current else None, inner, entries[int(index)], after,
                   value, where)  # fmt: skip
            return
        _set_in_all(current, inner, entries, rest, value, where)
        return
    set_at(current, inner, data[step], rest, value, where)


def _set_in_all(
    specs: Any, model: type[BaseModel], entries: list[Any], path: str, value: Any, where: str | None
) -> None:
    """Set `path` in every entry that has such a part; the first problem is raised if none has.

    Layers differ: some have no attention, or one of another kind.
    """
    part = path.partition(".")[0]
    problem: SpecError | None = None
    found = False
    for i, entry in enumerate(entries):
        spec = specs[i] if specs else None
        lacking = "." in path and spec is not None and getattr(spec, part, None) is None
        if lacking and part in model.model_fields:
            problem = problem or SpecError(path, value, f"there is no {part} here", where=where)
            continue
        try:
            set_at(spec, model, entry, path, value, where)
            found = True
        except SpecError as error:
            problem = problem or error
    if problem is not None and not found:
        raise problem


def field_at(model: type[BaseModel], path: str) -> FieldInfo | None:
    """The field that a dotted path leads to; None where there is none."""
    *steps, last = (step for step in path.split(".") if not step.isdigit())
    current: Any = model
    for step in steps:
        fields = getattr(current, "model_fields", {})
        current = model_in(fields[step].annotation) if step in fields else None
    found: FieldInfo | None = getattr(current, "model_fields", {}).get(last)
    return found


def kinds_in(field: FieldInfo) -> Iterator[Any]:
    """The types, and marks such as `Whole`, in the annotation of a field."""
    yield from field.metadata
    yield from _parts(field.annotation)


def _parts(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is None:
        yield annotation
        return
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        yield from marks
        yield from _parts(inner)
        return
    for argument in get_args(annotation):
        yield from _parts(argument)


def _new_value(
    field: FieldInfo, current: object, path: str, value: object, where: str | None
) -> object:
    factor = factor_in(value)
    kinds = list(kinds_in(field))
    if factor is None or not (int in kinds or float in kinds):
        return value
    if not (factor > 0.0 and math.isfinite(factor)):
        raise SpecError(path, value, "a factor must be a finite number above zero", where=where)
    if not isinstance(current, int | float) or isinstance(current, bool):
        allowed = "there is no value that a factor could apply to; give an absolute one"
        raise SpecError(path, value, allowed, where=where)
    changed = current * factor
    if not any(isinstance(kind, Whole) for kind in kinds):
        return changed
    if abs(changed - round(changed)) > _WHOLE_TOLERANCE * changed:
        raise SpecError(path, value, f"{changed:g} is no whole number", where=where)
    return round(changed)
