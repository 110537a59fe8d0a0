"""Whole predictions over random models, GPUs and workloads: order, bounds and bookkeeping.

The kernels' own property tests hold that each operator is monotone in its sizes. Here the same
is asked of what a user sees, after lowering, the two tracks of a step, the context grid and the
split over GPUs. Systems are timed through the compiled core; `predict` is asked where a test
needs more than times. Examples are the same in every run, so that a failure is a change.

Where order cannot hold, and why it is not asked: more tensor-parallel ranks may take more time
(communication), and so may a newer GPU that is slower in any one figure. Matrix rows that are not
a multiple of 16 bytes leave the fast path, on the hardware and in the GEMM model, so a size may
grow onto an aligned one and time fall: 512 tokens of unfused attention take less than 511. So
widths, and prompts of unfused stacks, grow from an aligned size or by whole ALIGNED steps, which
keep the alignment. Growth is strict in output tokens and layers, where every step and every layer
costs something; in prompt, batch and widths time may stand still within a tile or behind the host.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import rtsim_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rtsim_kernels import tables

from rtsim.catalog import load_gpu
from rtsim.formats import peak_for
from rtsim.operators import StackTraits
from rtsim.prediction import Prediction
from rtsim.profile import Profile, load_profile
from rtsim.report import prediction_to_json
from rtsim.specs import GpuSpec, ModelSpec, ParallelismSpec
from rtsim.specs.dtype import dtype_bytes
from rtsim.system import System

EXACT = 1.0 + 1e-9  # rounding
ALIGNED = 16  # elements: 16 bytes in the narrowest format of the tests and in all wider ones
PROFILE = "megatron-lm-a100-sxm4-80gb"

quick = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
few = settings(quick, max_examples=40)


# Random systems ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def profiles() -> tuple[Profile, ...]:
    """The shipped profile, and the same with other traits: fused kernels, and little host time."""
    shipped = load_profile(PROFILE)
    fused = replace(shipped, name="fused", traits=StackTraits())
    host = {name: value / 50.0 for name, value in shipped.section("host").items()}
    host.update({name: shipped.section("host")[name] for name in ("corner", "score_passes")})
    bare = {**shipped.coefficients, "host": host}
    return (
        shipped,
        fused,
        replace(shipped, name="no-host", coefficients=bare),
        replace(fused, name="fused-no-host", coefficients=bare),
    )


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Dense decoders of sane and of odd sizes, one or two kinds of layers."""
    n_kv_heads = draw(st.sampled_from([1, 2, 4, 8, 12, 32]))
    n_heads = n_kv_heads * draw(st.sampled_from([1, 1, 2, 4, 8]))
    head_dim = draw(st.sampled_from([32, 64, 80, 128, 256]))
    hidden = draw(st.one_of(st.just(n_heads * head_dim), st.integers(64, 16384)))
    gated = draw(st.booleans())

    def group(window: int | None) -> dict[str, Any]:
        return {
            "count": draw(st.integers(1, 60)),
            "norm": draw(st.sampled_from(["layernorm", "rmsnorm"])),
            "parallel": parallel,
            "attention": {
                "n_heads": n_heads,
                "n_kv_heads": n_kv_heads,
                "head_dim": head_dim,
                "window": window,
                "qk_norm": draw(st.booleans()),
            },
            "mlp": {
                "ffn_size": draw(st.one_of(st.just(4 * hidden), st.integers(64, 65536))),
                "gated": gated,
                "activation": "silu" if gated else "gelu",
            },
        }

    parallel = draw(st.booleans())
    layers = [group(None)]
    if draw(st.booleans()):
        layers.append(group(draw(st.sampled_from([None, 16, 1000, 4096]))))
    return ModelSpec.from_mapping(
        {
            "name": "random",
            "hidden_size": hidden,
            "vocab_size": draw(st.integers(100, 260_000)),
            "max_positions": 100_000_000,
            "position": draw(st.sampled_from(["learned", "rotary", "alibi"])),
            "tied_embeddings": draw(st.booleans()),
            "embedding_norm": draw(st.booleans()),
            "dtype": draw(st.sampled_from(["fp16", "bf16", "fp32"])),
            "layers": layers,
        }
    )


