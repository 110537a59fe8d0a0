"""Text for a console, a pipe or a file: headings, tables and pages of results.

Laid out for 80 columns, with colour only on a terminal.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

PLAIN_WIDTH = 80  # of text for a file or a pipe


def facts_view(title: str, facts: Mapping[str, str]) -> RenderableType:
    """A heading and aligned "name  value" lines, for `show`."""
    from rich.console import Group

    return Group(heading(title), two_columns([(name, text) for name, text in facts.items()]))


def page(
    title: str,
    subtitle: str,
    figures: Sequence[tuple[str, str, str]],
    tables: Sequence[
        tuple[Sequence[tuple[str, Literal["left", "right"]]], Sequence[Sequence[str]]]
    ],
    lists: Sequence[tuple[str, Sequence[str]]],
) -> RenderableType:
    """A result for a console: headline, (label, value, remark) figures, tables, then lists.

    tables: columns as (heading, alignment) with rows of texts. lists: heading and lines each; one
    without lines is left out.
    """
    from rich.console import Group
    from rich.padding import Padding

    parts: list[RenderableType] = [heading(title), plain(subtitle), "", two_columns(figures)]
    for columns, rows in tables:
        table = table_of(*columns)
        for row in rows:
            table.add_row(*(plain(cell) for cell in row))
        parts += ["", table]
    for name, lines in lists:
        if lines:
            indented = (Padding(plain(line), (0, 0, 0, 2)) for line in lines)
            parts += ["", heading(name), *indented]
    return Group(*parts)


def write(view: RenderableType) -> None:
    """Print to standard output: colours and its own width on a terminal, else plain text."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(view)
    else:
        console.file.write(to_text(view))


def console_width() -> int:
    """Columns that `write` has."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else PLAIN_WIDTH


def to_text(view: RenderableType) -> str:
    """The view as plain text, PLAIN_WIDTH columns wide, for a file or a pipe."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, highlight=False, width=PLAIN_WIDTH, color_system=None).print(view)
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


def plain(text: str) -> Text:
    """Text that is printed as it is: brackets in it are no markup."""
    from rich.text import Text

    return Text(text)


def heading(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="bold")


def table_of(*columns: tuple[str, Literal["left", "right"]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, (name, side) in enumerate(columns):
        # Only the text columns give way when the line is too long.
        table.add_column(
            name, justify=side, no_wrap=side == "right", overflow="fold" if i else "ellipsis"
        )
    return table


def two_columns(rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    for i in range(1, max((len(row) for row in rows), default=1)):
        table.add_column(justify="right" if i == 1 and len(rows[0]) > 2 else "left")
    for row in rows:
        table.add_row(*(plain(cell) for cell in row))
    return table


def percent(fraction: float) -> str:
    return f"{100.0 * fraction:.1f}%"
