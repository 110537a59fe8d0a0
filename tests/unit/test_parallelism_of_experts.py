"""Expert, attention-data, context and pipeline parallelism: counts, shares, limits."""

import math
from dataclasses import replace

import pytest

from rtsim.catalog import load_gpu
from rtsim.errors import SpecError
from rtsim.specs import ModelSpec, ParallelismSpec
from rtsim.system import System

MOE = {"kind": "moe", "n_experts": 64, "top_k": 4, "expert_size": 1024, "shared_size": 1024}


def mixture(**moe) -> ModelSpec:
    layer = {
        "count": 4, "norm": "rmsnorm",
        "attention": {"n_heads": 16, "n_kv_heads": 8, "head_dim": 128}, "mlp": {**MOE, **moe},
    }  # fmt: skip
    return ModelSpec(
        name="mixture", hidden_size=2048, vocab_size=32000, max_positions=65536, layers=[layer]
    )


def made(model: ModelSpec | None = None, gpu: str = "h100", **degrees: int) -> System:
    return System(model or mixture(), load_gpu(gpu), ParallelismSpec(**degrees), stack="vllm")


def named(system: System, name: str):
    return system.table.rows[system.table.names.index(name)]


def test_ep_above_tp_makes_replicas_share_experts() -> None:
    """vLLM's eight data-parallel GPUs with expert parallelism: one instance of eight."""
    p = ParallelismSpec(tp=1, dp=8, ep=8)
    assert (p.attention_dp, p.dp, p.num_gpus, p.moe_tp, p.sequence_groups) == (8, 1, 8, 1, 8)
    two = ParallelismSpec(tp=2, dp=8, ep=8)
    assert (two.attention_dp, two.dp, two.num_gpus) == (4, 2, 16)


def test_within_tensor_parallelism_experts_are_split_without_travel() -> None:
    whole, sliced = made(tp=8, ep=8), made(tp=8)
    assert named(whole, "experts")["n_local_experts"] == 8
    assert named(whole, "experts")["n"] == 1024
    assert named(sliced, "experts")["n_local_experts"] == 64
    assert named(sliced, "experts")["n"] == 128
    assert not any(name.startswith("expert dispatch") for name in whole.table.names)


def test_tokens_of_all_groups_meet_at_the_experts() -> None:
    system = made(dp=8, ep=8)
    experts, dispatch = named(system, "experts"), named(system, "expert dispatch")
    assert experts["per_token"] == 8.0
    assert dispatch["ranks"] == 8
    assert dispatch["per_token"] == 4 * 2048 * 2  # four experts, bf16
    assert named(system, "QKV projection")["n"] == (16 + 16) * 128  # attention is whole


def test_sliced_experts_gather_and_scatter() -> None:
    system = made(attention_dp=4, ep=1)
    assert named(system, "expert all-gather")["per_token"] == 4 * 2048 * 2
    assert named(system, "experts")["n"] == 256


def test_each_group_has_its_part_of_the_batch() -> None:
    whole = made(dp=8, ep=8)
    eight, one = whole.times(8, 512, 8), whole.times(1, 512, 8)
    assert eight == one  # one sequence per group either way
    result = whole.predict(3, 512, 8)
    assert any("5 of 8 attention groups idle" in note for note in result.notes)


def test_expert_weights_are_divided_over_all_gpus_of_a_stage() -> None:
    alone, spread = made().predict(1, 512, 8).memory, made(dp=8, ep=8).predict(8, 512, 8).memory
    experts = 4 * 64 * 3 * 2048 * 1024 * 2
    assert alone.weights_bytes - spread.weights_bytes == pytest.approx(experts * 7 / 8)


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        ({"tp": 4, "ep": 3}, "must divide tp * dp"),
        ({"dp": 128, "ep": 128}, "at most the 64 experts"),
        ({"tp": 3}, "must divide the 16 attention heads"),
        ({"pp": 5}, "at most the 4 layers"),
    ],
)
def test_impossible_splits_are_refused(degrees, words) -> None:
    with pytest.raises(SpecError, match=words.replace("*", r"\*")):
        made(**degrees)


