"""Serving runs and batches predicted, and what engines add to kernels fitted to them.

Kernel coefficients are fitted first, on kernels timed alone. Serving runs then have little left to
say (`mixed.ENGINE_COEFFICIENTS`), in three stages of ever finer factors, so that what is common is
fitted as such and a model or release left out loses little:

1. the engine's coefficients, on time per output token;
2. factors of single weight formats on products and expert layers, and of single releases
   (`RELEASE_SPREAD`), with those of stage 1 fixed;
3. time before the first token: the fixed part, bunching, and a factor of each release.

Split: `choose_rows` picks at most `count` rows by their sizes and labels alone, before anything is
fitted; every other row is unseen. Rows that repeat sizes of a chosen one may be other runs of the
same configuration: repeats differ by 2 % in the median, 80 % in the worst tenth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import mixed
from rtsim_kernels.tables import Coefficient

from rtsim.device_facts import record
from rtsim.errors import RtsimError, SpecError
from rtsim.fit import Fit, fit_coefficients
from rtsim.fitting.serving_rows import (
    Deployment,
    Deployments,
    with_batch_columns,
    with_cache,
)
from rtsim.measurements import Columns
from rtsim.profile import DEVIATIONS_90, Profile, load_profile
from rtsim.row_times import RowTimes
from rtsim.serving.engine import engine_coefficients

Array = NDArray[np.float64]

# What the model of a run is not expected to explain: repeats of one configuration.
TPOT_SIGMA = 0.10
TTFT_SIGMA = 0.25
# Deviation of ln(factor) of one weight format, or one release, around the common one.
FORMAT_SPREAD = 0.15
RELEASE_SPREAD = 0.15
# Of rows whose workers are not counted: one pool of each.
UNSTATED_WORKERS = 1
# Waiting beyond this is a queue in front of the engine, whose length the source does not state.
SATURATED_S = 10.0
_LEAST_CACHE_FRAC = 0.02  # of a GPU's memory: the run took place, so some cache was there

_OF_TPOT = (
    *("step_s", "sequence_s", "prompt_step_s", "gemm_frac", "attention_frac"),
    *("memory_frac", "collective_frac", "moe_frac", "prompt_frac"),
)
_OF_TTFT = ("request_s", "bunching")
_FRACS_OF_FORMAT = {"mlp": "gemm_frac", "experts": "moe_frac"}


@dataclass(frozen=True)
class Case:
    """One row: the engines that it ran on, and its load on a group of each.

    index: of the row in its table. prefill: the engine of the prefill pool, where prompts have
    one of their own. ttft_s: NaN where the row states none. batch: all requests were sent at once
    and tpot_s is the time of the whole run.
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


def _load(deployment: Deployment, in_flight: float, input_len: int, output_len: int) -> Any:
    """A `steady.Load` of one group, as a plain tuple."""
    engine = deployment.engine
    try:
        running = engine.most_running(input_len, output_len)
    except SpecError:
        placement_bytes = _LEAST_CACHE_FRAC * float(engine.system.gpu.memory_bytes)
        running = placement_bytes / engine.placement().cache_bytes(input_len + output_len)
    return (
        max(1e-3, in_flight), max(1.0, running), float(input_len), float(output_len), 0.0,
        engine.policy, float(engine.scheduler.token_budget),
        float(engine.system.parallelism.pp), 0.0, 0.0, 0.0,
    )  # fmt: skip


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
    workers = row["decode_workers"] or UNSTATED_WORKERS
    prefill_workers = row["prefill_workers"] or UNSTATED_WORKERS
    if not in_flight:
        if not row["decode_batch"]:
            raise SpecError("concurrency", 0, "must be stated, or the batch of decode workers")
        in_flight = row["decode_batch"] * workers
    groups = workers * decode.engine.system.parallelism.sequence_groups
    prompt_groups = prefill_workers * prefill.engine.system.parallelism.sequence_groups
    load = _load(decode, in_flight / groups, *sizes)
    prompt_load = _load(prefill, in_flight / prompt_groups, sizes[0], 1)
    return Case(i, decode, load, prefill, prompt_load, _transfer_s(prefill, sizes[0]),
                row["ttft_ms"] / 1e3, row["tpot_ms"] / 1e3, labels)  # fmt: skip


