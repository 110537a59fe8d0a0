"""Memory-bound operators: hand-derived cases, both forms of the core, and the fit recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rtsim_kernels import compiled, memory_bound, tables

from rtsim.fitting import memory_bound as recipe

# Round numbers: 100 SMs at 1 GHz, 1 TB/s, an L2 of 10 MB.
DEVICE = np.array((100.0, 1e9, 1e12, 1e7, 2e13), tables.DEVICE)
PLAIN = {
    "threads_per_sm": 2048.0,
    "launch_s": 2e-6,
    "stream_frac": 0.8,
    "l2_bytes_per_clock": 50.0,  # 5 TB/s over the GPU
    "resident_frac": 1.0,
    "pointwise_slots": 11.0,
    "norm_slots": 59.0,
    "layer_norm_slots": 24.0,
    "softmax_slots": 12.0,
    "gated_slots": 48.0,
    "rotary_slots": 60.0,
    "gather_slots": 256.0,
    "quantize_slots": 12.0,
    "block_s": 1e-7,
    "row_s": 2e-6,
    "turn_s": 5e-7,
    "crossover": 8.0,  # nearly the largest of the rates
}
SLOT_S = 1 / (128 * 1e9)  # one issue slot of one SM


def row(**changed: float) -> np.ndarray:
    values = {**PLAIN, **changed}
    names = memory_bound.MEMORY_BOUND.names or ()
    assert set(values) == set(names)
    return np.array(tuple(values[name] for name in names), memory_bound.MEMORY_BOUND)


def timed(
    name: str,
    rows: float,
    cols: float,
    width: float = 2.0,
    warm_frac: float = 0.0,
    **changed: float,
) -> tuple[float, int]:
    work = memory_bound.OPERATORS[name]
    return memory_bound.memory_bound_s(
        work.kind,
        rows,
        cols,
        *memory_bound.operator_bytes(name, rows, cols, width, width),
        warm_frac,
        tables.as_row(row(**changed)),
        tables.as_row(DEVICE),
    )


def test_nothing_to_do_takes_no_time() -> None:
    assert timed("add", 0.0, 4096.0)[0] == 0.0


def test_the_smallest_kernel_costs_its_launch_and_one_turn() -> None:
    seconds, bound = timed("add", 1.0, 1.0)
    assert seconds == pytest.approx(2.5e-6, rel=1e-3)
    assert bound == tables.BOUND_LATENCY


def test_a_long_stream_runs_at_the_achieved_bandwidth() -> None:
    # 1e9 elements of 2 bytes, two read and one written: 6 GB at 0.8 TB/s.
    seconds, bound = timed("add", 1e5, 1e4)
    assert seconds == pytest.approx(6e9 / 0.8e12 + 2.5e-6, rel=1e-3)
    assert bound == tables.BOUND_MEMORY


def test_warm_inputs_run_from_l2_while_they_fit() -> None:
    # 1.2 MB in a 10 MB L2.
    warm = timed("add", 100.0, 2000.0, warm_frac=1.0)[0]
    cold = timed("add", 100.0, 2000.0)[0]
    assert cold == pytest.approx(2.5e-6 + 1.2e6 / 0.8e12, rel=1e-3)
    issue = 2e5 * 12 * SLOT_S / 100
    assert issue < 1.2e6 / 5e12
    assert warm == pytest.approx(2.5e-6 + 1.2e6 / 5e12, rel=1e-2)
    # Ten times the L2: as if cold.
    large = timed("add", 1e4, 2000.0, warm_frac=1.0)[0]
    assert large == pytest.approx(timed("add", 1e4, 2000.0)[0], rel=1e-3)


def test_half_is_found_at_the_resident_share() -> None:
    # 6 MB with half of a 12 MB L2 resident: half of the bytes come from memory.
    device = DEVICE.copy()
    device["l2_bytes"] = 1.2e7
    read, written, flops = memory_bound.operator_bytes("add", 100.0, 1e4, 2, 2)
    seconds = memory_bound.memory_bound_s(
        memory_bound.POINTWISE, 100.0, 1e4, read, written, flops, 1.0,
        tables.as_row(row(resident_frac=0.5)), tables.as_row(device),
    )[0]  # fmt: skip
    assert seconds == pytest.approx(2.5e-6 + 3e6 / 0.8e12, rel=1e-3)


def test_a_lookup_is_bound_by_its_instructions() -> None:
    # 256 slots per element on 100 SMs of 128 lanes: 50 elements per ns.
    seconds, bound = timed("embedding", 4000.0, 2500.0)
    assert seconds == pytest.approx(2e-6 + 2 * 5e-7 + 1e7 / 50e9, rel=1e-3)
    assert bound == tables.BOUND_COMPUTE


def test_one_row_costs_its_latency() -> None:
    # 4,096 elements on 1,024 threads: four turns, half as long again where loads miss the L2.
    seconds = timed("rmsnorm", 1.0, 4096.0, warm_frac=1.0)[0]
    assert seconds == pytest.approx(2e-6 + 2e-6 + 4 * 5e-7, rel=1e-3)
    cold = timed("rmsnorm", 1.0, 4096.0)[0]
    assert cold == pytest.approx(2e-6 + 2e-6 + 4 * 5e-7 * 1.5, rel=1e-3)
    # A gated activation reduces nothing.
    gated = timed("silu_and_mul", 1.0, 4096.0, warm_frac=1.0, gated_slots=1.0)[0]
    assert gated == pytest.approx(2e-6 + 4 * 5e-7, rel=1e-3)


def test_rows_beyond_one_per_sm_queue_on_it() -> None:
    # 64 slots and 4,096 elements: 2.05 us and the start of a block; two blocks hide 4 us.
    busy = 1e-7 + 4096 * 64 * SLOT_S
    latency = 2e-6 + 4 * 5e-7
    one = timed("rmsnorm", 100.0, 4096.0, warm_frac=1.0)[0]
    assert one == pytest.approx(2e-6 + latency, rel=1e-3)
    two = timed("rmsnorm", 200.0, 4096.0, warm_frac=1.0)[0]
    assert busy > latency / 2
    assert two == pytest.approx(2e-6 + 2 * busy, rel=1e-2)
    # An SM with 1,536 threads holds one block of 1,024 and cannot hide the latency.
    narrow = timed("rmsnorm", 200.0, 4096.0, warm_frac=1.0, threads_per_sm=1536.0)[0]
    assert narrow == pytest.approx(2e-6 + 2 * latency, rel=1e-2)


def test_idle_warps_issue_too() -> None:
    # 1,025 elements need a second turn of 1,024 threads.
    full = timed("silu_and_mul", 1e5, 2048.0, gated_slots=500.0)[0]
    started = timed("silu_and_mul", 1e5, 1025.0, gated_slots=500.0)[0]
    assert started > 0.99 * full


def test_norms_read_twice_where_the_l2_is_small() -> None:
    huge = 1e6
    twice = timed("layernorm", huge, 8192.0, layer_norm_slots=1.0, block_s=1e-9, row_s=5e-8,
                  turn_s=2e-8)[0]  # fmt: skip
    bytes_moved = huge * 8192 * 2 * 2
    in_flight = 100 * 2048 * (8192 / 128) * 2
    expected = (bytes_moved + bytes_moved / 2 * in_flight / (in_flight + 1e7)) / 0.8e12
    assert twice == pytest.approx(expected, rel=1e-3)
    # Short rows of a softmax stay in registers.
    short = timed("softmax", huge, 1024.0, softmax_slots=1.0, block_s=1e-9, turn_s=2e-8,
                  row_s=5e-8)[0]  # fmt: skip
    assert short < 1.02 * (huge * 1024 * 4 / 0.8e12)


def test_counts_of_named_operators() -> None:
    counted = memory_bound.operator_bytes("silu_and_mul", 3, 5, 2, 2)
    assert counted[:2] == (60.0, 30.0)
    assert memory_bound.operator_bytes("add", 3, 5, 4, 4) == (120.0, 60.0, 15.0)
    # Quantisation reads 2 bytes and writes 1.
    assert memory_bound.operator_bytes("fp8_static_quantize", 3, 5, 2, 1)[:2] == (30.0, 15.0)
    for name, work in memory_bound.OPERATORS.items():
        assert 0 <= work.kind < len(memory_bound.KIND_NAMES), name
        assert work.read_elements >= 1, name
        assert work.written_elements >= 1, name


def test_compiled_and_interpreted_agree() -> None:
    record = row(crossover=2.3)
    rng = np.random.default_rng(11)
    n = 400
    names = rng.choice(list(memory_bound.OPERATORS), n)
    rows = np.floor(np.exp(rng.uniform(0, 13, n)))
    cols = np.floor(np.exp(rng.uniform(0, 11, n)))
    warm = rng.uniform(0, 1, n)
    kind = np.array([memory_bound.OPERATORS[name].kind for name in names.tolist()])
    counts = np.array(
        [
            memory_bound.operator_bytes(m, r, c, 2, 2)
            for m, r, c in zip(names, rows, cols, strict=True)
        ]
    )
    core = compiled().memory_bound
    seconds = core.memory_bound_many(
        kind, rows, cols, counts[:, 0], counts[:, 1], counts[:, 2], warm, record[()], DEVICE[()]
    )
    named, device = tables.as_row(record), tables.as_row(DEVICE)
    for i in range(n):
        arguments: list[Any] = [
            int(kind[i]), float(rows[i]), float(cols[i]), *counts[i].tolist(), float(warm[i]),
        ]  # fmt: skip
        expected, bound = memory_bound.memory_bound_s(*arguments, named, device)
        assert seconds[i] == pytest.approx(expected, rel=1e-12)
        assert core.memory_bound_s(*arguments, record[()], DEVICE[()])[1] == bound


def test_declared_coefficients_are_within_their_bounds() -> None:
    for c in memory_bound.MEMORY_BOUND_COEFFICIENTS:
        assert c.lower <= c.prior <= c.upper, c.name
        assert c.unit
        assert c.meaning


# The fit recipe ------------------------------------------------------------------------------

MACHINE = recipe.Machine(DEVICE, 2048.0)


def table(names: list[str], each: int = 60, stack: str = "sarathi") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    n = len(names) * each
    return {
        "gpu": np.full(n, "made-up"),
        "stack": np.full(n, stack),
        "dtype": np.full(n, "fp16"),
        "op": np.repeat(names, each),
        "rows": np.floor(np.exp(rng.uniform(0, 10, n))).astype(np.int64),
        "cols": 2 ** rng.integers(8, 14, n),
        "time_us": np.ones(n),
    }


def test_fit_recovers_the_times_it_was_made_from() -> None:
    columns = table(["add", "rmsnorm", "silu_and_mul", "embedding"])
    truth = {c.name: c.prior for c in memory_bound.MEMORY_BOUND_COEFFICIENTS}
    truth |= {"stream_frac": 0.75, "gather_slots": 400.0, "launch_s": 2e-6}
    every = np.arange(len(columns["op"]))
    columns["time_us"] = 1e6 * recipe.predict(recipe.rows_of(columns, every), MACHINE, truth)
    rows = recipe.rows_of(columns, every)
    chosen = recipe.choose_rows(rows, 40)
    names, counts = np.unique(rows.op[chosen], return_counts=True)
    assert len(names) == 4
    assert set(counts.tolist()) == {10}
    fit = recipe.fit_rows([(rows.take(chosen), MACHINE)])
    fitted = recipe.named(fit)
    predicted = recipe.predict(rows, MACHINE, fitted)
    assert np.abs(predicted / rows.measured_s - 1).mean() < 0.02
    assert fitted["gather_slots"] == pytest.approx(400.0, rel=0.1)
    assert fitted["quantize_slots"] == pytest.approx(truth["quantize_slots"])


def test_composites_and_eager_calls() -> None:
    truth = {c.name: c.prior for c in memory_bound.MEMORY_BOUND_COEFFICIENTS}
    columns = table(["add", "add3"], each=1)
    columns["rows"][:], columns["cols"][:] = 512, 1024
    one, two = recipe.predict(recipe.rows_of(columns, np.arange(2)), MACHINE, truth)
    assert two == pytest.approx(2 * one)
    eager = table(["layernorm"], each=1, stack="pytorch")
    in_layer = table(["layernorm"], each=1)
    further = [
        recipe.predict(recipe.rows_of(t, np.arange(1)), MACHINE, truth)[0]
        for t in (eager, in_layer)
    ]
    assert further[0] - further[1] == pytest.approx(1.5 * truth["launch_s"])


def test_unusable_rows_say_why() -> None:
    columns = table(["add"], each=4)
    columns["op"] = np.array(["add", "conv", "add", "add"])
    columns["dtype"] = np.array(["fp16", "fp16", "int4", "fp16"])
    columns["time_us"] = np.array([1.0, 1.0, 1.0, -1.0])
    assert recipe.usable(columns).tolist() == [
        "",
        "unknown operator",
        "dtype is not of 16 or 32 bits",
        "time is not above zero",
    ]


def test_cross_validated_sigma_is_the_scatter() -> None:
    columns = table(["add", "rmsnorm"], each=100)
    truth = {c.name: c.prior for c in memory_bound.MEMORY_BOUND_COEFFICIENTS}
    every = np.arange(200)
    noise = np.exp(np.random.default_rng(2).normal(0.0, 0.06, 200))
    exact = recipe.predict(recipe.rows_of(columns, every), MACHINE, truth)
    columns["time_us"] = 1e6 * exact * noise
    sigma = recipe.cross_validated_sigma([(recipe.rows_of(columns, every), MACHINE)])
    assert 0.045 < sigma < 0.08