gpus = st.sampled_from(["a100", "a100-pcie-40gb", "v100", "h100", "h200", "b200", "l40s", "t4"])


@st.composite
def splits(draw: st.DrawFn, model: ModelSpec) -> ParallelismSpec:
    attention = model.layers[0].attention
    heads, kv_heads = attention.n_heads, attention.n_kv_heads
    degrees = [
        tp
        for tp in (1, 2, 3, 4, 8)
        if heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)
    ]
    tp = draw(st.sampled_from(degrees))
    pp = draw(st.sampled_from([1, 1, 2])) if tp <= 4 and model.n_layers > 1 else 1
    return ParallelismSpec(tp=tp, pp=pp, dp=draw(st.sampled_from([1, 1, 2, 3])))


@st.composite
def systems(draw: st.DrawFn, gpu: Any = gpus) -> System:
    model = draw(models())
    device = draw(gpu)
    return System(
        model,
        device if isinstance(device, GpuSpec) else load_gpu(device),
        draw(splits(model)),
        profile=draw(st.sampled_from(profiles())),
    )


batches = st.integers(1, 300)
lengths = st.one_of(st.integers(1, 40), st.integers(1, 5000))
growths = st.integers(1, 3000)


def changed(made: System, **parts: Any) -> System:
    """The same system with another model, gpu or parallelism."""
    return System(
        parts.get("model", made.model),
        parts.get("gpu", made.gpu),
        parts.get("parallelism", made.parallelism),
        profile=made.profile,
        dtype=made.dtype,
    )


def assert_not_faster(less: Any, more: Any) -> None:
    """`more` takes at least as long as `less`, in the first token and in all."""
    assert more.ttft_s * EXACT >= less.ttft_s
    assert more.e2e_latency_s * EXACT >= less.e2e_latency_s


# More work never takes less time -----------------------------------------------------------------


@quick
@given(systems(), batches, lengths, lengths, growths)
def test_more_output_never_takes_less_time(
    made: System, batch: int, prompt: int, output: int, growth: int
) -> None:
    less, more = made.times(batch, prompt, output), made.times(batch, prompt, output + growth)
    assert more.ttft_s == less.ttft_s
    assert more.e2e_latency_s > less.e2e_latency_s


@quick
@given(systems(), batches, lengths, lengths, growths)
def test_longer_prompts_never_take_less_time(
    made: System, batch: int, prompt: int, output: int, growth: int
) -> None:
    if made.profile.traits.attention == "unfused":  # its products are as long as the prompt
        if prompt < ALIGNED:
            growth *= ALIGNED
        elif growth % ALIGNED:
            prompt -= prompt % ALIGNED
    less, more = made.times(batch, prompt, output), made.times(batch, prompt + growth, output)
    assert_not_faster(less, more)


def test_misaligned_prompts_are_the_exception() -> None:
    """The reason for ALIGNED: without it the test above would be wrong, not the model."""
    made = System(cache_bound(), load_gpu("a100"), profile=profiles()[2])
    assert made.times(64, 512, 1).ttft_s < made.times(64, 511, 1).ttft_s
    assert made.times(64, 512, 1).ttft_s > made.times(64, 496, 1).ttft_s


@quick
@given(systems(), batches, lengths, lengths, st.integers(1, 300))
def test_larger_batches_never_take_less_time(
    made: System, batch: int, prompt: int, output: int, growth: int
) -> None:
    less, more = made.times(batch, prompt, output), made.times(batch + growth, prompt, output)
    assert_not_faster(less, more)


