"""Specifications: defaults, what is inferred, contradictions, changed copies, checks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsim.catalog import load_gpu
from rtsim.errors import SpecError
from rtsim.specs import (
    AttentionSpec,
    GpuSpec,
    LayerGroup,
    LinkSpec,
    ModelSpec,
    NetworkSpec,
    ParallelismSpec,
    WorkloadSpec,
    dtype_bytes,
    weight_format,
)


def a_model(**changes: Any) -> ModelSpec:
    attention = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 16, **changes.pop("attention", {})}
    group = {"count": 4, "attention": attention, "mlp": {"ffn_size": 512}}
    return ModelSpec(
        **{
            "name": "m",
            "hidden_size": 128,
            "vocab_size": 1000,
            "max_positions": 64,
            "layers": [group],
            **changes,
        }
    )


def a_gpu(**changes: Any) -> GpuSpec:
    return GpuSpec(
        **{
            "name": "g",
            "architecture": "hopper",
            "sm_count": 132,
            "clock_hz": "1980 MHz",
            "memory_bytes": "80 GB",
            "hbm_bytes_per_s": "3.35 TB/s",
            "peak_bf16_flops_per_s": "989.4 TFLOPS",
            **changes,
        }
    )


def test_specs_load_neither_numpy_nor_scipy_nor_numba() -> None:
    code = (
        "import sys, rtsim.specs, rtsim.catalog; rtsim.catalog.load_gpu('a100');"
        "print([m for m in ('numpy', 'scipy', 'numba', 'pandas') if m in sys.modules])"
    )
    source = str(Path(sys.modules["rtsim"].__file__ or "").parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert run.stdout.strip() == "[]"


# ---- model ----


def test_parameters_by_hand() -> None:
    # q 128*128, k and v 128*32 each, out 128*128; MLP 2*128*512; two LayerNorms of 2*128.
    layer = 128 * 128 + 2 * 128 * 32 + 128 * 128 + 2 * 128 * 512 + 2 * 256
    # untied: two tables; final norm 2*128; rotary positions have no weights
    assert a_model().parameters == 4 * layer + 2 * 1000 * 128 + 256
    assert a_model(tied_embeddings=True).parameters == 4 * layer + 1000 * 128 + 256
    learned = a_model(position="learned", tied_embeddings=True)
    assert learned.parameters == 4 * layer + (1000 + 64) * 128 + 256


@pytest.mark.parametrize(
    ("path", "value", "added"),
    [
        # q 128 and k, v 32 each, four layers
        ("layers.attention.qkv_bias", True, 4 * 192),
        ("layers.attention.out_bias", True, 4 * 128),
        ("layers.attention.qk_norm", True, 4 * 2 * 16),
        ("layers.mlp.bias", True, 4 * (512 + 128)),
        ("layers.mlp.gated", True, 4 * 128 * 512),
        ("layers.norms_per_layer", 4, 4 * 2 * 256),
        # RMSNorm has no bias: two norms a layer and the final one
        ("layers.norm", "rmsnorm", -(4 * 2 + 1) * 128),
        ("embedding_norm", True, 256),
        ("final_norm", False, -256),
        ("head_bias", True, 1000),
        # tables 64 wide, a projection in and one out
        ("embedding_size", 64, -2 * 1000 * 64 + 2 * 64 * 128),
    ],
)
def test_each_option_adds_its_parameters(path: str, value: object, added: int) -> None:
    model = a_model()
    assert model.with_({path: value}).parameters - model.parameters == added


def test_all_parameters_of_a_dense_model_are_active() -> None:
    assert a_model().active_parameters == a_model().parameters


def test_kv_cache() -> None:
    model = a_model(dtype="fp16")
    assert model.kv_bytes_per_token() == 4 * 2 * 2 * 16 * 2
    assert model.kv_bytes_per_token("fp8") == model.kv_bytes_per_token("bf16") / 2
    assert model.kv_bytes(10) == 10 * model.kv_bytes_per_token()
    windowed = a_model(attention={"window": 4})
    assert windowed.kv_bytes(3) == 3 * windowed.kv_bytes_per_token()
    assert windowed.kv_bytes(10) == 4 * windowed.kv_bytes_per_token()


def test_multi_head_is_the_default() -> None:
    group = LayerGroup(attention={"n_heads": 8, "head_dim": 16}, mlp={"ffn_size": 9})
    assert group.attention.n_kv_heads == 8


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"attention": {"n_kv_heads": 3}}, "multiple of n_kv_heads = 3"),
        ({"attention": {"rotary_dim": 17}}, "rotary_dim = 17 must be at most head_dim = 16"),
        ({"attention": {"window": 0}}, "layers[0].attention.window = 0"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"hidden_size": "128"}, "must be a whole number"),
        ({"hidden_size": True}, "must be a whole number"),
        ({"hidden_size": 10**9}, "less than or equal to"),
        ({"vocab_size": 1000.5}, "vocab_size = 1000.5"),
        ({"position": "rotory"}, "'rotary'"),
        ({"layers": []}, "at least one group"),
        ({"heads": 3}, "heads = 3"),
    ],
)
def test_wrong_models_are_refused_in_one_line(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SpecError) as caught:
        a_model(**changes)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- with_ ----


def test_with_changes_a_copy() -> None:
    gpu = a_gpu()
    faster = gpu.with_(hbm_bytes_per_s="6.7 TB/s")
    assert faster.hbm_bytes_per_s == 2 * gpu.hbm_bytes_per_s
    assert gpu.hbm_bytes_per_s == 3.35e12
    assert faster.peak_bf16_flops_per_s == gpu.peak_bf16_flops_per_s


def test_with_nested_paths() -> None:
    model = a_model()
    assert model.with_({"layers.0.mlp.ffn_size": 256}).layers[0].mlp.ffn_size == 256
    assert model.with_({"layers.attention.window": 8}).layers[0].attention.window == 8
    gpu = a_gpu(link=LinkSpec(bytes_per_s="450 GB/s", domain_size=8))
    changed = gpu.with_({"link.bytes_per_s": 1e11})
    assert changed.link is not None
    assert (changed.link.bytes_per_s, changed.link.domain_size) == (1e11, 8)
    assert gpu.with_(link=LinkSpec(bytes_per_s=2e11, domain_size=2)).link.domain_size == 2


def test_with_infers_again_from_the_changed_figures() -> None:
    gpu = a_gpu()
    assert gpu.l2_bytes == 50 * 2**20
    assert gpu.with_(architecture="volta").l2_bytes == 6 * 2**20
    assert gpu.with_(l2_bytes="7 MiB").with_(architecture="volta").l2_bytes == 7 * 2**20


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("hbm_byte_per_s", 1e12, "nearest: hbm_bytes_per_s"),
        ("link.byte_per_s", 1e12, "nearest: bytes_per_s"),
        ("hbm_bytes_per_s.x", 1e12, "no fields of its own"),
        ("hbm_bytes_per_s", "3 TB", "unit of a size in bytes"),
        ("hbm_bytes_per_s", float("nan"), "finite"),
    ],
)
def test_with_refuses(path: str, value: object, wanted: str) -> None:
    with pytest.raises(SpecError, match="g: ") as caught:
        a_gpu().with_({path: value})
    assert wanted in str(caught.value)


def test_with_refuses_a_layer_group_that_is_not_there() -> None:
    with pytest.raises(SpecError, match="counted from 0"):
        a_model().with_({"layers.3.mlp.ffn_size": 256})


def test_specs_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        a_gpu().sm_count = 3  # type: ignore[misc]


def test_json_round_trip() -> None:
    for spec in (a_gpu(), a_model(), ParallelismSpec(tp=4), WorkloadSpec()):
        again = type(spec).from_mapping(json.loads(spec.model_dump_json()))
        assert again == spec


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.dates(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@settings(deadline=None)  # the first examples pay for imports
@given(st.sampled_from(sorted(GpuSpec.model_fields)), ODD_VALUES)
def test_any_value_in_any_field_of_a_gpu_is_taken_or_refused_in_one_line(
    field: str, value: object
) -> None:
    data = {**a_gpu().model_dump(exclude_unset=True), field: value}
    refusal = "g.toml: taken"
    try:
        GpuSpec.from_mapping(data, "g.toml")
    except SpecError as error:
        refusal = str(error)
    assert refusal.startswith("g.toml: ")
    assert "\n" not in refusal


@settings(deadline=None)  # the first examples pay for imports
@given(st.sampled_from(sorted(AttentionSpec.model_fields)), ODD_VALUES)
def test_any_value_in_any_field_of_an_attention_is_taken_or_refused_in_one_line(
    field: str, value: object
) -> None:
    refusal = "m: layers[0].attention taken"
    try:
        a_model(attention={field: value})
    except SpecError as error:
        refusal = str(error)
    assert refusal.startswith("m: layers[0].attention")
    assert "\n" not in refusal


# ---- gpu ----


def test_what_is_left_out_is_inferred_and_said() -> None:
    gpu = a_gpu()
    assert gpu.peak_fp16_flops_per_s == gpu.peak_bf16_flops_per_s
    assert gpu.l2_bytes == 50 * 2**20
    assert gpu.gpus_per_node == 8
    for field in ("peak_fp16_flops_per_s", "l2_bytes", "gpus_per_node", "pcie_bytes_per_s"):
        assert any(note.startswith(field) for note in gpu.assumed), field
    stated = a_gpu(l2_bytes="50 MiB")
    assert not any(note.startswith("l2_bytes") for note in stated.assumed)


def test_missing_16_bit_type_stays_missing_where_hardware_lacks_it() -> None:
    v100 = a_gpu(
        architecture="volta", peak_bf16_flops_per_s=None, peak_fp16_flops_per_s="125 TFLOP/s"
    )
    assert v100.peak_bf16_flops_per_s is None
    assert v100.peak_flops_per_s("bf16") is None
    assert v100.peak_flops_per_s("fp16") == 125e12


def test_a_gpu_without_any_rate_is_refused() -> None:
    with pytest.raises(SpecError, match="peak_bf16_flops_per_s"):
        a_gpu(peak_bf16_flops_per_s=None)


def test_clock_follows_from_the_tensor_rate() -> None:
    data = {"clock_hz": None, "tensor_flops_per_clock_per_sm": 4096}
    base = a_gpu().model_dump(exclude_unset=True) | data
    del base["clock_hz"]
    assert GpuSpec(**base).clock_hz == pytest.approx(989.4e12 / (132 * 4096))


def test_a_sparse_peak_is_doubted() -> None:
    assert a_gpu().doubts() == ()
    (doubt,) = a_gpu(peak_bf16_flops_per_s="1978.9 TFLOPS").doubts()
    assert "sparse" in doubt
    (doubt,) = a_gpu(peak_fp8_flops_per_s="3957.8 TFLOPS").doubts()
    assert "fp8" in doubt
    a40 = load_gpu("a40")  # GA102: half the tensor rate per SM of its family's GA100
    assert a40.doubts() == ()
    (doubt,) = a40.with_(peak_bf16_flops_per_s="299.4 TFLOP/s").doubts()
    assert "sparse" in doubt


def test_one_device_of_a_module() -> None:
    link = {"bytes_per_s": "300 GB/s", "domain_size": 4, "topology": "mesh"}
    module = a_gpu(software_devices=2, power_w="560 W", link=link)
    device = module.one_device()
    assert device.sm_count == 66
    assert device.memory_bytes * 2 == module.memory_bytes
    assert device.peak_flops_per_s("bf16") == 989.4e12 / 2
    assert device.power_w == 280.0
    assert device.gpus_per_node == 2 * module.gpus_per_node
    assert device.one_device() is device
    assert device.link is not None
    assert device.link.topology == "ring"  # dies of a module are nearer than modules: no even mesh


# ---- parallelism ----


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, (1, 1, 1)),
        ({"tp": 4}, (4, 1, 1)),
        ({"tp": 4, "pp": 2, "dp": 3}, (4, 2, 3)),
        ({"num_gpus": 8}, (8, 1, 1)),
        ({"num_gpus": 8, "dp": 2}, (4, 1, 2)),
        ({"num_gpus": 8, "tp": 4}, (4, 1, 2)),
        ({"num_gpus": 8, "tp": 2, "pp": 4}, (2, 4, 1)),
        ({"num_gpus": 8, "tp": None, "pp": 2, "dp": None}, (4, 2, 1)),
    ],
)
def test_degrees_follow_from_num_gpus(given: dict[str, Any], wanted: tuple[int, int, int]) -> None:
    spec = ParallelismSpec(**given)
    assert (spec.tp, spec.pp, spec.dp) == wanted
    assert spec.num_gpus == spec.tp * spec.pp * spec.dp


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"num_gpus": 8, "tp": 3}, "num_gpus = 8: must be a multiple of tp 3 * pp 1 = 3"),
        ({"num_gpus": 8, "tp": 4, "dp": 1}, "num_gpus = 8: must be tp 4 * pp 1 * dp 1 = 4"),
        ({"num_gpus": 16, "tp": 4, "dp": 2}, "num_gpus = 16: must be tp 4"),
        ({"tp": 0}, "tp = 0"),
        ({"pp": -1}, "pp = -1"),
        ({"tp": 10**9}, "tp = 1000000000"),
        ({"tp": 2, "ep": 3}, "ep = 3: must divide"),
    ],
)
def test_contradictory_degrees(given: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SpecError) as caught:
        ParallelismSpec(**given)
    assert wanted in str(caught.value)


def test_heads_must_divide_by_tp() -> None:
    with pytest.raises(SpecError, match="tp = 3: must divide the 8 attention heads of m"):
        ParallelismSpec(tp=3).check_model(a_model())


@pytest.mark.parametrize(("kv_heads", "tp"), [(4, 6), (6, 4)])
def test_kv_heads_must_divide_or_replicate_evenly(kv_heads: int, tp: int) -> None:
    model = a_model(attention={"n_heads": 12, "n_kv_heads": kv_heads, "head_dim": 16})
    with pytest.raises(SpecError, match=f"tp = {tp}: must divide, or be a multiple of"):
        ParallelismSpec(tp=tp).check_model(model)


def test_few_kv_heads_are_replicated_and_said() -> None:
    assert ParallelismSpec(tp=2).check_model(a_model()) == []
    (note,) = ParallelismSpec(tp=4).check_model(a_model())
    assert "2 KV heads are replicated over 4" in note


def test_a_dense_model_has_no_experts_to_spread() -> None:
    with pytest.raises(SpecError, match="ep = 2: must be 1, m has no experts"):
        ParallelismSpec(tp=2, ep=2).check_model(a_model())


def test_more_stages_than_layers() -> None:
    with pytest.raises(SpecError, match="pp = 5"):
        ParallelismSpec(pp=5).check_model(a_model())
    (note,) = ParallelismSpec(pp=3).check_model(a_model())
    assert "the longest has 2" in note


def test_more_gpus_than_a_node_need_a_network() -> None:
    alone = a_gpu(link=LinkSpec(bytes_per_s=450e9, domain_size=8))
    assert ParallelismSpec(tp=8).check_gpu(alone) == []
    for split in (ParallelismSpec(tp=16), ParallelismSpec(tp=8, pp=2)):
        with pytest.raises(SpecError, match="no network between nodes"):
            split.check_gpu(alone)
    joined = alone.with_(network=NetworkSpec(bytes_per_s="50 GB/s"))
    (note,) = ParallelismSpec(tp=16).check_gpu(joined)
    assert "crosses nodes" in note
    # copies of the model do not talk to each other
    assert ParallelismSpec(tp=8, dp=4).check_gpu(alone) == []


def test_a_rack_wide_link_counts_as_one_node() -> None:
    rack = a_gpu(gpus_per_node=4, link=LinkSpec(bytes_per_s=900e9, domain_size=72))
    assert ParallelismSpec(tp=64).check_gpu(rack) == []


def test_pcie_is_said() -> None:
    (note,) = ParallelismSpec(tp=2).check_gpu(a_gpu())
    assert "PCIe" in note


# ---- workload ----


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"input_len": 0},
        {"output_len": 10**12},
        {"batch_size": 1.5},
        {"input_len": float("nan")},
        {"input_len": "512"},
        {"dtype": "fp17"},
        {"quantization": "int3"},
    ],
)
def test_absurd_workloads(given: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        WorkloadSpec(**given)
    (field,) = given
    assert caught.value.field == field


def test_learned_positions_are_a_limit_and_others_a_note() -> None:
    fits = WorkloadSpec(input_len=60, output_len=5)  # the last token needs no position
    longer = WorkloadSpec(input_len=60, output_len=6)
    learned = a_model(position="learned")
    assert fits.check_model(learned) == []
    with pytest.raises(SpecError, match="output_len = 6: m has 64 learned positions"):
        longer.check_model(learned)
    with pytest.raises(SpecError, match="input_len = 65"):
        WorkloadSpec(input_len=65).check_model(learned)
    (note,) = longer.check_model(a_model())
    assert "65 tokens are more than the 64 positions" in note


def test_weight_formats() -> None:
    assert weight_format("none", "fp16").bytes_per_weight == dtype_bytes("fp16") == 2.0
    # 16 four-bit values and one eight-bit scale are 9 bytes
    assert weight_format("nvfp4", "bf16").bytes_per_weight == 9 / 16
    # 32 four-bit values and one eight-bit scale are 17 bytes
    assert weight_format("w4a16_mxfp4", "bf16").bytes_per_weight == 17 / 32
