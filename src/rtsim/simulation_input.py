"""What is simulated, from names and figures: a deployment, and the traffic that it is put under."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtsim import lengths as request_lengths
from rtsim.errors import SpecError
from rtsim.named_system import system
from rtsim.serving.arrivals import Generated, Traffic, played
from rtsim.serving.deployment import Deployment
from rtsim.serving.engine import Engine
from rtsim.serving.serve import check_pools

REQUESTS = 1000  # generated without a number


def deployment_of(
    arch: Any, gpu: Any, policy: str | None, token_budget: int | None, max_sequences: int | None,
    memory_frac: float | None, preemption: str, routing: str, max_model_len: int | None,
    prefill_workers: int | None, decode_workers: int | None, prefill_tp: int | None,
    prefill_gpu: Any, transfer_bytes_per_s: float | None, prefix_hit: float,
    options: dict[str, Any],
) -> Deployment:  # fmt: skip
    """The deployment of these options of `rtsim.simulation.simulate`."""
    limits = policy, token_budget, max_sequences, memory_frac
    engine = _engine(system(arch, gpu, **options), limits)
    check_pools(
        prefill_workers, options.get("num_gpus"), decode_workers=decode_workers,
        prefill_tp=prefill_tp, prefill_gpu=prefill_gpu, transfer_rate=transfer_bytes_per_s,
    )  # fmt: skip
    prefill = None
    if prefill_workers is not None:
        dp = options.get("dp")
        if decode_workers is not None and dp not in (None, decode_workers):
            raise SpecError(
                "dp", dp, f"are the decode replicas, as decode_workers = {decode_workers}: give "
                "one of them",
            )  # fmt: skip
        own = dict(options)
        if prefill_tp is not None:
            own["tp"] = prefill_tp
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


def traffic_of(
    trace: str | Path | None, rate: float | None, arrivals: str | None, cv: float | None,
    requests: int | None, input_len: int | None, output_len: int | None,
    lengths: str | Path | None, concurrency: int | None, seed: int, find_capacity: bool,
) -> Traffic:  # fmt: skip
    """The requests of these options; SpecError where they contradict each other."""
    if find_capacity and concurrency is not None:
        raise SpecError("concurrency", concurrency, "a closed loop has no rate to search for")
    if find_capacity and rate is not None:
        raise SpecError("rate", rate, "--capacity searches for the rate: give one or the other")
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
    if concurrency is not None and arrivals is not None:
        raise SpecError("arrivals", arrivals, "a closed loop sends a request when one has ended")
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
