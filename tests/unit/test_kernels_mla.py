"""Latent attention: work by hand, what splits and absorption do, both forms, the fit recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rtsim_kernels import compiled, mla, tables

from rtsim.catalog import load_gpu
from rtsim.fitting import mla as recipe
from rtsim.kernel_records import absorb_row, absorb_variants, mla_decode_row, mla_prefill_row
from rtsim.profile import DECLARED, load_profile

# Round numbers: 100 SMs at 1 GHz, 500 TFLOP/s, 2 TB/s, an L2 of 40 MB.
DEVICE = np.array((100.0, 1e9, 2e12, 4e7, 2e13), tables.DEVICE)
FACTS = {"peak_flops_per_s": 5e14, "query_element_bytes": 2.0, "kv_element_bytes": 2.0}
COEFFICIENTS = {"prefill": mla.MLA_PREFILL_COEFFICIENTS, "decode": mla.MLA_DECODE_COEFFICIENTS}
DTYPES = {"prefill": mla.MLA_PREFILL, "decode": mla.MLA_DECODE}
DEEPSEEK = (128.0, 64.0, 128.0, 512.0)  # nope, rope, value, latent


def row(kind: str, **changed: float) -> np.ndarray:
    values = {**FACTS, **{c.name: c.prior for c in COEFFICIENTS[kind]}, **changed}
    names = DTYPES[kind].names or ()
    assert set(values) == set(names)
    return np.array(tuple(values[name] for name in names), DTYPES[kind])


def decode(
    n_sequences: float, context: float, n_heads: float, warm: float = 0.0, **changed: float
) -> Any:
    form = tables.as_row(row("decode", **changed))
    return mla.mla_decode_s(
        n_sequences, context, n_heads, 512.0, 64.0, form, tables.as_row(DEVICE), warm
    )


def prefill(
    n_sequences: float, new_tokens: float, context: float, n_heads: float, **changed: float
) -> Any:
    form = tables.as_row(row("prefill", **changed))
    return mla.mla_prefill_s(
        n_sequences, new_tokens, context, n_heads, *DEEPSEEK, form, tables.as_row(DEVICE)
    )


def test_decode_work_by_hand() -> None:
    form = tables.as_row(row("decode", kv_element_bytes=1.0))
    # 2 sequences x 3 heads x 10 keys, products of 4 + 2 and of 4; a cache of 2 x 10 x 6 bytes.
    flops, moved = mla.mla_decode_work(2.0, 10.0, 3.0, 4.0, 2.0, form)
    assert flops == 2 * 2 * 3 * 10 * (6 + 4)
    assert moved == 2 * 10 * 6 + 2 * 3 * (6 + 4) * 2


def test_prefill_work_by_hand() -> None:
    form = tables.as_row(row("prefill"))
    # 3 new tokens at the end of 5 keys see 3, 4 and 5: 12 pairs, for 2 heads of 3 + 2 and 4.
    flops, moved = mla.mla_prefill_work(1.0, 3.0, 5.0, 2.0, 3.0, 2.0, 4.0, 16.0, form)
    assert flops == 2 * 2 * 12 * (5 + 4)
    assert moved == (3 * 2 * 9 + 5 * 2 * 9) * 2
    absorbed = tables.as_row(row("prefill", absorbed=1.0))
    flops, moved = mla.mla_prefill_work(1.0, 3.0, 5.0, 2.0, 3.0, 2.0, 4.0, 16.0, absorbed)
    assert flops == 2 * 2 * 12 * (18 + 16)
    assert moved == (3 * 2 * 34 + 5 * 18) * 2


def test_the_cache_is_read_once_for_all_heads() -> None:
    fast = {"intake_bytes": 64.0}
    one, bound = decode(64.0, 65536.0, 1.0, **fast)
    assert bound == tables.BOUND_MEMORY
    sixteen, _ = decode(64.0, 65536.0, 16.0, **fast)
    assert sixteen < 1.02 * one
    cache_s = 64 * 65536 * 576 * 2 / 2e12
    assert cache_s < one < cache_s / 0.7
    many, bound = decode(64.0, 65536.0, 128.0, **fast)
    assert bound == tables.BOUND_COMPUTE
    assert many > 1.5 * one


def test_a_context_that_is_not_split_leaves_the_gpu_idle() -> None:
    split, _ = decode(1.0, 65536.0, 16.0)
    whole, _ = decode(1.0, 65536.0, 16.0, most_splits=1.0)
    assert whole > 10.0 * split
    eight, _ = decode(1.0, 65536.0, 16.0, least_splits=8.0, most_splits=8.0)
    assert split < eight < whole
    # Cut in eight for nothing: parts are written and read.
    assert (
        decode(512.0, 8.0, 128.0, least_splits=8.0, most_splits=8.0)[0]
        > (decode(512.0, 8.0, 128.0)[0])
    )


def test_short_contexts_are_latency_and_a_warm_cache_is_faster() -> None:
    assert decode(1.0, 16.0, 16.0)[1] == tables.BOUND_LATENCY
    assert decode(8.0, 2048.0, 16.0, warm=1.0)[0] < decode(8.0, 2048.0, 16.0)[0]


def test_long_prompts_compute_and_absorption_costs_three_times_the_work() -> None:
    seconds, bound = prefill(1.0, 16384.0, 16384.0, 128.0)
    assert bound == tables.BOUND_COMPUTE
    flops = 128 * 16384 * 16385 * 320
    assert flops / 5e14 < seconds < flops / 5e14 / 0.45
    absorbed, _ = prefill(1.0, 16384.0, 16384.0, 128.0, absorbed=1.0)
    assert absorbed / seconds == pytest.approx((576 + 512) / 320, rel=0.2)
    assert prefill(1.0, 1.0, 1.0, 1.0)[1] == tables.BOUND_LATENCY


@pytest.mark.parametrize("warm", [0.0, 1.0])
def test_both_forms_agree(warm: float) -> None:
    kernels = compiled().mla
    sizes = [(1.0, 1.0, 1.0), (7.0, 300.0, 16.0), (300.0, 5000.0, 128.0), (2.0, 131072.0, 128.0)]
    device = np.repeat(DEVICE[None], len(sizes))
    ones = np.ones(len(sizes))
    n_sequences, context, n_heads = np.array(sizes).T
    form = row("decode")
    many = kernels.mla_decode_many(
        n_sequences, context, n_heads, 512 * ones, 64 * ones, warm * ones,
        np.repeat(form[None], len(sizes)), device,
    )  # fmt: skip
    for i, (b, c, h) in enumerate(sizes):
        plain = decode(b, c, h, warm)
        again = kernels.mla_decode_s(b, c, h, 512.0, 64.0, form[()], DEVICE[()], warm)
        assert again[0] == pytest.approx(plain[0], rel=1e-12)
        assert again[1] == plain[1]
        assert many[i] == pytest.approx(plain[0], rel=1e-12)
    form = row("prefill")
    many = kernels.mla_prefill_many(
        n_sequences, np.ceil(context / 2), context, n_heads, 128 * ones, 64 * ones, 128 * ones,
        512 * ones, warm * ones, np.repeat(form[None], len(sizes)), device,
    )  # fmt: skip
    for i, (b, c, h) in enumerate(sizes):
        plain = mla.mla_prefill_s(
            b, np.ceil(c / 2), c, h, *DEEPSEEK, tables.as_row(form), tables.as_row(DEVICE), warm
        )
        assert many[i] == pytest.approx(plain[0], rel=1e-12)


# Rows of a machine -------------------------------------------------------------------------------


def test_rows_hold_the_facts_of_their_formats() -> None:
    profile = load_profile("trtllm-h100-sxm5-80gb")
    gpu = load_gpu("h100-sxm5-80gb")
    form = mla_decode_row(profile, gpu, "bf16", "fp8")
    assert form["peak_flops_per_s"] == gpu.peak_flops_per_s("fp8")
    assert (form["query_element_bytes"], form["kv_element_bytes"]) == (2.0, 1.0)
    form = mla_prefill_row(profile, gpu, "bf16", "bf16")
    assert form["peak_flops_per_s"] == gpu.peak_flops_per_s("bf16")
    assert absorb_variants("bf16")[0] == "absorb"
    assert absorb_row(profile, gpu, "fp8")["b_bytes"] == 1.0


# Fit recipe --------------------------------------------------------------------------------------


def columns(op: str, count: int = 48) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    context = 2 ** rng.integers(5, 15, count)
    one = np.ones(count, int)
    return {
        "gpu": np.full(count, "H100-SXM5-80GB"), "stack": np.full(count, "mystack"),
        "op": np.full(count, op), "dtype": np.full(count, "bf16"),
        "kv_dtype": np.full(count, "bf16"), "gemm_dtype": np.full(count, ""),
        "num_heads": 2 ** rng.integers(0, 8, count), "batch": 2 ** rng.integers(0, 8, count),
        "query_tokens": context if op == "context_attention" else one,
        "context_tokens": context, "time_us": np.ones(count),
    }  # fmt: skip


def test_unusable_rows_say_why() -> None:
    table = columns("generation_attention", 6)
    table["op"] = np.array(["indexer", "context_module", *["generation_attention"] * 4])
    table["dtype"] = np.array(["bf16", "bf16", "int3", "bf16", "bf16", "bf16"])
    table["kv_dtype"] = np.array(["bf16", "bf16", "bf16", "int3", "", "bf16"])
    table["context_tokens"] = np.array([9, 9, 9, 9, 9, 0])
    assert recipe.usable(table).tolist() == [
        "operator is not modelled", "a whole block, predicted from its parts",
        "dtype is not modelled", "cache dtype is not modelled", "",
        "context without the new tokens",
    ]  # fmt: skip
    assert recipe.predictable(table)[1] == ""


def test_batched_products_are_gemms_with_a_head_per_factor() -> None:
    table = columns("bmm_pre", 2)
    table["op"] = np.array(["bmm_pre", "bmm_post"])
    table["batch"], table["num_heads"] = np.array([7, 8]), np.array([16, 32])
    rows = recipe.product_rows(table, np.arange(2))
    assert rows.m.tolist() == [7.0, 8.0]
    assert rows.n.tolist() == [512.0, 128.0]
    assert rows.k.tolist() == [128.0, 512.0]
    assert rows.batch.tolist() == [16.0, 32.0]


@pytest.mark.parametrize(
    ("op", "kind", "moved"),
    [
        ("generation_attention", recipe.DECODE, {"most_splits": 1.0}),
        ("context_attention", recipe.PREFILL, {"absorbed": 1.0, "tensor_frac": 0.5}),
    ],
)
def test_facts_and_coefficients_of_the_model_itself_are_found_again(
    op: str, kind: str, moved: dict[str, float]
) -> None:
    table = columns(op)
    rows = recipe.rows_of(table, np.arange(48), kind, lambda name: load_gpu(name).one_device())
    true = {**{c.name: c.prior for c in recipe.COEFFICIENTS[kind]}, **moved}
    rows = type(rows)(**{**vars(rows), "measured_s": recipe.predict(rows, true)})
    fit = recipe.fit_rows(rows, quick=True)
    found = dict(zip(fit.names, fit.values.tolist(), strict=True))
    for name, value in moved.items():
        assert found[name] == pytest.approx(value, rel=0.05), name
    assert np.abs(fit.log_residuals).max() < 0.05


def test_time_of_other_kernels_is_added() -> None:
    table = columns("generation_attention", 4)
    rows = recipe.rows_of(table, np.arange(4), recipe.DECODE, load_gpu)
    priors = {c.name: c.prior for c in recipe.COEFFICIENTS[recipe.DECODE]}
    more = type(rows)(**{**vars(rows), "rest_s": np.full(4, 1e-3)})
    difference = recipe.predict(more, priors) - recipe.predict(rows, priors)
    assert difference == pytest.approx(np.full(4, 1e-3))


def test_kernels_made_for_it_come_with_hopper() -> None:
    assert recipe.has_own_kernels(load_gpu("b200-hgx-180gb"))
    assert recipe.has_own_kernels(load_gpu("h100-sxm5-80gb"))
    assert not recipe.has_own_kernels(load_gpu("l40s"))


def test_every_coefficient_is_declared_once_with_bounds_about_its_prior() -> None:
    for kind in (recipe.PREFILL, recipe.DECODE):
        assert DECLARED[kind] is recipe.COEFFICIENTS[kind]
        names = [c.name for c in DECLARED[kind]]
        assert len(set(names)) == len(names)
        for c in DECLARED[kind]:
            assert c.lower < c.prior < c.upper, c.name
