"""Memory of the fullest GPU, against figures worked out by hand from the shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rtsim.catalog import load_gpu, load_model
from rtsim.formats import Formats
from rtsim.memory import Placement, memory_use
from rtsim.operators import StackTraits
from rtsim.prediction import MemoryUse
from rtsim.specs import ModelSpec, ParallelismSpec

UNFUSED = StackTraits(attention="unfused", logits="all", fused_norm=False, eager_copies=True)
GB = 1e9


def use(
    model: ModelSpec,
    gpu: str = "a100",
    traits: StackTraits = UNFUSED,
    *,
    dtype: str = "fp16",
    kv_dtype: str | None = None,
    quantization: str = "none",
    n_sequences: int = 1,
    input_len: int = 512,
    output_len: int = 64,
    **degrees: int,
) -> MemoryUse:
    formats = Formats(dtype, kv_dtype or dtype, quantization, quantization, quantization)
    return memory_use(
        Placement(model, load_gpu(gpu), ParallelismSpec(**degrees), traits, formats),
        n_sequences=n_sequences,
        input_len=input_len,
        last_context=input_len + output_len - 1,
    )


def small(layers: int = 4, **attention: Any) -> ModelSpec:
    shape = {"n_heads": 8, "head_dim": 64, **attention}
    return ModelSpec(
        name="small",
        hidden_size=512,
        vocab_size=1000,
        max_positions=8192,
        dtype="fp16",
        layers=[{"count": layers, "attention": shape, "mlp": {"ffn_size": 2048}}],
    )


def test_weights_of_gpt3_on_eight_gpus() -> None:
    """96 layers of 12 h^2 + 9 h split eight ways, 4 h of norms on each; the tables split."""
    h, layers = 12288, 96
    elements = layers * ((12 * h**2 + 9 * h) / 8 + 4 * h)
    elements += (51200 * h + 2048 * h + 2 * h) / 8  # tied table, positions, final norm
    memory = use(load_model("gpt3-175b"), tp=8)
    assert memory.weights_bytes == pytest.approx(2 * elements, rel=1e-12)
    assert memory.weights_bytes == pytest.approx(350e9 / 8, rel=0.01)  # 175 B parameters, fp16


def test_cache_of_gpt3_on_eight_gpus() -> None:
    """A key and a value of 12288 / 8 in each of 96 layers, for 575 tokens of 4 sequences."""
    memory = use(load_model("gpt3-175b"), tp=8, n_sequences=4)
    assert memory.kv_cache_bytes == 4 * 575 * 96 * 2 * (12288 / 8) * 2


def test_activations_of_gpt3_on_eight_gpus() -> None:
    """Per token: residual twice, the MLP's in and out, and 12 heads' scores twice."""
    memory = use(load_model("gpt3-175b"), tp=8)
    per_token = 2 * 12288 + 2 * 49152 / 8 + 2 * (96 / 8) * 512
    assert memory.activation_bytes == 512 * 2 * per_token
    # Fused attention keeps no scores.
    fused = use(load_model("gpt3-175b"), traits=StackTraits(), tp=8)
    assert fused.activation_bytes == 512 * 2 * (2 * 12288 + 2 * 49152 / 8)


def test_logits_can_be_the_largest_activation() -> None:
    """Of every prompt token in 16 bits and in fp32, or of the last one only."""
    wide = small().with_(vocab_size=200_000)
    assert use(wide).activation_bytes == 512 * 200_000 * (2 + 4)
    last_only = use(wide, traits=replace(UNFUSED, logits="last")).activation_bytes
    assert last_only < use(wide).activation_bytes / 10


def test_everything_has_to_be_resident() -> None:
    memory = use(small())
    parts = memory.weights_bytes, memory.kv_cache_bytes, memory.activation_bytes
    assert memory.used_bytes == sum(parts) + memory.reserved_bytes
    assert memory.reserved_bytes == 1.0 * GB
    assert use(small(), tp=2).reserved_bytes == 1.5 * GB  # the links' buffers as well
    assert memory.capacity_bytes == load_gpu("a100").memory_bytes == 81920 * 2**20


def test_windows_bound_the_cache() -> None:
    """A window of 100 keeps 100 tokens, however long the sequence."""
    per_token = 4 * 2 * 512 * 2
    assert use(small(), input_len=3000).kv_cache_bytes == per_token * 3063
    assert use(small(window=100), input_len=3000).kv_cache_bytes == per_token * 100
    assert use(small(window=100), input_len=10, output_len=5).kv_cache_bytes == per_token * 14


def test_layers_with_and_without_a_window_add_up() -> None:
    layers = [
        {
            "count": count,
            "attention": {"n_heads": 8, "head_dim": 64, "window": window},
            "mlp": {"ffn_size": 2048},
        }
        for count, window in ((3, 100), (1, None))
    ]
    mixed = small().with_(layers=layers)
    assert use(mixed, input_len=1000).kv_cache_bytes == 2 * 512 * 2 * (3 * 100 + 1063)


def test_grouped_heads_shrink_the_cache() -> None:
    assert use(small(n_kv_heads=2)).kv_cache_bytes == use(small()).kv_cache_bytes / 4


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    """Two KV heads over eight ranks: each rank keeps one, so half of the cache and not 1/8."""
    few = small(n_kv_heads=2)
    whole = use(few).kv_cache_bytes
    assert use(few, tp=2).kv_cache_bytes == whole / 2
    assert use(few, tp=8).kv_cache_bytes == whole / 2
    # Their projections are replicated too: an eighth of the rest, a half of keys and values.
    h, kv = 512, 2 * 64
    split = (2 * h * h + 2 * h * 2048) / 8 + 2 * h * kv / 2 + 4 * h
    assert use(few, tp=8).weights_bytes == pytest.approx(
        2 * (4 * split + (2 * 1000 * h + 2 * h) / 8), rel=1e-12
    )


def test_a_narrow_cache_is_smaller_and_weights_are_not() -> None:
    wide, narrow = use(small()), use(small(), kv_dtype="fp8")
    assert narrow.kv_cache_bytes == wide.kv_cache_bytes / 2
    assert narrow.weights_bytes == wide.weights_bytes


def test_quantised_matrices_leave_norms_and_tables_alone() -> None:
    wide, narrow = use(small()), use(small(), quantization="int8_wo")
    matrices = 4 * 12 * 512**2
    assert wide.weights_bytes - narrow.weights_bytes == matrices


def test_pipeline_stages_share_the_layers() -> None:
    """The longest of three stages holds two of four layers, and the embedding or the head."""
    one, three = use(small()), use(small(), pp=3)
    assert three.kv_cache_bytes == one.kv_cache_bytes / 2
    layer = 12 * 512**2 + 4 * 512
    assert three.weights_bytes == pytest.approx(2 * (2 * layer + 1000 * 512 + 2 * 512))
    assert one.weights_bytes == pytest.approx(2 * (4 * layer + 2 * 1000 * 512 + 2 * 512))


def test_the_smallest_fitting_tp_is_the_smallest() -> None:
    """GPT-3 175B, 350 GB: five A100 of 86 GB would do, but 96 heads divide by six."""
    model = load_model("gpt3-175b")
    smallest = use(model, tp=8).smallest_fitting_tp
    assert smallest == 6
    assert use(model, tp=6).fits
    assert not use(model, tp=4).fits


def test_what_fits_one_gpu_needs_no_more() -> None:
    assert use(small(), tp=8).smallest_fitting_tp == 1
    assert use(small()).smallest_fitting_tp == 1


def test_no_node_holds_it() -> None:
    memory = use(load_model("mt-nlg-530b"), gpu="v100", tp=8)
    assert not memory.fits
    assert memory.smallest_fitting_tp is None


@pytest.mark.parametrize("n_sequences", [1, 100])
def test_more_sequences_need_more_cache(n_sequences: int) -> None:
    more = use(small(), n_sequences=n_sequences + 1)
    assert more.kv_cache_bytes > use(small(), n_sequences=n_sequences).kv_cache_bytes
    assert more.activation_bytes > use(small(), n_sequences=n_sequences).activation_bytes


def test_a_cache_alone_can_be_too_much() -> None:
    model = load_model("llama-2-7b")
    assert use(model, n_sequences=100).fits
    assert not use(model, n_sequences=1000).fits


def test_the_tp_offered_splits_the_kv_heads() -> None:
    """40 heads divide by five, but 8 KV heads neither divide by five nor five by them."""
    model = small(layers=1, n_heads=40, n_kv_heads=8, head_dim=128).with_(
        {"hidden_size": 5120, "layers.count": 690, "layers.mlp.ffn_size": 20480}
    )
    memory = use(model)
    assert memory.smallest_fitting_tp is not None
    assert ParallelismSpec(tp=memory.smallest_fitting_tp).check_model(model) == []