@quick
@given(systems(), batches, lengths, lengths, st.integers(1, 60))
def test_more_layers_take_more_time(
    made: System, batch: int, prompt: int, output: int, growth: int
) -> None:
    count = made.model.layers[0].count + growth
    deeper = changed(made, model=made.model.with_({"layers.0.count": count}))
    less, more = made.times(batch, prompt, output), deeper.times(batch, prompt, output)
    assert more.ttft_s > less.ttft_s
    assert more.e2e_latency_s > less.e2e_latency_s


@quick
@given(
    systems(),
    batches,
    lengths,
    lengths,
    st.sampled_from(["ffn", "vocabulary", "hidden"]),
    st.integers(1, 100),
)
def test_wider_models_never_take_less_time(
    made: System, batch: int, prompt: int, output: int, what: str, growth: int
) -> None:
    model = made.model
    growth *= ALIGNED * made.parallelism.tp  # each rank's share keeps its alignment
    changes: dict[str, Any] = {
        "ffn": {"layers.0.mlp.ffn_size": model.layers[0].mlp.ffn_size + growth},
        "vocabulary": {"vocab_size": model.vocab_size + growth},
        "hidden": {"hidden_size": model.hidden_size + growth},
    }[what]
    wider = changed(made, model=model.with_(changes))
    assert_not_faster(made.times(batch, prompt, output), wider.times(batch, prompt, output))


# A faster GPU never takes more time --------------------------------------------------------------


def faster(gpu: GpuSpec, what: str, factor: float) -> GpuSpec:
    changes: dict[str, Any] = {}
    if what == "peaks":
        for name in type(gpu).model_fields:
            if name.startswith("peak_") and getattr(gpu, name) is not None:
                changes[name] = getattr(gpu, name) * factor
    elif what == "link":
        if gpu.link is not None:
            changes["link.bytes_per_s"] = gpu.link.bytes_per_s * factor
        changes["pcie_bytes_per_s"] = gpu.pcie_bytes_per_s * factor
        if gpu.network is not None:
            changes["network.bytes_per_s"] = gpu.network.bytes_per_s * factor
    else:
        changes[what] = getattr(gpu, what) * factor
    return gpu.with_(changes)


@quick
@given(
    systems(),
    batches,
    lengths,
    lengths,
    st.sampled_from(["hbm_bytes_per_s", "clock_hz", "peaks", "link"]),
    st.floats(1.0, 20.0),
)
def test_a_faster_gpu_is_never_slower(
    made: System, batch: int, prompt: int, output: int, what: str, factor: float
) -> None:
    better = changed(made, gpu=faster(made.gpu, what, factor))
    assert_not_faster(better.times(batch, prompt, output), made.times(batch, prompt, output))


@pytest.mark.parametrize("what", ["hbm_bytes_per_s", "clock_hz", "peaks", "link"])
def test_a_faster_gpu_is_faster_somewhere(what: str) -> None:
    """The test above can fail: each rate does change a prediction that leans on it."""
    shape = {
        "name": "wide",
        "hidden_size": 8192,
        "vocab_size": 50000,
        "max_positions": 4096,
        "layers": [
            {
                "count": 8,
                "attention": {"n_heads": 64, "head_dim": 128},
                "mlp": {"ffn_size": 32768},
            }
        ],
    }
    fused_no_host = profiles()[3]
    made = System(
        ModelSpec.from_mapping(shape),
        load_gpu("a100"),
        ParallelismSpec(tp=8),
        profile=fused_no_host,
    )
    better = changed(made, gpu=faster(made.gpu, what, 3.0))
    assert better.times(16, 1000, 10).e2e_latency_s < 0.99 * made.times(16, 1000, 10).e2e_latency_s


# Never below what physics allows -----------------------------------------------------------------


def matrix_elements(model: ModelSpec) -> tuple[float, float]:
    """Elements of the layers' weight matrices, and of the output head, counted from the shape."""
    h = model.hidden_size
    layers = 0.0
    for group in model.layers:
        a, mlp = group.attention, group.mlp
        projections = h * a.head_dim * (2 * a.n_heads + 2 * a.n_kv_heads)
        layers += group.count * (projections + (3 if mlp.gated else 2) * h * mlp.ffn_size)
    return layers, float(h * model.vocab_size)


