"""Facts of a GPU as kernel rows take them: the DEVICE row, links, threads, halves of the L2.

Datasheet figures only; nothing here is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import tables

from rtsim.specs.gpu import GpuSpec

# Resident threads of an SM by compute capability (CUDA programming guide, technical
# specifications); 2048 for the data-centre chips from Pascal on.
_THREADS_PER_SM = {"7.5": 1024.0, "8.6": 1536.0, "8.7": 1536.0, "8.9": 1536.0, "12.0": 1536.0}
_THREADS_PER_SM_DATA_CENTRE = 2048.0


def threads_per_sm(compute_capability: str) -> float:
    """Resident threads of one SM, a fact for the MEMORY_BOUND row.

    >>> threads_per_sm("8.9"), threads_per_sm("9.0")
    (1536.0, 2048.0)
    """
    return _THREADS_PER_SM.get(compute_capability, _THREADS_PER_SM_DATA_CENTRE)


# Chips whose L2 is two halves, each caching what its own SMs read (A100, H100 and Blackwell white
# papers): data that all SMs read are there twice.
_L2_PARTITIONS = {"8.0": 2.0, "9.0": 2.0, "10.0": 2.0, "10.3": 2.0}


def l2_partitions(compute_capability: str) -> float:
    """Parts of the L2 that each keep a copy of data that all SMs read, a fact for the GEMM row.

    >>> l2_partitions("8.0"), l2_partitions("8.9")
    (2.0, 1.0)
    """
    return _L2_PARTITIONS.get(compute_capability, 1.0)


# Tensor cores that read shared memory themselves (wgmma, tcgen05) take whole rows of 128 bytes; the
# kernels of those before come in loops of 64-byte steps too (CUTLASS, 16-bit tiles of k = 32).
_WHOLE_STEPS_FROM = 9


def major_capability(compute_capability: str) -> int:
    """Major compute capability; 0 for parts of other vendors.

    >>> major_capability("8.9"), major_capability("gfx942"), major_capability("")
    (8, 0, 0)
    """
    digits = compute_capability.partition(".")[0]
    return int(digits) if digits.isdecimal() else 0


def least_step(compute_capability: str) -> float:
    """Part of a 128-byte step along k in which loops of products are whole, for the GEMM row.

    >>> least_step("8.0"), least_step("9.0"), least_step("gfx942"), least_step("")
    (0.5, 1.0, 1.0, 1.0)
    """
    return 0.5 if 0 < major_capability(compute_capability) < _WHOLE_STEPS_FROM else 1.0


# FLOP per clock of one core, 16 bits, dense: an SM of Hopper; and from where on cores are unlike
# a GPU's (Blackwell's SM does 8,192, a core of a TPU 65,536 and more).
_SM_FLOPS_PER_CLOCK = 4096.0
_LARGE_CORE_FLOPS_PER_CLOCK = 16384.0


def core_count(gpu: GpuSpec) -> float:
    """Cores as kernels share work among them: SMs, or as many as a few large cores are worth.

    Fitted kernels give a tile or a thread block to each of a hundred SMs. A part with a handful of
    large matrix units (TPU, Trainium) is counted as the SMs of Hopper's size that it amounts to.
    """
    peak = gpu.peak_16_bit_flops_per_s
    if peak is None:
        return float(gpu.sm_count)
    per_clock = peak / (gpu.clock_hz * gpu.sm_count)
    if per_clock <= _LARGE_CORE_FLOPS_PER_CLOCK:
        return float(gpu.sm_count)
    return float(round(gpu.sm_count * per_clock / _SM_FLOPS_PER_CLOCK))


def device_row(gpu: GpuSpec) -> NDArray[np.void]:
    """The DEVICE row, shape (), of a GPU's datasheet facts."""
    return record(
        tables.DEVICE,
        sm_count=core_count(gpu),
        clock_hz=gpu.clock_hz,
        hbm_bytes_per_s=gpu.hbm_bytes_per_s,
        l2_bytes=gpu.l2_bytes,
        vector_flops_per_s=gpu.peak_fp32_flops_per_s,
    )


# Board watts per fp32 FLOP/s, by compute capability, of full-power boards: datasheet power over
# datasheet rate of P40, V100-PCIe, A100-PCIe, A40 and L40S. A board of the same generation with
# less power than its rate needs lowers its clock (T4: half the rated clock in long products).
# Crude: the voltage falls with the clock, and short products run before the clock does.
_V100_JOULES = 250.0 / 14.0e12  # Turing is made in the same process
_JOULES_PER_FP32_FLOP = {
    "6.0": 250.0 / 11.8e12,
    "6.1": 250.0 / 11.8e12,
    "7.0": _V100_JOULES,
    "7.5": _V100_JOULES,
    "8.0": 250.0 / 19.5e12,
    "8.6": 300.0 / 37.4e12,
    "8.9": 350.0 / 91.6e12,
}


