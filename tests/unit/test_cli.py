"""The command line: answers, and one clear line with the right exit status for every error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rtsim.cli import main as program
from rtsim.cli.parameters import count

PREDICT = ("predict", "--arch", "gpt3-175b", "--gpu", "a100", "--tp", "8")


class Result:
    """Exit status and output of one run of the command line in this process."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def rtsim(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RTSIM_DEBUG", raising=False)

    def run(*arguments: str) -> Result:
        status = program.run(arguments)
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run


def assert_refused(result: Result, *words: str) -> None:
    """Bad input: status 2, one line on standard error that holds the words, nothing printed."""
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


# Help and commands


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(rtsim, arguments: tuple[str, ...]) -> None:
    result = rtsim(*arguments)
    assert result.status == 0
    for name, (_, text) in program.COMMANDS.items():
        assert name in result.out
        assert text in " ".join(result.out.split())


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_has_help(rtsim, name: str) -> None:
    result = rtsim(name, "--help")
    assert result.status == 0
    assert f"Usage: rtsim {name}" in result.out


def test_version(rtsim) -> None:
    assert rtsim("--version").out.startswith("rtsim 0.")


def test_misspelt_command_and_option(rtsim) -> None:
    assert_refused(rtsim("predcit"), "predcit", "nearest: predict")
    assert_refused(rtsim("predict", "--arhc", "x"), "--arhc", "--arch")
    assert_refused(rtsim("predict"), "missing option '--arch'")
    assert_refused(rtsim("list", "cats"), "'cats'", "'models', 'gpus', 'profiles'")


