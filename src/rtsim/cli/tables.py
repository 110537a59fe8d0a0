"""Tables and lines of the text output, for the views of the commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

SHOWN = 12  # lines of a list before "and N more"


def table(*columns: str, text: Iterable[str] = ()) -> Table:
    """A table without lines; columns named in `text` are text that wraps, others do not."""
    from rich.table import Table

    words = set(text)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(columns):
        made.add_column(
            name,
            justify="left" if i == 0 or name in words else "right",
            no_wrap=name not in words,
            overflow="fold",
        )
    return made


def plain(text: str) -> Text:
    """Text that is printed as it is: brackets in it are no markup."""
    from rich.text import Text

    return Text(text)


def heading(text: str) -> Text:
    """A heading."""
    from rich.text import Text

    return Text(text, style="bold")


def listed(title: str, lines: Iterable[str], most: int = SHOWN) -> list[RenderableType]:
    """A heading with lines under it; [] without lines."""
    from rich.padding import Padding

    every = list(lines)
    if not every:
        return []
    shown = every[:most]
    if len(every) > most:
        shown.append(f"and {len(every) - most} more")
    return [plain(""), heading(title), *(Padding(plain(line), (0, 0, 0, 2)) for line in shown)]


def percent(frac: float | None) -> str:
    """A share as per cent."""
    return "-" if frac is None or math.isnan(frac) else f"{100.0 * frac:.1f}%"


def as_json(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON holds them; NaN and infinity are null.

    What has the fields low and high alone is an interval, and becomes [low, high].
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        if names == ["low", "high"]:
            return [as_json(getattr(value, name)) for name in names]
        return {name: as_json(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
