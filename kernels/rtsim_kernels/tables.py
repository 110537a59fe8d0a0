"""Row layouts and codes: the contract between rtsim and its compiled core.

A row is a record of a NumPy structured dtype. Compiled code takes the record itself;
interpreted code takes the NamedTuple that `as_row` makes of it, since plain Python numbers are
many times faster there than NumPy scalars. Both are read as `row.field`.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any, NamedTuple

import numpy as np

# What bounds an operator.
BOUND_COMPUTE = 0
BOUND_MEMORY = 1
BOUND_LATENCY = 2  # launch, pipeline fill, fixed costs of a kernel
BOUND_LINK = 3
BOUND_HOST = 4  # only for whole layers: the host issues kernels more slowly than the GPU runs them
BOUND_NAMES = ("compute", "memory", "latency", "interconnect", "host")


class Coefficient(NamedTuple):
    """A fitted number of an operator model, declared beside the formula that uses it.

    The fit works on ln(value) with a normal prior of mean ln(prior) and deviation `spread`.
    """

    name: str
    prior: float  # physical guess, in `unit`
    spread: float  # sigma of ln(value) before any measurement
    lower: float
    upper: float
    unit: str
    meaning: str


def coefficient_dtype(coefficients: tuple[Coefficient, ...]) -> np.dtype[np.void]:
    """Row dtype with one float field per coefficient."""
    return np.dtype([(c.name, np.float64) for c in coefficients])


# Datasheet facts of one GPU. Rates are peaks per GPU; the FLOP rate of a GEMM or an attention
# kernel is in that operator's own row because it depends on the number format.
DEVICE = np.dtype(
    [
        ("sm_count", np.float64),
        ("clock_hz", np.float64),  # boost clock
        ("hbm_bytes_per_s", np.float64),
        ("l2_bytes", np.float64),
        ("vector_flops_per_s", np.float64),  # fp32 on the ordinary cores
    ]
)


@cache
def _row_class(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names)  # the fields are known only at run time


def as_row(record: Any) -> Any:
    """The NamedTuple of Python numbers with the fields of a structured record (shape ()).

    Rows within the record become NamedTuples too, arrays of rows tuples of them.
    """
    names = record.dtype.names
    if all(record.dtype[name].kind != "V" for name in names):
        return _row_class(names)._make(record.item())
    return _row_class(names)._make(_part(record[name]) for name in names)


def _part(part: Any) -> Any:
    if part.dtype.names is None:
        return part.tolist()
    return tuple(map(as_row, part)) if part.ndim else as_row(part)


# What an operator is. The codes of collectives are those of `collective.py`.
GEMM = 0  # [m, k] x [k, n] with stored weights
SCORES = 1  # unfused attention: queries x keys, one batched GEMM over sequences and heads
VALUES = 2  # unfused attention: probabilities x values, likewise
ATTENTION = 3  # fused attention, prefill or decode by the number of new tokens
MEMORY_BOUND = 4
COLLECTIVE = 5
MOE = 6  # routed experts: router, grouped products, combination
LATENT = 7  # latent attention (MLA) and kin: absorbed in decode, as attention in prefill
SCAN = 8  # recurrent token mixers
N_KINDS = 9

# When an operator runs: always, where a step has several new tokens, or where it has one.
ALWAYS = 0
MANY_TOKENS = 1
ONE_TOKEN = 2

# One operator of one GPU. The sizes that depend on the workload are linear in two counts of a
# step (forward pass): its tokens = sequences x new tokens, and its sequences:
#     units = per_token * tokens + per_sequence * sequences
# (and per_cached * earlier tokens of all sequences). Units are rows m of a GEMM, rows of
# memory-bound work, tokens that enter a mixture of experts, or bytes of a message. So a table is
# lowered once per model and parallelism and is timed at any batch, length and context.
OPERATOR = np.dtype(
    [
        ("kind", np.int64),
        ("row", np.int64),  # which row of the machine's table for this kind
        ("per_token", np.float64),
        ("per_sequence", np.float64),
        ("per_cached", np.float64),
        ("phase", np.int64),  # ALWAYS, MANY_TOKENS or ONE_TOKEN
        ("n", np.float64),
        ("k", np.float64),
        ("n_heads", np.float64),
        ("n_kv_heads", np.float64),
        ("head_dim", np.float64),
        ("v_head_dim", np.float64),
        ("window", np.float64),  # 0 = none
        ("causal", np.float64),
        ("source", np.float64),  # 1: keys are the encoder's output
        ("compression", np.float64),  # earlier tokens pooled to one entry; 0 = none
        ("key_limit", np.float64),  # compressed entries that a query sees at most; 0 = all
        ("delta", np.float64),  # recurrence by the delta rule
        ("channel_gate", np.float64),  # recurrence with a decay per channel
        ("n_experts", np.float64),
        ("n_local_experts", np.float64),
        ("top_k", np.float64),
        ("matrices", np.float64),  # of an expert
        ("skew", np.float64),
        ("work_kind", np.int64),  # kind of memory-bound kernel, a code of memory_bound.py
        ("width", np.float64),  # elements of one row of memory-bound work; 0 = the context
        ("read_bytes", np.float64),  # per element
        ("written_bytes", np.float64),
        ("flops", np.float64),
        ("warm_frac", np.float64),  # share of the input that the kernel before has just written
        ("collective", np.int64),  # a code of collective.py
        ("ranks", np.float64),
        ("ranks_per_node", np.float64),
        ("launches", np.float64),  # kernels that the host issues for it
        (
            "same",
            np.int64,
        ),  # 1 + the first row of the table that differs in launches alone; 0: none
    ]
)

# A run of operators that repeats: `count` equal layers, or the embedding, or the output head.
SEGMENT = np.dtype(
    [
        ("first", np.int64),  # operators [first, last)
        ("last", np.int64),
        ("count", np.int64),
        ("is_layer", np.int64),
        ("is_encoder", np.int64),  # runs over the prompt, before the decoder's first step
    ]
)

# Rows of a machine that an operator chooses among by its `row`.
N_GEMM_ROWS = 5
N_COLLECTIVE_ROWS = 5

# How a generation is carried out: what kind of model, and how its batch and prompt are split.
DECODER = 0
ENCODER = 1  # one pass over the input, nothing is generated
ENCODER_DECODER = 2
PLAN = np.dtype(
    [
        ("model_kind", np.int64),
        ("stages", np.float64),  # of the pipeline
        ("micro_batches", np.float64),
        ("prompt_ranks", np.float64),  # context parallelism: GPUs that share a sequence
    ]
)
