"""A simulation as text and as JSON, and the bar that shows how far it has come."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.cli.tables import as_json, heading, percent, plain, table
from rtsim.serving.capacity import Capacity, Tried
from rtsim.serving.simulate import NO_LEVEL
from rtsim.serving.simulated import Distribution, Simulated
from rtsim.simulation import Simulation

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMES = (
    ("ttft", "Time to first token"), ("tpot", "Time per output token"),
    ("e2e", "End-to-end latency"), ("gap", "Gap between tokens"), ("waited", "Waiting"),
)  # fmt: skip


@contextmanager
def progress(searching: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    what = "rates" if searching else "requests"
    bar = Progress(
        TextColumn("{task.completed:,} of {task.total:,} " + what), BarColumn(),
        TaskProgressColumn(), TimeLeft(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def to_json(found: Simulation) -> dict[str, Any]:
    """The simulation as one object; times in seconds, fractions as fractions."""
    result, deployment = found.result, found.deployment
    engine = deployment.engine
    scheduler = engine.scheduler
    body = {
        "model": {"name": engine.system.model.name},
        "gpu": {"name": engine.system.gpu.name},
        "stack": engine.system.profile.stack,
        "profile": engine.system.profile.name,
        "num_gpus": result.num_gpus,
        "replicas": list(deployment.replicas),
        "scheduler": as_json(scheduler),
        "routing": deployment.routing,
        "preemption": deployment.preemption,
        "traffic": {
            "source": found.source,
            "rate_per_s": None if found.concurrency else found.traffic.rate_per_s,
            "concurrency": found.concurrency or None,
        },
        **_figures(result),
        "capacity": None if found.capacity is None else _capacity(found.capacity),
        "carried_per_s": found.carried_per_s,
        "notes": list(found.notes),
    }
    plain_body: dict[str, Any] = as_json(body)
    return plain_body


def _figures(result: Simulated) -> dict[str, Any]:
    left = ("over_time", "cdf", "level", *(name for name, _ in _TIMES))
    figures = {
        name: getattr(result, name) for name in result.__dataclass_fields__ if name not in left
    }
    if result.level == NO_LEVEL:  # nothing was asked for: nothing met or missed
        figures |= dict.fromkeys(("share", "met_frac", "goodput_per_s"))
    over_time = result.over_time
    return {
        **figures,
        "level": {
            "name": result.level.name or None, "ttft_s": result.level.ttft_s,
            "tpot_s": result.level.tpot_s,
        },
        **{name: _times(getattr(result, name)) for name, _ in _TIMES},
        "over_time": {
            name: getattr(over_time, name).tolist() for name in over_time.__dataclass_fields__
        },
    }  # fmt: skip


def _times(times: Distribution) -> dict[str, Any]:
    at = {f"p{p:g}_s": value for p, value in times.percentiles.items()}
    return {"n": times.n, "mean_s": times.mean_s, **at, "max_s": times.most_s}


def _capacity(found: Capacity) -> dict[str, Any]:
    return {
        "rate_per_s": found.rate_per_s,
        "missed_per_s": found.missed_per_s,
        "offline_per_s": found.offline_per_s,
        "tried": [
            {
                "rate_per_s": one.rate_per_s, "meets": one.meets, "met_frac": one.result.met_frac,
                "goodput_per_s": one.result.goodput_per_s,
                "ttft": _times(one.result.ttft), "tpot": _times(one.result.tpot),
            }
            for one in found.tried
        ],
    }  # fmt: skip


def view(found: Simulation) -> RenderableType:
    """The simulation for a console."""
    from rich.console import Group
    from rich.padding import Padding

    parts: list[RenderableType] = [
        heading(_system(found)), plain(_engine(found)), plain(_load(found)), plain(""),
    ]  # fmt: skip
    if found.capacity is not None:
        parts += [_searched(found.capacity), plain("")]
    parts += [_latencies(found.result), plain(""), _rates(found)]
    if found.notes:
        parts += [plain(""), heading("Notes")]
        parts += [Padding(plain(note), (0, 0, 0, 2)) for note in found.notes]
    return Group(*parts)


def _system(found: Simulation) -> str:
    deployment = found.deployment
    engine = deployment.engine
    parts = []
    names = ("prefill", "decode") if deployment.prefill is not None else ("",)
    for name, n, one in zip(names, deployment.replicas, deployment.engines, strict=True):
        p = one.system.parallelism
        degrees = {
            "tp": p.tp, "pp": p.pp, "ep": p.ep, "attention-dp": p.attention_dp,
        }  # fmt: skip
        split = " ".join(f"{k} {v}" for k, v in degrees.items() if v > 1 or k == "tp")
        parts.append(f"{units.counted(n, f'{name} replica'.strip())} of {split}")
    gpus = " + ".join(dict.fromkeys(one.system.gpu.name for one in deployment.engines))
    return f"{engine.system.model.name} on {deployment.num_gpus} x {gpus}: {', '.join(parts)}"


def _engine(found: Simulation) -> str:
    engine = found.deployment.engine
    s = engine.scheduler
    text = f"stack {engine.system.profile.stack}, {s.policy} steps of at most {s.token_budget:,} "
    text += f"tokens, {s.max_sequences:,} sequences"
    if sum(found.deployment.replicas) > 1:
        text += f", {found.deployment.routing} routing"
    return text


def _load(found: Simulation) -> str:
    result, traffic = found.result, found.traffic
    text = f"{units.counted(result.n_requests, 'request')}, "
    if found.concurrency:
        return f"{text}{found.concurrency:,} kept in flight, {found.source}"
    if math.isinf(traffic.rate_per_s):
        return f"{text}all at one time, {found.source}"
    return f"{text}{units.format_rate(traffic.rate_per_s, 4)} a second, {found.source}"


def _searched(found: Capacity) -> RenderableType:
    last = max(found.tried[0].result.ttft.percentiles)
    made = table("Requests/s", "Within level", "Goodput/s", f"TTFT p{last:g}", f"TPOT p{last:g}",
                 "", text=("",))  # fmt: skip
    for one in found.tried:
        r = one.result
        made.add_row(
            units.format_rate(one.rate_per_s, 4), _met(r), units.format_rate(r.goodput_per_s, 4),
            _seconds(r.ttft.percentiles[last]), _seconds(r.tpot.percentiles[last]),
            _verdict(one, found),
        )  # fmt: skip
    return made


def _met(result: Simulated) -> str:
    """The share of requests within the level, never rounded up to what was asked for."""
    for digits in range(1, 6):
        text = f"{100.0 * result.met_frac:.{digits}f}"
        if result.met_frac >= result.share or float(text) < 100.0 * result.share:
            break
    return f"{text}%"


def _verdict(one: Tried, found: Capacity) -> str:
    if one.rate_per_s == found.rate_per_s:
        return "highest that meets it"
    if one.meets:
        return "meets"
    return "misses: piles up" if one.result.meets_level else "misses"


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else units.format_seconds(value)


def _latencies(result: Simulated) -> RenderableType:
    percentiles = list(result.ttft.percentiles)
    made = table("", "mean", *(f"p{p:g}" for p in percentiles), "max")
    for name, title in _TIMES:
        times: Distribution = getattr(result, name)
        if times.n:
            values = [times.mean_s, *times.percentiles.values(), times.most_s]
            made.add_row(title, *map(_seconds, values))
    return made


def _rates(found: Simulation) -> RenderableType:
    from rich.table import Table

    r = found.result
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(justify="right", no_wrap=True)
    made.add_column()
    made.add_row("Requests", f"{units.format_rate(r.requests_per_s, 4)}/s",
                 f"{r.n_finished:,} in {units.format_seconds(r.duration_s)}")  # fmt: skip
    made.add_row("Output tokens", f"{units.format_rate(r.output_tokens_per_s)}/s",
                 f"{units.format_rate(r.output_tokens_per_s / r.num_gpus)}/s per GPU")  # fmt: skip
    if math.isfinite(r.level.ttft_s) or math.isfinite(r.level.tpot_s):
        limits = [f"{name} {units.format_seconds(limit)}"
                  for name, limit in (("TTFT", r.level.ttft_s), ("TPOT", r.level.tpot_s))
                  if math.isfinite(limit)]  # fmt: skip
        verdict = "met" if r.meets_level else "missed"
        made.add_row("Goodput", f"{units.format_rate(r.goodput_per_s, 4)}/s",
                     f"{_met(r)} within {', '.join(limits)}; {percent(r.share)} asked: "
                     f"{verdict}")  # fmt: skip
    made.add_row("Waiting", f"{r.mean_waiting:.3g}", f"on average, at most {r.most_waiting:,}")
    made.add_row("Running", f"{r.mean_running:.3g}",
                 f"on average in all, at most {r.most_running:,} in one group")  # fmt: skip
    made.add_row("KV cache", percent(r.mean_cache_frac),
                 f"on average, at most {percent(r.most_cache_frac)}")  # fmt: skip
    made.add_row("Busy", percent(r.busy_frac),
                 f"{r.n_steps:,} steps, {percent(r.n_decode_steps / max(1, r.n_steps))} of them "
                 "only decode")  # fmt: skip
    if r.moved_bytes:
        made.add_row("Caches sent", units.format_bytes(r.moved_bytes), "of each GPU's part")
    if r.usd_per_million_output_tokens is not None:
        made.add_row("Cost", units.format_usd(r.usd_per_million_output_tokens),
                     "per million output tokens")  # fmt: skip
    return made