@pytest.mark.parametrize(
    ("text", "value"), [("512", 512), ("4k", 4000), ("4K", 4096), ("1m", 10**6), ("1_000", 1000)]
)
def test_counts(text: str, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize("text", ["1.5", "1e3", "many", "", "4kk", "nan"])
def test_what_is_no_count(rtsim, text: str) -> None:
    assert_refused(rtsim(*PREDICT, "--batch-size", text), "--batch-size", "not a whole number")


# list, show, check-data


@pytest.mark.parametrize(
    ("what", "name"), [("models", "gpt3-175b"), ("gpus", "a100-sxm4-80gb"), ("profiles", "")]
)
def test_list(rtsim, what: str, name: str) -> None:
    result = rtsim("list", what)
    assert result.status == 0
    assert name in result.out
    rows = json.loads(rtsim("list", what, "--json").out)
    assert [line.split()[0] for line in result.out.splitlines()] == [row["name"] for row in rows]


def test_show_model(rtsim) -> None:
    text = rtsim("show", "davinci").out
    assert "gpt3-175b (model)" in text
    assert "12288" in text
    body = json.loads(rtsim("show", "gpt3-175b", "--json").out)
    assert body["kind"] == "model"
    assert body["parameters"] == pytest.approx(175e9, rel=0.01)


def test_show_lists_every_group_of_layers(rtsim, tmp_path: Path) -> None:
    """Two groups of equal count are two lines."""
    path = tmp_path / "two.toml"
    layers = "".join(
        f"[[layers]]\ncount = 4\n[layers.attention]\nn_heads = 8\nhead_dim = 64\n"
        f"window = {window}\n[layers.mlp]\nffn_size = 2048\n"
        for window in (128, 256)
    )
    path.write_text(
        f'hidden_size = 512\nvocab_size = 1000\nmax_positions = 512\nposition = "rotary"\n{layers}'
    )
    text = rtsim("show", str(path)).out
    assert "4 x 8 heads of 64, window 128" in text
    assert "4 x 8 heads of 64, window 256" in text


def test_show_gpu(rtsim) -> None:
    text = rtsim("show", "A100").out
    assert "a100-sxm4-80gb (GPU)" in text
    assert "312 TFLOP/s" in text
    assert json.loads(rtsim("show", "A100", "--json").out)["sm_count"] == 108


def test_show_profile(rtsim) -> None:
    for row in json.loads(rtsim("list", "profiles", "--json").out):
        result = rtsim("show", row["name"])
        assert result.status == 0
        assert f"{row['name']} (profile)" in result.out
        assert json.loads(rtsim("show", row["name"], "--json").out)["kind"] == "profile"


def test_show_a_file(rtsim, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'sm_count = 10\nmemory_bytes = "10 GB"\nhbm_bytes_per_s = "1 TB/s"\n'
        'peak_bf16_flops_per_s = "100 TFLOP/s"\n'
    )
    assert "mine (GPU)" in rtsim("show", str(path)).out
    path.write_text("x = 1\n")
    assert_refused(rtsim("show", str(path)), "mine.toml", "neither")


def test_show_with_changes(rtsim) -> None:
    text = rtsim("show", "h100", "--set", "gpu.hbm_bytes_per_s=2x").out
    assert "6.70 TB/s" in text
    assert "(2x, before 3.35 TB/s)" in text
    body = json.loads(rtsim("show", "gpt3-175b", "--set", "model.n_layers=48", "--json").out)
    assert body["layers"][0]["count"] == 48
    assert body["parameters"] < 90e9
    assert_refused(rtsim("show", "h100", "--set", "model.n_layers=2x"), "no model here")
    assert_refused(rtsim("show", "family-ada", "--set", "gpu.sm_count=2x"), "is a profile")
    assert_refused(rtsim("show", "h100", "--set", "gpu.sm_cuont=2x"), "nearest: sm_count")


def test_templates_predict_as_they_are(rtsim, tmp_path: Path) -> None:
    files = {}
    for kind in ("gpu", "model"):
        result = rtsim("show", "--template", kind)
        assert (result.status, result.err) == (0, "")
        files[kind] = tmp_path / f"my-{kind}.toml"
        files[kind].write_text(result.out)
        assert f"my-{kind}" in rtsim("show", str(files[kind])).out
    result = rtsim(
        *("predict", "--arch", str(files["model"]), "--gpu", str(files["gpu"]), "--tp", "2"),
        "--json",
    )
    assert result.status == 0, result.err
    body = json.loads(result.out)
    assert (body["model"]["name"], body["gpu"]["name"]) == ("my-model", "my-gpu")
    assert body["model"]["parameters"] == pytest.approx(8.03e9, rel=0.01)
    # Every figure of the template is one that the program takes as stated, none is doubted.
    assert not any("not stated" in note or "sparse" in note for note in body["notes"])


def test_templates_warn_of_what_datasheets_print(rtsim) -> None:
    text = rtsim("show", "--template", "gpu").out
    for words in ("DENSE", "with sparsity", "ONE WAY", "accumulation"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 100


def test_templates_stand_alone(rtsim) -> None:
    assert_refused(rtsim("show", "--template", "gpux"), "'gpux'", "'gpu', 'model'")
    assert_refused(rtsim("show", "a100", "--template", "gpu"), "--template stands alone")
    assert_refused(rtsim("show"), "NAME", "--template")


def test_show_unknown(rtsim) -> None:
    assert_refused(rtsim("show", "gpt3-175"), "gpt3-175", "gpt3-175b")
    assert_refused(rtsim("show", "none.toml"), "none.toml", "no such file")


def test_check_data(rtsim) -> None:
    result = rtsim("check-data")
    assert (result.status, result.err) == (0, "")


def test_check_data_names_findings(rtsim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtsim.check_data.check_data", lambda: ["gpus/x.toml: no source"])
    result = rtsim("check-data")
    assert result.status == 2
    assert result.out == "gpus/x.toml: no source\n"


# predict


def test_predict_prints_a_table(rtsim) -> None:
    result = rtsim(*PREDICT)
    assert (result.status, result.err) == (0, "")
    for shown in ("gpt3-175b", "8 x a100-sxm4-80gb", "Time to first token", "Bound by", "Assumed"):
        assert shown in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_predict_json_is_consistent(rtsim) -> None:
    body = json.loads(rtsim(*PREDICT, "--json").out)
    assert body["model"]["name"] == "gpt3-175b"
    assert body["num_gpus"] == 8
    assert body["workload"]["input_len"] == 512
    assert body["workload"]["output_len"] == 64
    assert body["tpot_s"] == pytest.approx((body["e2e_latency_s"] - body["ttft_s"]) / 63)
    assert body["output_throughput"] == pytest.approx(64 / body["e2e_latency_s"])
    operators_s = sum(row["time_s"] for row in body["breakdown"])
    assert operators_s == pytest.approx(body["e2e_latency_s"], rel=1e-6)
    for key in ("ttft_s", "tpot_s", "e2e_latency_s"):
        low, high = body["interval_90"][key]
        assert low < body[key] < high
    assert {row["bound"] for row in body["breakdown"]} <= {
        "compute",
        "memory",
        "latency",
        "interconnect",
        "host",
    }


def test_predict_with_changes(rtsim) -> None:
    what_if = ("--set", "gpu.hbm_bytes_per_s=2x", "--set", "link.bytes_per_s = 600GB/s")
    result = rtsim(*PREDICT, *what_if)
    assert (result.status, result.err) == (0, "")
    for shown in (
        "What if gpu.hbm_bytes_per_s = 2x, link.bytes_per_s = 600GB/s",
        "Before",
        "Ratio",
        "Operator that moves",
        "Unchanged (within 1%)",
        "hbm_bytes_per_s = 4.08 TB/s",
    ):
        assert shown in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    body = json.loads(rtsim(*PREDICT, *what_if, "--json").out)
    plain = json.loads(rtsim(*PREDICT, "--json").out)
    assert "what_if" not in plain
    assert set(body) - set(plain) == {"what_if"}
    before = body["what_if"]["before"]
    assert body["what_if"]["set"]["link.bytes_per_s"] == "600GB/s"
    for key in ("ttft_s", "tpot_s", "e2e_latency_s", "output_throughput"):
        assert before[key] == plain[key]
    assert body["e2e_latency_s"] < before["e2e_latency_s"]
    assert 0 < len(body["what_if"]["changed"]) < 40


def test_predict_with_every_flag(rtsim) -> None:
    result = rtsim(
        *("predict", "--arch", "llama-2-7b", "--gpu", "h100", "--num-gpus", "2", "--tp", "2"),
        *("--pp", "1", "--ep", "1", "--dp", "1", "--batch-size", "4", "--input-len", "1k"),
        *("--output-len", "1", "--dtype", "bf16", "--kv-cache-dtype", "bf16"),
        *("--quantization", "none", "--json"),
    )
    assert result.status == 0, result.err
    body = json.loads(result.out)
    assert body["workload"]["batch_size"] == 4
    assert body["workload"]["input_len"] == 1000
    assert body["tpot_s"] is None
    assert body["e2e_latency_s"] == pytest.approx(body["ttft_s"])


def test_predict_writes_a_file(rtsim, tmp_path: Path) -> None:
    printed = rtsim(*PREDICT)
    as_text, as_json = tmp_path / "p.txt", tmp_path / "p.json"
    for path in (as_text, as_json):
        result = rtsim(*PREDICT, "-o", str(path))
        assert (result.status, result.out, result.err) == (0, "", "")
    assert as_text.read_text() == printed.out
    assert json.loads(as_json.read_text())["model"]["name"] == "gpt3-175b"


def test_what_does_not_fit_is_timed_all_the_same(rtsim) -> None:
    body = json.loads(rtsim(*PREDICT[:-1], "1", "--json").out)
    assert body["memory"]["fits"] is False
    assert body["e2e_latency_s"] > 0
    fitting = str(body["memory"]["smallest_fitting_tp"])
    assert f"--tp {fitting}" in " ".join(body["notes"])
    assert json.loads(rtsim(*PREDICT[:-1], fitting, "--json").out)["memory"]["fits"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--arch", "gpt3-175"), ("gpt3-175", "gpt3-175b")),
        (("--gpu", "a10O"), ("a10O", "a10")),
        (("--stack", "megatron"), ("megatron", "megatron-lm")),
        (("--tp", "7"), ("tp", "7", "96")),
        (("--tp", "0"), ("tp", "0")),
        (("--tp", "-8"), ("tp", "-8")),
        (("--num-gpus", "3"), ("num_gpus", "3")),
        (("--batch-size", "0"), ("batch_size", "0")),
        (("--input-len", "-5"), ("input_len", "-5")),
        (("--output-len", "0"), ("output_len", "0")),
        (("--input-len", "99999999999999"), ("input_len",)),
        (("--input-len", "5000"), ("input_len", "5000", "2048")),
        (("--dtype", "fp17"), ("dtype", "fp17", "fp16")),
        (("--kv-cache-dtype", "int3"), ("kv_cache_dtype", "int3")),
        (("--quantization", "int4_w"), ("quantization", "int4_wo")),
        (("--profile", "none-such"), ("none-such",)),
        (("--profile", "none.toml"), ("none.toml",)),
        (("--arch", "none.toml"), ("none.toml", "no such file")),
        (("--arch", "none.json"), ("none.json",)),
        (("--gpu", "none.toml"), ("none.toml", "no such file")),
        (("-o", "/no/such/folder/p.json"), ("/no/such/folder/p.json", "folder")),
        (("-o", "/"), ("cannot write",)),
    ],
)
def test_predict_refuses(rtsim, arguments: tuple[str, str], words: tuple[str, ...]) -> None:
    assert_refused(rtsim(*PREDICT, *arguments), *words)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"hidden_size = ", b"[layers", b"x = 1", b'hidden_size = "4 GB"']
)
@pytest.mark.parametrize("flag", ["--arch", "--gpu", "--profile"])
def test_predict_refuses_malformed_files(rtsim, tmp_path: Path, flag: str, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert_refused(rtsim(*PREDICT, flag, str(path)), "mine.toml")


# validate


def test_validate(rtsim, tmp_path: Path) -> None:
    table = tmp_path / "generation.csv"
    table.write_text(
        "source,gpu,stack,stack_version,dtype,model,num_layers,hidden_size,num_heads,"
        "num_kv_heads,head_dim,ffn_size,gated_mlp,vocab_size,max_positions,tp,pp,num_gpus,"
        "parameters_per_gpu,batch,prompt_tokens,output_tokens,runtime_s,runtime_std_s\n"
        # Measured: GPT-3 175B on 8 x A100-80GB with Megatron-LM (stanford-crfm/helm-efficiency).
        "helm,A100-SXM4-80GB,megatron-lm,565cc1fed3b5,fp16,openai_davinci,96,12288,96,96,128,"
        "49152,0,51200,2048,8,1,8,21855215616,1,512,1,0.179,0.001\n"
        "helm,A100-SXM4-80GB,megatron-lm,565cc1fed3b5,fp16,openai_davinci,96,12288,96,96,128,"
        "49152,0,51200,2048,8,1,8,21855215616,1,512,64,5.326,0.01\n"
        "helm,NOT-A-GPU,megatron-lm,565cc1fed3b5,fp16,openai_davinci,96,12288,96,96,128,"
        "49152,0,51200,2048,8,1,8,21855215616,1,1024,32,2.843,0.01\n"
    )
    result = rtsim("validate", str(table), "--json")
    assert result.status == 0, result.err
    (file,) = json.loads(result.out)["files"]
    assert (file["kind"], file["rows"]) == ("generation", 3)
    assert sum(file["skipped"].values()) == 1
    assert "NOT-A-GPU" in next(iter(file["skipped"]))
    assert file["mape"] < 0.1
    assert set(file["by"]["gpu"]) == {"A100-SXM4-80GB"}
    text = rtsim("validate", str(table), "--worst", "1").out
    assert "MAPE" in text
    assert "Worst rows" in text


def test_validate_refuses(rtsim, tmp_path: Path) -> None:
    assert_refused(rtsim("validate"), "FILE")
    assert_refused(rtsim("validate", "none.csv"), "none.csv", "no such file")
    assert_refused(rtsim("validate", "x.csv", "--worst", "-1"), "worst", "-1")
    (tmp_path / "t.csv").write_text("gpu,dtype,m,n,k,time_us\nA100,fp16,1,2,3,nan\n")
    assert_refused(rtsim("validate", str(tmp_path / "t.csv")), "t.csv, line 2", "nan")


# Anything else that can go wrong


def test_a_defect_is_one_line_and_status_1(rtsim, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("a defect\nin two lines")

    monkeypatch.setattr("rtsim.catalog.model_names", broken)
    monkeypatch.setattr("rtsim.catalog.aliases", lambda kind: broken())
    result = rtsim("list", "models")
    assert result.status == 1
    assert result.err == "error: ZeroDivisionError: a defect in two lines\n"
    monkeypatch.setenv("RTSIM_DEBUG", "1")
    assert "Traceback" in rtsim("list", "models").err


def test_interrupt_is_quiet(rtsim, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(kind: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rtsim.catalog.aliases", interrupted)
    result = rtsim("list", "models")
    assert (result.status, result.err.strip()) == (128 + signal.SIGINT, "")


def test_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", "from rtsim.cli.main import main; main()", "list", "models"]
    result = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert result.stderr == b""
    assert result.returncode == 1


def test_full_disk_is_an_error() -> None:
    command = [sys.executable, "-c", "from rtsim.cli.main import main; main()", "list", "models"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode in (1, 2)
    assert result.stderr.count(b"\n") == 1
    assert b"Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [("list", "models"), (*PREDICT, "--json")])
def test_a_full_standard_output(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", "from rtsim.cli.main import main; main()", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write standard output: no space left on device\n"


@pytest.mark.parametrize("arguments", ["list models >&-", "show a100 | head -n 1 >/dev/null"])
def test_odd_outputs_leave_no_traceback(arguments: str) -> None:
    command = f"'{sys.executable}' -c 'from rtsim.cli.main import main; main()' {arguments}"
    result = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, check=False)
    assert b"Traceback" not in result.stderr


def test_narrow_encodings_are_no_fault() -> None:
    command = [sys.executable, "-c", "from rtsim.cli.main import main; main()", "show", "µ"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1


def test_warmup(rtsim) -> None:
    result = rtsim("warmup")
    assert result.status == 0
    assert result.out.startswith("compiled kernels ready after ")
    assert result.out.count("\n") == 1
