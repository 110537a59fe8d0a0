"""Collective operations: smallest of candidate algorithms, each latency against wire time.

Sizes are counted as nccl-tests does: the buffer of each GPU for an all-reduce, the gathered
output of an all-gather, the whole input of a reduce-scatter or an all-to-all, the message of a
send. With n ranks and a message of B bytes each GPU must move over its link at least

    all-reduce                                   2 (n-1)/n B   (B where the switch adds)
    all-gather, reduce-scatter, all-to-all         (n-1)/n B
    send and receive                                       B

Candidates, each only up to the size to which the software uses it (taking a candidate away as
messages grow keeps the time monotone in bytes):

    one-shot       every GPU reads every other's whole buffer: one barrier, (n-1) B
    two-shot       direct reduce-scatter and all-gather: two barriers, 2 (n-1)/n B
    ring, one channel   s hops, s = 2(n-1) for an all-reduce, n-1 for its halves; a flag with each
                   word, so half of the rate, and one block of threads moves each chunk
    ring, flags    all channels, a flag in each line: latency a quarter higher, a third to a half
                   of the rate; up to flag_limit_s * (1 + s) of wire time at the full rate
    ring, bulk     several us more per hop, nearly the full rate; the own chunk is copied once
    tree           all-reduce only: two bulk hops, 2 B
    in-switch      all-reduce only: (n+1)/(n-1) B at the switch's own efficiency

and T = (latency^p + wire^p)^(1/p): the crossover is soft because short messages do not fill the
pipeline of chunks (p below 1). The first two are a stack's own kernels, the others the library's.

Links. Ranks joined by NVLink or an equal see its rate; a mesh splits that rate over the peers.
Larger groups leave the link domain and cross PCIe: a ring of n ranks in domains of d crosses it
n/d times, and where crossings share one host path the rate falls with (crossings/2)^sharing.
Between nodes the slow edge is the network; rates of the ranks of a node add up to network_ports.

Launched eagerly (`staged`), a call takes no less than the host needs to issue it, and the
wrapper copies the buffer once more. In a captured graph neither happens.

Ignored: contention with other traffic, rail layout, stragglers, copy engines. Time may fall as
ranks grow: the library leaves the flags later, a mesh opens more links, the switch adds more.

Sources: NCCL documentation (algorithms, protocols, bus bandwidth), the all-reduce of vLLM and
SGLang, fits. Known error on rows outside the fit (64 fitted rows per GPU and stack version, mean
over A100, H100, B200, L40S): library on NVLink 8 %, on PCIe 12 %; own kernels captured or eager
4-8 % (A100, H100), 8-14 % (B200), 5-14 % (L40S); profiled PyTorch calls 7-16 %, where small
messages wait for other ranks and vary threefold. On a GPU left out 11-35 %: base latencies
differ by up to a factor of two between GPUs (A100 8.9, B200 7.0, H100 5.1 us) for no stated cause.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import tables
from ._jit import inner, jit

ALL_REDUCE = 0
ALL_GATHER = 1
REDUCE_SCATTER = 2
ALL_TO_ALL = 3
SEND_RECV = 4
OPERATION_NAMES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "send_recv")

WORD_FLAG_SHARE = 0.5  # four bytes of data in every eight: the protocol for small messages

_C = tables.Coefficient

# Facts of the machine and of the software, not fitted.
COLLECTIVE_FACTS = (
    ("link_bytes_per_s", np.float64),  # all GPU-to-GPU links of one GPU, one way; 0 = PCIe only
    ("link_domain", np.float64),  # GPUs joined by that link within a node (1 = PCIe only)
    ("mesh_peers", np.float64),  # peers over which a mesh splits the link; 0 = switched
    ("pcie_bytes_per_s", np.float64),  # one way per GPU
    ("network_bytes_per_s", np.float64),  # one way per GPU, between nodes
    ("multicast", np.float64),  # 1 = the switch can add and multicast
    ("direct_limit_bytes", np.float64),  # largest message taken by one-shot and two-shot kernels
    ("staged", np.float64),  # 1 = called alone from the host: issue time, one more buffer copy
)

COLLECTIVE_COEFFICIENTS = (
    _C("direct_floor_s", 3.5e-6, 0.4, 0.5e-6, 2e-5, "s", "direct kernel: start and one barrier"),
    _C("direct_peer_s", 0.15e-6, 0.6, 0.01e-6, 3e-6, "s", "per peer of a barrier or of a send"),
    _C("direct_frac", 0.7, 0.2, 0.05, 1.0, "of link rate", "rate of direct peer access"),
    _C("ring_floor_s", 6.0e-6, 0.4, 0.5e-6, 3e-5, "s", "library kernel: start and end"),
    _C("ring_hop_s", 0.9e-6, 0.5, 0.1e-6, 1e-5, "s", "per hop, flag-based protocols"),
    _C("fill_frac", 0.25, 0.4, 0.01, 2.0, "1", "latency added by spreading over all channels"),
    _C("block_bytes_per_clock", 3.3, 0.2, 0.3, 30.0, "B/clock", "one channel, flag with each word"),
    _C("bulk_hop_s", 6.0e-6, 0.4, 0.1e-6, 6e-5, "s", "per hop, bulk protocol, on top"),
    _C("peer_bulk_s", 6.0e-6, 0.4, 0.1e-6, 6e-5, "s", "send or all-to-all, bulk protocol, on top"),
    _C("flag_frac", 0.4, 0.4, 0.02, 1.0, "of link rate", "rate with flags in each line"),
    _C("bulk_frac", 0.8, 0.1, 0.3, 1.0, "of link rate", "rate of the bulk protocol"),
    _C("tree_frac", 0.65, 0.2, 0.1, 1.0, "of link rate", "rate of the tree all-reduce"),
    _C("copy_frac", 1.5, 0.5, 0.2, 20.0, "of link rate", "rate at which the own chunk is copied"),
    _C(
        "flag_limit_s",
        1.1e-6,
        0.2,
        1e-7,
        1e-4,
        "s",
        "flags are used up to this wire time per hop and one more",
    ),
    _C("switch_frac", 0.7, 0.2, 0.1, 1.0, "of link rate", "rate of in-switch reduction"),
    _C("pcie_frac", 0.75, 0.3, 0.05, 1.0, "of PCIe rate", "rate between GPUs over PCIe"),
    _C("sharing", 0.5, 1.0, 0.01, 2.5, "1", "how far PCIe crossings share one host path"),
    _C("network_frac", 0.75, 0.3, 0.02, 1.0, "of network rate", "rate between nodes"),
    _C("network_ports", 8.0, 0.7, 0.5, 64.0, "GPUs", "GPUs of a node whose network rates add up"),
    _C("network_hop_s", 12e-6, 0.6, 1e-6, 2e-4, "s", "per hop between nodes"),
    _C("crossover", 0.9, 0.1, 0.4, 2.0, "1", "exponent p of latency against wire time"),
    _C("issue_s", 25e-6, 0.5, 1e-7, 2e-4, "s", "host time of an eager call of the own kernel"),
    _C("library_issue_s", 35e-6, 0.5, 1e-7, 4e-4, "s", "host time of an eager call of the library"),
)

COLLECTIVE = np.dtype([*COLLECTIVE_FACTS, *((c.name, np.float64) for c in COLLECTIVE_COEFFICIENTS)])


@inner
def wire_bytes(op: int, message_bytes: float, ranks: float) -> float:
    """Bytes that each GPU must send: the bus-bandwidth convention of nccl-tests."""
    if op == ALL_REDUCE:
        return 2.0 * (ranks - 1.0) / ranks * message_bytes
    if op == SEND_RECV:
        return message_bytes
    return (ranks - 1.0) / ranks * message_bytes


@inner
def _meet(latency_s: float, wire_s: float, exponent: float) -> float:
    """p-norm of latency and wire time."""
    if wire_s <= 0.0:
        return latency_s
    large = max(latency_s, wire_s)
    small = min(latency_s, wire_s)
    return large * (1.0 + (small / large) ** exponent) ** (1.0 / exponent)


@inner
def _node_rate(ranks: float, collective: Any) -> float:
    """Full one-way rate per GPU between `ranks` GPUs of one node, bytes/s, efficiency not in.

    Over PCIe the achieved fraction and the sharing of host paths are in.
    """
    if collective.link_bytes_per_s > 0.0 and ranks <= collective.link_domain:
        if collective.mesh_peers > 0.0:
            return collective.link_bytes_per_s * min(1.0, (ranks - 1.0) / collective.mesh_peers)
        return collective.link_bytes_per_s
    crossings = max(2.0, ranks / max(1.0, collective.link_domain))
    return (
        collective.pcie_bytes_per_s * collective.pcie_frac / (crossings / 2.0) ** collective.sharing
    )


@inner
def _hops(op: int, ranks: float) -> float:
    if op == ALL_REDUCE:
        return 2.0 * (ranks - 1.0)
    if op in (ALL_GATHER, REDUCE_SCATTER):
        return ranks - 1.0
    return 1.0


@inner
def _library_s(
    op: int,
    message_bytes: float,
    ranks: float,
    rate: float,
    extra_s: float,
    collective: Any,
    device: Any,
) -> tuple[float, float]:
    """Library path (rings, trees; pairs for all-to-all and sends): (seconds, latency part)."""
    c = collective
    hops = _hops(op, ranks)
    wire_s = wire_bytes(op, message_bytes, ranks) / rate
    flag_latency_s = c.ring_floor_s + hops * c.ring_hop_s + extra_s
    paired = op in (ALL_TO_ALL, SEND_RECV)
    chunk_bytes = message_bytes
    if op != SEND_RECV:
        chunk_bytes = message_bytes / ranks
    copied_s = 0.0
    if op != SEND_RECV:
        copied_s = chunk_bytes / (rate * c.copy_frac)
    if paired:
        flag_latency_s += (ranks - 1.0) * c.direct_peer_s
        bulk_latency_s = flag_latency_s + c.peer_bulk_s
    else:
        bulk_latency_s = flag_latency_s + hops * c.bulk_hop_s
    best_s = _meet(bulk_latency_s, wire_s / c.bulk_frac + copied_s, c.crossover)
    best_latency_s = bulk_latency_s
    if op == ALL_REDUCE:
        tree_latency_s = flag_latency_s + 2.0 * c.bulk_hop_s
        tree_s = _meet(tree_latency_s, 2.0 * message_bytes / (rate * c.tree_frac), c.crossover)
        if tree_s < best_s:
            best_s = tree_s
            best_latency_s = tree_latency_s
    if not paired and wire_s <= c.flag_limit_s * (1.0 + hops):
        spread_latency_s = flag_latency_s * (1.0 + c.fill_frac)
        low_s = _meet(spread_latency_s, wire_s / c.flag_frac, c.crossover)
        if low_s < best_s:
            best_s = low_s
            best_latency_s = spread_latency_s
    channel_rate = c.block_bytes_per_clock * device.clock_hz
    one_channel_s = flag_latency_s + max(
        hops * chunk_bytes / channel_rate, wire_s / WORD_FLAG_SHARE
    )
    if one_channel_s < best_s:
        best_s = one_channel_s
        best_latency_s = flag_latency_s
    return best_s, best_latency_s


@inner
def _in_switch_s(
    message_bytes: float, ranks: float, rate: float, collective: Any
) -> tuple[float, float]:
    """All-reduce added and multicast by the switch: (seconds, latency part)."""
    c = collective
    latency_s = c.ring_floor_s + 2.0 * (c.ring_hop_s + c.bulk_hop_s)
    wire_s = (ranks + 1.0) / (ranks - 1.0) * message_bytes / (rate * c.switch_frac)
    return _meet(latency_s, wire_s, c.crossover), latency_s


@inner
def _direct_s(
    op: int, message_bytes: float, ranks: float, rate: float, collective: Any
) -> tuple[float, float]:
    """A stack's own all-reduce, one-shot or two-shot: (seconds, latency part)."""
    c = collective
    barrier_s = c.direct_floor_s + ranks * c.direct_peer_s
    direct = rate * c.direct_frac
    one_s = barrier_s + (ranks - 1.0) * message_bytes / direct
    two_s = 2.0 * barrier_s + wire_bytes(op, message_bytes, ranks) / direct
    if one_s <= two_s:
        return one_s, barrier_s
    return two_s, 2.0 * barrier_s