def _transfer_s(prefill: Deployment, input_len: int) -> float:
    """Seconds to send one prompt's cache from its GPUs to those that decode, over the network."""
    system = prefill.engine.system
    network = system.gpu.network
    rate = network.bytes_per_s if network is not None else 0.0
    moved = prefill.engine.placement().cache_bytes(input_len)
    return moved / rate if rate > 0.0 else 0.0


def _batch_case(i: int, row: Mapping[str, Any], deployments: Deployments) -> Case:
    said = with_batch_columns(row)
    one = deployments.of(said)
    if row["kv_dtype"] in ("fp8", "int8"):
        one = with_cache(one, "fp8")  # a byte per element either way
    sizes = row["prompt_tokens"], row["output_tokens"]
    labels = (row["model"], "", row["weight_dtype"], "batch", *sizes, said["tp"], row["batch"])
    load = _load(one, float(row["batch"]), *sizes)
    return Case(i, one, load, None, (), 0.0, float("nan"), row["runtime_s"], labels, batch=True)


# Prediction ----------------------------------------------------------------------------------


def engine_row(values: Mapping[str, float]) -> NDArray[np.void]:
    """An ENGINE record of coefficients."""
    return record(mixed.ENGINE, **values)


def times_of(case: Case, values: Mapping[str, float]) -> tuple[float, float]:
    """(ttft, tpot) seconds of a case with the engine's coefficients; (nan, runtime) of a batch."""
    kernels = rtsim_kernels.compiled()
    row = engine_row(values)[()]
    engine = case.deployment.engine
    _, (operators, segments, machine, _) = engine.compiled()
    load = kernels.steady.Load(*case.load)
    if case.batch:
        _, total_s = kernels.steady.batch_s(load, operators, segments, machine, row, engine.scratch)
        return float("nan"), total_s
    if case.prefill is None:
        made = kernels.steady.steady_state(load, operators, segments, machine, row, engine.scratch)
        return made.ttft_s, made.tpot_s
    first = case.prefill.engine
    _, rows = first.compiled()
    return kernels.steady.disaggregated(  # type: ignore[no-any-return]
        load, kernels.steady.Load(*case.prefill_load), case.transfer_s,
        (operators, segments, machine), rows[:3], row, engine.scratch, first.scratch,
    )  # fmt: skip


