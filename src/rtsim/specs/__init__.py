"""Validated descriptions of what is predicted: model, GPU, parallelism, workload."""

from rtsim.specs.attention import (
    AttentionSpec,
    CompressedAttentionSpec,
    IndexerSpec,
    LatentAttentionSpec,
)
from rtsim.specs.base import (
    Bytes,
    BytesPerSecond,
    FlopsPerSecond,
    Hertz,
    Seconds,
    Spec,
    UsdPerHour,
    Watts,
)
from rtsim.specs.dtype import (
    DTYPES,
    QUANTIZATIONS,
    WEIGHT_FORMATS,
    DType,
    KvDType,
    Quantization,
    WeightFormat,
    dtype_bytes,
    weight_format,
)
from rtsim.specs.gpu import GpuSpec, LinkSpec, NetworkSpec
from rtsim.specs.mlp import MlpSpec, MoeSpec
from rtsim.specs.model import LayerGroup, ModelSpec, QuantizationSpec
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.specs.provenance import PriceSpec, Provenance
from rtsim.specs.recurrent import GatedDeltaSpec, LinearAttentionSpec, Mamba2Spec, MambaSpec
from rtsim.specs.workload import WorkloadSpec

__all__ = [
    "DTYPES",
    "QUANTIZATIONS",
    "WEIGHT_FORMATS",
    "AttentionSpec",
    "Bytes",
    "BytesPerSecond",
    "CompressedAttentionSpec",
    "DType",
    "FlopsPerSecond",
    "GatedDeltaSpec",
    "GpuSpec",
    "Hertz",
    "IndexerSpec",
    "KvDType",
    "LatentAttentionSpec",
    "LayerGroup",
    "LinearAttentionSpec",
    "LinkSpec",
    "Mamba2Spec",
    "MambaSpec",
    "MlpSpec",
    "ModelSpec",
    "MoeSpec",
    "NetworkSpec",
    "ParallelismSpec",
    "PriceSpec",
    "Provenance",
    "Quantization",
    "QuantizationSpec",
    "Seconds",
    "Spec",
    "UsdPerHour",
    "Watts",
    "WeightFormat",
    "WorkloadSpec",
    "dtype_bytes",
    "weight_format",
]
