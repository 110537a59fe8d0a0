"""Rows that the bulk kernels take: systems joined, and what the time of an operator depends on.

Many systems are handed over at once. Their machines are an array of `step.MACHINE`, their operator
tables are joined end to end, and each operator says on which counts of a step its time depends, so
that a kernel knows which of them it has timed before.
"""

from __future__ import annotations

from math import floor
from typing import Any, NamedTuple

from . import tables
from ._jit import inner
from .step import depends_on_context
from .tables import N_KINDS

# How the time of an operator depends on a step, `dependence`. Floats, since Numba compiles a
# function anew for every literal integer that it is called with.
ON_TOKENS = 0.0
ON_SEQUENCES = 1.0
ON_BOTH = 2.0
ON_CONTEXT = 3.0

# Columns of a segment's sums: GPU seconds by kind, then
GPU_S = N_KINDS  # of all kinds
HOST_S = N_KINDS + 1  # of the host itself
EXPOSED_S = N_KINDS + 2  # collectives that the host waits for
N_ADDED = N_KINDS + 3  # those up to here are added up
RANKS = N_KINDS + 3  # of the largest collective
N_SUMS = N_KINDS + 4
# Columns of a step: owed seconds by kind, then the step's time.
STEP_S = N_KINDS
N_STEP = N_KINDS + 1

WHOLE_UNITS = 2.0**20  # sizes per token that are multiples of 1 / this are exact in any order


class Tables(NamedTuple):
    """Operators of many models joined, with `dependence`, `same`, and the other joined rows.

    same: index in `operators` of the first row that is equal but for its launches. classes: of each
    system's operators from its `first_class` on, what their times have in common with those of
    other systems, 0 = nothing to look for; memo: (`bulk_memo.PLACES`, `bulk_memo.WORDS`) int64,
    where times of a class are kept. No places: no class is looked for.
    """

    operators: Any
    segments: Any
    executions: Any
    dependence: Any
    same: Any
    caches: Any
    classes: Any
    memo: Any


@inner
def dependence(operator: Any) -> float:
    """What the time of an operator depends on: an ON_* code."""
    o = operator
    if depends_on_context(o) or o.source > 0.0:
        return ON_CONTEXT
    counted = o.kind in (tables.GEMM, tables.MEMORY_BOUND, tables.MOE, tables.COLLECTIVE)
    if not counted or o.per_cached > 0.0:
        return ON_BOTH
    if o.per_token == 0.0:
        return ON_SEQUENCES
    if o.per_sequence == 0.0 and o.per_token * WHOLE_UNITS == floor(o.per_token * WHOLE_UNITS):
        return ON_TOKENS
    return ON_BOTH
