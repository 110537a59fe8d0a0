"""Collective timing: hand-derived cases, both forms of the core, and the fit recipe."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rtsim_kernels import collective, compiled, tables

from rtsim.catalog import load_gpu
from rtsim.device_facts import link_facts, link_facts_of
from rtsim.fitting import collective as recipe

A100 = np.array((108.0, 1.41e9, 2.039e12, 40 * 2.0**20, 19.5e12), tables.DEVICE)
NVSWITCH = {
    "link_bytes_per_s": 300e9,
    "link_domain": 8.0,
    "mesh_peers": 0.0,
    "pcie_bytes_per_s": 32e9,
    "network_bytes_per_s": 25e9,
    "multicast": 0.0,
    "direct_limit_bytes": 0.0,
    "staged": 0.0,
}
# Round numbers, so that cases can be worked out by hand. Exponent 1: latency and wire add up.
PLAIN = {
    "direct_floor_s": 4e-6,
    "direct_peer_s": 1e-7,
    "direct_frac": 0.5,
    "ring_floor_s": 6e-6,
    "ring_hop_s": 1e-6,
    "fill_frac": 0.5,
    "block_bytes_per_clock": 2.0,
    "bulk_hop_s": 5e-6,
    "peer_bulk_s": 7e-6,
    "flag_frac": 0.5,
    "bulk_frac": 0.8,
    "tree_frac": 0.6,
    "copy_frac": 2.0,
    "flag_limit_s": 1e-6,
    "switch_frac": 0.5,
    "pcie_frac": 0.5,
    "sharing": 1.0,
    "network_frac": 0.5,
    "network_ports": 4.0,
    "network_hop_s": 1e-5,
    "crossover": 1.0,
    "issue_s": 4e-5,
    "library_issue_s": 6e-5,
}


def row(**changed: float) -> np.ndarray:
    values = {**NVSWITCH, **PLAIN, **changed}
    names = collective.COLLECTIVE.names or ()
    assert set(values) == set(names)
    return np.array(tuple(values[name] for name in names), collective.COLLECTIVE)


def timed(op: int, size: float, ranks: float, per_node: float = 8.0, **changed: float):
    return collective.collective_s(
        op, size, ranks, per_node, tables.as_row(row(**changed)), tables.as_row(A100)
    )


def test_one_rank_costs_nothing() -> None:
    for op in range(len(collective.OPERATION_NAMES)):
        assert timed(op, 1e9, 1.0)[0] == 0.0


def test_wire_bytes_are_those_of_bus_bandwidth() -> None:
    assert collective.wire_bytes(collective.ALL_REDUCE, 800.0, 8.0) == 1400.0
    assert collective.wire_bytes(collective.ALL_GATHER, 800.0, 8.0) == 700.0
    assert collective.wire_bytes(collective.REDUCE_SCATTER, 800.0, 4.0) == 600.0
    assert collective.wire_bytes(collective.ALL_TO_ALL, 800.0, 2.0) == 400.0
    assert collective.wire_bytes(collective.SEND_RECV, 800.0, 2.0) == 800.0


def test_smallest_message_costs_its_hops() -> None:
    # 2 (8 - 1) hops of 1 us on 6 us; eight bytes take no time.
    seconds, bound = timed(collective.ALL_REDUCE, 8.0, 8.0)
    assert seconds == pytest.approx(20e-6, rel=1e-3)
    assert bound == tables.BOUND_LATENCY
    assert timed(collective.ALL_GATHER, 8.0, 8.0)[0] == pytest.approx(13e-6, rel=1e-3)
    assert timed(collective.SEND_RECV, 8.0, 2.0)[0] == pytest.approx(7.1e-6, rel=1e-3)


def test_one_channel_before_all_channels() -> None:
    # 4 KiB over 2 ranks: 2 hops of 2 KiB at 2 B/clock, cheaper than half as much latency again.
    one_channel = 8e-6 + 2 * 2048 / (2.0 * 1.41e9)
    assert timed(collective.ALL_REDUCE, 4096.0, 2.0)[0] == pytest.approx(one_channel, rel=1e-12)
    all_channels = 1.5 * 8e-6 + 65536 / (0.5 * 300e9)
    assert timed(collective.ALL_REDUCE, 65536.0, 2.0)[0] == pytest.approx(all_channels, rel=1e-12)


def test_large_message_runs_at_the_bulk_rate() -> None:
    size = 8e9
    ring = 6e-6 + 14 * 6e-6 + 1.75 * size / 300e9 / 0.8 + size / 8 / 300e9 / 2.0
    seconds, bound = timed(collective.ALL_REDUCE, size, 8.0)
    assert seconds == pytest.approx(ring, rel=1e-12)
    assert bound == tables.BOUND_LINK


def test_tree_wins_between_flags_and_ring() -> None:
    # 8 MB on 8 ranks: 14 bulk hops cost the ring 70 us, the tree pays two.
    size = 8e6
    tree = 20e-6 + 2 * 5e-6 + 2 * size / 300e9 / 0.6
    ring = 6e-6 + 14 * 6e-6 + 1.75 * size / 300e9 / 0.8
    assert 1.75 * size / 300e9 > 15e-6  # beyond the flags
    assert tree < ring
    assert timed(collective.ALL_REDUCE, size, 8.0)[0] == pytest.approx(tree, rel=1e-12)


def test_flags_end_where_the_library_leaves_them() -> None:
    # All-gather over 2: flags up to 2 us of wire time at the full rate = 1.2 MB.
    below = timed(collective.ALL_GATHER, 1.19e6, 2.0)[0]
    above = timed(collective.ALL_GATHER, 1.21e6, 2.0)[0]
    assert below == pytest.approx(1.5 * 7e-6 + 0.595e6 / 300e9 / 0.5, rel=1e-12)
    assert above == pytest.approx(12e-6 + 0.605e6 / 300e9 / 0.8 + 0.605e6 / 300e9 / 2.0, rel=1e-12)


def test_own_kernel_takes_over_up_to_its_limit() -> None:
    limit = 2.0**20
    barrier = 4e-6 + 8 * 1e-7
    one_shot = barrier + 7 * 65536 / (0.5 * 300e9)
    small, _ = timed(collective.ALL_REDUCE, 65536.0, 8.0, direct_limit_bytes=limit)
    assert small == pytest.approx(one_shot, rel=1e-12)
    two_shot = 2 * barrier + 1.75 * limit / (0.5 * 300e9)
    at_limit, _ = timed(collective.ALL_REDUCE, limit, 8.0, direct_limit_bytes=limit)
    assert at_limit == pytest.approx(two_shot, rel=1e-12)
    beyond, _ = timed(collective.ALL_REDUCE, limit + 1, 8.0, direct_limit_bytes=limit)
    assert beyond == timed(collective.ALL_REDUCE, limit + 1, 8.0)[0]
    # Only all-reduces have such a kernel, and only among peers (or a pair).
    gathered = timed(collective.ALL_GATHER, 65536.0, 8.0, direct_limit_bytes=limit)
    assert gathered == timed(collective.ALL_GATHER, 65536.0, 8.0)
    over_pcie = {"link_bytes_per_s": 0.0, "link_domain": 1.0}
    four = timed(collective.ALL_REDUCE, 1024.0, 4.0, direct_limit_bytes=limit, **over_pcie)
    assert four == timed(collective.ALL_REDUCE, 1024.0, 4.0, **over_pcie)
    pair = timed(collective.ALL_REDUCE, 1024.0, 2.0, direct_limit_bytes=limit, **over_pcie)
    assert pair < timed(collective.ALL_REDUCE, 1024.0, 2.0, **over_pcie)


def test_in_switch_reduction_needs_more_than_a_pair() -> None:
    size = 1e9
    with_switch = timed(collective.ALL_REDUCE, size, 8.0, multicast=1.0, switch_frac=0.9)[0]
    expected = 6e-6 + 2 * 6e-6 + 9 / 7 * size / (300e9 * 0.9)
    assert with_switch == pytest.approx(expected, rel=1e-12)
    pair = timed(collective.ALL_REDUCE, size, 2.0, multicast=1.0, switch_frac=0.9)
    assert pair == timed(collective.ALL_REDUCE, size, 2.0)


def test_a_mesh_splits_the_link_over_its_peers() -> None:
    size = 1e9
    mesh = {"mesh_peers": 3.0, "link_domain": 4.0}
    pair = timed(collective.SEND_RECV, size, 2.0, **mesh)[0]
    assert pair == pytest.approx(7.1e-6 + 7e-6 + size / 100e9 / 0.8, rel=1e-12)
    four = timed(collective.ALL_GATHER, size, 4.0, **mesh)
    assert four == timed(collective.ALL_GATHER, size, 4.0)


def test_pairs_of_cards_cross_pcie_twice_and_single_cards_more_often() -> None:
    size = 1e10  # latency is negligible
    half_pcie = 32e9 * 0.5

    def bus_rate(ranks: float, **facts: float) -> float:
        seconds = timed(collective.ALL_GATHER, size, ranks, copy_frac=1e9, **facts)[0]
        return (ranks - 1) / ranks * size / seconds / 0.8

    bridged = {"link_domain": 2.0}
    assert bus_rate(2.0, **bridged) == pytest.approx(300e9, rel=1e-3)
    assert bus_rate(4.0, **bridged) == pytest.approx(half_pcie, rel=1e-3)
    single = {"link_bytes_per_s": 0.0, "link_domain": 1.0}
    assert bus_rate(2.0, **single) == pytest.approx(half_pcie, rel=1e-3)
    assert bus_rate(4.0, **single) == pytest.approx(half_pcie / 2, rel=1e-3)
    assert bus_rate(8.0, **single) == pytest.approx(half_pcie / 4, rel=1e-3)
    assert bus_rate(8.0, sharing=0.0, **single) == pytest.approx(half_pcie, rel=1e-3)


def test_nodes_are_joined_by_the_network_ports_of_the_ranks() -> None:
    size = 1e10
    pair = timed(collective.SEND_RECV, size, 2.0, per_node=1.0)[0]
    one_port = 25e9 * 0.5 / math.sqrt(1 + 1 / 16)
    assert pair == pytest.approx(size / one_port / 0.8, rel=1e-3)
    sixteen = timed(collective.ALL_GATHER, size, 16.0, copy_frac=1e9)[0]
    eight_ports = 25e9 * 0.5 * 8 / math.sqrt(1 + 4)
    assert sixteen == pytest.approx(15 / 16 * size / eight_ports / 0.8, rel=1e-3)
    small = timed(collective.ALL_REDUCE, 8.0, 16.0)[0]
    assert small == pytest.approx(6e-6 + 30e-6 + 2 * 10e-6, rel=1e-3)


def test_eager_calls_wait_for_the_host_and_copy_the_buffer() -> None:
    small = timed(collective.ALL_REDUCE, 1024.0, 8.0, staged=1.0)
    assert small == (60e-6, tables.BOUND_LATENCY)
    own = timed(collective.ALL_REDUCE, 1024.0, 8.0, staged=1.0, direct_limit_bytes=2.0**20)
    assert own == (40e-6, tables.BOUND_LATENCY)
    large = timed(collective.ALL_REDUCE, 1e9, 8.0, staged=1.0)[0]
    graph = timed(collective.ALL_REDUCE, 1e9, 8.0)[0]
    assert large == pytest.approx(graph + 2e9 / 2.039e12, rel=1e-12)


@pytest.mark.parametrize("topology", ["switch", "pcie", "pairs", "eager"])
def test_compiled_and_interpreted_agree(topology: str) -> None:
    facts = {
        "switch": {"multicast": 1.0, "direct_limit_bytes": 2.0**23},
        "pcie": {"link_bytes_per_s": 0.0, "link_domain": 1.0, "direct_limit_bytes": 2.0**23},
        "pairs": {"link_domain": 2.0},
        "eager": {"staged": 1.0},
    }[topology]
    record = row(crossover=0.77, **facts)
    rng = np.random.default_rng(7)
    n = 300
    op = rng.integers(0, len(collective.OPERATION_NAMES), n)
    size = np.exp(rng.uniform(0, 24, n))
    ranks = 2.0 ** rng.integers(0, 6, n)
    per_node = 2.0 ** rng.integers(0, 4, n)
    core = compiled().collective
    seconds = core.collective_many(op, size, ranks, per_node, record[()], A100[()])
    named, device = tables.as_row(record), tables.as_row(A100)
    for i in range(n):
        expected, bound = collective.collective_s(
            int(op[i]), float(size[i]), float(ranks[i]), float(per_node[i]), named, device
        )
        assert seconds[i] == pytest.approx(expected, rel=1e-12)
        again = core.collective_s(op[i], size[i], ranks[i], per_node[i], record[()], A100[()])
        assert again[1] == bound


def test_declared_coefficients_are_within_their_bounds() -> None:
    for c in collective.COLLECTIVE_COEFFICIENTS:
        assert c.lower <= c.prior <= c.upper, c.name
        assert c.unit
        assert c.meaning


# The fit recipe ------------------------------------------------------------------------------


def table(rows: int = 240, **override: object) -> dict[str, np.ndarray]:
    """Made-up measurements that follow the model exactly, in the columns of a table."""
    rng = np.random.default_rng(3)
    columns = {
        "gpu": np.full(rows, "A100-SXM4-80GB"),
        "topology": np.full(rows, "nvswitch"),
        "implementation": np.full(rows, "nccl-tests"),
        "collective": rng.choice(list(collective.OPERATION_NAMES[:4]), rows),
        "num_gpus": rng.choice([2, 4, 8], rows),
        "num_nodes": np.ones(rows, np.int64),
        "message_bytes": 2 ** rng.integers(9, 29, rows),
        "time_us": np.ones(rows),
    }
    columns.update(override)
    return columns


def machine() -> recipe.Machine:
    links = link_facts(
        "nvswitch",
        link_bytes_per_s=300e9,
        link_domain=8,
        pcie_bytes_per_s=32e9,
        network_bytes_per_s=25e9,
    )
    return recipe.Machine(links, A100)


def test_fit_recovers_the_times_it_was_made_from() -> None:
    columns = table()
    rows = recipe.rows_of(columns, np.arange(240))
    truth = {c.name: c.prior for c in collective.COLLECTIVE_COEFFICIENTS}
    truth |= {"ring_floor_s": 9e-6, "bulk_frac": 0.7, "flag_frac": 0.6}
    columns["time_us"] = 1e6 * recipe.predict(rows, machine(), truth)
    rows = recipe.rows_of(columns, np.arange(240))
    chosen = recipe.choose_rows(rows, 48)
    assert len(chosen) == len(set(chosen.tolist())) == 48
    fitted = recipe.fit_rows([(rows.take(chosen), machine())])
    predicted = recipe.predict(rows, fitted.machines[0], fitted.coefficients)
    assert np.abs(predicted / rows.measured_s - 1).mean() < 0.02
    assert fitted.coefficients["ring_floor_s"] == pytest.approx(9e-6, rel=0.1)
    # Nothing in these rows says anything about the network.
    pinned = dict(zip(fitted.fit.names, fitted.fit.pinned.tolist(), strict=True))
    assert pinned["ring_floor_s"]
    assert not pinned["network_frac"]


def test_fit_finds_the_limit_of_a_stacks_own_kernel() -> None:
    columns = table(
        collective=np.full(240, "all_reduce"), implementation=np.full(240, "custom_graph")
    )
    truth = {c.name: c.prior for c in collective.COLLECTIVE_COEFFICIENTS}
    rows = recipe.rows_of(columns, np.arange(240))
    columns["time_us"] = 1e6 * recipe.predict(rows, machine(), truth, 2.0**20)
    rows = recipe.rows_of(columns, np.arange(240))
    fitted = recipe.fit_rows([(rows.take(recipe.choose_rows(rows, 48)), machine())])
    assert fitted.direct_limit_bytes == 2.0**20


def test_unusable_rows_say_why() -> None:
    columns = table(
        6,
        collective=np.array(["all_reduce", "broadcast", *["all_reduce"] * 4]),
        implementation=np.array(["nccl", "nccl", "mpi", "nccl", "nccl", "nccl"]),
        num_gpus=np.array([4, 4, 4, 1, 6, 4]),
        num_nodes=np.array([1, 1, 1, 1, 4, 1]),
        time_us=np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
    )
    assert recipe.usable(columns).tolist() == [
        "",
        "unknown collective",
        "unknown implementation",
        "one GPU does not communicate",
        "GPUs do not divide evenly over nodes",
        "time is not above zero",
    ]


@pytest.mark.parametrize(
    ("topology", "domain", "mesh", "rate", "multicast"),
    [
        ("nvswitch", 8.0, 0.0, 450e9, 1.0),
        ("nvlink-pairs", 2.0, 0.0, 450e9, 0.0),
        ("nvlink-full-mesh-4", 4.0, 3.0, 450e9, 0.0),
        ("pcie5", 1.0, 0.0, 0.0, 0.0),
    ],
)
def test_topology_names(
    topology: str, domain: float, mesh: float, rate: float, multicast: float
) -> None:
    facts = link_facts(
        topology,
        link_bytes_per_s=450e9,
        link_domain=8,
        pcie_bytes_per_s=64e9,
        network_bytes_per_s=50e9,
        adding_switch=True,
    )
    assert (facts.link_domain, facts.mesh_peers) == (domain, mesh)
    assert (facts.link_bytes_per_s, facts.multicast) == (rate, multicast)


@pytest.mark.parametrize(
    ("gpu", "mesh", "multicast"),
    [
        ("a100-sxm4-80gb", 0.0, 0.0),  # a switch that does not add
        ("h100-sxm5-80gb", 0.0, 1.0),
        ("h800-sxm", 0.0, 1.0),  # fewer links, the same switch
        ("h200-nvl-141gb", 3.0, 0.0),  # a bridge over four cards
        ("h100-nvl-94gb", 0.0, 0.0),  # a bridge over two
        ("v100-sxm2-32gb", 7.0, 0.0),
        ("mi300x", 7.0, 0.0),
        ("mi250x", 0.0, 0.0),  # two dies a module
        ("tpu-v5p", 0.0, 0.0),
        ("l40s", 0.0, 0.0),
    ],
)
def test_links_of_packaged_gpus(gpu: str, mesh: float, multicast: float) -> None:
    """Whether a switch adds is a matter of its generation, not of the rate: no step there."""
    for factor in ("1x", "4x", "0.25x"):
        spec = load_gpu(gpu)
        changed = spec if spec.link is None else spec.with_({"link.bytes_per_s": factor})
        facts = link_facts_of(changed.one_device())
        assert (facts.mesh_peers, facts.multicast) == (mesh, multicast)


def test_cross_validated_sigma_is_the_scatter() -> None:
    columns = table()
    truth = {c.name: c.prior for c in collective.COLLECTIVE_COEFFICIENTS}
    rows = recipe.rows_of(columns, np.arange(240))
    noise = np.exp(np.random.default_rng(1).normal(0.0, 0.05, 240))
    columns["time_us"] = 1e6 * recipe.predict(rows, machine(), truth) * noise
    rows = recipe.rows_of(columns, np.arange(240))
    sigma = recipe.cross_validated_sigma([(rows, machine())])
    assert 0.04 < sigma < 0.07
