"""Any mix of layer kinds: more work never takes less time, both forms agree, shares add up."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsim.catalog import load_gpu
from rtsim.specs import ModelSpec, ParallelismSpec
from rtsim.specs.gpu import GpuSpec
from rtsim.system import System

few = settings(max_examples=40, deadline=None)

ATTENTION = {"n_heads": 16, "n_kv_heads": 8, "head_dim": 128}
MLA = {
    "kind": "mla", "n_heads": 16, "q_lora_rank": 768, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
INDEXER = {"n_heads": 16, "head_dim": 128, "top_k": 256}
COMPRESSED = {
    "kind": "compressed", "n_heads": 16, "head_dim": 512, "qk_rope_head_dim": 64,
    "q_lora_rank": 512, "o_lora_rank": 512, "o_groups": 8, "window": 128,
}  # fmt: skip
MIXERS = {
    "windowed": {**ATTENTION, "window": 512},
    "gated": {**ATTENTION, "output_gate": True, "sinks": True, "qk_norm": True},
    "sparse": {**ATTENTION, "indexer": INDEXER},
    "uneven": {**ATTENTION, "v_head_dim": 64},
    "borrowed": {**ATTENTION, "own_cache": False},
    "mla": MLA,
    "sparse mla": {**MLA, "indexer": {**INDEXER, "query_rank": 768}},
    "window only": COMPRESSED,
    "compressed": {**COMPRESSED, "compression": 128},
    "sparse compressed": {**COMPRESSED, "compression": 4, "indexer": INDEXER},
    "mamba": {"kind": "mamba", "inner_size": 4096, "state_size": 16, "step_rank": 128},
    "mamba2": {"kind": "mamba2", "n_ssm_heads": 64, "head_dim": 64, "state_size": 128,
               "n_groups": 8},
    "delta": {"kind": "gated_delta", "n_k_heads": 16, "n_v_heads": 32, "k_head_dim": 128,
              "v_head_dim": 128},
    "kda": {"kind": "gated_delta", "n_k_heads": 32, "n_v_heads": 32, "k_head_dim": 128,
            "v_head_dim": 128, "decay_rank": 128, "gate_rank": 128},
    "linear": {"kind": "linear_attention", "n_attention_heads": 32, "head_dim": 64},
}  # fmt: skip
MLPS = {
    "dense": {"ffn_size": 5632, "gated": True, "activation": "silu"},
    "moe": {"kind": "moe", "n_experts": 64, "top_k": 4, "expert_size": 1024},
    "shared": {"kind": "moe", "n_experts": 64, "top_k": 4, "expert_size": 1024,
               "shared_size": 2048, "dense_size": 1024, "shared_gate": True},
    "latent": {"kind": "moe", "n_experts": 128, "top_k": 8, "expert_size": 1024, "gated": False,
               "activation": "relu2", "latent_size": 512},
    "none": None,
}  # fmt: skip
SPLITS = ({}, {"tp": 2}, {"tp": 4, "ep": 2}, {"dp": 4, "ep": 4}, {"tp": 2, "pp": 2}, {"cp": 2})


def spec(mixer: str, mlp: str, **changes: object) -> ModelSpec:
    layer = {"count": 8, "norm": "rmsnorm", "attention": MIXERS[mixer], "mlp": MLPS[mlp]}
    data = {
        "name": f"{mixer} {mlp}", "hidden_size": 2048, "vocab_size": 32000,
        "max_positions": 10**6, "layers": [layer], **changes,
    }  # fmt: skip
    return ModelSpec.from_mapping(data)


@cache
def made(mixer: str, mlp: str, split: int, gpu: str = "h100-sxm5-80gb") -> System:
    degrees = SPLITS[split]
    if mlp not in ("moe", "shared", "latent"):
        degrees = {k: v for k, v in degrees.items() if k != "ep"}
    return System(spec(mixer, mlp), load_gpu(gpu), ParallelismSpec(**degrees), stack="vllm")


systems = st.builds(
    made, st.sampled_from(list(MIXERS)), st.sampled_from(list(MLPS)),
    st.integers(0, len(SPLITS) - 1),
)  # fmt: skip
# Whole multiples of eight, so that alignment does not change.
batches = st.integers(1, 16).map(lambda n: 8 * n)
lengths = st.integers(1, 128).map(lambda n: 8 * n)


@few
@given(systems, batches, batches, lengths, lengths, st.integers(1, 64), st.integers(0, 64))
def test_more_work_never_takes_less_time(system, b1, b2, p1, p2, output, more) -> None:
    small_b, large_b = sorted((b1, b2))
    small_p, large_p = sorted((p1, p2))
    least = system.times(small_b, small_p, output)
    for batch, prompt, out in (
        (large_b, small_p, output), (small_b, large_p, output), (small_b, small_p, output + more),
    ):  # fmt: skip
        assert system.times(batch, prompt, out).e2e_latency_s >= least.e2e_latency_s * (1 - 1e-12)


@few
@given(systems, st.sampled_from(("hbm_bytes_per_s", "peak_bf16_flops_per_s", "link")), batches,
       lengths)  # fmt: skip
def test_a_faster_part_is_never_slower(system, part, batch, prompt) -> None:
    gpu: GpuSpec = system.gpu
    path = "link.bytes_per_s" if part == "link" else part
    better = System(
        system.model, gpu.with_({path: "2x"}), system.parallelism, profile=system.profile
    )
    was, now = system.times(batch, prompt, 4), better.times(batch, prompt, 4)
    assert now.ttft_s <= was.ttft_s * (1 + 1e-12)
    assert now.tpot_s <= was.tpot_s * (1 + 1e-12)


@few
@given(systems, st.integers(1, 40), st.integers(1, 700), st.integers(1, 20))
def test_both_forms_agree_and_the_breakdown_adds_up(system, batch, prompt, output) -> None:
    slow = system.predict(batch, prompt, output, compiled=False)
    quick = system.times(batch, prompt, output)
    assert quick.e2e_latency_s == pytest.approx(slow.e2e_latency_s, rel=1e-12)
    assert sum(row.time_s for row in slow.breakdown) >= slow.e2e_latency_s * (1 - 1e-9)
    assert all(row.time_s >= 0.0 for row in slow.breakdown)


@few
@given(systems, batches, lengths)
def test_no_pass_beats_the_peak_or_the_weights(system, batch, prompt) -> None:
    """FLOPs of the prompt pass at the peak; in decode the weights outside the experts once."""
    result = system.predict(batch, prompt, 2)
    p = system.parallelism
    rate = p.num_gpus * system.peak_flops_per_s
    assert result.ttft_s * 1.0001 >= result.prefill_flops / rate
    assert result.memory.weights_bytes > 0


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_a_state_or_a_window_bounds_what_is_cached(mixer: str) -> None:
    system = made(mixer, "dense", 0)
    short, long = (system.model.kv_bytes(n) for n in (4096, 65536))
    bounded = mixer in ("windowed", "window only", "mamba", "mamba2", "delta", "kda", "linear",
                        "borrowed")  # fmt: skip
    assert (long == short) == bounded


def test_an_encoder_is_one_pass() -> None:
    model = spec("gated", "dense", kind="encoder", layers=[
        {"count": 8, "attention": {"n_heads": 16, "head_dim": 128, "causal": False},
         "mlp": {"ffn_size": 8192}}])  # fmt: skip
    system = System(model, load_gpu("a100"), stack="vllm")
    result = system.predict(4, 512, 1)
    assert result.tpot_s is None
    assert result.memory.kv_cache_bytes == 0
    assert {row.phase for row in result.breakdown} == {"prefill"}
    from rtsim.errors import SpecError

    with pytest.raises(SpecError, match="encoder"):
        system.predict(4, 512, 2)


def test_an_encoder_decoder_reads_its_source_once_and_attends_to_it_always() -> None:
    seeing = {"n_heads": 16, "head_dim": 128, "causal": False}
    mlp = {"ffn_size": 8192}
    model = spec("gated", "dense", kind="encoder-decoder",
                 encoder=[{"count": 8, "attention": seeing, "mlp": mlp}],
                 layers=[{"count": 8, "attention": {"n_heads": 16, "head_dim": 128},
                          "cross_attention": seeing, "mlp": mlp}])  # fmt: skip
    system = System(model, load_gpu("a100"), stack="vllm")
    short, long = system.predict(8, 256, 64), system.predict(8, 8192, 64)
    rows = {(r.phase, r.operator): r for r in long.breakdown}
    assert rows["prefill", "cross KV projection"].count == 8
    assert ("decode", "cross KV projection") not in rows
    assert rows["decode", "cross attention"].count == 8 * 63
    # Cross attention grows with the prompt, attention to what was generated does not.
    before = {(r.phase, r.operator): r for r in short.breakdown}
    cross, own = ("decode", "cross attention"), ("decode", "attention")
    assert rows[cross].time_s > 4 * before[cross].time_s
    assert rows[own].time_s == pytest.approx(before[own].time_s)
    # Keys and values of 8192 source tokens and 64 own ones.
    assert long.memory.kv_cache_bytes == pytest.approx(8 * 8 * 2 * 2048 * 2 * (8192 + 64))


def encoders() -> list[ModelSpec]:
    seeing = {"n_heads": 16, "head_dim": 128, "causal": False}
    mlp = {"ffn_size": 8192}
    layer = {"count": 8, "attention": seeing, "mlp": mlp}
    decodes = {**layer, "attention": {"n_heads": 16, "head_dim": 128}, "cross_attention": seeing}
    return [
        spec("gated", "dense", kind="encoder", layers=[layer]),
        spec("gated", "dense", kind="encoder-decoder", encoder=[layer], layers=[decodes]),
    ]


def check_bulk(model: ModelSpec, degrees: dict[str, int], rows: list[tuple[int, ...]]) -> None:
    """`predict_many` gives what `predict` gives, for every kind of layer."""
    import numpy as np

    import rtsim

    batch, prompt, output = (list(column) for column in zip(*rows, strict=True))
    found = rtsim.predict_many(
        {"model": [model] * len(rows), "gpu": "h100", "stack": "vllm", **degrees,
         "batch_size": batch, "input_len": prompt, "output_len": output}
    )  # fmt: skip
    for i, (b, p, o) in enumerate(rows):
        one = rtsim.predict(
            model, "h100", stack="vllm", **degrees, batch_size=b, input_len=p, output_len=o,
            compiled=True,
        )  # fmt: skip
        assert found["error"][i] == ""
        assert found["ttft_s"][i] == pytest.approx(one.ttft_s, rel=1e-12)
        assert found["e2e_latency_s"][i] == pytest.approx(one.e2e_latency_s, rel=1e-12)
        assert found["memory_bytes"][i] == pytest.approx(one.memory.used_bytes, rel=1e-12)
        assert found["mfu"][i] == pytest.approx(one.mfu, rel=1e-12)
        assert found["mbu"][i] == pytest.approx(one.mbu, rel=1e-12)
        low = one.interval_90.e2e_latency_s.low
        assert found["e2e_latency_s_low"][i] == pytest.approx(low, rel=1e-12)
        if one.interval_90.tpot_s is not None:
            high = one.interval_90.tpot_s.high
            assert found["tpot_s_high"][i] == pytest.approx(high, rel=1e-12)
        else:
            assert np.isnan(found["tpot_s"][i])


workloads = st.tuples(st.integers(1, 40), st.integers(1, 700), st.integers(1, 300))


@few
@given(
    st.sampled_from(list(MIXERS)), st.sampled_from(list(MLPS)), st.integers(0, len(SPLITS) - 1),
    st.lists(workloads, min_size=1, max_size=6),
)  # fmt: skip
def test_bulk_is_row_by_row(mixer, mlp, split, rows) -> None:
    degrees = dict(SPLITS[split])
    if mlp not in ("moe", "shared", "latent"):
        degrees.pop("ep", None)
    check_bulk(spec(mixer, mlp), degrees, rows)


@few
@given(st.sampled_from((0, 1)), st.lists(workloads, min_size=1, max_size=6))
def test_bulk_of_encoders_is_row_by_row(which, rows) -> None:
    if which == 0:
        rows = [(b, p, 1) for b, p, _ in rows]
    check_bulk(encoders()[which], {}, rows)
