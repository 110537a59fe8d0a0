"""A prediction as text for people and as JSON for programs.

The JSON keys are a contract with other programs; times in seconds, sizes in bytes, fractions
as fractions. Text is laid out for 80 columns and carries colour only on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.console import heading, percent, plain, table_of, two_columns
from rtsim.prediction import (
    Interval,
    OperatorChange,
    OperatorTime,
    Prediction,
    WhatIf,
    operator_changes,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# Operators with a smaller share of the time are summed into one line of the text.
SMALLEST_SHARE_SHOWN = 0.001
_CHANGES_SHOWN = 12  # operators of a "what if" listed in the text
_UNCHANGED_NAMED = 3
# Figures of the unchanged system in the JSON of a "what if".
_COMPARED = (
    *("ttft_s", "tpot_s", "e2e_latency_s", "output_throughput", "prefill_flops", "decode_flops"),
    *("mfu", "mbu", "energy_j"),
)


def prediction_to_json(p: Prediction) -> dict[str, Any]:
    """The prediction as the JSON object of the `predict` contract."""
    interval = p.interval_90
    body = {
        "model": asdict(p.model),
        "gpu": asdict(p.gpu),
        "stack": p.stack,
        "profile": p.profile,
        "num_gpus": p.num_gpus,
        "parallelism": asdict(p.parallelism),
        "workload": asdict(p.workload),
        "ttft_s": p.ttft_s,
        "tpot_s": p.tpot_s,
        "e2e_latency_s": p.e2e_latency_s,
        "output_throughput": p.output_throughput,
        "prefill_flops": p.prefill_flops,
        "decode_flops": p.decode_flops,
        "mfu": p.mfu,
        "mbu": p.mbu,
        "memory": asdict(p.memory),
        "cost": None if p.cost is None else asdict(p.cost),
        "energy_j": p.energy_j,
        "interval_90": {
            "ttft_s": _pair(interval.ttft_s),
            "tpot_s": _pair(interval.tpot_s),
            "e2e_latency_s": _pair(interval.e2e_latency_s),
        },
        "breakdown": [asdict(operator) for operator in p.breakdown],
        "sources": list(p.sources),
        "notes": list(p.notes),
        "assumed": list(p.assumed),
    }
    if p.what_if is not None:
        body["what_if"] = _what_if_to_json(p, p.what_if)
    return body


def _what_if_to_json(after: Prediction, what_if: WhatIf) -> dict[str, Any]:
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


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


@dataclass(frozen=True, slots=True)
class OperatorLine:
    """One operator of the text breakdown: prefill and decode together."""

    operator: str
    time_s: float
    share_frac: float  # of the time of all operators
    bound: str  # "compute/memory" where prefill and decode differ
    flops: float
    bytes: float


def merge_phases(breakdown: Iterable[OperatorTime]) -> list[OperatorLine]:
    """One line per operator, longest first; those below SMALLEST_SHARE_SHOWN share one."""
    merged: dict[str, list[OperatorTime]] = {}
    for row in breakdown:
        merged.setdefault(row.operator, []).append(row)
    total_s = sum(row.time_s for rows in merged.values() for row in rows)
    lines = [_merged_line(name, rows, total_s) for name, rows in merged.items()]
    lines.sort(key=lambda line: -line.time_s)
    shown = [line for line in lines if line.share_frac >= SMALLEST_SHARE_SHOWN]
    small = lines[len(shown) :]
    if len(small) == 1:
        shown += small
    elif small:
        shown.append(
            OperatorLine(
                f"{len(small)} smaller operators",
                sum(line.time_s for line in small),
                sum(line.share_frac for line in small),
                "",
                sum(line.flops for line in small),
                sum(line.bytes for line in small),
            )
        )
    return shown


def _merged_line(name: str, rows: Sequence[OperatorTime], total_s: float) -> OperatorLine:
    time_s = sum(row.time_s for row in rows)
    in_order = sorted(rows, key=lambda row: row.phase != "prefill")
    # A phase that takes no visible part of the operator's time has no say in what bounds it.
    bounds = [row.bound for row in in_order if row.time_s > SMALLEST_SHARE_SHOWN * time_s]
    return OperatorLine(
        name,
        time_s,
        time_s / total_s if total_s > 0.0 else 0.0,
        "/".join(dict.fromkeys(bounds)),
        sum(row.flops for row in rows),
        sum(row.bytes for row in rows),
    )


def prediction_view(p: Prediction) -> RenderableType:
    """The prediction for a console: headline, memory, cost, breakdown, and where it comes from."""
    from rich.console import Group
    from rich.padding import Padding

    parts: list[RenderableType] = [
        heading(_title(p)),
        _workload_line(p),
        "",
        *(_what_if_view(p, p.what_if) if p.what_if is not None else ()),
        two_columns(_metric_rows(p)),
        "",
        _breakdown_table(p),
    ]
    sources = list(p.sources)
    if p.cost is not None:
        sources.append(f"price: {p.cost.source}")
    for title, lines in (("Assumed", p.assumed), ("Notes", p.notes), ("Sources", sources)):
        if lines:
            parts += [
                "",
                heading(title),
                *(Padding(plain(line), (0, 0, 0, 2)) for line in lines),
            ]
    return Group(*parts)


def _what_if_view(after: Prediction, what_if: WhatIf) -> list[RenderableType]:
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
    tokens, throughput = _throughput(p)
    if _encodes(p):
        million = None if request is None else _per_million_input(request, p)
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


def _encodes(p: Prediction) -> bool:
    """Whether the model makes one pass over its input and generates nothing."""
    return p.model.kind == "encoder"


def _throughput(p: Prediction) -> tuple[str, float]:
    """("Output" or "Input", tokens per second): an encoder has nothing but its input."""
    w = p.workload
    if _encodes(p):
        return "Input", w.batch_size * w.input_len / p.e2e_latency_s
    return "Output", p.output_throughput


def _per_million_input(usd_per_request: float, p: Prediction) -> float:
    return usd_per_request / p.workload.input_len * 1e6


def _title(p: Prediction) -> str:
    size = units.format_count(p.model.parameters)
    if p.model.active_parameters != p.model.parameters:
        size += f", {units.format_count(p.model.active_parameters)} active"
    split = ", ".join(f"{k} {v}" for k, v in asdict(p.parallelism).items() if v > 1)
    gpus = p.gpu.name if p.num_gpus == 1 else f"{p.num_gpus} x {p.gpu.name}"
    return f"{p.model.name} ({size} parameters) on {gpus}" + (f", {split}" if split else "")


def _workload_line(p: Prediction) -> str:
    w = p.workload
    formats = [w.dtype]
    if w.kv_cache_dtype != w.dtype:
        formats.append(f"KV cache {w.kv_cache_dtype}")
    if w.quantization not in (None, "none"):
        formats.append(f"weights {w.quantization}")
    lengths = f"prompt {w.input_len:,}, output {w.output_len:,}"
    if _encodes(p):
        lengths = f"input {w.input_len:,}"
    return f"batch {w.batch_size}, {lengths}, {', '.join(formats)}, stack {p.stack}"


def _metric_rows(p: Prediction) -> list[tuple[str, str, str]]:
    """(label, value, remark) of every figure above the breakdown."""
    work = "all GPUs, what ranks repeat included" if p.parallelism.tp > 1 else "all GPUs"
    tokens, throughput = _throughput(p)
    rows = [
        *_time_rows(p),
        (f"{tokens} throughput", f"{units.format_rate(throughput)} tokens/s", ""),
        ("Compute utilization (MFU)", percent(p.mfu), _peak(p)),
        (
            "Bandwidth utilization (MBU)",
            percent(p.mbu),
            f"of {units.format_bytes_per_s(p.gpu.hbm_bytes_per_s)} per GPU",
        ),
        ("Work" if _encodes(p) else "Prefill work", units.format_flops(p.prefill_flops), work),
        *(() if _encodes(p) else (("Decode work", units.format_flops(p.decode_flops), work),)),
        ("", "", ""),
        *_memory_rows(p),
        ("", "", ""),
    ]
    if p.cost is None:
        rows.append(("Cost", "unknown", "no price is known for this GPU"))
    else:
        million, of = p.cost.usd_per_million_output_tokens, "of output"
        if _encodes(p):
            million, of = _per_million_input(p.cost.usd_per_request, p), "of input"
        rows += [
            (
                "Cost per request",
                units.format_usd(p.cost.usd_per_request),
                f"at {units.format_usd(p.cost.usd_per_gpu_hour)} per GPU hour",
            ),
            ("Cost per million tokens", units.format_usd(million), of),
        ]
    if p.energy_j is not None:
        rows.append(("Energy", _joules(p.energy_j), units.format_watt_hours(p.energy_j)))
    return rows


def _time_rows(p: Prediction) -> list[tuple[str, str, str]]:
    whole = units.format_seconds(p.e2e_latency_s), _range(p.interval_90.e2e_latency_s)
    if _encodes(p):
        return [("Time of the pass", *whole)]
    return [
        ("Time to first token", units.format_seconds(p.ttft_s), _range(p.interval_90.ttft_s)),
        _per_token_row(p),
        ("End-to-end latency", *whole),
    ]


def _per_token_row(p: Prediction) -> tuple[str, str, str]:
    label = "Time per output token"
    if p.tpot_s is None:
        return (label, "-", "one token: it comes with the prompt")
    return (label, units.format_seconds(p.tpot_s), _range(p.interval_90.tpot_s))


def _peak(p: Prediction) -> str:
    peak = units.format_flops_per_s(p.gpu.peak_flops_per_s)
    return f"of {peak} per GPU, dense {p.gpu.peak_dtype or p.workload.dtype}"


def _memory_rows(p: Prediction) -> list[tuple[str, str, str]]:
    memory = p.memory
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    capacity = units.format_bytes(memory.capacity_bytes)
    rows = [("Memory per GPU", units.format_bytes(memory.used_bytes), f"of {capacity}: {verdict}")]
    if not memory.fits:
        tp = memory.smallest_fitting_tp
        answer = ("none", "within one node") if tp is None else (f"tp {tp}", "")
        rows.append(("  smallest that fits", *answer))
        if tp is None and memory.min_gpus is not None:
            rows.append(("  fewest GPUs", str(memory.min_gpus), "with pipeline stages"))
    kept = {
        "keys and values": "KV cache",
        "states": "states",
        "keys and values, states": "KV cache, states",
    }.get(p.model.keeps)
    cache = () if kept is None else ((f"  {kept}", units.format_bytes(memory.kv_cache_bytes), ""),)
    return [
        *rows,
        ("  weights", units.format_bytes(memory.weights_bytes), ""),
        *cache,
        ("  activations", units.format_bytes(memory.activation_bytes), ""),
        ("  reserved", units.format_bytes(memory.reserved_bytes), ""),
        *_limit_rows(p),
    ]


def _limit_rows(p: Prediction) -> list[tuple[str, str, str]]:
    """What the memory left over would hold."""
    memory = p.memory
    if not memory.fits:
        return []
    lengths = f"of {p.workload.input_len:,} + {p.workload.output_len:,} tokens"
    if _encodes(p):
        lengths = f"of {units.counted(p.workload.input_len, 'token')}"
    return [
        ("  largest batch", str(memory.max_batch_size), lengths),
        (
            "  longest context",
            f"{memory.max_context:,} tokens",
            f"at batch {p.workload.batch_size}, by memory",
        ),
    ]


def _range(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = units.format_seconds(interval.low), units.format_seconds(interval.high)
    return f"90% within {low} to {high}"


def _joules(energy_j: float) -> str:
    kilojoules = energy_j / 1e3
    return f"{units.format_number(energy_j)} J" if kilojoules < 1.0 else f"{kilojoules:,.3g} kJ"


def _breakdown_table(p: Prediction) -> Table:
    table = table_of(
        ("Operator", "left"),
        ("Time", "right"),
        ("Share", "right"),
        ("Bound by", "left"),
        ("FLOP", "right"),
        ("Bytes", "right"),
    )
    for line in merge_phases(p.breakdown):
        table.add_row(
            line.operator,
            units.format_seconds(line.time_s),
            percent(line.share_frac),
            line.bound,
            units.format_flops(line.flops).removesuffix("FLOP") if line.flops else "-",
            units.format_bytes(line.bytes) if line.bytes else "-",
        )
    return table
