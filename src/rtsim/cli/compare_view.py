"""A comparison as text, JSON and table columns."""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.cli.tables import as_json, heading, listed, plain, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rtsim.compare import Compared, Comparison
    from rtsim.prediction import Interval

METRICS = ("runtime", "cost", "energy")
_UNITS = {"runtime": "s", "cost": "usd", "energy": "j"}


def to_json(result: Comparison) -> dict[str, Any]:
    """The comparison as JSON; what is not known is null."""
    return {
        "energy_model": result.energy_model,
        "systems": [_system(one) for one in result.systems],
        "differences": as_json(result.differences),
        "refused": as_json(result.refused),
        "notes": list(result.notes),
    }


def _system(one: Compared) -> dict[str, Any]:
    p = one.prediction
    body: dict[str, Any] = {
        "model": {"name": p.model.name, "parameters": p.model.parameters},
        "gpu": p.gpu.name,
        "stack": p.stack,
        "num_gpus": p.num_gpus,
        "gpus_from": one.gpus_from,
        "min_gpus": one.min_gpus,
        "fits": p.memory.fits,
        "tp": p.parallelism.tp,
        "pp": p.parallelism.pp,
        "workload": as_json(p.workload),
        "ttft_s": p.ttft_s,
        "tpot_s": p.tpot_s,
    }
    for metric in METRICS:
        name = f"{metric}_{_UNITS[metric]}"
        interval = one.interval(metric)
        body[f"{name}_per_request"] = one.metric(metric)
        body[f"{name}_per_output_token"] = one.per_token(metric)
        body[f"{name}_per_request_interval_90"] = (
            None if interval is None else [interval.low, interval.high]
        )
    body["ranks"] = as_json(dict(one.ranks))
    body["time_s_by_group"] = dict(one.time_s_by_group)
    return body


def to_columns(result: Comparison) -> dict[str, list[Any]]:
    """The comparison as columns of a table, one row per system."""
    columns: dict[str, list[Any]] = {}
    for one in result.systems:
        p = one.prediction
        row: dict[str, Any] = {
            "model": p.model.name, "parameters": p.model.parameters, "gpu": p.gpu.name,
            "stack": p.stack, "num_gpus": p.num_gpus, "gpus_from": one.gpus_from,
            "min_gpus": one.min_gpus, "fits": int(p.memory.fits),
            "batch": p.workload.batch_size, "prompt_tokens": p.workload.input_len,
            "output_tokens": p.workload.output_len, "ttft_s": p.ttft_s, "tpot_s": p.tpot_s,
        }  # fmt: skip
        for metric in METRICS:
            name, interval, rank = f"{metric}_{_UNITS[metric]}", one.interval(metric), one.ranks
            row[name] = one.metric(metric)
            row[f"{name}_low"] = None if interval is None else interval.low
            row[f"{name}_high"] = None if interval is None else interval.high
            row[f"{name}_per_output_token"] = one.per_token(metric)
            row[f"{metric}_rank"] = rank[metric].rank if metric in rank else None
        row |= {f"{group.replace(' ', '_')}_s": s for group, s in one.time_s_by_group.items()}
        for key, value in row.items():
            columns.setdefault(key, []).append("" if value is None else value)
    return columns


