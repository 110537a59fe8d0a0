"""Runs on a device that answers at once: budget, faults, resuming; and what a fit makes of them."""

from __future__ import annotations

import errno
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from rtsim.calibrate import calibrate
from rtsim.catalog import load_gpu
from rtsim.cli.main import run
from rtsim.errors import DataError, OutputError, SpecError
from rtsim.measure import all_cases, gemm, measure
from rtsim.measure.case import Case, Scope
from rtsim.measure.collect import collect
from rtsim.measure.device import (
    CaseFault,
    DeviceFacts,
    DeviceLost,
    Measurement,
    OutOfMemory,
    Unsupported,
)
from rtsim.measure.folder import Folder
from rtsim.measure.gpu_file import gpu_name, gpu_toml
from rtsim.measurement_schema import KINDS
from rtsim.measurements import Columns, read_table
from rtsim.profile import load_profile
from rtsim.profile_file import profile_toml
from rtsim.validate import _PREDICTORS, validate

H200 = DeviceFacts(
    name="NVIDIA H200", kind="cuda", compute_capability="9.0", sm_count=132, torch="2.9.0",
    cuda="12.8", driver="570.1", memory_bytes=150_754_820_096, l2_bytes=60 * 2**20,
)  # fmt: skip
SCOPE = Scope(
    products=("bf16",), float_dtype="bf16", attention="sdpa_flash",
    attention_variants=("sdpa_math",), memory_bytes=150e9,
)  # fmt: skip
LAUNCH_S = 5e-6  # of an empty kernel


@dataclass
class FakeDevice:
    """Answers with known times, ten microseconds where it knows none; `before` may raise.

    Its clock runs by `row_s` per case.
    """

    facts: DeviceFacts = H200
    scope: Scope = SCOPE
    times: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    before: Callable[[Case], None] = lambda case: None
    row_s: float = 0.05
    now_s: float = 0.0
    asked: list[Case] = field(default_factory=list)

    def measure(self, case: Case) -> Measurement:
        self.asked.append(case)
        self.now_s += self.row_s
        self.before(case)
        time_s = self.times.get(case.key, 1e-5)
        return Measurement(time_s, spread=0.01, repeats=20, timing="graph", std_s=0.0, error=1e-3,
                           clock_mhz=1755.0, power_w=412.5, throttle="power_cap")  # fmt: skip

    def clock(self) -> float:
        return self.now_s


def few(count: int = 6) -> dict[str, list[Case]]:
    """Some products and the ceilings."""
    cases = all_cases(SCOPE, ("ceilings", "gemm"))
    return {"ceilings": cases["ceilings"], "gemm": cases["gemm"][:count]}


def folder(path: Path, facts: DeviceFacts = H200, retry: bool = False) -> Folder:
    return Folder(path, facts, "h200-sxm-141gb", retry=retry)


def failing_at(number: int, error: Callable[[], BaseException]) -> Callable[[Case], None]:
    count = 0

    def before(case: Case) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise error()

    return before


# Rows --------------------------------------------------------------------------------------------


