"""Names, aliases, nearest names, and the user's own files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rtsim import catalog
from rtsim.errors import DataError, RtsimError, SpecError, UnknownName

# Names as measurement tables write them, and what they stand for.
MEASUREMENT_NAMES = {
    "A100": "a100-sxm4-80gb",
    "A100-80GB": "a100-sxm4-80gb",
    "A100-PCIE-40GB": "a100-pcie-40gb",
    "A100-PCIE-80GB": "a100-pcie-80gb",
    "A100-SXM4-40GB": "a100-sxm4-40gb",
    "A100-SXM4-80GB": "a100-sxm4-80gb",
    "A30": "a30",
    "A40": "a40",
    "ARC-PRO-B60": "arc-pro-b60",
    "B200-SXM": "b200-hgx-180gb",
    "B300-SXM": "b300-hgx",
    "GB200": "gb200-nvl72",
    "GB300": "gb300-nvl72",
    "H100-80GB": "h100-sxm5-80gb",
    "H100-NVL": "h100-nvl-94gb",
    "H100-PCIE-80GB": "h100-pcie-80gb",
    "H100-SXM5-80GB": "h100-sxm5-80gb",
    "H20": "h20",
    "H200-SXM": "h200-sxm-141gb",
    "H800": "h800-sxm",
    "L4": "l4",
    "L40S": "l40s",
    "MI100": "mi100",
    "MI210": "mi210",
    "MI250": "mi250",
    "P100-PCIE-16GB": "p100-pcie-16gb",
    "P4": "p4",
    "RTX-PRO-6000-SERVER": "rtx-pro-6000-server",
    "T4": "t4",
    "V100-32GB": "v100-sxm3-32gb",
    "V100-PCIE-32GB": "v100-pcie-32gb",
    # short names that people type
    "v100": "v100-sxm2-32gb",
    "h100": "h100-sxm5-80gb",
    "h200": "h200-sxm-141gb",
    "b200": "b200-hgx-180gb",
    "a100_sxm4 80gb": "a100-sxm4-80gb",
}


@pytest.mark.parametrize(("written", "name"), MEASUREMENT_NAMES.items())
def test_gpu_names_resolve(written: str, name: str) -> None:
    assert catalog.resolve("gpus", written) == name
    assert catalog.load_gpu(written).name == name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("GPT3-175B", "gpt3-175b"),
        ("gpt3_175b", "gpt3-175b"),
        ("davinci", "gpt3-175b"),
        ("openai_davinci", "gpt3-175b"),
        ("openai/text-davinci-002", "gpt3-175b"),
        ("gptj_6b", "gpt-j-6b"),
        ("ai21_j1_grande", "j1-grande"),
        ("meta-llama/Llama-2-70b-hf", "llama-2-70b"),
        ("Llama2-7B", "llama-2-7b"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
        ("cohere/xlarge-20220609", "cohere-xlarge-52b"),
    ],
)
def test_model_names_resolve(written: str, name: str) -> None:
    assert catalog.load_model(written).name == name


def test_every_file_loads_under_its_own_name() -> None:
    assert len(catalog.gpu_names()) >= 53
    assert len(catalog.model_names()) >= 40
    for name in catalog.gpu_names():
        assert catalog.load_gpu(name).name == name
    for name in catalog.model_names():
        assert catalog.load_model(name).name == name


def test_aliases_as_read_line_by_line_are_those_of_the_files() -> None:
    for name, others in catalog.aliases("gpus").items():
        assert catalog.load_gpu(name).aliases == others
    for name, others in catalog.aliases("models").items():
        assert catalog.load_model(name).aliases == others


def test_loading_twice_gives_the_same_object() -> None:
    assert catalog.load_gpu("a100") is catalog.load_gpu("A100-SXM4-80GB")


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        catalog.load_model("gpt3-176b")
    assert caught.value.nearest[0] == "gpt3-175b"
    with pytest.raises(UnknownName, match="h100-sxm5-80gb"):
        catalog.load_gpu("h100-80")


def test_listing_needs_neither_pydantic_nor_toml_parsing() -> None:
    code = (
        "import sys; from rtsim import catalog; catalog.gpu_names(); catalog.model_names();"
        "catalog.resolve('gpus', 'a100');"
        "print([m for m in ('pydantic', 'tomllib', 'numpy') if m in sys.modules])"
    )
    source = str(Path(catalog.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert run.stdout.strip() == "[]"


H100 = """
sm_count = 132
clock_hz = "1980 MHz"
memory_bytes = "80 GB"
hbm_bytes_per_s = "3.35 TB/s"
peak_bf16_flops_per_s = "989.4 TFLOP/s"
architecture = "hopper"
"""


def test_a_users_gpu_from_a_few_figures(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(H100)
    gpu = catalog.load_gpu(str(file))
    assert gpu.name == "mine"
    assert gpu.hbm_bytes_per_s == 3.35e12
    assert gpu.notes == ()
    file.write_text(H100.replace("989.4", "1300"))
    (note,) = catalog.load_gpu(file).notes
    assert "sparse" in note
    file.write_text(H100.replace("989.4", "1978.9"))
    with pytest.raises(SpecError, match=r"mine.toml: peak_bf16_flops_per_s.*2:4 sparsity"):
        catalog.load_gpu(file)
    file.write_text(H100.replace("989.4", "1978.9").replace("hopper", "unknown"))
    assert not catalog.load_gpu(file).notes


def test_a_users_model(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        "name = 'tiny'\nhidden_size = 64\nvocab_size = 100\nmax_positions = 32\n"
        "[[layers]]\ncount = 2\nattention = { n_heads = 4, head_dim = 16 }\n"
        "mlp = { ffn_size = 256 }\n"
    )
    assert catalog.load_model(str(file)).n_layers == 2


@pytest.mark.parametrize(
    ("text", "error", "wanted"),
    [
        ("sm_count = ", DataError, "malformed TOML"),
        (H100 + "[link", DataError, "malformed TOML"),
        ("a = " + "[" * 100_000, DataError, "malformed TOML"),
        (H100 + "sm_cnt = 3", SpecError, "nearest: sm_count"),
        (H100.replace("80 GB", "80 GB/s"), SpecError, "memory_bytes = '80 GB/s'"),
        (H100.replace('"80 GB"', "nan"), SpecError, "finite"),
        (H100.replace("132", "-132"), SpecError, "sm_count = -132"),
        (H100.replace("132", "inf"), SpecError, "sm_count = inf"),
        (H100.replace('"80 GB"', '"80 B"'), SpecError, "memory_bytes"),
        (H100.replace('"80 GB"', '"80 MB"'), SpecError, "memory_bytes"),
        (H100.replace('"80 GB"', "80"), SpecError, "is the unit right?"),
        (H100.replace('"80 GB"', "[80]"), SpecError, "memory_bytes"),
        ("", SpecError, "missing, but required"),
        (H100 + 'name = ""', SpecError, "name"),
    ],
)
def test_a_users_broken_file_gives_one_line(
    tmp_path: Path, text: str, error: type[RtsimError], wanted: str
) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(text)
    with pytest.raises(error) as caught:
        catalog.load_gpu(str(file))
    assert str(caught.value).startswith(str(file))
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        catalog.load_gpu(str(tmp_path / "absent.toml"))
    with pytest.raises(DataError, match=r"is a folder without a config\.json"):
        catalog.load_model(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        catalog.load_model(str(binary))


def test_gpus_are_not_read_from_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory"):
        catalog.load_gpu(tmp_path)


@pytest.mark.parametrize("name", ["", " ", "../gpus/a100", "a" * 5000, "a\nb", "\0"])
def test_odd_names_are_unknown(name: str) -> None:
    for load in (catalog.load_gpu, catalog.load_model):
        with pytest.raises(UnknownName) as caught:
            load(name)
        assert "\n" not in str(caught.value)
