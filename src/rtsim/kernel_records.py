"""The record of each kind of kernel: facts of a GPU, number formats, and fitted coefficients.

`*_variants`: the sections of a profile that may stand for a record, best first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import attention, collective, gemm, memory_bound, mla, moe, scan

from rtsim.device_facts import (
    attention_peak_flops_per_s,
    l2_partitions,
    least_step,
    link_facts_of,
    record,
    sustained_flops_per_s,
    threads_per_sm,
)
from rtsim.errors import NotSupported
from rtsim.formats import peak_for
from rtsim.profile import Profile
from rtsim.specs.dtype import OperandFormat, dtype_bytes, operand_format, similar_formats
from rtsim.specs.gpu import GpuSpec


def gemm_row(
    profile: Profile,
    gpu: GpuSpec,
    form: str,
    dtype: str = "bf16",
    *,
    variants: tuple[str, ...] = (),
    activation_copies: float = 1.0,
    notes: list[str] | None = None,
) -> NDArray[np.void]:
    """GEMM record, shape (): products in number format `form`, a dtype or a quantisation.

    dtype: of the activations around a quantised product. variants: sections of the profile to
    look into before those of the format and of formats like it. A GPU without the units of a
    format multiplies in `dtype`, with its weights stored as they are, and a note says so.
    Raises NotSupported for a format that is not modelled.
    """
    operands, peak = _operands_on(gpu, form, dtype, "matrix products", notes)
    return record(
        gemm.GEMM,
        peak_flops_per_s=sustained_flops_per_s(gpu, operands.math_dtype, peak),
        a_bytes=operands.a_bytes,
        b_bytes=operands.b_bytes,
        out_bytes=operands.out_bytes,
        quantize_bytes=operands.quantize_bytes,
        activation_copies=activation_copies,
        l2_partitions=l2_partitions(gpu.compute_capability),
        least_step=least_step(gpu.compute_capability),
        **profile.section("gemm", *variants, *gemm_variants(form, dtype)),
    )


def _operands_on(
    gpu: GpuSpec, form: str, dtype: str, what: str, notes: list[str] | None
) -> tuple[OperandFormat, float]:
    """(operands in number format `form`, FLOPs per s of their math) as a GPU multiplies them.

    A GPU without the units of a format reads activations in `dtype`, which are not quantised.
    """
    operands = operand_format(form, dtype)
    if operands is None:
        raise NotSupported(f"{what} in {form} are not modelled")
    peak = peak_for(gpu, operands.math_dtype, notes if notes is not None else [])
    if operands.quantize_bytes and gpu.peak_flops_per_s(operands.math_dtype) is None:
        operands = replace(operands, a_bytes=dtype_bytes(dtype), quantize_bytes=0.0)
    return operands, peak


def gemm_variants(form: str, dtype: str = "bf16") -> tuple[str, ...]:
    """Variants of the "gemm" section that serve a number format, best first."""
    return (*similar_formats(form), *similar_formats(dtype))


def attention_row(
    profile: Profile, gpu: GpuSpec, kind: str, dtype: str, kv_dtype: str
) -> NDArray[np.void]:
    """ATTENTION_PREFILL or ATTENTION_DECODE record, shape (), by `kind`, the section's name."""
    rows = {
        "attention_prefill": attention.ATTENTION_PREFILL,
        "attention_decode": attention.ATTENTION_DECODE,
    }
    return record(
        rows[kind],
        peak_flops_per_s=attention_peak_flops_per_s(gpu, dtype, kv_dtype),
        # Queries arrive, and outputs leave, in 16 bits also where the products are in fp8.
        query_element_bytes=max(2.0, dtype_bytes(_narrow(dtype))),
        kv_element_bytes=dtype_bytes(_narrow(kv_dtype)),
        **profile.section(kind, *attention_variants(dtype, kv_dtype)),
    )


def attention_variants(dtype: str, kv_dtype: str) -> tuple[str, ...]:
    """Variants of an attention section that serve a query and a cache format, best first.

    >>> attention_variants("bf16", "fp8")
    ('bf16_fp8', 'fp16_fp8', 'fp8', 'bf16', 'fp16')
    """
    queries, cache = _narrow(dtype), _narrow(kv_dtype)
    wide = similar_formats("bf16" if queries == "fp8" else queries)
    mixed = tuple(f"{name}_{cache}" for name in wide)
    if queries == "fp8":
        return ("fp8", *(f"{name}_fp8" for name in wide), *wide)
    return wide if cache in wide else (*mixed, cache, *wide)


def moe_row(
    profile: Profile,
    gpu: GpuSpec,
    form: str,
    dtype: str = "bf16",
    *,
    backend: str = "",
    weight_copies: float = gemm.ENDLESS_COPIES,
    notes: list[str] | None = None,
) -> NDArray[np.void]:
    """MOE record, shape (): an expert layer with weights in number format `form`.

    dtype: of the activations around it. backend: family of kernels, as in `fitting.moe`; "": the
    one that the stack mostly uses. weight_copies: layers between two uses of one, endless in a
    model. A GPU without the units of a format multiplies in `dtype`, and a note says so. Raises
    NotSupported for a format that is not modelled.
    """
    operands, peak = _operands_on(gpu, form, dtype, "experts", notes)
    return record(
        moe.MOE,
        peak_flops_per_s=peak,
        a_bytes=operands.a_bytes,
        b_bytes=operands.b_bytes,
        out_bytes=operands.out_bytes,
        weight_copies=weight_copies,
        l2_partitions=l2_partitions(gpu.compute_capability),
        **profile.section("moe", *moe_variants(form, backend)),
    )


