"""Bad input, line by line: exit status 2, one line on standard error, nothing half-written.

In this process (`run`) for all of it, and through a real process for a few: what holds in one has
to hold in the other.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rtsim.catalog import DATA
from rtsim.cli import main as program

PREDICT = ("predict", "--arch", "gpt3-175b", "--gpu", "a100", "--tp", "8")
GPU = (DATA / "gpus" / "a100-sxm4-80gb.toml").read_text()
MODEL = (DATA / "models" / "llama-2-7b.toml").read_text()
PROFILE = (DATA / "profiles" / "megatron-lm-a100-sxm4-80gb.toml").read_text()
TABLE = (
    "source,gpu,stack,stack_version,dtype,model,num_layers,hidden_size,num_heads,num_kv_heads,"
    "head_dim,ffn_size,gated_mlp,vocab_size,max_positions,tp,pp,num_gpus,batch,prompt_tokens,"
    "output_tokens,runtime_s\n"
    "helm,A100-SXM4-80GB,megatron-lm,565cc1f,fp16,davinci,96,12288,96,96,"
    "128,49152,0,51200,2048,8,1,8,1,512,1,0.179\n"
    "helm,A100-SXM4-80GB,megatron-lm,565cc1f,fp16,davinci,96,12288,96,96,"
    "128,49152,0,51200,2048,8,1,8,1,512,64,5.326\n"
)


def assert_words(err: str, words: tuple[str, ...]) -> None:
    for word in words:
        assert word in err


# Unknown names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--arch", "gpt3-175"), ("model", "'gpt3-175'", "nearest: gpt3-175b")),
        (("--arch", "lama-2-7b"), ("nearest: llama-2-7b",)),
        (("--arch", ""), ("model", "''")),
        (("--gpu", "h1000"), ("GPU", "nearest: h100")),
        (("--gpu", "zzzzzz"), ("'zzzzzz'", "are known, such as")),
        (("--stack", "megatron-ml"), ("stack", "nearest: megatron-lm")),
        (("--profile", "megatron-lm-a100"), ("profile", "megatron-lm-a100-sxm4-80gb")),
        (("--dtype", "fp61"), ("dtype", "fp61", "fp16")),
        (("--kv-cache-dtype", "bf61"), ("kv_cache_dtype", "bf61", "bf16")),
        (("--quantization", "int4_w"), ("quantization", "int4_wo")),
    ],
)
def test_unknown_names(refused, arguments: tuple[str, str], words: tuple[str]) -> None:
    assert_words(refused(*PREDICT, *arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "gpt3-175"), ("nearest: gpt3-175b",)),
        (("list", "model"), ("'model'", "models")),
        (("predictt",), ("predictt", "nearest: predict")),
        (("predict", "--archh", "x"), ("--archh",)),
        (("predict", "--arch"), ("--arch",)),
        (("predict", "--gpu", "a100"), ("--arch",)),
        (("predict", "extra", *PREDICT[1:]), ("extra",)),
        (("validate",), ("FILE",)),
        (("validate", "x.csv", "--profile", "none"), ("x.csv",)),
    ],
)
def test_misused_commands(refused, arguments: tuple[str, ...], words: tuple[str]) -> None:
    assert_words(refused(*arguments), words)


# Splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tp", "7"), ("tp = 7", "96 attention heads", "1, 2, 3, 4, 6, 8, 12")),
        (("--arch", "llama-3-70b", "--tp", "3"), ("tp = 3", "64 attention heads")),
        (("--gpu", "rtx-4090", "--tp", "32"), ("tp = 32", "32 GPUs", "no network")),
        (("--gpu", "a100-pcie-40gb", "--tp", "8", "--pp", "4"), ("pp", "32 GPUs", "no network")),
        (("--num-gpus", "12"), ("num_gpus = 12", "tp 8")),
        (("--num-gpus", "8", "--dp", "2"), ("num_gpus = 8", "dp 2")),
        (("--pp", "97"), ("pp = 97", "96 layers")),
        (("--ep", "8"), ("ep", "no experts")),
        (("--arch", "mixtral-8x7b", "--tp", "2", "--ep", "16"), ("at most the 8 experts",)),
        (("--ep", "2", "--tp", "1"), ("ep", "must be 1", "no experts")),
    ],
)
def test_impossible_splits(refused, arguments: tuple[str, ...], words: tuple[str]) -> None:
    assert_words(refused(*PREDICT, *arguments), words)


# Sizes -------------------------------------------------------------------------------------------

SIZES = ("batch-size", "input-len", "output-len", "tp", "pp", "ep", "dp", "num-gpus")


@pytest.mark.parametrize("option", SIZES)
@pytest.mark.parametrize(
    "value", ["0", "-1", "99999999999", "9" * 5000, "1.5", "nan", "inf", "1e3"]
)
def test_sizes(refused, option: str, value: str) -> None:
    err = refused(*PREDICT, f"--{option}", value)
    assert option.replace("-", "_") in err.replace("-", "_")


def test_the_suffix_of_a_size_can_make_it_absurd(refused) -> None:
    assert_words(refused(*PREDICT, "--batch-size", "9000M"), ("batch_size",))


def test_prompts_beyond_learned_positions(refused) -> None:
    err = refused(*PREDICT, "--input-len", "2049")
    assert_words(err, ("input_len = 2049", "gpt3-175b", "2048 learned positions"))
    err = refused(*PREDICT, "--input-len", "2048", "--output-len", "2")
    assert_words(err, ("output_len = 2", "2048 learned positions"))


def test_prompts_beyond_other_positions_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("predict", "--arch", "llama-2-7b", "--gpu", "a100", "--input-len", "9999")
    assert program.run(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "4096 positions" in " ".join(out.split())


# What if -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("gpu.hbm_bytes_per_s=80GB",), ("gpu.hbm_bytes_per_s = '80GB'", "unit of a size")),
        (("gpu.hbm_bytes_per_s=2xx",), ("gpu.hbm_bytes_per_s", "2xx")),
        (("gpu.hbm_bytes_per_s=",), ("PATH=VALUE",)),
        (("gpu.hbm_bytes_per_s",), ("PATH=VALUE",)),
        (("",), ("PATH=VALUE",)),
        (("gpu.sm_count=1.01x",), ("gpu.sm_count", "109.08 is no whole number")),
        (("gpu.sm_count=nan",), ("gpu.sm_count", "finite")),
        (("gpu.sm_cuont=2x",), ("nearest: sm_count",)),
        (("gpu.sm_count=2", "gpu.sm_count=3"), ("twice",)),
        (("gpu.price.usd_per_hour=2 EUR/h",), ("gpu.price.usd_per_hour", "EUR/h")),
        (("model.layers.attention.n_kv_heads=5",), ("n_heads = 96", "n_kv_heads = 5")),
        (("model.n_layers=0",), ("model.n_layers", "'0'")),
        (("model.n_layers=" + "9" * 5000,), ("model.n_layers",)),
        (("parallelism.tp=4",), ("--tp",)),
        (("gpu.what_if=x",), ("gpu.what_if",)),
        (("network=2x",), ("network.bytes_per_s",)),
    ],
)
def test_wrong_changes(refused, settings: tuple[str, ...], words: tuple[str, ...]) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    assert_words(refused(*PREDICT, *options), words)


@pytest.mark.parametrize(
    "value", ["0", "-0.5x", "-1", "-2x", "nan", "inf", "1e999", "true", "[]", "x"]
)
@pytest.mark.parametrize(
    "field", ["hbm_bytes_per_s", "sm_count", "memory_bytes", "link.domain_size"]
)
def test_absurd_values(refused, field: str, value: str) -> None:
    assert field in refused(*PREDICT, "--set", f"gpu.{field}={value}")


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--arch", "--gpu", "--profile"])
@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "\x00\x01\x02",
        "[[[[",
        "name = ",
        'name = "x"\nname = "y"\n',
        '{"hidden_size": 4096}',
        "a,b,c\n1,2,3\n",
        "[layers]\n",
        'layers = "many"\n',
        "sm_count = nan\n",
    ],
)
def test_malformed_toml(refused, tmp_path: Path, flag: str, content: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    assert "mine.toml" in refused(*PREDICT, flag, str(path))


@pytest.mark.parametrize("flag", ["--arch", "--gpu", "--profile"])
def test_nesting_without_end(refused, tmp_path: Path, flag: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("x = " + "[" * 5000)
    assert "mine.toml" in refused(*PREDICT, flag, str(path))


@pytest.mark.parametrize(
    ("flag", "text"), [("--arch", MODEL), ("--gpu", GPU), ("--profile", PROFILE)]
)
@pytest.mark.parametrize("share", [0.15, 0.3, 0.45, 0.6, 0.75])
def test_truncated_toml(
    capsys: pytest.CaptureFixture[str], refused, tmp_path: Path, flag: str, text: str, share: float
) -> None:
    """Cut anywhere: refused in one line, unless what is left is whole by itself."""
    path = tmp_path / "mine.toml"
    path.write_text(text[: int(len(text) * share)])
    status = program.run(("predict", "--arch", "llama-2-7b", "--gpu", "a100", flag, str(path)))
    out, err = capsys.readouterr()
    assert status in (0, 2), err
    if status == 2:
        assert out == ""
        refused.one_line(err)
        assert "mine.toml" in err
    else:
        assert err == ""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('hbm_bytes_per_s = "2039 GB/s"', 'hbm_bytes_per_s = "2039 GB"', ("hbm_bytes_per_s", "GB")),
        ('hbm_bytes_per_s = "2039 GB/s"', 'hbm_bytes_per_s = "2039 TFLOP/s"', ("rate in bytes",)),
        ('hbm_bytes_per_s = "2039 GB/s"', "hbm_bytes_per_s = 2039", ("plausible", "3.35 TB/s")),
        ('hbm_bytes_per_s = "2039 GB/s"', "hbm_bytes_per_s = nan", ("hbm_bytes_per_s", "finite")),
        ('hbm_bytes_per_s = "2039 GB/s"', "hbm_bytes_per_s = inf", ("hbm_bytes_per_s", "finite")),
        ('hbm_bytes_per_s = "2039 GB/s"', "hbm_bytes_per_s = 0", ("hbm_bytes_per_s", "above zero")),
        ('hbm_bytes_per_s = "2039 GB/s"', 'hbm_bytes_per_s = "-1 GB/s"', ("above zero",)),
        ('hbm_bytes_per_s = "2039 GB/s"', "hbm_bytes_per_s = true", ("hbm_bytes_per_s",)),
        ('hbm_bytes_per_s = "2039 GB/s"', "hbm_bytes_per_s = []", ("hbm_bytes_per_s",)),
        ('hbm_bytes_per_s = "2039 GB/s"', "", ("hbm_bytes_per_s", "missing")),
        ("hbm_bytes_per_s", "hbm_bytes_per_sec", ("nearest: hbm_bytes_per_s",)),
        ("hbm_bytes_per_s", "hbm_bw", ("nearest: hbm_bytes_per_s",)),
        ("sm_count = 108", "sm_count = -1\ntensor_clock_hz = -1", ("sm_count", "1 more fault")),
        ('clock_hz = "1410 MHz"', 'clock_hz = "1410 mhz"', ("clock_hz", "case matters")),
        ('power_w = "400 W"', 'power_w = "400 kWh"', ("power_w", "kWh")),
        ("sm_count = 108", "sm_count = 0", ("sm_count", "0")),
        ("sm_count = 108", "sm_count = 1.5", ("sm_count", "1.5")),
        ("sm_count = 108", 'sm_count = "108"', ("sm_count", "whole number")),
        ("domain_size = 8", "domain_size = -8", ("link.domain_size", "-8")),
        ('"3.431 USD/h"', '"3.431 EUR/h"', ("price.usd_per_hour", "EUR/h")),
    ],
)
def test_wrong_figures_of_a_gpu(
    refused, tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    assert old in GPU
    path = tmp_path / "mine.toml"
    path.write_text(GPU.replace(old, new, 1))
    assert_words(refused(*PREDICT, "--gpu", str(path)), ("mine.toml", *words))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("hidden_size = 4096", "hidden_size = 0", ("hidden_size", "0")),
        ("hidden_size = 4096", "hidden_size = -1", ("hidden_size", "-1")),
        ("hidden_size = 4096", "hidden_size = nan", ("hidden_size", "nan")),
        ("hidden_size = 4096", "hidden_size = 40960000000", ("hidden_size",)),
        ("hidden_size = 4096", 'hidden_size = "4096"', ("hidden_size", "whole number")),
        ("hidden_size = 4096", "hiden_size = 4096", ("hiden_size", "nearest: hidden_size")),
        ("count = 32", "count = 0", ("layers[0].count", "0")),
        ("n_heads = 32", "n_heads = 0", ("layers[0].attention.n_heads",)),
        ("n_heads = 32", "n_heads = 32, n_kv_heads = 5", ("n_heads = 32", "n_kv_heads = 5")),
    ],
)
def test_wrong_figures_of_a_model(
    refused, tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    assert old in MODEL
    path = tmp_path / "mine.toml"
    path.write_text(MODEL.replace(old, new, 1))
    err = refused("predict", "--arch", str(path), "--gpu", "a100")
    assert_words(err, ("mine.toml", *words))


@pytest.mark.parametrize("content", ["", "{", '{"a": 1', "[1, 2]", "nan", '{"hidden_size": NaN}'])
def test_json_that_is_no_model(refused, tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    assert "config.json" in refused("predict", "--arch", str(path), "--gpu", "a100")


@pytest.mark.parametrize("flag", ["--arch", "--gpu", "--profile"])
def test_missing_files_and_folders(refused, tmp_path: Path, flag: str) -> None:
    assert "none.toml" in refused(*PREDICT, flag, str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml" in refused(*PREDICT, flag, str(tmp_path / "folder.toml"))
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    assert "loop.toml" in refused(*PREDICT, flag, str(loop))
    assert "none.toml" in refused(*PREDICT, flag, str(tmp_path / "a" / "b" / "none.toml"))


# Tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.179", "nan", ("line 2", "runtime_s", "finite")),
        ("0.179", "inf", ("line 2", "runtime_s", "finite")),
        ("0.179", "0", ("line 2", "above zero")),
        ("0.179", "-0.179", ("line 2", "above zero")),
        ("0.179", "0.179 s", ("line 2", "not a number")),
        ("0.179", "", ("line 2", "missing")),
        ("5.326", "5,326", ("line 3", "23 fields")),
        ("8,1,8,1,512,64", "8,1,8,1,0,64", ("line 3", "prompt_tokens")),
        ("8,1,8,1,512,64", "8,1,8,1,5e30,64", ("line 3", "prompt_tokens")),
        ("8,1,8,1,512,64", "8,1,8,1,512.5,64", ("line 3", "whole number")),
        ("runtime_s", "runtime_ms", ("runtime_s", "missing")),
        ("hidden_size", "batch", ("twice",)),
        ("helm", '"helm', ("malformed CSV",)),
    ],
)
def test_wrong_cells(refused, tmp_path: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    assert old in TABLE
    path = tmp_path / "generation.csv"
    path.write_text(TABLE.replace(old, new, 1))
    assert_words(refused("validate", str(path)), ("generation.csv", *words))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"no table",
        b"\xff\xfe\x00",
        TABLE.encode()[:-30],
        TABLE.encode().split(b"\n")[0],
        gzip.compress(TABLE.encode())[:-20],
        gzip.compress(b""),
        b"PAR1 and no more",
        b"\x1f\x8b",
    ],
    ids=["empty", "blank", "text", "bytes", "cut", "header", "gzip", "nothing", "parquet", "magic"],
)
def test_malformed_tables(refused, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "generation.csv"
    path.write_bytes(content)
    assert "generation.csv" in refused("validate", str(path))


def test_one_faulty_table_among_good_ones(refused, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(TABLE)
    bad.write_text(TABLE[:-30])
    report = tmp_path / "report.json"
    assert "bad.csv" in refused("validate", str(good), str(bad), "-o", str(report))
    assert not report.exists()


def test_missing_tables(refused, tmp_path: Path) -> None:
    assert "none.csv" in refused("validate", str(tmp_path / "none.csv"))
    assert str(tmp_path) in refused("validate", str(tmp_path))
    (tmp_path / "t.csv").write_text(TABLE)
    assert "nearest" in refused("validate", str(tmp_path / "t.csv"), "--profile", "megatron")


# Output ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none/p.json", "none/p.txt", "."])
def test_outputs_that_cannot_be_written(refused, tmp_path: Path, name: str) -> None:
    err = refused(*PREDICT, "-o", str(tmp_path / name))
    assert "cannot write" in err
    assert list(tmp_path.iterdir()) == []


def test_a_refused_request_leaves_the_old_output(refused, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("precious")
    refused(*PREDICT, "--tp", "7", "-o", str(path))
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_a_full_disk_leaves_the_old_output(
    refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.json"
    path.write_text("precious")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert "no space left" in refused(*PREDICT, "-o", str(path))
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "permission" in refused(*PREDICT, "-o", str(tmp_path / "p.json"))
    finally:
        tmp_path.chmod(0o700)


# The same through a real process -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tp", "7"), ("tp = 7", "96 attention heads")),
        (("--gpu", "mine.toml"), ("mine.toml", "no such file")),
        (("-o", "/none/p.json"), ("cannot write /none/p.json",)),
    ],
)
def test_a_real_process(
    refused, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str]
) -> None:
    command = [sys.executable, "-c", "from rtsim.cli.main import main; main()"]
    done = subprocess.run(
        [*command, *PREDICT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    refused.one_line(done.stderr)
    assert_words(done.stderr, words)
    assert list(tmp_path.iterdir()) == []
