"""Moving a prompt's cache from the GPUs that computed it to those that decode.

All GPUs of a group send their part at once, as fast as the smaller group: over the network of the
nodes where the GPU names one, else over its link, else over PCIe.
"""

from __future__ import annotations

from rtsim.memory import Placement
from rtsim.specs.gpu import GpuSpec

# Setting up a transfer of a cache between two engines: handshake and page tables (order of
# magnitude; the bytes take far longer).
SETUP_S = 1e-3


def transfer_bytes_per_s(gpu: GpuSpec) -> float:
    """Rate at which one GPU sends a cache to a GPU of another pool."""
    if gpu.network is not None:
        return gpu.network.bytes_per_s
    if gpu.link is not None:
        return gpu.link.bytes_per_s
    return gpu.pcie_bytes_per_s


def transfer_path(gpu: GpuSpec) -> str:
    """What a cache goes over, in words."""
    if gpu.network is not None:
        return "the network"
    return "PCIe" if gpu.link is None else "the link between GPUs"


def group_bytes_per_s(rate: float, sending: int, receiving: int) -> float:
    """Rate of each of `sending` GPUs where `receiving` take the cache, of `rate` each."""
    return rate * min(sending, receiving) / sending


def transfer_s(placement: Placement, input_len: float, receiving: int) -> float:
    """Seconds to send one prompt's cache from its GPUs to `receiving` ones (tensor parallel)."""
    rate = transfer_bytes_per_s(placement.gpu)
    each = group_bytes_per_s(rate, placement.parallelism.tp, receiving)
    return SETUP_S + placement.cache_bytes(input_len) / each
