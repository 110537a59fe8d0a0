"""The steady state of serving: identities that hold for any system, and limits with known truth."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import load as load_module
from rtsim_kernels import steady, tables

from rtsim.catalog import load_gpu, load_model
from rtsim.cli import main as program
from rtsim.errors import SpecError
from rtsim.serving.engine import Engine
from rtsim.serving.scheduler import Scheduler, scheduler_of
from rtsim.serving.serve import serve
from rtsim.serving.steady import FIELDS, Speculation, load_of, steady_many, steady_state
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.system import System


@cache
def engine(policy: str = "mixed", tp: int = 2, **changes: float) -> Engine:
    made = System(
        load_model("llama-3.1-8b"), load_gpu("h100-sxm5-80gb"), ParallelismSpec(tp=tp), stack="vllm"
    )
    return Engine(made, Scheduler(policy, **changes))  # type: ignore[arg-type]


POLICIES = pytest.mark.parametrize("policy", ["mixed", "prefill-first"])
LOADS = st.tuples(st.integers(1, 2000), st.integers(1, 20_000), st.integers(1, 4000))


@settings(max_examples=80, deadline=None)
@given(load=LOADS, policy=st.sampled_from(["mixed", "prefill-first"]))
def test_littles_law(load: tuple[int, int, int], policy: str) -> None:
    """Requests in flight = rate x time in the system, whatever limits what runs."""
    state = steady_state(engine(policy), *load)
    assert state.request_throughput * state.e2e_latency_s == pytest.approx(load[0], rel=1e-9)
    assert state.running <= load[0] * (1.0 + 1e-12)
    assert state.decoding <= state.running * (1.0 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(
    load=st.tuples(st.integers(1, 2000), st.integers(64, 20_000), st.integers(32, 4000)),
    more=st.floats(1.05, 3.0), policy=st.sampled_from(["mixed", "prefill-first"]),
)  # fmt: skip
def test_more_requests_wait_longer_and_get_tokens_more_slowly(
    load: tuple[int, int, int], more: float, policy: str
) -> None:
    """Throughput may drop where products need another wave of tiles; latency never does.

    Time to first token may dip by some per cent where more prompts come to share a step.
    """
    n, *sizes = load
    few, many = (steady_state(engine(policy), count, *sizes) for count in (n, n * more))
    assert many.output_throughput >= few.output_throughput * 0.9
    assert many.e2e_latency_s >= few.e2e_latency_s * 0.995
    if policy == "prefill-first":
        assert many.ttft_s >= few.ttft_s * (1.0 - 5e-2)
        assert many.tpot_s >= few.tpot_s * (1.0 - 5e-3)  # type: ignore[operator]


@POLICIES
def test_one_request_alone_meets_no_other(policy: str) -> None:
    state = steady_state(engine(policy), 1, 1000, 200)
    assert state.ttft_s == pytest.approx(state.ttft_alone_s, rel=1e-12)
    assert state.tpot_s == pytest.approx(state.decode_step_s, rel=1e-9)


@POLICIES
def test_long_outputs_share_the_prompts_of_the_others(policy: str) -> None:
    """tpot = decode step + prompts of the others during one output, where outputs are long."""
    n, prompt, output = 32, 500, 50_000
    state = steady_state(engine(policy), n, prompt, output)
    extra_s = state.itl_mixed_s - (state.decode_step_s if policy == "mixed" else 0.0)
    assert state.tpot_s is not None
    expected = state.decode_step_s + extra_s * (n - 1) / (output - 1)
    assert state.tpot_s == pytest.approx(expected, rel=1e-3)


def test_without_decoding_the_prompts_set_the_rate() -> None:
    """One token each: the prompt server is never idle, and the rate is what it does."""
    state = steady_state(engine("prefill-first"), 64, 2000, 1)
    assert state.tpot_s is None
    assert state.decoding == 0.0
    together = engine("prefill-first").scheduler.token_budget / 2000
    assert state.request_throughput * state.itl_mixed_s == pytest.approx(together, rel=0.05)


def test_requests_above_the_limit_wait_outside() -> None:
    limited = engine("mixed", 2, max_sequences=16)
    state = steady_state(limited, 64, 1000, 500)
    assert (state.limit, state.running, state.largest_running) == ("max_sequences", 16.0, 16.0)
    alone = steady_state(limited, 16, 1000, 500)
    assert state.output_throughput == pytest.approx(alone.output_throughput, rel=1e-9)
    waiting = state.request_throughput * (state.ttft_s - alone.ttft_s)
    assert waiting == pytest.approx(48.0, rel=0.02)


def test_a_full_cache_limits() -> None:
    small = engine("mixed", 1, memory_frac=0.35)
    state = steady_state(small, 500, 8000, 1000)
    assert state.limit == "cache"
    cache_ = small.cache()
    held = state.running * cache_.sequence_bytes(8000 + 500)
    assert held == pytest.approx(cache_.capacity_bytes, rel=1e-9)
    whole = engine("mixed", 1, memory_frac=0.35, reserves=True)
    assert steady_state(whole, 500, 8000, 1000).running < state.running


def test_a_cached_prefix_saves_its_prompt() -> None:
    whole, half, most = (
        steady_state(engine(), 16, 8000, 100, prefix_hit=hit) for hit in (0.0, 0.5, 0.99)
    )
    assert whole.ttft_s > 1.5 * half.ttft_s > 1.5 * most.ttft_s
    assert whole.tpot_s > half.tpot_s > most.tpot_s  # type: ignore[operator]


@given(tokens=st.integers(0, 10), acceptance=st.floats(0.0, 1.0))
def test_tokens_kept_by_speculation(tokens: int, acceptance: float) -> None:
    """1 + a + a^2 + ...: a drafted token counts if all before it were kept."""
    kept = sum(acceptance**i for i in range(tokens + 1))
    assert steady.tokens_per_step(float(tokens), acceptance) == pytest.approx(kept, rel=1e-6)


def test_speculation_pays_where_math_is_idle() -> None:
    plain = steady_state(engine(), 1, 1000, 500)
    drafted = steady_state(engine(), 1, 1000, 500, speculation=Speculation(3, 0.8))
    costly = steady_state(engine(), 1, 1000, 500, speculation=Speculation(3, 0.8, 2.0))
    useless = steady_state(engine(), 1, 1000, 500, speculation=Speculation(3, 0.0))
    assert plain.tpot_s is not None
    assert drafted.tpot_s < 0.5 * plain.tpot_s  # type: ignore[operator]
    assert costly.tpot_s > plain.tpot_s  # type: ignore[operator]
    assert useless.tpot_s >= plain.tpot_s  # type: ignore[operator]


def test_interpreted_and_compiled_forms_agree() -> None:
    one = engine()
    load = load_of(one, 20, 3000, 300, 0.2, Speculation(2, 0.6, 0.1))
    operators, segments, machine = one.system.plain()
    times = np.zeros((len(operators), 2))
    plain = steady.steady_state(
        load_module.Load(*load), operators, segments, machine, tables.as_row(one.row), times
    )
    assert steady_many(one, np.array([load]))[0] == pytest.approx(tuple(plain), rel=1e-12)
    assert len(plain) == len(FIELDS)


def test_many_loads_are_each_as_one() -> None:
    one = engine()
    sizes = [(n, prompt, output) for n in (1, 40) for prompt in (10, 9000) for output in (1, 300)]
    rows = steady_many(one, np.array([load_of(one, *size) for size in sizes]))
    for size, row in zip(sizes, rows, strict=True):
        state = steady_state(one, *size)
        assert row[0] == state.ttft_s
        assert math.isnan(row[2]) if state.tpot_s is None else row[2] == state.tpot_s


def test_replicas_share_the_requests() -> None:
    def state(dp: int, n: int) -> float:
        made = System(
            load_model("llama-3.1-8b"), load_gpu("h100-sxm5-80gb"), ParallelismSpec(tp=2, dp=dp),
            stack="vllm",
        )  # fmt: skip
        return steady_state(Engine(made), n, 500, 500).request_throughput

    assert state(3, 96) == pytest.approx(3 * state(1, 32), rel=1e-12)


def test_scheduler_defaults_follow_the_gpu() -> None:
    assert scheduler_of("vllm", load_gpu("h100-sxm5-80gb")).token_budget == 8192
    assert scheduler_of("vllm", load_gpu("l40s")).max_sequences == 256
    assert scheduler_of("sglang", load_gpu("b200-hgx-180gb")).policy == "prefill-first"
    assert scheduler_of("trtllm", load_gpu("b200-hgx-180gb")).reserves


# Pools of their own --------------------------------------------------------------------------


def pools(n: float, prefill: int, decode: int, **more: int) -> object:
    return serve(
        "llama-3.1-8b", "h100-sxm5-80gb", n, input_len=2000, output_len=500, tp=2,
        prefill_workers=prefill, decode_workers=decode, **more,
    )  # fmt: skip


def test_decoding_apart_takes_no_prompts() -> None:
    together = serve("llama-3.1-8b", "h100-sxm5-80gb", 64, input_len=2000, output_len=500, tp=2)
    apart = pools(64, 1, 1)
    assert apart.num_gpus == 4
    assert apart.state.tpot_s < together.state.tpot_s
    assert apart.state.request_throughput * apart.state.e2e_latency_s == pytest.approx(64.0)


def test_more_workers_take_load_off_their_pool() -> None:
    one, prompts, decodes = pools(256, 1, 1), pools(256, 2, 1), pools(256, 1, 2)
    assert prompts.state.ttft_s < one.state.ttft_s
    assert prompts.pools.prefill_busy_frac < one.pools.prefill_busy_frac + 1e-9
    assert decodes.state.tpot_s < one.state.tpot_s


def test_the_slower_pool_sets_the_rate() -> None:
    """Far too many requests for the prompt pool: it is always busy."""
    state = pools(3000, 1, 8)
    assert state.pools.prefill_busy_frac == pytest.approx(1.0, abs=0.05)
    assert state.pools.transfer_s > 0.0


# The command line ----------------------------------------------------------------------------

SERVED = ("predict", "--arch", "llama-3.1-8b", "--gpu", "h100", "--input-len", "1000")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = program.run(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_json_holds_what_the_library_says(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *SERVED, "--output-len", "200", "--concurrency", "24", "--json")
    assert status == 0
    told = json.loads(out)
    made = serve("llama-3.1-8b", "h100", 24, input_len=1000, output_len=200)
    for name, value in vars(made.state).items():
        assert told[name] == value
    low, high = told["interval_90"]["tpot_s"]
    assert low < told["tpot_s"] < high
    assert sum(part["share"] for part in told["decode_step"]) == pytest.approx(1.0)
    rate = told["output_throughput"]
    usd = told["cost"]["usd_per_million_output_tokens"]
    assert usd * rate / 1e6 * 3600 == pytest.approx(told["cost"]["usd_per_gpu_hour"])


def test_text_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *SERVED, "--concurrency", "900", "--memory-frac", "0.25")
    assert status == 0
    for words in ("Time to first token", "memory for keys and values", "wait outside"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--concurrency", "0"), ("concurrency", "above 0")),
        (("--concurrency", "nan"), ("concurrency", "above 0")),
        (("--concurrency", "1e30"), ("concurrency", "at most 1,000,000,000")),
        (
            ("--concurrency", "8", "--prefill-workers", "1", "--num-gpus", "4"),
            ("num_gpus = 4", "workers"),
        ),
        (("--concurrency", "8", "--prefix-hit", "1"), ("prefix_hit", "0 to below 1")),
        (("--concurrency", "8", "--acceptance", "1.5"), ("acceptance", "0 to 1")),
        (("--concurrency", "8", "--policy", "fast"), ("policy", "prefill-first")),
        (("--concurrency", "8", "--policy", "static"), ("static", "steady state")),
        (("--concurrency", "8", "--memory-frac", "0"), ("memory_frac", "share")),
        (("--concurrency", "8", "--batch-size", "4"), ("batch_size", "--concurrency")),
        (("--concurrency", "8", "--plot", "a.png"), ("plot", "--concurrency")),
        (("--concurrency", "8", "--input-len", "90M"), ("input_len", "does not fit the cache")),
        (("--token-budget", "100"), ("concurrency", "--token-budget")),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    status, out, err = run(capsys, *SERVED, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    for word in words:
        assert word in err


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="decoder"):
        serve("bert-large", "h100", 4)
    with pytest.raises(SpecError, match="more GPUs or fewer bits"):
        serve("llama-3.1-405b", "h100", 4)


def test_a_gpu_without_runs_gets_a_wider_interval() -> None:
    def width(gpu: str, **changes: object) -> float:
        made = serve("llama-3.1-8b", gpu, 8, **changes)  # type: ignore[arg-type]
        low, high = made.interval_90["tpot_s"]  # type: ignore[misc]
        return high / low

    own = width("h100-sxm5-80gb")
    assert width("h200") > 1.2 * own
    assert width("h100-sxm5-80gb", set={"gpu.hbm_bytes_per_s": "2x"}) > 1.2 * own


def test_rows_that_are_the_same_are_timed_once() -> None:
    """And take what they take when each is timed."""
    made = System(
        load_model("deepseek-v3"), load_gpu("h200"), ParallelismSpec(tp=8), stack="vllm",
        quantization="fp8",
    )  # fmt: skip
    own = Engine(made)
    kernels, (operators, *rest) = own.compiled()
    assert (operators["same"] > 0).sum() > 10
    each = operators.copy()
    each["same"] = 0
    batch = kernels.mixed.Batch(30.0, 900.0, 2.0, 500.0, 500.0, 2.0, 1.0)
    times = np.zeros((2, len(operators), 2))
    steps = [
        kernels.mixed.engine_step_s(batch, False, rows, *rest, times[i])
        for i, rows in enumerate((operators, each))
    ]
    assert steps[0] == pytest.approx(steps[1], rel=1e-13)
    np.testing.assert_allclose(times[0], times[1], rtol=1e-12)


def test_a_budget_that_binds_makes_prompts_wait_rather_than_decodes() -> None:
    """Every step takes one budget of prompts: less of it, and more steps make a cycle."""
    wide, narrow = (
        steady_state(engine("mixed", 1, token_budget=budget), 64, 2000, 50)
        for budget in (8192, 512)
    )
    assert narrow.output_throughput < wide.output_throughput
    assert narrow.ttft_s > 2.0 * wide.ttft_s
    assert narrow.tpot_s is not None
    assert narrow.tpot_s <= narrow.itl_mixed_s * (1.0 + 1e-9)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prefill_workers": 0}, "prefill_workers = 0"),
        ({"decode_workers": 0}, "decode_workers = 0"),
        ({"decode_workers": 2}, "give --prefill-workers"),
        ({"prefill_tp": 2}, "give --prefill-workers"),
        ({"speculative_tokens": 3}, "acceptance: .* speculative_tokens"),
        ({"acceptance": 0.5}, "nothing is drafted"),
        ({"draft_frac": 0.5}, "nothing is drafted"),
    ],
)
def test_what_would_be_ignored_is_refused(asked: dict[str, float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        serve("llama-3.1-8b", "h100", 4, **asked)  # type: ignore[arg-type]
