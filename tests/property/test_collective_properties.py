"""Collectives over random sizes, machines and coefficients: order and bounds that always hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import collective, compiled, tables

RATES = ("link_bytes_per_s", "pcie_bytes_per_s", "network_bytes_per_s")
EXACT = 1.0 + 1e-9  # rounding


@st.composite
def coefficients(draw: st.DrawFn) -> dict[str, float]:
    """Coefficients anywhere within two prior deviations and their bounds."""
    values = {}
    for c in collective.COLLECTIVE_COEFFICIENTS:
        z = draw(st.floats(-2.0, 2.0))
        values[c.name] = float(np.clip(c.prior * np.exp(c.spread * z), c.lower, c.upper))
    return values


@st.composite
def machines(draw: st.DrawFn) -> dict[str, float]:
    domain = draw(st.sampled_from([1.0, 2.0, 4.0, 8.0, 16.0, 72.0]))
    return {
        "link_bytes_per_s": 0.0 if domain == 1.0 else draw(st.floats(2e10, 2e12)),
        "link_domain": domain,
        "mesh_peers": draw(st.sampled_from([0.0, max(0.0, domain - 1.0)])),
        "pcie_bytes_per_s": draw(st.floats(8e9, 2e11)),
        "network_bytes_per_s": draw(st.floats(1e9, 2e11)),
        "multicast": draw(st.sampled_from([0.0, 1.0])),
        "direct_limit_bytes": draw(st.sampled_from([0.0, 2.0**18, 2.0**23, 1e12])),
        "staged": draw(st.sampled_from([0.0, 1.0])),
    }


devices = st.builds(
    lambda sms, clock, hbm, l2, flops: np.array((sms, clock, hbm, l2, flops), tables.DEVICE),
    st.floats(20, 200),
    st.floats(8e8, 3e9),
    st.floats(2e11, 1e13),
    st.floats(2e6, 3e8),
    st.floats(4e12, 1e14),
)
operations = st.integers(0, len(collective.OPERATION_NAMES) - 1)
sizes = st.floats(1.0, 1e11)
groups = st.sampled_from([2.0, 3.0, 4.0, 8.0, 16.0, 64.0])
per_nodes = st.sampled_from([1.0, 2.0, 4.0, 8.0, 16.0])


def record(facts: dict[str, float], fitted: dict[str, float]) -> np.ndarray:
    values = {**facts, **fitted}
    names = collective.COLLECTIVE.names or ()
    return np.array(tuple(values[name] for name in names), collective.COLLECTIVE)


def timed(op: int, size: float, ranks: float, per_node: float, row: Any, device: Any) -> float:
    """Seconds, from both forms of the core: they agree."""
    seconds, bound = collective.collective_s(
        op, size, ranks, per_node, tables.as_row(row), tables.as_row(device)
    )
    again = compiled().collective.collective_s(op, size, ranks, per_node, row[()], device[()])
    assert again[0] == pytest.approx(seconds, rel=1e-12)
    assert again[1] == bound
    return seconds


@settings(deadline=None)
@given(
    operations, sizes, st.floats(1.0, 1e3), groups, per_nodes, machines(), coefficients(), devices
)
def test_more_bytes_never_take_less_time(
    op: int,
    size: float,
    growth: float,
    ranks: float,
    per_node: float,
    facts: dict[str, float],
    fitted: dict[str, float],
    device: Any,
) -> None:
    row = record(facts, fitted)
    small = timed(op, size, ranks, per_node, row, device)
    large = timed(op, size * growth, ranks, per_node, row, device)
    assert large * EXACT >= small


@settings(deadline=None)
@given(
    operations, sizes, groups, per_nodes, machines(), coefficients(), devices,
    st.sampled_from([*RATES, "clock_hz", "hbm_bytes_per_s"]), st.floats(1.0, 10.0),
)  # fmt: skip
def test_a_faster_part_never_takes_longer(
    op: int,
    size: float,
    ranks: float,
    per_node: float,
    facts: dict[str, float],
    fitted: dict[str, float],
    device: Any,
    part: str,
    factor: float,
) -> None:
    before = timed(op, size, ranks, per_node, record(facts, fitted), device)
    faster = device.copy()
    if part in RATES:
        facts = {**facts, part: facts[part] * factor}
    else:
        faster[part] *= factor
    after = timed(op, size, ranks, per_node, record(facts, fitted), faster)
    assert after <= before * EXACT


@settings(deadline=None)
@given(operations, sizes, groups, per_nodes, machines(), coefficients(), devices)
def test_never_below_the_bus_bandwidth_roofline(
    op: int,
    size: float,
    ranks: float,
    per_node: float,
    facts: dict[str, float],
    fitted: dict[str, float],
    device: Any,
) -> None:
    seconds = timed(op, size, ranks, per_node, record(facts, fitted), device)
    local = min(ranks, per_node)
    if local < ranks:
        rate = facts["network_bytes_per_s"] * local
    elif ranks <= facts["link_domain"] and facts["link_bytes_per_s"]:
        rate = facts["link_bytes_per_s"]
    else:
        rate = facts["pcie_bytes_per_s"]
    moved = collective.wire_bytes(op, size, ranks)
    if facts["multicast"] and op == collective.ALL_REDUCE:
        moved = min(moved, size)  # the switch adds: every buffer goes up once
    assert seconds * EXACT >= moved / rate


@settings(deadline=None)
@given(operations, sizes, per_nodes, machines(), coefficients(), devices)
def test_one_rank_is_free(
    op: int,
    size: float,
    per_node: float,
    facts: dict[str, float],
    fitted: dict[str, float],
    device: Any,
) -> None:
    assert timed(op, size, 1.0, per_node, record(facts, fitted), device) == 0.0
