"""Calibration from tables: known coefficients found again, bad input refused, nothing damaged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rtsim_kernels.attention import ATTENTION_DECODE_COEFFICIENTS, ATTENTION_PREFILL_COEFFICIENTS
from rtsim_kernels.collective import COLLECTIVE_COEFFICIENTS
from rtsim_kernels.gemm import GEMM_COEFFICIENTS
from rtsim_kernels.memory_bound import MEMORY_BOUND_COEFFICIENTS
from rtsim_kernels.mla import MLA_PREFILL_COEFFICIENTS
from rtsim_kernels.moe import MOE_COEFFICIENTS

from rtsim.calibrate import calibrate, table_paths
from rtsim.catalog import load_gpu
from rtsim.errors import DataError, OutputError, RtsimError, SpecError, UnknownName
from rtsim.fit import Fit
from rtsim.fitting import kinds
from rtsim.operators import StackTraits
from rtsim.profile import load_profile
from rtsim.profile_file import Uncertainty, profile_toml
from rtsim.table_text import write_table

GPU = "h100-sxm5-80gb"
RNG = np.random.default_rng(3)
ROWS = 80


def sizes(low: float, high: float) -> np.ndarray:
    """Whole numbers spread over the logarithms, multiples of 16."""
    drawn = np.exp(RNG.uniform(math.log(low), math.log(high), ROWS))
    return np.maximum(16, 16 * (drawn / 16).round()).astype(int)


def text(value: str) -> np.ndarray:
    return np.full(ROWS, value)


SHARED = {"gpu": text("H100-SXM5-80GB"), "stack": text("mystack")}
HEADS = {"num_heads": np.full(ROWS, 32), "num_kv_heads": np.full(ROWS, 8),
         "head_dim": np.full(ROWS, 128)}  # fmt: skip
COLUMNS = {
    "gemm": {**SHARED, "dtype": text("bf16"), "batch": np.ones(ROWS, int),
             "m": sizes(16, 4096), "n": sizes(256, 16384), "k": sizes(256, 16384)},
    "attention_prefill": {**SHARED, "dtype": text("bf16"), "kv_dtype": text("bf16"), **HEADS,
                          "batch": RNG.integers(1, 9, ROWS), "window_size": np.zeros(ROWS, int),
                          "causal": np.ones(ROWS, int), "query_tokens": sizes(64, 16384)},
    "attention_decode": {**SHARED, "dtype": text("bf16"), "kv_dtype": text("bf16"), **HEADS,
                         "batch": RNG.integers(1, 257, ROWS), "window_size": np.zeros(ROWS, int),
                         "causal": np.ones(ROWS, int), "query_tokens": np.ones(ROWS, int),
                         "context_tokens": sizes(64, 32768)},
    "elementwise": {**SHARED, "dtype": text("bf16"), "rows": sizes(16, 65536),
                    "cols": sizes(512, 16384),
                    "op": np.resize(["add", "rmsnorm", "silu_and_mul"], ROWS)},
    "collective": {**SHARED, "dtype": text("bf16"), "topology": text("nvswitch"),
                   "collective": np.resize(["all_reduce", "all_gather", "alltoall"], ROWS),
                   "num_gpus": np.resize([2, 4, 8], ROWS), "num_nodes": np.ones(ROWS, int),
                   "implementation": text("nccl-tests"), "message_bytes": sizes(512, 1e9)},
    "moe": {**SHARED, "dtype": text("bf16"), "kernel": text("fused_moe_triton"),
            "distribution": np.resize(["balanced", "power_law_1.2"], ROWS),
            "num_tokens": sizes(16, 32768), "hidden_size": np.full(ROWS, 4096),
            "intermediate_size": np.resize([1024, 2048, 14336], ROWS),
            "top_k": np.resize([2, 8], ROWS), "num_experts": np.resize([8, 64, 256], ROWS),
            "tp": np.ones(ROWS, int), "ep": np.ones(ROWS, int)},
    "mla": {**SHARED, "dtype": text("bf16"), "kv_dtype": text("bf16"), "gemm_dtype": text(""),
            "op": text("context_attention"), "num_heads": np.resize([16, 128, 8], ROWS),
            "batch": RNG.integers(1, 9, ROWS), "query_tokens": sizes(64, 16384)},
}  # fmt: skip
COLUMNS["mla"]["context_tokens"] = COLUMNS["mla"]["query_tokens"]
COLUMNS["attention_prefill"]["context_tokens"] = COLUMNS["attention_prefill"]["query_tokens"]
DECLARED = {
    "gemm": GEMM_COEFFICIENTS,
    "attention_prefill": ATTENTION_PREFILL_COEFFICIENTS,
    "attention_decode": ATTENTION_DECODE_COEFFICIENTS,
    "elementwise": MEMORY_BOUND_COEFFICIENTS,
    "collective": COLLECTIVE_COEFFICIENTS,
    "moe": MOE_COEFFICIENTS,
    "mla": MLA_PREFILL_COEFFICIENTS,
}


def timed(kind: str, moves: dict[str, float] | None = None) -> dict[str, np.ndarray]:
    """A table whose times come from the model itself, coefficients moved from their priors."""
    columns = {**COLUMNS[kind], "time_us": np.ones(ROWS)}
    section = kinds.SECTION_KINDS[kind]
    out = np.empty(ROWS)
    for block in kinds.blocks_of(section, columns, np.arange(ROWS), load_gpu):
        values = [c.prior * (moves or {}).get(c.name, 1.0) for c in DECLARED[kind]]
        names = tuple(c.name for c in DECLARED[kind])
        none = np.zeros(0)
        fit = Fit(names, np.array(values), none, none.astype(bool), none, none)
        detail = None
        if kind == "collective":
            from rtsim.fitting.collective import CollectiveFit

            detail = CollectiveFit(fit, (block.machine,), 0.0, False, True)
        out[block.table_rows] = kinds.predict(
            block, kinds.SectionFit(block.section, fit, {}, detail)
        )
    return {**columns, "time_us": out * 1e6}


def table(folder: Path, kind: str, **changes: np.ndarray) -> Path:
    path = folder / f"{kind}.csv"
    write_table(path, {**timed(kind), **changes})
    return path


# What is found -----------------------------------------------------------------------------------

MOVED = {
    "gemm": {"launch_clocks": 1.5, "power_frac": 0.006, "hbm_frac": 0.9},  # 0.6 of the peak
    "attention_prefill": {"launch_clocks": 1.4, "tensor_frac": 0.85},
    "attention_decode": {"launch_clocks": 1.4, "hbm_frac": 0.85},
    "elementwise": {"launch_s": 1.4},
    "collective": {"ring_floor_s": 1.5},
    "moe": {"launch_s": 2.0, "hbm_frac": 0.8},
    "mla": {"tensor_frac": 0.7},
}


@pytest.mark.parametrize("kind", MOVED)
def test_times_of_the_model_itself_are_found_again(kind: str, tmp_path: Path) -> None:
    """Coefficients that matter come back, and unseen times with them to 3 per cent."""
    write_table(tmp_path / f"{kind}.csv", timed(kind, MOVED[kind]))
    result = calibrate(tmp_path, GPU, "mystack")
    (section,) = result.sections
    assert section.mape < 0.03, section
    found = {c.name: c for c in section.coefficients}
    for name, factor in MOVED[kind].items():
        prior = next(c.prior for c in DECLARED[kind] if c.name == name)
        assert found[name].value == pytest.approx(factor * prior, rel=0.1), name
        assert found[name].pinned, name


def test_what_is_written_is_a_profile_that_says_where_it_is_from(tmp_path: Path) -> None:
    output = tmp_path / "mine.toml"
    result = calibrate([table(tmp_path, "gemm")], GPU, "mystack", output=output, max_points=32)
    profile = load_profile(str(output))
    assert (profile.name, profile.gpu, profile.stack) == ("mine", GPU, "mystack")
    assert any("stack 'mystack' has no profile yet, a new one is begun" in n for n in result.notes)
    assert profile.section("gemm", "bf16") == pytest.approx(
        result.profile.section("gemm", "bf16"), rel=1e-4
    )
    assert profile.provenance["rows"] == 32
    assert profile.provenance["tables"] == ["gemm.csv"]
    assert profile.section_sigma["gemm.bf16"] > 0.0
    text = output.read_text()
    assert '[uncertainty."gemm.bf16"]' in text
    assert "no whole generations" in text


def test_coefficients_that_no_row_pins_stay_at_their_prior(tmp_path: Path) -> None:
    """One shape over and over says nothing about splits along k."""
    (section,) = calibrate(
        [table(tmp_path, "gemm", k=np.full(ROWS, 4096), n=np.full(ROWS, 16384))], GPU, "mystack"
    ).sections
    loose = [c for c in section.coefficients if not c.pinned]
    assert loose
    assert any(c.value == pytest.approx(c.prior, rel=0.05) for c in loose)


def test_values_of_a_base_profile_are_the_priors(tmp_path: Path) -> None:
    path = table(tmp_path, "gemm")
    base = "vllm-h100-sxm5-80gb"
    (section,) = calibrate([path], GPU, "mystack", base=base).sections
    values = load_profile(base).section("gemm", "bf16")
    for c in section.coefficients:
        assert c.prior == pytest.approx(values[c.name], rel=0.03)


def test_at_most_max_points_rows_are_fitted(tmp_path: Path) -> None:
    result = calibrate([table(tmp_path, "gemm")], GPU, "mystack", max_points=20)
    assert [s.fitted_rows for s in result.sections] == [20]


def test_progress_goes_from_none_to_all(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    calibrate(
        [table(tmp_path, "gemm")], GPU, "mystack",
        progress=lambda what, done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]


# What is left out --------------------------------------------------------------------------------


def test_rows_of_others_are_left_out_and_counted(tmp_path: Path) -> None:
    gpu = np.resize(["H100-SXM5-80GB", "A100-SXM4-80GB", "H100-SXM5-80GB", "no-such"], ROWS)
    stack = np.resize(["mystack", "mystack", "other", "mystack"], ROWS)
    result = calibrate([table(tmp_path, "gemm", gpu=gpu, stack=stack)], GPU, "mystack")
    (file,) = result.files
    assert file.used == ROWS // 4
    assert file.skipped == {
        "another GPU": ROWS // 4, "another stack": ROWS // 4, "unknown GPU 'no-such'": ROWS // 4,
    }  # fmt: skip


def test_repeats_are_fitted_once(tmp_path: Path) -> None:
    columns = timed("gemm")
    write_table(
        tmp_path / "gemm.csv", {name: np.tile(values, 2) for name, values in columns.items()}
    )
    (file,) = calibrate([tmp_path / "gemm.csv"], GPU, "mystack").files
    assert file.used == ROWS
    assert file.skipped == {"repeats an earlier row": ROWS}


def test_times_that_beat_the_hardware_are_listed_and_not_fitted(tmp_path: Path) -> None:
    """Ten rows in milliseconds among microseconds."""
    time_us = timed("gemm")["time_us"].copy()
    time_us[:10] /= 1e3
    result = calibrate([table(tmp_path, "gemm", time_us=time_us)], GPU, "mystack")
    assert len(result.impossible) == 10
    assert [row.line for row in result.impossible] == list(range(2, 12))
    assert result.files[0].skipped == {"faster than the hardware allows": 10}
    assert result.sections[0].mape < 0.03


def test_too_few_rows_keep_the_prior_and_say_so(tmp_path: Path) -> None:
    columns = timed("gemm")
    write_table(tmp_path / "few.csv", {name: values[:3] for name, values in columns.items()})
    path = table(tmp_path, "collective")
    result = calibrate([tmp_path / "few.csv", path], GPU, "mystack")
    few = next(s for s in result.sections if s.section == "gemm.bf16")
    assert few.fitted_rows == 0
    assert "too few" in few.note
    assert "gemm.bf16" not in result.profile.coefficients


def test_other_kinds_of_tables_do_no_harm(tmp_path: Path) -> None:
    write_table(tmp_path / "other.csv", {"colour": ["red"], "taste": ["sour"]})
    result = calibrate([tmp_path / "other.csv", table(tmp_path, "gemm")], GPU, "mystack")
    assert result.files[0].used == 0
    assert result.files[0].skipped == {"unknown kind of table": 1}


def test_whole_blocks_of_latent_attention_are_named_and_left_out(tmp_path: Path) -> None:
    columns = timed("mla")
    columns["op"] = np.where(np.arange(ROWS) < 20, "context_module", columns["op"])
    write_table(tmp_path / "mla.csv", columns)
    result = calibrate(tmp_path, GPU, "mystack")
    (file,) = result.files
    assert file.used == ROWS - 20
    assert file.skipped == {"a whole block, predicted from its parts": 20}
    assert [s.section for s in result.sections] == ["mla_prefill.bf16"]


def test_families_of_kernels_have_sections_of_their_own(tmp_path: Path) -> None:
    columns = timed("moe")
    columns["kernel"] = np.where(np.arange(ROWS) < 40, "marlin_moe", "")
    write_table(tmp_path / "moe.csv", columns)
    output = tmp_path / "mine.toml"
    result = calibrate(tmp_path, GPU, "mystack", output=output)
    assert {s.section for s in result.sections} == {"moe.bf16_marlin", "moe.bf16"}
    assert all(s.rows <= 40 for s in result.sections)
    profile = load_profile(str(output))
    assert profile.section_name("moe", "bf16") == "moe.bf16"
    assert profile.section_sigma["moe.bf16_marlin"] > 0.0
    assert profile.sigma_seen["moe"] > 0.0


def test_a_folder_stands_for_its_tables(tmp_path: Path) -> None:
    table(tmp_path, "gemm")
    table(tmp_path, "collective")
    (tmp_path / "notes.txt").write_text("no table")
    assert [p.name for p in table_paths([tmp_path])] == ["collective.csv", "gemm.csv"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without tables"):
        table_paths([tmp_path / "empty"])


# What is refused, with nothing written -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"time_us": timed("gemm")["time_us"] / 1e3}, "faster than the hardware allows"),
        ({"time_us": timed("gemm")["time_us"] * 1e3}, "microseconds"),
        ({"time_us": np.full(ROWS, math.nan)}, "time_us"),
        ({"time_us": np.zeros(ROWS)}, "above zero"),
        ({"time_us": -np.ones(ROWS)}, "above zero"),
        ({"stack": text("other")}, "they are of GPU H100-SXM5-80GB and stack other"),
        ({"stack": text("mystak")}, "another stack.*nearest stack: mystak"),
        ({"dtype": text("bf17")}, "dtype is not modelled"),
    ],
)
def test_bad_tables_damage_no_profile(
    changes: dict[str, np.ndarray], problem: str, tmp_path: Path
) -> None:
    output = tmp_path / "mine.toml"
    output.write_text("an older profile")
    with pytest.raises(DataError, match=problem):
        calibrate([table(tmp_path, "gemm", **changes)], GPU, "mystack", output=output)
    assert output.read_text() == "an older profile"


def test_missing_and_renamed_columns_are_named(tmp_path: Path) -> None:
    columns = timed("gemm")
    columns["time_ms"] = columns.pop("time_us")
    write_table(tmp_path / "gemm.csv", columns)
    with pytest.raises(DataError, match="time_us"):
        calibrate([tmp_path / "gemm.csv"], GPU, "mystack")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"gpu": "h1000"}, UnknownName),
        ({"base": "no-such-profile"}, UnknownName),
        ({"max_points": 2}, SpecError),
        ({"output": "no/such/folder/mine.toml"}, OutputError),
    ],
)
def test_bad_arguments(
    arguments: dict[str, object], error: type[RtsimError], tmp_path: Path
) -> None:
    request = {"gpu": GPU, "stack": "mystack", **arguments}
    with pytest.raises(error) as raised:
        calibrate([table(tmp_path, "gemm")], **request)  # type: ignore[arg-type]
    assert raised.value.exit_status == 2


# The file ----------------------------------------------------------------------------------------


def test_covariance_of_a_section_is_written_compactly() -> None:
    profile = replace(load_profile("megatron-lm-a100-sxm4-80gb"), traits=StackTraits())
    known = Uncertainty(
        "gemm.fp16", ("a", "b"), (True, False), np.array([[0.01, -0.002], [-0.002, 0.3]])
    )
    text = profile_toml(profile, kernels=[known])
    assert 'not_pinned = "b"' in text
    assert 'covariance = "0.01 -0.002 0.3"' in text
