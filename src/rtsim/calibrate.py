"""Measurements -> profile: fit a software stack on a GPU from measurement tables.

Order of the fit. Each kind of kernel and number format first, on its own rows (a section of the
profile), then the host track and what works differently inside a model, on whole generations
where there are any, then what an engine adds, on serving runs and offline batches. At most
`max_points` rows per section are fitted, chosen from their sizes alone by the design of the kind's
recipe (farthest-point or cluster centres); all others are unseen. What no row pins down stays at
its prior: the base profile's value, else the one declared beside the formula.

Errors are cross-validated on the chosen rows (four folds); the deviation written to the profile
is the one with which 90 % of left-out rows lie in their interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.catalog import load_gpu
from rtsim.errors import DataError, SpecError
from rtsim.fitting import generation
from rtsim.fitting.kinds import Block, SectionFit, choose, cross_validated, fit_blocks
from rtsim.fitting.serving_fit import LEAST_CASES, fit_batch_table, fit_serving_table
from rtsim.fitting.sort_rows import (
    FileReport,
    ImpossibleRow,
    Runs,
    launch_s,
    sort_rows,
    table_paths,
    why_nothing,
)
from rtsim.fitting.start import informed, timed_alike
from rtsim.measurements import Table, read_table
from rtsim.operators import StackTraits
from rtsim.profile import DECLARED, DEVIATIONS_90, Profile, load_profile
from rtsim.profile_choice import choose_profile, stack_names
from rtsim.profile_file import Uncertainty, profile_toml, write_profile
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]

MAX_POINTS = 64
# Below this many rows of a section nothing is fitted; below the other, no error is measured.
LEAST_ROWS = 4
LEAST_ROWS_VALIDATED = 12

# Deviation of ln(error) by group where nothing was measured: kernels at declared priors are off
# by about that on GPUs where it could be checked; a host track that no row pins down is a guess.
UNFITTED_SIGMAS = {
    "gemm": 0.20, "scores": 0.30, "values": 0.30, "attention": 0.30, "memory_bound": 0.30,
    "collective": 0.40, "host": 0.50, "prompt_host": 0.50, "moe": 0.35, "mla": 0.30,
}  # fmt: skip
# Further deviation on another GPU than the fitted one, where it was not measured.
TRANSFER_SIGMAS = {
    "gemm": 0.15, "scores": 0.2, "values": 0.2, "attention": 0.2, "memory_bound": 0.2,
    "collective": 0.3, "host": 0.15, "prompt_host": 0.15, "moe": 0.25, "mla": 0.25,
}  # fmt: skip
_GROUPS_OF_KIND = {
    "gemm": ("gemm", "scores", "values"),
    "attention_prefill": ("attention",),
    "attention_decode": ("attention",),
    "memory_bound": ("memory_bound",),
    "collective": ("collective",),
    "moe": ("moe",),
    "mla_prefill": ("mla",),
    "mla_decode": ("mla",),
}

# (what is being done, steps done, steps in all), for a progress bar.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CoefficientReport:
    """One fitted coefficient. `deviation`: of ln(value), after the fit."""

    name: str
    value: float
    unit: str
    meaning: str
    prior: float
    pinned: bool
    deviation: float


@dataclass(frozen=True)
class SectionReport:
    """One fitted section. Errors are cross-validated, NaN where rows are too few for it."""

    section: str
    rows: int
    fitted_rows: int
    mape: float
    median_ape: float
    sigma: float
    coefficients: tuple[CoefficientReport, ...]
    note: str = ""


@dataclass(frozen=True)
class Calibration:
    """A fitted profile, its file's text, and how it came about."""

    profile: Profile
    text: str
    files: tuple[FileReport, ...]
    sections: tuple[SectionReport, ...]
    impossible: tuple[ImpossibleRow, ...]
    notes: tuple[str, ...]

    def write(self, path: str | Path) -> None:
        """Write the profile file, whole or not at all. Raises OutputError."""
        write_profile(Path(path), self.text)


