"""Number formats of a run, and the rates at which a GPU computes in them."""

from __future__ import annotations

from dataclasses import dataclass

from rtsim.errors import NotSupported
from rtsim.specs.dtype import WeightFormat, operand_format, weight_format
from rtsim.specs.gpu import GpuSpec


@dataclass(frozen=True)
class Formats:
    """Number formats of a run: activations and compute, KV cache, weights by part.

    Parts of a model: `attention` (projections of token mixers), `mlp`, `experts` (routed ones);
    "none" is `dtype`. Embeddings, norms, routers and the output head stay in `dtype`.
    """

    dtype: str
    kv_dtype: str
    attention: str = "none"
    mlp: str = "none"
    experts: str = "none"

    def of(self, part: str) -> str:
        """Format that a part's products run in: its quantisation, or the dtype."""
        quantization: str = getattr(self, part)
        return self.dtype if quantization == "none" else quantization

    def weights(self, part: str) -> WeightFormat:
        """How a part's weights are stored."""
        return weight_format(getattr(self, part), self.dtype)


def peak_for(gpu: GpuSpec, dtype: str, notes: list[str]) -> float:
    """Dense peak FLOP rate for products in `dtype`; a note where the GPU computes otherwise.

    A GPU without fp8 or int4 units computes such formats in 16 bits, one without bf16 in fp16.
    """
    for candidate in dict.fromkeys((dtype, "fp16" if dtype == "bf16" else "bf16", "fp16", "fp32")):
        peak = gpu.peak_flops_per_s(candidate)
        if peak is not None:
            if candidate != dtype:
                notes.append(f"{gpu.name} states no {dtype} rate; computed at its {candidate} rate")
            return peak
    raise NotSupported(f"{gpu.name} states no rate that {dtype} could be computed at")


def fastest_math(gpu: GpuSpec, formats: Formats, *, experts: bool) -> tuple[str, float]:
    """The number format with the highest dense peak among those that products run in, and it."""
    parts = ("attention", "mlp", "experts") if experts else ("attention", "mlp")
    found = {formats.dtype: peak_for(gpu, formats.dtype, [])}
    for part in parts:
        operands = operand_format(formats.of(part), formats.dtype)
        if operands is not None and gpu.peak_flops_per_s(operands.math_dtype) is not None:
            found[operands.math_dtype] = peak_for(gpu, operands.math_dtype, [])
    return max(found.items(), key=lambda pair: pair[1])
