"""Values of a "what if": read as their field takes them, put in, and written before and after."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import NoneType
from typing import TypeVar

from rtsim import units
from rtsim.errors import SpecError
from rtsim.specs.base import Spec
from rtsim.specs.changes import Whole, factor_in, field_at, kinds_in
from rtsim.specs.model import ModelSpec

# Words that people try, too far from the names to be found as their nearest.
_WORDS = {
    "bandwidth": ("hbm_bytes_per_s",),
    "mem_bw": ("hbm_bytes_per_s",),
    "flops": ("peak_bf16_flops_per_s", "peak_fp16_flops_per_s"),
    "tflops": ("peak_bf16_flops_per_s", "peak_fp16_flops_per_s"),
    "compute": ("peak_bf16_flops_per_s", "peak_fp16_flops_per_s"),
    "sms": ("sm_count",),
    "cus": ("sm_count",),
    "nvlink": ("link.bytes_per_s",),
    "tdp": ("power_w",),
}
# How values are written, by the end of the field's name.
_WRITTEN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("flops_per_s", units.format_flops_per_s),
    ("bytes_per_s", units.format_bytes_per_s),
    ("_bytes", units.format_bytes),
    ("_hz", units.format_hertz),
    ("power_w", units.format_watts),
    ("usd_per_hour", units.format_usd),
)
_AnySpec = TypeVar("_AnySpec", bound=Spec)


def with_changes(spec: _AnySpec, changes: Mapping[str, object]) -> _AnySpec:
    """`spec.with_`, with errors that name the field as the user wrote it."""
    try:
        return spec.with_(changes)
    except SpecError as error:
        root = "model" if isinstance(spec, ModelSpec) else "gpu"
        # An unknown step of a path is reported from that step on.
        field = next((path for path in changes if path.endswith("." + error.field)), error.field)
        own = field.partition(".")[0] in ("link", "network") and root == "gpu"
        nearest = error.nearest or (_WORDS.get(field.rpartition(".")[2].lower(), ()))
        raise SpecError(
            field if own else f"{root}.{field}",
            error.value, error.allowed, nearest=nearest, where=error.where,
        ) from None  # fmt: skip


def read_value(model: type[Spec], path: str, value: object) -> object:
    """A text of the command line as its field takes it: numbers, true, none."""
    field = field_at(model, path)
    if field is None or not isinstance(value, str) or factor_in(value) is not None:
        return value
    kinds = list(kinds_in(field))
    if value == "none" and NoneType in kinds:
        return None
    if bool in kinds and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return number_in(value) if any(isinstance(kind, Whole) for kind in kinds) else value


def number_in(text: str) -> object:
    """A text as an int or a float where it is one, else as it is."""
    try:
        return int(text) if re.fullmatch(r"[-+]?\d[\d_]*", text) else float(text)
    except ValueError:
        return text


def entry_of(before: Spec, after: Spec, path: str, value: object) -> str:
    """ "hbm_bytes_per_s = 6.70 TB/s (2x, before 3.35 TB/s)"; empty where nothing changed."""
    old, new = _values_at(before, path), _values_at(after, path)
    if old == new:
        return ""
    was = ", ".join(dict.fromkeys(shown_value(path, v) for v in old))
    now = ", ".join(dict.fromkeys(shown_value(path, v) for v in new))
    factor = "" if factor_in(value) is None else f"{str(value).strip()}, "
    return f"{path} = {now} ({factor}before {was})"


def _values_at(spec: object, path: str) -> list[object]:
    """The value at a path, or those of all groups of layers."""
    found = [spec]
    for step in path.split("."):
        if step.isdigit():
            found = found[int(step) : int(step) + 1]
            continue
        values = [getattr(one, step, None) for one in found]
        found = []
        for value in values:
            found += list(value) if isinstance(value, tuple) else [value]
    return found


def shown_value(path: str, value: object) -> str:
    """A value with the unit of its field."""
    if value is None:
        return "none"
    if isinstance(value, Spec):
        return str(getattr(value, "name", type(value).__name__))
    if isinstance(value, int | float) and not isinstance(value, bool):
        for ending, write in _WRITTEN:
            if path.endswith(ending):
                return write(value)
        return f"{value:g}" if isinstance(value, float) else str(value)
    return str(value)
