"""Mixture-of-experts timing: loads and work by hand, limits, both forms, and the fit recipe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rtsim_kernels import compiled, moe, tables
from rtsim_kernels.gemm import ENDLESS_COPIES

from rtsim.catalog import load_gpu
from rtsim.errors import NotSupported
from rtsim.fitting import moe as recipe
from rtsim.kernel_records import moe_row, moe_variants
from rtsim.profile import DECLARED, load_profile

# Round numbers: 100 SMs at 1 GHz, 200 TFLOP/s, 1 TB/s, an L2 of 40 MB.
DEVICE = np.array((100.0, 1e9, 1e12, 4e7, 2e13), tables.DEVICE)
FACTS = {
    "peak_flops_per_s": 2e14, "a_bytes": 2.0, "b_bytes": 2.0, "out_bytes": 2.0,
    "weight_copies": ENDLESS_COPIES,
}  # fmt: skip
PRIORS = {c.name: c.prior for c in moe.MOE_COEFFICIENTS}
MIXTRAL = (4096.0, 14336.0, 8.0, 8.0, 2.0, 3.0)  # hidden, width, experts, local, top_k, matrices


def row(**changed: float) -> np.ndarray:
    values = {**FACTS, **PRIORS, **changed}
    names = moe.MOE.names or ()
    assert set(values) == set(names)
    return np.array(tuple(values[name] for name in names), moe.MOE)


def timed(n_tokens: float, sizes: tuple[float, ...], skew: float = 0.0, **changed: float) -> Any:
    form, device = tables.as_row(row(**changed)), tables.as_row(DEVICE)
    return moe.moe_s(n_tokens, *sizes, skew, form, device)


@pytest.mark.parametrize(
    ("n_tokens", "rows", "visited"), [(1.0, 2.0, 2.0), (3.0, 6.0, 6.0), (4.0, 8.0, 8.0),
                                      (40.0, 80.0, 8.0)],
)  # fmt: skip
def test_evenly_dealt_tokens_visit_as_many_experts_as_there_are_visits(
    n_tokens: float, rows: float, visited: float
) -> None:
    load = moe.load_of(n_tokens, 8.0, 8.0, 2.0, 0.0)
    assert (load.rows, load.visited) == pytest.approx((rows, visited))


def test_tiles_of_even_loads_by_hand() -> None:
    # 40 rows for each of 8 experts: 5 tiles of 8 rows; 2.5 of 16, half of the last one empty on
    # average; 1.25 of 32 likewise; and one each of what is larger.
    load = moe.load_of(160.0, 8.0, 8.0, 2.0, 0.0)
    assert load.blocks == pytest.approx((8 * 5, 8 * 2.75, 8 * 1.625, 8.0, 8.0))


@pytest.mark.parametrize("skew", [0.6, 1.0, 1.01, 1.2, 2.0])
def test_skewed_loads_add_up_and_visit_fewer_experts(skew: float) -> None:
    for n_tokens in (1.0, 8.0, 16.0, 100.0, 5000.0):
        even = moe.load_of(n_tokens, 128.0, 128.0, 8.0, 0.0)
        skewed = moe.load_of(n_tokens, 128.0, 128.0, 8.0, skew)
        assert skewed.rows == pytest.approx(8.0 * n_tokens)
        assert skewed.visited <= even.visited * (1 + 1e-12)
        assert skewed.blocks[0] >= skewed.blocks[4] >= 0.99 * skewed.visited


def test_share_of_experts_visited_under_a_power_law_by_hand() -> None:
    # Exponent 1 on [1, 200], as many visits as experts: loads x 1/m with mean m = 199 / ln 200.
    # E[min(1, x/m)] = 1 - (ln m - 1 + 1/m) / ln 200, in the limit of many quantiles.
    mean = 199.0 / math.log(200.0)
    expected = 1.0 - (math.log(mean) - 1.0 + 1.0 / mean) / math.log(200.0)
    load = moe.load_of(256.0, 256.0, 256.0, 1.0, 1.0)
    assert load.visited / 256.0 == pytest.approx(expected, rel=0.01)


def test_the_fullest_gpu_has_more_than_the_mean() -> None:
    assert moe.fullest_over_mean(256.0, 256.0, 1.2) == 1.0
    assert moe.fullest_over_mean(256.0, 32.0, 0.0) == 1.0
    few, many = (moe.fullest_over_mean(256.0, local, 1.01) for local in (128.0, 4.0))
    assert 1.0 < few < many <= 64.0
    halved = moe.load_of(64.0, 256.0, 128.0, 8.0, 0.0)
    assert halved.rows == pytest.approx(256.0)


def test_work_by_hand() -> None:
    form = tables.as_row(row())
    # 3 tokens to 2 of 8 experts, 4 wide to 5: 6 visits of 3 x 20 weights, to 8 (1 - (3/4)^3) =
    # 4.625 experts where tokens draw theirs at random, to 6 where they are dealt evenly.
    flops, moved = moe.moe_work(3.0, 4.0, 5.0, 8.0, 8.0, 2.0, 3.0, 0.0, form)
    assert flops == pytest.approx(2 * 6 * 60)
    assert moved == pytest.approx(4.625 * 60 * 2 + 2 * 3 * 4 * 2)
    dealt = form._replace(weight_copies=1.0)
    _, moved_dealt = moe.moe_work(3.0, 4.0, 5.0, 8.0, 8.0, 2.0, 3.0, 0.0, dealt)
    assert moved_dealt == pytest.approx(6 * 60 * 2 + 2 * 3 * 4 * 2)
    ungated, _ = moe.moe_work(3.0, 4.0, 5.0, 8.0, 8.0, 2.0, 2.0, 0.0, form)
    assert ungated == pytest.approx(flops * 2 / 3)
    half, _ = moe.moe_work(3.0, 4.0, 5.0, 8.0, 4.0, 2.0, 3.0, 0.0, form)
    assert half == pytest.approx(flops / 2)


def test_few_tokens_stream_weights_and_many_compute() -> None:
    # Mixtral: an expert is 3 x 4096 x 14336 x 2 bytes = 352 MB, so two take 0.70 ms.
    few, bound = timed(1.0, MIXTRAL)
    assert bound == tables.BOUND_MEMORY
    assert 0.705e-3 < few < 0.705e-3 / 0.8
    many, bound = timed(16384.0, MIXTRAL)
    assert bound == tables.BOUND_COMPUTE
    flops = 2 * 16384 * 2 * 3 * 4096 * 14336
    assert flops / 2e14 < many < flops / 2e14 / 0.45
    _, bound = timed(1.0, (128.0, 64.0, 8.0, 8.0, 1.0, 3.0))
    assert bound == tables.BOUND_LATENCY


def test_narrow_weights_and_warm_weights_are_faster() -> None:
    wide, _ = timed(4.0, MIXTRAL)
    narrow, _ = timed(4.0, MIXTRAL, b_bytes=0.5)
    assert narrow < 0.4 * wide
    small = (1024.0, 512.0, 8.0, 8.0, 2.0, 3.0)
    assert timed(4.0, small, weight_copies=1.0)[0] < timed(4.0, small)[0]


@pytest.mark.parametrize("skew", [0.0, 1.01])
def test_both_forms_agree(skew: float) -> None:
    sizes = [(1.0, *MIXTRAL), (777.0, 7168.0, 256.0, 256.0, 32.0, 8.0, 3.0),
             (20000.0, 2048.0, 768.0, 128.0, 128.0, 8.0, 2.0)]  # fmt: skip
    form = row(weight_copies=1.0)
    columns = np.array([(*s, skew) for s in sizes]).T
    many = compiled().moe.moe_many(*columns, form[()], DEVICE[()])
    for i, size in enumerate(sizes):
        plain = moe.moe_s(*size, skew, tables.as_row(form), tables.as_row(DEVICE))
        again = compiled().moe.moe_s(*size, skew, form[()], DEVICE[()])
        assert again[0] == pytest.approx(plain[0], rel=1e-12)
        assert again[1] == plain[1]
        assert many[i] == pytest.approx(plain[0], rel=1e-12)


# Rows of a machine -------------------------------------------------------------------------------


def test_sections_of_a_format_come_before_those_of_others() -> None:
    assert moe_variants("bf16")[0] == "bf16"
    assert moe_variants("bf16", "marlin")[0] == "bf16_marlin"
    names = moe_variants("fp8_block")
    assert names.index("fp8_block_triton") < names.index("fp8")
    assert len(set(names)) == len(names)


def test_a_row_holds_the_facts_of_its_format() -> None:
    profile = load_profile("vllm-h100-sxm5-80gb")
    gpu = load_gpu("h100-sxm5-80gb")
    form = moe_row(profile, gpu, "w4a16_mxfp4")
    assert form["peak_flops_per_s"] == gpu.peak_flops_per_s("bf16")
    assert (form["a_bytes"], form["b_bytes"], form["out_bytes"]) == (2.0, 0.53125, 2.0)
    assert form["weight_copies"] >= ENDLESS_COPIES
    a100 = load_gpu("a100-sxm4-80gb")
    notes: list[str] = []
    assert moe_row(profile, a100, "fp8", notes=notes)["a_bytes"] == 2.0
    assert "states no fp8 rate" in notes[0]
    with pytest.raises(NotSupported, match="int3"):
        moe_row(profile, gpu, "int3")


# Fit recipe --------------------------------------------------------------------------------------


def columns(count: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    experts = rng.choice([8, 64, 256], count)
    return {
        "gpu": np.full(count, "H100-SXM5-80GB"), "stack": np.full(count, "mystack"),
        "kernel": np.full(count, "fused_moe_triton"), "dtype": np.full(count, "bf16"),
        "distribution": rng.choice(["balanced", "power_law_1.2"], count),
        "num_tokens": 2 ** rng.integers(0, 14, count), "hidden_size": np.full(count, 4096),
        "intermediate_size": rng.choice([1024, 8192], count), "top_k": np.full(count, 2),
        "num_experts": experts, "tp": np.ones(count, int), "ep": rng.choice([1, 1, 4], count),
        "time_us": np.ones(count),
    }  # fmt: skip


def test_names_of_kernels_tell_their_family() -> None:
    assert recipe.backend_of("moe_torch_flow_min_latency") == "min_latency"
    assert recipe.backend_of("experts_flashinfer_cutlass_x") == "cutlass"
    assert recipe.backend_of("") == ""
    assert recipe.skew_of("power_law_x") is None


def test_unusable_rows_say_why() -> None:
    table = columns(6)
    table["dtype"] = np.array(["int3", *["bf16"] * 5])
    table["distribution"] = np.array(["balanced", "zipf", *["balanced"] * 4])
    table["num_experts"] = np.array([8, 8, 1, 8, 8, 8])
    table["ep"] = np.array([1, 1, 1, 16, 1, 1])
    table["time_us"] = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    assert recipe.usable(table).tolist() == [
        "dtype is not modelled", "distribution is not modelled",
        "more experts per token than experts", "more GPUs than experts",
        "time is not above zero", "",
    ]  # fmt: skip


def test_a_quarter_of_the_fitted_rows_has_experts_elsewhere() -> None:
    rows = recipe.rows_of(columns(200), np.arange(200))
    chosen = rows.take(recipe.choose_rows(rows, 40))
    assert len(np.unique(chosen.table_rows)) == 40
    assert int((chosen.n_local_experts < chosen.n_experts).sum()) == 10
    assert len(recipe.choose_rows(rows, 500)) == 200


def test_coefficients_of_the_model_itself_are_found_again() -> None:
    gpu = load_gpu("h100-sxm5-80gb").one_device()
    machine = recipe.machine_of(gpu, DEVICE, "bf16")
    assert machine is not None
    rows = recipe.rows_of(columns(), np.arange(60))
    true = {**PRIORS, "launch_s": 5e-5, "hbm_frac": 0.7, "compute_frac": 0.5}
    measured = recipe.predict(rows, machine, true)
    rows = type(rows)(**{**vars(rows), "measured_s": measured})
    fit = recipe.fit_rows([(rows, machine)])
    found = dict(zip(fit.names, fit.values.tolist(), strict=True))
    for name in ("launch_s", "hbm_frac", "compute_frac"):
        assert found[name] == pytest.approx(true[name], rel=0.1), name
    assert np.abs(fit.log_residuals).max() < 0.05


def test_every_coefficient_is_declared_once_with_bounds_about_its_prior() -> None:
    assert DECLARED["moe"] is moe.MOE_COEFFICIENTS
    names = [c.name for c in moe.MOE_COEFFICIENTS]
    assert len(set(names)) == len(names)
    for c in moe.MOE_COEFFICIENTS:
        assert c.lower < c.prior < c.upper, c.name
        assert c.meaning
        assert c.unit
