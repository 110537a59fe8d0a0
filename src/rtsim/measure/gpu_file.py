"""The GPU of a run: its name in the catalogue, or a file that describes it.

A device that the catalogue knows by its own name ("NVIDIA H200") goes by the catalogue's. For any
other one `gpu.toml` is written into the folder, from what the driver says and what was measured:
rates that the driver does not tell are those of the compute capability at its highest clock, or
the measured ceilings. `rtsim calibrate` and `predict` take the file as --gpu; look it over first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rtsim.catalog import load_gpu
from rtsim.errors import UnknownName
from rtsim.measure.device import DeviceFacts

# Dense 16-bit tensor FLOP per clock and SM, and fp32 ones on the ordinary cores, by compute
# capability: CUDA programming guide (throughput of arithmetic) and the white papers.
_FLOPS_PER_CLOCK = {
    "7.0": (1024, 128), "7.5": (1024, 128), "8.0": (2048, 128), "8.6": (1024, 256),
    "8.9": (1024, 256), "9.0": (4096, 256), "10.0": (8192, 256), "12.0": (1024, 256),
}  # fmt: skip
_FAMILIES = {"6": "pascal", "7": "volta", "9": "hopper", "10": "blackwell", "12": "blackwell"}
_FAMILIES_OF_MINOR = {"7.5": "turing", "8.9": "ada"}
_AMPERE = "8"
# A copy reaches about so much of the DRAM rate (see the fitted stream_frac of the profiles), a
# large product so much of the peak.
_COPY_SHARE, _PRODUCT_SHARE = 0.92, 0.9
_BITS_PER_BYTE = 8.0
_DOUBLE_RATE = 2.0  # transfers per clock that NVML states


def gpu_name(facts: DeviceFacts) -> tuple[str, bool]:
    """Name of the GPU in the rows, and whether the catalogue knows it.

    >>> gpu_name(DeviceFacts("NVIDIA H200", "cuda"))
    ('h200-sxm-141gb', True)
    >>> gpu_name(DeviceFacts("NVIDIA Q9 Max-P", "cuda"))
    ('nvidia-q9-max-p', False)
    """
    if facts.kind != "cpu":
        try:
            found = load_gpu(facts.name)
        except UnknownName:
            found = None
        # A slice of a GPU, or another part of that name, is not the catalogue's.
        if found and facts.sm_count in (0, found.one_device().sm_count):
            return found.name, True
    slug = re.sub(r"[^a-z0-9]+", "-", facts.name.lower()).strip("-")
    return slug or facts.kind, False


def gpu_toml(name: str, facts: DeviceFacts, ceilings: Mapping[str, float], date: str) -> str:
    """The description of a GPU that the catalogue lacks.

    ceilings: measured work per second, "gemm.bf16" or "elementwise.bf16". date: of the run.
    """
    lines = [f"# {facts.name}, as its driver and measurements tell; look it over.",
             f'name = "{name}"', f'aliases = ["{_quoted(facts.name)}"]']  # fmt: skip
    if facts.kind == "cuda":
        lines += ['vendor = "NVIDIA"', f'architecture = "{_family(facts.compute_capability)}"',
                  f'compute_capability = "{facts.compute_capability}"']  # fmt: skip
    lines += ["", f"sm_count = {max(facts.sm_count, 1)}"]
    if facts.clock_hz:
        lines.append(f'clock_hz = "{facts.clock_hz / 1e6:.0f} MHz"  # highest')
    lines.append(f"memory_bytes = {max(facts.memory_bytes, 10**8)}")
    lines.append(_memory_rate(facts, ceilings))
    if facts.l2_bytes:
        lines.append(f"l2_bytes = {facts.l2_bytes}")
    lines += _rates(facts, ceilings)
    if facts.power_limit_w:
        lines.append(f'power_w = "{facts.power_limit_w:.0f} W"  # limit of the board as set')
    lines += ["", "[provenance]", 'kind = "measured"',
              f'source = "rtsim measure: driver {facts.driver or "unknown"}, PyTorch '
              f'{facts.torch}"', f'date = "{date}"', 'confidence = "low"']  # fmt: skip
    return "\n".join(lines) + "\n"


def _memory_rate(facts: DeviceFacts, ceilings: Mapping[str, float]) -> str:
    if facts.memory_clock_hz and facts.memory_bus_bits:
        rate = _DOUBLE_RATE * facts.memory_clock_hz * facts.memory_bus_bits / _BITS_PER_BYTE
        return f'hbm_bytes_per_s = "{rate / 1e9:.0f} GB/s"  # memory clock x bus'
    copies = [rate for key, rate in ceilings.items() if key.startswith("elementwise.")]
    rate = max(copies, default=1e9) / _COPY_SHARE
    return f'hbm_bytes_per_s = "{rate / 1e9:.4g} GB/s"  # measured copy / {_COPY_SHARE}'


def _rates(facts: DeviceFacts, ceilings: Mapping[str, float]) -> list[str]:
    known = _FLOPS_PER_CLOCK.get(facts.compute_capability)
    lines = []
    if known is not None and facts.clock_hz and facts.sm_count:
        per_clock = facts.clock_hz * facts.sm_count
        dtypes = ("fp16",) if facts.compute_capability.startswith("7.") else ("fp16", "bf16")
        for name, flops in (*((d, known[0]) for d in dtypes), ("fp32", known[1])):
            lines.append(
                f'peak_{name}_flops_per_s = "{flops * per_clock / 1e12:.4g} TFLOP/s"  '
                f"# {flops} per clock and SM"
            )
    stated = " ".join(lines)
    for key, rate in ceilings.items():
        kind, _, dtype = key.partition(".")
        field = f"peak_{_FIELD_OF.get(dtype, dtype)}_flops_per_s"
        if kind == "gemm" and field not in stated and dtype != "int4_wo":
            lines.append(
                f'{field} = "{rate / _PRODUCT_SHARE / 1e12:.4g} TFLOP/s"  '
                f"# measured / {_PRODUCT_SHARE}"
            )
    return lines


_FIELD_OF = {"fp8_static": "fp8", "int8_sq": "int8"}


def _family(compute_capability: str) -> str:
    if compute_capability in _FAMILIES_OF_MINOR:
        return _FAMILIES_OF_MINOR[compute_capability]
    major = compute_capability.partition(".")[0]
    return "ampere" if major == _AMPERE else _FAMILIES.get(major, "unknown")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