@quick
@given(systems(), batches, lengths)
def test_no_prompt_pass_beats_the_physical_bound(made: System, batch: int, prompt: int) -> None:
    """FLOPs over the peak of all GPUs that work at a time, weights over their bandwidth."""
    layers, head = matrix_elements(made.model)
    sequences = math.ceil(batch / made.parallelism.dp)
    head_rows = sequences * (prompt if made.profile.traits.logits == "all" else 1)
    flops = 2.0 * (sequences * prompt * layers + head_rows * head)
    weight_bytes = dtype_bytes(made.dtype) * (layers + head)
    ttft_s = made.times(batch, prompt, 1).ttft_s
    ranks = made.parallelism.tp  # the stages of a pipeline work one after the other
    assert ttft_s * EXACT >= flops / (peak_for(made.gpu, made.dtype, []) * ranks)
    assert ttft_s * EXACT >= weight_bytes / (made.gpu.hbm_bytes_per_s * ranks)


@quick
@given(systems(), batches, lengths, st.integers(2, 500))
def test_no_decode_step_beats_the_bandwidth(
    made: System, batch: int, prompt: int, output: int
) -> None:
    """Weights once, and of each sequence the keys and values that the token may see."""
    sequences = math.ceil(batch / made.parallelism.dp)
    element = dtype_bytes(made.dtype)
    cached = sum(
        group.count
        * (group.attention.k_width + group.attention.v_width)
        * min(prompt, group.attention.window or prompt)
        * element
        for group in made.model.layers
    )
    read = element * sum(matrix_elements(made.model)) + sequences * cached
    tpot_s = made.times(batch, prompt, output).tpot_s
    assert tpot_s * EXACT >= read / (made.gpu.hbm_bytes_per_s * made.parallelism.tp)


@few
@given(systems(), batches, lengths)
def test_no_matrix_product_beats_the_roofline(made: System, batch: int, prompt: int) -> None:
    """Each line of the breakdown by itself: FLOPs at the peak; weights at the bandwidth."""
    result = made.predict(batch, prompt, 3, compiled=True)
    table = made.table.rows
    # Both phases list the operators of the table in order, and the wait for the host after them.
    rows = [row for row in result.breakdown if row.bound != "host"]
    assert len(rows) == 2 * len(table)
    for row, shape in zip(rows, [*table, *table], strict=True):
        if shape["kind"] == tables.GEMM:
            assert row.time_s * EXACT >= row.flops / made.peak_flops_per_s
            weight_bytes = row.count * shape["n"] * shape["k"] * dtype_bytes(made.dtype)
            assert row.time_s * EXACT >= weight_bytes / made.gpu.hbm_bytes_per_s


# One GPU does not communicate --------------------------------------------------------------------


@few
@given(systems(), batches, lengths, st.integers(1, 50))
def test_one_gpu_does_not_communicate(made: System, batch: int, prompt: int, output: int) -> None:
    alone = changed(made, parallelism=ParallelismSpec(tp=1))
    assert all(
        row.bound != "interconnect" for row in alone.predict(batch, prompt, output).breakdown
    )
    slow_link = changed(alone, gpu=faster(alone.gpu, "link", 0.05))
    assert slow_link.times(batch, prompt, output).e2e_latency_s == pytest.approx(
        alone.times(batch, prompt, output).e2e_latency_s, rel=1e-12
    )


