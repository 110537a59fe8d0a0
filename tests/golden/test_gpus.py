"""Packaged GPUs against the figures printed in vendors' datasheets (dense, one way)."""

import pytest

from rtsim.catalog import gpu_names, load_gpu

TERA, GIGA = 1e12, 1e9

# name: (SMs, 16-bit TFLOP/s, fp32 TFLOP/s, memory GB/s, link GB/s one way, power W)
DATASHEETS = {
    "a100-sxm4-80gb": (108, 312, 19.5, 2039, 300, 400),  # NVIDIA A100 datasheet
    "a100-sxm4-40gb": (108, 312, 19.5, 1555, 300, 400),  # the same
    "a100-pcie-80gb": (108, 312, 19.5, 1935, 300, 300),  # the same, with bridge
    "a100-pcie-40gb": (108, 312, 19.5, 1555, 300, 250),  # the same
    "v100-sxm2-32gb": (80, 125, 15.7, 900, 150, 300),  # NVIDIA V100 datasheet
    "v100-pcie-16gb": (80, 112, 14.0, 900, None, 250),  # the same
    "t4": (40, 65, 8.1, 320, None, 70),  # NVIDIA T4 datasheet
    "h100-sxm5-80gb": (132, 989.4, 67, 3350, 450, 700),  # NVIDIA H100 datasheet
    "h100-pcie-80gb": (114, 756.5, 51, 2039, 300, 350),  # the same
    "h200-sxm-141gb": (132, 989.4, 67, 4800, 450, 700),  # NVIDIA H200 datasheet
    "b200-hgx-180gb": (148, 2250, 75, 7700, 900, 1000),  # NVIDIA Blackwell datasheet
    "l40s": (142, 366, 91.6, 864, None, 350),  # NVIDIA L40S datasheet
    "a40": (84, 149.7, 37.4, 696, 56.25, 300),  # NVIDIA A40 datasheet
    "mi300x": (304, 1307.4, 163.4, 5300, 448, 750),  # AMD MI300X datasheet
}


@pytest.mark.parametrize(("name", "sheet"), DATASHEETS.items())
def test_datasheet_figures(name: str, sheet: tuple[float | None, ...]) -> None:
    gpu = load_gpu(name)
    sms, peak_16, peak_32, bandwidth, link, power = sheet
    assert gpu.sm_count == sms
    assert gpu.peak_flops_per_s("fp16") == pytest.approx(peak_16 * TERA)
    assert gpu.peak_fp32_flops_per_s == pytest.approx(peak_32 * TERA)
    assert gpu.hbm_bytes_per_s == pytest.approx(bandwidth * GIGA)
    assert gpu.power_w == power
    if link is None:
        assert gpu.link is None
    else:
        assert gpu.link is not None
        assert gpu.link.bytes_per_s == pytest.approx(link * GIGA)


def test_volta_and_turing_have_no_bf16() -> None:
    for name in ("v100-sxm2-32gb", "v100-pcie-32gb", "t4", "p100-pcie-16gb"):
        assert load_gpu(name).peak_flops_per_s("bf16") is None


def test_only_hopper_ada_and_later_have_fp8() -> None:
    with_fp8 = {n for n in gpu_names() if load_gpu(n).peak_fp8_flops_per_s is not None}
    assert {"h100-sxm5-80gb", "l40s", "b200-hgx-180gb", "mi300x"} <= with_fp8
    assert not with_fp8 & {"a100-sxm4-80gb", "v100-sxm2-32gb", "a40", "mi250", "arc-pro-b60"}


def test_tensor_clock_of_hopper_is_below_its_boost() -> None:
    """989.4 TFLOP/s = 132 SMs * 4096 FLOP per clock * 1830 MHz; boost is 1980 MHz."""
    gpu = load_gpu("h100")
    assert gpu.tensor_clock_hz == 1.83e9
    assert gpu.clock_hz == 1.98e9
    assert load_gpu("a100").tensor_clock_hz == load_gpu("a100").clock_hz == 1.41e9


def test_memory_is_what_the_device_reports() -> None:
    assert load_gpu("a100").memory_bytes == 81920 * 2**20
    assert load_gpu("h200").memory_bytes == 143771 * 2**20


def test_nodes_and_prices() -> None:
    a100 = load_gpu("a100")
    assert a100.gpus_per_node == 8
    assert a100.network is not None
    assert a100.network.bytes_per_s == 25e9
    assert a100.price is not None
    assert a100.price.usd_per_hour == pytest.approx(27.44705 / 8, rel=1e-3)
    assert a100.price.date == "2026-09-01"
    assert load_gpu("gb200").link.domain_size == 72


def test_every_gpu_says_where_its_figures_are_from() -> None:
    for name in gpu_names():
        provenance = load_gpu(name).provenance
        assert provenance is not None
        assert provenance.kind == "datasheet"
