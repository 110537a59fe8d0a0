"""The programs themselves, on the CPU at toy sizes. Skipped where PyTorch is not installed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed (extra: measure)")

from rtsim.cli.main import run  # noqa: E402
from rtsim.errors import NotSupported  # noqa: E402
from rtsim.measure import (  # noqa: E402
    all_cases,
    attention,
    gemm,
    generation,
    measure,
    memory_bound,
    moe,
    timing,
)
from rtsim.measure.case import CALIBRATION, COLD, VALIDATION, WARM, Case  # noqa: E402
from rtsim.measure.decoder import Shape, decoder_layer, make, reference_logits  # noqa: E402
from rtsim.measure.device import DeviceLost, OutOfMemory, Unsupported, WrongResult  # noqa: E402
from rtsim.measure.program import Program  # noqa: E402
from rtsim.measure.torch_device import PROGRAMS, TorchDevice, _fault_of  # noqa: E402
from rtsim.measure.torch_formats import deviation, random, tolerance  # noqa: E402
from rtsim.measurements import read_table  # noqa: E402


@pytest.fixture(scope="module")
def device() -> TorchDevice:
    torch.set_num_threads(1)
    return TorchDevice("cpu")


def one_of_each(device: TorchDevice) -> list[Case]:
    """A case of every kind of program."""
    found: dict[object, Case] = {}
    for family, cases in all_cases(device.scope).items():
        for case in cases:
            names = ("op", "dtype", "kernel", "model", "query_tokens")
            decode = case.kind == "attention_decode"
            place = (family, decode, *(case.values.get(n) for n in names[:4]))
            found.setdefault(place, case)
    return list(found.values())


def test_every_program_computes_what_it_says(device: TorchDevice) -> None:
    cases = one_of_each(device)
    assert {case.family for case in cases} >= {
        "ceilings", "gemm", "attention", "memory_bound", "moe", "launch", "generation",
    }  # fmt: skip
    for case in cases:
        program = PROGRAMS[case.family](case, "cpu", 2 if case.cold else 1)
        if case.kind == "launch":
            assert program.error is None
            continue
        assert program.error is not None
        assert program.error() <= program.tolerance, case
        if case.cold and case.rotated_bytes:
            assert len(program.calls) == 2


@pytest.mark.parametrize("op", ["rope", "silu_and_mul"])
def test_references_of_fused_operators_agree_with_library_operators(op: str) -> None:
    reference = memory_bound._references()[op]
    if op == "silu_and_mul":
        x = random((3, 8), torch.float64, "cpu")
        expected = torch.nn.functional.silu(x[:, :4]) * x[:, 4:]
        assert deviation(reference(x), expected) < 1e-12
        return
    x = random((5, 2, 8), torch.float64, "cpu")
    angle = torch.rand((5, 1, 4), dtype=torch.float64)
    turned = torch.view_as_real(
        torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    )
    expected = torch.cat((turned[..., 0], turned[..., 1]), dim=-1)
    assert deviation(reference(x, angle.cos(), angle.sin()), expected) < 1e-12


def test_attention_is_checked_with_its_window() -> None:
    q, k, v = (random((1, 2, 12, 8), torch.float32, "cpu") for _ in range(3))
    places = torch.arange(12)
    near = (places[:, None] >= places) & (places[:, None] - places < 4)
    windowed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near)
    assert attention._error(windowed, q, k, v, 4) < 1e-5
    assert attention._error(windowed, q, k, v, 0) > 1e-2


def test_a_wrong_result_gives_no_row(device: TorchDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any operator that answers with something slightly else is caught."""

    def off_by_a_thousandth(case: Case, name: str, copies: int) -> Program:
        x, w = random((8, 64), torch.float32, name), random((64, 64), torch.float32, name)
        wrong = x @ w.t() * 1.001
        return Program([lambda: wrong], lambda: gemm._error(wrong, x, w), tolerance("fp32", 64))

    monkeypatch.setitem(PROGRAMS, "gemm", off_by_a_thousandth)
    with pytest.raises(WrongResult, match=r"wrong result: error 0\.00\d+"):
        device.measure(all_cases(device.scope)["gemm"][0])