@few
@given(systems(), batches, lengths, st.integers(1, 50))
def test_replicas_only_share_the_batch(made: System, batch: int, prompt: int, output: int) -> None:
    """dp replicas with n sequences each take as long as one with n, and cost dp times as much."""
    p = made.parallelism
    one = changed(made, parallelism=ParallelismSpec(tp=p.tp, pp=p.pp))
    three = changed(made, parallelism=ParallelismSpec(tp=p.tp, pp=p.pp, dp=3))
    single, threefold = one.predict(batch, prompt, output), three.predict(3 * batch, prompt, output)
    assert threefold.e2e_latency_s == single.e2e_latency_s
    assert threefold.num_gpus == 3 * single.num_gpus
    assert threefold.output_throughput == pytest.approx(3 * single.output_throughput)
    assert threefold.prefill_flops == pytest.approx(3 * single.prefill_flops)
    assert threefold.mfu == pytest.approx(single.mfu)
    assert threefold.memory.max_batch_size == 3 * single.memory.max_batch_size
    assert replace(threefold.memory, max_batch_size=0) == replace(single.memory, max_batch_size=0)


# Bookkeeping of a prediction ---------------------------------------------------------------------


@st.composite
def predictions(draw: st.DrawFn) -> tuple[System, Prediction]:
    made = draw(systems())
    output = draw(st.one_of(st.just(1), st.integers(1, 3000)))
    sizes = draw(batches), draw(lengths), output
    return made, made.predict(*sizes, compiled=True)


@few
@given(predictions())
def test_breakdown_adds_up_to_the_runtime(asked: tuple[System, Prediction]) -> None:
    _, result = asked
    for phase, total_s in (
        ("prefill", result.ttft_s),
        ("decode", result.e2e_latency_s - result.ttft_s),
    ):
        rows = [row for row in result.breakdown if row.phase == phase]
        assert sum(row.time_s for row in rows) == pytest.approx(total_s, rel=1e-9, abs=1e-15)
        assert all(row.time_s >= 0.0 and row.flops >= 0.0 and row.bytes >= 0.0 for row in rows)


@few
@given(predictions())
def test_times_and_rates_follow_from_each_other(asked: tuple[System, Prediction]) -> None:
    made, result = asked
    w = result.workload
    e2e_s = result.e2e_latency_s
    if w.output_len == 1:
        assert result.tpot_s is None
        assert e2e_s == result.ttft_s
        assert result.decode_flops == 0.0
    else:
        assert result.tpot_s == pytest.approx(
            (e2e_s - result.ttft_s) / (w.output_len - 1), rel=1e-9
        )
    assert result.num_gpus == made.parallelism.tp * made.parallelism.pp * made.parallelism.dp
    assert result.output_throughput == pytest.approx(w.batch_size * w.output_len / e2e_s)
    flops = result.prefill_flops + result.decode_flops
    assert result.mfu == pytest.approx(flops / (e2e_s * result.num_gpus * made.peak_flops_per_s))
    assert 0.0 < result.mfu <= EXACT
    assert result.mbu > 0.0


@few
@given(predictions())
def test_cost_and_energy(asked: tuple[System, Prediction]) -> None:
    """Idealized runtime x GPUs x price, and x power (Narayanan et al. 2023)."""
    made, result = asked
    w, gpu = result.workload, made.gpu
    gpu_hours = result.e2e_latency_s * result.num_gpus / 3600.0
    if gpu.price is None:
        assert result.cost is None
    else:
        assert result.cost is not None
        usd = gpu_hours * gpu.price.usd_per_hour
        assert result.cost.usd_per_request == pytest.approx(usd / w.batch_size)
        tokens = w.batch_size * w.output_len
        assert result.cost.usd_per_million_output_tokens == pytest.approx(usd / tokens * 1e6)
    if gpu.power_w is None:
        assert result.energy_j is None
    else:
        assert result.energy_j == pytest.approx(gpu_hours * 3600.0 * gpu.power_w)


@few
@given(predictions())
def test_intervals_enclose_the_prediction(asked: tuple[System, Prediction]) -> None:
    _, result = asked
    interval = result.interval_90
    pairs = [(result.ttft_s, interval.ttft_s), (result.e2e_latency_s, interval.e2e_latency_s)]
    if result.tpot_s is None:
        assert interval.tpot_s is None
    else:
        pairs.append((result.tpot_s, interval.tpot_s))
    for value, range_ in pairs:
        assert 0.0 < range_.low < value < range_.high
        # Symmetric in the logarithm: as likely a factor above as a factor below.
        assert range_.low * range_.high == pytest.approx(value**2, rel=1e-9)


