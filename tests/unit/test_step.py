"""One step by hand: what the host track, the GPU track and their corner give in clear cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rtsim_kernels import collective, step, tables

from rtsim.catalog import load_gpu
from rtsim.formats import Formats
from rtsim.machine import machine_rows
from rtsim.profile import load_profile

HOST = {
    "step_s": 1e-3,
    "launch_s": 1e-5,
    "collective_s": 2e-5,
    "exposed_frac": 0.5,
    "prefill_layer_s": 3e-5,
    "prompt_token_s": 1e-6,
    "slowness": 1.0,
    "rank_lag": 0.0,
    "corner": 4.0,
    "kernel_gap_s": 1e-30,
    "score_passes": 1.0,
}


def machine(**host: float) -> step.Machine:
    """An A100 with the host of this file."""
    formats = Formats("fp16", "fp16")
    profile = load_profile("megatron-lm-a100-sxm4-80gb")
    rows = machine_rows(profile, load_gpu("a100"), formats).interpreted()
    known = rows.host._asdict()
    assert known.keys() == HOST.keys()
    return rows._replace(host=rows.host._replace(**{**HOST, **host}))


def operator(**sizes: float) -> Any:
    row = np.zeros((), tables.OPERATOR)
    for name, value in sizes.items():
        row[name] = value
    return tables.as_row(row)


def nothing() -> Any:
    """A kernel without work: the host issues it, the GPU is done at once."""
    return operator(kind=tables.MEMORY_BOUND, width=1.0, launches=1.0)


def product(size: float = 4096.0) -> Any:
    return operator(kind=tables.GEMM, n=size, k=size, per_token=1.0, launches=1.0)


def segments(*rows: tuple[int, int, int, int]) -> Any:
    decoder = [(*row, 0) for row in rows]
    return [tables.as_row(row) for row in np.array(decoder, tables.SEGMENT)]


def run(
    operators: list[Any], parts: Any, prefill: bool = False, tokens: float = 1.0, **host: float
) -> tuple[float, np.ndarray]:
    times = np.full((len(operators), 2), np.nan)
    made = machine(**host)
    total_s = step.step_s(
        1.0, tokens, tokens, 0.0, float(prefill), 0.0, 0.0, operators, parts, made, times
    )
    return total_s, times


def test_a_step_of_empty_kernels_is_host_time() -> None:
    """Ten layers of two launches: 1 ms of step and 20 launches."""
    total_s, times = run([nothing(), nothing()], segments((0, 2, 10, 1)))
    assert total_s == pytest.approx(1e-3 + 20 * 1e-5, rel=1e-9)
    assert times[:, 1] == pytest.approx(0.0, abs=1e-12)  # none of it is owed to the kernels


def test_host_times_of_segments_add_up() -> None:
    """A second segment starts when the host has issued the first."""
    total_s, _ = run([nothing()] * 3, segments((0, 1, 7, 1), (1, 3, 5, 1)))
    assert total_s == pytest.approx(1e-3 + (7 + 10) * 1e-5, rel=1e-9)


def test_prompt_passes_pay_by_token_and_layer() -> None:
    total_s, _ = run(
        [nothing()] * 2, segments((0, 1, 1, 0), (1, 2, 4, 1)), prefill=True, tokens=50.0
    )
    by_layer = 4 * (1e-5 + 3e-5)
    assert total_s == pytest.approx(1e-3 + 50 * 1e-6 + 1e-5 + by_layer, rel=1e-9)


def test_a_step_of_long_kernels_is_gpu_time() -> None:
    """A host that costs nothing: the kernels one after the other."""
    free = {"launch_s": 1e-12, "step_s": 0.0}
    total_s, times = run([product(), product(8192.0)], segments((0, 2, 5, 1)), **free)
    made = machine()
    alone = [step.operator_s(o, 1.0, 1.0, 1.0, 0.0, made)[0] for o in (product(), product(8192.0))]
    assert times[:, 0] == pytest.approx(alone, rel=1e-9)
    assert total_s == pytest.approx(5 * sum(alone), rel=1e-6)
    assert 5 * times[:, 1].sum() == pytest.approx(total_s, rel=1e-6)  # all is owed to them


def test_equal_tracks_meet_in_a_soft_corner() -> None:
    """Host and GPU take the same: a layer takes 2^(1/p) of either."""
    gpu_s = step.operator_s(product(), 1.0, 1.0, 1.0, 0.0, machine())[0]
    total_s, _ = run([product()], segments((0, 1, 6, 1)), launch_s=gpu_s, step_s=0.0, corner=4.0)
    assert total_s == pytest.approx(6 * 2 ** (1 / 4) * gpu_s, rel=1e-9)


def test_kernels_that_are_behind_hide_later_host_time() -> None:
    """A long kernel first: the host runs ahead and issues the empty ones meanwhile."""
    long = product(65536.0)
    long_s = step.operator_s(long, 1.0, 1.0, 1.0, 0.0, machine())[0]
    launches = int(0.5 * long_s / 1e-5)
    assert launches > 10
    hidden_s, _ = run([long, nothing()], segments((0, 1, 1, 0), (1, 2, launches, 1)))
    shown_s, _ = run([nothing(), long], segments((0, 1, launches, 1), (1, 2, 1, 0)))
    assert hidden_s == pytest.approx(1e-3 + long_s, rel=0.01)
    assert shown_s == pytest.approx(1e-3 + launches * 1e-5 + long_s, rel=0.01)


def test_a_host_that_is_slower_in_the_end_hides_the_kernels_before() -> None:
    """A long kernel first, then twice as much host time: only the host's counts."""
    long = product(65536.0)
    long_s = step.operator_s(long, 1.0, 1.0, 1.0, 0.0, machine())[0]
    launches = int(2.0 * long_s / 1e-5)
    total_s, times = run([long, nothing()], segments((0, 1, 1, 0), (1, 2, launches, 1)))
    assert total_s == pytest.approx(1e-3 + (1 + launches) * 1e-5, rel=1e-6)
    assert times[0, 1] == 0.0  # nothing is owed to it


