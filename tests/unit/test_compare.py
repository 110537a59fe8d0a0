"""Comparisons: cost and energy from runtime, ranks, groups that sum up, GPU counts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rtsim.catalog import load_model
from rtsim.compare import GROUPS, HOST, Comparison, compare
from rtsim.errors import DataError, DoesNotFit, SpecError, UnknownName
from rtsim.gpus_needed import system_on
from rtsim.measurements import read_table
from rtsim.power import energy_j
from rtsim.predict import predict
from rtsim.study import load_study


@pytest.fixture(scope="module")
def three() -> Comparison:
    return compare(["gpt3-175b", "gpt3-6.7b", "gpt3-350m"], ["a100"], ["megatron-lm"])


def test_cost_and_energy_are_runtime_times_gpus(three: Comparison) -> None:
    for one in three.systems:
        p = one.prediction
        gpu_seconds = one.runtime_s * p.num_gpus
        assert p.cost is not None
        assert one.cost_usd == pytest.approx(gpu_seconds / 3600.0 * p.cost.usd_per_gpu_hour)
        assert one.energy_j == pytest.approx(gpu_seconds * 400.0)
        assert one.per_token("cost") == pytest.approx(one.cost_usd / 64)


def test_ranks_follow_the_metric_and_its_interval(three: Comparison) -> None:
    for metric in ("runtime", "cost", "energy"):
        ordered = sorted(three.systems, key=lambda one: one.metric(metric))
        assert [one.ranks[metric].rank for one in ordered] == [1, 2, 3]
        for one in three.systems:
            rank, own = one.ranks[metric], one.interval(metric)
            assert own.low < one.metric(metric) < own.high
            assert rank.best <= rank.rank <= rank.worst
    # 175 B and 350 M are far apart: their places are sure.
    assert (three.systems[0].ranks["runtime"].best, three.systems[2].ranks["cost"].worst) == (3, 1)


def test_the_same_system_twice_shares_its_places() -> None:
    both = compare(["gpt3-6.7b", "gpt3-6.7b"]).systems
    assert [(r.rank, r.best, r.worst) for r in (one.ranks["cost"] for one in both)] == [
        (1, 1, 2),
        (1, 1, 2),
    ]


def test_groups_sum_to_the_runtime() -> None:
    result = compare(["llama-2-7b", "gpt3-13b"], ["a100", "h100"], ["megatron-lm", "vllm"])
    for one in result.systems:
        assert set(one.time_s_by_group) == set(GROUPS)
        assert sum(one.time_s_by_group.values()) == pytest.approx(one.runtime_s)
    assert len(result.differences) == 6  # three further systems for each model
    for difference in result.differences:
        assert sum(difference.delta_s_by_group.values()) == pytest.approx(difference.delta_s)


def test_a_fused_stack_is_faster_for_its_host_track() -> None:
    (difference,) = compare(["llama-2-7b"], ["a100"], ["megatron-lm", "vllm"]).differences
    assert difference.runtime_ratio < 0.7
    assert difference.main_groups[0][0] == HOST
    assert difference.delta_s_by_group["attention"] < 0.0


def test_fewest_gpus_hold_the_model_and_one_less_does_not() -> None:
    chosen = system_on("gpt3-175b", "a100")
    gpus = chosen.parallelism.num_gpus
    assert chosen.predict(1, 512, 64).memory.fits
    less = [predict("gpt3-175b", "a100", tp=tp) for tp in (1, 2, 3, 4) if tp < gpus]
    assert not any(p.memory.fits for p in less)
    beyond = system_on("mt-nlg-530b", "a100")  # whole nodes
    assert (beyond.parallelism.tp, beyond.parallelism.pp) == (8, 2)
    assert beyond.predict(1, 512, 64).memory.fits


def test_stated_gpus_are_split_by_tensor_parallelism_first() -> None:
    split = system_on("mt-nlg-530b", "a100", num_gpus=24).parallelism
    assert (split.tp, split.pp) == (8, 3)
    with pytest.raises(SpecError, match="num_gpus = 0"):
        system_on("gpt3-6.7b", "a100", num_gpus=0)
    with pytest.raises(SpecError, match="num_gpus = 1009"):
        system_on("gpt3-6.7b", "a100", num_gpus=1009)
    with pytest.raises(DoesNotFit, match="fits on no number of p4"):
        system_on("gpt3-175b", "p4")


def test_energy_by_use_lies_between_idle_and_rated() -> None:
    for arch in ("gpt3-350m", "gpt3-175b", "opt-66b"):
        p = predict(arch, "a100", num_gpus=8)
        rated, used = energy_j(p), energy_j(p, "utilisation", idle_frac=0.15)
        assert 0.15 * rated < used < rated
        assert energy_j(p, "utilisation", idle_frac=1.0) == pytest.approx(rated)
    with pytest.raises(SpecError, match=r"idle_frac = 1\.5"):
        energy_j(p, "utilisation", idle_frac=1.5)


def test_what_cannot_be_predicted_is_refused_and_the_rest_stands() -> None:
    result = compare(["gpt3-6.7b", "gpt3-175b"], ["p4"], ["vllm"])
    assert [one.prediction.model.name for one in result.systems] == ["gpt3-6.7b"]
    assert "gpt3-175b fits on no number of p4" in result.refused[0].reason
    for names in ({"archs": ["gpt3-6.7b", "gpt3-6.8"]}, {"archs": ["gpt2"], "gpus": ["a1000"]},
                  {"archs": ["gpt2"], "stacks": ["vllm", "vlm"]}):  # fmt: skip
        with pytest.raises(UnknownName, match="nearest"):
            compare(**names)
    with pytest.raises(SpecError, match="energy_model"):
        compare(["gpt3-6.7b"], energy_model="coal")  # type: ignore[arg-type]


def test_stacks_that_nobody_named_are_said_to_differ() -> None:
    both = compare(["gpt3-6.7b"], ["a100", "h100"])
    assert any(note.startswith("stacks differ: a100") for note in both.notes)
    assert not [
        n for n in compare(["gpt3-6.7b"], ["a100", "h100"], ["vllm"]).notes if "stacks" in n
    ]


# Studies


def test_the_study_of_the_paper_has_ten_families_that_fit() -> None:
    study = load_study("paper")
    assert len({model.family for model in study.models}) == 10
    result = compare([m.arch for m in study.models], [study.gpu], [study.stack], study=study)
    assert not result.refused
    for one, model in zip(result.systems, study.models, strict=True):
        assert one.prediction.num_gpus == model.num_gpus
        assert one.prediction.memory.fits, model.arch
        assert one.min_gpus <= model.num_gpus


def test_gpu_counts_are_what_their_source_says() -> None:
    """Derived: the smallest power of two that holds the weights. Runs: those of the fitted rows."""
    tables = Path(__file__).parents[2] / "calibration" / "tables"
    columns = read_table(tables / "generation_a100.csv").columns
    in_runs = {
        load_model(str(name)).name: int(gpus)
        for name, gpus in zip(columns["model"], columns["num_gpus"], strict=True)
        if name != "gpt2"  # a label for other shapes
    }
    by_memory = []
    for model in load_study("paper").models:
        source = model.gpus_source
        if source == "derived":
            need = 2.0 * load_model(model.arch).parameters / 80e9
            assert model.num_gpus == 2 ** max(0, math.ceil(math.log2(need))), model.arch
        elif source.startswith("runs"):
            assert model.num_gpus == in_runs[source.partition(" of ")[2] or model.arch], model.arch
        else:
            by_memory.append((model.arch, source))
    assert by_memory == [("mt-nlg-530b", "paper, by memory")]


def test_study_counts_are_of_its_gpu_only() -> None:
    study = load_study("paper")
    assert study.gpus_for("gpt3-175b", "A100-SXM4-80GB")[0] == 8
    assert study.gpus_for_name("openai/davinci", "a100") == 8
    assert study.gpus_for("gpt3-175b", "h100")[0] is None
    assert study.gpus_for("llama-2-7b", "a100")[0] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu = 'a100'", "stack is missing|models is missing"),
        (
            "gpu='a100'\nstack='vllm'\ninput_len=1\noutput_len=1\n"
            "models=[{arch='gpt3-6.7b', num_gpus=0}]",
            "num_gpus = 0",
        ),
        ("gpu='a100'\nstack='vllm'\ninput_len=1\noutput_len=1\nmodels=[]", "names no model"),
        ("models = 5", "is no study"),
    ],
)
def test_faulty_studies(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_study(path)
