"""What is measured: designs cover the sizes, count the work right, and fit the schema."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from rtsim.measure import (
    FAMILIES,
    all_cases,
    attention,
    checked_families,
    gemm,
    generation,
    memory_bound,
    moe,
)
from rtsim.measure.budget import Budget, schedule
from rtsim.measure.case import CALIBRATION, COLD, VALIDATION, VARIANT, WARM, Case
from rtsim.measure.decoder import Shape
from rtsim.measure.design import Axis, design, sequence
from rtsim.measure.device import DeviceFacts
from rtsim.measure.facts import scope_of
from rtsim.measurement_schema import KINDS, RESIDENCIES, ROLES
from rtsim.operators import TRAIT_VALUES

H100 = DeviceFacts("NVIDIA H100 80GB HBM3", "cuda", compute_capability="9.0", sm_count=132,
                   memory_bytes=85_000_000_000, l2_bytes=50 * 2**20, n_gpus=8)  # fmt: skip
SCOPE = scope_of(H100)
CASES = all_cases(SCOPE)
EVERY = [case for cases in CASES.values() for case in cases]


# Designs -----------------------------------------------------------------------------------------


def test_a_longer_design_begins_with_the_shorter_one() -> None:
    axes = [Axis("m", 1, 4096), Axis("n", 64, 8192, 64)]
    long = design(axes, 40)
    assert design(axes, 10) == long[:10]
    assert len({tuple(point.values()) for point in long}) == 40


def test_a_design_leaves_no_large_gap() -> None:
    """Each quarter of each axis, and each quarter of the plane, has its share of points."""
    points = [p for p, _ in zip(sequence(2), range(64), strict=False)]
    for axis in range(2):
        values = sorted(p[axis] for p in points)
        assert max(b - a for a, b in pairwise([0.0, *values, 1.0])) < 0.07
    quarters = [sum(p[0] < 0.5 and p[1] < 0.5 for p in points),
                sum(p[0] >= 0.5 and p[1] >= 0.5 for p in points)]  # fmt: skip
    assert all(13 <= count <= 19 for count in quarters)


def test_corners_come_first_and_what_is_not_accepted_does_not_come() -> None:
    axes = [Axis("m", 1, 4096), Axis("k", 64, 4096, 64)]
    found = design(
        axes, 20, accept=lambda p: p["m"] <= 512, corners=[{"m": 1, "k": 64}, {"m": 4096}]
    )
    assert found[0] == {"m": 1, "k": 64}
    assert max(p["m"] for p in found) <= 512
    assert all(p["k"] % 64 == 0 for p in found)


def test_a_design_that_can_accept_nothing_ends() -> None:
    assert design([Axis("m", 1, 8)], 5, accept=lambda p: False) == []
    assert len(design([Axis("m", 1, 3)], 50)) == 3  # no more different points than there are


# Cases -------------------------------------------------------------------------------------------


def test_cases_are_rows_of_their_kind_and_all_different() -> None:
    assert len({case.key for case in EVERY}) == len(EVERY)
    for case in EVERY:
        columns = {c.name: c for c in KINDS[case.kind].columns}
        assert set(case.values) <= set(columns), case
        for name, column in columns.items():
            text = case.text(name)
            if column.type == "count":
                assert int(text) >= column.least, (case, name)
        assert case.role in ROLES
        assert case.values.get("residency", WARM) in RESIDENCIES
        assert case.memory_bytes <= 0.5 * SCOPE.memory_bytes, case


def test_every_family_has_rows_to_fit_and_others_to_validate() -> None:
    for family in FAMILIES:
        roles = [case.role for case in CASES[family]]
        assert CALIBRATION in roles, family
        if family not in ("ceilings", "launch"):
            assert roles.count(VALIDATION) >= 20, family


def test_no_size_is_both_fitted_and_validated() -> None:
    def size(case: Case) -> tuple[object, ...]:
        left_out = ("role", "residency")
        return (case.kind, *((k, v) for k, v in case.values.items() if k not in left_out))

    fitted = {size(case) for case in EVERY if case.role == CALIBRATION}
    assert not fitted & {size(case) for case in EVERY if case.role == VALIDATION}


def test_designs_are_the_same_every_time() -> None:
    again = all_cases(SCOPE)
    assert [c.key for cases in again.values() for c in cases] == [c.key for c in EVERY]


def test_products_of_every_format_cover_small_and_large() -> None:
    for dtype in SCOPE.products:
        rows = [c for c in CASES["gemm"] if c.values["dtype"] == dtype and c.role == CALIBRATION]
        tokens = [c.number("m") for c in rows if c.values["op"] == "linear"]
        assert min(tokens) <= 32, dtype
        assert max(tokens) >= 4096, dtype
        assert {c.values["residency"] for c in rows} == {COLD, WARM}
        aligned = {c.number(n) % 16 for c in rows for n in ("n", "k") if c.values["op"] == "linear"}
        assert aligned == {0}


def test_work_of_a_product() -> None:
    case = gemm.case_of(
        "bf16", "linear", {"m": 3, "n": 128, "k": 256, "batch": 1}, VALIDATION, COLD
    )
    assert case.flops == 2 * 3 * 128 * 256
    assert case.moved_bytes == 2 * (3 * 256 + 128 * 256 + 3 * 128)
    assert case.rotated_bytes == 2 * 128 * 256  # the weights
    four_bits = gemm.case_of("int4_wo", "linear", {"m": 3, "n": 128, "k": 256, "batch": 1},
                             VALIDATION, COLD)  # fmt: skip
    assert four_bits.rotated_bytes == 128 * 256 * (0.5 + 2.0 / 128)


def test_work_of_attention() -> None:
    prompt = {"batch": 2, "query_tokens": 100, "num_heads": 8, "group": 4, "head_dim": 64}
    case = attention.case_of(SCOPE, prompt, "sdpa_flash", CALIBRATION, WARM)
    assert case.kind == "attention_prefill"
    assert case.flops == 4 * 2 * 8 * 64 * (100 * 100 / 2)  # half the square is masked
    one = {"batch": 2, "context_tokens": 100, "num_heads": 8, "group": 4, "head_dim": 64}
    case = attention.case_of(SCOPE, one, "sdpa_flash", CALIBRATION, COLD)
    assert case.kind == "attention_decode"
    assert case.flops == 4 * 2 * 8 * 64 * 100
    cache = 2 * 2 * 2 * 2 * 64 * 100  # keys and values, 2 bytes, 2 sequences, 2 heads
    queries = 2 * 2 * 2 * 8 * 64  # in and out, 2 bytes, 2 sequences, 8 heads
    assert case.moved_bytes == cache + queries


def test_work_of_memory_bound_operators() -> None:
    def moved(name: str) -> float:
        return memory_bound.case_of(
            SCOPE, name, {"rows": 10, "cols": 128}, CALIBRATION, COLD
        ).moved_bytes

    elements = 10 * 128
    assert moved("copy") == 2 * 2 * elements
    assert moved("add") == moved("silu_and_mul") == 3 * 2 * elements
    assert moved("fp8_static_quantize") == 3 * elements
    assert moved("argmax") == 2 * elements + 8 * 10


def test_work_of_experts_and_of_generations() -> None:
    size = {
        "num_tokens": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_experts": 16,
        "top_k": 2,
    }
    case = moe.case_of(SCOPE, size, CALIBRATION, COLD)
    assert case.flops == 2 * (4 * 2) * 3 * 64 * 128
    assert case.moved_bytes >= 8 * 3 * 64 * 128 * 2  # eight visits, eight experts
    assert case.moved_bytes < 16 * 3 * 64 * 128 * 2
    shape = Shape("plain", 3, 64, 4, 4, 256, 1000, gated_mlp=0)
    assert shape.layer_parameters == 12 * 64 * 64
    case = generation.case_of(SCOPE, shape, "pytorch", (1, 10, 1), CALIBRATION, first=False)
    # 24 b p h^2 + 4 b p^2 h a layer where nothing is masked; half of the second where it is.
    assert case.flops == 3 * (24 * 10 * 64**2 + 2 * 100 * 64) + 2 * 1000 * 64


def test_modes_state_traits_that_there_are() -> None:
    for text in generation.TRAITS.values():
        traits = dict(word.split("=") for word in text.split())
        assert traits["attention"] in TRAIT_VALUES["attention"]
        assert traits["logits"] in TRAIT_VALUES["logits"]


# What a device offers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "there", "absent", "attention_kernel"),
    [
        ("7.0", {"fp32", "fp16"}, {"bf16", "tf32", "int8_sq", "int4_wo"}, "sdpa_efficient"),
        ("8.0", {"tf32", "bf16", "int8_sq", "int4_wo"}, {"fp8_static"}, "sdpa_flash"),
        ("8.9", {"fp8_static"}, set(), "sdpa_flash"),
        ("12.0", {"fp8_static", "bf16"}, set(), "sdpa_flash"),
    ],
)  # fmt: skip
def test_formats_follow_the_compute_capability(
    capability: str, there: set[str], absent: set[str], attention_kernel: str
) -> None:
    scope = scope_of(DeviceFacts("a GPU", "cuda", compute_capability=capability))
    assert there <= set(scope.products)
    assert not absent & set(scope.products)
    assert scope.attention == attention_kernel


def test_a_kernel_without_grouped_heads_is_not_asked_for_them() -> None:
    scope = scope_of(DeviceFacts("V100", "cuda", compute_capability="7.0", memory_bytes=32 * 10**9))
    for case in [*attention.cases(scope), *generation.cases(scope)]:
        assert case.values["num_heads"] == case.values["num_kv_heads"], case
        assert case.values["dtype"] == "fp16"


def test_experts_are_a_loop_where_there_is_no_grouped_product() -> None:
    def kernels(capability: str) -> set[object]:
        facts = DeviceFacts("a GPU", "cuda", compute_capability=capability, memory_bytes=80 * 10**9)
        return {case.values["kernel"] for case in moe.cases(scope_of(facts))}

    assert kernels("9.0") == kernels("10.0") == {"torch_grouped_mm"}
    assert kernels("8.0") == kernels("12.0") == {"torch_expert_loop"}


def test_small_memory_gets_smaller_sizes() -> None:
    small = scope_of(DeviceFacts("a GPU", "cuda", compute_capability="8.9", memory_bytes=8 * 10**9))
    assert max(c.memory_bytes for cs in all_cases(small).values() for c in cs) <= 4e9


def test_one_gpu_has_no_collectives_and_eight_have_them_all() -> None:
    assert all_cases(scope_of(DeviceFacts("one", "cuda", memory_bytes=10**10)), ["collective"]) == {
        "collective": []
    }
    counts = {case.number("num_gpus") for case in CASES["collective"]}
    assert counts == {2, 4, 8}


def test_variants_are_marked_as_such() -> None:
    kernels = {c.values["kernel"] for c in CASES["attention"] if c.role != VARIANT}
    assert kernels == {"sdpa_flash"}
    assert {"sdpa_math", "sdpa_cudnn", "flex_attention"} <= {
        c.values["kernel"] for c in CASES["attention"] if c.role == VARIANT
    }


def test_ceilings_always_come_along() -> None:
    assert checked_families(["attention"]) == ("ceilings", "attention")
    assert checked_families([]) == FAMILIES


# Budget ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call_s", [1e-7, 2e-6, 3e-5, 1e-3, 0.2])
def test_a_replay_is_long_enough_for_events_and_a_row_not_too_long(call_s: float) -> None:
    calls, replays = schedule(call_s)
    assert calls * call_s >= 100e-6 or calls == 32
    assert replays >= 7
    assert calls * replays * call_s <= max(0.06, 7 * call_s)


def test_a_large_case_costs_more_and_what_it_took_is_learnt() -> None:
    budget = Budget.of(H100)
    size = {"m": 16, "n": 1024, "k": 1024, "batch": 1}
    small = gemm.case_of("bf16", "linear", size, CALIBRATION, COLD)
    large = gemm.case_of(
        "bf16", "linear", {**size, "m": 16384, "n": 16384, "k": 8192}, CALIBRATION, COLD
    )
    assert budget.cost_s(large) > budget.cost_s(small) > 0
    before = budget.cost_s(small)
    for _ in range(30):
        budget.learn(small, 3.0 * before)
    assert budget.cost_s(small) == pytest.approx(3.0 * before, rel=0.05)
    other = memory_bound.case_of(SCOPE, "copy", {"rows": 8, "cols": 512}, CALIBRATION, COLD)
    fresh = Budget.of(H100)
    assert budget.cost_s(other) == fresh.cost_s(other)
    assert math.isfinite(budget.call_s(other))
