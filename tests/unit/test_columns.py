"""Columns of tables of every kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rtsim.bulk import predict_many
from rtsim.columns import coded, columns_of
from rtsim.errors import SpecError

DATA = {
    "model": ["gpt3-175b", "gpt-j-6b", "gpt3-175b"],
    "gpu": ["a100", "h100", "a100"],
    "tp": [8, 1, 8],
    "input_len": [512, 100, 1],
    "gpu.hbm_bytes_per_s": [2e12, 3.5e12, np.nan],
}


def frames() -> list[object]:
    made: list[object] = [DATA, {name: np.array(column) for name, column in DATA.items()}]
    names = list(DATA)
    dtype = [(n, np.array(DATA[n]).dtype) for n in names]
    made.append(np.array(list(zip(*DATA.values(), strict=True)), dtype))
    return made


def check(table: object) -> None:
    found, expected = predict_many(table), predict_many(DATA)
    assert (found["error"] == "").all()
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)


@pytest.mark.parametrize("which", range(3))
def test_mappings_and_structured_arrays(which: int) -> None:
    check(frames()[which])


def test_arrow_tables() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({**DATA, "gpu": arrow.array(DATA["gpu"]).dictionary_encode()})
    check(table)
    check(table.to_batches()[0])


def test_pandas_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(DATA)
    check(frame)
    check(frame.astype({"model": "category", "gpu": "string", "tp": "Int64"}))


def test_polars_frames() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(DATA)
    check(frame)
    check(frame.with_columns(polars.col("model").cast(polars.Categorical)))


def test_scalars_hold_for_all_rows() -> None:
    found = predict_many({"model": "gpt3-175b", "gpu": "a100", "tp": [4, 8], "batch_size": 2})
    assert found["num_gpus"].tolist() == [4, 8]


def test_an_empty_table_has_no_rows() -> None:
    found = predict_many({"model": [], "gpu": [], "batch_size": []})
    assert all(len(column) == 0 for column in found.values())


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (7, "must be a mapping"),
        ("model", "must be a mapping"),
        ({"model": ["gpt2"]}, "gpu"),
        ({"model": ["gpt2"], "gpu": ["a100"], "bach_size": [1]}, "batch_size"),
        ({"model": ["gpt2"], "gpu": ["a100", "h100"]}, "must have 1"),
        ({"model": ["gpt2"], "gpu": ["a100"], "batch_size": ["one"]}, "whole number"),
        ({"model": ["gpt2"], "arch": ["gpt2"], "gpu": ["a100"]}, "arch"),
        ({"model": [["gpt2"]], "gpu": ["a100"]}, "names or numbers"),
        ({"model": ["gpt2"], "gpu": ["a100"], "tp": np.ones((1, 2))}, "one axis"),
    ],
)
def test_wrong_tables_say_why(table: object, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        predict_many(table)


@given(
    arrays.arrays(np.int64, st.integers(0, 40), elements=st.integers(-5, 5) | st.just(2**60))
    | arrays.arrays(
        np.float64, st.integers(0, 40), elements=st.sampled_from((0.5, 1.0, 7.0, 1e300))
    )
    | arrays.arrays("U3", st.integers(0, 40), elements=st.sampled_from(("a", "b", "abc", "")))
)
def test_codes_stand_for_their_values(column) -> None:
    found = coded(column, len(column))
    assert len(set(found.values)) == len(found.values)
    again = [found.values[code] for code in found.codes]
    assert again == [value if value != "" else None for value in column.tolist()]


def test_columns_are_found_without_their_libraries() -> None:
    columns, n_rows = columns_of({"a": 1, "b": [1, 2]})
    assert n_rows == 2
    assert columns["a"] == 1
