"""Packaged GPUs against the figures printed in vendors' datasheets (dense, one way)."""

import math

import pytest

from rtsim.catalog import gpu_names, load_gpu, resolve

TERA, GIGA = 1e12, 1e9

# name: (SMs or the like, 16-bit TFLOP/s, fp32 TFLOP/s, memory GB as sold, memory GB/s,
#        link GB/s one way, power W); None: the sheet states none, or there is no link.
Sheet = tuple[int, float | None, float | None, int, float, float | None, float | None]
DATASHEETS: dict[str, Sheet] = {
    # NVIDIA Tesla P100, P4, V100, T4 datasheets
    "p100-pcie-16gb": (56, 18.7, 9.3, 16, 732, None, 250),
    "p4": (20, None, 5.5, 8, 192, None, 75),
    "v100-pcie-16gb": (80, 112, 14.0, 16, 900, None, 250),
    "v100-pcie-32gb": (80, 112, 14.0, 32, 900, None, 250),
    "v100-sxm2-16gb": (80, 125, 15.7, 16, 900, 150, 300),
    "v100-sxm2-32gb": (80, 125, 15.7, 32, 900, 150, 300),
    "t4": (40, 65, 8.1, 16, 320, None, 70),
    # NVIDIA A10, A30, A40, A100, RTX A6000 datasheets
    "a10": (72, 125, 31.2, 24, 600, None, 150),
    "a30": (56, 165, 10.3, 24, 933, 100, 165),
    "a40": (84, 149.7, 37.4, 48, 696, 56.25, 300),
    "rtx-a6000": (84, 154.8, 38.7, 48, 768, 56.25, 300),
    "a100-pcie-40gb": (108, 312, 19.5, 40, 1555, 300, 250),  # with the bridge
    "a100-pcie-80gb": (108, 312, 19.5, 80, 1935, 300, 300),
    "a100-sxm4-40gb": (108, 312, 19.5, 40, 1555, 300, 400),
    "a100-sxm4-80gb": (108, 312, 19.5, 80, 2039, 300, 400),
    # NVIDIA L4, L40S datasheets; Ada and RTX Blackwell white papers (fp32 accumulation)
    "l4": (58, 121, 30.3, 24, 300, None, 72),
    "l40s": (142, 366, 91.6, 48, 864, None, 350),
    "rtx-4090": (128, 165.2, 82.6, 24, 1008, None, 450),
    "rtx-5090": (170, 209.5, 104.8, 32, 1792, None, 575),
    "rtx-pro-6000-server": (188, 467.8, 117, 96, 1597, None, 600),
    # NVIDIA H100, H200, GH200 datasheets; H20 and H800 as published
    "h20": (78, 148, 44, 96, 4000, 450, 400),
    "h800-sxm": (132, 989.4, 67, 80, 3350, 200, 700),
    "h100-pcie-80gb": (114, 756.5, 51, 80, 2039, 300, 350),
    "h100-sxm5-80gb": (132, 989.4, 67, 80, 3350, 450, 700),
    "h100-nvl-94gb": (132, 835.5, 60, 94, 3938, 300, 400),
    "h200-sxm-141gb": (132, 989.4, 67, 141, 4800, 450, 700),
    "h200-nvl-141gb": (132, 835.5, 60, 141, 4800, 450, 600),
    "gh200-96gb": (132, 989.4, 67, 96, 4000, None, 1000),  # alone: the links join modules
    # NVIDIA Blackwell and Blackwell Ultra datasheets
    "b200-hgx-180gb": (148, 2250, 75, 180, 7700, 900, 1000),
    "b300-hgx": (148, 2250, 75, 270, 7700, 900, 1100),
    "gb200-nvl72": (152, 2500, 80, 186, 8000, 900, 1200),
    "gb300-nvl72": (152, 2500, 80, 279, 8000, 900, 1400),
    # AMD Instinct datasheets; MI250X is the whole module
    "mi100": (120, 184.6, 23.1, 32, 1229, 138, 300),
    "mi210": (104, 181, 22.6, 64, 1638, 150, 300),
    "mi250x": (220, 383, 47.9, 128, 3277, 400, 560),
    "mi300x": (304, 1307.4, 163.4, 192, 5300, 448, 750),
    "mi325x": (304, 1307.4, 163.4, 256, 6000, 448, 1000),
    "mi355x": (256, 2516.6, 157.3, 288, 8000, 537.6, 1400),
    # Intel Arc Pro B60, Data Center GPU Max 1550, Gaudi 2 and 3 specifications
    "arc-pro-b60": (20, 98.3, 12.28, 24, 456, None, 200),
    "max-1550": (128, 839, 52.4, 128, 3277, None, 600),
    "gaudi2": (24, 432, None, 96, 2460, 262.5, 600),
    "gaudi3": (64, 1835, None, 128, 3670, 525, 900),
    # Google Cloud TPU and AWS Trainium documentation
    "tpu-v4": (2, 275, None, 32, 1228, 300, 192),
    "tpu-v5e": (1, 197, None, 16, 819, 200, None),
    "tpu-v5p": (2, 459, None, 95, 2765, 600, None),
    "tpu-v6e": (1, 918, None, 32, 1638, 400, None),
    "trainium2": (8, 667, 181, 96, 2900, 640, None),
}
# Of 8-bit and 4-bit rates, TFLOP/s dense: (fp8, int8, fp4).
NARROW = {
    "a100-sxm4-80gb": (None, 624, None),
    "t4": (None, 130, None),
    "l4": (242.5, 242.5, None),
    "l40s": (733, 733, None),
    "h100-sxm5-80gb": (1978.9, 1978.9, None),
    "h20": (296, 296, None),
    "b200-hgx-180gb": (4500, 4500, 9000),
    "b300-hgx": (4500, 150, 14000),
    "gb300-nvl72": (5000, 165, 15000),
    "mi300x": (2614.9, 2614.9, None),
    "mi355x": (5033.2, 5033.2, 10066),
    "gaudi3": (1835, None, None),
    "tpu-v6e": (None, 1836, None),
    "trainium2": (1299, None, None),
}
# GPUs of a node, GPUs that the link joins (1: PCIe only), network GB/s of a GPU (None: none).
SYSTEMS = {
    "DGX A100": (8, 8, 25),
    "HGX H100": (8, 8, 50),
    "DGX H200": (8, 8, 50),
    "DGX B200": (8, 8, 50),
    "HGX B300": (8, 8, 100),
    "h20": (8, 8, 50),
    "h800": (8, 8, 50),
    "mi300x": (8, 8, 50),
    "mi325x": (8, 8, 50),
    "mi355x": (8, 8, 50),
    "gaudi2": (8, 8, 37.5),
    "gaudi3": (8, 8, 75),
    "DGX-1": (8, 8, 6.25),
    "DGX-2": (16, 16, 6.25),
    "GB200 NVL72": (4, 72, 50),
    "GB300 NVL72": (4, 72, 100),
    "gh200": (1, 1, 50),
    "a100-pcie-80gb": (8, 2, None),
    "h100-pcie-80gb": (8, 2, None),
    "h100-nvl-94gb": (8, 2, None),
    "h200-nvl-141gb": (8, 4, None),
    "l40s": (8, 1, 6.25),
    "l4": (8, 1, 1.56),
    "rtx-pro-6000-server": (8, 1, 25),
    "t4": (4, 1, 1.56),
    "max-1550": (6, 1, 33.3),
    "trainium2": (16, 64, 25),
    "tpu-v5e": (8, 256, 3.125),
}
# As people and drivers write them.
SPELLINGS = {
    "P100": "p100-pcie-16gb",
    "Tesla T4": "t4",
    "Tesla V100-SXM2-16GB": "v100-sxm2-16gb",
    "V100 PCIe 32GB": "v100-pcie-32gb",
    "NVIDIA A100-SXM4-80GB": "a100-sxm4-80gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm5-80gb",
    "H100 NVL": "h100-nvl-94gb",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "RTX PRO 6000": "rtx-pro-6000-server",
    "Arc Pro B60": "arc-pro-b60",
    "Max 1550": "max-1550",
    "AMD Instinct MI300X": "mi300x",
    "Gaudi 3": "gaudi3",
    "TPU v5e": "tpu-v5e",
    "Trainium 2": "trainium2",
}


