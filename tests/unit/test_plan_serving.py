"""Plans of replicas that serve: exact by an enumeration with `serve`, and what the load needs."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsim.catalog import load_gpu
from rtsim.cli.main import run
from rtsim.errors import NothingSatisfies, SpecError, UnknownName
from rtsim.lengths import bucketed
from rtsim.plan import OBJECTIVES, plan
from rtsim.plan_serving import COUNTS, Mix
from rtsim.serving.serve import serve

SIZES = {"input_len": 512, "output_len": 64}
COUNTED = [1, 4, 16, 64, 256]
SPACE: dict[str, Any] = {"tp": [1, 2, 4], "pp": [1, 2], "quantization": ["none", "fp8"]}
GPUS = ["a100", "h100"]
LEVEL = {"ttft_s": 0.3, "tpot_s": 0.025}


def enumerated(
    objective: str, rate: float | None = None, budget: float | None = None,
    max_gpus: int | None = None, confident: bool = False,
) -> tuple[float, int]:  # fmt: skip
    """(the best value of the objective, number of candidates that satisfy), the slow way."""
    values = []
    for gpu, tp, pp, quantization in itertools.product(GPUS, *SPACE.values()):
        spec = load_gpu(gpu)
        assert spec.price is not None
        assert spec.power_w is not None
        for count in COUNTED:
            made = serve(
                "llama-2-13b", gpu, count, tp=tp, pp=pp, quantization=quantization, **SIZES
            )
            state, ends = made.state, made.interval_90
            if count > math.floor(state.largest_running):
                continue
            assert ends["ttft_s"] is not None
            assert ends["tpot_s"] is not None
            assert state.tpot_s is not None
            ttft_s = ends["ttft_s"][1] if confident else state.ttft_s
            tpot_s = ends["tpot_s"][1] if confident else state.tpot_s
            if ttft_s > LEVEL["ttft_s"] or tpot_s > LEVEL["tpot_s"]:
                continue
            replica_usd = spec.price.usd_per_hour * tp * pp
            if rate is not None:
                dp = math.ceil(rate / state.request_throughput)
            else:
                assert budget is not None
                dp = math.floor(budget / replica_usd)
                dp = dp if max_gpus is None else min(dp, max_gpus // (tp * pp))
            if dp < 1 or (max_gpus is not None and dp * tp * pp > max_gpus):
                continue
            if budget is not None and dp * replica_usd > budget:
                continue
            carried = rate or dp * state.request_throughput
            cost = dp * replica_usd if rate is not None else -carried
            energy = dp * tp * pp * spec.power_w / carried
            values.append(
                {"cost": cost, "latency": state.e2e_latency_s, "energy": energy}[objective]
            )
    return (min(values) if values else math.nan), len(values)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "load",
    [
        {"rate": 20.0},
        {"rate": 5.0, "max_gpus": 4},
        {"budget": 30.0},
        {"budget": 30.0, "max_gpus": 5},
        {"rate": 20.0, "budget": 18.0},
        {"rate": 3.0, "confident": True},
    ],
    ids=str,
)
def test_the_answer_is_that_of_an_enumeration(
    value_of, objective: str, load: dict[str, Any]
) -> None:
    expected, n_satisfying = enumerated(objective, **load)
    names = {"rate": "rate_per_s", "budget": "budget_usd_per_hour"}
    arguments = {names.get(name, name): value for name, value in load.items()}
    found = plan("llama-2-13b", GPUS, objective=objective, concurrency=COUNTED, **SIZES, **LEVEL,
                 **arguments, **SPACE)  # fmt: skip
    assert not found.static
    assert 0 < n_satisfying == sum(found.n_satisfying.values())
    assert value_of(found) == pytest.approx(expected, rel=1e-9)
    lost = sum(n for counts in found.lost.values() for n in counts.values())
    assert lost + n_satisfying == found.n_candidates


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_hit": 0.5, "speculative_tokens": 3, "acceptance": 0.8},
        {"policy": "prefill-first", "token_budget": 1024, "memory_frac": 0.7, "max_sequences": 40},
    ],
    ids=str,
)
def test_the_result_is_what_serve_says(options: dict[str, Any]) -> None:
    """All replicas together, each with its share of the requests in flight."""
    rate = 300.0
    best = plan("mixtral-8x7b", "h100", rate_per_s=rate, level="chat", **options, **SIZES).best
    assert best.dp > 1
    split = {"tp": best.tp, "pp": best.pp, "ep": best.ep, "dp": best.dp}
    made = serve("mixtral-8x7b", "h100", best.batch_size * best.dp, **split, **options, **SIZES)
    state = made.state
    assert best.ttft_s == pytest.approx(state.ttft_s, rel=1e-9)
    assert best.ttft_alone_s == pytest.approx(state.ttft_alone_s, rel=1e-9)
    assert best.tpot_s == pytest.approx(state.tpot_s, rel=1e-9)
    assert best.e2e_latency_s == pytest.approx(state.e2e_latency_s, rel=1e-9)
    assert best.prompt_frac == pytest.approx(state.prompt_frac, rel=1e-9)
    assert best.num_gpus == made.num_gpus
    assert best.largest_in_flight == math.floor(state.largest_running / best.dp + 1e-9)
    assert best.ttft_s_high == pytest.approx((made.interval_90["ttft_s"] or (0, 0))[1])
    # The load is carried, by the fewest in flight that do.
    assert state.request_throughput >= rate * (1 - 1e-9)
    fewer = [n for n in COUNTS if n < best.batch_size]
    if fewer:
        less = serve("mixtral-8x7b", "h100", fewer[-1] * best.dp, **split, **options, **SIZES).state
        assert less.request_throughput < rate
    # Little's law.
    assert state.request_throughput * state.e2e_latency_s == pytest.approx(state.concurrency)
    assert best.load_frac == pytest.approx(rate / best.requests_per_s)
    assert 0 < best.load_frac <= 1
    assert best.saturation_requests_per_s >= best.requests_per_s > 0
    assert best.utilisation_frac == pytest.approx(rate / best.saturation_requests_per_s)
    assert best.saturation_margin_frac == pytest.approx(1 - best.utilisation_frac)


@settings(max_examples=20, deadline=None)
@given(
    rate=st.floats(0.1, 200.0), more=st.floats(1.0, 5.0), ttft_s=st.floats(0.2, 3.0),
    objective=st.sampled_from(["cost", "latency"]),
)  # fmt: skip
def test_more_load_and_stricter_levels_never_cost_less(
    value_of, rate: float, more: float, ttft_s: float, objective: str
) -> None:
    def best(rate: float, ttft_s: float) -> float:
        limits = {"ttft_s": ttft_s, "tpot_s": 0.2, "max_gpus": 999}
        return value_of(plan("llama-2-13b", GPUS, rate_per_s=rate, objective=objective, **limits,
                             **SIZES, **SPACE))  # fmt: skip

    assert best(rate * more, ttft_s) >= best(rate, ttft_s) * (1 - 1e-12)
    assert best(rate, ttft_s * more) <= best(rate, ttft_s) * (1 + 1e-12)


def test_counts_are_dense() -> None:
    assert list(COUNTS) == sorted(set(COUNTS))
    assert COUNTS[0] == 1
    assert COUNTS[-1] >= 4096
    assert max(b / a for a, b in itertools.pairwise(COUNTS) if a >= 32) <= 1 + 1 / 16 + 1e-12


def test_requests_of_unlike_lengths_are_served_together() -> None:
    """At their means; the longest share of the prompts sets the time to first token."""
    pairs = [(100, 10)] * 3 + [(512, 64)] * 5 + [(1500, 1)] * 2
    lengths = bucketed(*np.array(pairs, float).T)
    space = {"tp": 1, "pp": 1, "concurrency": 8}
    found = plan(
        "llama-2-13b", "h100", lengths=lengths, rate_per_s=1, ttft_s=1.0, share=0.7, **space
    )
    mean = plan(
        "llama-2-13b", "h100", input_len=586, output_len=35, rate_per_s=1, ttft_s=1.0, **space
    )
    assert lengths.mean_input_len == 586.0
    assert found.best.tpot_s == pytest.approx(mean.best.tpot_s, rel=0.01)
    assert found.best.ttft_s < mean.best.ttft_s  # 512 tokens are the 70th percentile
    stricter = plan("llama-2-13b", "h100", lengths=lengths, rate_per_s=1, ttft_s=1.0, **space)
    assert stricter.best.ttft_s > mean.best.ttft_s  # 1500 tokens are the 99th
    assert stricter.best.e2e_latency_s == found.best.e2e_latency_s
    assert Mix.of(lengths, 0.99).longest == (1500.0, 1.0)
    assert [Mix.of(lengths, share).long_input_len for share in (0.3, 0.31, 0.8, 0.81, 1.0)] == [
        100.0, 512.0, 512.0, 1500.0, 1500.0,
    ]  # fmt: skip


FIXES = re.compile(r"--(ttft|tpot|max-gpus|budget) (\S+?)(?:ms)?[, ]")


@pytest.mark.parametrize(
    "asked",
    [
        {"ttft_s": 0.001},
        {"ttft_s": 0.1, "tpot_s": 0.0001},
        {"level": "chat", "max_gpus": 1, "rate_per_s": 500.0},
        {"level": "chat", "budget_usd_per_hour": 1.0},
        {"ttft_s": 0.002, "confident": True},
        {"tpot_s": 0.001, "max_gpus": 2, "rate_per_s": 300.0, "budget_usd_per_hour": 5.0},
    ],
    ids=str,
)
def test_the_nearest_miss_and_its_fix(asked: dict[str, Any]) -> None:
    """What the message says would do does."""
    request = {"rate_per_s": 10.0, **SIZES, **SPACE, **asked}
    with pytest.raises(NothingSatisfies, match=r"candidates satisfies; nearest is .* in flight"
                       ) as caught:  # fmt: skip
        plan("llama-2-13b", GPUS, **request)
    text = str(caught.value)
    fixes = dict(FIXES.findall(text.rpartition(". ")[2]))
    assert fixes
    names = {"ttft": "ttft_s", "tpot": "tpot_s", "max-gpus": "max_gpus",
             "budget": "budget_usd_per_hour"}  # fmt: skip
    fixed: dict[str, Any] = {}
    for name, number in fixes.items():
        fixed[names[name]] = float(number) * (1e-3 if name in ("ttft", "tpot") else 1.0)
    if {"ttft_s", "tpot_s"} & set(fixed):
        request.pop("level", None)
    assert plan("llama-2-13b", GPUS, **{**request, **fixed}).best.num_gpus >= 1


def test_what_does_not_fit_says_what_it_needs() -> None:
    one = {"rate_per_s": 1, "level": "batch", "tp": 1, "pp": 1}
    with pytest.raises(NothingSatisfies, match=r"needs 81\d GB per GPU of 77.0 GB"):
        plan("llama-3.1-405b", "h100", **one, **SIZES)
    with pytest.raises(NothingSatisfies, match="needs"):  # one request does not
        plan("llama-3.1-8b", "h100", **one, input_len=900_000, output_len=1)


@pytest.mark.parametrize(
    ("arch", "options", "static"),
    [
        ("gpt-j-6b", {}, False),
        ("gpt-j-6b", {"static": True}, True),
        ("gpt-j-6b", {"batch_size": 4}, True),
        ("gpt-j-6b", {"micro_batches": 2, "pp": 2}, True),
        ("gpt-j-6b", {"stack": ["vllm", "trtllm"]}, False),
        ("gpt-j-6b", {"stack": "megatron-lm"}, True),
        ("bert-large", {"output_len": 1}, True),
    ],
    ids=str,
)
def test_what_serves_and_what_works_off_batches(
    arch: str, options: dict[str, Any], static: bool
) -> None:
    request = {"rate_per_s": 5.0, "level": "chat", "tp": 1, "pp": 1, **SIZES, **options}
    found = plan(arch, "a100", **request)
    assert found.static == static
    assert (found.best.saturation_requests_per_s is None) == static


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"static": False, "batch_size": 4}, SpecError, "batch_size: is of static batches"),
        ({"static": True, "prefix_hit": 0.1}, SpecError, "of replicas that serve"),
        ({"static": True, "concurrency": 4}, SpecError, "of replicas that serve"),
        ({"prefix_hit": 1.0}, SpecError, "below 1"),
        ({"policy": "static"}, UnknownName, "known: mixed, prefill-first"),
        ({"token_budget": 0}, SpecError, "token_budget"),
        ({"concurrency": 0.5}, SpecError, "must be a whole number above zero"),
        ({"concurrency": "1:2m", "pp": [1, 2, 4]}, SpecError, "at most 10,000,000"),
        ({"input_len": 4000}, NothingSatisfies, "2048 learned positions"),
    ],
    ids=str,
)
def test_bad_requests(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan("opt-13b", "a100", rate_per_s=1, level="chat", tp=[1, 2], **{**SIZES, **options})


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--arch", "gpt-j-6b", "--gpu", "a100,h100", "--input-len", "512",
               "--output-len", "64", "--rate", "500", "--level", "chat"]  # fmt: skip
    assert run(command) == 0
    out = capsys.readouterr().out
    for words in ("requests in flight each", "Saturates", "steady state", "flight", "MLPerf"):
        assert words in out
    assert run([*command, "--prefix-hit", "0.5", "--concurrency", "8,64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["serving"] is True
    assert found["best"]["batch_size"] in (8, 64)
    assert found["best"]["saturation_margin_frac"] > 0
    assert run([*command, "--static", "--prefix-hit", "0.5"]) == 2
    assert "of replicas that serve" in capsys.readouterr().err
