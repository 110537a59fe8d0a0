"""`rtsim simulate`: names and figures -> deployment and traffic -> figures, records, files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rtsim_kernels import serving_state as st

from rtsim.errors import SpecError
from rtsim.output import replacing
from rtsim.service_level import SHARE, service_level
from rtsim.serving.arrivals import Generated, Traffic
from rtsim.serving.capacity import TOLERANCE, Capacity, capacity
from rtsim.serving.chrome_trace import ChromeTrace, check_trace_file, opened
from rtsim.serving.deployment import Deployment
from rtsim.serving.serve import DEFAULT_STACK
from rtsim.serving.simulate import NO_LEVEL, Recorded, Run, offline_rate
from rtsim.serving.simulated import PERCENTILES, REFUSALS, Simulated, refused
from rtsim.serving.simulation_notes import notes_on, why_refused
from rtsim.simulation_input import deployment_of, traffic_of
from rtsim.specs import GpuSpec, ModelSpec
from rtsim.table_file import Block, check_format, write_columns

Progress = Callable[[int, int], None]

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

    @property
    def source(self) -> str:
        """Where the requests come from; a closed loop has no process of arrivals."""
        if self.concurrency and isinstance(self.traffic, Generated):
            return f"seed {self.traffic.seed}"
        return self.traffic.source


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
    deployment = deployment_of(
        arch, gpu, policy, token_budget, max_sequences, memory_frac, preemption, routing,
        max_model_len, prefill_workers, decode_workers, prefill_tp, prefill_gpu,
        transfer_bytes_per_s, prefix_hit, system_options,
    )  # fmt: skip
    traffic = traffic_of(
        trace, rate, arrivals, cv, requests, input_len, output_len, lengths, concurrency, seed,
        find_capacity,
    )  # fmt: skip
    wanted = NO_LEVEL
    if level is not None or ttft_s is not None or tpot_s is not None:
        wanted = service_level(level, ttft_s, tpot_s)
    if find_capacity and wanted is NO_LEVEL:
        wanted = service_level()  # says what is missing
    if records is not None:
        check_format(records, "records")
    if chrome_trace is not None:
        check_trace_file(chrome_trace)
    options: dict[str, Any] = {
        "level": wanted, "share": share, "percentiles": tuple(percentiles),
    }  # fmt: skip
    found = None
    if find_capacity:
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
    notes = notes_on(deployment, traffic, result, found, carried, concurrency or 0)
    return Simulation(deployment, traffic, concurrency or 0, result, found, carried, notes)


def _play(
    run: Run, records: str | Path | None, chrome_trace: str | Path | None, progress: Progress | None
) -> None:
    """Simulate, writing files as it goes."""
    with ExitStack() as stack:
        writer = None
        if chrome_trace is not None:
            file = stack.enter_context(opened(chrome_trace))
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
        else:
            table = stack.enter_context(replacing(records))
            rows = (_columns(block, run) for block in blocks() if len(block.requests))
            write_columns(table, RECORD_COLUMNS, rows, Path(records).suffix.lower())
        _check_served(run)  # before the files are put in place


def _check_served(run: Run) -> None:
    """SpecError where every request was refused: there is nothing to report."""
    if run.state.ended[st.FINISHED]:
        return
    reasons = [f"{why_refused(reason, run.deployment)} ({n:,})"
               for reason, n in refused(run.state.ended).items()]  # fmt: skip
    raise SpecError("requests", run.n_ended, f"none can be served: {'; '.join(reasons)}")


def _columns(block: Recorded, run: Run) -> Block:
    rows = block.requests
    replica_of = np.array([replica for _, _, replica, _ in run.deployment.group_rows()] + [-1])
    columns = {name: rows[name] for name in RECORD_COLUMNS if name not in ("status", "replica")}
    columns["status"] = _STATUS[rows["status"]]
    columns["replica"] = replica_of[rows["group"]]
    return columns
