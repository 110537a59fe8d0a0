"""Assembly: what is assumed, refused and noted, and figures that follow by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rtsim
from rtsim.catalog import load_gpu, load_model
from rtsim.errors import DataError, SpecError, UnknownName
from rtsim.named_system import system
from rtsim.operators import StackTraits
from rtsim.predict import predict
from rtsim.prediction import Prediction
from rtsim.profile import Profile, load_profile
from rtsim.specs import GpuSpec, ModelSpec, ParallelismSpec
from rtsim.system import System

PROFILE = "megatron-lm-a100-sxm4-80gb"
MATRIX_WORK = ("projection", "scores", "values", "attention", "head")


def fused() -> Profile:
    """The shipped coefficients under a stack of fused kernels."""
    return replace(load_profile(PROFILE), name="fused", traits=StackTraits())


def small(**attention: Any) -> ModelSpec:
    return ModelSpec(
        name="small",
        hidden_size=512,
        vocab_size=1000,
        max_positions=8192,
        dtype="fp16",
        layers=[
            {
                "count": 3,
                "attention": {"n_heads": 8, "head_dim": 64, **attention},
                "mlp": {"ffn_size": 2048},
            }
        ],
    )


def gpu_text(**changes: str) -> str:
    facts = {
        "sm_count": "100",
        "memory_bytes": '"80 GB"',
        "hbm_bytes_per_s": '"2 TB/s"',
        "peak_fp16_flops_per_s": '"300 TFLOP/s"',
        "clock_hz": '"1.4 GHz"',
    }
    return "".join(f"{name} = {value}\n" for name, value in {**facts, **changes}.items())


# What is assumed ---------------------------------------------------------------------------------


def test_defaults_are_named() -> None:
    result = predict("gpt3-6.7b", "a100")
    w = result.workload
    assert (w.batch_size, w.input_len, w.output_len, w.dtype) == (1, 512, 64, "fp16")
    assumed = " | ".join(result.assumed)
    for words in (
        "stack = megatron-lm (best evidence for this GPU; eager, attention unfused: --stack vllm "
        "is a serving stack)",
        "tp = 1",
        "batch_size = 1",
        "input_len = 512",
        "output_len = 64",
        "dtype = fp16 (the model's own)",
    ):
        assert words in assumed


def test_what_is_given_is_not_assumed() -> None:
    result = predict(
        "gpt3-6.7b",
        "a100",
        tp=2,
        stack="megatron-lm",
        batch_size=2,
        input_len=10,
        output_len=3,
        dtype="bf16",
    )
    assert result.assumed == ()
    assert result.workload.dtype == "bf16"


def test_another_gpu_is_said_to_lean_on_the_nearest() -> None:
    result = predict("gpt3-6.7b", "h20")
    assert "nearest GPU with measurements" in " ".join(result.assumed)
    assert "h20 has no measured profile" in " ".join(result.notes)
    at_home = predict("gpt3-6.7b", "a100")
    assert not any("no measured profile" in note for note in at_home.notes)


def test_sources_name_profile_gpu_and_model() -> None:
    sources = " | ".join(predict("gpt3-175b", "a100", tp=8).sources)
    assert f"profile {PROFILE}" in sources
    assert "helm-efficiency" in sources
    assert "GPU a100-sxm4-80gb" in sources
    assert "arXiv 2005.14165" in sources


# Names, files and specifications -----------------------------------------------------------------


def test_specifications_and_names_give_the_same() -> None:
    by_name = predict("gpt3-6.7b", "a100", tp=2)
    by_spec = predict(load_model("gpt3-6.7b"), load_gpu("a100"), tp=2)
    assert by_spec == by_name


def test_files_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(gpu_text())
    by_path, by_text = predict("gpt3-6.7b", path), predict("gpt3-6.7b", str(path))
    assert by_path == by_text
    assert by_path.gpu.name == "mine"
    assert by_path.cost is None
    assert by_path.energy_j is None
    notes = " ".join(by_path.notes)
    assert "no price is known for mine" in notes
    assert "l2_bytes not stated" in notes
    assert "gpus_per_node" not in notes  # one GPU has no neighbours
    assert "gpus_per_node not stated" in " ".join(predict("gpt3-6.7b", path, tp=2).notes)


def test_the_public_function_is_this_one() -> None:
    assert rtsim.predict is predict


def test_systems_are_kept() -> None:
    assert system("gpt3-6.7b", "a100", 2) is system("gpt3-6.7b", "a100", 2)
    assert system("gpt3-6.7b", "a100", 2) is not system("gpt3-6.7b", "a100", 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"arch": "gpt3-175"}, UnknownName, ("gpt3-175b",)),
        ({"gpu": "a10O"}, UnknownName, ("a10",)),
        ({"stack": "megatron"}, UnknownName, ("stack", "megatron-lm")),
        ({"profile": "megatron-lm-a100"}, UnknownName, ("profile", PROFILE)),
        ({"profile": "none.toml"}, DataError, ("none.toml",)),
        ({"profile": PROFILE, "stack": "vllm"}, SpecError, ("stack", "vllm", "megatron-lm")),
        ({"tp": 7}, SpecError, ("tp = 7", "32 attention heads")),
        ({"tp": 2, "num_gpus": 3}, SpecError, ("num_gpus", "3")),
        ({"tp": 32, "gpu": "a10"}, SpecError, ("tp = 32", "no network")),
        ({"pp": 33}, SpecError, ("pp", "33")),
        ({"dtype": "fp8", "quantization": "int8_wo"}, SpecError, ("dtype", "not both")),
        ({"dtype": "float16"}, SpecError, ("dtype", "float16")),
        ({"batch_size": 0}, SpecError, ("batch_size", "0")),
        ({"input_len": 2049}, SpecError, ("input_len", "2048 learned positions")),
        ({"input_len": 2048, "output_len": 2}, SpecError, ("output_len", "2048")),
        ({"output_len": 2.5}, SpecError, ("output_len", "2.5")),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], words: tuple[str]) -> None:
    with pytest.raises(error) as caught:
        predict(**{"arch": "gpt3-6.7b", "gpu": "a100", **arguments})
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_position_may_be_used() -> None:
    """Token 2048 of a model with 2048 learned positions is read, the last one made is not."""
    assert predict("gpt3-6.7b", "a100", input_len=2048, output_len=1).tpot_s is None
    assert predict("gpt3-6.7b", "a100", input_len=2000, output_len=49).tpot_s is not None


def test_more_than_the_positions_is_a_note_with_rotary_ones() -> None:
    result = predict("llama-2-7b", "a100", input_len=5000)
    assert any("4096 positions" in note for note in result.notes)


# Figures by hand ---------------------------------------------------------------------------------


def matrix_flops(result: Prediction, phase: str) -> float:
    return sum(
        row.flops
        for row in result.breakdown
        if row.phase == phase and row.operator.split()[-1] in MATRIX_WORK
    )


def test_flops_of_a_generation_by_hand() -> None:
    """Prompt of 100, 8 tokens out, batch 2: 7 steps at contexts 101 ... 107."""
    h, layers, batch, vocabulary = 512, 3, 2, 1000
    made = System(small(), load_gpu("a100"), profile=load_profile(PROFILE))
    result = made.predict(batch, 100, 8)
    prompt = layers * (24 * batch * 100 * h**2 + 4 * batch * 100**2 * h)
    prompt += 2 * batch * 100 * h * vocabulary  # this stack computes every prompt token's logits
    assert matrix_flops(result, "prefill") == pytest.approx(prompt, rel=1e-12)
    contexts = range(101, 108)
    decode = sum(layers * (24 * batch * h**2 + 4 * batch * i * h) for i in contexts)
    decode += 7 * 2 * batch * h * vocabulary
    assert matrix_flops(result, "decode") == pytest.approx(decode, rel=1e-12)
    # Norms, activations and the like add a little.
    assert decode < result.decode_flops < 1.1 * decode


def test_window_limits_the_work_of_decode() -> None:
    """Window 104: contexts 101 ... 107 are seen as 101, 102, 103, 104, 104, 104, 104."""
    h, layers = 512, 3
    made = System(small(window=104), load_gpu("a100"), profile=fused())
    result = made.predict(1, 100, 8)
    seen = [101, 102, 103, 104, 104, 104, 104]
    (row,) = (r for r in result.breakdown if r.operator == "attention" and r.phase == "decode")
    assert row.flops == pytest.approx(layers * sum(4 * i * h for i in seen), rel=1e-12)


def test_work_is_that_of_all_gpus() -> None:
    alone = predict("gpt3-6.7b", "a100", batch_size=4)
    split = predict("gpt3-6.7b", "a100", batch_size=4, tp=2, dp=2)
    assert split.num_gpus == 4
    assert matrix_flops(split, "prefill") * 4 == pytest.approx(matrix_flops(alone, "prefill"))
    # Norms and residuals are repeated by every rank: a little more in all.
    assert alone.prefill_flops < split.prefill_flops < 1.01 * alone.prefill_flops


def test_the_fullest_replica_sets_the_time() -> None:
    uneven = predict("gpt3-6.7b", "a100", batch_size=5, dp=2)
    assert any("the fullest has 3" in note for note in uneven.notes)
    assert uneven.ttft_s == predict("gpt3-6.7b", "a100", batch_size=3).ttft_s
    # What is delivered counts, not what the replicas could have done.
    assert uneven.output_throughput == pytest.approx(5 * 64 / uneven.e2e_latency_s)


def test_cost_by_hand() -> None:
    """GPUs x hours x price: 8 A100 at the dated price of the catalogue."""
    result = predict("gpt3-175b", "a100", tp=8, batch_size=2)
    price = load_gpu("a100").price
    assert price is not None
    assert result.cost is not None
    usd = 8 * result.e2e_latency_s / 3600 * price.usd_per_hour
    assert result.cost.usd_per_request == pytest.approx(usd / 2)
    assert result.cost.usd_per_million_output_tokens == pytest.approx(usd / (2 * 64) * 1e6)
    assert price.date in result.cost.source
    assert result.energy_j == pytest.approx(8 * 400 * result.e2e_latency_s)


def test_a_model_that_does_not_fit_is_timed_and_advised() -> None:
    result = predict("gpt3-175b", "a100", tp=2)
    assert not result.memory.fits
    assert result.e2e_latency_s > 0
    assert result.memory.smallest_fitting_tp == 6
    assert any("--tp 6" in note for note in result.notes)
    never = predict("mt-nlg-530b", "v100", tp=8)
    assert never.memory.smallest_fitting_tp is None
    # 1.06 TB of weights on GPUs of 34 GB: the fewest, some of them in other nodes.
    assert never.memory.min_gpus is not None
    assert 32 <= never.memory.min_gpus <= 40
    assert any(f"--pp, are {never.memory.min_gpus}" in note for note in never.notes)


@pytest.mark.parametrize(("dtype", "quantization"), [("fp8", "fp8"), ("int4", "int4_wo")])
def test_narrow_dtypes_are_quantisations(dtype: str, quantization: str) -> None:
    narrow = predict("llama-2-7b", "h100", dtype=dtype)
    assert narrow == replace(
        predict("llama-2-7b", "h100", quantization=quantization), assumed=narrow.assumed
    )
    assert narrow.workload.quantization == quantization
    wide = predict("llama-2-7b", "h100")
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    saved = 2.0 - {"fp8": 1.0, "int4": 0.5 + 2 / 128}[dtype]
    assert wide.memory.weights_bytes - narrow.memory.weights_bytes == pytest.approx(saved * layers)
    assert narrow.memory.kv_cache_bytes == wide.memory.kv_cache_bytes


def test_rates_a_gpu_lacks_are_noted() -> None:
    assert any("no fp8 rate" in n for n in predict("llama-2-7b", "a100", dtype="fp8").notes)
    assert any("no bf16 rate" in n for n in predict("llama-2-7b", "v100", dtype="bf16").notes)
    assert not any("rate" in n for n in predict("llama-2-7b", "h100", dtype="fp8").notes)


def test_tensor_parallel_ranks_communicate_and_one_gpu_does_not() -> None:
    def link_s(tp: int) -> float:
        rows = predict("gpt3-6.7b", "a100", tp=tp).breakdown
        return sum(row.time_s for row in rows if "all-reduce" in row.operator)

    assert link_s(1) == 0.0
    assert 0.0 < link_s(2) < link_s(8)


def test_pipeline_stages_add_sending_only() -> None:
    one, four = (predict("gpt3-6.7b", "a100", pp=pp) for pp in (1, 4))
    assert four.num_gpus == 4
    sends = [row for row in four.breakdown if row.operator == "pipeline send/recv"]
    assert [row.count for row in sends] == [3, 3 * 63]
    added_s = four.e2e_latency_s - one.e2e_latency_s
    assert added_s > 0.0
    assert added_s < 0.02 * one.e2e_latency_s  # 8 KB a step between GPUs of a node


def test_bare_times_of_one_token() -> None:
    times = system("gpt3-6.7b", "a100").times(1, 10, 1)
    assert math.isnan(times.tpot_s)
    assert times.e2e_latency_s == times.ttft_s


def module_of_two_dies() -> GpuSpec:
    gpu = load_gpu("a100")
    return gpu.with_(name="two-dies", software_devices=2, gpus_per_node=4)


def test_dies_of_a_module_share_its_power_and_price() -> None:
    """Two ranks on the two dies of one module: one module's power and price."""
    gpu = module_of_two_dies()
    assert gpu.price is not None
    result = System(small(), gpu, ParallelismSpec(tp=2)).predict()
    assert result.cost is not None
    hours = result.e2e_latency_s / 3600.0
    assert result.energy_j == pytest.approx(hours * 3600.0 * 400.0)
    assert result.cost.usd_per_request == pytest.approx(hours * gpu.price.usd_per_hour)


