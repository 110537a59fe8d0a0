"""Elasticities by plain differences, their signs and sums; flips hold where they are said to be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtsim
from rtsim.cli.main import run
from rtsim.errors import SpecError, UnknownName
from rtsim.explain import METRICS, Explanation, explain
from rtsim.varied_system import SM_COUNT

LARGE = {"tp": 8, "batch_size": 8, "input_len": 1000, "output_len": 256}
TIMES = METRICS[:3]


@pytest.fixture(scope="module")
def served() -> Explanation:
    return explain("llama-3.1-70b", "h100", **LARGE)


def of(found: Explanation, resource: str) -> Any:
    return next(one for one in found.elasticities if one.resource == resource)


@pytest.mark.parametrize("path", ["gpu.hbm_bytes_per_s", "link.bytes_per_s", "gpu.clock_hz"])
def test_elasticities_are_those_of_what_if(served: Explanation, path: str) -> None:
    less, more = (
        rtsim.predict("llama-3.1-70b", "h100", **LARGE, set={path: factor}, compiled=True)
        for factor in ("0.95x", "1.05x")
    )
    for metric in TIMES:
        slope = math.log(getattr(more, metric) / getattr(less, metric)) / math.log(1.05 / 0.95)
        assert getattr(of(served, path), metric) == pytest.approx(slope, abs=1e-9)
    assert of(served, path).usd_per_million_output_tokens == of(served, path).e2e_latency_s


def test_elasticities_to_sizes_are_plain_differences(served: Explanation) -> None:
    less, more = (
        rtsim.predict("llama-3.1-70b", "h100", **{**LARGE, "input_len": size}, compiled=True)
        for size in (1000 - 48, 1000 + 48)
    )
    slope = math.log(more.ttft_s / less.ttft_s) / math.log(1048 / 952)
    assert of(served, "input_len").ttft_s == pytest.approx(slope, abs=1e-9)
    assert of(served, "output_len").ttft_s == 0.0
    assert 0.85 < of(served, "output_len").e2e_latency_s < 1.0
    assert of(served, "batch_size").usd_per_million_output_tokens < -0.5  # shared weights


SYSTEMS = [
    ("llama-3.1-70b", "h100", {"tp": 8}), ("gpt3-175b", "a100", {"tp": 8}),
    ("llama-2-7b", "a100", {}),
    ("mixtral-8x7b", "mi300x", {"tp": 2, "quantization": "fp8"}), ("deepseek-v2-lite", "h100", {}),
    ("bert-large", "a100", {}),
]  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(
    system=st.sampled_from(SYSTEMS), batch=st.sampled_from([1, 7, 64]),
    prompt=st.sampled_from([64, 500]), output=st.sampled_from([1, 100]),
)  # fmt: skip
def test_more_hardware_never_takes_longer(
    system: tuple[str, str, dict[str, Any]], batch: int, prompt: int, output: int
) -> None:
    arch, gpu, options = system
    output = 1 if arch == "bert-large" else output
    found = explain(arch, gpu, batch_size=batch, input_len=prompt, output_len=output, **options)
    for one in found.elasticities:
        values = [v for metric in TIMES if (v := getattr(one, metric)) is not None]
        if one.kind == "hardware":
            # Kernels split their work for the SMs there are: a few more may cost a little.
            assert max(values) <= (0.1 if one.resource == SM_COUNT else 1e-9), one
            assert min(values) > -1.5
        else:
            assert min(values) > -0.05
    for metric in TIMES:
        total = found.hardware_sum(metric)
        assert total is None or -1.35 < total <= 1e-9


@pytest.mark.parametrize(
    ("arch", "gpu", "sizes"),
    [
        ("llama-3.1-70b", "h100", {"tp": 8, "batch_size": 8, "input_len": 1000}),
        ("llama-2-7b", "a100", {"batch_size": 16, "input_len": 2048}),
        ("gpt3-175b", "a100", {"tp": 8, "batch_size": 16, "input_len": 1024}),
    ],
)
def test_elasticities_of_a_busy_gpu_add_up_to_minus_one(
    arch: str, gpu: str, sizes: dict[str, Any]
) -> None:
    total = explain(arch, gpu, output_len=1, **sizes).hardware_sum("ttft_s")
    assert total == pytest.approx(-1.0, abs=0.12)


def test_what_bounds_comes_first() -> None:
    """Decoding one sequence of an eager stack waits for the host; a long prompt, for the math."""
    host = explain("gpt3-175b", "a100", tp=8, output_len=64)
    assert host.elasticities[0].resource == "host"
    assert host.elasticities[0].tpot_s < -0.85
    math_ = explain("llama-2-7b", "a100", batch_size=8, input_len=2048, output_len=1)
    peaks = [one for one in math_.elasticities if "peak" in one.resource]
    assert [one.name for one in peaks] == ["fp16 peak rate"]
    assert peaks[0].tpot_s is None


def test_flips_are_where_they_are_said_to_be(served: Explanation) -> None:
    """A prediction just inside the factor has the old bound, one at it the new one."""
    own = [
        flip for flip in served.flips
        if flip.resource in ("gpu.hbm_bytes_per_s", "link.bytes_per_s")
        and not flip.what.startswith("all of")
    ]  # fmt: skip
    assert len(own) >= 3

    def bound(flip: Any, factor: float) -> str:
        changed = rtsim.predict(
            "llama-3.1-70b", "h100", **LARGE, set={flip.resource: f"{factor!r}x"}, compiled=True
        )
        rows = [r for r in changed.breakdown if (r.operator, r.phase) == (flip.what, flip.phase)]
        return max(rows, key=lambda row: row.time_s).bound

    for flip in own[:6]:
        inside = flip.factor ** (1 - 0.05 / abs(math.log(flip.factor)))
        assert bound(flip, flip.factor) == flip.after != flip.before
        assert bound(flip, inside) == flip.before
    assert all(1 / 8 <= flip.factor <= 8 for flip in served.flips)


def test_the_host_bounds_a_phase_whose_track_is_the_longer() -> None:
    found = explain("gpt3-175b", "a100", tp=8, output_len=64)
    slower = [f for f in found.flips if f.what == "all of decode" and f.resource == "host"]
    assert [(f.before, f.factor > 1.0) for f in slower] == [("host", True)]


def test_what_does_not_matter_is_left_out() -> None:
    alone = explain("llama-2-7b", "a100")
    assert {one.resource for one in alone.elasticities}.isdisjoint(
        {"link.bytes_per_s", "network.bytes_per_s", "gpu.peak_fp64_flops_per_s"}
    )


def test_changed_systems_are_explained_as_they_are() -> None:
    found = explain("llama-2-7b", "a100", batch_size=8, set={"gpu.hbm_bytes_per_s": "4x"})
    plain = explain("llama-2-7b", "a100", batch_size=8)
    path = "gpu.hbm_bytes_per_s"
    assert (of(found, path).tpot_s or 0) > (of(plain, path).tpot_s or 0)
    assert found.prediction.what_if is not None


def test_encoders_and_full_contexts_have_one_sided_or_no_sizes() -> None:
    encoder = explain("bert-large", "a100", input_len=512)  # 512 positions: no longer prompt
    assert {one.resource for one in encoder.elasticities if one.kind == "workload"} == {
        "batch_size", "input_len",
    }  # fmt: skip


def test_bad_input() -> None:
    with pytest.raises(UnknownName, match="nearest: h100"):
        explain("llama-2-7b", "h1000")
    with pytest.raises(SpecError, match="must divide the 32"):
        explain("llama-2-7b", "a100", tp=3)


COMMAND = ["explain", "--arch", "llama-2-7b", "--gpu", "a100", "--batch-size", "8"]


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(COMMAND) == 0
    out = capsys.readouterr().out
    for words in ("% per % of", "memory bandwidth", "sum of hardware", "Flips at", "all of decode"):
        assert words in out
    assert run([*COMMAND, "--json", "--set", "gpu.hbm_bytes_per_s=2x"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["elasticities"][0]["kind"] == "hardware"
    assert set(found["hardware_sum"]) == set(METRICS)
    assert run([*COMMAND, "--plot", str(tmp_path / "tornado.svg")]) == 0
    assert (tmp_path / "tornado.svg").stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "tornado.txt"], "must end in"),
        (["--plot", "no/folder/tornado.png"], "no folder"),
        (["--tp", "3"], "must divide"),
        (["--batch-size", "x"], "not a whole number"),
    ],
)
def test_bad_options(refused, options: list[str], words: str) -> None:
    assert words in refused(*COMMAND, *options)
