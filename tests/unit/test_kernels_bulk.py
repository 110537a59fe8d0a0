"""The bulk kernels: both forms agree, and a row does not depend on its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rtsim_kernels
from rtsim_kernels import bulk, generation, row_figures, tables

from rtsim.system_rows import Systems

SIZES = np.array(
    [[1, 1, 1], [1, 1, 5], [1, 300, 9], [8, 128, 1], [8, 128, 40], [8, 777, 300], [9, 777, 2]],
    float,
)


def packed() -> Any:
    systems = Systems(
        {"model": ["gpt-j-6b", "mistral-7b"], "gpu": ["a100", "h100"], "tp": [2], "pp": [1, 2],
         "micro_batches": [1, 3], "gpu.hbm_bytes_per_s": [None, 3e12, "2x"]}
    )  # fmt: skip
    return systems.pack(
        np.array([[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 2], [1, 0, 0, 1, 1, 0]])
    )


def run(kernels: Any, found: Any, form: Any, sizes: Any) -> tuple[Any, Any]:
    n_systems = len(found.systems)
    first_rows = np.arange(n_systems + 1) * len(sizes)
    batch, prompt, output = np.tile(sizes, (n_systems, 1)).T
    out = np.full((row_figures.N_COLUMNS, n_systems * len(sizes)), -1.0)
    errors = np.zeros(out.shape[1], np.int64)
    kernels.predict_rows(
        form(found.systems),
        form(found.machines),
        kernels.Tables(**{name: form(rows) for name, rows in found.tables.items()}),
        first_rows, *(np.ascontiguousarray(s) for s in (batch, prompt, output)),
        np.arange(out.shape[1]), out, errors,
    )  # fmt: skip
    return out, errors


def as_rows(rows: Any) -> Any:
    """Records as the NamedTuples that interpreted kernels take."""
    if rows.dtype.names is None:
        return rows
    return tuple(tables.as_row(row) for row in rows)


def test_interpreted_and_compiled_forms_agree() -> None:
    found = packed()
    assert found.errors == [""] * 4
    compiled, _ = run(rtsim_kernels.compiled().bulk, found, lambda rows: rows, SIZES)
    plain, errors = run(bulk, found, as_rows, SIZES)
    assert (errors == 0).all()
    np.testing.assert_allclose(plain, compiled, rtol=1e-12)


def test_systems_without_a_machine_are_left_alone() -> None:
    found = packed()
    found.systems["machine"][1] = -1
    out, _ = run(rtsim_kernels.compiled().bulk, found, lambda rows: rows, SIZES)
    alone = out.reshape(row_figures.N_COLUMNS, 4, len(SIZES))
    assert (alone[:, 1] == -1.0).all()
    assert (alone[row_figures.TTFT, [0, 2, 3]] > 0.0).all()


@pytest.mark.parametrize("wrong", [0.0, 1.5, 2e8, -1.0, np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_sizes_out_of_range_are_errors_of_their_row(wrong: float, column: int) -> None:
    found = packed()
    sizes = SIZES.copy()
    sizes[3, column] = wrong
    out, errors = run(rtsim_kernels.compiled().bulk, found, lambda rows: rows, sizes)
    expected = np.zeros(len(sizes), np.int64)
    expected[3] = row_figures.ERROR_SIZES
    assert (errors.reshape(4, -1)[0] == expected).all()
    assert np.isnan(out.reshape(row_figures.N_COLUMNS, 4, -1)[:, 0, 3]).all()
    right, _ = run(rtsim_kernels.compiled().bulk, found, lambda rows: rows, SIZES)
    others = np.arange(len(sizes)) != 3
    np.testing.assert_array_equal(
        out.reshape(row_figures.N_COLUMNS, 4, -1)[:, 0, others],
        right.reshape(row_figures.N_COLUMNS, 4, -1)[:, 0, others],
    )


def test_grid_points_are_numbered_in_their_order() -> None:
    point, number = 1.0, 0
    while point < 3e8:
        assert bulk.grid_index(point) == number
        assert generation.grid_below(point) == point
        point, number = generation.grid_above(point), number + 1
    assert number < bulk.GRID_POINTS
