"""Facts of the device that PyTorch and NVML tell, and what it offers to the designs."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from rtsim.errors import NotSupported, SpecError, nearest_names
from rtsim.measure.attention import CUDNN, EFFICIENT, FLASH, MATH
from rtsim.measure.case import Scope
from rtsim.measure.device import DeviceFacts

DEVICES = ("cuda", "cpu")
_TURING, _AMPERE, _ADA = (7, 5), (8, 0), (8, 9)
_GROUPED_PRODUCTS = (9, 10)  # torch._grouped_mm: Hopper and data-centre Blackwell
_TOY_MEMORY_BYTES = 2 * 2**30


def checked_device(name: str) -> str:
    """The device, if it is one and there.

    Raises SpecError for another name; NotSupported, with what to do, without PyTorch or a GPU.
    """
    if name not in DEVICES:
        raise SpecError(
            "device", name, f"must be one of {', '.join(DEVICES)}",
            nearest=nearest_names(name, DEVICES),
        )  # fmt: skip
    try:
        import torch
    except ImportError:
        raise NotSupported("measuring needs PyTorch: pip install rtsim[measure]") from None
    if name == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        build = f"built for {built}" if built else "a build without GPU support"
        raise NotSupported(
            f"no GPU that PyTorch {torch.__version__} ({build}) can use: measure on a machine with "
            "one, or try the programs at toy sizes with --device cpu"
        )
    return name


def facts_of(device: str) -> tuple[DeviceFacts, Any, Any]:
    """Facts of the first GPU, or of the CPU; and NVML with its handle, None where there is none."""
    import torch

    libraries = {"python": platform.python_version()}
    with suppress(ImportError):
        import triton

        libraries["triton"] = triton.__version__
    if device == "cpu":
        return (
            DeviceFacts(
                name=_cpu_name(), kind="cpu", sm_count=torch.get_num_threads(),
                memory_bytes=_cpu_memory_bytes(), torch=torch.__version__, libraries=libraries,
            ),
            None,
            None,
        )  # fmt: skip
    properties = torch.cuda.get_device_properties(0)
    nvml, gpu = _nvml(properties)
    if torch.backends.cudnn.is_available():
        libraries["cudnn"] = str(torch.backends.cudnn.version())
    with suppress(Exception):  # without it collectives are not measured
        libraries["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    driver, clock_hz, memory_clock_hz, bus_bits, power_w, topology = "", 0.0, 0.0, 0, 0.0, ""
    if gpu is not None:
        driver = _text(_asked(nvml, "nvmlSystemGetDriverVersion") or "")
        clock_hz = 1e6 * (_asked(nvml, "nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_SM) or 0)
        memory_clock_hz = 1e6 * (
            _asked(nvml, "nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_MEM) or 0
        )
        bus_bits = int(_asked(nvml, "nvmlDeviceGetMemoryBusWidth", gpu) or 0)
        power_w = 1e-3 * (_asked(nvml, "nvmlDeviceGetEnforcedPowerLimit", gpu) or 0)
        topology = _topology(nvml, gpu)
    facts = DeviceFacts(
        name=properties.name,
        kind="cuda",
        compute_capability=f"{properties.major}.{properties.minor}",
        sm_count=properties.multi_processor_count,
        clock_hz=clock_hz or 1e3 * getattr(properties, "clock_rate", 0),
        memory_clock_hz=memory_clock_hz,
        memory_bus_bits=bus_bits or getattr(properties, "memory_bus_width", 0),
        memory_bytes=properties.total_memory,
        l2_bytes=getattr(properties, "L2_cache_size", 0),
        power_limit_w=power_w,
        n_gpus=torch.cuda.device_count(),
        topology=topology,
        driver=driver,
        torch=torch.__version__,
        cuda=torch.version.cuda or getattr(torch.version, "hip", "") or "",
        libraries=libraries,
    )
    return facts, nvml, gpu


def scope_of(facts: DeviceFacts) -> Scope:
    """Formats and kernels by compute capability (CUDA programming guide), toy sizes on a CPU.

    >>> scope_of(DeviceFacts("T4", "cuda", compute_capability="7.5")).products
    ('fp32', 'fp16', 'int8_sq')
    """
    if facts.kind == "cpu":
        return Scope(
            products=("fp32", "bf16", "int8_sq"), float_dtype="fp32", attention=FLASH,
            attention_variants=(MATH,), memory_bytes=_TOY_MEMORY_BYTES, toy=True, compiler=False,
            grouped_experts=False, graphs=False,
        )  # fmt: skip
    major, _, minor = facts.compute_capability.partition(".")
    level = (int(major or 0), int(minor or 0))
    products = ["fp32"]
    if level >= _AMPERE:
        products += ["tf32", "bf16"]
    products.append("fp16")
    if level >= _ADA:
        products.append("fp8_static")
    if level >= _TURING:
        products.append("int8_sq")
    if level >= _AMPERE:
        products.append("int4_wo")
    flash = level >= _AMPERE
    variants = (CUDNN, EFFICIENT, MATH) if flash else (MATH,)
    return Scope(
        products=tuple(products),
        float_dtype="bf16" if flash else "fp16",
        attention=FLASH if flash else EFFICIENT,
        attention_variants=variants,
        memory_bytes=float(facts.memory_bytes),
        n_gpus=facts.n_gpus,
        compiler=level >= (7, 0),
        grouped_experts=level[0] in _GROUPED_PRODUCTS,
    )


def _nvml(properties: Any) -> tuple[Any, Any]:
    from rtsim.measure.sampling import nvml_gpu

    return nvml_gpu(0, str(getattr(properties, "uuid", "")))


def _asked(nvml: Any, function: str, *arguments: Any) -> Any:
    """What NVML answers, None where it cannot."""
    try:
        return getattr(nvml, function)(*arguments)
    except (AttributeError, nvml.NVMLError):
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _topology(nvml: Any, gpu: Any) -> str:
    """Empty where NVLink is up (as the datasheet says), else the PCIe generation, "pcie4"."""
    for link in range(18):
        if _asked(nvml, "nvmlDeviceGetNvLinkState", gpu, link):
            return ""
    generation = _asked(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", gpu)
    return f"pcie{generation}" if generation else ""


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"


def _cpu_memory_bytes() -> int:
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _TOY_MEMORY_BYTES