def view(result: Comparison) -> RenderableType:
    """The comparison as text, fastest first."""
    from rich.console import Group

    first = result.systems[0].prediction.workload
    # Encoders, which make one pass over their input, stand beside nothing that generates.
    encoders = all(one.prediction.model.kind == "encoder" for one in result.systems)
    lengths = f"{first.input_len:,} prompt and {first.output_len:,} output tokens"
    if encoders:
        lengths = f"{first.input_len:,} input tokens"
    parts: list[RenderableType] = [
        heading(f"Idealized: {lengths}, batch {first.batch_size}"),
        plain(f"energy by {_ENERGY_WORDS[result.energy_model]}"),
        plain(""),
    ]
    letters = _letters(result)
    on = ("On",) if len(letters) > 1 else ()
    made = table("Model", *on, "GPUs", "Runtime", "90%", "Rank", "Cost", "Energy")
    ordered = sorted(result.systems, key=lambda one: one.runtime_s)
    for one in ordered:
        p = one.prediction
        made.add_row(
            p.model.name,
            *(letters[_place(one)],) * len(on),
            f"{p.num_gpus}{'' if p.memory.fits else '!'}",
            units.format_seconds(one.runtime_s),
            _half_width(one.interval("runtime"), one.runtime_s),
            _rank(one, "runtime"),
            f"{_usd(one.cost_usd)} {_place_of(one, 'cost')}",
            f"{_joules(one.energy_j)} {_place_of(one, 'energy')}",
        )
    parts.append(made)
    parts += [plain(f"{letter + ' = ' if on else 'on '}{' with '.join(place)}")
              for place, letter in letters.items()]  # fmt: skip
    if any(not one.prediction.memory.fits for one in ordered):
        parts.append(plain("! does not fit in the memory of these GPUs"))
    if not encoders:
        parts += [plain(""), heading("Per output token"), _per_token(ordered, letters)]
    if result.differences:
        parts += [plain(""), heading("What explains the differences"), _differences(result)]
    parts += listed("Left out", (f"{one.label}: {one.reason}" for one in result.refused))
    parts += listed("Notes", result.notes)
    return Group(*parts)


_ENERGY_WORDS = {
    "power": "the GPUs' rated power",
    "utilisation": "how much of the GPUs is used (see docs/paper.md)",
}


def _place(one: Compared) -> tuple[str, str]:
    return one.prediction.gpu.name, one.prediction.stack


def _letters(result: Comparison) -> dict[tuple[str, str], str]:
    """A letter, or a few, for each GPU and stack."""
    places = list(dict.fromkeys(map(_place, result.systems)))
    if len(places) > len(ascii_uppercase):
        return {place: str(i) for i, place in enumerate(places, 1)}
    return dict(zip(places, ascii_uppercase, strict=False))


def _per_token(systems: list[Compared], letters: dict[tuple[str, str], str]) -> RenderableType:
    on = ("On",) if len(letters) > 1 else ()
    made = table("Model", *on, "Runtime", "Decode step", "USD per million", "Energy", "Least GPUs")
    for one in systems:
        p = one.prediction
        cost = one.per_token("cost")
        made.add_row(
            p.model.name,
            *(letters[_place(one)],) * len(on),
            units.format_seconds(one.per_token("runtime") or 0.0),
            "-" if p.tpot_s is None else units.format_seconds(p.tpot_s),
            _usd(None if cost is None else 1e6 * cost),
            _joules(one.per_token("energy")),
            "-" if one.min_gpus is None else str(one.min_gpus),
        )
    return made


def _differences(result: Comparison) -> RenderableType:
    made = table("Model", "System", "Runtime", "Owed to, against the first", text=(
        "System", "Owed to, against the first"))  # fmt: skip
    for one in result.differences:
        owed = ", ".join(f"{group} {_signed(seconds)}" for group, seconds in one.main_groups)
        made.add_row(one.model, one.other, f"{one.runtime_ratio:.2f}x", plain(owed))
    return made


def _signed(seconds: float) -> str:
    return ("+" if seconds >= 0.0 else "-") + units.format_seconds(abs(seconds))


def _half_width(interval: Interval | None, value: float) -> str:
    return "" if interval is None else f"+-{100.0 * (interval.high / value - 1.0):.1f}%"


def _rank(one: Compared, metric: str) -> str:
    rank = one.ranks.get(metric)
    if rank is None:
        return "-"
    return str(rank.rank) if rank.best == rank.worst else f"{rank.best}-{rank.worst}"


def _place_of(one: Compared, metric: str) -> str:
    rank = one.ranks.get(metric)
    return "" if rank is None else f"#{rank.rank}"


def _usd(amount: float | None) -> str:
    return "-" if amount is None else units.format_usd(amount)


def _joules(energy_j: float | None) -> str:
    if energy_j is None:
        return "-"
    return f"{energy_j:,.3g} J" if energy_j < 1e3 else f"{energy_j / 1e3:,.3g} kJ"
