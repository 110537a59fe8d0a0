"""Validation of kernel and forward-pass tables: what is predicted, skipped, grouped and drawn.

Tables are written here, a few rows each. A predicted row must equal a call of the interpreted
kernel with the row that the profile resolves to.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rtsim_kernels import attention, collective, gemm, memory_bound, mla, moe, step, tables

import rtsim
from rtsim.catalog import load_gpu
from rtsim.cli.main import main
from rtsim.device_facts import device_row, sustained_flops_per_s
from rtsim.errors import NotSupported, SpecError, UnknownName
from rtsim.fitting import kernel_rows, network_rows, resolve
from rtsim.fitting import memory_bound as memory_bound_recipe
from rtsim.kernel_records import (
    absorb_row,
    attention_row,
    collective_row,
    gemm_row,
    memory_bound_row,
    mla_decode_row,
    mla_prefill_row,
    moe_row,
)
from rtsim.measurements import Columns, read_table
from rtsim.operators import PlainForward, StackTraits, lower
from rtsim.profile import interval_half_width, load_profile
from rtsim.specs import ParallelismSpec

PROFILE = "megatron-lm-a100-sxm4-80gb"
ONE = np.ones(1)

GEMM = """\
gpu,stack,dtype,m,n,k,batch,time_us
A100-SXM4-80GB,vllm,bf16,16,4096,4096,1,20
H100-SXM5-80GB,vllm,bf16,2048,4096,4096,1,100
A100-SXM4-80GB,sarathi-serve/pytorch,fp16,100,512,512,3,10
"""
PREFILL = """\
gpu,stack,dtype,kv_dtype,batch,query_tokens,context_tokens,num_heads,num_kv_heads,head_dim,\
window_size,time_us
A100-SXM4-80GB,vllm,bf16,,2,512,512,32,8,128,0,100
H100-SXM5-80GB,trtllm,bf16,fp8,1,8192,8192,32,8,128,1024,3000
"""
DECODE = PREFILL.replace(",2,512,512,", ",64,1,4096,").replace(",1,8192,8192,", ",1,1,100,")
COLLECTIVE = """\
gpu,stack,implementation,topology,collective,dtype,num_gpus,num_nodes,message_bytes,time_us
A100-SXM4-80GB,nccl,nccl-tests,nvswitch,all_reduce,fp16,8,1,1048576,60
A100-SXM4-80GB,vllm,custom_graph,nvswitch,all_reduce,bf16,4,1,65536,9
H100-SXM5-80GB,vllm,custom_eager,nvswitch,all_reduce,bf16,4,1,65536,40
"""
ELEMENTWISE = """\
gpu,stack,op,dtype,rows,cols,time_us
A100-SXM4-80GB,sarathi-serve/pytorch,rmsnorm,fp16,256,4096,5
T4,pytorch,add,fp32,4096,4096,700
"""
MOE = """\
gpu,stack,kernel,dtype,distribution,num_tokens,hidden_size,intermediate_size,top_k,num_experts,tp,\
ep,time_us
H100-SXM5-80GB,vllm,experts_triton,bf16,balanced,64,4096,14336,2,8,2,1,400
B200-SXM,trtllm,,nvfp4,power_law_1.2,4096,7168,2048,8,256,1,8,900
"""
MLA = """\
gpu,stack,op,dtype,kv_dtype,gemm_dtype,num_heads,batch,query_tokens,context_tokens,time_us
H100-SXM5-80GB,trtllm,context_attention,bf16,bf16,,128,2,1024,1024,500
H100-SXM5-80GB,trtllm,generation_attention,bf16,fp8,,16,64,1,4096,60
H100-SXM5-80GB,trtllm,bmm_pre,bf16,,,16,64,1,0,8
H100-SXM5-80GB,trtllm,generation_module,bf16,bf16,bf16,16,64,1,4096,200
H100-SXM5-80GB,trtllm,context_module,bf16,bf16,fp8_block,16,2,512,512,300
"""
NETWORK = """\
gpu,stack,dtype,model,num_layers,hidden_size,num_heads,ffn_size,vocab_size,batch,query_tokens,\
fused,measured_ms
V100-PCIE-32GB,pytorch/transformers,fp32,bert_large,24,1024,16,4096,30522,8,512,0,257
V100-PCIE-32GB,pytorch/transformers,fp32,gpt2_large,36,1280,20,5120,50257,4,1024,0,729
V100-PCIE-32GB,pytorch/transformers,fp32,gpt2_large,36,1280,20,5120,50257,4,1024,1,650
V100-PCIE-32GB,pytorch/transformers,fp32,opt_13,24,2048,32,8192,50272,2,2048,0,1274
V100-PCIE-32GB,pytorch/transformers,fp32,switchxl4,24,1024,32,16384,32128,1,512,0,323
"""


def columns_of(tmp_path: Path, text: str, name: str = "table.csv") -> Columns:
    path = tmp_path / name
    path.write_text(text)
    return read_table(path).columns


def row(record: Any) -> Any:
    return tables.as_row(record)


def test_gemm_rows_are_calls_of_the_kernel(tmp_path):
    columns = columns_of(tmp_path, GEMM)
    times = kernel_rows.predict_gemm(columns, PROFILE)["time"]
    # Weight copies cycled through and activation copies, by how the stack's table was timed.
    methods = [(6.0, 1.0), (6.0, 1.0), (math.inf, 1.0)]
    for i, (weights, activations) in enumerate(methods):
        gpu = load_gpu(columns["gpu"][i])
        form = gemm_row(
            load_profile(PROFILE), gpu, columns["dtype"][i], activation_copies=activations
        )
        sizes = [float(columns[name][i]) for name in ("m", "n", "k", "batch")]
        seconds, _ = gemm.gemm_s(*sizes, weights, row(form), row(device_row(gpu)))
        assert times.predicted_s[i] == pytest.approx(seconds, rel=1e-12)
    assert times.measured_s.tolist() == pytest.approx([20e-6, 100e-6, 10e-6])


def test_prefill_rows_are_calls_of_the_kernel(tmp_path):
    columns = columns_of(tmp_path, PREFILL, "prefill.csv")
    times = kernel_rows.predict_attention_prefill(columns, PROFILE)["time"]
    for i, (kv_dtype, window) in enumerate([("bf16", 0.0), ("fp8", 1024.0)]):
        gpu = load_gpu(columns["gpu"][i])
        form = attention_row(load_profile(PROFILE), gpu, "attention_prefill", "bf16", kv_dtype)
        sizes = [
            float(columns[name][i])
            for name in (
                *("batch", "query_tokens", "context_tokens"),
                *("num_heads", "num_kv_heads", "head_dim"),
            )
        ]
        seconds, _ = attention.attention_prefill_s(
            *sizes, window, 1.0, row(form), row(device_row(gpu)), warm_frac=1.0
        )
        assert times.predicted_s[i] == pytest.approx(seconds, rel=1e-12)


def test_decode_rows_are_calls_of_the_kernel(tmp_path):
    columns = columns_of(tmp_path, DECODE)
    times = kernel_rows.predict_attention_decode(columns, PROFILE)["time"]
    for i, (kv_dtype, window) in enumerate([("bf16", 0.0), ("fp8", 1024.0)]):
        gpu = load_gpu(columns["gpu"][i])
        form = attention_row(load_profile(PROFILE), gpu, "attention_decode", "bf16", kv_dtype)
        sizes = [
            float(columns[name][i])
            for name in ("batch", "context_tokens", "num_heads", "num_kv_heads", "head_dim")
        ]
        seconds, _ = attention.attention_decode_s(
            *sizes, window, row(form), row(device_row(gpu)), warm_frac=1.0
        )
        assert times.predicted_s[i] == pytest.approx(seconds, rel=1e-12)
    # 2 x 64 sequences x 8 heads x 4096 keys x 128 x 2 bytes = 1 GiB; the other 2 x 8 x 100 x 128
    assert times.regime.tolist() == ["above 64 MiB", "to 1 MiB"]


def test_collective_rows_are_calls_of_the_kernel(tmp_path):
    columns = columns_of(tmp_path, COLLECTIVE)
    times = kernel_rows.predict_collective(columns, PROFILE)["time"]
    profile = load_profile(PROFILE)
    all_reduce = collective.OPERATION_NAMES.index("all_reduce")
    for i, (own, eager) in enumerate([(False, False), (True, False), (True, True)]):
        gpu = load_gpu(columns["gpu"][i])
        form = collective_row(profile, gpu, own=own, topology="nvswitch", eager=eager)
        seconds, _ = collective.collective_s(
            all_reduce,
            float(columns["message_bytes"][i]),
            float(columns["num_gpus"][i]),
            float(columns["num_gpus"][i]),
            row(form),
            row(device_row(gpu)),
        )
        assert times.predicted_s[i] == pytest.approx(seconds, rel=1e-12)


def test_elementwise_rows_are_calls_of_the_kernel(tmp_path):
    columns = columns_of(tmp_path, ELEMENTWISE)
    times = kernel_rows.predict_elementwise(columns, PROFILE)["time"]
    for i, element_bytes in enumerate([2.0, 4.0]):
        gpu = load_gpu(columns["gpu"][i])
        sizes = float(columns["rows"][i]), float(columns["cols"][i])
        name = columns["op"][i]
        work = memory_bound.operator_bytes(name, *sizes, element_bytes, element_bytes)
        seconds, _ = memory_bound.memory_bound_s(
            memory_bound.OPERATORS[name].kind,
            *sizes,
            *work,
            1.0,
            row(memory_bound_row(load_profile(PROFILE), gpu)),
            row(device_row(gpu)),
        )
        assert times.predicted_s[i] == pytest.approx(seconds, rel=1e-12)
    assert memory_bound_recipe.EAGER_LAUNCHES.get("add", 1.0) == 1.0  # no further launches


def test_expert_rows_are_calls_of_the_kernel(tmp_path):
    columns = columns_of(tmp_path, MOE)
    times = kernel_rows.predict_moe(columns, PROFILE)["time"]
    for i, (form, backend, skew) in enumerate([("bf16", "triton", 0.0), ("nvfp4", "", 1.2)]):
        gpu = load_gpu(columns["gpu"][i])
        record = moe_row(load_profile(PROFILE), gpu, form, backend=backend, weight_copies=1.0)
        sizes = {name: float(columns[name][i]) for name in columns if name.startswith("num_")}
        seconds, _ = moe.moe_s(
            sizes["num_tokens"], float(columns["hidden_size"][i]),
            columns["intermediate_size"][i] / columns["tp"][i], sizes["num_experts"],
            sizes["num_experts"] / columns["ep"][i], float(columns["top_k"][i]), 3.0, skew,
            row(record), row(device_row(gpu)),
        )  # fmt: skip
        assert times.predicted_s[i] == pytest.approx(seconds, rel=1e-12)
        assert times.low_s[i] < times.predicted_s[i] < times.high_s[i]
    assert times.regime.tolist() == ["to 64 rows per expert", "above 64 rows per expert"]


def test_latent_rows_are_calls_of_the_kernels(tmp_path):
    columns = columns_of(tmp_path, MLA, "mla.csv")
    times = kernel_rows.predict_mla(columns, PROFILE)["time"]
    profile, gpu = load_profile(PROFILE), load_gpu("h100-sxm5-80gb")
    device = row(device_row(gpu))
    form = row(mla_prefill_row(profile, gpu, "bf16", "bf16"))
    sizes = (2.0, 1024.0, 1024.0, 128.0, 128.0, 64.0, 128.0, 512.0)
    seconds, _ = mla.mla_prefill_s(*sizes, form, device, 1.0)
    assert times.predicted_s[0] == pytest.approx(seconds, rel=1e-12)
    form = row(mla_decode_row(profile, gpu, "bf16", "fp8"))
    seconds, _ = mla.mla_decode_s(64.0, 4096.0, 16.0, 512.0, 64.0, form, device, 1.0)
    assert times.predicted_s[1] == pytest.approx(seconds, rel=1e-12)
    form = row(absorb_row(profile, gpu, "bf16"))
    seconds, _ = gemm.gemm_s(64.0, 512.0, 128.0, 16.0, 1.0, form, device)
    assert times.predicted_s[2] == pytest.approx(seconds, rel=1e-12)
    assert times.regime.tolist() == columns["op"].tolist()
    assert (times.skip == "").all()


def test_whole_latent_blocks_take_longer_than_their_parts(tmp_path):
    columns = columns_of(tmp_path, MLA, "mla.csv")
    block, prompt = kernel_rows.predict_mla(columns, PROFILE)["time"].predicted_s[3:]
    profile, gpu = load_profile(PROFILE), load_gpu("h100-sxm5-80gb")
    device = row(device_row(gpu))
    form = row(mla_decode_row(profile, gpu, "bf16", "bf16"))
    attention_s, _ = mla.mla_decode_s(64.0, 4096.0, 16.0, 512.0, 64.0, form, device, 1.0)
    # Projections of DeepSeek-V3 with 16 heads: 7168 to 2112, 1536 to 16 x 192, 16 x 128 to 7168.
    products = [(2112.0, 7168.0), (16 * 192.0, 1536.0), (7168.0, 16 * 128.0)]
    form = row(gemm_row(profile, gpu, "bf16"))
    weights = sum(n * k for n, k in products)
    parts = attention_s + sum(
        gemm.gemm_s(64.0, n, k, 1.0, weights / (n * k), form, device)[0] for n, k in products
    )
    assert parts < block < parts + 60e-6
    assert prompt > 0.0


@pytest.mark.parametrize(
    ("text", "change", "problem"),
    [
        (MOE, ("balanced,64,", "balanced,-64,"), "num_tokens"),
        (MOE, ("balanced,64,", "balanced,,"), "num_tokens"),
        (MOE, (",400\n", ",0\n"), "time_us"),
        (MOE, ("num_experts", "experts"), "num_experts"),
        (MLA, (",128,2,1024,", ",x,2,1024,"), "num_heads"),
        (MLA, ("context_attention,bf16", "context_attention"), "fields"),
        (MLA, ("num_heads", "heads"), "num_heads"),
    ],
)
def test_faulty_lines_are_named(tmp_path, capsys, text, change, problem):
    path = tmp_path / "table.csv"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(SystemExit) as stop:
        main(["validate", str(path)])
    assert stop.value.code == 2
    assert problem in capsys.readouterr().err


def test_what_is_not_modelled_is_skipped_with_a_reason(tmp_path):
    path = tmp_path / "moe.csv"
    path.write_text(MOE.replace("balanced", "zipf") + MOE.splitlines()[2].replace("nvfp4", "int3"))
    (file,) = rtsim.validate(path, profile=PROFILE).files
    assert file.skipped == {"distribution is not modelled": 1, "dtype is not modelled": 1}
    path.write_text(MLA.replace("bmm_pre", "indexer"))
    (file,) = rtsim.validate(path, profile=PROFILE).files
    assert file.skipped == {"operator is not modelled": 1}
    assert list(file.metrics["time"].by["regime"]) == [
        "context_attention", "generation_attention", "context_module", "generation_module"
    ]  # fmt: skip


def test_intervals_are_those_of_the_section_and_wider_elsewhere(tmp_path):
    times = kernel_rows.predict_gemm(columns_of(tmp_path, GEMM), PROFILE)["time"]
    profile = load_profile(PROFILE)
    for i, gpu in enumerate(["a100-sxm4-80gb", "h100-sxm5-80gb"]):
        sigma = resolve.sigma(profile, load_gpu(gpu), "gemm", {"dtype": "bf16"})
        half = float(interval_half_width(ONE, sigma * ONE, profile.sigma_row))
        assert math.log(times.high_s[i] / times.predicted_s[i]) == pytest.approx(half)
        assert math.log(times.predicted_s[i] / times.low_s[i]) == pytest.approx(half)
    assert times.high_s[1] / times.low_s[1] > times.high_s[0] / times.low_s[0]


def test_unknown_gpus_stacks_and_formats_are_skipped_with_a_reason(tmp_path):
    text = GEMM + "B9000,vllm,bf16,8,8,8,1,5\nA100,odd-stack,bf16,8,8,8,1,5\n"
    text += "A100,vllm,posit16,8,8,8,1,5\n"
    path = tmp_path / "gemm.csv"
    path.write_text(text)
    (file,) = rtsim.validate(path, profile=PROFILE).files
    reasons = " / ".join(file.skipped)
    # A profile that was asked for serves every stack.
    assert sum(file.skipped.values()) == 2
    assert "B9000" in reasons
    assert "dtype is not modelled" in reasons
    assert file.metrics["time"].total.rows == 4
    skip = kernel_rows.predict_gemm(read_table(path).columns, None)["time"].skip
    assert "odd-stack" in skip[4]


def test_misaligned_products_are_predicted_and_slower(tmp_path):
    times = kernel_rows.predict_gemm(
        columns_of(tmp_path, GEMM.replace("16,4096,4096", "4096,4095,4096")), PROFILE
    )["time"]
    aligned = kernel_rows.predict_gemm(
        columns_of(tmp_path, GEMM.replace("16,4096,4096", "4096,4096,4096")), PROFILE
    )["time"]
    assert times.skip[0] == ""
    assert times.predicted_s[0] > 1.2 * aligned.predicted_s[0]


def test_an_unknown_profile_is_an_error_and_no_skip(tmp_path):
    with pytest.raises(UnknownName):
        kernel_rows.predict_gemm(columns_of(tmp_path, GEMM), "no-such-profile")


def test_regimes_come_in_order_of_size(tmp_path):
    path = tmp_path / "gemm.csv"
    path.write_text(GEMM)
    (file,) = rtsim.validate(path, profile=PROFILE).files
    assert list(file.metrics["time"].by["regime"]) == ["m to 16", "m to 128", "m above 1024"]


def test_grouping_keeps_every_row_once():
    columns = {
        "gpu": np.array(["a", "b", "a", "b", "a"]),
        "stack": np.array(["x", "x", "y", "x", "x"]),
    }
    groups = kernel_rows.grouped(columns, ("gpu", "stack"), np.array([0, 1, 2, 4]))
    found = {(k["gpu"], k["stack"]): rows.tolist() for k, rows in groups}
    assert found == {("a", "x"): [0, 4], ("b", "x"): [1], ("a", "y"): [2]}
    assert kernel_rows.grouped(columns, ("gpu",), np.array([], dtype=np.intp)) == []


# Forward passes ---------------------------------------------------------------------------------


def test_forward_passes_are_steps_of_the_lowered_model(tmp_path):
    columns = columns_of(tmp_path, NETWORK)
    times = network_rows.predict_rows(columns, PROFILE)["forward"]
    assert times.skip[:4].tolist() == [""] * 4
    assert "switchxl4" in times.skip[4]
    gpu, profile = load_gpu("V100-PCIE-32GB"), load_profile(PROFILE)
    for i in range(4):
        table_row = {name: columns[name][i].item() for name in columns}
        table = network_rows.operator_table(table_row, gpu)
        formats = network_rows.formats_of("fp32")
        rows = network_rows.issued_ahead(network_rows.machine_rows(profile, gpu, formats))
        seconds = step.step_s(
            float(table_row["batch"]),
            float(table_row["query_tokens"]),
            float(table_row["query_tokens"]),
            0.0,
            1.0,
            0.0,
            0.0,
            tuple(row(r) for r in table.rows),
            tuple(row(r) for r in table.segments),
            rows.interpreted(),
            np.zeros((len(table.rows), 2)),
        )
        assert times.predicted_s[i] == pytest.approx(seconds, rel=1e-12)
    assert times.predicted_s[2] < times.predicted_s[1]  # compiled: fewer small kernels
    assert times.regime[:3].tolist() == ["eager", "eager", "compiled"]


def test_flops_of_a_decoder_pass_are_the_closed_form(tmp_path):
    columns = columns_of(tmp_path, NETWORK)
    table_row = {name: columns[name][1].item() for name in columns}
    gpu = load_gpu("V100-PCIE-32GB")
    table = network_rows.operator_table(table_row, gpu)
    formats = network_rows.formats_of("fp32")
    machine = network_rows.machine_rows(load_profile(PROFILE), gpu, formats).interpreted()
    batch, tokens, hidden, layers, vocabulary = 4.0, 1024.0, 1280.0, 36, 50257
    flops = 0.0
    for operator, executions in zip(table.rows, table.executions, strict=True):
        if operator["kind"] in (tables.GEMM, tables.SCORES, tables.VALUES):
            work, _ = step.operator_work(row(operator), batch, tokens, tokens, 0.0, machine)
            flops += work * executions
    per_layer = 24 * batch * tokens * hidden**2 + 4 * batch * tokens**2 * hidden
    assert flops == pytest.approx(layers * per_layer + 2 * batch * tokens * hidden * vocabulary)


def test_an_encoder_has_no_head_and_a_plain_pass_no_cache_and_no_sampling(tmp_path):
    columns = columns_of(tmp_path, NETWORK)
    names = {}
    for i in (0, 1, 3):
        table_row = {name: columns[name][i].item() for name in columns}
        names[i] = network_rows.operator_table(table_row, load_gpu("T4")).names
    assert "output head" not in names[0]
    for label in ("output head", "final norm"):
        assert label in names[1]
    for label in ("cache write", "sampling"):
        assert all(label not in found for found in names.values())
    assert names[1].count("QKV projection") == 1
    assert {"query projection", "key projection", "value projection"} <= set(names[3])
    # tanh GELU is eight kernels, and the scores are scaled, masked and normalised.
    assert sum(name.startswith("MLP activation") for name in names[1]) == 8
    assert [n for n in names[1] if n.startswith("attention ") and "proj" not in n] == [
        *("attention norm", "attention scores", "attention div_scalar", "attention add_scalar"),
        *("attention softmax", "attention values", "attention residual"),
    ]


def test_lowering_without_a_plain_pass_is_as_before():
    model = rtsim.load_model("gpt3-6.7b")
    parallelism, traits = ParallelismSpec(), StackTraits(attention="unfused")
    served = lower(model, parallelism, traits, 2.0, 8)
    plain = lower(model, parallelism, traits, 2.0, 8, PlainForward())
    assert "sampling" in served.names
    assert set(plain.names) - set(served.names) == {"head layout"}


def test_only_whole_passes_are_predicted(tmp_path):
    columns = columns_of(tmp_path, NETWORK)
    table_row = {name: columns[name][0].item() for name in columns} | {"operator": "attention"}
    with pytest.raises(NotSupported, match="whole models"):
        network_rows.forward_pass(table_row, load_gpu("T4"), load_profile(PROFILE))


def test_power_limits_fp32_only_where_the_board_is_short_of_it():
    t4, v100, a100 = load_gpu("t4"), load_gpu("v100-pcie-32gb"), load_gpu("a100-sxm4-80gb")
    assert sustained_flops_per_s(v100, "fp32", 14e12) == pytest.approx(14e12)
    assert sustained_flops_per_s(a100, "fp32", 19.5e12) == 19.5e12
    assert sustained_flops_per_s(t4, "fp16", 65e12) == 65e12
    # 70 W at the 250 W / 14 TFLOP/s of a V100
    assert sustained_flops_per_s(t4, "fp32", 8.1e12) == pytest.approx(70 / 250 * 14e12)
    more_power = t4.with_(power_w=100.0)
    assert sustained_flops_per_s(more_power, "fp32", 8.1e12) > 70 / 250 * 14e12


# Pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_plot_is_written(tmp_path, suffix, start):
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "gemm.csv", tmp_path / f"picture{suffix}"
    path.write_text(GEMM)
    assert run("validate", str(path), "--profile", PROFILE, "--plot", str(picture)) == 0
    assert picture.read_bytes().startswith(start)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, picture.name])


def test_a_plot_that_cannot_be_is_not_half_written(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "gemm.csv"
    path.write_text(GEMM.replace("A100-SXM4-80GB", "B9000").replace("H100-SXM5-80GB", "B9000"))
    picture = tmp_path / "picture.png"
    picture.write_text("what was there before")
    assert run("validate", str(path), "--profile", PROFILE, "--plot", str(picture)) != 0
    assert picture.read_text() == "what was there before"
    assert run("validate", str(path), "--plot", str(tmp_path / "nowhere" / "p.png")) != 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gemm.csv", "picture.png"]


def test_a_plot_of_another_format_is_refused_before_any_work(tmp_path):
    from rtsim.plots import check_plot_file

    with pytest.raises(SpecError, match="png"):
        check_plot_file(str(tmp_path / "picture.docx"))
    missing = str(tmp_path / "missing.csv")
    assert run("validate", missing, "--plot", str(tmp_path / "picture.docx")) == 2


def run(*arguments: str) -> int:
    """Exit status of the command line."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_200000_rows_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    n = 200_000
    columns = {
        "gpu": rng.choice(np.array(["A100-SXM4-80GB", "H100-SXM5-80GB", "L40S"]), n),
        "stack": rng.choice(np.array(["vllm", "trtllm", "sglang"]), n),
        "dtype": rng.choice(np.array(["bf16", "fp8"]), n),
        "time_us": np.full(n, 100.0),
        **{name: rng.integers(1, 512, n) * 16 for name in ("m", "n", "k")},
        "batch": np.ones(n, np.int64),
    }
    kernel_rows.predict_gemm({k: v[:10] for k, v in columns.items()}, None)  # compile
    start = time.process_time()
    times = kernel_rows.predict_gemm(columns, None)["time"]
    assert time.process_time() - start < 5.0
    assert (times.skip == "").all()
