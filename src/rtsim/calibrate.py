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
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from rtsim import units
from rtsim.calibration import Calibration, SectionReport
from rtsim.catalog import load_gpu
from rtsim.errors import DataError, SpecError, nearest_names
from rtsim.fitted_sections import (
    LEAST_ROWS,
    fit_generations,
    fit_runs,
    fit_section,
    group_sigmas,
    host_freedoms,
    uncertainty_of,
    with_section,
)
from rtsim.fitting import generation
from rtsim.fitting.kinds import Block, SectionFit
from rtsim.fitting.serving_fit import LEAST_CASES
from rtsim.fitting.sort_rows import launch_s, sort_rows, table_paths, why_nothing
from rtsim.fitting.start import informed, timed_alike
from rtsim.measurements import Table, read_table
from rtsim.operators import StackTraits
from rtsim.profile import DECLARED, Profile, load_profile
from rtsim.profile_choice import choose_profile, stack_names
from rtsim.profile_file import profile_toml
from rtsim.specs.gpu import GpuSpec

MAX_POINTS = 64

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

# (what is being done, steps done, steps in all), for a progress bar.
Progress = Callable[[str, int, int], None]


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
    notes = _notes_on_stack(stack, base)
    by_section: dict[str, list[Block]] = {}
    for block in rows.blocks:
        by_section.setdefault(block.section, []).append(block)
    for section, members in by_section.items():
        by_section[section] = timed_alike(members, notes)
    start = informed(start, generations, launch_s(tables, spec, stack), notes)
    if not by_section and not generations and not rows.runs:
        raise DataError(
            ", ".join(map(str, paths[:3])), f"no row of {stack} on {spec.name} to fit: "
            + why_nothing(tables, file_reports, beaten, stack),
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
        fit, section_report = fit_section(members, max_points, prior)
        reports.append(section_report)
        if fit is None:
            notes.append(f"{section}: {section_report.note}")
            continue
        fits.append(fit)
        fitted_profile = with_section(fitted_profile, fit, section_report.sigma)
    seen, unseen = group_sigmas(reports, start)
    fitted_profile = replace(fitted_profile, sigma_seen=seen, sigma_unseen=unseen)
    freedoms: list[generation.Freedom] = []
    stack_fit = None
    if generations:
        report("whole generations", len(by_section), total)
        freedoms = host_freedoms(start)
        fitted_profile, stack_fit, section_report = fit_generations(
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
        made = fit_runs(runs, fitted_profile, max_points)
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


def _notes_on_stack(stack: str, base: str | None) -> list[str]:
    """That a stack is begun, where no profile has its name."""
    known = stack_names()
    if stack in known:
        return []
    near = nearest_names(stack, known)
    hint = f"; nearest: {', '.join(near)}" if near else f"; there are {', '.join(known)}"
    start = "declared values" if base is None else "those of the base"
    return [f"stack '{stack}' has no profile yet, a new one is begun: its priors are {start}{hint}"]


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