@pytest.mark.parametrize(("name", "sheet"), DATASHEETS.items())
def test_datasheet_figures(name: str, sheet: Sheet) -> None:
    gpu = load_gpu(name)
    sms, peak_16, peak_32, sold_gb, bandwidth, link, power = sheet
    assert gpu.sm_count == sms
    if peak_16 is None:
        assert gpu.peak_16_bit_flops_per_s is None
    else:
        assert gpu.peak_16_bit_flops_per_s == pytest.approx(peak_16 * TERA)
    if peak_32 is not None:
        assert gpu.peak_fp32_flops_per_s == pytest.approx(peak_32 * TERA)
    assert gpu.hbm_bytes_per_s == pytest.approx(bandwidth * GIGA)
    # Sold in GB; devices report GiB, less what ECC takes.
    assert 1.0 <= gpu.memory_bytes / (sold_gb * GIGA) <= 2**30 / GIGA + 1e-3
    assert gpu.power_w == power
    if link is None:
        assert gpu.link is None
    else:
        assert gpu.link is not None
        assert gpu.link.bytes_per_s == pytest.approx(link * GIGA)


@pytest.mark.parametrize(("name", "rates"), NARROW.items())
def test_narrow_rates(name: str, rates: tuple[float | None, ...]) -> None:
    gpu = load_gpu(name)
    for dtype, rate in zip(("fp8", "int8", "fp4"), rates, strict=True):
        stated = gpu.peak_flops_per_s(dtype)
        assert stated == (None if rate is None else pytest.approx(rate * TERA)), dtype


