"""A plan as text and as JSON: the best system, those next to it, and why the others are lost."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.planned import Plan, PlannedSystem

if TYPE_CHECKING:
    from rich.console import RenderableType

_OBJECTIVES = {"cost": "cheapest", "latency": "fastest", "energy": "least energy"}
_DEGREES = ("tp", "pp", "ep", "attention_dp", "micro_batches")
_FORMATS = ("stack", "dtype", "kv_cache_dtype", "quantization")
_SHORT = {
    "stack": "Stack", "dtype": "Dtype", "kv_cache_dtype": "KV cache", "quantization": "Weights",
}  # fmt: skip


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as one object; times in seconds, no limit is null."""
    level = plan.level
    return {
        "model": plan.model,
        "objective": plan.objective,
        "serving": not plan.static,
        "level": {
            "name": level.name or None, "ttft_s": _finite(level.ttft_s),
            "tpot_s": _finite(level.tpot_s), "source": level.source or None,
            "share": plan.share, "confident": plan.confident,
        },
        "rate_per_s": plan.rate_per_s,
        "budget_usd_per_hour": plan.budget_usd_per_hour,
        "lengths": {
            "source": plan.lengths.source, "n_requests": plan.lengths.n_requests,
            "exact": plan.lengths.exact, "n_buckets": len(plan.lengths.share),
            "mean_input_len": plan.lengths.mean_input_len,
            "mean_output_len": plan.lengths.mean_output_len,
        },
        "best": asdict(plan.best),
        "runner_ups": [asdict(one) for one in plan.runner_ups],
        "n_candidates": plan.n_candidates,
        "n_satisfying": plan.n_satisfying,
        "lost": plan.lost,
        "errors": [{"error": text, "n_candidates": n} for text, n in plan.errors],
        "notes": list(plan.notes),
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def view(plan: Plan) -> RenderableType:
    """The plan for a console."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    best = plan.best
    parts: list[RenderableType] = [
        Text(f"{plan.model}: {_sought(plan)}; {units.counted(plan.n_candidates, 'candidate')}, "
             f"all predicted", style="bold"),
        Text(_asked(plan)),
        "",
        _headline(plan),
        "",
        _systems(plan),
        "",
        _reasons(plan),
        "",
    ]  # fmt: skip
    notes = [
        f"{units.counted(n, 'candidate')} {'is' if n == 1 else 'are'} not possible: {text}"
        for text, n in plan.errors
    ]
    if not best.within_interval:
        notes.append(
            "the upper end of the 90% interval misses the level: --confident plans for that"
        )
    parts.append(Text("Notes", style="bold"))
    parts += [Padding(Text(note), (0, 0, 0, 2)) for note in (*notes, *plan.notes)]
    return Group(*parts)


def _sought(plan: Plan) -> str:
    if plan.objective == "cost" and plan.rate_per_s is None:
        return "most requests/s for the budget"
    return _OBJECTIVES[plan.objective]


def _asked(plan: Plan) -> str:
    lengths = plan.lengths
    if len(lengths.share) == 1:
        requests = f"{lengths.mean_input_len:,g} + {lengths.mean_output_len:,g} tokens"
    else:
        requests = (
            f"{lengths.mean_input_len:,.0f} + {lengths.mean_output_len:,.0f} tokens on average, "
            f"{lengths.source}"
        )
    load = []
    if plan.rate_per_s is not None:
        load.append(f"{units.counted(plan.rate_per_s, 'request')}/s")
    if plan.budget_usd_per_hour is not None:
        load.append(f"at most {units.format_usd(plan.budget_usd_per_hour)}/h")
    return f"{', '.join(load)}; a request has {requests}"


def _headline(plan: Plan) -> Any:
    from rich.table import Table

    best, level = plan.best, plan.level
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row("System", f"{best.num_gpus:,} x {best.gpu}: {_replicas(best, plan.static)}")
    table.add_row("TTFT", _held(best.ttft_s, best.ttft_s_high, level.ttft_s))
    if best.tpot_s is not None and best.tpot_s_high is not None:
        table.add_row("TPOT", _held(best.tpot_s, best.tpot_s_high, level.tpot_s))
    table.add_row(
        "Latency",
        f"{units.format_seconds(best.e2e_latency_s)} on average, 90% within "
        f"{units.format_seconds(best.e2e_latency_s_low)} to "
        f"{units.format_seconds(best.e2e_latency_s_high)}",
    )
    loaded = "" if best.load_frac is None else f", loaded to {100 * best.load_frac:.0f}%"
    within = "" if plan.static else " within the level"
    table.add_row("Carries", f"{units.format_rate(best.requests_per_s)} requests/s{within}{loaded}")
    if best.saturation_requests_per_s is not None and best.saturation_margin_frac is not None:
        table.add_row(
            "Saturates",
            f"at {units.format_rate(best.saturation_requests_per_s)} requests/s, "
            f"{100 * best.saturation_margin_frac:.0f}% left; at most {best.largest_in_flight:,} "
            "run at once",
        )
    if best.usd_per_hour is not None and best.usd_per_million_output_tokens is not None:
        million = units.format_usd(best.usd_per_million_output_tokens)
        hour = units.format_usd(best.usd_per_hour)
        table.add_row("Cost", f"{hour} an hour, {million} per million output tokens")
    if best.energy_j_per_request is not None:
        table.add_row("Energy", f"{best.energy_j_per_request:,.0f} J a request at full power")
    memory, capacity = map(units.format_bytes, (best.memory_bytes, best.capacity_bytes))
    table.add_row("Memory", f"{memory} of {capacity} per GPU")
    return table


def _replicas(system: PlannedSystem, static: bool) -> str:
    formats = [f"{name} {value}" for name in _FORMATS if (value := getattr(system, name))]
    return ", ".join(
        [
            f"{units.counted(system.dp, 'replica')} of {_split(system)}",
            _batch(system, static),
            *formats,
        ]
    )


def _batch(system: PlannedSystem, static: bool) -> str:
    if static:
        return f"batch {system.batch_size:,}"
    each = " each" if system.dp > 1 else ""
    return f"{units.counted(system.batch_size, 'request')} in flight{each}"


def _split(system: PlannedSystem) -> str:
    return " ".join(
        f"{name.replace('_', '-')} {value}"
        for name in _DEGREES
        if (value := getattr(system, name)) > 1 or name == "tp"
    )


def _held(value: float, high: float, limit: float) -> str:
    text = units.format_seconds(value)
    if math.isinf(limit):
        return f"{text}, up to {units.format_seconds(high)} (90%); no limit"
    left = 100.0 * (1.0 - value / limit)
    meets = "meets it" if high <= limit else "misses it"
    return (
        f"{text} of {units.format_seconds(limit)}, {left:.0f}% left; "
        f"the upper end, {units.format_seconds(high)}, {meets}"
    )


def _systems(plan: Plan) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    systems = [plan.best, *plan.runner_ups]
    # By GPU: stacks that differ with the GPU alone are in the notes.
    n_gpus = len({one.gpu for one in systems})
    formats = [
        name
        for name in _FORMATS
        if len({(one.gpu, getattr(one, name)) for one in systems}) > n_gpus
    ]
    varies = "Latency"
    if plan.objective == "energy":
        varies = "J/req"
    elif plan.objective == "cost" and plan.rate_per_s is None:
        varies = "Req/s"
    batch = "Batch" if plan.static else "In\nflight"
    for name in ("Best, next", "GPUs", "Split", batch, *(_SHORT[name] for name in formats),
                 "TTFT", "TPOT", varies, "$/h"):  # fmt: skip
        left = name in ("Best, next", "Split", *_SHORT.values())
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for one in systems:
        usd = None if one.usd_per_hour is None else units.format_usd(one.usd_per_hour)
        joules = None if one.energy_j_per_request is None else f"{one.energy_j_per_request:,.0f}"
        tpot = None if one.tpot_s is None else units.format_seconds(one.tpot_s)
        figures = {
            "Latency": units.format_seconds(one.e2e_latency_s),
            "J/req": joules or "-",
            "Req/s": units.format_rate(one.requests_per_s),
        }
        table.add_row(
            one.gpu, f"{one.num_gpus:,}", f"{one.dp:,} x {_split(one)}", f"{one.batch_size:,}",
            *(getattr(one, name) or "own" for name in formats),
            units.format_seconds(one.ttft_s), tpot or "-",
            figures[varies], usd or "-",
        )  # fmt: skip
    return table


def _reasons(plan: Plan) -> Any:
    """Candidates by fate and GPU."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Candidates", no_wrap=True)
    for gpu in plan.n_satisfying:
        table.add_column(gpu, justify="right")
    fates = {"satisfy": plan.n_satisfying, **plan.lost}
    for fate, counts in fates.items():
        table.add_row(fate, *(f"{counts.get(gpu, 0):,}" for gpu in plan.n_satisfying))
    return table
