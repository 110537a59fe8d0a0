"""docs/paper.md: what needs no table of measurements is current; what does, is within its target.

`python scripts/paper.py --write` makes the former anew.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    return importlib.import_module("paper")


def part(name: str) -> str:
    return (
        PAGE.partition(f"<!-- {name}: start -->")[2].partition(f"<!-- {name}: end -->")[0].strip()
    )


def cells(name: str) -> list[list[str]]:
    """The rows of a table of the page."""
    lines = part(name).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_parts_without_measurements_are_current(paper: ModuleType) -> None:
    study = paper.load_study("paper")
    assert part("closed form") == paper.closed_form()
    assert part("shapes") == paper.predicted_shapes(study)[0]
    assert part("study") == paper.compared(study)[0]
    assert part("stacks") == paper.stacks()


def test_counted_work_is_the_closed_form() -> None:
    for row in cells("closed form"):
        assert float(row[3]) == pytest.approx(1.0, abs=5e-4)
        assert float(row[6]) == pytest.approx(1.0, abs=5e-4)


def test_targets_of_the_parts_with_measurements() -> None:
    for row in cells("profiled"):
        if row[2] == "270":  # all its rows
            assert float(row[3]) >= 0.999, row
            assert float(row[6].removesuffix(" %")) <= 2.0, row
    for row in cells("ranking"):
        assert float(row[4]) >= 0.95, row
        assert float(row[7]) >= 0.95, row
    for row in cells("denoised"):
        assert abs(float(row[5].removesuffix(" %"))) <= 10.0, row
    for row in cells("synthetic"):
        if int(row[0]) >= 5:  # within 3 %, or said not to be
            assert float(row[2].removesuffix(" %")) <= 3.0, row
            assert float(row[7].removesuffix(" %")) <= 3.0, row


def test_figures_are_there_and_small() -> None:
    names = {line.partition("](")[2].rstrip(")") for line in PAGE.splitlines() if "![" in line}
    files = [ROOT / "docs" / name for name in names]
    assert len(files) == 6
    assert sum(file.stat().st_size for file in files) < 400_000