def calibrate(
    files: str | Path | Sequence[str | Path],
    gpu: str | GpuSpec,
    stack: str,
    *,
    base: str | None = None,
    max_points: int = MAX_POINTS,
    output: str | Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Fit a profile of `stack` on `gpu` from measurement tables, and write it to `output`.

    files: tables of any kinds, or folders of them; rows of other GPUs and stacks are left out.
    base: name or file of a profile whose values are the priors. max_points: rows per section.
    Raises DataError (a faulty table, nothing to fit), UnknownName, SpecError, OutputError; then
    nothing is written.
    """
    if max_points < LEAST_ROWS:
        raise SpecError("max_points", max_points, f"must be {LEAST_ROWS} or more")
    spec = (load_gpu(gpu) if isinstance(gpu, str) else gpu).one_device()
    paths = table_paths([files] if isinstance(files, str | Path) else files)
    start = _start(spec, stack, base)
    own = name or (Path(output).stem if output is not None else f"{stack}-{spec.name}")
    tables = [read_table(path) for path in paths]
    report = progress or (lambda what, done, total: None)

    rows = sort_rows(tables, spec, stack)
    generations, file_reports, beaten = rows.generations, rows.reports, rows.beaten
    notes: list[str] = []
    by_section: dict[str, list[Block]] = {}
    for block in rows.blocks:
        by_section.setdefault(block.section, []).append(block)
    for section, members in by_section.items():
        by_section[section] = timed_alike(members, notes)
    start = informed(start, generations, launch_s(tables, spec, stack), notes)
    if not by_section and not generations and not rows.runs:
        raise DataError(
            ", ".join(map(str, paths[:3])), f"no row of {stack} on {spec.name} to fit: "
            + why_nothing(file_reports, beaten),
        )  # fmt: skip
    total = len(by_section) + bool(generations) + len(rows.runs)
    fits: list[SectionFit] = []
    reports: list[SectionReport] = []
    fitted_profile = replace(
        start, name=own, stack=stack, gpu=spec.name, architecture=spec.architecture
    )
    for i, (section, members) in enumerate(by_section.items()):
        report(section, i, total)
        prior = start.coefficients.get(section) if base is not None else None
        fit, section_report = _fit_section(members, max_points, prior)
        reports.append(section_report)
        if fit is None:
            notes.append(f"{section}: {section_report.note}")
            continue
        fits.append(fit)
        fitted_profile = with_section(fitted_profile, fit, section_report.sigma)
    seen, unseen = _group_sigmas(reports, start)
    fitted_profile = replace(fitted_profile, sigma_seen=seen, sigma_unseen=unseen)
    freedoms: list[generation.Freedom] = []
    stack_fit = None
    if generations:
        report("whole generations", len(by_section), total)
        freedoms = _freedoms(start)
        fitted_profile, stack_fit, section_report = _fit_generations(
            generations, fitted_profile, freedoms, max_points
        )
        reports.append(section_report)
    else:
        notes.append(
            "no whole generations: the host track (cost of a step, of a launch) stays at its "
            "stated values and is not pinned down"
        )
    for i, runs in enumerate(rows.runs):
        report(f"{runs.table.kind} runs", total - len(rows.runs) + i, total)
        made = _fit_runs(runs, fitted_profile, max_points)
        if made is None:
            notes.append(
                f"{runs.table.file}: fewer than {LEAST_CASES} runs that can be predicted, left out"
            )
            continue
        fitted_profile, fit, section_reports = made
        fits.append(fit)
        reports += section_reports
    report("done", total, total)
    kinds = {section.section.partition(".")[0] for section in reports}
    absent = [kind for kind in DECLARED if kind not in (*kinds, "host", "serving")]
    if absent:
        notes.append(f"no rows of {', '.join(absent)}: kept at their priors")
    fitted_profile = replace(
        fitted_profile,
        provenance={
            "kind": "fitted",
            "source": "; ".join(_sources(tables)) or "own measurements",
            "date": date.today().isoformat(),
            "recipe": "rtsim calibrate",
            "tables": [Path(table.file).name for table in tables],
            "rows": sum({s.section.partition(" ")[0]: s.fitted_rows for s in reports}.values()),
            "base": base or "",
            "sections": {s.section: _provenance(s) for s in reports},
            "notes": notes,
        },
    )
    names = [f"{f.section}.{f.coefficient.name}" for f in freedoms]
    text = profile_toml(
        fitted_profile,
        None if stack_fit is None else stack_fit.covariance,
        names,
        [] if stack_fit is None else stack_fit.pinned.tolist(),
        kernels=[uncertainty_of(fit) for fit in fits],
    )
    result = Calibration(
        fitted_profile, text, tuple(file_reports), tuple(reports), tuple(beaten), tuple(notes)
    )
    if output is not None:
        result.write(output)
    return result


# Kernels --------------------------------------------------------------------------------------


def _fit_section(
    blocks: Sequence[Block], max_points: int, prior: Mapping[str, float] | None
) -> tuple[SectionFit | None, SectionReport]:
    section, rows = blocks[0].section, sum(map(len, blocks))
    nan = math.nan
    if rows < LEAST_ROWS:
        note = f"too few to fit ({units.counted(rows, 'row')}): kept at its priors"
        return None, SectionReport(section, rows, 0, nan, nan, nan, (), note)
    chosen = choose(blocks, max_points)
    fit = fit_blocks(chosen, prior)
    count = sum(map(len, chosen))
    mape = median = sigma = nan
    note = ""
    if count >= LEAST_ROWS_VALIDATED:
        error = cross_validated(chosen, prior)
        mape, median, sigma = error_figures(error)
    else:
        note = f"too few to measure its error ({units.counted(count, 'row')})"
    reports = coefficient_reports(fit)
    return fit, SectionReport(section, rows, count, mape, median, sigma, reports, note)


def error_figures(log_error: Array) -> tuple[float, float, float]:
    """Mean and median |predicted - measured| / measured, and the deviation that covers 90 %.

    log_error: ln(measured / predicted).
    """
    ape = np.abs(np.expm1(-log_error))
    sigma = float(np.quantile(np.abs(log_error), 0.9)) / DEVIATIONS_90
    return float(ape.mean()), float(np.median(ape)), sigma


def coefficient_reports(fit: SectionFit) -> tuple[CoefficientReport, ...]:
    """What a fit says about each coefficient."""
    declared = {c.name: c for c in DECLARED[fit.section.partition(".")[0]]}
    deviations = np.sqrt(np.diag(fit.fit.covariance))
    return tuple(
        CoefficientReport(
            name, value, declared[name].unit, declared[name].meaning,
            float(prior), bool(pinned), float(deviation),
        )
        for name, value, prior, pinned, deviation in zip(
            fit.fit.names, fit.fit.values.tolist(), fit.fit.priors, fit.fit.pinned, deviations,
            strict=True,
        )
    )  # fmt: skip


def with_section(profile: Profile, fit: SectionFit, sigma: float) -> Profile:
    """`profile` with a section replaced by a fitted one. sigma: NaN where it was not measured."""
    sigmas = dict(profile.section_sigma)
    if not math.isnan(sigma):
        sigmas[fit.section] = sigma
    return replace(
        profile,
        coefficients={**profile.coefficients, fit.section: fit.coefficients},
        traits=replace(profile.traits, **fit.traits),
        section_sigma=sigmas,
    )


def uncertainty_of(fit: SectionFit) -> Uncertainty:
    """The covariance block of a section, for the profile file."""
    return Uncertainty(fit.section, fit.fit.names, fit.fit.pinned.tolist(), fit.fit.covariance)


def _group_sigmas(
    reports: Sequence[SectionReport], start: Profile
) -> tuple[dict[str, float], dict[str, float]]:
    """Deviations by group from the sections': root mean square; the start's where none is."""
    squares: dict[str, list[float]] = {}
    for report in reports:
        if not math.isnan(report.sigma):
            for group in _GROUPS_OF_KIND[report.section.partition(".")[0]]:
                squares.setdefault(group, []).append(report.sigma**2)
    seen, unseen = dict(start.sigma_seen), dict(start.sigma_unseen)
    for group, values in squares.items():
        seen[group] = unseen[group] = math.sqrt(sum(values) / len(values))
    return seen, unseen


# Whole generations ----------------------------------------------------------------------------


def _freedoms(start: Profile) -> list[generation.Freedom]:
    """Host coefficients around the start's values."""
    host = start.section("host")
    return [
        generation.Freedom(f.section, f.coefficient._replace(prior=host[f.coefficient.name]))
        for f in generation.host_freedoms()
    ]


def _fit_generations(
    systems: Sequence[generation.Configuration],
    profile: Profile,
    freedoms: list[generation.Freedom],
    max_points: int,
) -> tuple[Profile, Any, SectionReport]:
    each = max(2, max_points // len(systems))
    chosen = [c.take(generation.choose_rows(c, each)) if len(c.rows) > each else c for c in systems]
    shapes = tuple(generation.shape_of(c) for c in chosen)
    batches = generation.batches_of(chosen)
    profile = replace(profile, fitted_shapes=shapes, fitted_batches=batches)
    fitted, fit = generation.fit_stack(chosen, profile, freedoms)
    count = sum(len(c.rows) for c in chosen)
    if count > len(freedoms):
        seen = generation.in_fit(chosen, fitted, len(freedoms))
        unseen = generation.leave_one_out(chosen, profile, freedoms) if len(chosen) > 1 else seen
        row_sigma = generation.ROW_SIGMA / 10.0  # repeats of one run, not the model's error
        error = unseen.log_error
        fitted = replace(
            fitted,
            sigma_row=row_sigma,
            sigma_seen=generation.fitted_sigmas(seen, fitted.sigma_seen, row_sigma),
            sigma_unseen=generation.fitted_sigmas(unseen, fitted.sigma_unseen, row_sigma),
        )
        mape, median, sigma = error_figures(error)
    else:
        mape = median = sigma = math.nan
    deviations = np.sqrt(np.diag(fit.covariance))
    reports = tuple(
        CoefficientReport(
            f.coefficient.name, float(value), f.coefficient.unit, f.coefficient.meaning,
            f.coefficient.prior, bool(pinned), float(deviation),
        )
        for f, value, pinned, deviation in zip(
            freedoms, fit.values, fit.pinned, deviations, strict=True
        )
    )  # fmt: skip
    rows = sum(len(c.rows) for c in systems)
    return fitted, fit, SectionReport("host", rows, count, mape, median, sigma, reports)


# Serving runs ---------------------------------------------------------------------------------


def _fit_runs(
    runs: Runs, profile: Profile, max_points: int
) -> tuple[Profile, SectionFit, list[SectionReport]] | None:
    """The profile with what serving runs, or batches, say; None where too few can be used.

    One report for each thing that they measure; the coefficients are in the first.
    """
    fit_table = fit_serving_table if runs.table.kind == "serving" else fit_batch_table
    made = fit_table(profile, runs.table.columns, runs.members.tolist(), max_points)
    if made is None:
        return None
    reports: list[SectionReport] = []
    for name, error in made.log_error.items():
        mape, median, sigma = error_figures(error)
        told = () if reports else coefficient_reports(made.fit)
        section = made.fit.section if name == "batch" else f"{made.fit.section} ({name})"
        reports.append(SectionReport(section, made.rows, made.used, mape, median, sigma, told))
    return made.profile, made.fit, reports


# The profile to start from --------------------------------------------------------------------


def _start(gpu: GpuSpec, stack: str, base: str | None) -> Profile:
    """Stack traits, host track and stated scatter: of the base, else of the stack's nearest."""
    if base is not None:
        return load_profile(base)
    if stack in stack_names():
        nearest, _ = choose_profile(gpu, stack)
        host = {k: v for k, v in nearest.coefficients.items() if k == "host"}
        return replace(
            nearest, coefficients=host, section_sigma={}, fitted_shapes=(),
            sigma_seen={**UNFITTED_SIGMAS, **_hosts(nearest.sigma_seen)},
            sigma_unseen={**UNFITTED_SIGMAS, **_hosts(nearest.sigma_unseen)},
        )  # fmt: skip
    return blank_profile(stack, gpu)


def _hosts(sigmas: Mapping[str, float]) -> dict[str, float]:
    return {group: sigmas[group] for group in ("host", "prompt_host")}


def blank_profile(stack: str, gpu: GpuSpec, traits: StackTraits | None = None) -> Profile:
    """A profile with priors everywhere and stated scatter."""
    return Profile(
        name="", stack=stack, gpu=gpu.name, architecture=gpu.architecture,
        traits=traits or StackTraits(), coefficients={}, sigma_seen=dict(UNFITTED_SIGMAS),
        sigma_unseen=dict(UNFITTED_SIGMAS), sigma_row=0.0,
        transfer_sigma=TRANSFER_SIGMAS, fitted_shapes=(),
    )  # fmt: skip


def _sources(tables: Sequence[Table]) -> list[str]:
    found: dict[str, None] = {}
    for table in tables:
        for source in sorted(set(table.columns.get("source", np.array([""])).tolist()) - {""}):
            found.setdefault(source)
    return list(found)


def _provenance(section: SectionReport) -> str:
    text = f"{section.fitted_rows:,} of {units.counted(section.rows, 'row')}"
    if not math.isnan(section.mape):
        text += f", cross-validated error {section.mape:.1%} (median {section.median_ape:.1%})"
    return text + (f"; {section.note}" if section.note else "")
