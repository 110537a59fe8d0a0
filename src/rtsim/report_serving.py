"""Text and JSON of serving in its steady state."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rtsim import units
from rtsim.console import page

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rtsim.serving.serve import ServingPrediction

_SHOWN_SHARE = 0.005  # of a decode step: what is below stands in one line
_LIMITS = {
    "concurrency": "the requests that are sent",
    "cache": "the memory for keys and values",
    "max_sequences": "the scheduler's limit of sequences",
}


def serving_to_json(p: ServingPrediction) -> dict[str, Any]:
    """The prediction as JSON; times in seconds, sizes in bytes, rates per second."""
    state = asdict(p.state)
    return {
        "model": asdict(p.model),
        "gpu": asdict(p.gpu),
        "stack": p.stack,
        "profile": p.profile,
        "num_gpus": p.num_gpus,
        "parallelism": asdict(p.parallelism),
        "scheduler": asdict(p.scheduler),
        "input_len": p.input_len,
        "output_len": p.output_len,
        "prefix_hit": p.prefix_hit,
        "speculation": asdict(p.speculation),
        **state,
        "memory": {
            "weights_bytes": p.weights_bytes,
            "cache_bytes": p.cache_bytes,
            "cache_frac": p.cache_frac,
        },
        "cost": None if p.cost is None else asdict(p.cost),
        "energy_j": p.energy_j,
        "interval_90": {k: None if v is None else list(v) for k, v in p.interval_90.items()},
        "decode_step": [asdict(part) for part in p.breakdown],
        "pools": None if p.pools is None else asdict(p.pools),
        "sources": list(p.sources),
        "notes": list(p.notes),
        "assumed": list(p.assumed),
    }


def serving_view(p: ServingPrediction) -> RenderableType:
    """The prediction for a console."""
    gpus = p.gpu.name if p.num_gpus == 1 else f"{p.num_gpus} x {p.gpu.name}"
    split = ", ".join(f"{k} {v}" for k, v in asdict(p.parallelism).items() if v > 1)
    title = f"{p.model.name} served on {gpus}" + (f", {split}" if split else "")
    if p.pools is not None:
        title += f": {p.pools.prefill_gpus} for prompts, {p.pools.decode_gpus} for decoding"
    state = p.state
    subtitle = (
        f"{units.counted(state.concurrency, 'request')} in flight, prompt {p.input_len:,}, output "
        f"{p.output_len:,}, "
        f"stack {p.stack}: {p.scheduler.policy}, {p.scheduler.token_budget:,} tokens a step"
    )
    step = [
        (part.operator, units.format_seconds(part.time_s), f"{part.share:.1%}")
        for part in p.breakdown
        if part.share >= _SHOWN_SHARE
    ]
    rest = sum(part.time_s for part in p.breakdown if part.share < _SHOWN_SHARE)
    if rest > 0.0:
        share = sum(part.share for part in p.breakdown if part.share < _SHOWN_SHARE)
        step.append(("others", units.format_seconds(rest), f"{share:.1%}"))
    columns: list[tuple[str, Literal["left", "right"]]] = [("Decode step", "left")]
    columns += [("Time", "right"), ("Share", "right")]
    sources = list(p.sources)
    if p.cost is not None:
        sources.append(f"price: {p.cost.source}")
    return page(
        title, subtitle, _figures(p), [(columns, step)] if step else [],
        [("Assumed", p.assumed), ("Notes", p.notes), ("Sources", sources)],
    )  # fmt: skip


def _figures(p: ServingPrediction) -> list[tuple[str, str, str]]:
    s = p.state
    seconds, rate = units.format_seconds, units.format_rate
    alone = f"{seconds(s.ttft_alone_s)} without waiting for others"
    rows = [("Time to first token", seconds(s.ttft_s), f"{_range(p, 'ttft_s')}; {alone}")]
    if s.tpot_s is not None:
        rows += [
            ("Time per output token", seconds(s.tpot_s), _range(p, "tpot_s")),
            (
                "Gap between tokens",
                seconds(s.decode_step_s),
                f"{seconds(s.itl_mixed_s)} where a step also takes a prompt"
                if p.pools is None
                else "",
            ),
        ]
    rows += [
        ("End-to-end latency", seconds(s.e2e_latency_s), ""),
        ("", "", ""),
        ("Requests", f"{rate(s.request_throughput)}/s", ""),
        ("Output tokens", f"{rate(s.output_throughput)}/s", f"{rate(s.gpu_throughput)}/s per GPU"),
        ("Prompt and output tokens", f"{rate(s.total_throughput)}/s", ""),
    ]
    if s.user_throughput is not None:
        rows.append(("Tokens of one user", f"{rate(s.user_throughput)}/s", "after the first"))
    rows += [
        ("", "", ""),
        (
            "Requests that run",
            f"{s.running:.1f}",
            f"{s.decoding:.1f} decode; at most {s.largest_running:,.0f}, "
            f"limited by {_LIMITS[s.limit]}",
        ),
        ("Cache in use", f"{p.cache_frac:.0%}", f"of {units.format_bytes(p.cache_bytes)} per GPU"),
    ]
    if p.pools is None:
        rows.append(("Time spent on prompts", f"{s.prompt_frac:.0%}", "of all steps"))
    else:
        rows.append(("Prompt pool busy", f"{p.pools.prefill_busy_frac:.0%}", "of the time"))
        rows.append(("Sending a cache", seconds(p.pools.transfer_s), "of one prompt"))
    if p.cost is not None:
        rows += [
            (
                "Cost per million tokens",
                units.format_usd(p.cost.usd_per_million_output_tokens),
                f"of output, at {units.format_usd(p.cost.usd_per_gpu_hour)} per GPU hour",
            ),
        ]
    return rows


def _range(p: ServingPrediction, name: str) -> str:
    interval = p.interval_90[name]
    if interval is None:
        return ""
    low, high = interval
    return f"90%: {units.format_seconds(low)} to {units.format_seconds(high)}"
