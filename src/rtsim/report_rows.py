"""The figures of a prediction in words: its title, and rows of label, value and remark."""

from __future__ import annotations

from dataclasses import asdict

from rtsim import units
from rtsim.console import percent
from rtsim.prediction import Interval, Prediction


def encodes(p: Prediction) -> bool:
    """Whether the model makes one pass over its input and generates nothing."""
    return p.model.kind == "encoder"


def throughput_of(p: Prediction) -> tuple[str, float]:
    """("Output" or "Input", tokens per second): an encoder has nothing but its input."""
    w = p.workload
    if encodes(p):
        return "Input", w.batch_size * w.input_len / p.e2e_latency_s
    return "Output", p.output_throughput


def per_million_input(usd_per_request: float, p: Prediction) -> float:
    """US dollars per million tokens of the input."""
    return usd_per_request / p.workload.input_len * 1e6


def title_of(p: Prediction) -> str:
    """Model and size, GPUs and split."""
    size = units.format_count(p.model.parameters)
    if p.model.active_parameters != p.model.parameters:
        size += f", {units.format_count(p.model.active_parameters)} active"
    split = ", ".join(f"{k} {v}" for k, v in asdict(p.parallelism).items() if v > 1)
    gpus = p.gpu.name if p.num_gpus == 1 else f"{p.num_gpus} x {p.gpu.name}"
    return f"{p.model.name} ({size} parameters) on {gpus}" + (f", {split}" if split else "")


def workload_line(p: Prediction) -> str:
    """Sizes, formats and stack."""
    w = p.workload
    formats = [w.dtype]
    if w.kv_cache_dtype != w.dtype:
        formats.append(f"KV cache {w.kv_cache_dtype}")
    if w.quantization not in (None, "none"):
        formats.append(f"weights {w.quantization}")
    lengths = f"prompt {w.input_len:,}, output {w.output_len:,}"
    if encodes(p):
        lengths = f"input {w.input_len:,}"
    return f"batch {w.batch_size}, {lengths}, {', '.join(formats)}, stack {p.stack}"


def metric_rows(p: Prediction) -> list[tuple[str, str, str]]:
    """(label, value, remark) of every figure above the breakdown."""
    work = "all GPUs, what ranks repeat included" if p.parallelism.tp > 1 else "all GPUs"
    tokens, throughput = throughput_of(p)
    rows = [
        *_time_rows(p),
        (f"{tokens} throughput", f"{units.format_rate(throughput)} tokens/s", ""),
        ("Compute utilization (MFU)", percent(p.mfu), _peak(p)),
        (
            "Bandwidth utilization (MBU)",
            percent(p.mbu),
            f"of {units.format_bytes_per_s(p.gpu.hbm_bytes_per_s)} per GPU",
        ),
        ("Work" if encodes(p) else "Prefill work", units.format_flops(p.prefill_flops), work),
        *(() if encodes(p) else (("Decode work", units.format_flops(p.decode_flops), work),)),
        ("", "", ""),
        *_memory_rows(p),
        ("", "", ""),
    ]
    if p.cost is None:
        rows.append(("Cost", "unknown", "no price is known for this GPU"))
    else:
        million, of = p.cost.usd_per_million_output_tokens, "of output"
        if encodes(p):
            million, of = per_million_input(p.cost.usd_per_request, p), "of input"
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
    if encodes(p):
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
    if encodes(p):
        lengths = f"of {units.counted(p.workload.input_len, 'token')}"
    return [
        ("  largest batch", f"{memory.max_batch_size:,}", lengths),
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
