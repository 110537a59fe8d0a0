"""Profiles: which one serves a GPU, what a file may lack, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtsim.catalog import load_gpu
from rtsim.errors import DataError, NotSupported, UnknownName
from rtsim.formats import Formats, peak_for
from rtsim.machine import machine_rows
from rtsim.operators import GEMM_BATCHED, GEMM_HEAD, GEMM_WEIGHTS
from rtsim.profile import (
    DECLARED,
    GROUPS,
    UNFITTED_SIGMA,
    Profile,
    interval_half_width,
    load_profile,
    packaged_files,
    profile_names,
)
from rtsim.profile_choice import choose_profile, gpu_distance, profile_heads, stack_names

A100 = "megatron-lm-a100-sxm4-80gb"
V100 = "megatron-lm-v100-sxm3-32gb"

MINIMAL = """
name = "mine"
gpu = "a100-sxm4-80gb"
architecture = "ampere"

[stack]
name = "own"

[error]
row = 0.01
{sigmas}

[provenance]
kind = "fitted"
""".format(
    sigmas="\n".join(
        f"[error.{name}]\n" + "\n".join(f"{group} = 0.1" for group in GROUPS)
        for name in ("seen", "unseen", "transfer")
    )
)


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


# Choice ------------------------------------------------------------------------------------------


def test_a_profiled_gpu_gets_its_own_profile_without_remarks() -> None:
    for name in (A100, V100):
        chosen, notes = choose_profile(load_gpu(load_profile(name).gpu))
        assert chosen.name == name
        assert notes == []


@pytest.mark.parametrize(
    ("gpu", "nearest"),
    [("a100-pcie-40gb", A100), ("h100", A100), ("a30", A100), ("v100-sxm2-16gb", V100)],
)
def test_other_gpus_get_the_nearest_and_say_so(gpu: str, nearest: str) -> None:
    device = load_gpu(gpu)
    chosen, notes = choose_profile(device, "megatron-lm")
    assert chosen.name == nearest
    (note,) = notes
    for words in (device.name, chosen.gpu, "megatron-lm", "interval is wider"):
        assert words in note


@pytest.mark.parametrize(
    ("gpu", "stack", "chosen"),
    [
        ("a100", None, A100),  # whole generations before kernels alone
        ("h100", None, "vllm-h100-sxm5-80gb"),
        ("l40s", "sglang", "sglang-l40s"),
        ("h200-sxm-141gb", "trtllm", "trtllm-h100-sxm5-80gb"),  # the same die
        ("h200-sxm-141gb", "TensorRT-LLM", "trtllm-h100-sxm5-80gb"),
        ("a10", None, "family-ampere"),  # another die of the architecture
        ("a10", "vllm", "family-ampere"),
        ("a10", "sglang", "sglang-a100-sxm4-80gb"),  # its own stack before a family's
        ("v100-sxm2-16gb", "vllm", "family-volta"),
        ("v100-sxm2-16gb", "trtllm", "family-volta"),  # nothing of its own there
        ("mi300x", None, "family-generic"),
        ("t4", "trtllm", "family-generic"),
        ("t4", "pytorch/transformers", "pytorch-t4"),
        ("a40", "sarathi-serve/pytorch", "sarathi-serve-a40"),
        ("h100", "pytorch-nccl", "sarathi-serve-h100-sxm5-80gb"),
        ("h100", "megatron-lm", A100),  # a family never stands for an eager stack
    ],
)
def test_choice_by_evidence(gpu: str, stack: str | None, chosen: str) -> None:
    profile, notes = choose_profile(load_gpu(gpu), stack)
    assert profile.name == chosen
    assert bool(notes) == (profile.gpu != load_gpu(gpu).name)


def test_heads_are_those_of_whole_profiles() -> None:
    assert [head.name for head in profile_heads()] == list(profile_names())
    for head in profile_heads():
        whole = load_profile(head.name)
        assert (head.stack, head.gpu, head.architecture) == (
            whole.stack, whole.gpu, whole.architecture,
        )  # fmt: skip
        assert head.has_generations == bool(whole.fitted_shapes)


def test_unknown_stacks_offer_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown stack 'megatron-lmm'.*nearest: megatron-lm"):
        choose_profile(load_gpu("a100"), "megatron-lmm")
    assert "megatron-lm" in stack_names()


def test_distance_is_zero_at_home_only() -> None:
    profile = load_profile(A100)
    home = load_gpu(profile.gpu)
    assert gpu_distance(home, profile) == 0.0
    twin = home.with_(name="twin")
    assert 0.0 < gpu_distance(twin, profile) < 1e-6
    faster = twin.with_(hbm_bytes_per_s=2 * home.hbm_bytes_per_s)
    assert gpu_distance(faster, profile) == pytest.approx(math.log(2.0))
    foreign = twin.with_(architecture="hopper")
    assert gpu_distance(foreign, profile) > gpu_distance(faster, profile)


def test_a_profile_of_a_gpu_outside_the_catalogue_is_never_near() -> None:
    lost = replace(load_profile(A100), gpu="no-such-gpu")
    assert gpu_distance(load_gpu("a100"), lost) == math.inf


def test_shape_distance() -> None:
    profile = replace(load_profile(A100), fitted_shapes=((10.0, 100.0, 4.0, 1.0),))
    assert profile.shape_distance((10.0, 100.0, 4.0, 1.0)) == 0.0
    assert profile.shape_distance((20.0, 100.0, 4.0, 2.0)) == pytest.approx(
        math.sqrt(2.0) * math.log(2.0)
    )
    assert replace(profile, fitted_shapes=()).shape_distance((1.0, 1.0, 1.0, 1.0)) == math.inf


# Shipped profiles --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_are_complete(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    if profile.gpu:  # else of a family of GPUs
        assert load_gpu(profile.gpu).architecture == profile.architecture
    for sigmas in (profile.sigma_seen, profile.sigma_unseen, profile.transfer_sigma):
        assert set(sigmas) == set(GROUPS)
        assert all(value > 0.0 for value in sigmas.values())
    for section, values in profile.coefficients.items():
        bounds = {c.name: c for c in DECLARED[section.partition(".")[0]]}
        for key, value in values.items():
            # Five digits are written: a coefficient at its bound may be rounded past it.
            assert bounds[key].lower * (1 - 1e-4) <= value <= bounds[key].upper * (1 + 1e-4)
    for key in ("kind", "source", "date", "recipe", "tables", "rows"):
        assert key in profile.provenance


# What a file lacks -------------------------------------------------------------------------------


def test_missing_sections_are_the_priors(written) -> None:
    profile = load_profile(written(MINIMAL))
    assert profile.coefficients == {}
    for kind, declared in DECLARED.items():
        assert profile.section(kind) == {c.name: c.prior for c in declared}
        assert profile.section(kind, "any") == profile.section(kind)


def test_missing_traits_are_those_of_a_fused_stack(written) -> None:
    traits = load_profile(written(MINIMAL)).traits
    assert (traits.attention, traits.logits, traits.fused_norm) == ("fused", "last", True)


def test_sections_fall_back_by_name_then_to_any_then_to_priors(written) -> None:
    first, second, *_ = DECLARED["gemm"]
    low, high = first.lower, first.upper
    sections = f"[gemm.fp16]\n{first.name} = {low}\n[gemm.fp8]\n{first.name} = {high}\n"
    profile = load_profile(written(MINIMAL + sections))
    assert profile.section("gemm", "fp8")[first.name] == high
    assert profile.section("gemm", "int8", "fp8")[first.name] == high
    assert profile.section("gemm", "int8")[first.name] == low  # any fitted rather than none
    assert profile.section("gemm", "fp8")[second.name] == second.prior
    assert profile.section("collective") == {c.name: c.prior for c in DECLARED["collective"]}


def test_a_section_without_variants_serves_all(written) -> None:
    coefficient = DECLARED["memory_bound"][0]
    value = coefficient.upper
    profile = load_profile(written(MINIMAL + f"[memory_bound]\n{coefficient.name} = {value}\n"))
    assert profile.section("memory_bound", "fp16")[coefficient.name] == value


# What is refused ---------------------------------------------------------------------------------

HOST = DECLARED["host"][0].name


def assert_one_line(error: pytest.ExceptionInfo[DataError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in ("mine.toml", *words):
        assert word in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("not a profile",)),
        ("name = ", ("not valid TOML",)),
        (MINIMAL[: len(MINIMAL) // 2], ()),
        (MINIMAL.replace("[stack]", "[stacks]"), ("not a profile", "stack")),
        (MINIMAL.replace("[error.unseen]", "[error.unsaid]"), ("not a profile", "unseen")),
        (MINIMAL.replace('name = "own"', 'name = "own"\nspeed = 1'), ("not a profile", "speed")),
        (MINIMAL + "[host]\nno_such_s = 1\n", ("[host]", "no_such_s")),
        (MINIMAL + f'[host]\n{HOST} = "1 ms"\n', ("[host]", HOST, "1 ms")),
        (MINIMAL + f"[host]\n{HOST} = nan\n", ("[host]", HOST, "nan")),
        (MINIMAL + f"[host]\n{HOST} = inf\n", ("[host]", HOST, "inf")),
        (MINIMAL + f"[host]\n{HOST} = -1\n", ("[host]", HOST, "-1")),
        (MINIMAL + "[gemm.fp16]\nno_such = 1\n", ("[gemm.fp16]", "no_such")),
    ],
)
def test_malformed_files_are_one_line(written, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        load_profile(written(text))
    assert_one_line(error, *words)


@pytest.mark.parametrize(
    "text",
    [
        "host = 3\n" + MINIMAL,
        "fitted_shapes = [[1, 2]]\n" + MINIMAL,
        "fitted_shapes = [[0, 1, 1, 1]]\n" + MINIMAL,
        MINIMAL.replace("gemm = 0.1", "gemm = nan"),
        MINIMAL.replace("gemm = 0.1", 'gemm = "0.1"'),
        MINIMAL.replace("gemm = 0.1", "gemm = -1"),
        MINIMAL.replace("gemm = 0.1\n", ""),
        MINIMAL.replace("row = 0.01", 'row = "x"'),
        MINIMAL.replace('name = "own"', 'name = "own"\nattention = "fuzed"'),
        MINIMAL.replace('name = "own"', "name = 5"),
        MINIMAL + f"[host]\n{HOST} = true\n",
        MINIMAL + f"[host]\n{HOST} = 1e30\n",
        "[gemm]\nfp16 = { }\nint8 = 3\n" + MINIMAL,
    ],
    ids=[
        "section is no table",
        "short shape",
        "shape of zero",
        "sigma is nan",
        "sigma is text",
        "sigma is negative",
        "sigma is missing",
        "row is text",
        "unknown trait",
        "stack name is a number",
        "coefficient is true",
        "coefficient out of bounds",
        "variant is no table",
    ],
)
def test_faulty_values_are_refused_when_read(written, text: str) -> None:
    with pytest.raises(DataError) as error:
        load_profile(written(text))
    assert_one_line(error)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path / "folder.toml"):
        if path.stem == "folder":
            path.mkdir()
        with pytest.raises(DataError, match=r"no such file|cannot be read"):
            load_profile(str(path))
    with pytest.raises(UnknownName, match=A100):
        load_profile("megatron-lm-a100-sxm4-80g")


# Rows --------------------------------------------------------------------------------------------


def rows(gpu: str = "a100", quantization: str = "none", dtype: str = "fp16", **facts: Any):
    profile: Profile = load_profile(A100)
    device = load_gpu(gpu).with_(facts) if facts else load_gpu(gpu)
    notes: list[str] = []
    formats = Formats(dtype, dtype, quantization, quantization, quantization)
    return machine_rows(profile, device, formats, notes), notes


def test_gemm_rows_carry_the_number_formats() -> None:
    plain, _ = rows()
    assert [plain.gemm[i]["b_bytes"] for i in (GEMM_WEIGHTS, GEMM_HEAD, GEMM_BATCHED)] == [2, 2, 2]
    assert plain.gemm[GEMM_WEIGHTS]["peak_flops_per_s"] == 312e12
    narrow, notes = rows("h100", "fp8")
    assert notes == []
    assert narrow.gemm[GEMM_WEIGHTS]["a_bytes"] == narrow.gemm[GEMM_WEIGHTS]["b_bytes"] == 1.0
    assert narrow.gemm[GEMM_WEIGHTS]["quantize_bytes"] == 2.0
    assert narrow.gemm[GEMM_WEIGHTS]["peak_flops_per_s"] == load_gpu("h100").peak_flops_per_s("fp8")
    # The head and attention stay in the compute dtype.
    assert narrow.gemm[GEMM_HEAD]["b_bytes"] == narrow.gemm[GEMM_BATCHED]["b_bytes"] == 2.0


def test_without_fp8_units_weights_are_narrow_and_products_are_not() -> None:
    narrow, notes = rows("a100", "fp8")
    (note,) = notes
    assert "no fp8 rate" in note
    row = narrow.gemm[GEMM_WEIGHTS]
    assert (row["a_bytes"], row["b_bytes"], row["quantize_bytes"]) == (2.0, 1.0, 0.0)
    assert row["peak_flops_per_s"] == 312e12


def test_both_forms_of_the_rows_hold_the_same_numbers() -> None:
    made, _ = rows()
    plain = made.interpreted()
    assert plain.device.hbm_bytes_per_s == made.device["hbm_bytes_per_s"]
    assert plain.gemm[GEMM_HEAD]._asdict() == {
        name: made.gemm[GEMM_HEAD][name] for name in made.gemm.dtype.names
    }
    assert plain.host._fields == tuple(c.name for c in DECLARED["host"])


def test_peaks_fall_back_to_what_the_gpu_computes_in() -> None:
    notes: list[str] = []
    v100 = load_gpu("v100-sxm2-32gb")
    assert peak_for(v100, "bf16", notes) == v100.peak_flops_per_s("fp16")
    assert peak_for(v100, "fp16", []) == 125e12
    assert "no bf16 rate" in notes[0]


def test_a_gpu_without_any_rate_is_not_supported() -> None:
    class Rateless:
        name = "rateless"

        def peak_flops_per_s(self, dtype: str) -> None:
            return None

    with pytest.raises(NotSupported, match="rateless states no rate"):
        peak_for(Rateless(), "fp16", [])  # type: ignore[arg-type]


# Interval ----------------------------------------------------------------------------------------


def test_interval_width_by_hand() -> None:
    """90 % of a normal distribution: 1.6449 deviations; groups add in squares."""
    sigmas = np.zeros(len(GROUPS))
    sigmas[0], sigmas[1] = 0.03, 0.04
    owed = np.zeros(len(GROUPS))
    owed[0] = 2.0
    assert interval_half_width(owed, sigmas, 0.0) == pytest.approx(1.6449 * 0.03)
    owed[1] = 2.0  # half each
    assert interval_half_width(owed, sigmas, 0.0) == pytest.approx(1.6449 * 0.025)
    assert interval_half_width(owed, sigmas, 0.06) == pytest.approx(1.6449 * 0.065)
    both = np.stack([owed, owed])
    assert interval_half_width(both, sigmas, 0.0).shape == (2,)


def test_groups_that_a_file_lacks_have_a_stated_deviation(tmp_path: Path) -> None:
    path = tmp_path / "older.toml"
    path.write_text(
        "".join(
            line
            for line in profile_text("family-hopper").splitlines(keepends=True)
            if not line.startswith(("moe =", "mla ="))
        )
    )
    profile = load_profile(str(path))
    for group, sigma in UNFITTED_SIGMA.items():
        assert profile.sigma_seen[group] == sigma
        assert profile.transfer_sigma[group] == sigma


def profile_text(name: str) -> str:
    """The text of a packaged profile."""
    return next(f for f in packaged_files() if f.name == f"{name}.toml").read_text()
