"""Shipped profiles of stacks: their recipe reproduces them, and their errors may only fall.

Judged on the small tables alone. The ceilings are a little above what was measured when they were
set; an improvement lowers them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from rtsim.fitting.serving_fit import fit_serving_table
from rtsim.measurements import read_table
from rtsim.profile import Profile, load_profile
from rtsim.validate import validate

CALIBRATION = Path(__file__).parent.parent.parent / "calibration"
sys.path.insert(0, str(CALIBRATION))

import fit_stacks  # noqa: E402

# Relative, of a coefficient: another machine differs in the last digits of its linear algebra.
REFIT_TOLERANCE = 1e-3

# One of each recipe; `calibration/fit_stacks.py --check` does all, in two minutes.
SAMPLED = ("vllm-a100-sxm4-80gb", "sarathi-serve-a40", "pytorch-t4")

# Mean over sections of the cross-validated error that each shipped profile states, by kind.
CROSS_VALIDATED_CEILING = {
    "gemm": 0.134,
    "attention_prefill": 0.108,
    "attention_decode": 0.131,
    "memory_bound": 0.142,
    "collective": 0.124,
}
# Error of the fitted rows themselves, mean over tables.
FITTED_CEILING = {
    "gemm": 0.117,
    "attention_prefill": 0.082,
    "attention_decode": 0.107,
    "elementwise": 0.105,
    "collective": 0.101,
}
STATED = re.compile(r"cross-validated error ([0-9.]+)%")


def stated_errors(kind: str) -> list[float]:
    """Cross-validated errors in the provenance of the profiles of single GPUs."""
    errors = []
    for name in fit_stacks.recipes():
        if name.startswith("family-"):
            continue
        for section, text in load_profile(name).provenance["sections"].items():
            found = STATED.search(text)
            if section.partition(".")[0] == kind and found:
                errors.append(float(found.group(1)) / 100.0)
    return errors


def of_kernels(names: Iterable[str]) -> set[str]:
    """Sections of kernels; what engines add is fitted after them, on runs."""
    return {name for name in names if not name.startswith("serving.")}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_recipe_gives_the_shipped_profile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_stacks.Draft, "add_runs", lambda *_: None)
    monkeypatch.setattr(fit_stacks.Draft, "borrow_runs", lambda *_: None)
    monkeypatch.setattr(fit_stacks, "serving_profile_cached", cached_without_runs)
    made, _ = fit_stacks.make(name)
    shipped = load_profile(name)
    assert made.traits == shipped.traits
    assert of_kernels(made.coefficients) == of_kernels(shipped.coefficients)
    for section in of_kernels(shipped.coefficients):
        values = shipped.coefficients[section]
        assert made.coefficients[section] == pytest.approx(values, rel=REFIT_TOLERANCE), section
    for section in of_kernels(shipped.section_sigma):
        sigma = shipped.section_sigma[section]
        assert made.section_sigma[section] == pytest.approx(sigma, rel=0.02), section


def cached_without_runs(stack: str, gpu: str) -> tuple[Profile, str]:
    """A serving profile that another one borrows from: the shipped one will do."""
    if f"{stack}-{gpu}" in SAMPLED:
        return fit_stacks.serving_profile(stack, gpu)
    return load_profile(f"{stack}-{gpu}"), ""


@pytest.mark.parametrize("name", ["vllm-h100-sxm5-80gb", "sglang-h100-sxm5-80gb"])
def test_the_runs_give_what_engines_add(name: str) -> None:
    """Fitted again on top of the shipped kernels, which are rounded to five digits."""
    shipped = load_profile(name)
    stack, _, gpu = name.partition("-")
    table = read_table(fit_stacks.RUNS / f"serving_{gpu}_{stack}.csv")
    made = fit_serving_table(shipped, table.columns, range(len(table)), len(table))
    assert made is not None
    for section, values in shipped.coefficients.items():
        if section.startswith("serving.") and section != "serving.batch":
            again = made.profile.coefficients[section]
            assert again == pytest.approx(values, rel=5 * REFIT_TOLERANCE), section
    for version, fracs in shipped.releases.items():
        assert made.profile.releases[version] == pytest.approx(fracs, rel=0.01), version


# Error of time per output token, and of the runtime of batches, of the fitted runs themselves.
RUNS_CEILING = {"serving": 0.125, "batches": 0.135}


@pytest.mark.parametrize("kind", RUNS_CEILING)
def test_errors_of_fitted_runs_may_only_fall(kind: str) -> None:
    files = sorted(fit_stacks.RUNS.glob(f"{kind}_*.csv"))
    totals = [file.metrics[file.headline].total for file in validate(files).files]
    assert len(totals) == len(files) > 3
    rows = sum(total.rows for total in totals)
    assert sum(total.mape * total.rows for total in totals) / rows < RUNS_CEILING[kind]
    inside = sum(total.coverage_90 * total.rows for total in totals) / rows
    assert 0.85 < inside < 0.99


def test_every_recipe_has_its_profile() -> None:
    for name in fit_stacks.recipes():
        profile = load_profile(name)
        assert profile.provenance["recipe"] == "calibration/fit_stacks.py"
        for table in profile.provenance["tables"]:
            assert (CALIBRATION / "tables" / table).is_file()


@pytest.mark.parametrize("kind", CROSS_VALIDATED_CEILING)
def test_cross_validated_errors_may_only_fall(kind: str) -> None:
    assert np.mean(stated_errors(kind)) < CROSS_VALIDATED_CEILING[kind]


@pytest.mark.parametrize("kind", FITTED_CEILING)
def test_errors_of_fitted_rows_may_only_fall(kind: str) -> None:
    files = sorted((CALIBRATION / "tables" / "kernels").glob(f"{kind}_*.csv"))
    errors, inside, rows = [], 0.0, 0
    for file in validate(files).files:
        total = file.metrics["time"].total
        assert total is not None, file.skipped
        errors.append(total.mape)
        inside += total.coverage_90 * total.rows
        rows += total.rows
    assert np.mean(errors) < FITTED_CEILING[kind]
    assert inside / rows > 0.85, "intervals are too narrow for the very rows of the fit"


def test_at_most_64_rows_are_fitted_per_section() -> None:
    for name in fit_stacks.recipes():
        if name.startswith("family-"):
            continue
        for section, text in load_profile(name).provenance["sections"].items():
            if " rows of " in text:
                places = text.partition(";")[0].count(",") + 1
                assert int(text.split()[0]) <= 64 * places, (name, section)


def test_serving_stacks_say_that_their_host_track_is_stated() -> None:
    for stack in fit_stacks.SERVING:
        for gpu in fit_stacks.SERVED:
            notes = load_profile(f"{stack}-{gpu}").provenance["notes"]
            assert any("host track stated, not fitted" in note for note in notes)
