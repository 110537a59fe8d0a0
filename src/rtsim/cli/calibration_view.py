"""What a calibration found, as JSON and as text: rows used, errors, every coefficient."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.cli.tables import listed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from rtsim.calibration import Calibration, SectionReport
    from rtsim.fitting.sort_rows import FileReport

_IMPOSSIBLE_SHOWN = 5
_UNUSED_SHOWN = 6  # files without a used row; more of them are one line
_SENTENCES = ("Meaning", "Unit", "")  # columns that wrap; names and figures do not


def to_json(result: Calibration, output: str) -> dict[str, Any]:
    """The calibration as JSON; errors that could not be measured are null."""
    return {
        "profile": output,
        "gpu": result.profile.gpu,
        "stack": result.profile.stack,
        "files": [asdict(file) for file in result.files],
        "sections": [_finite(asdict(section)) for section in result.sections],
        "impossible": [asdict(row) for row in result.impossible],
        "notes": list(result.notes),
    }


def _finite(section: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in section.items()
    }


def view(result: Calibration, output: str) -> RenderableType:
    """The calibration as text."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(f"{result.profile.stack} on {result.profile.gpu}: {output}", style="bold"), Text(""),
        *_files(result), Text(""),
    ]  # fmt: skip
    if result.impossible:
        parts.append(Text("Faster than the hardware allows, not fitted (is the unit right?):"))
        for row in result.impossible[:_IMPOSSIBLE_SHOWN]:
            time = units.format_seconds(row.measured_s)
            parts.append(Text(f"  line {row.line} of {Path(row.file).name}: {time}"))
        more = len(result.impossible) - _IMPOSSIBLE_SHOWN
        parts += [Text(f"  and {more} more")] if more > 0 else []
        parts.append(Text(""))
    parts += [_sections(result), Text("")]
    for section in result.sections:
        if section.coefficients:
            parts += [Text(f"[{section.section}]", style="bold"), _coefficients(section), Text("")]
    parts += [Text(f"Note: {note}") for note in result.notes]
    return Group(*parts)


def _files(result: Calibration) -> list[RenderableType]:
    """Rows used of each file, and why the others are not."""
    table = _table("File", "Kind", "Rows", "Used")
    unused = [file for file in result.files if not file.used]
    joined = unused if len(unused) > _UNUSED_SHOWN else []
    left = []
    for file in result.files:
        if file in joined:
            continue
        name = Path(file.file).name
        table.add_row(name, file.kind, str(file.rows), str(file.used))
        if file.skipped:
            left.append(f"{name}: {_reasons([file])}")
    if joined:
        name = f"{len(joined)} files more"
        table.add_row(name, "", str(sum(file.rows for file in joined)), "0")
        left.append(f"{name}: {_reasons(joined)}")
    return [table, *listed("Left out", left, most=40)]


def _reasons(files: Sequence[FileReport]) -> str:
    left: Counter[str] = Counter()
    for file in files:
        left.update(file.skipped)
    return "; ".join(f"{n} {reason}" for reason, n in sorted(left.items()))


def _sections(result: Calibration) -> Table:
    table = _table("Section", "Rows", "Fitted", "Error", "Median", "Pinned", "")
    for s in result.sections:
        pinned = f"{sum(c.pinned for c in s.coefficients)}/{len(s.coefficients)}"
        table.add_row(
            _plain(s.section), str(s.rows), str(s.fitted_rows), _percent(s.mape),
            _percent(s.median_ape), pinned, _plain(s.note),
        )  # fmt: skip
    table.caption = "Errors of rows left out of the fit (four folds)."
    table.caption_justify = "left"
    return table


def _coefficients(section: SectionReport) -> Table:
    table = _table("Coefficient", "Value", "Prior", "Unit", "Set by", "Meaning")
    for c in section.coefficients:
        known = f"rows, +-{c.deviation:.0%}" if c.pinned else "prior"
        table.add_row(
            c.name, units.format_number(c.value), units.format_number(c.prior), c.unit, known,
            _plain(c.meaning),
        )  # fmt: skip
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        figures = name in ("Rows", "Used", "Fitted", "Error", "Median", "Value", "Prior")
        table.add_column(
            name, justify="right" if figures else "left", no_wrap=name not in _SENTENCES,
            overflow="fold",
        )  # fmt: skip
    return table


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.1%}"
