"""Models and parts off the beaten track: encoder-decoders, large cores, narrow formats."""

import pytest

from rtsim.catalog import load_gpu
from rtsim.device_facts import core_count
from rtsim.predict import predict
from rtsim.specs import Mamba2Spec, ModelSpec, ParallelismSpec
from rtsim.system import System

SEEING_ALL = {"n_heads": 8, "head_dim": 64, "causal": False}


def speech(**changes: object) -> ModelSpec:
    """An encoder of 1500 positions and a decoder with positions of its own."""
    layer = {"count": 4, "mlp": {"ffn_size": 2048}}
    return ModelSpec(
        name="speech", kind="encoder-decoder", hidden_size=512, vocab_size=50000,
        max_positions=1500, position="learned", encoder=[{**layer, "attention": SEEING_ALL}],
        layers=[{**layer, "attention": {"n_heads": 8, "head_dim": 64},
                 "cross_attention": SEEING_ALL}],
    )  # fmt: skip


def test_the_output_of_an_encoder_decoder_takes_no_positions_of_its_source() -> None:
    from rtsim.errors import SpecError

    system = System(speech(), load_gpu("l4"), stack="vllm")
    assert system.predict(1, 1500, 100).ttft_s > 0
    with pytest.raises(SpecError, match="1500 learned positions, and input_len is 1501"):
        system.predict(1, 1501, 2)


@pytest.mark.parametrize("name", ["h100", "a100", "b200", "mi300x", "gaudi2", "t4"])
def test_cores_of_gpus_are_as_many_as_stated(name: str) -> None:
    gpu = load_gpu(name)
    assert core_count(gpu) == gpu.sm_count


@pytest.mark.parametrize("name", ["tpu-v5p", "tpu-v6e", "trainium2"])
def test_a_few_large_cores_count_as_the_sms_they_amount_to(name: str) -> None:
    gpu = load_gpu(name)
    cores = core_count(gpu)
    assert cores * 4096 * gpu.clock_hz == pytest.approx(gpu.peak_16_bit_flops_per_s, rel=0.02)
    result = predict("llama-3-8b", name, batch_size=16, output_len=8)
    floor_s = 16.06e9 / gpu.one_device().hbm_bytes_per_s  # weights once
    assert floor_s < result.tpot_s < 3 * floor_s
    assert any("cores unlike a GPU's" in note for note in result.notes)


def test_utilization_is_of_the_peak_that_the_products_run_at() -> None:
    narrow = predict("llama-3.1-70b", "b200", quantization="nvfp4", batch_size=64,
                     input_len=4096, output_len=1)  # fmt: skip
    assert narrow.gpu.peak_dtype == "fp4"
    assert narrow.gpu.peak_flops_per_s == load_gpu("b200").peak_flops_per_s("fp4")
    assert 0.2 < narrow.mfu < 1.0
    wide = predict("llama-3.1-70b", "a100", quantization="fp8", stack="vllm", output_len=1)
    assert wide.gpu.peak_dtype == "bf16"  # no fp8 units


def test_key_groups_are_replicated_where_there_are_fewer_than_ranks() -> None:
    mixer = Mamba2Spec(n_ssm_heads=64, head_dim=64, state_size=128, n_groups=2)
    inner, keys = 64 * 64, 2 * 2 * 128
    assert mixer.rank_width(mixer.in_width, 2) == mixer.in_width / 2
    assert mixer.rank_width(mixer.in_width, 8) == (2 * inner + 64) / 8 + keys / 2


def test_micro_batches_that_do_no_good_are_said() -> None:
    model = speech().with_({"kind": "decoder", "encoder": (), "position": "rotary"})
    alone = ParallelismSpec(micro_batches=4).check_model(model)
    assert any("without pipeline stages" in note for note in alone)
    many = ParallelismSpec(pp=2, micro_batches=4).check_model(model)
    assert any("more than the 2 stages" in note for note in many)
    assert ParallelismSpec(pp=4, micro_batches=4).check_model(model) == []
