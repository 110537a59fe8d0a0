"""Scores joined with metrics: tables, mapping files, frontiers, order changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtsim.curves import read_curves
from rtsim.errors import DataError, SpecError
from rtsim.predict import predict
from rtsim.scored_times import METRICS
from rtsim.scores import ModelMap, read_model_map, read_scores
from rtsim.study import load_study
from rtsim.tradeoff import only_scenario, tradeoff

TABLES = Path(__file__).parents[1] / "tables"
CAPABILITY = TABLES / "capability_part.csv"
HEADER = (
    "scenario,provider,model,mean_prompt_tokens,mean_output_tokens,mean_runtime_s,exact_match\n"
)
MAP = """
["anthropic/stanford-online-helpful-v4-s3"]
arch = "anthropic-52b"
denoised = "anthropic/stanford-online-all-v4-s3"
"""


def write(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text(header + "".join(f"{row}\n" for row in rows))
    return path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Two known models and one that nothing knows."""
    return write(
        tmp_path / "scores.csv",
        "easy,openai,davinci,512,64,9.0,0.8",
        "easy,openai,curie,512,64,1.0,0.6",
        "easy,acme,thinker,512,64,2.0,0.9",
        "hard,openai,davinci,1024,1,4.0,0.5",
        "hard,openai,curie,1024,1,0.5,0.5",
        "hard,acme,thinker,1024,1,1.0,0.4",
    )


def test_metrics_are_those_of_predictions(three: Path) -> None:
    study = load_study("paper")
    names = ["idealized_runtime", "idealized_cost", "idealized_energy"]
    result = tradeoff(three, names, stack="megatron-lm", study=study)
    p = predict("gpt3-175b", "a100", tp=8, stack="megatron-lm", input_len=512, output_len=64)
    expected = (p.e2e_latency_s, p.cost.usd_per_request, p.energy_j)
    for view, value in zip(result.views, expected, strict=True):
        easy = next(panel for panel in view.scenarios if panel.scenario == "easy")
        point = next(point for point in easy.points if point.model == "openai/davinci")
        assert point.x == pytest.approx(value, rel=1e-9)


def test_lengths_between_whole_tokens(tmp_path: Path) -> None:
    rows = [f"s{o},openai,curie,100,{o},1.0,0.5" for o in (4, 4.5, 5)]
    result = tradeoff(write(tmp_path / "t.csv", *rows), ["idealized_runtime"])
    four, middle, five = (panel.points[0].x for panel in result.views[0].scenarios)
    assert middle == pytest.approx((four + five) / 2)


def test_frontier_and_who_dominates(three: Path) -> None:
    (view,) = tradeoff(three, ["raw_runtime"]).views
    easy, hard = view.scenarios
    assert easy.frontier == ("openai/curie", "acme/thinker")
    assert next(p for p in easy.points if p.model == "openai/davinci").dominated_by == (
        "acme/thinker",
    )
    assert hard.frontier == ("openai/curie",)
    assert view.shared_scenarios == 2
    assert [p.model for p in view.overall.points] == [
        "openai/curie", "acme/thinker", "openai/davinci",
    ]  # fmt: skip


def test_unknown_models_are_kept_and_marked(three: Path) -> None:
    raw, idealized = tradeoff(three, ["raw_runtime", "idealized_runtime"]).views
    assert "acme/thinker" in {p.model for p in raw.overall.points}
    (mark,) = [mark for mark in idealized.marked if mark.left_out]
    assert mark.model == "acme/thinker"
    assert "a mapping file can say" in mark.reason


