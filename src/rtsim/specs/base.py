"""What all specifications share: frozen, no unknown fields, one-line errors, changed copies.

Also the field types that read text with units ("80 GB"). Base SI units inside, see units.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from rtsim import units
from rtsim.errors import spec_error
from rtsim.specs.changes import Whole, set_at


def _reader(quantity: units.Quantity) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        return units.parse(value, quantity)

    return read


def _read_bytes(value: Any) -> int:
    """Sizes are whole bytes."""
    return round(units.parse(value, units.BYTES))


Bytes = Annotated[int, BeforeValidator(_read_bytes)]
BytesPerSecond = Annotated[float, BeforeValidator(_reader(units.BYTES_PER_SECOND))]
FlopsPerSecond = Annotated[float, BeforeValidator(_reader(units.FLOPS_PER_SECOND))]
Hertz = Annotated[float, BeforeValidator(_reader(units.HERTZ))]
Seconds = Annotated[float, BeforeValidator(_reader(units.SECONDS))]
Watts = Annotated[float, BeforeValidator(_reader(units.WATTS))]
UsdPerHour = Annotated[float, BeforeValidator(_reader(units.USD_PER_HOUR))]


def _refuse_bool_and_text(value: Any) -> Any:
    """Counts are numbers: true and "8" are refused, 8.0 is taken."""
    if isinstance(value, bool | str):
        raise ValueError("must be a whole number")
    return value


class _WholeNumber(BeforeValidator, Whole):
    """A validator that also marks the field as a count."""


WHOLE = _WholeNumber(_refuse_bool_and_text)  # for counts: Annotated[int, WHOLE, Field(ge=1)]

# Default of a field that the specification's own validator fills in from the others.
FILLED_IN: Any = None


class Spec(BaseModel):
    """Base of all specifications. Construction raises SpecError, never pydantic's own error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise spec_error(error, type(self), _name_of(data)) from None

    # Tells pydantic that this __init__ adds no arguments, so that nested tables are validated
    # in place and their errors carry the whole path (layers[0].attention.n_heads).
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def model_post_init(self, context: Any, /) -> None:
        # `kind` tells the members of a union apart, so copies made of what was set must have it.
        if "kind" in type(self).model_fields:
            self.__pydantic_fields_set__.add("kind")

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], where: str | None = None) -> Self:
        """A validated object from plain data (TOML, JSON). `where` names the file in errors."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise spec_error(error, cls, where or _name_of(data)) from None

    def with_(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> Self:
        """A changed, validated copy: `gpu.with_(hbm_bytes_per_s="4 TB/s")`.

        Keys are field paths: `gpu.with_({"link.bytes_per_s": "900 GB/s"})`,
        `model.with_({"layers.attention.n_kv_heads": 8})` (all layer groups) or
        `"layers.0.mlp.ffn_size"` (the first). An unknown path offers the nearest name. A text such
        as "2x" is a factor of the current value: `gpu.with_(hbm_bytes_per_s="2x")`.
        """
        data = self.model_dump(exclude_unset=True)
        for path, value in {**(changes or {}), **more}.items():
            plain = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            set_at(self, type(self), data, path, plain, _name_of(data))
        return self.from_mapping(data)


def _name_of(data: Mapping[str, Any]) -> str | None:
    name = data.get("name")
    return name if isinstance(name, str) else None
