"""The floor of a table: how it moves, what may move it, what a bend costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rtsim.fit import quantile_regression
from rtsim.latencies import Latency
from rtsim.latency_floor import Floor, by_passes, cells_of, fit_floor, redrawn

PROMPTS, OUTPUTS = (1, 256, 512, 1024), (1, 2, 4, 8, 16, 32)


def rows(seed: int = 5, repeats: int = 8) -> list[Latency]:
    """Overhead 0.1, prefill 1e-4 a token, 0.02 per output token, log-normal waiting."""
    random = np.random.default_rng(seed)
    return [
        Latency(i, p, o, (0.1 + 1e-4 * p + 0.02 * o) * (1.0 + random.lognormal(-2.0, 1.0)))
        for i, (p, o) in enumerate((p, o) for p in PROMPTS for o in OUTPUTS for _ in range(repeats))
    ]


@pytest.mark.parametrize("waits", [None, (0.0, 0.3), (0.05, 0.1)])
def test_a_floor_moves_by_units_of_waiting(waits: tuple[float, float] | None) -> None:
    """Taking waiting away from every size is the same as moving x."""
    floor = Floor(PROMPTS, np.array([0.1, 0.12, 0.15, 0.2, 0.02]), waits, np.zeros(5))
    prompt, output = np.repeat(PROMPTS, 6), np.tile(OUTPUTS, 4)
    moved = replace(floor, x=floor.moved(0.01))
    expected = floor.at(prompt, output) + 0.01 * floor.waiting(prompt, output)
    assert moved.at(prompt, output) == pytest.approx(expected)


def test_one_call_does_not_pull_the_whole_floor_down() -> None:
    """12 % below everything: too little to be left out; its own prompt may follow it."""
    table = rows()
    before = fit_floor(cells_of(table, PROMPTS)).x
    lowest = min(
        range(len(table)),
        key=lambda i: (
            table[i].runtime_s
            / (0.1 + 1e-4 * table[i].prompt_tokens + 0.02 * table[i].output_tokens)
        ),
    )
    own = PROMPTS.index(table[lowest].prompt_tokens)
    table[lowest] = replace(table[lowest], runtime_s=0.88 * table[lowest].runtime_s)
    after = fit_floor(cells_of(table, PROMPTS)).x
    others = [i for i in range(len(before)) if i != own]
    assert after[others] == pytest.approx(before[others], rel=0.05)


def test_repeats_that_are_too_few_leave_waiting_to_the_passes() -> None:
    assert fit_floor(cells_of(rows(repeats=4), PROMPTS)).waits is None
    shown = fit_floor(cells_of(rows(repeats=8), PROMPTS)).waits
    assert shown is not None
    assert shown[1] > 0.0


def test_fits_at_other_quantiles_say_how_unsure_it_is() -> None:
    cells = cells_of(rows(repeats=2), PROMPTS)
    low, high = by_passes(cells, 0.05).x, by_passes(cells, 0.2).x
    assert (fit_floor(cells).unsure >= np.abs(high - low) - 1e-12).all()


def test_redrawn_tables_scatter_about_the_floor() -> None:
    cells = cells_of(rows(), PROMPTS)
    floor = fit_floor(cells)
    drawn = np.array(list(redrawn(cells, floor, 30)))
    assert drawn.std(axis=0).min() > 0.0
    assert np.median(drawn, axis=0) == pytest.approx(floor.x, rel=0.05)
    assert np.array(list(redrawn(cells, floor, 30))).tolist() == drawn.tolist()


def test_a_priced_bend_has_to_pay_for_itself() -> None:
    """One of three points off the line: followed where bends are free, ignored where they cost."""
    times, bend = np.array([1.0, 2.5, 3.0]), np.array([[-0.5, 1.0, -0.5]])
    none = np.zeros((0, 3))
    free = quantile_regression(np.eye(3), times, np.ones(3), 0.5, none)
    dear = quantile_regression(np.eye(3), times, np.ones(3), 0.5, none, 10.0 * bend)
    assert free.tolist() == pytest.approx([1.0, 2.5, 3.0])
    assert float((bend @ dear)[0]) == pytest.approx(0.0, abs=1e-9)
