"""The data linter passes on what is shipped, and finds each thing that it looks for."""

import shutil
from pathlib import Path

import pytest

from rtsim import check_data as checker
from rtsim.catalog import DATA
from rtsim.check_data import check_data


def test_the_packaged_data_is_clean() -> None:
    assert [str(finding) for finding in check_data()] == []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small copy: two GPUs, four models."""
    models = ("gpt3-175b", "gpt2", "deepseek-v3", "qwen3-30b-a3b")
    for kind, names in (("gpus", ("a100-sxm4-80gb", "t4")), ("models", models)):
        (tmp_path / kind).mkdir()
        for name in names:
            shutil.copy(DATA / kind / f"{name}.toml", tmp_path / kind)
    return tmp_path


def test_the_copy_is_clean(data: Path) -> None:
    assert check_data(data) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "wanted"),
    [
        ("gpus/t4.toml", 'name = "t4"', 'name = "t5"', "name is 't5', but the file is t4.toml"),
        ("gpus/t4.toml", '["Tesla-T4"]', '["A100"]', "'A100' also stands for a100-sxm4-80gb"),
        ("gpus/t4.toml", '["Tesla-T4"]', '["T_4"]', "is the name itself"),
        ("gpus/t4.toml", '["Tesla-T4"]', '[\n"Tesla-T4"]', "on one line"),
        ("gpus/t4.toml", 'aliases = ["Tesla-T4"]', "", "no aliases line"),
        ("gpus/t4.toml", "[provenance]", "[x]", "x"),
        ("gpus/t4.toml", "sm_count = 40", "sm_count = 50", "off what SMs and clock give"),
        ("gpus/t4.toml", '"8.1 TFLOP/s"', '"9 TFLOP/s"', "fp32 peak"),
        ("gpus/t4.toml", '"65 TFLOP/s"', '"130 TFLOP/s"', "a sparse figure?"),
        ("gpus/t4.toml", '"320 GB/s"', '"320 TB/s"', "FLOP per byte"),
        ("gpus/t4.toml", '"320 GB/s"', '"320 GB"', "hbm_bytes_per_s = '320 GB'"),
        ("gpus/t4.toml", "sm_count", "sm_count =", "malformed TOML"),
        ("models/gpt2.toml", "hidden_size = 768", "hidden_size = 7680", "not plausible"),
        ("models/gpt3-175b.toml", "count = 96", "count = 69", "off the size in the name"),
        ("models/qwen3-30b-a3b.toml", "top_k = 8", "top_k = 16", "off the name"),
        ("models/qwen3-30b-a3b.toml", "expert_size = 768", "expert_size = 7", "wide experts"),
        ("models/deepseek-v3.toml", "v_head_dim = 128", "v_head_dim = 8", "wide outputs"),
        ("models/deepseek-v3.toml", "kv_lora_rank = 512", "kv_lora_rank = 51200", "latents of"),
        ("models/gpt2.toml", 'kind = "published"', "", "provenance.kind: missing"),
    ],
)
def test_it_finds(data: Path, file: str, old: str, new: str, wanted: str) -> None:
    path = data / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    findings = check_data(data)
    assert findings
    assert all(finding.file == file for finding in findings)
    assert any(wanted in finding.problem for finding in findings), [str(f) for f in findings]


def test_missing_provenance(data: Path) -> None:
    path = data / "gpus/t4.toml"
    path.write_text(path.read_text().split("[provenance]")[0])
    (finding,) = check_data(data)
    assert "no [provenance]" in finding.problem


def test_stray_files_and_empty_folders(data: Path) -> None:
    (data / "gpus" / "t4.toml.bak").write_text("")
    (finding,) = check_data(data)
    assert "only .toml" in finding.problem
    shutil.rmtree(data / "models")
    assert any(finding.problem == "no data files" for finding in check_data(data))


def test_an_exception_that_is_not_needed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    needless = {**checker.PEAK_EXCEPTIONS, ("t4", "peak_fp32_flops_per_s"): "none"}
    monkeypatch.setattr(checker, "PEAK_EXCEPTIONS", needless)
    (finding,) = check_data()
    assert "exception for t4" in finding.problem


@pytest.mark.parametrize("name", ["gpt2", "none"])
def test_an_exception_of_widths_that_is_not_needed_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(checker, "WIDTH_EXCEPTIONS", {**checker.WIDTH_EXCEPTIONS, name: "none"})
    (finding,) = check_data()
    assert name in finding.problem
