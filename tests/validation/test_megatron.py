"""The Megatron-LM profiles against the measurements in this repository, and nothing else.

One re-fit of everything (`calibration/fit_megatron.py`, every model left out once in turn; about
15 s) serves all tests of this file. A re-fit on another machine differs in the last digits of its
linear algebra, so coefficients are compared to REFIT_TOLERANCE and not text to text, as
`fit_megatron.py --check` does.

CEILINGS may only be lowered. They are on the rows of the calibration tables; the errors on the
1,780 rows outside them are in docs/accuracy.md.
"""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rtsim.fitting.generation import Configuration, LeftOut, configurations, runtimes
from rtsim.measurements import Table, read_table
from rtsim.predict import predict
from rtsim.profile import GROUPS, interval_half_width, load_profile

ROOT = Path(__file__).parents[2]
CALIBRATION = ROOT / "calibration"
PROFILES = ROOT / "src" / "rtsim" / "data" / "profiles"

REFIT_TOLERANCE = 1e-3  # relative, of a fitted coefficient
# The scale of the deviations is searched on a grid of factors 1.21 apart: one step may flip.
SIGMA_TOLERANCE = 0.22


@dataclass(frozen=True)
class Ceilings:
    """Largest absolute relative errors allowed: means over rows, as fractions."""

    fitted: float  # rows in the fit
    fitted_prompt: float  # of those, prompt passes alone
    left_out: float  # every model predicted by a fit without it
    left_out_prompt: float
    rows: int  # whole generations that the work may fit at most


# Lower them when an improvement allows it; never raise them.
CEILINGS = {
    "megatron-lm-a100-sxm4-80gb": Ceilings(0.0125, 0.017, 0.0165, 0.022, 60),
    # Two models only, of 28 and 96 layers on 1 and 16 GPUs: each predicted from the other.
    "megatron-lm-v100-sxm3-32gb": Ceilings(0.050, 0.060, 0.105, 0.145, 30),
}
# What the whole was built to reach, on a model that was left out: ceilings may not exceed it.
LEFT_OUT_GOAL, LEFT_OUT_PROMPT_GOAL = 0.06, 0.12
MOST_KERNEL_ROWS = 64  # per kind of operator

# Measured, GPT-3 175B on 8 A100-80GB, fp16, batch 1 (helm-efficiency, openai_davinci):
# prompt, output, seconds, largest relative error allowed.
HEADLINE = ((512, 1, 0.179, 0.06), (512, 64, 5.326, 0.015), (1024, 32, 2.843, 0.015))


