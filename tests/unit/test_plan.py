"""Plans of static batches: exact over their space; every way of finding none; the command."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtsim
from rtsim.catalog import load_gpu
from rtsim.cli.main import run
from rtsim.errors import NothingSatisfies, RtsimError, SpecError, UnknownName
from rtsim.lengths import bucketed
from rtsim.plan import OBJECTIVES, plan
from rtsim.service_level import LEVELS

SIZES = {"input_len": 512, "output_len": 64}
SPACE: dict[str, Any] = {
    "tp": [1, 2, 4, 8], "pp": [1, 2], "batch_size": [1, 4, 16, 64], "quantization": ["none", "fp8"],
}  # fmt: skip
GPUS = ["a100", "h100"]


def enumerated(
    arch: str, requests: list[tuple[int, int, float]], *, ttft_s: float, tpot_s: float,
    objective: str, rate: float | None = None, budget: float | None = None,
    max_gpus: int | None = None, confident: bool = False, share: float = 0.99,
) -> tuple[float, int]:  # fmt: skip
    """(the best value of the objective, number of candidates that satisfy), the slow way."""
    values = []
    for gpu, *axes in itertools.product(GPUS, *SPACE.values()):
        tp, pp, batch, quantization = axes
        try:
            runs = [
                rtsim.predict(arch, gpu, tp=tp, pp=pp, batch_size=batch, quantization=quantization,
                              input_len=p, output_len=o)
                for p, o, _ in requests
            ]  # fmt: skip
        except RtsimError:
            continue
        weights = [weight for *_, weight in requests]

        def met(times: list[float], limit: float, weights: list[float] = weights) -> bool:
            met_by = sum(w for t, w in zip(times, weights, strict=True) if t <= limit)
            return met_by >= share - 1e-12

        interval = [one.interval_90 for one in runs]
        ttft = [
            i.ttft_s.high if confident else r.ttft_s for r, i in zip(runs, interval, strict=True)
        ]
        tpot = [
            0.0
            if r.tpot_s is None or i.tpot_s is None
            else (i.tpot_s.high if confident else r.tpot_s)
            for r, i in zip(runs, interval, strict=True)
        ]
        if not all(r.memory.fits for r in runs) or not met(ttft, ttft_s) or not met(tpot, tpot_s):
            continue
        e2e = sum(w * r.e2e_latency_s for r, w in zip(runs, weights, strict=True))
        price = load_gpu(gpu).price
        assert price is not None
        replica_usd = price.usd_per_hour * tp * pp
        capacity = batch / e2e
        if rate is not None:
            dp = math.ceil(rate / capacity)
        else:
            assert budget is not None
            dp = math.floor(budget / replica_usd)
            if max_gpus is not None:
                dp = min(dp, max_gpus // (tp * pp))
        if dp < 1 or (max_gpus is not None and dp * tp * pp > max_gpus):
            continue
        if budget is not None and dp * replica_usd > budget:
            continue
        energy = sum(w * (r.energy_j or 0.0) for r, w in zip(runs, weights, strict=True)) / batch
        cost = dp * replica_usd if rate is not None else -dp * capacity
        values.append({"cost": cost, "latency": e2e, "energy": energy}[objective])
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
    limits = {"ttft_s": 0.5, "tpot_s": 0.03}
    expected, n_satisfying = enumerated(
        "llama-2-13b", [(512, 64, 1.0)], objective=objective, **limits, **load
    )
    arguments = {
        {"rate": "rate_per_s", "budget": "budget_usd_per_hour"}.get(name, name): value
        for name, value in load.items()
    }
    found = plan("llama-2-13b", GPUS, objective=objective, **SIZES, **limits, **arguments, **SPACE)
    assert 0 < n_satisfying == sum(found.n_satisfying.values())
    assert value_of(found) == pytest.approx(expected, rel=1e-9)
    lost = sum(n for counts in found.lost.values() for n in counts.values())
    assert lost + n_satisfying == found.n_candidates


@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_lengths_of_a_table_are_weighted(tmp_path: Path, share: float) -> None:
    path = tmp_path / "lengths.csv"
    pairs = [(100, 10)] * 3 + [(512, 64)] * 5 + [(1500, 1)] * 2
    path.write_text("prompt_tokens,output_tokens\n" + "".join(f"{p},{o}\n" for p, o in pairs))
    requests = [(100, 10, 0.3), (512, 64, 0.5), (1500, 1, 0.2)]
    limits = {"ttft_s": 0.3, "tpot_s": 0.02}
    expected, n_satisfying = enumerated(
        "llama-2-13b", requests, objective="cost", rate=20.0, share=share, **limits
    )
    found = plan("llama-2-13b", GPUS, lengths=path, rate_per_s=20.0, share=share, **limits, **SPACE)
    assert sum(found.n_satisfying.values()) == n_satisfying > 0
    assert found.best.usd_per_hour == pytest.approx(expected, rel=1e-9)


def test_buckets_are_near_the_whole_table() -> None:
    generator = np.random.default_rng(5)
    prompts = np.ceil(generator.lognormal(6, 0.7, 300))
    outputs = np.ceil(generator.lognormal(4, 0.7, 300))
    one = {"tp": 1, "pp": 1, "batch_size": 4, "rate_per_s": 1.0, "ttft_s": 10.0}
    found = plan("llama-2-13b", "a100", lengths=bucketed(prompts, outputs), **one).best
    every = rtsim.predict_many(
        {"model": "llama-2-13b", "gpu": "a100", "batch_size": 4, "input_len": prompts,
         "output_len": outputs}
    )  # fmt: skip
    assert found.e2e_latency_s == pytest.approx(every["e2e_latency_s"].mean(), rel=0.02)
    assert found.ttft_s == pytest.approx(np.sort(every["ttft_s"])[296], rel=1e-9)  # 297 of 300
    assert found.tpot_s == pytest.approx(np.sort(every["tpot_s"])[296], rel=0.02)
    assert found.memory_bytes == pytest.approx(every["memory_bytes"].max(), rel=1e-9)


def test_runner_ups_are_other_systems_in_order() -> None:
    found = plan("llama-2-13b", GPUS, rate_per_s=20.0, level="chat", **SIZES, **SPACE)
    systems = [found.best, *found.runner_ups]
    costs = [one.usd_per_hour for one in systems]
    assert costs == sorted(costs)
    assert len({(one.gpu, one.tp, one.pp, one.quantization) for one in systems}) == len(systems)
    assert (
        plan("llama-2-13b", "a100", rate_per_s=1, level="chat", runner_ups=0, **SIZES).runner_ups
        == ()
    )


def test_the_result_is_what_predict_says() -> None:
    best = plan("mixtral-8x7b", "h100", rate_per_s=5, level="chat", static=True, **SIZES).best
    one = rtsim.predict(
        "mixtral-8x7b",
        "h100",
        tp=best.tp,
        pp=best.pp,
        ep=best.ep,
        batch_size=best.batch_size,
        **SIZES,
    )
    assert best.ttft_s == pytest.approx(one.ttft_s, rel=1e-9)
    assert best.tpot_s == pytest.approx(one.tpot_s, rel=1e-9)
    assert best.ttft_s_high == pytest.approx(one.interval_90.ttft_s.high, rel=1e-9)
    assert best.num_gpus == best.dp * one.num_gpus
    assert best.load_frac == pytest.approx(5 / best.requests_per_s)
    assert best.ttft_margin_frac == pytest.approx(1 - best.ttft_s / 2.0)


def test_the_whole_space_of_a_node_is_there() -> None:
    """tp x pp <= 8 with tp that divides the 64 heads; ep divides tp."""
    dense = plan("llama-3.1-70b", "h100", rate_per_s=1, level="batch", batch_size=1, **SIZES)
    assert dense.n_candidates == sum(8 // tp for tp in (1, 2, 4, 8))
    experts = plan("mixtral-8x7b", "h100", rate_per_s=1, level="batch", batch_size=1, **SIZES)
    assert experts.n_candidates == 8 * 1 + 4 * 2 + 2 * 3 + 1 * 4
    assert not dense.errors


def test_confident_plans_hold_at_the_upper_end() -> None:
    sure = plan("llama-3.1-70b", "b200", rate_per_s=10, level="chat", confident=True,
                input_len=1000, output_len=256)  # fmt: skip
    assert sure.best.within_interval
    assert sure.best.ttft_s_high <= 2.0
    open_ = plan("llama-3.1-70b", "b200", rate_per_s=10, level="chat",
                 input_len=1000, output_len=256)  # fmt: skip
    assert (open_.best.usd_per_hour or 0) <= (sure.best.usd_per_hour or 0)


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(0.1, 200.0), more=st.floats(1.0, 5.0), ttft_s=st.floats(0.3, 3.0),
    objective=st.sampled_from(OBJECTIVES),
)  # fmt: skip
def test_more_load_and_stricter_levels_never_cost_less(
    value_of, rate: float, more: float, ttft_s: float, objective: str
) -> None:
    def best(rate: float, ttft_s: float) -> float:
        limits = {"ttft_s": ttft_s, "tpot_s": 0.2}
        return value_of(plan("llama-2-13b", GPUS, rate_per_s=rate, objective=objective,
                             **limits, **SIZES, **SPACE))  # fmt: skip

    assert best(rate * more, ttft_s) >= best(rate, ttft_s) * (1 - 1e-12)
    assert best(rate, ttft_s * more) <= best(rate, ttft_s) * (1 + 1e-12)


# Nothing satisfies -------------------------------------------------------------------------------

FIXES = re.compile(r"--(ttft|tpot|max-gpus|budget) (\S+?)(?:ms)?[, ]")


@pytest.mark.parametrize(
    "asked",
    [
        {"ttft_s": 0.001},
        {"ttft_s": 0.1, "tpot_s": 0.0001},
        {"level": "chat", "max_gpus": 1, "rate_per_s": 500.0},
        {"level": "chat", "budget_usd_per_hour": 1.0},
        {"level": "chat", "budget_usd_per_hour": 1.0, "rate_per_s": 1_060_007.0},
        {"level": "interactive", "input_len": 60000},
        {"ttft_s": 0.002, "confident": True},
        {"tpot_s": 0.001, "max_gpus": 2, "rate_per_s": 300.0, "budget_usd_per_hour": 5.0},
    ],
    ids=str,
)
def test_the_nearest_miss_and_its_fix(asked: dict[str, Any]) -> None:
    """What the message says would do does."""
    request = {"rate_per_s": 10.0, **SIZES, **SPACE, **asked}
    with pytest.raises(NothingSatisfies, match="candidates satisfies; nearest is") as caught:
        plan("llama-2-13b", GPUS, **request)
    text = str(caught.value)
    assert len(text) < 380
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


def test_models_that_fit_nowhere_say_so() -> None:
    with pytest.raises(
        NothingSatisfies, match=r"GB per GPU of .* GB. A larger --tp.*where that is"
    ):
        plan("llama-3.1-405b", "a100", tp=1, pp=1, rate_per_s=1, level="batch", **SIZES)


def test_an_encoder_needs_no_length_of_its_output() -> None:
    found = plan("bert-large", "a100", rate_per_s=10, ttft_s=0.1, input_len=128, tp=1, pp=1)
    assert (found.lengths.mean_output_len, found.static) == (1.0, True)


def test_gpus_without_a_price() -> None:
    unpriced = load_gpu("a100").with_({"price": None})
    with pytest.raises(NothingSatisfies, match="no price is known"):
        plan("gpt-j-6b", [unpriced], rate_per_s=1, level="chat", **SIZES)
    found = plan("gpt-j-6b", [unpriced], rate_per_s=1, level="chat", objective="energy", **SIZES)
    assert found.best.usd_per_hour is None


def test_impossible_splits_are_counted_and_explained() -> None:
    found = plan("llama-2-13b", "a100", rate_per_s=1, level="chat", tp=[1, 3], static=True, **SIZES)
    assert found.lost["not possible"] == {"a100": 10}
    assert "must divide the 40 attention heads" in found.errors[0][0]
    with pytest.raises(NothingSatisfies, match="must divide the 40 attention heads"):
        plan("llama-2-13b", "a100", rate_per_s=1, level="chat", tp=3, **SIZES)
    with pytest.raises(NothingSatisfies, match="has no experts"):
        plan("llama-2-13b", "a100", rate_per_s=1, level="chat", ep=4, **SIZES)


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"level": "chat"}, SpecError, "give the load"),
        ({"rate_per_s": 1}, SpecError, "give --ttft"),
        ({"rate_per_s": 1, "level": "chat", "ttft_s": 1.0}, SpecError, "limits of its own"),
        ({"rate_per_s": 1, "level": "chatt"}, UnknownName, "nearest: chat"),
        ({"rate_per_s": 0, "level": "chat"}, SpecError, "above zero"),
        ({"rate_per_s": "10", "level": "chat"}, SpecError, "rate = '10': must be a number"),
        ({"rate_per_s": 1, "level": "chat", "max_gpus": 1.5}, SpecError, "whole number"),
        ({"rate_per_s": math.nan, "level": "chat"}, SpecError, "above zero"),
        ({"rate_per_s": 1e18, "level": "chat"}, SpecError, "at most 1,000,000,000"),
        ({"budget_usd_per_hour": -1, "level": "chat"}, SpecError, "above zero"),
        ({"rate_per_s": 1, "level": "chat", "objective": "speed"}, UnknownName, "objective"),
        ({"rate_per_s": 1, "level": "chat", "share": 1.5}, SpecError, "at most 1"),
        ({"rate_per_s": 1, "level": "chat", "max_gpus": 0}, SpecError, "max_gpus"),
        ({"rate_per_s": 1, "level": "chat", "batch_size": [1.5]}, SpecError, "whole number"),
        ({"rate_per_s": 1, "level": "chat", "tp": "0"}, SpecError, "whole number"),
        ({"rate_per_s": 1, "level": "chat", "batch_size": "1:5m"}, SpecError, "at most"),
        ({"rate_per_s": 1, "level": "chat", "dp": 2}, UnknownName, "axis"),
        ({"rate_per_s": 1, "level": "chat", "dtype": "bf15"}, NothingSatisfies, "bf16"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_requests(asked: dict[str, Any], error: type[RtsimError], words: str) -> None:
    with pytest.raises(error, match=words):
        plan("gpt-j-6b", "a100", **SIZES, **asked)


def test_requests_need_lengths_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="give --output-len"):
        plan("gpt-j-6b", "a100", rate_per_s=1, level="chat", input_len=1)
    with pytest.raises(SpecError, match="give one of them"):
        plan(
            "gpt-j-6b", "a100", rate_per_s=1, level="chat", input_len=1, lengths=tmp_path / "x.csv"
        )


def test_levels_have_sources() -> None:
    assert all(level.source and level.name == name for name, level in LEVELS.items())


# The command -------------------------------------------------------------------------------------

COMMAND = ["plan", "--arch", "gpt-j-6b", "--gpu", "a100,h100", "--input-len", "512",
           "--output-len", "64"]  # fmt: skip


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMAND, "--rate", "5", "--level", "chat", "--static"]) == 0
    out = capsys.readouterr().out
    for words in ("cheapest; 300", "System", "Best, next", "satisfy", "static batching", "MLPerf"):
        assert words in out
    assert run([*COMMAND, "--rate", "5", "--ttft", "500ms", "--tpot", "50ms", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["level"]["ttft_s"] == 0.5
    assert found["best"]["num_gpus"] >= 1
    assert run([*COMMAND, "--budget", "50", "--level", "batch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["level"]["ttft_s"] is None


def test_figures_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    """As GPUs of a file that states the changed figure, and named in the notes."""
    request = [*COMMAND, "--rate", "50", "--level", "chat", "--static", "--json"]
    assert run([*request, "--set", "gpu.hbm_bytes_per_s=2x", "--set", "model.n_layers=14"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = found["best"]
    alone = rtsim.predict(
        "gpt-j-6b", best["gpu"], tp=best["tp"], pp=best["pp"], batch_size=best["batch_size"],
        set={"gpu.hbm_bytes_per_s": "2x", "model.n_layers": 14}, **SIZES,
    )  # fmt: skip
    assert best["ttft_s"] == pytest.approx(alone.ttft_s, rel=1e-12)
    assert best["e2e_latency_s"] == pytest.approx(alone.e2e_latency_s, rel=1e-12)
    assert "gpu.hbm_bytes_per_s = 2x, model.n_layers = 14" in found["notes"][0]
    assert run(request) == 0
    plain = json.loads(capsys.readouterr().out)["best"]
    assert plain["usd_per_hour"] > best["usd_per_hour"]


@pytest.mark.parametrize(
    "options",
    [
        ["--rate", "5", "--level", "chat"],
        ["--budget", "50", "--level", "batch", "--runner-ups", "0"],
        ["--rate", "5", "--ttft", "500ms", "--objective", "energy"],
        ["--rate", "5", "--tpot", "50ms", "--objective", "latency"],
    ],
)
def test_a_plan_is_drawn(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.svg"
    assert run([*COMMAND, *options, "--plot", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    drawn = path.read_text()
    assert f"{found['best']['num_gpus']} x {found['best']['gpu']}" in drawn  # matplotlib's comment


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "5", "--ttft", "5 parsecs"], "unknown unit"),
        (["--rate", "5", "--level", "chat", "--plot", "plan.txt"], "must end in .png"),
        (["--rate", "5", "--level", "chat", "--set", "gpu.hbm=2x"], "hbm_bytes_per_s"),
        (["--rate", "5", "--ttft", "-1s"], "above zero"),
        (["--rate", "x", "--level", "chat"], "not a valid float"),
        (["--rate", "5", "--level", "chat", "--gpu", "h1000"], "nearest: h100"),
        (["--rate", "5", "--level", "chat", "--lengths", "no.csv"], "give one of them"),
        (["--rate", "5", "--level", "chat", "--batch-size", "1:2:x0"], "goes nowhere"),
        (["--rate", "5", "--ttft", "1us"], "nearest is"),
        (["--rate", "5", "--level", "chat", "--arch", "gpt-j-6b,opt-13b"], "must be one model"),
    ],
)
def test_bad_options(refused, options: list[str], words: str) -> None:
    assert words in refused(*COMMAND, *options)


def test_junk_in_a_file_of_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,output_tokens\n512,64\n512,many\n")
    command = ["plan", "--arch", "gpt-j-6b", "--gpu", "a100", "--rate", "1", "--level", "chat"]
    assert run([*command, "--lengths", str(path)]) == 2
    assert "line 3, column output_tokens: 'many' is no" in capsys.readouterr().err


def test_systems_say_which_stack_they_were_taken_with() -> None:
    found = plan(
        "gpt-j-6b", ["a100", "h100"], rate_per_s=5.0, level="chat", input_len=512, output_len=64,
        static=True, runner_ups=20,
    )  # fmt: skip
    stacks = {one.gpu: one.stack for one in (found.best, *found.runner_ups)}
    for gpu, stack in stacks.items():
        assert stack == rtsim.predict("gpt-j-6b", gpu).stack
    assert any("stacks differ" in note for note in found.notes) == (len({*stacks.values()}) > 1)
    served = plan(
        "gpt-j-6b", "a100", rate_per_s=5.0, level="chat", input_len=512, output_len=64, tp=1, pp=1
    )
    assert served.best.stack == "vllm"
