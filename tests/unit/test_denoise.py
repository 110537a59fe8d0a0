"""Denoised runtimes from tables of latencies, and tables that are too thin or faulty for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from rtsim.curves import Curve, read_curves, write_curves
from rtsim.denoise import denoise, denoise_model
from rtsim.errors import DataError
from rtsim.idealized_against import against_idealized
from rtsim.latencies import Latency, read_latencies
from rtsim.predict import predict
from rtsim.prediction import Interval
from rtsim.scores import ModelMap, Stand
from rtsim.study import load_study

TABLES = Path(__file__).parents[1] / "tables"
PROMPTS = (1, 256, 512, 1024)
OUTPUTS = (1, 2, 4, 8, 16, 32)


def alone_s(p: int, o: int) -> float:
    """Overhead 0.2, prefill from 0.02 on, 0.02 per output token."""
    return 0.2 + 0.02 + 2e-4 * (p - 1) + 0.02 * (o - 1)


def calls(
    waiting: Callable[[int, int, int], float] = lambda p, o, r: 0.0,
    prompts: Iterable[int] = PROMPTS,
    outputs: Iterable[int] = OUTPUTS,
    repeats: int = 3,
) -> list[Latency]:
    return [
        Latency(0, p, o, alone_s(p, o) + waiting(p, o, r))
        for p in prompts
        for o in outputs
        for r in range(repeats)
    ]


def test_an_idle_api_comes_back_exactly() -> None:
    fit = denoise_model("m", calls())
    curve = fit.curve
    assert curve.per_output_token_s == pytest.approx(0.02)
    assert curve.overhead_s == pytest.approx(0.2)
    assert curve.prefill_s == pytest.approx([0.02 + 2e-4 * (p - 1) for p in PROMPTS])
    assert curve.runtime_s(700, 20) == pytest.approx(alone_s(700, 20))
    assert curve.runtime_s(2000, 1) == pytest.approx(alone_s(2000, 1))
    assert not fit.thin
    assert not fit.notes


def test_contention_spikes_do_not_move_it() -> None:
    random = np.random.default_rng(3)
    spiky = calls(lambda p, o, r: 30.0 * random.random() if r else 0.0)
    assert denoise_model("m", spiky).curve.per_output_token_s == pytest.approx(0.02, rel=0.01)


def test_truncated_outputs_are_marked_and_left_out() -> None:
    """64 tokens asked, two came: the call is far too fast."""
    rows = calls()
    rows += [Latency(77, 512, 32, alone_s(512, 2)), Latency(78, 1024, 16, alone_s(1024, 1))]
    fit = denoise_model("m", rows)
    assert [row.line for row in fit.marked] == [77, 78]
    assert fit.marked[0].reason == (
        "prompt 512, output 32 in 342 ms, 64% below the floor of the table: output cut short?"
    )
    assert fit.curve.per_output_token_s == pytest.approx(0.02, rel=0.01)


def test_prefill_never_falls() -> None:
    """Waiting that only short prompts have must not turn the curve around."""
    fit = denoise_model("m", calls(lambda p, o, r: 0.5 if p == 256 else 0.0))
    assert list(fit.curve.prefill_s) == sorted(fit.curve.prefill_s)
    assert min(fit.curve.prefill_s) >= fit.curve.per_output_token_s - 1e-12


def test_thin_cells_are_named() -> None:
    rows = [row for row in calls(repeats=2) if (row.prompt_tokens, row.output_tokens) != (512, 8)]
    fit = denoise_model("m", rows)
    assert "prompt 512, output 8: no call" in fit.thin
    assert "prompt 1, output 1: 2 repeats" in fit.thin
    assert "at most 2 repeats" in fit.notes[0]
    waiting = denoise_model("m", calls(lambda p, o, r: 1.0 if (p, o) == (256, 4) else 0.0))
    assert [cell for cell in waiting.thin if "above the floor" in cell] == [
        "prompt 256, output 4: fastest 302% above the floor"
    ]


def test_one_repeat_is_enough_for_a_fit() -> None:
    fit = denoise_model("m", calls(repeats=1))
    assert fit.curve.per_output_token_s == pytest.approx(0.02)
    assert "at most 1 repeat of a cell" in fit.notes[0]


def test_prompts_that_cannot_tell_the_overhead() -> None:
    one = denoise_model("m", calls(prompts=[512]))
    assert one.curve.overhead_s is None
    assert "one prompt length (512)" in one.notes[0]
    assert one.curve.runtime_s(512, 4) == pytest.approx(alone_s(512, 4))
    longer = denoise_model("m", calls(prompts=[256, 512, 1024]))
    assert longer.curve.overhead_s == pytest.approx(0.2, rel=0.01)
    assert "extrapolated from 256 tokens" in longer.notes[0]


def test_one_output_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"m has one output length \(8\)"):
        denoise_model("m", calls(outputs=[8]))


# Tables


def write(path: Path, text: str) -> Path:
    path.write_text("provider,model,prompt_tokens,output_tokens,repeat,runtime_s\n" + text)
    return path


def test_published_latencies_of_one_model() -> None:
    """Per output token within 10 % of the published fit, which had more repeats."""
    published = read_curves(TABLES / "denoised_part.csv")
    (fit,) = denoise(read_latencies(TABLES / "api_latency_j1_large.csv"))
    assert fit.curve.model == "ai21/j1-large"
    known = published["ai21/j1-large"].per_output_token_s
    assert fit.curve.per_output_token_s == pytest.approx(known, rel=0.10)
    interval = fit.per_output_token_interval_s
    assert interval.low < known < interval.high


def test_faulty_rows_are_marked_and_the_rest_is_used(tmp_path: Path) -> None:
    text = "".join(
        f"p,m,{row.prompt_tokens},{row.output_tokens},1,{row.runtime_s}\n" for row in calls()
    )
    faulty = "p,m,1,4,1,0\np,m,1,4,1,-3\np,m,,4,1,1\np,m,1,4,1,nan\np,m,1,4,1,9e9\np,m,1,0,1,1\n"
    table = read_latencies(write(tmp_path / "t.csv", text + faulty))
    reasons = [row.reason for row in table.marked]
    assert len(reasons) == 6
    for reason, words in zip(
        reasons,
        ("did the clock jump", "did the clock jump", "prompt_tokens is missing", "not a finite",
         "longer than a day", "output_tokens 0"),
        strict=True,
    ):  # fmt: skip
        assert words in reason
    assert table.marked[0].line == 2 + len(calls())
    (fit,) = denoise(table)
    assert fit.curve.per_output_token_s == pytest.approx(0.02)
    assert len(fit.marked) == 6


def test_models_are_kept_apart(tmp_path: Path) -> None:
    lines = [
        f"p,{model},{r.prompt_tokens},{r.output_tokens},1,{factor * r.runtime_s}\n"
        for model, factor in (("slow", 2.0), ("fast", 1.0))
        for r in calls()
    ]
    table = read_latencies(write(tmp_path / "t.csv", "".join(lines)))
    slow, fast = denoise(table)
    assert slow.curve.per_output_token_s == pytest.approx(2.0 * fast.curve.per_output_token_s)
    assert list(read_latencies(tmp_path / "t.csv", "p/fast").by_model) == ["p/fast"]
    with pytest.raises(DataError, match="nearest: p/fast"):
        read_latencies(tmp_path / "t.csv", "p/fats")


def test_what_came_back_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "prompt_tokens,output_tokens,runtime_s,received_tokens,status\n"
        "1,32,0.3,5,short\n1,32,0.9,32,ok\n1,32,9.0,0,stalled: nothing for 60 s\n1,8,0.2,0,ok\n"
    )
    table = read_latencies(path)
    assert [row.output_tokens for row in table.by_model["t"]] == [5, 32]
    assert [row.reason for row in table.marked] == [
        "5 tokens came back of 32 asked: taken at 5",
        "the call failed: stalled: nothing for 60 s",
        "no token came back of 8 asked",
    ]


def test_a_table_without_a_usable_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: no usable row: .*clock jump.*all 2 rows"):
        read_latencies(write(tmp_path / "t.csv", "p,m,1,1,1,0\np,m,1,2,1,-1\n"))


def test_curves_are_written_and_read_again(tmp_path: Path) -> None:
    curve = Curve("p/m", (1, 512), (0.02, 0.2), 0.02, 0.3)
    write_curves(tmp_path / "c.csv", [curve], "test")
    assert read_curves(tmp_path / "c.csv") == {"p/m": curve}
    with pytest.raises(DataError, match="kind denoised is wanted"):
        read_curves(TABLES / "api_latency_j1_large.csv")


# Against idealized


def test_an_api_that_is_the_idealized_system() -> None:
    p = predict("gpt3-6.7b", "a100", stack="vllm")
    curve = Curve("x/m", (1, 512), (p.tpot_s, p.ttft_s), p.tpot_s, 0.1)
    stands = ModelMap({"x/m": Stand("gpt3-6.7b", mapped=True)})
    (one,), rest = against_idealized([curve], stack="vllm", model_map=stands)
    assert not rest
    assert one.ratio == pytest.approx(1.0)
    assert one.prefill_ratio == pytest.approx(1.0)
    assert one.reading == "as fast as this system"
    assert one.explained_by == 1


def test_how_many_gpus_would_explain_a_fast_api() -> None:
    four = predict("gpt3-6.7b", "a100", stack="vllm", tp=4)
    curve = Curve("openai/curie", (1, 512), (four.tpot_s, four.ttft_s), four.tpot_s, 0.1)
    (one,), _ = against_idealized([curve], stack="vllm", study=load_study("paper"))
    assert (one.num_gpus, one.explained_by) == (1, 4)
    assert "4 GPUs would explain it" in one.reading
    assert one.ratio_interval_90.high < 1.0


def test_how_large_a_batch_would_explain_a_slow_api() -> None:
    slow = predict("gpt3-6.7b", "a100", stack="vllm", batch_size=32)
    step_s = 0.999 * slow.tpot_s  # just under, so that rounding does not ask for more
    curve = Curve("openai/curie", (1, 512), (step_s, 0.999 * slow.ttft_s), step_s, 0.1)
    (one,), _ = against_idealized([curve], stack="vllm")
    assert one.ratio > 1.0
    assert one.explained_by_batch == 32
    assert "batches of 32" in one.reading


def test_a_curve_that_is_hardly_known_proves_nothing() -> None:
    p = predict("gpt3-6.7b", "a100", stack="vllm")
    curve = Curve("openai/curie", (1, 512), (2 * p.tpot_s, 2 * p.ttft_s), 2 * p.tpot_s, 0.1)
    wide = {"openai/curie": Interval(0.5 * p.tpot_s, 3.5 * p.tpot_s)}
    (sure,), _ = against_idealized([curve], stack="vllm")
    (unsure,), _ = against_idealized([curve], stack="vllm", known_within=wide)
    assert sure.reading.startswith("slower")
    assert unsure.reading.startswith("perhaps as fast as this system")
    assert unsure.ratio == sure.ratio
    assert unsure.ratio_interval_90.low < 0.5
    assert unsure.ratio_interval_90.high > 3.5


def test_models_that_are_not_known_are_said_so() -> None:
    curve = Curve("x/unheard-of", (1,), (0.01,), 0.01, 0.1)
    compared, (rest,) = against_idealized([curve])
    assert not compared
    assert "a mapping file can say" in rest.reason
