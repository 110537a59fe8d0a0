"""What is asked of a serving engine: requests in flight, their sizes, and the scheduler's limits.

Speculative decoding checks m drafted tokens and one more per step and keeps

    (1 - a^(m+1)) / (1 - a)

of them on average for an acceptance a (Leviathan et al., ICML 2023, eq. 1); drafting costs
`draft_frac` of a decode step per token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ._jit import inner
from .mixed import Batch

# How prompts get into steps.
MIXED = 0.0
PREFILL_FIRST = 1.0


class Load(NamedTuple):
    """What is asked of one group, and the limits of its scheduler.

    in_flight requests; running at most `most_running`; cached_tokens of a prompt's input_len are
    in the prefix cache. stages of a pipeline, as many streams of requests. speculated: tokens
    drafted per step, with `acceptance` each. groups that step in lockstep, this one in. equal: 1
    where all requests have the same lengths, 0 where lengths differ.
    """

    in_flight: float
    most_running: float
    input_len: float
    output_len: float
    cached_tokens: float
    policy: float
    token_budget: float
    stages: float
    speculated: float
    acceptance: float
    draft_frac: float
    groups: float
    equal: float


@inner
def load_in(row: Any) -> Any:
    """The `Load` of a row of an array, (fields,)."""
    return Load(
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10],
        row[11], row[12],
    )  # fmt: skip


@inner
def tokens_per_step(speculated: float, acceptance: float) -> float:
    """Tokens that a sequence gets per decode step."""
    if speculated <= 0.0:
        return 1.0
    if acceptance >= 1.0:
        return speculated + 1.0
    return (1.0 - acceptance ** (speculated + 1.0)) / (1.0 - acceptance)


@inner
def decode_batch(load: Any, decoding: float, context: float, pooled: float) -> Any:
    """The batch of a pure decode step; drafted tokens are checked with the last one."""
    return Batch(
        decoding, context + load.speculated, 0.0, 0.0, 0.0, 0.0, 1.0 + load.speculated, pooled
    )


@inner
def drafting(load: Any) -> float:
    """Time of a decode step with its drafts over the time without."""
    return float(1.0 + load.draft_frac * load.speculated)