def test_a_gap_follows_every_kernel() -> None:
    free = {"launch_s": 1e-12, "step_s": 0.0}
    without_s, _ = run([product()], segments((0, 1, 5, 1)), **free)
    with_s, _ = run([product()], segments((0, 1, 5, 1)), kernel_gap_s=2e-6, **free)
    assert with_s - without_s == pytest.approx(5 * 2e-6, rel=1e-6)


def test_collectives_cost_host_time_and_part_of_their_own() -> None:
    """Four layers of one all-reduce: launch, issue and half of its time on the GPU."""
    reduce = operator(
        kind=tables.COLLECTIVE,
        collective=collective.ALL_REDUCE,
        per_token=16384.0,
        ranks=8.0,
        ranks_per_node=8.0,
        launches=1.0,
    )
    gpu_s = step.operator_s(reduce, 1.0, 1.0, 1.0, 0.0, machine())[0]
    slow = {"collective_s": 1e-2, "corner": 40.0}  # the host decides
    total_s, _ = run([reduce], segments((0, 1, 4, 1)), **slow)
    assert total_s == pytest.approx(1e-3 + 4 * (1e-5 + 1e-2 + 0.5 * gpu_s), rel=1e-6)


def all_reduce(ranks: float) -> Any:
    return operator(
        kind=tables.COLLECTIVE, collective=collective.ALL_REDUCE, per_token=16384.0, ranks=ranks,
        ranks_per_node=ranks, launches=1.0,
    )  # fmt: skip


def test_everyone_waits_for_the_slowest_of_the_ranks() -> None:
    """Four ranks: H(4) - 1 = 13/12 times the lag on all host time, not on the GPU's own."""
    reduce, part = all_reduce(4.0), segments((0, 1, 4, 1))
    gpu_s = step.operator_s(reduce, 1.0, 1.0, 1.0, 0.0, machine())[0]
    total_s, _ = run([reduce], part, collective_s=1e-2, corner=40.0, rank_lag=0.06)
    host_s = (1e-5 + 1e-2) * (1.0 + 0.06 * 13.0 / 12.0)
    assert total_s == pytest.approx(1e-3 + 4 * (host_s + 0.5 * gpu_s), rel=1e-5)


def test_a_single_rank_waits_for_nobody() -> None:
    parts = segments((0, 1, 4, 1))
    assert run([nothing()], parts, rank_lag=0.4)[0] == run([nothing()], parts)[0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 16, 72])
def test_excess_of_the_slowest_is_the_harmonic_number_less_one(ranks: int) -> None:
    harmonic = sum(1.0 / i for i in range(1, ranks + 1))
    assert step.slowest_excess(float(ranks)) == pytest.approx(harmonic - 1.0, abs=1e-3)


def test_a_slower_host_stretches_every_time_of_its_own() -> None:
    """Prompt pass of three layers and seven tokens, bound by the host."""
    prompt = {"prefill": True, "tokens": 7.0, "corner": 40.0, "launch_s": 1e-3}
    once_s, _ = run([nothing()], segments((0, 1, 3, 1)), **prompt)
    twice_s, _ = run([nothing()], segments((0, 1, 3, 1)), slowness=2.0, **prompt)
    assert twice_s == pytest.approx(2.0 * once_s, rel=1e-9)


def test_reuse_times_only_what_the_context_changes() -> None:
    """Weights are not timed again at another context; unfused scores are."""
    scores = operator(kind=tables.SCORES, n_heads=8.0, head_dim=64.0, launches=1.0, row=2)
    operators, parts, made = [product(), scores], segments((0, 2, 1, 1)), machine()
    times = np.zeros((2, 2))
    step.step_s(4.0, 1.0, 100.0, 0.0, 0.0, 0.0, 0.0, operators, parts, made, times)
    first = times[:, 0].copy()
    times[0, 0] = 123.0  # a mark: must be kept
    step.step_s(4.0, 1.0, 10000.0, 0.0, 0.0, 0.0, 1.0, operators, parts, made, times)
    assert times[0, 0] == 123.0
    assert times[1, 0] > first[1]
