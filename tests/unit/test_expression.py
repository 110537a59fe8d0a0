"""Conditions on columns."""

from __future__ import annotations

import numpy as np
import pytest

from rtsim.errors import RtsimError, SpecError, UnknownName
from rtsim.expression import Condition

COLUMNS = {
    "a": np.array([1.0, 2.0, np.nan, 4.0]),
    "b": np.array([2, 2, 2, 2]),
    "fits": np.array([True, False, True, True]),
    "gpu": np.array(["x", "y", "x", "x"], object),
    "gpu.hbm": np.array([5.0, 6.0, 7.0, 8.0]),
    "link.rate": np.array(["0.5x", "1x", "2x", "10x"], object),
}
TEXTS = ("gpu", "link.rate")
FACTORS = ("link.rate",)


def rows(text: str) -> list[int]:
    condition = Condition(text, COLUMNS, TEXTS, factors=FACTORS)
    assert condition.columns <= set(COLUMNS)
    return np.flatnonzero(condition(COLUMNS, 4)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fits", [0, 2, 3]),
        ("not fits", [1]),
        ("a < 3", [0, 1]),
        ("a != 2", [0, 3]),
        ("not a < 3", [2, 3]),
        ("fits and a * b > 2", [3]),
        ("fits or a == 2", [0, 1, 2, 3]),
        ("1 < a <= 4", [1, 3]),
        ("gpu == 'x' and a", [0, 3]),
        ("gpu != 'x'", [1]),
        ("gpu.hbm / 2 - 1 >= 2.5 + -0", [2, 3]),
        ("-a < -1.5", [1, 3]),
        ("(a + b) / 0 > 0", [0, 1, 3]),
        ("True", [0, 1, 2, 3]),
        ("link.rate >= 2", [2, 3]),  # numbers: as texts 10x would come before 2x
        ("link.rate == '2x' or link.rate * 2 == 1", [0, 2]),
        ("0.5 < link.rate < b", [1]),
    ],
)
def test_conditions(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "a <", "a = 1", "a ** 2 > 1", "a if fits else b", "__import__('os')", "a.__class__",
        "[a]", "a[0]", "lambda: 1", "a in (1, 2)", "a is 1", "gpu < 'x'", "gpu == 3", "gpu + 1 > 0",
        "gpu and fits", "gpu", "'x'", "f'{a}'", "1j > a", "a @ b", "None", "not gpu", "a\n b",
        "(" * 300 + "a" + ")" * 300, "-" * 20000 + "a", "a" * 20000, "a := 1",
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(RtsimError) as caught:
        rows(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownName, match="nearest: fits"):
        rows("fit")
    with pytest.raises(SpecError):
        rows("fits; a")
