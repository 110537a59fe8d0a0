"""Before and after of a "what if": the figures side by side, the operators that move, the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.console import heading, percent, plain, table_of
from rtsim.prediction import OperatorChange, Prediction, WhatIf, operator_changes
from rtsim.report_rows import encodes, per_million_input, throughput_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


_CHANGES_SHOWN = 12  # operators of a "what if" listed in the text
_UNCHANGED_NAMED = 3
# Figures of the unchanged system in the JSON of a "what if".
_COMPARED = (
    *("ttft_s", "tpot_s", "e2e_latency_s", "output_throughput", "prefill_flops", "decode_flops"),
    *("mfu", "mbu", "energy_j"),
)


def what_if_to_json(after: Prediction, what_if: WhatIf) -> dict[str, Any]:
    """What was set, figures of the system without it, and the operators that move."""
    before = what_if.before
    metrics = None if before is None else {
        **{name: getattr(before, name) for name in _COMPARED},
        "cost": None if before.cost is None else asdict(before.cost),
        "memory": asdict(before.memory),
    }  # fmt: skip
    changes = [] if before is None else operator_changes(before.breakdown, after.breakdown)
    return {
        "set": dict(what_if.settings),
        "before": metrics,
        "changed": [asdict(change) for change in changes],
    }


def what_if_view(after: Prediction, what_if: WhatIf) -> list[RenderableType]:
    """Before and after of the headline figures, the operators that moved, and what stayed."""
    settings = ", ".join(f"{path} = {value}" for path, value in what_if.settings)
    parts: list[RenderableType] = [heading(f"What if {settings}")]
    before = what_if.before
    if before is None:
        return [*parts, plain("  no prediction without the changes to compare with"), ""]
    table = table_of(("", "left"), *((name, "right") for name in ("Before", "After", "Ratio")))
    new_figures = _compared(after)
    for label, (old, old_text) in _compared(before).items():
        new, new_text = new_figures[label]
        if old is not None or new is not None:
            table.add_row(label, old_text, new_text, _ratio(old, new))
    parts += [table, ""]
    changes = operator_changes(before.breakdown, after.breakdown)
    if changes:
        parts += [_changes_table(changes[:_CHANGES_SHOWN]), ""]
    return [*parts, plain(_unchanged(before, after, changes)), ""]


def _changes_table(changes: Sequence[OperatorChange]) -> Table:
    table = table_of(
        ("Operator that moves", "left"),
        ("Phase", "left"),
        ("Before", "right"),
        ("After", "right"),
        ("Ratio", "right"),
        ("Bound by", "left"),
    )
    for change in changes:
        bounds = dict.fromkeys((change.before_bound or "-", change.after_bound or "-"))
        table.add_row(
            change.operator,
            change.phase,
            units.format_seconds(change.before_s),
            units.format_seconds(change.after_s),
            _ratio(change.before_s, change.after_s),
            " -> ".join(bounds),
        )
    return table


def _unchanged(before: Prediction, after: Prediction, changes: Sequence[OperatorChange]) -> str:
    """One line on what is not in the table: further changes, and operators that stay."""
    moved = {(change.operator, change.phase) for change in changes}
    stay = [row for row in after.breakdown if (row.operator, row.phase) not in moved]
    names = list(dict.fromkeys(row.operator for row in sorted(stay, key=lambda r: -r.time_s)))
    stay_s = sum(row.time_s for row in stay)
    more = len(changes) - _CHANGES_SHOWN
    text = f"{more} more move by less. " if more > 0 else ""
    if not names:
        return f"{text}Every operator moves by more than 1%."
    total_s = sum(row.time_s for row in after.breakdown)
    share = percent(stay_s / total_s if total_s > 0.0 else 0.0)
    largest = ", ".join(names[:_UNCHANGED_NAMED])
    others = f" and {len(names) - _UNCHANGED_NAMED} more" if len(names) > _UNCHANGED_NAMED else ""
    return f"{text}Unchanged (within 1%), {share} of the time: {largest}{others}."


def _ratio(before: float | None, after: float | None) -> str:
    """
    >>> _ratio(2.0, 1.0), _ratio(2.0, 2.0), _ratio(None, 2.0)
    ('0.500x', 'same', '-')
    """
    if before == after:
        return "same"
    return f"{after / before:.3f}x" if before and after is not None else "-"


def _compared(p: Prediction) -> dict[str, tuple[float | None, str]]:
    """Figures of a "what if" that stand side by side: label -> figure, and how it is written."""
    cost = p.cost
    request = None if cost is None else cost.usd_per_request
    million = None if cost is None else cost.usd_per_million_output_tokens
    tokens, throughput = throughput_of(p)
    if encodes(p):
        million = None if request is None else per_million_input(request, p)
        times: dict[str, tuple[float | None, str]] = {
            "Time of the pass": (p.e2e_latency_s, units.format_seconds(p.e2e_latency_s)),
        }
    else:
        times = {
            "Time to first token": (p.ttft_s, units.format_seconds(p.ttft_s)),
            "Time per output token": (
                p.tpot_s,
                "-" if p.tpot_s is None else units.format_seconds(p.tpot_s),
            ),
            "End-to-end latency": (p.e2e_latency_s, units.format_seconds(p.e2e_latency_s)),
        }
    return {
        **times,
        f"{tokens} throughput": (throughput, f"{units.format_rate(throughput)} tokens/s"),
        "Cost per request": (request, "-" if request is None else units.format_usd(request)),
        "Cost per million tokens": (
            million,
            "-" if million is None else units.format_usd(million),
        ),
        "Memory per GPU": (p.memory.used_bytes, units.format_bytes(p.memory.used_bytes)),
    }