def test_numbers_that_are_none_are_wrong(device: TorchDevice) -> None:
    assert deviation(torch.full((2, 2), math.nan), torch.ones(2, 2)) == math.inf


def test_data_is_random_and_rotated_sets_differ(device: TorchDevice) -> None:
    size = {"m": 4, "n": 64, "k": 128, "batch": 1}
    case = gemm.case_of("fp32", "linear", size, CALIBRATION, COLD)
    program = gemm.program(case, "cpu", 3)
    results = [call() for call in program.calls]
    assert len(results) == 3
    assert float((results[0] - results[1]).abs().max()) > 0.1
    assert all(float(r.std()) > 1.0 for r in results)
    warm = gemm.case_of("fp32", "linear", size, CALIBRATION, WARM)
    assert (device.copies(case), device.copies(warm)) == (2, 1)


def test_sets_of_operands_fill_the_cache_but_not_the_memory(device: TorchDevice) -> None:
    facts = replace(device.facts, l2_bytes=50 * 2**20)
    scope = replace(device.scope, memory_bytes=80e9)
    made = object.__new__(TorchDevice)
    made._facts, made._scope = facts, scope

    def copies(n: int, k: int) -> int:
        size = {"m": 1, "n": n, "k": k, "batch": 1}
        return made.copies(gemm.case_of("bf16", "linear", size, CALIBRATION, COLD))

    assert copies(128, 128) == 32  # as many as the calls of a replay
    assert copies(4096, 4096) == 5  # 32 MiB each: 150 MiB
    assert copies(16384, 16384) == 2
    made._scope = replace(scope, memory_bytes=1e9)
    assert copies(16384, 16384) == 1


# Models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [Shape("gpt", 2, 64, 4, 4, 96, 50, gated_mlp=0), Shape("llama", 3, 64, 4, 2, 96, 50)],
    ids=lambda shape: shape.model,
)
def test_steps_with_a_cache_agree_with_one_pass_over_everything(shape: Shape) -> None:
    decoder = make(shape, "fp32", "cpu")
    decoder.allocate(1, 9)
    tokens = torch.randint(0, 50, (1, 9))
    logits = decoder.forward(tokens[:, :6], 0)
    for place in range(6, 9):
        logits = decoder.forward(tokens[:, place : place + 1], place)
    assert deviation(logits, reference_logits(decoder, tokens)) < 1e-4
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % 50  # the first token matters for the last logits
    assert deviation(logits, reference_logits(decoder, other)) > 1e-3