def test_a_dense_model_has_no_experts_to_share() -> None:
    from rtsim.catalog import load_model

    with pytest.raises(SpecError, match="has no experts"):
        made(load_model("llama-3-8b"), tp=2, ep=2)
    with pytest.raises(SpecError, match="has no experts to share"):
        made(load_model("llama-3-8b"), attention_dp=2)


def test_experts_that_do_not_divide_are_said() -> None:
    notes = ParallelismSpec(tp=8, ep=8).check_model(mixture(n_experts=60))
    assert any("60 experts do not divide by ep = 8; the fullest GPU keeps 8" in n for n in notes)


def test_context_parallelism_shortens_long_prompts_and_shares_the_cache() -> None:
    from rtsim.catalog import load_model

    llama = load_model("llama-3.1-8b")
    one, four = made(llama).predict(1, 65536, 8), made(llama, cp=4).predict(1, 65536, 8)
    assert 2.5 < one.ttft_s / four.ttft_s < 4.0
    assert four.num_gpus == 4
    assert four.memory.kv_cache_bytes == pytest.approx(one.memory.kv_cache_bytes / 4)
    work = sum(r.flops for r in one.breakdown if r.operator == "attention" and r.phase == "prefill")
    part = sum(
        r.flops for r in four.breakdown if r.operator == "attention" and r.phase == "prefill"
    )
    assert part == pytest.approx(work / 4, rel=1e-3)  # dealt evenly


def test_micro_batches_fill_the_pipeline() -> None:
    """Four of them on four stages: 7/4 passes of a quarter instead of one of the whole."""
    from rtsim.catalog import load_model

    model = load_model("gpt3-175b")
    alone, split = made(model, tp=2, pp=4), made(model, tp=2, pp=4, micro_batches=4)
    quarter = alone.predict(8, 1024, 2)
    whole = split.predict(32, 1024, 2)
    assert whole.ttft_s == pytest.approx(quarter.ttft_s * 7 / 4)
    assert whole.tpot_s == pytest.approx(quarter.tpot_s)
    assert whole.ttft_s < alone.predict(32, 1024, 2).ttft_s
    before = 0.0
    for batch in range(1, 14):
        now = split.times(batch, 512, 4).e2e_latency_s
        assert now >= before
        before = now


def test_a_rack_of_72_keeps_expert_traffic_on_the_link() -> None:
    rack, boxes = made(gpu="gb200", dp=64, ep=64), made(gpu="b200", dp=64, ep=64)
    assert named(rack, "expert dispatch")["ranks_per_node"] == 64
    assert named(boxes, "expert dispatch")["ranks_per_node"] == 8
    assert rack.times(64, 512, 2).tpot_s < boxes.times(64, 512, 2).tpot_s


def test_skew_loads_the_fullest_gpu() -> None:
    even = made(dp=8, ep=8).times(512, 128, 2)
    skewed = made(mixture(skew=1.0), dp=8, ep=8).times(512, 128, 2)
    assert skewed.e2e_latency_s > even.e2e_latency_s


def test_work_does_not_depend_on_how_it_is_spread() -> None:
    """Routed FLOPs of eight GPUs together are those of one."""

    def routed(system: System, batch: int) -> float:
        rows = [r for r in system.predict(batch, 256, 2).breakdown if r.operator == "experts"]
        return sum(r.flops for r in rows)

    one = routed(made(), 8)
    assert 8 * routed(made(dp=8, ep=8), 8) == pytest.approx(one)
    assert 8 * routed(made(tp=8, ep=8), 8) == pytest.approx(one)
    assert 8 * routed(made(tp=8), 8) == pytest.approx(one)
    assert math.isfinite(one)


def test_a_summary_says_every_degree() -> None:
    result = made(tp=2, dp=4, ep=8).predict(4, 64, 2)
    assert replace(result.parallelism, tp=1).attention_dp == 4
    assert result.num_gpus == 8