@pytest.mark.parametrize(("name", "system"), SYSTEMS.items())
def test_systems(name: str, system: tuple[int, int, float | None]) -> None:
    gpu = load_gpu(name)
    per_node, joined, network = system
    assert gpu.gpus_per_node == per_node
    assert (gpu.link.domain_size if gpu.link else 1) == joined
    assert gpu.gpus_joined == max(per_node, joined)
    if network is None:
        assert gpu.network is None
    else:
        assert gpu.network is not None
        assert gpu.network.bytes_per_s == pytest.approx(network * GIGA)


@pytest.mark.parametrize(("written", "name"), SPELLINGS.items())
def test_names_as_people_and_drivers_write_them(written: str, name: str) -> None:
    assert resolve("gpus", written) == name


def test_a_link_that_is_no_switch_says_so() -> None:
    """Any pair has the whole rate behind a switch only."""
    for name in gpu_names():
        gpu = load_gpu(name)
        if gpu.link is not None:
            switched = "switch" in gpu.link.name.lower()
            assert (gpu.link.topology == "switch") == switched, name


def test_volta_and_turing_have_no_bf16() -> None:
    for name in ("v100-sxm2-32gb", "v100-pcie-32gb", "t4", "p100-pcie-16gb"):
        assert load_gpu(name).peak_flops_per_s("bf16") is None


def test_only_hopper_ada_and_later_have_fp8() -> None:
    with_fp8 = {n for n in gpu_names() if load_gpu(n).peak_fp8_flops_per_s is not None}
    assert {"h100-sxm5-80gb", "l40s", "b200-hgx-180gb", "mi300x"} <= with_fp8
    assert not with_fp8 & {"a100-sxm4-80gb", "v100-sxm2-32gb", "a40", "mi250", "arc-pro-b60"}


def test_first_amd_matrix_units_have_bf16_at_half_rate() -> None:
    mi100 = load_gpu("mi100")
    assert mi100.peak_bf16_flops_per_s == 92.3e12
    assert mi100.peak_fp16_flops_per_s == 184.6e12


def test_tensor_clock_of_hopper_is_below_its_boost() -> None:
    """989.4 TFLOP/s = 132 SMs * 4096 FLOP per clock * 1830 MHz; boost is 1980 MHz."""
    gpu = load_gpu("h100")
    assert gpu.tensor_clock_hz == 1.83e9
    assert gpu.clock_hz == 1.98e9
    assert load_gpu("a100").tensor_clock_hz == load_gpu("a100").clock_hz == 1.41e9


def test_memory_is_what_the_device_reports() -> None:
    assert load_gpu("a100").memory_bytes == 81920 * 2**20
    assert load_gpu("h200").memory_bytes == 143771 * 2**20


def test_prices_have_a_source_and_a_date() -> None:
    a100 = load_gpu("a100").price
    assert a100 is not None
    assert a100.usd_per_hour == pytest.approx(27.44705 / 8, rel=1e-3)
    assert a100.date == "2026-09-01"
    priced = [name for name in gpu_names() if load_gpu(name).price is not None]
    assert len(priced) >= 37
    for name in priced:
        price = load_gpu(name).price
        assert price is not None
        assert math.isfinite(price.usd_per_hour)
        assert price.source
        assert price.date


def test_every_gpu_says_where_its_figures_are_from() -> None:
    for name in gpu_names():
        provenance = load_gpu(name).provenance
        assert provenance is not None
        assert provenance.kind == "datasheet"
