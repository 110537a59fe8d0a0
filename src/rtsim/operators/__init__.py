"""Lower a model to operator rows: the only package that knows what a Transformer is."""

from rtsim.operators.lower import lower
from rtsim.operators.table import (
    COLLECTIVE_CONTEXT,
    COLLECTIVE_EXPERTS,
    COLLECTIVE_LOGITS,
    COLLECTIVE_PIPELINE,
    COLLECTIVE_TENSOR,
    GEMM_ABSORB,
    GEMM_ATTENTION,
    GEMM_BATCHED,
    GEMM_HEAD,
    GEMM_WEIGHTS,
    TRAIT_VALUES,
    OperatorTable,
    PlainForward,
    StackTraits,
)

__all__ = [
    "COLLECTIVE_CONTEXT",
    "COLLECTIVE_EXPERTS",
    "COLLECTIVE_LOGITS",
    "COLLECTIVE_PIPELINE",
    "COLLECTIVE_TENSOR",
    "GEMM_ABSORB",
    "GEMM_ATTENTION",
    "GEMM_BATCHED",
    "GEMM_HEAD",
    "GEMM_WEIGHTS",
    "TRAIT_VALUES",
    "OperatorTable",
    "PlainForward",
    "StackTraits",
    "lower",
]