def test_a_mapping_file_joins_them(three: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.toml"
    path.write_text('["acme/thinker"]\narch = "opt-66b"\nnum_gpus = 4\n')
    result = tradeoff(three, ["idealized_runtime"], model_map=read_model_map(path))
    assert "acme/thinker" in {p.model for p in result.views[0].overall.points}
    (mark,) = result.views[0].marked
    assert (mark.reason, mark.left_out) == ("taken as opt-66b on 4 GPUs", False)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('["x"]\narch = "opt-66"\n', DataError, r"map.toml: 'x': arch: .*nearest: opt-66b"),
        ('["x"]\nacrh = "opt-66b"\n', DataError, "no field 'acrh'"),
        ('["x"]\narch = "opt-66b"\nnum_gpus = 0\n', DataError, "num_gpus = 0"),
        ('x = "opt-66b"\n', DataError, "must be a table"),
        ("[[", DataError, "malformed TOML"),
    ],
)
def test_faulty_mapping_files(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "map.toml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_model_map(path)


def test_order_changes_are_on_equal_terms(three: Path) -> None:
    """The unknown model has no idealized runtime: it takes no part in what changes."""
    result = tradeoff(three, ["raw_runtime", "idealized_runtime"])
    (change,) = result.changes
    assert change.kendall_tau == 1.0
    assert not change.swapped
    assert "acme/thinker" not in {name for pair in change.swapped for name in pair}


def test_published_scores(tmp_path: Path) -> None:
    """A part of the paper's table: j1-grande is slow by its stack, not by its size."""
    path = tmp_path / "map.toml"
    path.write_text(MAP)
    result = tradeoff(
        CAPABILITY, ["raw_runtime", "denoised_runtime", "idealized_runtime"], stack="megatron-lm",
        study=load_study("paper"), curves=read_curves(TABLES / "denoised_part.csv"),
        model_map=read_model_map(path),
    )  # fmt: skip
    raw, _, idealized = result.views
    order = {view.metric: [p.model for p in view.overall.points] for view in (raw, idealized)}
    assert order["raw_runtime"].index("ai21/j1-grande") > order["raw_runtime"].index(
        "openai/davinci"
    )
    assert order["idealized_runtime"].index("ai21/j1-grande") < order["idealized_runtime"].index(
        "openai/davinci"
    )
    change = result.changes[1]
    assert ("openai/davinci", "ai21/j1-grande") in change.swapped
    assert change.kendall_tau < 0.8
    (piqa,) = only_scenario(result, "commonsense_qa:dataset=piqa,method=mcqa").views[0].scenarios
    assert "openai/text-davinci-002" in piqa.frontier


def test_variants_of_a_model_are_other_scenarios(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "s,openai,davinci,10,1,1.0,0.5",
        '"s","openai","davinci,trials=3",30,1,2.0,0.6',
    )
    scores = read_scores(path, "exact_match").scores
    assert [(s.scenario, s.model) for s in scores] == [
        ("s", "openai/davinci"),
        ("s (trials=3)", "openai/davinci"),
    ]


def test_long_prompts_are_timed_and_marked(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "s,openai,davinci,3500,10,1.0,0.5")
    (view,) = tradeoff(path, ["idealized_runtime"]).views
    assert view.scenarios[0].points[0].x > 0.0
    assert "2048 positions" in view.marked[0].reason


def test_unusable_rows_are_said_so(tmp_path: Path) -> None:
    good = "s,openai,davinci,10,1,1.0,0.5"
    path = write(
        tmp_path / "t.csv", good, good, "s,openai,curie,,1,1.0,0.5", "s,openai,curie,10,1,0,0.5",
        "s,openai,curie,10,1,1.0,much", ",openai,curie,10,1,1.0,0.5", "t,openai,curie,10,1,,0.5",
    )  # fmt: skip
    result = tradeoff(path, ["idealized_runtime"])
    assert [line for line, _ in result.unusable_rows] == [3, 4, 5, 6, 7]
    # A row without a measured runtime is one for idealized metrics all the same.
    assert {panel.scenario for panel in result.views[0].scenarios} == {"s", "t"}
    with pytest.raises(DataError, match="line 2: no usable row"):
        read_scores(write(tmp_path / "t.csv", "s,openai,curie,,1,1.0,0.5"), "exact_match")


@pytest.mark.parametrize(
    ("xs", "y", "message"),
    [
        (["idealised_cost"], "exact_match", "nearest: idealized_cost"),
        ([], "exact_match", "must be one of"),
        (["denoised_runtime"], "exact_match", "needs a table of denoised"),
        (["raw_runtime"], "exact_mach", "'exact_mach' is missing; is it 'exact_match'"),
    ],
)
def test_bad_questions(three: Path, xs: list[str], y: str, message: str) -> None:
    with pytest.raises((SpecError, DataError), match=message):
        tradeoff(three, xs, y)


def test_a_table_of_unknown_models_only(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "s,acme,thinker,10,1,1.0,0.5")
    with pytest.raises(SpecError, match="no row has it: unknown model 'acme/thinker'"):
        tradeoff(path, ["idealized_cost"], model_map=ModelMap({}))
    assert len(METRICS) == 5
