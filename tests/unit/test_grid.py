"""Grids and how their axes are written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rtsim.errors import SpecError, UnknownName
from rtsim.grid import make_grid, parse_axis


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("tp", "1,2,4,8", [1, 2, 4, 8]),
        ("tp", "4", [4]),
        ("batch_size", "1:512:x2", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
        ("batch_size", "512:64:x0.5", [512, 256, 128, 64]),
        ("batch_size", "1:10:x1.5", [1, 2, 3, 5, 8]),
        ("input_len", "1k,8K", [1000, 8192]),
        ("input_len", "1:9:4", [1, 5, 9]),
        ("input_len", "3:5", [3, 4, 5]),
        ("input_len", "9:1:-4", [9, 5, 1]),
        ("gpu", "h100, my.toml", ["h100", "my.toml"]),
        ("gpu.hbm_bytes_per_s", "0.5x:4x:x2", ["0.5x", "1x", "2x", "4x"]),
        ("gpu.hbm_bytes_per_s", "1x:2x:0.5", ["1x", "1.5x", "2x"]),
        ("gpu.hbm_bytes_per_s", "1e12:4e12:x2", [1e12, 2e12, 4e12]),
        ("gpu.hbm_bytes_per_s", "2 TB/s,3x", ["2 TB/s", "3x"]),
    ],
)
def test_axes_as_text(name: str, text: str, values: list[object]) -> None:
    assert parse_axis(name, text) == values


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("batch_size", "8:1", "goes nowhere"),
        ("batch_size", "1:8:0", "goes nowhere"),
        ("batch_size", "1:8:x1", "goes nowhere"),
        ("batch_size", "0:8:x2", "goes nowhere"),
        ("batch_size", "1:8:x0.5", "goes nowhere"),
        ("batch_size", "1:8:2:2", "FIRST:LAST"),
        ("batch_size", "1::2", "FIRST:LAST"),
        ("batch_size", "1:", "FIRST:LAST"),
        ("batch_size", "a:b", "range is of numbers"),
        ("batch_size", "1x:4x:x2", "factors are for figures"),
        ("batch_size", "", "empty entry"),
        ("batch_size", "1,,2", "empty entry"),
        ("batch_size", "many", "whole number"),
        ("batch_size", "1:1000000000", "at most"),
    ],
)
def test_wrong_axes_say_why(name: str, text: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        parse_axis(name, text)


AXES = {
    "output_len": [1, 5], "gpu": ["a100", "h100"], "model": ["gpt3-175b"],
    "link.bytes_per_s": ["1x", "2x", "3x"], "batch_size": [1, 2], "input_len": [7, 8, 9],
}  # fmt: skip


def test_rows_follow_from_their_numbers() -> None:
    grid = make_grid(AXES)
    assert list(grid.axes) == [
        "model", "gpu", "link.bytes_per_s", "batch_size", "input_len", "output_len",
    ]  # fmt: skip
    expected = list(itertools.product(*grid.axes.values()))
    assert grid.n_rows == len(expected) == 72
    codes = grid.codes(np.arange(grid.n_rows))
    for i, row in enumerate(expected):
        assert tuple(grid.axes[n][codes[n][i]] for n in grid.axes) == row


@pytest.mark.parametrize(("first", "last"), [(0, 72), (5, 6), (11, 37), (12, 24), (70, 72)])
def test_systems_and_sizes_of_a_range(first: int, last: int) -> None:
    grid = make_grid(AXES)
    systems, starts = grid.systems(first, last)
    assert starts[0] == 0
    assert starts[-1] == last - first
    assert (np.diff(starts) > 0).all()
    of_row = np.repeat(systems, np.diff(starts), axis=0)
    codes = grid.codes(np.arange(first, last))
    for axis, name in enumerate(grid.system_axes):
        assert (of_row[:, axis] == codes[name]).all()
    for name, values in zip(
        ("batch_size", "input_len", "output_len"), grid.sizes(first, last), strict=True
    ):
        assert (values == np.array(grid.axes[name])[codes[name]]).all()


def test_axes_left_out_take_the_default() -> None:
    grid = make_grid({"model": "gpt3-175b", "gpu": "a100"})
    assert grid.n_rows == 1
    assert all(np.isnan(size).all() for size in grid.sizes(0, 1))


@pytest.mark.parametrize(
    ("axes", "error", "why"),
    [
        ({"model": "gpt3-175b"}, SpecError, "must be given"),
        ({"model": "gpt3-175b", "gpu": []}, SpecError, "empty list"),
        ({"model": "gpt3-175b", "gpu": "a100", "tp": [1, 1]}, SpecError, "twice"),
        ({"model": "gpt3-175b", "arch": "gpt2", "gpu": "a100"}, SpecError, "twice"),
        ({"model": "gpt3-175b", "gpu": "a100", "batch_size": ["a"]}, SpecError, "whole number"),
        ({"model": "gpt3-175b", "gpu": "a100", "bach_size": [1]}, SpecError, "batch_size"),
        ({"model": "gpt3-175", "gpu": "a100x"}, UnknownName, "nearest"),
    ],
)
def test_wrong_grids_say_why(axes: dict[str, object], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        make_grid(axes)