# Families of kernels of expert layers, the one that serves a model first. Stacks take the fastest
# that their GPU has: generated kernels (trtllm; "min_latency" in TensorRT-LLM's own tables), which
# take half the time of CUTLASS's at any number of tokens, then the others.
_MOE_BACKENDS = ("trtllm", "min_latency", "triton", "cutlass", "deepgemm", "cutedsl", "marlin",
                 "expert_loop", "marlin_int4")  # fmt: skip


def moe_variants(form: str, backend: str = "") -> tuple[str, ...]:
    """Variants of the "moe" section that serve a number format, best first.

    >>> moe_variants("nvfp4", "cutlass")[:3]
    ('nvfp4_cutlass', 'nvfp4', 'nvfp4_trtllm')
    """
    own = (f"{form}_{backend}",) if backend else ()
    further = similar_formats(form)
    alike = (f for name in further for f in (name, *(f"{name}_{b}" for b in _MOE_BACKENDS)))
    return tuple(dict.fromkeys((*own, *alike)))


def mla_prefill_row(profile: Profile, gpu: GpuSpec, dtype: str, kv_dtype: str) -> NDArray[np.void]:
    """MLA_PREFILL record, shape ()."""
    return _mla_row(mla.MLA_PREFILL, "mla_prefill", profile, gpu, dtype, kv_dtype)


def mla_decode_row(profile: Profile, gpu: GpuSpec, dtype: str, kv_dtype: str) -> NDArray[np.void]:
    """MLA_DECODE record, shape ()."""
    return _mla_row(mla.MLA_DECODE, "mla_decode", profile, gpu, dtype, kv_dtype)


def _mla_row(
    row: np.dtype[np.void], kind: str, profile: Profile, gpu: GpuSpec, dtype: str, kv_dtype: str
) -> NDArray[np.void]:
    return record(
        row,
        peak_flops_per_s=attention_peak_flops_per_s(gpu, dtype, kv_dtype),
        query_element_bytes=max(2.0, dtype_bytes(_narrow(dtype))),
        kv_element_bytes=dtype_bytes(_narrow(kv_dtype)),
        **profile.section(kind, *attention_variants(dtype, kv_dtype)),
    )


def absorb_row(
    profile: Profile, gpu: GpuSpec, form: str, *, notes: list[str] | None = None
) -> NDArray[np.void]:
    """GEMM record, shape (), of the batched products that take latent attention's queries into
    the latent space and its values out of it: one factor of the batch per head.
    """
    return gemm_row(profile, gpu, form, variants=absorb_variants(form), notes=notes)


def absorb_variants(form: str) -> tuple[str, ...]:
    """Variants of the "gemm" section for the batched products of latent attention, best first.

    >>> absorb_variants("fp8")[:2]
    ('absorb_fp8', 'absorb')
    """
    own = "absorb" if form in ("bf16", "fp16") else f"absorb_{form}"
    return tuple(dict.fromkeys((own, "absorb", "batched", *gemm_variants(form))))


def _narrow(dtype: str) -> str:
    """fp8 for every way to scale it."""
    return "fp8" if dtype.startswith("fp8") else dtype


def memory_bound_row(profile: Profile, gpu: GpuSpec) -> NDArray[np.void]:
    """MEMORY_BOUND record, shape ()."""
    facts = {"threads_per_sm": threads_per_sm(gpu.compute_capability)}
    coefficients = profile.section("memory_bound", "general")
    return record(memory_bound.MEMORY_BOUND, **{**coefficients, **facts})


def collective_row(
    profile: Profile, gpu: GpuSpec, *, own: bool, topology: str = "", eager: bool = False
) -> NDArray[np.void]:
    """COLLECTIVE record, shape (): of the stack's own all-reduce, or of the library.

    topology: of the machine, as in `device_facts.link_facts`. eager: called one by one from the
    host, with the cost of that in the time; in a whole model the host track holds it.
    """
    traits = profile.traits
    links = vars(link_facts_of(gpu, topology))
    if links["link_domain"] == _PAIR and not traits.pair_links:
        links = {**links, "link_domain": 1.0}
    switched = traits.in_switch_reduction if own else traits.library_in_switch_reduction
    return record(
        collective.COLLECTIVE,
        **{**links, "multicast": links["multicast"] if switched else 0.0},
        staged=float(eager),
        direct_limit_bytes=traits.direct_all_reduce_bytes if own else 0.0,
        **profile.section("collective", *collective_variants(own)),
    )


_PAIR = 2.0  # GPUs of an NVLink bridge


def collective_variants(own: bool) -> tuple[str, ...]:
    """Variants of the "collective" section for the stack's own kernels or the library's."""
    return ("tensor", "nccl") if own else ("nccl", "tensor")


def scan_row(profile: Profile, gpu: GpuSpec, dtype: str) -> NDArray[np.void]:
    """SCAN record, shape (): recurrent mixers with inputs and outputs in `dtype`."""
    return record(
        scan.SCAN,
        peak_flops_per_s=peak_for(gpu, dtype, []),
        element_bytes=dtype_bytes(dtype),
        **profile.section("scan"),
    )