def test_a_split_counts_dies() -> None:
    """Four modules of two dies are eight devices in a node."""
    gpu = module_of_two_dies().with_({"network": None, "link.domain_size": 4})
    assert System(small(), gpu, ParallelismSpec(tp=8)).predict().num_gpus == 8


def test_a_model_without_biases_adds_none() -> None:
    made = System(small(), load_gpu("a100"), profile=load_profile(PROFILE))
    assert not [row for row in made.predict().breakdown if "bias" in row.operator]


def test_an_edited_profile_is_read_anew(tmp_path: Path) -> None:
    packaged = Path(rtsim.__file__).parent / "data" / "profiles" / f"{PROFILE}.toml"
    text = packaged.read_text(encoding="utf-8")
    own = tmp_path / "own.toml"
    own.write_text(text, encoding="utf-8")
    first = predict("gpt3-6.7b", "a100", profile=str(own))
    slower = re.sub(r"^launch_s = \S+", "launch_s = 1.5e-4", text, count=1, flags=re.MULTILINE)
    assert slower != text
    own.write_text(slower, encoding="utf-8")
    assert predict("gpt3-6.7b", "a100", profile=str(own)).e2e_latency_s > first.e2e_latency_s


def test_batches_beyond_the_fitted_ones_widen_the_interval() -> None:
    made = System(load_model("gpt3-175b"), load_gpu("a100"), ParallelismSpec(tp=8))
    assert made.profile.fitted_batches == (1.0, 1.0)

    def width(batch: int) -> float:
        interval = made.predict(batch).interval_90.e2e_latency_s
        return interval.high / interval.low

    assert width(1) < width(4) < width(64)
