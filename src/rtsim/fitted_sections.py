"""Fitting the sections of a profile: kernels, whole generations, runs of an engine.

Each step takes a profile and gives it back with a section more, beside a report on the section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.calibration import CoefficientReport, SectionReport
from rtsim.fitting import generation
from rtsim.fitting.kinds import Block, SectionFit, choose, cross_validated, fit_blocks
from rtsim.fitting.serving_fit import fit_batch_table, fit_serving_table
from rtsim.fitting.sort_rows import Runs
from rtsim.profile import DECLARED, DEVIATIONS_90, Profile
from rtsim.profile_file import Uncertainty

Array = NDArray[np.float64]

# Below this many rows of a section nothing is fitted; below the other, no error is measured.
LEAST_ROWS = 4
LEAST_ROWS_VALIDATED = 12

# Kind of section -> groups of `profile.GROUPS` whose deviation it is.
GROUPS_OF_KIND = {
    "gemm": ("gemm", "scores", "values"),
    "attention_prefill": ("attention",),
    "attention_decode": ("attention",),
    "memory_bound": ("memory_bound",),
    "collective": ("collective",),
    "moe": ("moe",),
    "mla_prefill": ("mla",),
    "mla_decode": ("mla",),
}


def fit_section(
    blocks: Sequence[Block], max_points: int, prior: Mapping[str, float] | None
) -> tuple[SectionFit | None, SectionReport]:
    """A section fitted to at most `max_points` rows of its blocks; None for too few of them.

    prior: values in place of the declared ones.
    """
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


def group_sigmas(
    reports: Sequence[SectionReport], start: Profile
) -> tuple[dict[str, float], dict[str, float]]:
    """Deviations by group from the sections': root mean square; the start's where none is."""
    squares: dict[str, list[float]] = {}
    for report in reports:
        if not math.isnan(report.sigma):
            for group in GROUPS_OF_KIND[report.section.partition(".")[0]]:
                squares.setdefault(group, []).append(report.sigma**2)
    seen, unseen = dict(start.sigma_seen), dict(start.sigma_unseen)
    for group, values in squares.items():
        seen[group] = unseen[group] = math.sqrt(sum(values) / len(values))
    return seen, unseen


def host_freedoms(start: Profile) -> list[generation.Freedom]:
    """Host coefficients around the start's values."""
    host = start.section("host")
    return [
        generation.Freedom(f.section, f.coefficient._replace(prior=host[f.coefficient.name]))
        for f in generation.host_freedoms()
    ]


def fit_generations(
    systems: Sequence[generation.Configuration],
    profile: Profile,
    freedoms: list[generation.Freedom],
    max_points: int,
) -> tuple[Profile, Any, SectionReport]:
    """The profile with its host track fitted to whole generations, and the scatter that is left."""
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


def fit_runs(
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