def predict_serving(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Time to first token and per output token of every row of a serving table.

    Rows of an unknown GPU, stack or model, or an impossible split, are skipped with the reason.
    Raises UnknownName or DataError where `profile` is no profile.
    """
    chosen = None if profile is None else load_profile(profile)
    cases, reasons = serving_cases(columns, Deployments(chosen))
    rows = len(columns["tpot_ms"])
    skip = _reasons(rows, reasons)
    found = {name: np.full((3, rows), np.nan) for name in ("ttft", "tpot")}
    for case in cases:
        system = case.deployment.engine.system
        ttft_s, tpot_s = times_of(case, engine_coefficients(system))
        version = case.deployment.release.partition(" ")[2]
        release = system.profile.releases.get(version, {})
        for name, seconds in (("ttft", ttft_s), ("tpot", tpot_s)):
            at = seconds * release.get(f"{name}_frac", 1.0)
            width = np.exp(DEVIATIONS_90 * serving_sigma(system.profile, name))
            found[name][:, case.index] = at, at / width, at * width
    regime = np.where(columns["mode"] == "disagg", "disagg", "agg")
    return {
        name: RowTimes(
            columns[f"{name}_ms"] / 1e3,
            found[name][0],
            found[name][1],
            found[name][2],
            skip,
            regime,
        )
        for name in ("ttft", "tpot")
    }


def predict_batches(columns: Columns, profile: str | None) -> dict[str, RowTimes]:
    """Runtime of every row of a table of offline batches, skipped as in `predict_serving`."""
    chosen = None if profile is None else load_profile(profile)
    cases, reasons = batch_cases(columns, Deployments(chosen))
    rows = len(columns["runtime_s"])
    found = np.full((3, rows), np.nan)
    for case in cases:
        system = case.deployment.engine.system
        _, seconds = times_of(case, engine_coefficients(system))
        width = np.exp(DEVIATIONS_90 * serving_sigma(system.profile, "tpot"))
        found[:, case.index] = seconds, seconds / width, seconds * width
    return {
        "runtime": RowTimes(
            columns["runtime_s"], found[0], found[1], found[2], _reasons(rows, reasons)
        )
    }


def _reasons(rows: int, reasons: Mapping[int, str]) -> NDArray[np.str_]:
    return np.array([reasons.get(i, "") for i in range(rows)], np.str_)


# Where no serving run was fitted: what a stack's runs are off by on another GPU.
UNFITTED_SIGMA = {"ttft": 0.5, "tpot": 0.25}


def serving_sigma(profile: Profile, name: str) -> float:
    """Deviation of ln(measured / predicted) of a serving run: "ttft" or "tpot"."""
    return profile.section_sigma.get(f"serving.{name}", UNFITTED_SIGMA[name])


# Fit -----------------------------------------------------------------------------------------


def choose_rows(cases: Sequence[Case], count: int) -> list[Case]:
    """At most `count` cases that lie far apart in their labels and log sizes, chosen one by one.

    The first is the one nearest the middle; nothing measured is looked at.
    """
    if len(cases) <= count:
        return list(cases)
    texts, sizes = _LABELS
    distance_of = [np.log2([float(c.labels[j]) for c in cases]) for j in sizes]
    codes = [np.unique([str(c.labels[j]) for c in cases], return_inverse=True)[1] for j in texts]
    points = np.stack(distance_of, axis=1)

    def distance(i: int) -> Array:
        apart = ((points - points[i]) ** 2).sum(axis=1)
        return np.asarray(apart + sum(_UNLIKE * (code != code[i]) for code in codes))

    middle = points.mean(axis=0)
    chosen = [int(((points - middle) ** 2).sum(axis=1).argmin())]
    nearest = distance(chosen[0])
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance(chosen[-1]))
    return [cases[i] for i in sorted(chosen)]


_LABELS = (0, 1, 2, 3), (4, 5, 6, 7)
_UNLIKE = 32.0  # squared distance of other labels: as a factor 2^5.6 in one size


@dataclass(frozen=True)
class ServingFit:
    """Fitted sections "serving.engine", "serving.<format>", and factors of releases."""

    sections: Mapping[str, Mapping[str, float]]
    releases: Mapping[str, Mapping[str, float]]
    engine: Fit
    sigmas: Mapping[str, float] = field(default_factory=dict)

    def values_of(self, case: Case) -> dict[str, float]:
        """The engine's coefficients for the formats of a case."""
        values = dict(self.sections["serving.engine"])
        for form, name in zip(case.formats, _FRACS_OF_FORMAT.values(), strict=True):
            values[name] = self.sections.get(f"serving.{form}", {}).get(name, values[name])
        return values

    def predicted(self, case: Case) -> tuple[float, float]:
        """(ttft, tpot) seconds, the release's factors in."""
        ttft_s, tpot_s = times_of(case, self.values_of(case))
        release = self.releases.get(case.deployment.release.partition(" ")[2], {})
        return ttft_s * release.get("ttft_frac", 1.0), tpot_s * release.get("tpot_frac", 1.0)


def _declared(names: Iterable[str]) -> tuple[Coefficient, ...]:
    known = {c.name: c for c in mixed.ENGINE_COEFFICIENTS}
    return tuple(known[name] for name in names)


def fit_serving(
    cases: Sequence[Case],
    *,
    priors: Mapping[str, float] | None = None,
    format_spread: float = FORMAT_SPREAD,
    release_spread: float = RELEASE_SPREAD,
) -> ServingFit:
    """Fit an engine to `cases`. priors: other middles of coefficients, those of a like engine."""
    common = {c.name: c.prior for c in mixed.ENGINE_COEFFICIENTS} | dict(priors or {})
    tpot_s = np.array([c.tpot_s for c in cases])
    declared = tuple(c._replace(prior=common[c.name]) for c in _declared(_OF_TPOT))

    def engine_tpot(values: Array) -> Array:
        tried = {**common, **dict(zip(_OF_TPOT, values.tolist(), strict=True))}
        return np.array([times_of(c, tried)[1] for c in cases])

    engine = fit_coefficients(engine_tpot, tpot_s, declared, row_sigma=1.5 * TPOT_SIGMA)
    common = {**common, **dict(zip(_OF_TPOT, engine.values.tolist(), strict=True))}
    formats, releases = _fit_particular(cases, common, tpot_s, format_spread, release_spread)

    # The first token: with the steps as they now are.
    timed = [c for c in cases if 0.0 < c.ttft_s < SATURATED_S]
    sections = {"serving.engine": common, **formats}
    fracs: dict[str, dict[str, float]] = {
        name: {"tpot_frac": frac, "ttft_frac": 1.0} for name, frac in releases.items()
    }
    if timed:
        common, ttft = _fit_ttft(timed, sections, release_spread)
        sections["serving.engine"] = common
        for name, frac in ttft.items():
            fracs[name]["ttft_frac"] = frac
    return ServingFit(sections, fracs, engine)


def _fit_particular(
    cases: Sequence[Case], common: Mapping[str, float], tpot_s: Array, format_spread: float,
    release_spread: float,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:  # fmt: skip
    """Factors of formats, as sections, and of releases."""
    of_part = zip(*(c.formats for c in cases), strict=True)
    keys = [
        (form, name)
        for forms, name in zip(of_part, _FRACS_OF_FORMAT.values(), strict=True)
        for form in sorted({f for f in forms if f})
    ]
    versions = _versions(cases)
    bounds = {c.name: c for c in mixed.ENGINE_COEFFICIENTS}
    freedoms = tuple(
        bounds[name]._replace(prior=common[name], spread=format_spread) for _, name in keys
    ) + _release_freedoms(versions, release_spread)
    if not freedoms:
        return {}, {}

    def predicted(values: Array) -> Array:
        fracs = dict(zip(keys, values[: len(keys)].tolist(), strict=True))
        of_release = dict(zip(versions, values[len(keys) :].tolist(), strict=True))
        out = []
        for case in cases:
            tried = dict(common)
            for form, name in zip(case.formats, _FRACS_OF_FORMAT.values(), strict=True):
                tried[name] = fracs.get((form, name), tried[name])
            version = case.deployment.release.partition(" ")[2]
            out.append(times_of(case, tried)[1] * of_release.get(version, 1.0))
        return np.array(out)

    fit = fit_coefficients(predicted, tpot_s, freedoms, row_sigma=TPOT_SIGMA)
    sections: dict[str, dict[str, float]] = {}
    for (form, name), value in zip(keys, fit.values.tolist(), strict=False):
        sections.setdefault(f"serving.{form}", {})[name] = value
    return sections, dict(zip(versions, fit.values[len(keys) :].tolist(), strict=True))


def _versions(cases: Sequence[Case]) -> list[str]:
    return sorted({v for c in cases if (v := c.deployment.release.partition(" ")[2])})


def _release_freedoms(versions: Sequence[str], spread: float) -> tuple[Coefficient, ...]:
    meaning = "time of serving runs of this release over that of the others"
    return tuple(Coefficient(v, 1.0, spread, 0.2, 5.0, "1", meaning) for v in versions)


def _fit_ttft(
    cases: Sequence[Case], sections: Mapping[str, Mapping[str, float]], release_spread: float
) -> tuple[dict[str, float], dict[str, float]]:
    """The engine's coefficients with those of the first token, and factors of releases."""
    common = dict(sections["serving.engine"])
    versions = _versions(cases)
    declared = tuple(c._replace(prior=common[c.name]) for c in _declared(_OF_TTFT))
    measured_s = np.array([c.ttft_s for c in cases])
    known = ServingFit(sections, {}, None)  # type: ignore[arg-type]
    values_of = [known.values_of(case) for case in cases]

    def predicted(values: Array) -> Array:
        tried = dict(zip(_OF_TTFT, values[: len(_OF_TTFT)].tolist(), strict=True))
        of_release = dict(zip(versions, values[len(_OF_TTFT) :].tolist(), strict=True))
        return np.array(
            [
                times_of(case, {**own, **tried})[0]
                * of_release.get(case.deployment.release.partition(" ")[2], 1.0)
                for case, own in zip(cases, values_of, strict=True)
            ]
        )

    freedoms = (*declared, *_release_freedoms(versions, release_spread))
    fit = fit_coefficients(predicted, measured_s, freedoms, row_sigma=TTFT_SIGMA)
    common |= dict(zip(_OF_TTFT, fit.values.tolist(), strict=False))
    return common, dict(zip(versions, fit.values[len(_OF_TTFT) :].tolist(), strict=True))


def with_serving(profile: Profile, fit: ServingFit) -> Profile:
    """The profile with the sections and releases of a fit."""
    kept = {k: v for k, v in profile.coefficients.items() if not k.startswith("serving")}
    sigma = {k: v for k, v in profile.section_sigma.items() if not k.startswith("serving")}
    return replace(
        profile,
        coefficients={**kept, **fit.sections},
        releases=fit.releases,
        section_sigma={**sigma, **{f"serving.{k}": v for k, v in fit.sigmas.items()}},
    )