def sustained_flops_per_s(gpu: GpuSpec, dtype: str, peak_flops_per_s: float) -> float:
    """`peak_flops_per_s`, or less where the power of the board does not carry it for long.

    Only for fp32 on the ordinary cores, where measurements show it; no limit where the power or
    the generation is not known.
    """
    joules = _JOULES_PER_FP32_FLOP.get(gpu.compute_capability)
    if dtype != "fp32" or joules is None or gpu.power_w is None:
        return peak_flops_per_s
    return min(peak_flops_per_s, gpu.power_w / joules)


# Compute capability from which stacks also quantise the queries where the cache is in fp8.
_FP8_MATH_OF_CACHE = (9, 0)


def attention_peak_flops_per_s(gpu: GpuSpec, dtype: str, kv_dtype: str) -> float:
    """Dense peak of the format in which fused attention multiplies.

    dtype: of the queries; kv_dtype: of the cache. 16 bits where the GPU has no fp8 units.
    """
    new = _capability(gpu) >= _FP8_MATH_OF_CACHE
    if dtype.startswith("fp8") or (kv_dtype.startswith("fp8") and new):
        fp8 = gpu.peak_flops_per_s("fp8")
        if fp8 is not None:
            return fp8
    wide = "bf16" if dtype.startswith("fp8") else dtype
    return gpu.peak_flops_per_s(wide) or gpu.peak_16_bit_flops_per_s or gpu.peak_fp32_flops_per_s


def _capability(gpu: GpuSpec) -> tuple[int, int]:
    """Compute capability in numbers; (0, 0) for other vendors' parts."""
    major, _, minor = gpu.compute_capability.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def record(dtype: np.dtype[np.void], **values: float) -> NDArray[np.void]:
    names = dtype.names or ()
    return np.array(tuple(values[name] for name in names), dtype)


def stacked(records: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """Records of one dtype and shape with a new first axis; many times faster than np.array."""
    rows = np.empty((len(records), *records[0].shape), records[0].dtype)
    for row, one in zip(range(len(records)), records, strict=True):
        rows[row] = one
    return rows


# Compute capability from which the switch between GPUs adds and multicasts: NVLink SHARP, of the
# switches for NVLink4 and later.
_MULTICAST = (9, 0)


@dataclass(frozen=True)
class LinkFacts:
    """Facts of a machine for the COLLECTIVE row, in its units."""

    link_bytes_per_s: float
    link_domain: float
    mesh_peers: float
    pcie_bytes_per_s: float
    network_bytes_per_s: float
    multicast: float


def link_facts(
    topology: str,
    *,
    link_bytes_per_s: float,
    link_domain: float,
    pcie_bytes_per_s: float,
    network_bytes_per_s: float,
    mesh_peers: float = 0.0,
    adding_switch: bool = False,
) -> LinkFacts:
    """Facts of a machine with a GPU's datasheet rates and a table's `topology` name.

    Topologies: nvswitch, nvlink-pairs, nvlink-full-mesh-N, pcieN; "" = as the datasheet says,
    which is a mesh where `mesh_peers` is given. `adding_switch`: a switch of it can add.

    >>> facts = link_facts("nvlink-pairs", link_bytes_per_s=3e11, link_domain=8,
    ...                    pcie_bytes_per_s=3.2e10, network_bytes_per_s=2.5e10)
    >>> facts.link_domain, facts.multicast
    (2.0, 0.0)
    """
    domain, mesh, rate = max(1.0, float(link_domain)), 0.0, float(link_bytes_per_s)
    if not topology:
        mesh = mesh_peers
    if topology == "nvlink-pairs":
        domain = 2.0
    elif topology.startswith("nvlink-full-mesh-"):
        domain = float(topology.rpartition("-")[2])
        mesh = domain - 1.0
    elif topology.startswith("pcie"):
        domain, rate = 1.0, 0.0
    switched = mesh == 0.0 and domain > 2.0
    return LinkFacts(
        link_bytes_per_s=rate,
        link_domain=domain,
        mesh_peers=mesh,
        pcie_bytes_per_s=float(pcie_bytes_per_s),
        network_bytes_per_s=float(network_bytes_per_s),
        multicast=float(switched and adding_switch),
    )


def link_facts_of(gpu: GpuSpec, topology: str = "") -> LinkFacts:
    """Facts of the machine that a GPU's datasheet describes; `topology` as in `link_facts`."""
    link = gpu.link
    # A bridge over more than two cards joins each to all others, as a mesh does.
    mesh = link is not None and link.domain_size > 2 and link.topology in ("mesh", "bridge")
    return link_facts(
        topology,
        link_bytes_per_s=link.bytes_per_s if link else 0.0,
        link_domain=link.domain_size if link else 1.0,
        mesh_peers=link.domain_size - 1.0 if link and mesh else 0.0,
        adding_switch=_capability(gpu) >= _MULTICAST,
        pcie_bytes_per_s=gpu.pcie_bytes_per_s,
        network_bytes_per_s=gpu.network.bytes_per_s if gpu.network else gpu.pcie_bytes_per_s,
    )
