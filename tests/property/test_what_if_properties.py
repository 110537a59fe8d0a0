"""Doubling one resource changes what that resource bounds, and nothing else.

Asked of whole predictions over packaged models, GPUs and stacks. No operator takes longer with
more of a resource; operators that do not use it take exactly as long; those that it does not bound
move little, since the kernels' times go over softly from one bound to the next. The number of SMs
is not among the resources: at the same peak and bandwidth more SMs are slower ones.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rtsim_kernels import tables

from rtsim.named_system import system
from rtsim.predict import predict
from rtsim.prediction import OperatorTime, Prediction

PEAKS = ("gpu.peak_fp16_flops_per_s", "gpu.peak_bf16_flops_per_s")
# Resource -> its fields, and the kinds of operators that use it (None: any).
PRODUCTS = (tables.GEMM, tables.SCORES, tables.VALUES, tables.ATTENTION)
RESOURCES: dict[str, tuple[tuple[str, ...], tuple[int, ...] | None]] = {
    "memory bandwidth": (
        ("gpu.hbm_bytes_per_s",),
        (*PRODUCTS, tables.MEMORY_BOUND),
    ),
    "tensor peak": (PEAKS, PRODUCTS),
    "L2 size": (("gpu.l2_bytes",), (*PRODUCTS, tables.MEMORY_BOUND)),
    "clock": (("gpu.clock_hz",), None),
    "link": (("link.bytes_per_s",), (tables.COLLECTIVE,)),
    "PCIe": (("gpu.pcie_bytes_per_s",), (tables.COLLECTIVE,)),
    "network": (("network.bytes_per_s",), (tables.COLLECTIVE,)),
    "memory size": (("gpu.memory_bytes",), ()),
    "power": (("gpu.power_w",), ()),
}
# Measured boards with a switch, so that every resource is there; stacks with profiles of them.
SYSTEMS = (
    ("a100", "megatron-lm"),
    ("a100", "vllm"),
    ("h100", "vllm"),
    ("h100", "trtllm"),
    ("h200", "vllm"),
    ("b200", "sglang"),
)
EXACT = 1e-9

quick = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@lru_cache(maxsize=64)
def kinds(arch: str, gpu: str, stack: str, tp: int) -> dict[str, int]:
    table = system(arch, gpu, tp, stack=stack).table
    return dict(zip(table.names, map(int, table.rows["kind"]), strict=True))


def doubled(
    resource: str, arch: str, gpu: str, stack: str, tp: int, sizes: tuple[int, int, int]
) -> tuple[Prediction, dict[tuple[str, str], tuple[OperatorTime, OperatorTime]]]:
    """The prediction with twice the resource, and each operator before and after."""
    fields = RESOURCES[resource][0]
    batch_size, input_len, output_len = sizes
    after = predict(
        arch, gpu, tp=tp, stack=stack, batch_size=batch_size, input_len=input_len,
        output_len=output_len, set=dict.fromkeys(fields, "2x"), compiled=False,
    )  # fmt: skip
    assert after.what_if is not None
    before = after.what_if.before
    assert before is not None
    old = {(row.operator, row.phase): row for row in before.breakdown}
    new = {(row.operator, row.phase): row for row in after.breakdown}
    assert old.keys() == new.keys()
    return after, {key: (old[key], new[key]) for key in old}


@quick
@given(
    st.sampled_from(sorted(RESOURCES)),
    st.sampled_from(["llama-3-8b", "llama-2-70b", "gpt3-6.7b"]),
    st.sampled_from(SYSTEMS),
    st.sampled_from([1, 2, 4, 8]),
    st.tuples(st.sampled_from([1, 4, 32]), st.integers(1, 1500), st.integers(1, 40)),
)
def test_twice_a_resource(
    resource: str, arch: str, where: tuple[str, str], tp: int, sizes: tuple[int, int, int]
) -> None:
    users = RESOURCES[resource][1]
    after, operators = doubled(resource, arch, *where, tp, sizes)
    kind = kinds(arch, *where, tp)
    for (name, _), (old, new) in operators.items():
        if new.bound == "host":
            continue  # waiting: it takes the slack that faster operators leave
        assert new.time_s <= old.time_s * (1.0 + EXACT), name
        if users is not None and kind[name] not in users:
            assert new.time_s == pytest.approx(old.time_s, rel=EXACT), name
    before = after.what_if.before
    assert after.e2e_latency_s <= before.e2e_latency_s * (1.0 + EXACT)
    assert after.prefill_flops == before.prefill_flops


@pytest.mark.parametrize(("gpu", "stack"), SYSTEMS)
def test_a_large_product_is_bound_by_compute(gpu: str, stack: str) -> None:
    """A prompt of 64 times 1500 tokens: twice the bandwidth is worth nothing, twice the peak 2."""
    key = ("MLP up projection", "prefill")
    old, new = doubled("memory bandwidth", "llama-2-13b", gpu, stack, 1, (64, 1500, 2))[1][key]
    assert old.bound == "compute"
    assert 0.95 < new.time_s / old.time_s <= 1.0
    old, new = doubled("tensor peak", "llama-2-13b", gpu, stack, 1, (64, 1500, 2))[1][key]
    assert new.time_s / old.time_s < 0.65


@pytest.mark.parametrize(("gpu", "stack"), SYSTEMS)
def test_one_token_is_bound_by_memory(gpu: str, stack: str) -> None:
    """Batch 1: the output head reads its weights once per token, whatever the peak."""
    key = ("output head", "decode")
    old, new = doubled("memory bandwidth", "llama-3-8b", gpu, stack, 1, (1, 512, 8))[1][key]
    assert old.bound == "memory"
    assert new.time_s / old.time_s < 0.75
    old, new = doubled("tensor peak", "llama-3-8b", gpu, stack, 1, (1, 512, 8))[1][key]
    assert 0.93 < new.time_s / old.time_s <= 1.0


@pytest.mark.parametrize(("gpu", "stack"), SYSTEMS)
def test_large_messages_are_bound_by_the_link(gpu: str, stack: str) -> None:
    operators = doubled("link", "llama-2-70b", gpu, stack, 8, (16, 2048, 2))[1]
    old, new = operators["MLP all-reduce", "prefill"]
    assert old.bound == "interconnect"
    assert new.time_s / old.time_s < 0.7
