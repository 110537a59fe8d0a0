"""Lowering: one table holds the work, and it adds up to the closed forms."""

import math

import pytest
from rtsim_kernels import step, tables

from rtsim.catalog import load_gpu, load_model
from rtsim.formats import Formats
from rtsim.machine import machine_rows
from rtsim.operators import OperatorTable, StackTraits, lower
from rtsim.profile_choice import choose_profile
from rtsim.specs import ModelSpec, ParallelismSpec

UNFUSED = StackTraits(attention="unfused", logits="all", fused_norm=False, eager_copies=True)
FUSED = StackTraits()
MATRIX_KINDS = (tables.GEMM, tables.SCORES, tables.VALUES, tables.ATTENTION)


def dense(layers: int = 3, hidden: int = 512, heads: int = 8, vocab: int = 1000, **attention):
    return ModelSpec(
        name="dense",
        hidden_size=hidden,
        vocab_size=vocab,
        max_positions=4096,
        position="learned",
        tied_embeddings=True,
        dtype="fp16",
        layers=[
            {
                "count": layers,
                "attention": {"n_heads": heads, "head_dim": hidden // heads, **attention},
                "mlp": {"ffn_size": 4 * hidden},
            }
        ],
    )


def machine() -> step.Machine:
    gpu = load_gpu("a100")
    profile, _ = choose_profile(gpu, "megatron-lm")
    formats = Formats("fp16", "fp16")
    return machine_rows(profile, gpu, formats).interpreted()


def work(table: OperatorTable, batch: float, new: float, context: float, segments=None):
    """FLOPs of matrix operators in one step, over the segments given (all by default)."""
    total = 0.0
    rows = [tables.as_row(row) for row in table.rows]
    for s, segment in enumerate(table.segments):
        if segments is not None and s not in segments:
            continue
        for i in range(segment["first"], segment["last"]):
            if rows[i].kind in MATRIX_KINDS:
                flops, _ = step.operator_work(rows[i], batch, new, context, 0.0, machine())
                total += flops * segment["count"]
    return total


@pytest.mark.parametrize(("batch", "prompt"), [(1, 128), (3, 77), (8, 1)])
def test_prompt_flops_are_the_closed_form(batch, prompt):
    """24 b p h^2 + 4 b p^2 h per layer (Narayanan et al. 2023), unfused attention."""
    h, layers = 512, 3
    table = lower(dense(layers, h), ParallelismSpec(), UNFUSED, 2.0, 8)
    expected = layers * (24 * batch * prompt * h**2 + 4 * batch * prompt**2 * h)
    assert work(table, batch, prompt, prompt, segments={1}) == expected


@pytest.mark.parametrize("context", [1, 100, 2048])
def test_decode_flops_are_the_closed_form(context):
    """24 b h^2 + 4 b i h per layer for one token at context i, fused or not."""
    h, layers, batch = 512, 3, 2
    expected = layers * (24 * batch * h**2 + 4 * batch * context * h)
    for traits in (UNFUSED, FUSED):
        table = lower(dense(layers, h), ParallelismSpec(), traits, 2.0, 8)
        assert work(table, batch, 1, context, segments={1}) == expected


def test_fused_causal_attention_halves_the_scores():
    h, prompt = 512, 256
    table = lower(dense(1, h), ParallelismSpec(), FUSED, 2.0, 8)
    expected = 24 * prompt * h**2 + 4 * h * prompt * (prompt + 1) / 2
    assert work(table, 1, prompt, prompt, segments={1}) == pytest.approx(expected, rel=1e-12)


def test_head_flops():
    table = lower(dense(vocab=1000), ParallelismSpec(), UNFUSED, 2.0, 8)
    assert work(table, 1, 64, 64, segments={2}) == 2 * 64 * 512 * 1000
    last_only = lower(dense(vocab=1000), ParallelismSpec(), FUSED, 2.0, 8)
    assert work(last_only, 1, 64, 64, segments={2}) == 2 * 512 * 1000


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallel_shares_add_up(tp):
    whole = work(lower(dense(), ParallelismSpec(), UNFUSED, 2.0, 8), 1, 64, 64)
    share = work(lower(dense(), ParallelismSpec(tp=tp), UNFUSED, 2.0, 8), 1, 64, 64)
    assert share * tp == pytest.approx(whole, rel=1e-12)


def communication(model, tp, **degrees):
    table = lower(model, ParallelismSpec(tp=tp, **degrees), UNFUSED, 2.0, 8)
    return [
        (name, int(table.executions[i]))
        for i, name in enumerate(table.names)
        if table.rows["kind"][i] == tables.COLLECTIVE
    ]


def test_one_gpu_does_not_communicate():
    assert communication(dense(), 1) == []


def test_two_all_reduces_per_layer_or_one_in_parallel_blocks():
    names = dict(communication(dense(layers=5), 2))
    assert names["attention all-reduce"] == names["MLP all-reduce"] == 5
    parallel = dense(layers=5).with_({"layers.parallel": True})
    assert "attention all-reduce" not in dict(communication(parallel, 2))


def test_pipeline_stages_send_between_them():
    assert dict(communication(dense(layers=8), 1, pp=4))["pipeline send/recv"] == 3


def test_grouped_heads_shrink_keys_and_values_only():
    many = lower(dense(heads=8), ParallelismSpec(), FUSED, 2.0, 8)
    few = lower(dense(heads=8, n_kv_heads=2), ParallelismSpec(), FUSED, 2.0, 8)
    assert many.rows["n"][many.names.index("QKV projection")] == 3 * 512
    assert few.rows["n"][few.names.index("QKV projection")] == 512 + 2 * 128


def test_kv_heads_are_replicated_beyond_their_number():
    model = dense(heads=8, n_kv_heads=2)
    table = lower(model, ParallelismSpec(tp=8), FUSED, 2.0, 8)
    attention = table.rows[table.names.index("attention")]
    assert attention["n_heads"] == 1
    assert attention["n_kv_heads"] == 1


def test_gated_mlp_doubles_the_up_projection():
    llama = load_model("llama-2-7b")
    table = lower(llama, ParallelismSpec(), FUSED, 2.0, 8)
    assert table.rows["n"][table.names.index("MLP up projection")] == 2 * 11008
    assert table.rows["k"][table.names.index("MLP down projection")] == 11008


def test_weights_read_in_a_decode_step_are_the_parameters():
    """GEMM operands at one token: every matrix of the model once, in bytes."""
    model = load_model("gpt3-6.7b")
    table = lower(model, ParallelismSpec(), FUSED, 2.0, 8)
    elements = sum(
        float(row["n"] * row["k"]) * executions
        for row, executions in zip(table.rows, table.executions, strict=True)
        if row["kind"] == tables.GEMM
    )
    # Learned positions, biases and norms are not matrices: well under 1 %.
    assert math.isclose(elements, model.parameters, rel_tol=0.01)
    assert elements < model.parameters
