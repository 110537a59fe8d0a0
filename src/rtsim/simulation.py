"""`rtsim simulate`: names and figures -> deployment and traffic -> figures, records, files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsim import lengths as request_lengths
from rtsim.errors import SpecError
from rtsim.output import replacing
from rtsim.predict import system
from rtsim.service_level import SHARE, service_level
from rtsim.serving.arrivals import Generated, Traffic, played
from rtsim.serving.capacity import TOLERANCE, Capacity, capacity
from rtsim.serving.chrome_trace import ChromeTrace
from rtsim.serving.deployment import Deployment
from rtsim.serving.engine import Engine
from rtsim.serving.serve import DEFAULT_STACK, check_pools
from rtsim.serving.simulate import NO_LEVEL, Recorded, Run, offline_rate
from rtsim.serving.simulated import PERCENTILES, REFUSALS, Simulated
from rtsim.serving.simulation_notes import notes_on
from rtsim.specs import GpuSpec, ModelSpec
from rtsim.table_file import Block, check_format, write_columns

Progress = Callable[[int, int], None]

REQUESTS = 1000  # generated without a number
RECORD_COLUMNS: dict[str, type] = {
    "request": int, "status": str, "arrival_s": float, "prompt_tokens": int, "output_tokens": int,
    "priority": int, "replica": int, "waited_s": float, "ttft_s": float, "tpot_s": float,
    "e2e_latency_s": float, "longest_gap_s": float, "preemptions": int,
}  # fmt: skip
_CURVE = (0.2, 0.4, 0.6, 0.8, 1.1, 1.2)  # of the capacity
_STATUS = np.array(["ok", *(REFUSALS[s] for s in sorted(REFUSALS))], dtype=object)


@dataclass(frozen=True, eq=False)
class Simulation:
    """What was simulated, and what came of it.

    capacity: where it was searched for; `result` is then at the rate found. carried_per_s: what the
    deployment carries when requests always wait; None where the load is below it.
    """

    deployment: Deployment
    traffic: Traffic
    concurrency: int
    result: Simulated
    capacity: Capacity | None
    carried_per_s: float | None
    notes: tuple[str, ...]


def simulate(
    arch: str | Path | ModelSpec,
    gpu: str | Path | GpuSpec,
    *,
    trace: str | Path | None = None,
    rate: float | None = None,
    arrivals: str | None = None,
    cv: float | None = None,
    requests: int | None = None,
    input_len: int | None = None,
    output_len: int | None = None,
    lengths: str | Path | None = None,
    concurrency: int | None = None,
    seed: int = 0,
    level: str | None = None,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    share: float = SHARE,
    percentiles: Iterable[float] = PERCENTILES,
    find_capacity: bool = False,
    tolerance: float = TOLERANCE,
    curve: bool = False,
    policy: str | None = None,
    token_budget: int | None = None,
    max_sequences: int | None = None,
    memory_frac: float | None = None,
    preemption: str = "recompute",
    routing: str = "round-robin",
    max_model_len: int | None = None,
    prefill_workers: int | None = None,
    decode_workers: int | None = None,
    prefill_tp: int | None = None,
    prefill_gpu: str | Path | GpuSpec | None = None,
    transfer_bytes_per_s: float | None = None,
    prefix_hit: float = 0.0,
    records: str | Path | None = None,
    chrome_trace: str | Path | None = None,
    progress: Progress | None = None,
    **system_options: Any,
) -> Simulation:
    """Play requests against a deployment, event by event.

    Requests come from a `trace` (as recorded, or at another `rate`, cut or repeated to
    `requests`), or are generated at `rate` per second by `arrivals` ("poisson", "constant",
    "bursty" with `cv`) with lengths `input_len` and `output_len`, or of the file `lengths`, or keep
    `concurrency` of them in flight. The stack defaults to vLLM, as in `rtsim.serve`, and the
    scheduler's figures to those of the stack.
    `prefill_workers` replicas take prompts only, `decode_workers` (or dp) the decoding;
    `prefill_tp` and `prefill_gpu` say what the former are.
    `find_capacity` looks for the highest rate that meets the level, with `curve` also at shares of
    it that make a figure. `records` (.csv, .parquet,
    .json) and `chrome_trace` are written as it goes, whole or not at all. system_options: those of
    `rtsim.predict` that say model, GPUs and formats.

    >>> found = simulate("llama-3.1-8b", "h100", stack="vllm", rate=2.0, requests=50,
    ...                  input_len=500, output_len=20)
    >>> found.result.n_finished, found.result.overloaded
    (50, False)
    """
    if system_options.get("stack") is None and system_options.get("profile") is None:
        system_options = {**system_options, "stack": DEFAULT_STACK}  # as `rtsim.serve`
    deployment = _deployment(
        arch, gpu, policy, token_budget, max_sequences, memory_frac, preemption, routing,
        max_model_len, prefill_workers, decode_workers, prefill_tp, prefill_gpu,
        transfer_bytes_per_s, prefix_hit, system_options,
    )  # fmt: skip
    traffic = _traffic(
        trace, rate, arrivals, cv, requests, input_len, output_len, lengths, concurrency, seed,
        find_capacity,
    )  # fmt: skip
    wanted = NO_LEVEL
    if level is not None or ttft_s is not None or tpot_s is not None:
        wanted = service_level(level, ttft_s, tpot_s)
    if find_capacity and wanted is NO_LEVEL:
        wanted = service_level()  # says what is missing
    for path in (records,):
        if path is not None:
            check_format(path)
    options: dict[str, Any] = {
        "level": wanted, "share": share, "percentiles": tuple(percentiles),
    }  # fmt: skip
    found = None
    if find_capacity:
        if concurrency is not None:
            raise SpecError("concurrency", concurrency, "a closed loop has no rate to search for")
        Run(deployment, traffic, **options)  # what is out of range is said before any work
        found = capacity(
            deployment, traffic, wanted, share, tolerance=tolerance,
            percentiles=options["percentiles"], also=_CURVE if curve else (), progress=progress,
        )  # fmt: skip
        if found.rate_per_s > 0.0:
            traffic = traffic.at_rate(found.rate_per_s)
    run = Run(
        deployment, traffic, concurrency=concurrency or 0, log_steps=chrome_trace is not None,
        **options,
    )  # fmt: skip
    _play(run, records, chrome_trace, None if find_capacity else progress)
    result = run.result()
    carried = offline_rate(deployment, traffic) if result.overloaded else None
    if carried is not None and not math.isfinite(carried):
        carried = result.carried_per_s
    notes = notes_on(deployment, traffic, result, found, carried)
    return Simulation(deployment, traffic, concurrency or 0, result, found, carried, notes)


def _deployment(
    arch: Any, gpu: Any, policy: str | None, token_budget: int | None, max_sequences: int | None,
    memory_frac: float | None, preemption: str, routing: str, max_model_len: int | None,
    prefill_workers: int | None, decode_workers: int | None, prefill_tp: int | None,
    prefill_gpu: Any, transfer_bytes_per_s: float | None, prefix_hit: float,
    options: dict[str, Any],
) -> Deployment:  # fmt: skip
    limits = policy, token_budget, max_sequences, memory_frac
    engine = _engine(system(arch, gpu, **options), limits)
    check_pools(
        prefill_workers, decode_workers=decode_workers, prefill_tp=prefill_tp,
        prefill_gpu=prefill_gpu,
    )  # fmt: skip
    prefill = None
    if prefill_workers is not None:
        own = dict(options)
        if prefill_tp is not None:
            own["tp"] = prefill_tp
            own.pop("num_gpus", None)
        own_gpu = gpu if prefill_gpu is None else prefill_gpu
        prefill = _engine(system(arch, own_gpu, **own), limits)
    return Deployment(
        engine, prefill, n_replicas=decode_workers, n_prefill=prefill_workers, routing=routing,
        preemption=preemption,
        most_tokens=max_model_len, transfer_bytes_per_s=transfer_bytes_per_s,
        prefix_hit=prefix_hit,
    )  # fmt: skip


def _engine(made: Any, limits: tuple[Any, ...]) -> Engine:
    engine = Engine(made)
    return Engine(made, engine.scheduler.changed(*limits))


def _traffic(
    trace: str | Path | None, rate: float | None, arrivals: str | None, cv: float | None,
    requests: int | None, input_len: int | None, output_len: int | None,
    lengths: str | Path | None, concurrency: int | None, seed: int, find_capacity: bool,
) -> Traffic:  # fmt: skip
    if trace is not None:
        for name, value in (
            ("arrivals", arrivals), ("cv", cv), ("input_len", input_len),
            ("output_len", output_len), ("lengths", lengths),
        ):  # fmt: skip
            if value is not None:
                raise SpecError(name, value, "the trace says it: give one or the other")
        return played(trace, requests, rate)
    if rate is None and concurrency is None and not find_capacity:
        raise SpecError.of_missing(
            "rate", "give --rate (requests per second), --concurrency, --trace or --capacity"
        )
    if concurrency is not None and concurrency < 1:
        raise SpecError("concurrency", concurrency, "must be a whole number above zero")
    if rate is not None and concurrency is not None:
        raise SpecError("concurrency", concurrency, "a closed loop has no rate: give one of them")
    if cv is not None and arrivals != "bursty":
        raise SpecError("cv", cv, "goes with --arrivals bursty only")
    if lengths is not None and (input_len is not None or output_len is not None):
        raise SpecError("lengths", str(lengths), "give it, or --input-len and --output-len")
    if lengths is not None:
        sizes = request_lengths.read_lengths(lengths)
    else:
        if input_len is None or output_len is None:
            missing = "input_len" if input_len is None else "output_len"
            raise SpecError.of_missing(
                missing, "give --input-len and --output-len, --lengths or --trace"
            )
        sizes = request_lengths.fixed(input_len, output_len)
    process = arrivals or "poisson"
    return Generated(
        1.0 if rate is None else rate, sizes, REQUESTS if requests is None else requests, process,
        _cv(process, cv), seed,
    )  # fmt: skip


def _cv(process: str, cv: float | None) -> float:
    """Coefficient of variation of the gaps between arrivals."""
    if process == "bursty":
        return 2.0 if cv is None else cv
    return 1.0


def _play(
    run: Run, records: str | Path | None, chrome_trace: str | Path | None, progress: Progress | None
) -> None:
    """Simulate, writing files as it goes."""
    with ExitStack() as stack:
        writer = None
        if chrome_trace is not None:
            file = stack.enter_context(replacing(chrome_trace))
            writer = stack.enter_context(ChromeTrace(file, run.deployment))

        def blocks() -> Iterator[Recorded]:
            for block in run.blocks():
                if writer is not None:
                    writer.add(block)
                if progress is not None:
                    progress(run.n_ended, run.traffic.n_requests)
                yield block

        if records is None:
            for _ in blocks():
                pass
            return
        table = stack.enter_context(replacing(records))
        rows = (_columns(block, run) for block in blocks() if len(block.requests))
        write_columns(table, RECORD_COLUMNS, rows, Path(records).suffix.lower())


def _columns(block: Recorded, run: Run) -> Block:
    rows = block.requests
    replica_of = np.array([replica for _, _, replica, _ in run.deployment.group_rows()] + [-1])
    columns = {name: rows[name] for name in RECORD_COLUMNS if name not in ("status", "replica")}
    columns["status"] = _STATUS[rows["status"]]
    columns["replica"] = replica_of[rows["group"]]
    return columns