def test_steps_from_graphs_are_those_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step reads the token of the one before and attends to its own context."""

    class Replayed:
        def __init__(self, calls: list[Any]) -> None:
            self.calls = calls
            self.replay()  # the warm-up before a capture

        def replay(self) -> None:
            for call in self.calls:
                call()

    monkeypatch.setattr(timing, "captured", lambda calls, pool=None: Replayed(calls))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    decoder = make(Shape("llama", 2, 64, 4, 2, 96, 50), "fp32", "cpu")
    decoder.allocate(2, 16)
    for _ in range(3):
        tokens = torch.randint(0, 50, (2, 8))
        replayed = generation._with_graphs(decoder, tokens, 9)()[0]
        assert len(replayed) == 9
        assert replayed == generation._one_by_one(decoder, tokens, 9)()[0]


def test_parameters_of_a_shape_are_those_of_its_weights() -> None:
    for shape in (
        Shape("gpt", 2, 64, 4, 4, 96, 50, gated_mlp=0),
        Shape("llama", 3, 64, 4, 2, 96, 50),
        Shape("mixtral", 2, 64, 4, 2, 96, 50, num_experts=4, top_k=2),
    ):
        decoder = make(shape, "fp32", "cpu")
        matrices = [w for layer in decoder.layers for name, w in layer.items()
                    if w.dim() > 1 and name != "router"]  # fmt: skip
        ends = {id(w): w for w in decoder.ends.values() if w.dim() > 1}
        assert sum(w.numel() for w in [*matrices, *ends.values()]) == shape.parameters


def test_experts_agree_with_tokens_one_by_one() -> None:
    x, logits = random((6, 16), torch.float32, "cpu"), torch.randn(6, 4)
    up, down = random((4, 16, 24), torch.float32, "cpu"), random((4, 12, 16), torch.float32, "cpu")

    def product(rows: Any, weights: Any, ends: Any) -> Any:
        starts = [0, *ends.tolist()]
        return torch.cat([rows[a:b] @ w for a, b, w in zip(starts, ends, weights, strict=False)])

    assert moe._error(x, logits, up, down, 2, product) < 1e-5
    assert (
        moe._error(x, logits, up.flip(0), down, 2, lambda r, w, e: product(r, w.flip(0), e)) > 1e-2
    )


def test_a_layer_needs_no_module_to_keep_its_input() -> None:
    """The residual stream is not written to in place."""
    shape = Shape("llama", 1, 32, 2, 2, 48, 20)
    decoder = make(shape, "fp32", "cpu")
    decoder.allocate(1, 4)
    x = random((1, 4, 32), torch.float32, "cpu")
    before = x.clone()
    keys, values = decoder.cache[0]
    decoder_layer(x, decoder.layers[0], keys, values, 0, True, False, decoder.angles, shape)
    assert torch.equal(x, before)


# Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "alive", "expected"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"), True, OutOfMemory),
        (RuntimeError("No available kernel. Aborting execution."), True, Unsupported),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling"), True, Unsupported),
        (NotImplementedError("'silu' for Float8"), True, Unsupported),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, DeviceLost),
    ],
)
def test_errors_of_the_library_are_told_apart(
    error: Exception, alive: bool, expected: type[Exception]
) -> None:
    assert type(_fault_of(error, alive=alive)) is expected


def test_a_format_without_kernels_is_recorded_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "_int_mm", None)
    done = measure(tmp_path, device_name="cpu", minutes=1.0, only=["ceilings"])
    assert done.faults == {"not supported": 1}
    assert "int8_sq" in done.examples["not supported"]
    assert set(done.ceilings) == {"elementwise.fp32", "gemm.fp32", "gemm.bf16"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotSupported, match="no GPU that PyTorch"):
        TorchDevice("cuda")
    assert run(["measure", "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no GPU that PyTorch")
    assert "--device cpu" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# The whole way -----------------------------------------------------------------------------------


def test_a_folder_measured_on_the_cpu_goes_through_calibrate_and_validate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, profile = str(tmp_path / "out"), str(tmp_path / "P.toml")
    arguments = ["--device", "cpu", "--minutes", "1", "-o", out]
    assert run(["measure", "--only", "gemm,generation,launch", *arguments]) == 0
    first = capsys.readouterr().out
    assert "rows measured in" in first
    kinds = {"gemm", "generation", "launch", "elementwise"}
    assert {p.stem for p in (tmp_path / "out").glob("*.csv")} == kinds
    for kind in kinds:
        table = read_table(tmp_path / "out" / f"{kind}.csv")
        assert table.kind == kind
        assert set(table.columns["stack"]) == {"pytorch"}
        if kind != "launch":
            assert VALIDATION in table.columns["role"] or kind == "elementwise"
    gpu = str(tmp_path / "out" / "gpu.toml")
    assert run(["calibrate", out, "--gpu", gpu, "--stack", "pytorch", "-o", profile, "--json"]) == 0
    capsys.readouterr()
    assert run(["validate", out, "--profile", profile, "--json"]) == 0
    report = capsys.readouterr().out
    assert '"validation"' in report
    assert "unknown GPU" not in report
    assert run(["measure", "--only", "gemm,generation,launch", *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 0 rows measured")
