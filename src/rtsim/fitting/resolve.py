"""What a profile says about one kind of kernel: coefficients, machine and scatter, ready to use.

For fits and validation, which time kernels the way a table measured them through the `predict` of
each recipe. Whole models are resolved by `machine.machine_rows` from the same sections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rtsim.device_facts import device_row, link_facts_of, threads_per_sm
from rtsim.fitting import collective, memory_bound, mla
from rtsim.fitting.moe import backend_of
from rtsim.kernel_records import (
    absorb_variants,
    attention_variants,
    collective_row,
    collective_variants,
    gemm_variants,
    moe_variants,
)
from rtsim.profile import Profile
from rtsim.specs.gpu import GpuSpec

# Group of `profile.GROUPS` whose scatter stands for a kind without one of its own.
_GROUP_OF = {
    "gemm": "gemm",
    "attention_prefill": "attention",
    "attention_decode": "attention",
    "memory_bound": "memory_bound",
    "collective": "collective",
    "moe": "moe",
    "mla_prefill": "mla",
    "mla_decode": "mla",
}


def variants_of(kind: str, row: Mapping[str, str]) -> tuple[str, ...]:
    """Variants of the section `kind` that serve a table row, best first.

    row: its dtype and kv_dtype, its op or its implementation, as far as the kind has them. The
    quantisation of activations is a kernel of the stack's own making, apart from all others.

    >>> variants_of("gemm", {"dtype": "fp16"})[:2]
    ('fp16', 'bf16')
    """
    if kind == "gemm":
        if row.get("op") in mla.PRODUCTS:
            return absorb_variants(row["dtype"])
        return gemm_variants(row["dtype"])
    if kind == "moe":
        return moe_variants(row["dtype"], backend_of(row.get("kernel", "")))
    if kind.startswith(("attention_", "mla_")):
        return attention_variants(row["dtype"], row["kv_dtype"] or row["dtype"])
    if kind == "collective":
        return collective_variants(row["implementation"] not in collective.LIBRARY_IMPLEMENTATIONS)
    return ("quantize", "general") if "quantize" in row["op"] else ("general",)


def section_of(kind: str, row: Mapping[str, str]) -> str:
    """The section into which rows such as this one are fitted, such as "gemm.fp8".

    kind: of the table's rows; "mla" stands for the kind of its operator.
    """
    if kind == "mla":
        kind = mla.SECTION_KINDS[row["op"]]
    return f"{kind}.{variants_of(kind, row)[0]}"


def coefficients(profile: Profile, kind: str, row: Mapping[str, str]) -> dict[str, float]:
    """Coefficients that a profile has for rows such as this one; `row` as in `variants_of`."""
    return profile.section(kind, *variants_of(kind, row))


def collective_machine(
    profile: Profile, gpu: GpuSpec, topology: str, implementation: str
) -> tuple[collective.Machine, float]:
    """The machine of a `collective` recipe and the largest message of the stack's own kernels.

    topology, implementation: as tables name them.
    """
    own = implementation not in collective.LIBRARY_IMPLEMENTATIONS
    row = collective_row(profile, gpu, own=own, topology=topology)
    links = link_facts_of(gpu, topology)
    links = type(links)(**{name: float(row[name]) for name in vars(links)})
    return collective.Machine(links, device_row(gpu)), float(row["direct_limit_bytes"])


def memory_bound_machine(gpu: GpuSpec) -> memory_bound.Machine:
    """The machine of a `memory_bound` recipe."""
    return memory_bound.Machine(device_row(gpu), threads_per_sm(gpu.compute_capability))


def sigma(profile: Profile, gpu: GpuSpec, kind: str, row: Mapping[str, str]) -> float:
    """Deviation of ln(measured / predicted) of single kernels such as this row.

    That of the section where it was measured, else of the group of operators; with the further
    deviation of a transfer where the profile is not of this GPU.
    """
    section = profile.section_name(kind, *variants_of(kind, row))
    group = _GROUP_OF[kind]
    own = profile.section_sigma.get(section, profile.sigma_seen[group])
    if gpu.name == profile.gpu:
        return own
    return math.hypot(own, profile.transfer_sigma[group])
