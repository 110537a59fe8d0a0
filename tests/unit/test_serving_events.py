"""The event simulation against what must hold of any queue, and of known ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hyp
from rtsim_kernels import compiled, mixed
from rtsim_kernels import serving_state as st

from rtsim.lengths import bucketed, fixed
from rtsim.named_system import system
from rtsim.service_level import ServiceLevel
from rtsim.serving.arrivals import Generated
from rtsim.serving.capacity import capacity
from rtsim.serving.deployment import Deployment
from rtsim.serving.engine import Engine
from rtsim.serving.serve import serve
from rtsim.serving.simulate import Run, offline_rate, simulate
from rtsim.serving.simulated import percentile_s
from rtsim.serving.trace import Requests
from rtsim.serving.transfer import transfer_path
from rtsim.simulation import simulate as simulate_named

LENGTHS = bucketed(np.array([40.0, 300, 900]), np.array([1.0, 250, 90]))


def engine(policy="mixed", gpu="h100", split=None, **changes):
    made = Engine(system("llama-3.2-1b", gpu, stack="vllm", **(split or {})))
    return Engine(made.system, replace(made.scheduler, policy=policy, **changes))


def small_cache(made: Engine, tokens: int) -> Engine:
    """The engine with a cache of so many tokens."""
    cache = made.cache()
    spare = cache.capacity_bytes - cache.sequence_bytes(tokens) - 0.5
    frac = made.scheduler.memory_frac - spare / float(made.system.gpu.memory_bytes)
    return Engine(made.system, replace(made.scheduler, memory_frac=frac))


class Listed:
    """Traffic of a list of (arrival, prompt, output, priority)."""

    source, rate_per_s = "list", 1.0

    def __init__(self, rows):
        columns = zip(*rows, strict=True)
        self.requests = Requests(*(np.array(column) for column in columns))
        self.n_requests = len(rows)

    def at_rate(self, rate_per_s):
        return self

    def blocks(self):
        yield self.requests


def records_of(run: Run):
    return np.concatenate([block.requests for block in run.blocks()])


# What holds of any simulation -------------------------------------------------------------------


DEPLOYMENTS = {
    "mixed": lambda: Deployment(engine()),
    "full cache": lambda: Deployment(small_cache(engine(), 2000)),
    "swapping": lambda: Deployment(small_cache(engine("prefill-first"), 2000), preemption="swap"),
    "static": lambda: Deployment(engine("static", max_sequences=8), n_replicas=2),
    "replicas": lambda: Deployment(engine(), n_replicas=3, routing="least-loaded"),
    "stages": lambda: Deployment(engine(split={"pp": 2})),
    "pools": lambda: Deployment(
        small_cache(engine(), 4000), prefill=small_cache(engine(), 1600), n_prefill=2
    ),
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_requests_tokens_and_time_are_conserved(name):
    deployment = DEPLOYMENTS[name]()
    run = Run(deployment, Generated(150.0, LENGTHS, 600, seed=3))
    rows = records_of(run)
    result = run.result()
    assert sorted(rows["request"]) == list(range(600))
    assert result.n_finished == 600 == result.e2e.n == result.ttft.n
    assert result.output_tokens == rows["output_tokens"].sum()
    assert result.gap.n == result.output_tokens - 600
    prompts = rows["prompt_tokens"].sum()
    computed = result.prompt_tokens_per_s * result.duration_s
    if result.preemptions == 0:
        assert computed == pytest.approx(prompts)
    else:
        assert name in ("full cache", "swapping", "pools")
        assert computed >= prompts - 1e-6
    # Everything was given back.
    groups = np.asarray(run.state.sched.groups)
    assert not groups["used_bytes"].any()
    assert not groups["n_running"].any()
    assert not groups["n_waiting"].any()
    # Little's law, exact by accounting: mean number x time = time of all requests in the system.
    outside_s = float(deployment.engines[0].row["request_s"])
    in_system_s = (rows["e2e_latency_s"] - outside_s).sum()
    if name == "pools":  # held for a while after it has left: the first token comes with the cache
        assert result.mean_running * result.duration_s <= in_system_s
    mean = result.mean_waiting + result.mean_running
    assert mean * result.duration_s == pytest.approx(in_system_s, rel=1e-9)
    assert result.mean_waiting * result.duration_s == pytest.approx(
        rows["waited_s"].sum(), rel=1e-9
    )
    # What is seen over time adds up to the same.
    over = result.over_time
    width_s = over.start_s[1] - over.start_s[0]
    assert (over.tokens_per_s * width_s).sum() == pytest.approx(result.output_tokens)
    assert 0.0 < result.most_cache_frac <= 1.0
    assert over.cache_frac.max() <= 1.0 + 1e-9


def test_the_full_caches_of_these_tests_preempt():
    for name in ("full cache", "swapping"):
        result = simulate(DEPLOYMENTS[name](), Generated(150.0, LENGTHS, 600, seed=3))
        assert result.preemptions > 0
        assert (result.recomputed_tokens > 0) == (name == "full cache")
        assert (result.swapped_bytes > 0) == (name == "swapping")


def test_same_seed_same_simulation_and_another_seed_another():
    def ttft(seed):
        rows = records_of(Run(Deployment(engine()), Generated(90.0, LENGTHS, 200, seed=seed)))
        return rows["ttft_s"]

    assert ttft(1).tolist() == ttft(1).tolist()
    assert ttft(1).tolist() != ttft(2).tolist()


def test_interpreted_and_compiled_agree():
    traffic = Generated(150.0, bucketed(np.array([40.0, 90]), np.array([2.0, 9])), 12, seed=5)
    deployment = Deployment(small_cache(engine(), 160), n_replicas=2, preemption="swap")
    fast, plain = (records_of(Run(deployment, traffic, compiled=c)) for c in (True, False))
    for name in fast.dtype.names:
        assert fast[name] == pytest.approx(plain[name], rel=1e-12, nan_ok=True)


def test_percentiles_are_those_of_the_records():
    run = Run(Deployment(engine()), Generated(120.0, LENGTHS, 1500))
    rows = records_of(run)
    result = run.result()
    for times, column in ((result.ttft, "ttft_s"), (result.e2e, "e2e_latency_s")):
        for percentile, value in times.percentiles.items():
            exact = np.percentile(rows[column], percentile, method="inverted_cdf")
            assert value == pytest.approx(exact, rel=3e-4)
        assert times.mean_s == pytest.approx(rows[column].mean(), rel=1e-12)
        assert times.most_s == rows[column].max()
    assert math.isnan(percentile_s(np.zeros(10, np.int64), 50.0))


def test_more_load_means_longer_latency():
    """On the same requests; a step may come out shorter by chance, so to within 1 %."""
    means = []
    for rate in (20.0, 60.0, 120.0, 200.0, 400.0):
        traffic = Generated(rate, LENGTHS, 1000, seed=7)
        means.append(simulate(Deployment(engine()), traffic).e2e.mean_s)
    for lighter, heavier in pairwise(means):
        assert heavier >= lighter * 0.99
    assert means[-1] > 1.3 * means[0]


# Queues with a known answer ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["M/D/1", "M/G/1"])
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_sequence_at_a_time_waits_as_pollaczek_and_khinchine_say(name, load):
    lengths = fixed(200, 4)
    if name == "M/G/1":
        lengths = bucketed(np.array([50.0, 50, 2000]), np.array([2.0, 2, 8]))
    deployment = Deployment(engine(max_sequences=1))
    outside_s = float(deployment.engine.row["request_s"])
    alone = records_of(Run(deployment, Generated(1.0, lengths, 50, seed=1), concurrency=1))
    times = dict(zip(alone["prompt_tokens"], alone["e2e_latency_s"] - outside_s, strict=True))
    service_s = np.array([times[int(prompt)] for prompt in lengths.input_len])
    rate = load / (service_s @ lengths.share)
    n = 40_000
    run = Run(deployment, Generated(rate, lengths, n, seed=11))
    rows = records_of(run)
    assert len(run.state.sched.requests) == 4096  # slots are used again: no more than at first
    waits = rows["waited_s"][np.argsort(rows["request"])]
    expected = rate * (service_s**2 @ lengths.share) / (2.0 * (1.0 - load))
    # Waits of neighbours are alike: the error from means over long stretches.
    stretches = waits.reshape(40, -1).mean(axis=1)
    error = stretches.std(ddof=1) / math.sqrt(40)
    assert error < 0.06 * expected
    assert abs(waits.mean() - expected) < 4.0 * error


@pytest.mark.parametrize("in_flight", [1, 16, 64])
def test_agrees_with_the_analytic_steady_state(in_flight):
    """Within 5 %, with lengths that differ: equal ones keep requests that came together so."""
    steady = serve(
        "llama-3.1-8b", "h100", stack="vllm", concurrency=in_flight, input_len=1000, output_len=200
    ).state
    generator = np.random.default_rng(0)
    lengths = bucketed(generator.integers(800, 1201, 60) * 1.0, generator.integers(120, 281, 60))
    deployment = Deployment(Engine(system("llama-3.1-8b", "h100", stack="vllm")))
    traffic = Generated(1.0, lengths, 150 + 20 * in_flight)
    result = simulate(deployment, traffic, concurrency=in_flight)
    assert result.tpot.mean_s == pytest.approx(steady.tpot_s, rel=0.05)
    assert result.most_waiting <= in_flight
    assert result.mean_waiting + result.mean_running == pytest.approx(in_flight, rel=0.06)


# Steps --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    chunks=hyp.lists(
        hyp.tuples(hyp.integers(1, 4000), hyp.integers(0, 9000)), min_size=1, max_size=6
    )
)
def test_alike_prompts_have_the_work_of_the_unlike_ones(chunks):
    """Tokens, pairs of query and key, and earlier tokens of the batch that stands for them."""
    from rtsim_kernels import scheduling

    requests = np.zeros(len(chunks), st.REQUEST).view(np.recarray)
    for request, (new, earlier) in zip(requests, chunks, strict=True):
        request.prompt, request.computed, request.new_tokens = new + earlier, earlier, new
    groups = np.zeros(1, st.GROUP).view(np.recarray)
    groups[0].n_running = len(chunks)
    running = np.arange(len(chunks))[None, :]
    state = st.Scheduled(None, requests, groups, running, None, None, None)
    batch = scheduling.batch_of(0, 0.0, state)
    n, new, keys = batch.n_prompts, batch.chunk, batch.prompt_context
    assert n * new == pytest.approx(sum(c[0] for c in chunks))
    pairs = sum(q * e + q * (q + 1) / 2 for q, e in chunks)
    assert n * (new * keys - new * (new - 1) / 2) == pytest.approx(pairs)
    assert n * (keys - new) == pytest.approx(sum(c[1] for c in chunks), abs=1e-6)
    assert batch.n_finished == len(chunks)
    if len(chunks) == 1:
        assert (n, new, keys) == (1.0, *np.cumsum(chunks[0]))


def test_remembered_steps_are_those_of_the_operator_model():
    from rtsim.serving.event_state import form_of, pool_rows

    made = engine()
    pool = pool_rows(Deployment(made), form_of(True))[0]
    kernels = compiled()
    generator = np.random.default_rng(1)
    for _ in range(200):
        decodes, chunk = int(generator.integers(0, 5)), float(generator.integers(0, 3) * 100)
        context = float(generator.integers(1, 3000))
        prompts = 1.0 if chunk else 0.0
        batch = mixed.Batch(decodes, context, prompts, chunk, chunk + context, prompts, 1.0)
        if not decodes and not chunk:
            continue
        one = kernels.mixed.Batch(*map(float, batch))
        arguments = kernels.serving_state.Pool(*pool)
        assert _remembered(kernels, one, arguments) == made.step_s(batch)


def _remembered(kernels, batch, pool):
    import numba

    global _caller  # noqa: PLW0603 (compiled once: the function has no entry from Python)
    if _caller is None:
        inner = kernels.step_memo.remembered_step_s
        _caller = numba.njit(lambda batch, pool: inner(batch, pool))  # noqa: PLW0108
    return _caller(batch, pool)


_caller = None


def test_groups_in_lockstep_step_together():
    made = Engine(system("deepseek-v2-lite", "h100", stack="vllm", attention_dp=2, ep=2))
    run = Run(Deployment(made), Listed([(0.0, 100, 3, 0), (0.0, 6000, 3, 0)]))
    short, long = sorted(records_of(run), key=lambda row: row["prompt_tokens"])
    assert short["ttft_s"] == long["ttft_s"]
    assert short["e2e_latency_s"] == long["e2e_latency_s"]
    assert short["group"] != long["group"]
    # The step of the longer prompt, with the experts under the mean of both.
    pooled = (6000 + 100) / 2 / 6000
    step_s = made.step_s(mixed.Batch(0, 0, 1, 6000, 6000, 1, 1, pooled))
    assert long["ttft_s"] == pytest.approx(step_s + float(made.row["request_s"]), rel=1e-9)
    assert step_s < made.step_s(mixed.Batch(0, 0, 1, 6000, 6000, 1, 1))


def test_a_stage_works_for_another_stream_meanwhile():
    """Two requests on two stages take as long as one alone: they are never in the same stage."""
    deployment = Deployment(engine(split={"pp": 2}))
    rows = [(0.0, 500, 20, 0), (0.0, 500, 20, 0)]
    both, alone = (records_of(Run(deployment, Listed(rows[:n]))) for n in (2, 1))
    assert both["e2e_latency_s"] == pytest.approx([alone["e2e_latency_s"][0]] * 2, rel=1e-12)


def test_one_request_through_two_pools():
    """Prompt, transfer and decode steps by hand."""
    made = engine()
    run = Run(Deployment(made, prefill=made), Listed([(2.0, 1000, 3, 0)]))
    row = records_of(run)[0]
    prompt_s = made.step_s(mixed.Batch(0, 0, 1, 1000, 1000, 1, 1))
    blocks = -(-1000 // made.scheduler.block_tokens)
    moved = made.cache().sequence_bytes(blocks * made.scheduler.block_tokens)
    transfer_s = 1e-3 + moved / transfer_path(made.system.gpu)[1]
    decode_s = sum(made.step_s(mixed.Batch(1, c, 0, 0, 0, 0, 1)) for c in (1001, 1002))
    outside_s = float(made.row["request_s"])
    assert row["ttft_s"] == pytest.approx(prompt_s + transfer_s + outside_s, rel=1e-9)
    assert row["e2e_latency_s"] == pytest.approx(row["ttft_s"] + decode_s, rel=1e-9)
    assert run.result().moved_bytes == moved


def test_urgent_requests_go_first():
    deployment = Deployment(engine(max_sequences=1))
    rows = [(0.0, 500, 5, 1), (0.001, 500, 5, 1), (0.002, 500, 5, 0)]
    done = records_of(Run(deployment, Listed(rows)))
    assert done["request"].tolist() == [0, 2, 1]


def test_a_known_prefix_is_not_computed():
    deployment = Deployment(engine(), prefix_hit=0.75)
    result = simulate(deployment, Generated(10.0, fixed(1000, 10), 20))
    assert result.prompt_tokens_per_s * result.duration_s == pytest.approx(20 * 250)
    whole = simulate(Deployment(engine()), Generated(10.0, fixed(1000, 10), 20))
    assert result.ttft.mean_s < whole.ttft.mean_s


# Refusals, overload, capacity ---------------------------------------------------------------------


def test_what_no_server_takes_is_refused_and_counted():
    made = small_cache(engine(), 1600)
    rows = [(0.0, 0, 5, 0), (0.1, 5, 0, 0), (0.2, 200_000, 5, 0), (0.3, 1700, 5, 0),
            (0.4, 2**52, 2**52, 0), (0.5, 100, 5, 0), (0.6, 1595, 6, 0)]  # fmt: skip
    run = Run(Deployment(made), Listed(rows))
    done = records_of(run)
    result = run.result()
    assert result.n_finished == 2  # one of them fills the cache to its last token
    assert result.refused == {
        "no prompt or no output token": 2, "longer than the context": 2, "longer than the cache": 1,
    }  # fmt: skip
    assert result.n_requests == 7 == len(done)
    assert math.isnan(done["ttft_s"][0])


def test_overload_is_said_with_what_is_carried():
    deployment = Deployment(engine(max_sequences=16))
    lengths = bucketed(np.arange(100.0, 200.0), np.arange(20.0, 120.0))
    carried = offline_rate(deployment, Generated(1.0, lengths, 1000))
    light = simulate(deployment, Generated(0.7 * carried, lengths, 1500))
    heavy = simulate(deployment, Generated(1.5 * carried, lengths, 1500))
    assert not light.overloaded
    assert heavy.overloaded
    assert heavy.n_finished == 1500
    assert heavy.backlog == pytest.approx(1500 / 3, rel=0.15)  # a third of them is not carried
    assert heavy.carried_per_s == pytest.approx(carried, rel=0.1)


def test_capacity_lies_between_a_rate_that_meets_and_one_that_misses():
    deployment = Deployment(engine())
    traffic = Generated(1.0, LENGTHS, 400)
    level = ServiceLevel(0.2, 0.01)
    found = capacity(deployment, traffic, level, 0.95, tolerance=0.02)
    assert found.rate_per_s < found.missed_per_s <= 1.02 * found.rate_per_s
    for rate, meets in ((found.rate_per_s, True), (found.missed_per_s, False)):
        result = simulate(deployment, traffic.at_rate(rate), level=level, share=0.95)
        assert (result.meets_level and not result.overloaded) == meets
    assert capacity(deployment, traffic, ServiceLevel(1e-6, 1e-6), 0.95).rate_per_s == 0.0


def test_a_level_without_limits_is_limited_by_throughput():
    deployment = Deployment(engine(max_sequences=4))
    found = capacity(deployment, Generated(1.0, LENGTHS, 500), ServiceLevel(), 0.95)
    assert found.rate_per_s == pytest.approx(found.offline_per_s, rel=0.15)


def test_more_requests_at_once_than_there_are_slots_at_first():
    rows = [(0.0, 20, 2, 0)] * 6000
    run = Run(Deployment(engine()), Listed(rows))
    assert len(np.unique(records_of(run)["request"])) == 6000
    assert run.result().most_waiting == 6000
    assert len(run.state.sched.requests) == 8192


def test_the_event_loop_is_compiled_once_for_all_systems():
    for made in (engine(), engine("static", gpu="a100", split={"tp": 2})):
        simulate(Deployment(made), Generated(10.0, LENGTHS, 5))
    lookup = system("gpt-oss-20b", "h100", stack="sglang", dp=2)
    simulate(Deployment(Engine(lookup)), Generated(10.0, LENGTHS, 5))
    assert len(compiled().events.run.signatures) == 1


# Files ------------------------------------------------------------------------------------------


def test_records_and_chrome_trace(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.parquet

    tables = []
    for ending in ("csv", "parquet"):
        found = simulate_named(
            "llama-3.2-1b", "h100", stack="vllm", rate=50.0, requests=300, input_len=200,
            output_len=20, records=tmp_path / f"r.{ending}", chrome_trace=tmp_path / "t.json",
            dp=2,
        )  # fmt: skip
        read = pyarrow.csv.read_csv if ending == "csv" else pyarrow.parquet.read_table
        tables.append(read(tmp_path / f"r.{ending}"))
    assert tables[0].to_pydict() == tables[1].to_pydict()
    assert tables[0].num_rows == 300
    assert set(tables[0]["replica"].to_pylist()) == {0, 1}
    ttft = np.mean(tables[0]["ttft_s"].to_numpy())
    assert ttft == pytest.approx(found.result.ttft.mean_s)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    steps = [e for e in events if e["ph"] == "X"]
    assert len(steps) == found.result.n_steps
    for replica in (0, 1):
        own = sorted((e["ts"], e["dur"]) for e in steps if e["pid"] == replica)
        for (start, length), (following, _) in pairwise(own):
            assert start + length <= following * (1 + 1e-12) + 1e-6
    begun, ended = ([e["id"] for e in events if e["ph"] == ph] for ph in "be")
    assert sorted(begun) == sorted(ended)
    assert len(set(begun)) == 300
