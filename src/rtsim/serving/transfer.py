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


def transfer_path(gpu: GpuSpec) -> tuple[str, float]:
    """(what a cache goes over, in words; bytes per s from one GPU to a GPU of another pool)."""
    if gpu.network is not None:
        return "the network", gpu.network.bytes_per_s
    if gpu.link is not None:
        return "the link between GPUs", gpu.link.bytes_per_s
    return "PCIe", gpu.pcie_bytes_per_s


def group_bytes_per_s(rate: float, sending: int, receiving: int) -> float:
    """Rate of each of `sending` GPUs where `receiving` take the cache, of `rate` each."""
    return rate * min(sending, receiving) / sending


def transfer_s(placement: Placement, input_len: float, receiving: int) -> float:
    """Seconds to send one prompt's cache from its GPUs to `receiving` ones (tensor parallel)."""
    _, rate = transfer_path(placement.gpu)
    each = group_bytes_per_s(rate, placement.parallelism.tp, receiving)
    return SETUP_S + placement.cache_bytes(input_len) / each