@inner
def collective_s(
    op: int,
    message_bytes: float,
    ranks: float,
    ranks_per_node: float,
    collective: Any,
    device: Any,
) -> tuple[float, int]:
    """Seconds of one collective over `ranks` GPUs, `ranks_per_node` of them on a node; bound code.

    `collective`: a COLLECTIVE row. `device`: a DEVICE row (clock, and memory rate for staging
    copies). One rank costs nothing.
    """
    c = collective
    if ranks <= 1.0:
        return 0.0, tables.BOUND_LATENCY
    local = min(ranks, max(1.0, ranks_per_node))
    extra_s = 0.0
    if local < ranks:
        ports = local / math.sqrt(1.0 + (local / c.network_ports) ** 2)
        rate = c.network_bytes_per_s * c.network_frac * ports
        if local > 1.0:
            rate = min(rate, _node_rate(local, c))
        crossings = 1.0 if op in (ALL_TO_ALL, SEND_RECV) else ranks / local
        extra_s = crossings * c.network_hop_s
    else:
        rate = _node_rate(ranks, c)
    seconds, latency_s = _library_s(op, message_bytes, ranks, rate, extra_s, c, device)
    reduced_here = op == ALL_REDUCE and local >= ranks
    if reduced_here and c.multicast > 0.0 and 2.0 < ranks <= c.link_domain:
        switch_s, switch_latency_s = _in_switch_s(message_bytes, ranks, rate, c)
        if switch_s < seconds:
            seconds, latency_s = switch_s, switch_latency_s
    copied_s = 0.0
    issued_s = 0.0
    own_issued_s = 0.0
    if c.staged > 0.0:
        copied_s = 2.0 * message_bytes / device.hbm_bytes_per_s
        issued_s = c.library_issue_s
        own_issued_s = c.issue_s
    seconds = max(issued_s, seconds + copied_s)
    latency_s = max(issued_s, latency_s)
    own = message_bytes <= c.direct_limit_bytes and ranks <= max(2.0, c.link_domain)
    if reduced_here and own:
        own_s, own_latency_s = _direct_s(op, message_bytes, ranks, rate, c)
        own_s = max(own_issued_s, own_s + copied_s)
        if own_s < seconds:
            seconds = own_s
            latency_s = max(own_issued_s, own_latency_s)
    if seconds > 2.0 * latency_s:
        return seconds, tables.BOUND_LINK
    return seconds, tables.BOUND_LATENCY


@jit
def collective_many(
    op: Any, message_bytes: Any, ranks: Any, ranks_per_node: Any, collective: Any, device: Any
) -> Any:
    """`collective_s` over arrays of equal length, one COLLECTIVE and one DEVICE row; seconds."""
    out = np.empty(len(message_bytes))
    for i in range(len(out)):
        out[i] = collective_s(
            op[i], message_bytes[i], ranks[i], ranks_per_node[i], collective, device
        )[0]
    return out