def test_rows_carry_the_schema_and_their_circumstances(tmp_path: Path) -> None:
    done = collect(FakeDevice(), few(), folder(tmp_path), 100.0)
    assert done.measured == 8
    table = read_table(tmp_path / "gemm.csv")
    assert (table.kind, len(table)) == ("gemm", 7)
    assert set(table.columns["gpu"]) == {"h200-sxm-141gb"}
    assert set(table.columns["stack_version"]) == {"2.9.0"}
    assert set(table.columns["timing"]) == {"graph"}
    assert set(table.columns["residency"]) == {"cold", "warm"}
    np.testing.assert_allclose(table.columns["time_us"], 10.0)
    header, first, *_ = (tmp_path / "gemm.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["tflop_per_s"]) == pytest.approx(2 * 8192.0**3 / 1e-5 * 1e-12, rel=1e-4)
    assert (row["clock_mhz"], row["power_w"], row["throttle"]) == ("1755", "412.5", "power_cap")
    assert (row["device"], row["driver"], row["cuda"]) == ("NVIDIA H200", "570.1", "12.8")
    assert row["measured_at"].startswith("20")
    assert done.throttled == 8


def test_ceilings_come_first_and_are_written_down(tmp_path: Path) -> None:
    device = FakeDevice()
    done = collect(device, few(), folder(tmp_path), 100.0)
    assert {case.family for case in device.asked[:2]} == {"ceilings"}
    written = json.loads((tmp_path / "device.json").read_text())
    assert written["ceilings"] == done.ceilings
    assert done.ceilings["gemm.bf16"] == pytest.approx(2 * 8192.0**3 / 1e-5)
    assert (written["gpu"], written["driver"]) == ("h200-sxm-141gb", "570.1")


def test_families_take_turns_and_fitted_rows_go_before_the_others(tmp_path: Path) -> None:
    device = FakeDevice()
    cases = all_cases(SCOPE, ("ceilings", "gemm", "moe", "launch"))
    collect(device, cases, folder(tmp_path), 1e4, clock=device.clock)
    early = [case.family for case in device.asked[:40]]
    assert early.count("gemm") >= 10
    assert early.count("moe") >= 10
    for family in ("gemm", "moe"):
        roles = [case.role for case in device.asked if case.family == family]
        assert roles == sorted(roles)  # calibration, then validation
    assert len(device.asked) == sum(map(len, cases.values()))


# Budget ------------------------------------------------------------------------------------------


def test_a_run_ends_when_it_was_asked_to(tmp_path: Path) -> None:
    """Rows take forty times what was expected: that is learnt, and the end is kept."""
    device = FakeDevice(row_s=2.0)
    cases = all_cases(SCOPE, ("ceilings", "gemm", "memory_bound"))
    done = collect(device, cases, folder(tmp_path), 60.0, clock=device.clock)
    assert 20 <= done.measured <= 32
    assert device.now_s <= 60.0 + 2.0
    assert done.left == sum(map(len, cases.values())) - done.measured
    assert done.left_s > 60.0


def test_what_is_too_long_is_left_and_the_rest_goes_on(tmp_path: Path) -> None:
    cases = few(4)
    cases["gemm"] = [replace(cases["gemm"][0], setup_s=1e4), *cases["gemm"][1:]]
    done = collect(FakeDevice(), cases, folder(tmp_path), 100.0)
    assert (done.measured, done.left) == (5, 1)
    assert done.left_s > 1e4


# Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(OutOfMemory("tried to allocate 90 GiB"), "out of memory"),
     (Unsupported("no such back end"), "not supported"), (CaseFault("failed", "odd"), "failed")],
)  # fmt: skip
def test_a_fault_of_one_case_is_recorded_and_the_run_goes_on(
    fault: CaseFault, reason: str, tmp_path: Path
) -> None:
    device = FakeDevice(before=failing_at(4, lambda: fault))
    done = collect(device, few(), folder(tmp_path), 100.0)
    assert (done.measured, done.faults) == (7, {reason: 1})
    (entry,) = map(json.loads, (tmp_path / "not_measured.jsonl").read_text().splitlines())
    assert entry["reason"] == reason
    assert entry["details"] == fault.details
    again = FakeDevice()
    assert collect(again, few(), folder(tmp_path), 100.0).before == 8
    assert again.asked == []
    assert collect(again, few(), folder(tmp_path, retry=True), 100.0).measured == 1
    assert not (tmp_path / "not_measured.jsonl").exists()


def test_a_driver_error_ends_the_run_and_keeps_its_rows(tmp_path: Path) -> None:
    device = FakeDevice(before=failing_at(5, lambda: DeviceLost("the driver failed: misaligned")))
    with pytest.raises(DeviceLost, match=r"misaligned \(at gemm: .*\); 4 rows kept in") as caught:
        collect(device, few(), folder(tmp_path), 100.0)
    assert caught.value.exit_status == 1
    failed = device.asked[-1]
    again = FakeDevice()
    done = collect(again, few(), folder(tmp_path), 100.0)
    assert (done.before, done.measured) == (5, 3)  # not that one again
    assert failed.key not in {case.key for case in again.asked}


def test_ctrl_c_keeps_the_rows_and_a_further_run_adds_the_others(tmp_path: Path) -> None:
    device = FakeDevice(before=failing_at(4, KeyboardInterrupt))
    done = collect(device, few(), folder(tmp_path), 100.0)
    assert (done.measured, done.interrupted, done.left) == (3, True, 4)
    again = FakeDevice()
    assert collect(again, few(), folder(tmp_path), 100.0).measured == 5
    assert device.asked[3].key in {case.key for case in again.asked}  # the one under way
    assert len(read_table(tmp_path / "gemm.csv")) == 7


