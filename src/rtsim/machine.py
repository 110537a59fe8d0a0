"""A profile resolved for a GPU and number formats: the rows that the kernels read.

Facts of the GPU (device_facts.py) and of the number formats (specs/dtype.py) and fitted
coefficients stand in one record per operator kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import step, tables

from rtsim.device_facts import device_row, record, stacked
from rtsim.formats import Formats
from rtsim.kernel_records import (
    absorb_row,
    attention_row,
    collective_row,
    gemm_row,
    memory_bound_row,
    mla_decode_row,
    mla_prefill_row,
    moe_row,
    scan_row,
)
from rtsim.profile import Profile
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec


@dataclass(frozen=True)
class MachineRows:
    """The records of a `step.Machine`: shape () each, (rows,) for gemm and collective."""

    device: NDArray[np.void]
    gemm: NDArray[np.void]
    prefill: NDArray[np.void]
    decode: NDArray[np.void]
    memory: NDArray[np.void]
    collective: NDArray[np.void]
    host: NDArray[np.void]
    moe: NDArray[np.void]
    mla_prefill: NDArray[np.void]
    mla_decode: NDArray[np.void]
    scan: NDArray[np.void]
    plan: NDArray[np.void]

    def interpreted(self) -> step.Machine:
        """For interpreted kernels: plain Python numbers."""
        return step.Machine._make(tables.as_row(self.joined()))

    def joined(self) -> NDArray[np.void]:
        """For compiled kernels: one MACHINE record, shape ()."""
        machine = np.zeros((), step.MACHINE)
        for name in step.Machine._fields:
            machine[name] = getattr(self, name)
        return machine


PLAN_ALONE = {"model_kind": 0.0, "stages": 1.0, "micro_batches": 1.0, "prompt_ranks": 1.0}
_MODEL_KINDS = {
    "decoder": tables.DECODER,
    "encoder": tables.ENCODER,
    "encoder-decoder": tables.ENCODER_DECODER,
}


def plan_facts(model: ModelSpec, parallelism: ParallelismSpec) -> dict[str, float]:
    """Fields of a PLAN record: the kind of model, and how batch and prompt are split."""
    return {
        "model_kind": _MODEL_KINDS[model.kind],
        "stages": parallelism.pp,
        "micro_batches": parallelism.micro_batches,
        "prompt_ranks": parallelism.cp,
    }


def machine_rows(
    profile: Profile,
    gpu: GpuSpec,
    formats: Formats,
    notes: list[str] | None = None,
    plan: dict[str, float] | None = None,
) -> MachineRows:
    """Resolve a profile for a GPU and number formats: facts and coefficients in one row each.

    The order of the gemm and collective rows is that of `operators.GEMM_*`, `COLLECTIVE_*`. plan:
    of `plan_facts`; None is a decoder on its own. Appends to `notes` what had to be assumed.
    """
    dtype, kv_dtype = formats.dtype, formats.kv_dtype
    library = collective_row(profile, gpu, own=False)
    remarks: list[str] = []
    made = MachineRows(
        device=device_row(gpu),
        gemm=stacked(
            [
                gemm_row(profile, gpu, formats.of("mlp"), dtype, notes=remarks),
                gemm_row(profile, gpu, dtype, dtype, notes=remarks),
                gemm_row(profile, gpu, dtype, dtype, variants=("batched",)),
                gemm_row(profile, gpu, formats.of("attention"), dtype, notes=remarks),
                absorb_row(profile, gpu, dtype),
            ]
        ),
        prefill=attention_row(profile, gpu, "attention_prefill", dtype, kv_dtype),
        decode=attention_row(profile, gpu, "attention_decode", dtype, kv_dtype),
        memory=memory_bound_row(profile, gpu),
        collective=stacked([collective_row(profile, gpu, own=True), *[library] * 4]),
        host=record(step.HOST, **profile.section("host")),
        moe=moe_row(profile, gpu, formats.of("experts"), dtype, notes=remarks),
        mla_prefill=mla_prefill_row(profile, gpu, dtype, kv_dtype),
        mla_decode=mla_decode_row(profile, gpu, dtype, kv_dtype),
        scan=scan_row(profile, gpu, dtype),
        plan=record(tables.PLAN, **(plan or PLAN_ALONE)),
    )
    if notes is not None:
        notes += dict.fromkeys(remarks)
    return made