def recipe() -> ModuleType:
    """calibration/fit_megatron.py as a module of its own."""
    path = CALIBRATION / "fit_megatron.py"
    spec = importlib.util.spec_from_file_location("fit_megatron_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


@dataclass
class Refit:
    """What one run of the recipe gave: the text of each profile, and the left-out models."""

    texts: dict[str, str]
    left_out: dict[str, LeftOut]


@pytest.fixture(scope="module")
def refit() -> Refit:
    module = recipe()
    result = Refit({}, {})
    leave_one_out: Any = module.leave_one_out

    def recorded(fitted: Any, profile: Any, freedoms: Any) -> LeftOut:
        result.left_out[profile.name] = leave_one_out(fitted, profile, freedoms)
        return result.left_out[profile.name]

    def kept(path: Path, text: str) -> None:
        result.texts[path.stem] = text

    module.leave_one_out = recorded  # type: ignore[attr-defined]
    module.write_profile = kept  # type: ignore[attr-defined]
    assert module.main(False) == 0
    return result


def fitted_rows(name: str) -> list[Configuration]:
    tables = load_profile(name).provenance["tables"]
    (table,) = (t for t in tables if t.startswith("generation"))
    return configurations(read_table(CALIBRATION / "tables" / table).columns)


def every_table() -> list[Table]:
    """The tables that these profiles name."""
    named = {table for name in CEILINGS for table in load_profile(name).provenance["tables"]}
    return [read_table(CALIBRATION / "tables" / name) for name in sorted(named)]


def mean_error(measured_s: np.ndarray, predicted_s: np.ndarray, rows: np.ndarray) -> float:
    return float(np.abs(predicted_s / measured_s - 1.0)[rows].mean())


# The shipped profile is what the tables give -----------------------------------------------------


@pytest.mark.parametrize("name", CEILINGS)
def test_the_recipe_gives_the_shipped_profile(refit: Refit, name: str) -> None:
    again = tomllib.loads(refit.texts[name])
    shipped = tomllib.loads((PROFILES / f"{name}.toml").read_text())
    assert again.keys() == shipped.keys()
    for key in ("name", "gpu", "architecture", "fitted_shapes", "stack"):
        assert again[key] == shipped[key], key
    for key in ("source", "recipe", "tables", "rows", "kind"):
        assert again["provenance"][key] == shipped["provenance"][key], key
    for key in ("fitted_mape", "left_out_model_mape"):
        assert again["provenance"][key] == pytest.approx(shipped["provenance"][key], abs=5e-4)
    assert again["uncertainty"]["coefficients"] == shipped["uncertainty"]["coefficients"]
    for kind in ("host", "gemm", "collective", "memory_bound"):
        if kind in shipped:
            assert_close(again[kind], shipped[kind], REFIT_TOLERANCE, kind)
    assert_close(again["error"], shipped["error"], SIGMA_TOLERANCE, "error")


def assert_close(again: Any, shipped: Any, tolerance: float, where: str) -> None:
    if isinstance(shipped, dict):
        assert again.keys() == shipped.keys(), where
        for key in shipped:
            assert_close(again[key], shipped[key], tolerance, f"{where}.{key}")
    else:
        assert again == pytest.approx(shipped, rel=tolerance), where


def test_no_profile_is_without_a_recipe() -> None:
    """A profile that this file does not know was not checked."""
    shipped = {path.stem for path in PROFILES.glob("megatron-lm-*.toml")}
    assert shipped == set(CEILINGS)


# Errors, which may only fall ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CEILINGS)
def test_fitted_rows(name: str) -> None:
    profile, ceiling = load_profile(name), CEILINGS[name]
    fitted = fitted_rows(name)
    predicted_s = np.concatenate([runtimes(c, profile).sum(axis=1) for c in fitted])
    measured_s = np.concatenate([c.runtime_s for c in fitted])
    prompt_only = np.concatenate([c.output_tokens for c in fitted]) == 1
    assert mean_error(measured_s, predicted_s, prompt_only | True) <= ceiling.fitted
    assert mean_error(measured_s, predicted_s, prompt_only) <= ceiling.fitted_prompt


@pytest.mark.parametrize("name", CEILINGS)
def test_models_left_out_of_the_fit(refit: Refit, name: str) -> None:
    ceiling, left_out = CEILINGS[name], refit.left_out[name]
    predicted_s = left_out.owed_s.sum(axis=1)
    prompt_only = np.concatenate([c.output_tokens for c in fitted_rows(name)]) == 1
    assert len(prompt_only) == len(predicted_s)
    everything = prompt_only | True
    assert mean_error(left_out.measured_s, predicted_s, everything) <= ceiling.left_out
    assert mean_error(left_out.measured_s, predicted_s, prompt_only) <= ceiling.left_out_prompt


def test_ceilings_are_within_the_goal() -> None:
    ceiling = CEILINGS["megatron-lm-a100-sxm4-80gb"]
    assert ceiling.left_out <= LEFT_OUT_GOAL
    assert ceiling.left_out_prompt <= LEFT_OUT_PROMPT_GOAL


@pytest.mark.parametrize("name", CEILINGS)
def test_intervals_hold_left_out_models(refit: Refit, name: str) -> None:
    """About nine in ten rows of models that the fit did not see; few rows, so a wide margin."""
    profile, left_out = load_profile(name), refit.left_out[name]
    sigmas = np.array([profile.sigma_unseen[group] for group in GROUPS])
    width = interval_half_width(left_out.owed_s, sigmas, profile.sigma_row)
    inside = (np.abs(left_out.log_error) <= width).mean()
    assert 0.8 <= inside <= 1.0
    # Not by being boundless: on average no wider than three times the errors it has to hold.
    assert width.mean() <= 3.0 * 1.6449 * np.sqrt((left_out.log_error**2).mean())


@pytest.mark.parametrize(("prompt", "output", "measured_s", "allowed"), HEADLINE)
def test_gpt3_on_eight_a100(prompt: int, output: int, measured_s: float, allowed: float) -> None:
    result = predict("gpt3-175b", "a100", tp=8, input_len=prompt, output_len=output)
    assert abs(result.e2e_latency_s / measured_s - 1.0) <= allowed


# The tables themselves ---------------------------------------------------------------------------


def test_tables_are_small_and_cited() -> None:
    for table in every_table():
        assert all(table.columns["source"]), table.file
        assert not table.repeated.any(), table.file
        if table.kind != "generation":
            assert len(table) <= MOST_KERNEL_ROWS, table.file
    for name, ceiling in CEILINGS.items():
        assert sum(len(c.rows) for c in fitted_rows(name)) <= ceiling.rows


def test_every_model_of_a_table_is_fitted_on_prompts_and_on_generations() -> None:
    for name in CEILINGS:
        for configuration in fitted_rows(name):
            outputs = configuration.output_tokens
            assert (outputs == 1).sum() >= 4
            assert (outputs > 1).sum() >= 4
