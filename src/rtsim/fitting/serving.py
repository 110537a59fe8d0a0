"""Predicts the rows of serving tables and of offline batches.

What a row leaves out is filled in as `serving_rows` says. Rows of pools that do not count their
workers are predicted with what others state and a draft token where the model can make one, and
stand in a regime of their own, with a wider interval: neither is known of the runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rtsim.fitting.serving_cases import batch_cases, profile_times, serving_cases, sigma_of
from rtsim.fitting.serving_rows import Deployments
from rtsim.measurements import Columns
from rtsim.profile import DEVIATIONS_90, load_profile
from rtsim.row_times import RowTimes

REGIMES = ("agg", "disagg", "disagg, workers not stated")


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
        for name, at in zip(found, profile_times(case), strict=True):
            width = np.exp(DEVIATIONS_90 * sigma_of(case, name))
            found[name][:, case.index] = at, at / width, at * width
    counted = (columns["prefill_workers"] > 0) & (columns["decode_workers"] > 0)
    pools = np.where(counted, REGIMES[1], REGIMES[2])
    regime = np.where(columns["mode"] == "disagg", pools, REGIMES[0])
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
        _, seconds = profile_times(case)
        width = np.exp(DEVIATIONS_90 * sigma_of(case, "batch"))
        found[:, case.index] = seconds, seconds / width, seconds * width
    return {
        "runtime": RowTimes(
            columns["runtime_s"], found[0], found[1], found[2], _reasons(rows, reasons)
        )
    }


def _reasons(rows: int, reasons: Mapping[int, str]) -> NDArray[np.str_]:
    return np.array([reasons.get(i, "") for i in range(rows)], np.str_)
