"""The analytic steady state against the event simulation of the same closed loop."""

from __future__ import annotations

import numpy as np
import pytest
from closed_loops import SIZES, differing, engine, simulated
from rtsim_kernels import compiled, lockstep, time_heap

from rtsim.lengths import fixed
from rtsim.serving.arrivals import Generated
from rtsim.serving.deployment import Deployment
from rtsim.serving.simulate import simulate
from rtsim.serving.steady import steady_state


@pytest.mark.parametrize(
    ("name", "stack", "sizes", "in_flight"),
    [
        ("dense", "vllm", "even", 1),
        ("dense", "vllm", "even", 16),
        ("dense", "vllm", "even", 64),
        ("dense", "vllm", "prompts", 4),
        ("dense", "vllm", "outputs", 64),
        ("dense", "trtllm", "even", 64),
        ("dense", "trtllm", "prompts", 4),
        ("dense", "sglang", "even", 64),
        ("dense", "sglang", "even", 128),
        ("dense", "sglang", "prompts", 16),
        ("experts", "vllm", "even", 16),
        ("experts", "trtllm", "outputs", 64),
        ("experts", "sglang", "even", 16),
        ("groups", "vllm", "even", 32),
        ("groups", "vllm", "outputs", 128),
        ("groups", "trtllm", "even", 32),
        ("groups", "sglang", "outputs", 128),
    ],
)
def test_means_are_those_of_the_simulation(
    name: str, stack: str, sizes: str, in_flight: int
) -> None:
    made = engine(name, stack)
    state = steady_state(made, in_flight, *SIZES[sizes])
    assert state.limit == "concurrency"
    ttft_s, tpot_s, rate = simulated(made, in_flight, differing(*SIZES[sizes]))
    assert state.ttft_s == pytest.approx(ttft_s, rel=0.05)
    assert state.tpot_s == pytest.approx(tpot_s, rel=0.05)
    assert state.request_throughput == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize(
    ("in_flight", "prompt", "output"), [(494, 503, 32), (700, 503, 32), (1000, 867, 117)]
)
def test_full_steps_carry_what_the_simulation_does(
    in_flight: int, prompt: int, output: int
) -> None:
    """Around and beyond the load at which prompts fill every step."""
    made = engine("dense", "vllm")
    state = steady_state(made, in_flight, prompt, output)
    means = simulated(made, in_flight, differing(prompt, output))
    assert state.request_throughput == pytest.approx(means.request_throughput, rel=0.04)


def test_lockstep_of_groups_is_a_large_part_of_their_time() -> None:
    """What a group alone would take is far from what the simulation gives."""
    made = engine("groups", "vllm")
    state = steady_state(made, 32, *SIZES["even"])
    alone_s = state.decode_step_s + (state.itl_mixed_s - state.decode_step_s) * 3 / 199
    assert state.tpot_s is not None
    assert state.tpot_s > 1.3 * alone_s


def test_one_request_waits_for_nobody() -> None:
    """With eight groups and one request in all, no step of another group is in its way."""
    state = steady_state(engine("groups", "vllm"), 1, 300, 100)
    assert state.ttft_s == pytest.approx(state.ttft_alone_s, rel=1e-6)


@pytest.mark.parametrize("in_flight", [16, 64])
def test_equal_lengths_meet_where_prompts_go_first(in_flight: int) -> None:
    """All prompts of a round come together: users wait for them before, not between, tokens."""
    made = engine("dense", "sglang")
    state = steady_state(made, in_flight, 4000, 500, equal_lengths=True)
    ttft_s, tpot_s, _ = simulated(made, in_flight, fixed(4000, 500))
    assert state.ttft_s == pytest.approx(ttft_s, rel=0.07)
    assert state.tpot_s == pytest.approx(tpot_s, rel=0.05)
    assert state.ttft_s > 2.0 * steady_state(made, in_flight, 4000, 500).ttft_s


@pytest.mark.parametrize(("mean", "groups"), [(0.01, 8), (0.3, 4), (2.5, 8), (20.0, 16)])
def test_prompts_of_groups_in_lockstep_by_drawing_them(mean: float, groups: int) -> None:
    drawn = np.random.default_rng(3).poisson(mean * groups, 200_000)
    some = drawn > 0
    found = lockstep.prompts_in_lockstep(mean, float(groups))
    assert found.any_chance == pytest.approx(some.mean(), abs=5e-3)
    assert found.chance == pytest.approx(np.minimum(drawn, groups).mean() / groups, rel=0.03)
    assert found.most == pytest.approx(np.ceil(drawn[some] / groups).mean(), rel=0.03)
    with_some = np.minimum(drawn, groups)[some].sum()
    assert found.together == pytest.approx(drawn.sum() / with_some, rel=0.03)


def test_times_come_out_in_order() -> None:
    generator = np.random.default_rng(5)
    heap, kept = np.zeros(64), []
    for _ in range(500):
        if kept and (len(kept) == 64 or generator.random() < 0.4):
            assert heap[0] == min(kept)
            time_heap.drop_first(heap, len(kept))
            kept.remove(min(kept))
        else:
            time_s = float(generator.random())
            time_heap.add_time(time_s, heap, len(kept))
            kept.append(time_s)
    assert kept


def test_a_closed_loop_keeps_its_number() -> None:
    """In the engine or on the way there are `in_flight` requests at any time."""
    made = engine("dense", "vllm")
    result = simulate(Deployment(made), Generated(1.0, differing(400, 60), 800), concurrency=20)
    outside = float(made.row["request_s"]) * result.n_finished / result.duration_s
    assert result.mean_running + result.mean_waiting + outside == pytest.approx(20.0, rel=0.05)
    assert compiled().time_heap is not None
