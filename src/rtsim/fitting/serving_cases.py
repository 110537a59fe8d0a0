"""Rows of serving and batch tables as cases: the engines that they ran on and the load of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import mixed

from rtsim.device_facts import record
from rtsim.errors import RtsimError, SpecError
from rtsim.fitting.serving_rows import Deployment, Deployments, with_batch_columns, with_cache
from rtsim.measurements import Columns
from rtsim.serving.engine import engine_coefficients
from rtsim.serving.steady import NO_SPECULATION, Speculation, load_row, system_sigma
from rtsim.serving.transfer import transfer_s
from rtsim.specs.model import ModelSpec

# Of rows whose workers are not counted. GPUs that decode: what those that count workers have in the
# median, where they are tensor parallel; more where the cache needs them. Prefill workers: as
# many as keep their pool busy up to this share of the time.
UNSTATED_DECODE_GPUS = 32
UNSTATED_BUSY_FRAC = 0.7
# They do not say either whether layers of multi-token prediction, where the model has some, draft
# tokens. Rows that state the same in every column are 1.6 apart in the median, as with drafts and
# without. The answer of least relative error to two such times is near the faster: with one, kept a
# little less often than published (85 to 90 %, DeepSeek-V3 report, arXiv 2412.19437).
UNSTATED_DRAFTS = 1
UNSTATED_ACCEPTANCE = 0.8
# Deviation of ln(time) that both leave open: a factor of 2 between the ends of each.
UNSTATED_SIGMA = 0.35
# A measured time below this share of the bound is wrong.
_IMPOSSIBLE_FRAC = 0.8
_LEAST_CACHE_FRAC = 0.02  # of a GPU's memory: the run took place, so some cache was there


@dataclass(frozen=True)
class Case:
    """One row: the engines that it ran on, and its load on a group of each.

    index: of the row in its table. prefill: the engine of the prefill pool, where prompts have
    one of their own. ttft_s: NaN where the row states none. batch: all requests were sent at once
    and tpot_s is the time of the whole run. counted: the workers of its pools, if any, are stated.
    """

    index: int
    deployment: Deployment
    load: tuple[Any, ...]
    prefill: Deployment | None
    prefill_load: tuple[Any, ...]
    transfer_s: float
    ttft_s: float
    tpot_s: float
    labels: tuple[Any, ...]
    batch: bool = False
    counted: bool = True

    @property
    def formats(self) -> tuple[str, str]:
        """Formats of the linear layers and of the experts ("" without any)."""
        system = self.deployment.engine.system
        experts = system.formats.of("experts") if system.model.n_experts else ""
        return system.formats.of("mlp"), experts


def serving_cases(
    columns: Columns, deployments: Deployments, members: Iterable[int] | None = None
) -> tuple[list[Case], dict[int, str]]:
    """Rows of a serving table as cases, and why the others are none."""
    return _cases(columns, deployments, members, _serving_case)


def batch_cases(
    columns: Columns, deployments: Deployments, members: Iterable[int] | None = None
) -> tuple[list[Case], dict[int, str]]:
    """Rows of a table of offline batches as cases, and why the others are none."""
    return _cases(columns, deployments, members, _batch_case)


def _cases(
    columns: Columns, deployments: Deployments, members: Iterable[int] | None, make: Any
) -> tuple[list[Case], dict[int, str]]:
    names = list(columns)
    lists = {name: columns[name].tolist() for name in names}
    rows = len(columns[names[0]])
    cases: list[Case] = []
    reasons: dict[int, str] = {}
    for i in range(rows) if members is None else members:
        row = {name: lists[name][i] for name in names}
        try:
            cases.append(make(i, row, deployments))
        except RtsimError as error:
            reasons[i] = str(error)
    return cases, reasons


def _load(
    deployment: Deployment, in_flight: float, input_len: int, output_len: int,
    speculation: Speculation = NO_SPECULATION,
) -> Any:  # fmt: skip
    """A `load.Load` of one group with equal lengths, as a plain tuple."""
    engine = deployment.engine
    try:
        running = engine.most_running(input_len, output_len)
    except SpecError:
        placement_bytes = _LEAST_CACHE_FRAC * float(engine.system.gpu.memory_bytes)
        running = placement_bytes / engine.placement().cache_bytes(input_len + output_len)
    return load_row(engine, max(1e-3, in_flight), max(1.0, running), input_len, output_len,
                    speculation=speculation, equal=True)  # fmt: skip


def _serving_case(i: int, row: Mapping[str, Any], deployments: Deployments) -> Case:
    sizes = row["input_tokens"], row["output_tokens"]
    in_flight = row["concurrency"] or row["batch"]
    labels = (
        row["model"], row["stack_version"], row["precision"], row["mode"], *sizes,
        row["tp"] or row["decode_tp"], in_flight or 1,
    )  # fmt: skip
    if row["mode"] != "disagg":
        if not in_flight:
            raise SpecError("concurrency", 0, "must be stated, or the batch")
        one = deployments.of(row)
        groups = one.engine.system.parallelism.sequence_groups
        load = _load(one, in_flight / groups, *sizes)
        return Case(i, one, load, None, (), 0.0, row["ttft_ms"] / 1e3, row["tpot_ms"] / 1e3,
                    labels)  # fmt: skip
    decode, prefill = deployments.of(row, "decode_"), deployments.of(row, "prefill_")
    split, model = decode.engine.system.parallelism, decode.engine.system.model
    workers = row["decode_workers"] or max(1, UNSTATED_DECODE_GPUS // split.gpus_per_replica)
    if not in_flight:
        if not row["decode_batch"]:
            raise SpecError("concurrency", 0, "must be stated, or the batch of decode workers")
        in_flight = row["decode_batch"] * workers
    groups = split.sequence_groups
    load = _load(decode, in_flight / (groups * workers), *sizes)
    if not row["decode_workers"]:
        workers = max(workers, math.ceil(in_flight / (groups * load[1])))
        drafts = unstated_speculation(model)
        load = _load(decode, in_flight / (groups * workers), *sizes, drafts)
    prompt_groups = prefill.engine.system.parallelism.sequence_groups
    prompt_load = _load(prefill, in_flight / prompt_groups, sizes[0], 1)
    prefill_workers = row["prefill_workers"]
    if not prefill_workers:
        alone_s = prefill.engine.step_s(
            mixed.Batch(0.0, 0.0, 1.0, float(sizes[0]), float(sizes[0]), 1.0, 1.0)
        )
        step_s = decode.engine.step_s(
            mixed.Batch(load[0], sizes[0] + 0.5 * sizes[1], 0.0, 0.0, 0.0, 0.0, 1.0)
        )
        busy = in_flight * alone_s / (prompt_groups * (alone_s + step_s * sizes[1]))
        prefill_workers = max(1, math.ceil(busy / UNSTATED_BUSY_FRAC))
    prompt_load = (prompt_load[0] / prefill_workers, *prompt_load[1:])
    receiving = decode.engine.system.parallelism.tp
    send_s = transfer_s(prefill.engine.placement(), sizes[0], receiving)
    return Case(i, decode, load, prefill, prompt_load, send_s,
                row["ttft_ms"] / 1e3, row["tpot_ms"] / 1e3, labels,
                counted=bool(row["decode_workers"] and row["prefill_workers"]))  # fmt: skip


def unstated_speculation(model: ModelSpec) -> Speculation:
    """What a run that does not say so may have drafted, with layers that come with the model."""
    layers = model.prediction_layers
    if not layers:
        return NO_SPECULATION
    return Speculation(UNSTATED_DRAFTS, UNSTATED_ACCEPTANCE, layers / model.n_layers)


def _weights_s(deployment: Deployment) -> float:
    """Seconds to read one GPU's weights, of a mixture those that every token meets, at the peak."""
    system = deployment.engine.system
    gpu, model = system.gpu, system.model
    active_frac = model.active_parameters / model.parameters
    return deployment.engine.placement().weights_bytes * active_frac / gpu.hbm_bytes_per_s


