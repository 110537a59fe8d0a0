"""Validated descriptions of what is predicted: model, GPU, parallelism, workload."""

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
from rtsim.specs.model import AttentionSpec, LayerGroup, MlpSpec, ModelSpec
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.specs.provenance import PriceSpec, Provenance
from rtsim.specs.workload import WorkloadSpec

__all__ = [
    "DTYPES",
    "QUANTIZATIONS",
    "WEIGHT_FORMATS",
    "AttentionSpec",
    "Bytes",
    "BytesPerSecond",
    "DType",
    "FlopsPerSecond",
    "GpuSpec",
    "Hertz",
    "KvDType",
    "LayerGroup",
    "LinkSpec",
    "MlpSpec",
    "ModelSpec",
    "NetworkSpec",
    "ParallelismSpec",
    "PriceSpec",
    "Provenance",
    "Quantization",
    "Seconds",
    "Spec",
    "UsdPerHour",
    "Watts",
    "WeightFormat",
    "WorkloadSpec",
    "dtype_bytes",
    "weight_format",
]
