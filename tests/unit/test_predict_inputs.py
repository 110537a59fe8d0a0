"""What `predict` takes in: files that change, profiles of other GPUs, uneven batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rtsim.catalog import DATA
from rtsim.errors import SpecError
from rtsim.predict import predict

PROFILE = "megatron-lm-a100-sxm4-80gb"


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    model = tmp_path / "mine.toml"
    gpu = tmp_path / "card.toml"
    model.write_text((DATA / "models" / "llama-2-7b.toml").read_text())
    gpu.write_text((DATA / "gpus" / "a100-sxm4-80gb.toml").read_text())
    before = predict(str(model), str(gpu))
    model.write_text(model.read_text().replace("count = 32", "count = 64"))
    deeper = predict(str(model), str(gpu))
    assert deeper.e2e_latency_s > 1.5 * before.e2e_latency_s
    gpu.write_text(gpu.read_text().replace('power_w = "400 W"', 'power_w = "800 W"'))
    hungrier = predict(model, gpu)
    assert hungrier.energy_j == pytest.approx(2.0 * deeper.energy_j)


@pytest.mark.parametrize(
    "arguments",
    [
        {"arch": 3},
        {"arch": None},
        {"gpu": ["h100"]},
        {"gpu": None},
        {"stack": 5},
        {"profile": Path("mine.toml")},
    ],
)
def test_arguments_of_a_wrong_kind_are_named(arguments: dict[str, Any]) -> None:
    (field,) = arguments
    with pytest.raises(SpecError, match=f"^{field} = "):
        predict(**{"arch": "gpt2", "gpu": "a100", **arguments})


def test_a_profile_of_another_gpu_is_noted() -> None:
    there = predict("gpt2", "v100", profile=PROFILE)
    assert any("was fitted on a100-sxm4-80gb: v100" in note for note in there.notes)
    at_home = predict("gpt2", "a100", profile=PROFILE)
    assert not any("fitted" in note for note in at_home.notes)


def test_work_counts_every_sequence_once() -> None:
    """Five sequences over two replicas are three and two, not three and three."""
    one, uneven = predict("gpt2", "a100"), predict("gpt2", "a100", batch_size=5, dp=2)
    for phase in ("prefill_flops", "decode_flops"):
        assert getattr(uneven, phase) == pytest.approx(5 * getattr(one, phase))


def test_idle_replicas_do_no_work() -> None:
    one, idle = predict("gpt2", "a100"), predict("gpt2", "a100", dp=4)
    assert any("leaves 3 of 4 replicas idle" in note for note in idle.notes)
    assert idle.e2e_latency_s == one.e2e_latency_s
    assert idle.prefill_flops == pytest.approx(one.prefill_flops)
    assert idle.mfu == pytest.approx(one.mfu / 4)
    assert idle.mbu == pytest.approx(one.mbu / 4)


def test_a_degree_that_follows_is_among_the_assumptions() -> None:
    given = predict("gpt2", "a100", num_gpus=4, tp=2)
    assert "tp = 4 (the rest of num_gpus)" in predict("gpt2", "a100", num_gpus=4).assumed
    assert not any(line.startswith("tp") for line in given.assumed)


@pytest.mark.parametrize(
    ("given", "dtype", "kv_cache_dtype", "quantization"),
    [
        ({}, "bf16", "bf16", None),
        ({"dtype": "fp16"}, "fp16", "fp16", None),
        ({"dtype": "fp8"}, "bf16", "bf16", "fp8"),
        ({"kv_cache_dtype": "fp8"}, "bf16", "fp8", None),
        ({"quantization": "int4_wo"}, "bf16", "bf16", "int4_wo"),
    ],
)
def test_number_formats(
    given: dict[str, Any], dtype: str, kv_cache_dtype: str, quantization: str | None
) -> None:
    """The cache keeps the model's 16 bits where the weights are narrower."""
    workload = predict("llama-3-8b", "h100", **given).workload
    assert (workload.dtype, workload.kv_cache_dtype) == (dtype, kv_cache_dtype)
    assert workload.quantization == quantization