@few
@given(systems(), batches, lengths, st.integers(1, 500))
def test_the_interval_is_wider_on_a_gpu_without_a_profile(
    made: System, batch: int, prompt: int, output: int
) -> None:
    """The very same figures under a name that was not profiled: same times, less certainty."""
    at_home = changed(made, gpu=load_gpu(made.profile.gpu))
    abroad = changed(made, gpu=at_home.gpu.with_(name="not-profiled"))
    known = at_home.predict(batch, prompt, output)
    unknown = abroad.predict(batch, prompt, output)
    assert unknown.e2e_latency_s == known.e2e_latency_s
    for name in ("ttft_s", "tpot_s", "e2e_latency_s"):
        inner, outer = getattr(known.interval_90, name), getattr(unknown.interval_90, name)
        if inner is None:
            assert outer is None
        else:
            assert outer.low < inner.low < inner.high < outer.high


@few
@given(predictions())
def test_json_round_trip(asked: tuple[System, Prediction]) -> None:
    """Plain finite JSON that reads back to the same object."""
    _, result = asked
    body = prediction_to_json(result)
    again = json.loads(json.dumps(body, allow_nan=False))
    assert again == body
    assert again["ttft_s"] == result.ttft_s
    assert again["interval_90"]["ttft_s"] == [
        result.interval_90.ttft_s.low,
        result.interval_90.ttft_s.high,
    ]
    assert len(again["breakdown"]) == len(result.breakdown)


@few
@given(systems(), batches, lengths, st.integers(1, 200))
def test_bare_times_are_those_of_the_prediction(
    made: System, batch: int, prompt: int, output: int
) -> None:
    """`System.times` compiled, `System.predict` interpreted and compiled: one answer."""
    bare = made.times(batch, prompt, output)
    for compiled in (False, True):
        result = made.predict(batch, prompt, output, compiled=compiled)
        assert result.ttft_s == pytest.approx(bare.ttft_s, rel=1e-12)
        assert result.e2e_latency_s == pytest.approx(bare.e2e_latency_s, rel=1e-12)


# The grid of contexts ----------------------------------------------------------------------------

GRID_ERROR = 2e-3  # of the sum over all steps, as generation.py states


@few
@given(st.integers(1, 3000), st.integers(2, 60), st.integers(1, 8))
def test_steps_add_up_where_the_cache_decides(prompt: int, output: int, batch: int) -> None:
    """Against every step by itself, on a stack whose decode time is nearly all cache traffic.

    Where weights or the host decide, a wrong weight of a grid point would go unnoticed.
    """
    fused_no_host = profiles()[3]
    made = System(cache_bound(), load_gpu("a100"), profile=fused_no_host)
    kernels, machines = made.compiled_form()
    assert kernels is rtsim_kernels.compiled()
    operators, segments = made.table.rows, made.table.segments
    times = np.zeros((len(operators), 2))
    n_sequences = 32.0 * batch
    steps_s = sum(
        kernels.step.step_s(
            n_sequences,
            1.0,
            float(context),
            0.0,
            0.0,
            0.0,
            0.0,
            operators,
            segments,
            machines[0],
            times,
        )
        for context in range(prompt + 1, prompt + output)
    )
    made_s = made.times(int(n_sequences), prompt, output)
    assert made_s.tpot_s * (output - 1) == pytest.approx(steps_s, rel=GRID_ERROR)


def cache_bound() -> ModelSpec:
    """Many heads on little else."""
    return ModelSpec.from_mapping(
        {
            "name": "cache-bound",
            "hidden_size": 64,
            "vocab_size": 100,
            "max_positions": 10_000,
            "layers": [
                {
                    "count": 40,
                    "attention": {"n_heads": 64, "head_dim": 128},
                    "mlp": {"ffn_size": 64},
                }
            ],
        }
    )
