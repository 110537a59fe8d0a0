"""Number formats: how many bytes an element takes, and what a quantisation does to weights.

Sizes include the scale factors stored with block formats: NVFP4 keeps one 8-bit scale per 16
elements (NVIDIA Blackwell tuning notes), MXFP4 one per 32 (OCP Microscaling v1.0), int4
weight-only one 16-bit scale per 128 (AWQ and GPTQ's usual group).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

DType = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4", "int4"]
KvDType = Literal["fp32", "fp16", "bf16", "fp8", "int8"]
Quantization = Literal[
    "none",
    "fp8",
    "fp8_static",
    "fp8_block",
    "nvfp4",
    "int8_wo",
    "int4_wo",
    "int8_sq",
    "w4a16_mxfp4",
    "w4a8_mxfp4_mxfp8",
    "w4afp8",
]

# Other names of weight formats, as papers and serving stacks write them.
QUANTIZATION_ALIASES: dict[str, str] = {
    "int8": "int8_sq",
    "w8a8": "int8_sq",
    "w8a16": "int8_wo",
    "int4": "int4_wo",
    "w4a16": "int4_wo",
    "awq": "int4_wo",
    "gptq": "int4_wo",
    "fp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
}

DTYPES: tuple[str, ...] = get_args(DType)
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

_BYTES: dict[str, float] = {
    "fp32": 4.0,
    "tf32": 4.0,  # stored as fp32, rounded by the tensor core
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5,
    "int4": 0.5,
}


def dtype_bytes(dtype: str) -> float:
    """Bytes of one element. Raises KeyError for a name outside DTYPES (specs check first).

    >>> dtype_bytes("bf16")
    2.0
    """
    return _BYTES[dtype]


@dataclass(frozen=True)
class WeightFormat:
    """How the linear layers are stored and multiplied under a quantisation.

    `bytes_per_weight` includes scales; `compute_dtype` None means the workload's own dtype;
    `quantizes_activations` says that activations are converted at run time.
    """

    bytes_per_weight: float
    compute_dtype: DType | None
    quantizes_activations: bool
    meaning: str


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "fp8": WeightFormat(1.0, "fp8", True, "8-bit float, one scale per tensor, made at run time"),
    "fp8_static": WeightFormat(1.0, "fp8", True, "8-bit float with a fixed activation scale"),
    "fp8_block": WeightFormat(
        1.0 + 4.0 / (128 * 128), "fp8", True, "8-bit float, an fp32 scale per 128x128 block"
    ),
    "nvfp4": WeightFormat(0.5 + 1.0 / 16, "fp4", True, "4-bit float, an fp8 scale per 16"),
    "int8_wo": WeightFormat(1.0, None, False, "8-bit weights, computed in the workload's dtype"),
    "int4_wo": WeightFormat(
        0.5 + 2.0 / 128, None, False, "4-bit weights, computed in the workload's dtype"
    ),
    "int8_sq": WeightFormat(1.0, "int8", True, "8-bit weights and activations (SmoothQuant)"),
    "w4a16_mxfp4": WeightFormat(
        0.5 + 1.0 / 32, None, False, "MXFP4 weights, computed in the workload's dtype"
    ),
    "w4a8_mxfp4_mxfp8": WeightFormat(
        0.5 + 1.0 / 32, "fp8", True, "MXFP4 weights, MXFP8 activations"
    ),
    "w4afp8": WeightFormat(0.5 + 2.0 / 128, "fp8", True, "4-bit weights, fp8 activations"),
}


def weight_format(quantization: str, dtype: str) -> WeightFormat:
    """The format of the linear layers' weights; for "none" simply that of `dtype`."""
    if quantization == "none":
        return WeightFormat(dtype_bytes(dtype), None, False, f"stored in {dtype}")
    return WEIGHT_FORMATS[quantization]


@dataclass(frozen=True)
class OperandFormat:
    """What a matrix product reads, multiplies in and writes; bytes per element, scales included.

    `math_dtype` names the peak rate; `quantize_bytes` are those of an activation before it is
    quantised at run time, 0 where that is not done.
    """

    math_dtype: str
    a_bytes: float
    b_bytes: float
    out_bytes: float
    quantize_bytes: float


def operand_format(name: str, dtype: str = "bf16") -> OperandFormat | None:
    """The operands of a product in a number format; None for a name that is not modelled.

    name: a dtype or a quantisation. dtype: of the activations around a quantised product.

    >>> operand_format("fp16").b_bytes, operand_format("int8_wo").math_dtype
    (2.0, 'bf16')
    >>> operand_format("nvfp4").a_bytes, operand_format("fp8").quantize_bytes
    (0.5625, 2.0)
    """
    if name in _PLAIN:
        element = dtype_bytes(name)
        return OperandFormat(name, element, element, element, 0.0)
    weights = WEIGHT_FORMATS.get(name)
    if weights is None:
        return None
    out = dtype_bytes(dtype)
    if weights.compute_dtype is None:
        return OperandFormat(dtype, out, weights.bytes_per_weight, out, 0.0)
    # Block scales of activations are as large as those of weights; larger blocks do not count.
    scaled = weights.compute_dtype == "fp4"
    activation = weights.bytes_per_weight if scaled else dtype_bytes(weights.compute_dtype)
    return OperandFormat(
        weights.compute_dtype,
        activation,
        weights.bytes_per_weight,
        out,
        out if weights.quantizes_activations else 0.0,
    )


_PLAIN = ("fp32", "tf32", "fp16", "bf16")


def similar_formats(name: str) -> tuple[str, ...]:
    """`name`, then the formats whose products run most alike: coefficients of one serve another.

    >>> similar_formats("fp16")[:2], similar_formats("fp8_static")[:2]
    (('fp16', 'bf16'), ('fp8_static', 'fp8'))
    """
    for group in _ALIKE:
        if name in group:
            return (name, *(other for other in group if other != name))
    return (name,)


# Alike: one kernel library, one way to get at the operands.
_ALIKE = (
    ("bf16", "fp16"),
    ("fp8", "fp8_static", "fp8_block", "int8_sq", "w4afp8", "w4a8_mxfp4_mxfp8", "nvfp4"),
    ("int8_wo", "int4_wo", "w4a16_mxfp4"),
    ("fp32", "tf32"),
)
