"""One step of continuous batching against steps of one kind, and its bounds."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import mixed, step, tables

from rtsim.catalog import load_gpu, load_model
from rtsim.device_facts import record
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.system import System

# A scheduler that takes next to nothing, and kernels as they are alone.
ALONE = {c.name: c.prior for c in mixed.ENGINE_COEFFICIENTS}
ALONE |= {"step_s": 1e-6, "prompt_step_s": 1e-6}
MODELS = ("llama-3.1-8b", "gpt-oss-20b", "deepseek-v2-lite")


@cache
def system(name: str) -> System:
    split = ParallelismSpec(tp=2)
    return System(load_model(name), load_gpu("h100-sxm5-80gb"), split, stack="vllm")


def batch(**sizes: float) -> mixed.Batch:
    empty = dict.fromkeys(mixed.Batch._fields, 0.0) | {"checked": 1.0, "pooled": 1.0}
    return mixed.Batch(**{**empty, **sizes})


def decodes(count: float, context: float, **more: float) -> mixed.Batch:
    return batch(n_decodes=count, decode_context=context, **more)


def prompts(count: float, chunk: float, context: float = 0.0) -> mixed.Batch:
    return batch(n_prompts=count, chunk=chunk, prompt_context=context or chunk, n_finished=count)


def layers_s(name: str, one: mixed.Batch, **engine: float) -> float:
    """Seconds of a step by the compiled kernels."""
    made = system(name)
    kernels, machines = made.compiled_form()
    times = np.zeros((len(made.table.rows), 2))
    row = record(mixed.ENGINE, **{**ALONE, **engine})[()]
    return float(
        kernels.mixed.layers_s(
            kernels.mixed.Batch(*one), False, made.table.rows, made.table.segments, machines[0],
            row, times,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_one_kind_is_that_of_a_single_batch(name: str) -> None:
    made = system(name)
    operators, segments, machine = made.plain()
    times = np.zeros((len(operators), 2))
    for one, sizes in (
        (decodes(24.0, 777.0), (24.0, 1.0, 777.0, 0.0)),
        (prompts(3.0, 500.0), (3.0, 500.0, 500.0, 1.0)),
    ):
        n, new, context, is_prefill = sizes
        whole_s = step.step_s(
            n, new, context, 0.0, is_prefill, 0.0, 0.0, operators, segments, machine, times
        )
        before_s = machine.host.prompt_token_s * n * new * is_prefill
        alone_s = whole_s - machine.host.step_s - before_s
        assert layers_s(name, one) == pytest.approx(alone_s, rel=1e-6)


def test_interpreted_and_compiled_forms_agree() -> None:
    made = system("deepseek-v2-lite")
    operators, segments, machine = made.plain()
    engine = tables.as_row(record(mixed.ENGINE, **{**ALONE, "gemm_frac": 0.7, "moe_frac": 1.3}))
    one = mixed.Batch(17.0, 900.0, 2.0, 300.0, 1000.0, 1.0, 3.0)
    times = np.zeros((len(operators), 2))
    plain_s = mixed.layers_s(one, False, operators, segments, machine, engine, times)
    compiled_s = layers_s("deepseek-v2-lite", one, gemm_frac=0.7, moe_frac=1.3)
    assert compiled_s == pytest.approx(plain_s, rel=1e-12)


def test_shared_out_experts_have_a_factor_of_their_own() -> None:
    def operator(n_local_experts: float) -> Any:
        row = np.zeros(1, tables.OPERATOR)
        row["kind"], row["n_experts"], row["n_local_experts"] = tables.MOE, 64.0, n_local_experts
        return tables.as_row(row[0])

    values = {**ALONE, "moe_frac": 0.9, "parted_frac": 1.2}
    engine = tables.as_row(record(mixed.ENGINE, **values))
    assert mixed.engine_frac(operator(64.0), engine) == 0.9
    assert mixed.engine_frac(operator(8.0), engine) == pytest.approx(0.9 * 1.2)


@pytest.mark.parametrize("name", MODELS)
def test_together_costs_less_than_apart_and_more_than_either(name: str) -> None:
    both = mixed.Batch(32.0, 1500.0, 1.0, 1024.0, 1024.0, 1.0, 1.0)
    apart = layers_s(name, decodes(32.0, 1500.0)), layers_s(name, prompts(1.0, 1024.0))
    assert max(apart) < layers_s(name, both) < sum(apart)


SIZES = st.tuples(
    st.floats(1.0, 300.0), st.floats(1.0, 30_000.0), st.floats(0.0, 4.0), st.floats(1.0, 8000.0)
)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, more=st.floats(1.0, 2.0), which=st.integers(0, 3))
def test_more_work_never_takes_less_time(sizes: tuple[float, ...], more: float, which: int) -> None:
    def step_of(n: float, context: float, count: float, chunk: float) -> float:
        one = mixed.Batch(n, context, count, chunk, chunk + 64.0, count, 1.0)
        return layers_s("llama-3.1-8b", one)

    grown = [size * (more if i == which else 1.0) for i, size in enumerate(sizes)]
    assert step_of(*grown) >= step_of(*sizes) * (1.0 - 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_no_factor_beats_the_memory_or_the_math(name: str) -> None:
    """With every factor at its least, weights are still read and products still multiplied."""
    least = {c.name: c.lower for c in mixed.ENGINE_COEFFICIENTS if c.name.endswith("_frac")}
    made = system(name)
    gpu = made.gpu
    weights_s = 0.0
    for row, count in zip(made.table.rows, made.table.executions, strict=True):
        if row["kind"] == tables.GEMM and row["phase"] != tables.MANY_TOKENS:
            stored = row["n"] * row["k"] * max(1.0, row["n_heads"])
            weights_s += count * max(0.0, stored - gpu.l2_bytes) / gpu.hbm_bytes_per_s
    assert layers_s(name, decodes(1.0, 100.0), **least) > weights_s
    tokens = 8192.0
    flops_s = 0.0
    for row, count in zip(made.table.rows, made.table.executions, strict=True):
        if row["kind"] == tables.GEMM and row["phase"] != tables.ONE_TOKEN:
            rows = row["per_token"] * tokens
            size = 2.0 * rows * row["n"] * row["k"] * max(1.0, row["n_heads"])
            flops_s += count * size / made.peak_flops_per_s
    assert layers_s(name, prompts(1.0, tokens), **least) > flops_s


def test_the_scheduler_takes_its_time() -> None:
    made = system("llama-3.1-8b")
    kernels, machines = made.compiled_form()
    times = np.zeros((len(made.table.rows), 2))
    engine = {**ALONE, "step_s": 3e-3, "sequence_s": 1e-4, "prompt_step_s": 2e-3}
    row = record(mixed.ENGINE, **engine)[()]
    rows = made.table.rows, made.table.segments, machines[0], row, times
    for one, scheduler_s in (
        (decodes(10.0, 100.0), 3e-3 + 10 * 1e-4),
        (mixed.Batch(10.0, 100.0, 2.0, 50.0, 50.0, 2.0, 1.0), 3e-3 + 12 * 1e-4 + 2e-3),
    ):
        given_ = kernels.mixed.Batch(*one)
        whole = kernels.mixed.engine_step_s(given_, False, *rows)
        assert whole - kernels.mixed.layers_s(given_, False, *rows) == pytest.approx(scheduler_s)


def test_drafted_tokens_read_the_cache_once() -> None:
    """Attention of long contexts is bound by the cache: four tokens cost far less than fourfold."""
    one, four = (
        layers_s("llama-3.1-8b", decodes(8.0, 60_000.0, checked=checked)) for checked in (1.0, 4.0)
    )
    assert one < four < 1.5 * one
    busy, checked = (layers_s("llama-3.1-8b", decodes(2000.0, 10.0, checked=c)) for c in (1.0, 4.0))
    assert checked > 2.5 * busy  # many sequences: products are bound by math


def test_a_context_costs_what_its_mean_costs() -> None:
    """Reuse times only what the context changes."""
    made = system("llama-3.1-8b")
    kernels, machines = made.compiled_form()
    times = np.zeros((len(made.table.rows), 2))
    row = record(mixed.ENGINE, **ALONE)[()]
    rows = made.table.rows, made.table.segments, machines[0], row, times
    first = kernels.mixed.Batch(*decodes(16.0, 100.0))
    other = kernels.mixed.Batch(*decodes(16.0, 3000.0))
    kernels.mixed.layers_s(first, False, *rows)
    assert kernels.mixed.layers_s(other, True, *rows) == layers_s(
        "llama-3.1-8b", decodes(16.0, 3000.0)
    )
