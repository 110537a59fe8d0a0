"""Parameters, caches and states of layer kinds against published figures and counted models."""

import pytest

from rtsim.specs import ModelSpec

MLA = {
    "kind": "mla", "n_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip


def model(**changes) -> ModelSpec:
    base = {"name": "m", "hidden_size": 7168, "vocab_size": 129280, "max_positions": 163840}
    return ModelSpec(**{**base, **changes})


def deepseek_v3() -> ModelSpec:
    """DeepSeek-V3 technical report (arXiv:2412.19437), section 4.2."""
    moe = {"kind": "moe", "n_experts": 256, "top_k": 8, "expert_size": 2048, "shared_size": 2048}
    return model(
        layers=[
            {"count": 3, "norm": "rmsnorm", "attention": MLA,
             "mlp": {"ffn_size": 18432, "gated": True, "activation": "silu"}},
            {"count": 58, "norm": "rmsnorm", "attention": MLA, "mlp": moe},
        ]
    )  # fmt: skip


def test_deepseek_v3_is_671_billion_of_which_37_active() -> None:
    """Counted from its configuration with the transformers library: 671,026,404,352."""
    spec = deepseek_v3()
    assert spec.parameters == pytest.approx(671_026_404_352, rel=1e-6)
    assert spec.active_parameters == pytest.approx(37_552_282_624, rel=1e-5)


def test_latents_are_70_kb_per_token() -> None:
    """DeepSeek-V3 paper: 70 KB per token of KV cache in bf16: 61 x 576 x 2 bytes."""
    assert deepseek_v3().kv_bytes_per_token() == 61 * 576 * 2


def test_the_indexer_of_v3_2_adds_its_projections_and_a_key_per_token() -> None:
    """Counted difference of V3.2 and V3: 851,524,864 parameters over 61 layers."""
    plain = model(layers=[{"attention": MLA, "norm": "rmsnorm"}])
    indexer = {"n_heads": 64, "head_dim": 128, "top_k": 2048, "query_rank": 1536}
    sparse = model(layers=[{"attention": {**MLA, "indexer": indexer}, "norm": "rmsnorm"}])
    assert sparse.parameters - plain.parameters == 851_524_864 // 61
    assert sparse.kv_bytes_per_token() - plain.kv_bytes_per_token() == 128  # in 8 bits


def test_mamba2_2_7b() -> None:
    """Counted: 2,702,579,200, vocabulary padded to a multiple of 8."""
    mixer = {"kind": "mamba2", "n_ssm_heads": 80, "head_dim": 64, "state_size": 128}
    spec = model(
        hidden_size=2560, vocab_size=50288, tied_embeddings=True, position="none",
        layers=[{"count": 64, "attention": mixer, "norm": "rmsnorm", "norms_per_layer": 1}],
    )  # fmt: skip
    assert spec.parameters == pytest.approx(2_702_579_200, rel=1e-4)
    state = 80 * 64 * 128 * 4 + (80 * 64 + 2 * 128) * 3 * 2
    assert spec.kv_bytes(1) == spec.kv_bytes(10**6) == 64 * state
    assert spec.kv_bytes_per_token() == 0


def test_mixtral_8x7b() -> None:
    """Mixtral of Experts (arXiv:2401.04088): 47 B, 13 B active; counted 46,702,792,704."""
    spec = model(
        hidden_size=4096, vocab_size=32000,
        layers=[
            {"count": 32, "norm": "rmsnorm",
             "attention": {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128},
             "mlp": {"kind": "moe", "n_experts": 8, "top_k": 2, "expert_size": 14336}}
        ],
    )  # fmt: skip
    assert spec.parameters == 46_702_792_704
    assert spec.active_parameters == 12_879_925_248


def test_qwen3_next_mixes_delta_rule_and_gated_attention() -> None:
    """Counted: 79,674,391,296; 36 layers of Gated DeltaNet, 12 of attention."""
    moe = {"kind": "moe", "n_experts": 512, "top_k": 10, "expert_size": 512, "shared_size": 512,
           "shared_gate": True}  # fmt: skip
    delta = {"kind": "gated_delta", "n_k_heads": 16, "n_v_heads": 32, "k_head_dim": 128,
             "v_head_dim": 128}  # fmt: skip
    full = {"n_heads": 16, "n_kv_heads": 2, "head_dim": 256, "qk_norm": True, "output_gate": True}
    spec = model(
        hidden_size=2048, vocab_size=151936,
        layers=[
            {"count": 36, "norm": "rmsnorm", "attention": delta, "mlp": moe},
            {"count": 12, "norm": "rmsnorm", "attention": full, "mlp": moe},
        ],
    )  # fmt: skip
    assert spec.parameters == pytest.approx(79_674_391_296, rel=1e-5)


def test_t5_11b_has_cross_attention() -> None:
    """Counted: 11,307,321,344 with the tables of relative positions (2 x 32 x 128)."""
    attention = {"n_heads": 128, "head_dim": 128}
    seeing_all = {**attention, "causal": False}
    mlp = {"ffn_size": 65536, "activation": "relu"}
    spec = model(
        kind="encoder-decoder", hidden_size=1024, vocab_size=32128, tied_embeddings=True,
        position="none", other_parameters=2 * 32 * 128,
        encoder=[{"count": 24, "attention": seeing_all, "mlp": mlp, "norm": "rmsnorm"}],
        layers=[{"count": 24, "attention": attention, "cross_attention": seeing_all, "mlp": mlp,
                 "norm": "rmsnorm", "norms_per_layer": 3}],
    )  # fmt: skip
    assert spec.parameters == 11_307_321_344


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({}, "attention, mlp or both"),
        ({"attention": {"kind": "mlaa"}}, "layers[0].attention.kind"),
        ({"attention": {"kind": "mla", "n_headz": 3}}, "n_headz"),
        ({"mlp": {"kind": "moe", "n_experts": 0, "top_k": 1, "expert_size": 8}}, "n_experts"),
        ({"mlp": {"kind": "moe", "n_experts": 2, "top_k": 3, "expert_size": 8}}, "top_k = 3"),
    ],
)
def test_impossible_layers_are_refused_in_one_line(layer, words) -> None:
    from rtsim.errors import SpecError

    with pytest.raises(SpecError) as caught:
        model(layers=[layer])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