def test_a_full_disk_leaves_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder(tmp_path)
    collect(FakeDevice(), few(2), target, 100.0)
    before = (tmp_path / "gemm.csv").read_bytes()
    real = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[: len(content) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OutputError, match=r"gemm\.csv: no space left on device"):
        collect(FakeDevice(), few(4), folder(tmp_path), 100.0)
    monkeypatch.undo()
    assert (tmp_path / "gemm.csv").read_bytes() == before
    assert collect(FakeDevice(), few(4), folder(tmp_path), 100.0).measured == 2


def test_no_table_is_begun_without_room_for_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError):
        collect(FakeDevice(), few(), folder(tmp_path), 100.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device.json"]


# A folder that is there --------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 25, 200])
def test_a_line_that_was_cut_off_is_measured_again(cut: int, tmp_path: Path) -> None:
    collect(FakeDevice(), few(), folder(tmp_path), 100.0)
    file = tmp_path / "gemm.csv"
    whole = read_table(file)
    file.write_bytes(file.read_bytes()[:-cut])
    done = collect(FakeDevice(), few(), folder(tmp_path), 100.0)
    assert done.measured >= 1
    table = read_table(file)
    assert sorted(table.columns["n"].tolist()) == sorted(whole.columns["n"].tolist())


def test_a_header_without_rows_is_no_table(tmp_path: Path) -> None:
    collect(FakeDevice(), few(), folder(tmp_path), 100.0)
    file = tmp_path / "gemm.csv"
    file.write_bytes(file.read_bytes().split(b"\n")[0][:50])
    folder(tmp_path)
    assert not file.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "NVIDIA L4"}, r"measured with name 'NVIDIA H200', here it is 'NVIDIA L4'"),
     ({"torch": "2.10.0"}, r"measured with torch '2.9.0'")],
)  # fmt: skip
def test_a_folder_of_another_device_or_software_is_refused(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    collect(FakeDevice(), few(), folder(tmp_path), 100.0)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(DataError, match=message):
        folder(tmp_path, replace(H200, **change))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gemm.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"gemm\.csv, line 1: has other columns"):
        folder(tmp_path)
    assert (tmp_path / "gemm.csv").read_text() == "a,b\n1,2\n"
    (tmp_path / "gemm.csv").unlink()
    (tmp_path / "device.json").write_text("[]")
    with pytest.raises(DataError, match="not the description of a device"):
        folder(tmp_path)
    (tmp_path / "device.json").unlink()
    (tmp_path / "not_measured.jsonl").write_text('{"kind": 3}\n')
    with pytest.raises(DataError, match=r"line 1: is no record"):
        folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file exists|not a directory"):
        folder(tmp_path / "file" / "deeper")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"minutes": 0.0}, r"minutes = 0.0: must be in \(0, 1440\]"),
     ({"minutes": float("nan")}, "minutes = nan"),
     ({"only": ["gems"]}, r"only = 'gems': must be of ceilings.*nearest: gemm")],
)  # fmt: skip
def test_faulty_wishes_are_refused_before_anything_is_made(
    arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        measure(tmp_path / "out", device=FakeDevice(), **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# A GPU that the catalogue lacks ------------------------------------------------------------------


def test_names_of_devices_are_found_in_the_catalogue() -> None:
    def found(name: str) -> str:
        return gpu_name(DeviceFacts(name, "cuda"))[0]

    assert found("NVIDIA H100 80GB HBM3") == "h100-sxm5-80gb"
    assert found("NVIDIA A100-SXM4-80GB") == "a100-sxm4-80gb"
    assert found("Tesla T4") == "t4"
    assert found("NVIDIA GeForce RTX 4090") == "rtx-4090"


def test_the_file_of_an_unknown_gpu_describes_it(tmp_path: Path) -> None:
    facts = DeviceFacts(
        'Example "X1"', "cuda", compute_capability="8.9", sm_count=142, clock_hz=2.5e9,
        memory_clock_hz=9e9, memory_bus_bits=384, memory_bytes=48 * 2**30, l2_bytes=96 * 2**20,
        power_limit_w=300.0, torch="2.9", driver="570",
    )  # fmt: skip
    file = tmp_path / "gpu.toml"
    ceilings = {"elementwise.bf16": 7e11, "gemm.bf16": 3e14, "gemm.fp8_static": 5.4e14}
    file.write_text(gpu_toml("example-x1", facts, ceilings, "2026-01-02"))
    gpu = load_gpu(file)
    assert (gpu.name, gpu.aliases) == ("example-x1", ('Example "X1"',))
    assert gpu.architecture == "ada"
    assert gpu.hbm_bytes_per_s == pytest.approx(864e9)  # 2 x 9 GHz x 48 bytes
    assert gpu.peak_bf16_flops_per_s == pytest.approx(1024 * 142 * 2.5e9, rel=1e-3)
    assert gpu.peak_fp8_flops_per_s == pytest.approx(6e14)  # measured over 0.9
    assert gpu.doubts() == ()


def test_a_folder_of_an_unknown_gpu_is_fitted_and_validated_by_its_own_file(
    tmp_path: Path,
) -> None:
    facts = replace(H200, name="Example X2", l2_bytes=50 * 2**20)
    cases = all_cases(SCOPE, ("ceilings", "moe"))
    known = model_times(
        [case for own in cases.values() for case in own], "h200-sxm-141gb", "vllm-h100-sxm5-80gb"
    )
    measure(tmp_path / "out", device=FakeDevice(facts, times=known), minutes=10.0, only=["moe"])
    file = tmp_path / "out" / "gpu.toml"
    assert load_gpu(file).name == "example-x2"
    profile = tmp_path / "P.toml"
    assert run(["calibrate", str(tmp_path / "out"), "--gpu", str(file), "--stack", "pytorch",
                "-o", str(profile), "--json"]) == 0  # fmt: skip
    report = validate(tmp_path / "out", str(profile))
    (moe,) = (f for f in report.files if f.kind == "moe")
    assert moe.skipped == {}
    assert set(moe.metrics["time"].by["gpu"]) == {"example-x2"}
    file.unlink()
    unknown = validate(tmp_path / "out" / "moe.csv", str(profile)).files[0]
    assert list(unknown.skipped.values()) == [59]
    assert "example-x2" in next(iter(unknown.skipped))


# Known truth -------------------------------------------------------------------------------------


def columns_of(cases: Sequence[Case], gpu: str) -> Columns:
    """The table of cases of one kind, times set to one."""
    filled = {"gpu": gpu, "time_us": 1.0, "runtime_s": 1.0, "timing": "graph"}
    columns: Columns = {}
    for column in KINDS[cases[0].kind].columns:
        values = [filled.get(column.name, case.text(column.name)) for case in cases]
        if column.type == "count":
            columns[column.name] = np.array([int(v) for v in values], np.int64)
        elif column.type == "text":
            columns[column.name] = np.array(values, np.str_)
        else:
            columns[column.name] = np.array([float(v or "nan") for v in values])
    return columns


def model_times(cases: Sequence[Case], gpu: str, profile: str) -> dict[tuple[str, ...], float]:
    """Seconds of cases as a profile predicts them; without those that it does not predict."""
    found = {c.key: LAUNCH_S * c.number("kernels") for c in cases if c.kind == "launch"}
    for kind in {case.kind for case in cases} & set(_PREDICTORS):
        own = [case for case in cases if case.kind == kind]
        module, _, function = _PREDICTORS[kind].partition(":")
        predictor = getattr(importlib.import_module(module), function)
        (times,) = predictor(columns_of(own, gpu), profile).values()
        for case, seconds, skip in zip(own, times.predicted_s, times.skip, strict=True):
            if not skip:
                found[case.key] = float(seconds)
    return found


def test_a_fit_of_a_measured_folder_finds_the_truth_again(tmp_path: Path) -> None:
    """Times of a profile whose bandwidth, host and launch are off their priors.

    Written through the run, fitted, and held against rows that the fit did not see.
    """
    base = load_profile("vllm-h100-sxm5-80gb")
    moved = {section: dict(values) for section, values in base.coefficients.items()}
    moved["moe.bf16"] = base.section("moe", "bf16")
    for section in ("gemm.bf16", "attention_decode.bf16", "moe.bf16"):
        moved[section]["hbm_frac"] = 0.78
    moved["memory_bound.general"]["stream_frac"] = 0.8
    moved["host"] = {**base.section("host"), "step_s": 1.5e-4, "launch_s": 6e-6,
                     "prompt_token_s": 1e-8, "prefill_layer_s": 1e-6}  # fmt: skip
    truth = replace(base, name="truth", gpu="h200-sxm-141gb", coefficients=moved)
    file = tmp_path / "truth.toml"
    file.write_text(profile_toml(truth))
    cases = [case for own in all_cases(SCOPE).values() for case in own]
    times = model_times(cases, "h200-sxm-141gb", str(file))
    done = measure(tmp_path / "out", device=FakeDevice(times=times), minutes=1000.0)
    assert done.measured == len(cases)

    result = calibrate(tmp_path / "out", "H200", "pytorch", output=tmp_path / "P.toml")
    found = {s.section: {c.name: c for c in s.coefficients} for s in result.sections}
    for section, name, value in (
        ("gemm.bf16", "hbm_frac", 0.78), ("attention_decode.bf16", "hbm_frac", 0.78),
        ("moe.bf16", "hbm_frac", 0.78), ("memory_bound.general", "stream_frac", 0.8),
        ("host", "launch_s", 6e-6),
    ):  # fmt: skip
        assert found[section][name].value == pytest.approx(value, rel=0.07), (section, name)
    by_file = {Path(f.file).stem: f for f in result.files}
    assert by_file["attention_decode"].skipped == {"kept for validation": 36,
                                                   "not the usual kernel": 6}  # fmt: skip
    assert by_file["generation"].skipped["another stack"] > 100
    assert result.profile.traits.eager_copies
    assert result.profile.traits.logits == "last"

    report = validate(tmp_path / "out", str(tmp_path / "P.toml"))
    most = {"gemm": 0.02, "attention_prefill": 0.02, "attention_decode": 0.02, "moe": 0.02,
            "elementwise": 0.03, "generation": 0.06}  # fmt: skip
    unseen = {f.kind: next(iter(f.metrics.values())).by["role"]["validation"]
              for f in report.files if f.kind in most}  # fmt: skip
    assert set(unseen) == set(most)
    for kind, stats in unseen.items():
        assert stats.rows >= 20, kind
        assert stats.mape < most[kind], (kind, stats)


def test_compiled_and_graphs_take_the_librarys_kernels(tmp_path: Path) -> None:
    cases = all_cases(SCOPE, ("ceilings", "moe", "launch"))
    every = [case for own in cases.values() for case in own]
    times = model_times(every, "h200-sxm-141gb", "vllm-h100-sxm5-80gb")
    measure(tmp_path / "out", device=FakeDevice(times=times), minutes=10.0, only=["moe", "launch"])
    result = calibrate(tmp_path / "out", "H200", "pytorch-graphs")
    assert "moe.bf16" in {s.section for s in result.sections}
    assert result.profile.section("host")["launch_s"] == pytest.approx(LAUNCH_S)
    (launch,) = (f for f in result.files if f.kind == "launch")
    assert launch.used == 3  # those of graphs, not the eager and compiled ones


# The command -------------------------------------------------------------------------------------


def test_the_command_refuses_in_one_line_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    out = str(tmp_path / "out")
    assert run(["measure", "-o", out]) == 2
    assert capsys.readouterr().err == (
        "error: measuring needs PyTorch: pip install rtsim[measure]\n"
    )
    assert run(["measure", "--device", "gpu", "-o", out]) == 2
    assert "device = 'gpu': must be one of cuda, cpu" in capsys.readouterr().err
    assert run(["measure", "--only", "gemm,attn", "-o", out]) == 2
    assert "nearest: attention" in capsys.readouterr().err
    assert run(["measure", "--minutes", "x", "-o", out]) == 2
    assert not (tmp_path / "out").exists()


def test_the_summary_says_what_was_done_and_what_is_left(tmp_path: Path) -> None:
    from rtsim.cli.measure import summary_lines

    device = FakeDevice(before=failing_at(4, lambda: OutOfMemory("90 GiB")))
    cases = few(4)
    cases["gemm"].append(replace(gemm.cases(SCOPE)[20], setup_s=1e5))
    done = collect(device, cases, folder(tmp_path), 100.0)
    text = "\n".join(summary_lines(done, "here"))
    assert text.startswith("here: 5 rows measured in ")
    assert "(elementwise 1, gemm 4), 0 there before" in text
    assert "product of bf16" in text
    assert "not measured: 1, out of memory; such as gemm: " in text
    assert "5 rows with the clock held down" in text
    assert "left: 1 cases, about 1667 minutes more" in text