def _batch_case(i: int, row: Mapping[str, Any], deployments: Deployments) -> Case:
    said = with_batch_columns(row)
    one = deployments.of(said)
    if row["kv_dtype"] in ("fp8", "int8"):
        one = with_cache(one, "fp8")  # a byte per element either way
    sizes = row["prompt_tokens"], row["output_tokens"]
    labels = (row["model"], "", row["weight_dtype"], "batch", *sizes, said["tp"], row["batch"])
    least_s = _weights_s(one) * (sizes[1] - 1)
    if row["runtime_s"] < _IMPOSSIBLE_FRAC * least_s:
        raise SpecError.of_missing(
            "runtime_s", "faster than the hardware allows: each token reads the weights once"
        )
    load = _load(one, float(row["batch"]), *sizes)
    return Case(i, one, load, None, (), 0.0, float("nan"), row["runtime_s"], labels, batch=True)


def profile_times(case: Case) -> tuple[float, float]:
    """(ttft, tpot) seconds of a case by its own profile, the factors of its release in.

    (nan, runtime) of a batch, which has none.
    """
    system = case.deployment.engine.system
    use = "batch" if case.batch else "engine"
    times = times_of(case, engine_coefficients(system, use))
    return times if case.batch else with_factors(times, system.profile.releases, case)


def sigma_of(case: Case, name: str) -> float:
    """Deviation of ln(measured / predicted) of a case. name: "ttft", "tpot" or "batch"."""
    sigma = system_sigma(case.deployment.engine.system, name)
    return sigma if case.counted else math.hypot(sigma, UNSTATED_SIGMA)


def with_factors(
    times: tuple[float, float], releases: Mapping[str, Mapping[str, float]], case: Case
) -> tuple[float, float]:
    """(ttft, tpot) seconds with the factors of the case's release, of those that have some."""
    fracs = releases.get(case.deployment.version, {})
    return times[0] * fracs.get("ttft_frac", 1.0), times[1] * fracs.get("tpot_frac", 1.0)


def engine_row(values: Mapping[str, float]) -> NDArray[np.void]:
    """An ENGINE record of coefficients."""
    return record(mixed.ENGINE, **values)


def times_of(case: Case, values: Mapping[str, float]) -> tuple[float, float]:
    """(ttft, tpot) seconds of a case with the engine's coefficients; (nan, runtime) of a batch."""
    kernels = rtsim_kernels.compiled()
    row = engine_row(values)[()]
    engine = case.deployment.engine
    _, (operators, segments, machine, _) = engine.compiled()
    load = kernels.load.Load(*case.load)
    if case.batch:
        _, total_s = kernels.one_batch.batch_s(
            load, operators, segments, machine, row, engine.scratch
        )
        return float("nan"), total_s
    if case.prefill is None:
        made = kernels.steady.steady_state(load, operators, segments, machine, row, engine.scratch)
        return made.ttft_s, made.tpot_s
    first = case.prefill.engine
    _, rows = first.compiled()
    return kernels.pools.disaggregated(  # type: ignore[no-any-return]
        load, kernels.load.Load(*case.prefill_load), case.transfer_s,
        (operators, segments, machine), rows[:3], row, engine.scratch, first.scratch,
    )  # fmt: skip
