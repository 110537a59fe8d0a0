"""Denoised runtimes as text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.cli.tables import as_json, heading, listed, plain, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rtsim.curves import Curve
    from rtsim.denoise import Denoised, Range
    from rtsim.idealized_against import Against, NotCompared
    from rtsim.latencies import MarkedRow


LEFT_OUT = "Rows left out, or taken otherwise"


def to_json(
    file: str,
    fits: Sequence[Denoised],
    curves: Sequence[Curve],
    against: Sequence[Against] | None,
    rest: Sequence[NotCompared] | None,
    marked: Sequence[MarkedRow],
) -> dict[str, Any]:
    """The fits as JSON; without latencies the curves alone."""
    body: dict[str, Any] = {"file": file}
    if fits:
        body["models"] = [
            {**as_json(fit.curve), **{k: v for k, v in as_json(fit).items() if k != "curve"}}
            for fit in fits
        ]
        body["left_out"] = as_json(every_marked(fits, marked))
    else:
        body["models"] = as_json(list(curves))
    if against is not None:
        body["against_idealized"] = as_json(list(against))
        body["not_compared"] = as_json(list(rest or ()))
    return body


def every_marked(fits: Sequence[Denoised], marked: Sequence[MarkedRow]) -> list[MarkedRow]:
    """Rows left out or taken otherwise, by line; those of models without a usable row too."""
    every = {(row.line, row.reason): row for fit in fits for row in fit.marked}
    every |= {(row.line, row.reason): row for row in marked}  # those models are in no fit
    return sorted(every.values(), key=lambda row: row.line)


def view(
    file: str,
    fits: Sequence[Denoised],
    curves: Sequence[Curve],
    against: Sequence[Against] | None,
    rest: Sequence[NotCompared] | None,
    marked: Sequence[MarkedRow],
) -> RenderableType:
    """The fits as text."""
    from rich.console import Group

    parts: list[RenderableType] = [
        heading(f"{file}: T(p, o) = overhead + prefill(p) + (o - 1) x per token"),
        plain(""),
    ]
    made = table("Model", "Calls", "Per token", "95%", "Overhead", "95%", text=("Model",))
    by_model = {fit.curve.model: fit for fit in fits}
    for curve in curves:
        fit = by_model.get(curve.model)
        made.add_row(
            plain(curve.model),
            "-" if fit is None else str(fit.rows),
            units.format_seconds(curve.per_output_token_s),
            "-" if fit is None else _range(fit.per_output_token_interval_s),
            "-" if curve.overhead_s is None else units.format_seconds(curve.overhead_s),
            "-" if fit is None else _range(fit.overhead_interval_s),
        )
    parts.append(made)
    parts += listed("Prefill, by prompt tokens", map(_prefill, curves), most=40)
    for fit in fits:
        name = fit.curve.model
        parts += listed(f"{name}: cells too thin, {len(fit.thin)} of {fit.cells}", fit.thin, most=6)
        parts += listed(f"{name}: notes", fit.notes)
    lines = [f"line {row.line}: {row.reason}" for row in every_marked(fits, marked)]
    parts += listed(LEFT_OUT, lines, most=40)
    if against is not None:
        parts += [plain(""), heading("Against idealized, per output token"), _against(against)]
        parts += listed("How to read it", (f"{one.model}: {one.reading}" for one in against), 40)
        parts += listed("Not compared", (f"{one.model}: {one.reason}" for one in rest or ()))
    return Group(*parts)


def _against(against: Sequence[Against]) -> RenderableType:
    made = table("Model", "As", "GPUs", "Denoised", "Idealized", "Ratio", "By GPUs",
                 text=("Model", "As"))  # fmt: skip
    for one in against:
        made.add_row(
            plain(one.model), plain(one.arch), str(one.num_gpus),
            units.format_seconds(one.denoised_s), units.format_seconds(one.idealized_s),
            f"{one.ratio:.2f}", "-" if one.explained_by is None else str(one.explained_by),
        )  # fmt: skip
    made.caption = (
        "Ratio: denoised / idealized. By GPUs: how many of these GPUs make the idealized time as "
        "short as the denoised one."
    )
    made.caption_justify = "left"
    return made


def _prefill(curve: Curve) -> str:
    at = zip(curve.prompt_tokens, curve.prefill_s, strict=True)
    return f"{curve.model}: " + ", ".join(f"{p} {units.format_seconds(t)}" for p, t in at)


def _range(interval: Range | None) -> str:
    return "-" if interval is None else f"{1e3 * interval.low:.3g}-{1e3 * interval.high:.3g} ms"
