"""One batch of equal requests that are handed to an engine at once, to its end."""

from __future__ import annotations

import math
from typing import Any

from ._jit import jit
from .load import decode_batch, drafting, tokens_per_step
from .mixed import ANEW, Batch, engine_step_s


@jit
def batch_s(load: Any, operators: Any, segments: Any, machine: Any, engine: Any, times: Any) -> Any:
    """(seconds to the first tokens, seconds in all) of `in_flight` equal requests sent at once.

    Prompts fill steps up to the budget; then all decode together. Sequences above `most_running`
    follow in further waves.
    """
    waves = math.ceil(max(1.0, load.in_flight / load.most_running))
    together = load.in_flight / waves
    new = max(1.0, load.input_len - load.cached_tokens)
    chunk = min(new, load.token_budget)
    prompts = max(1.0, math.floor(load.token_budget / new))
    prompts = min(prompts, together)
    chunk_context = load.cached_tokens + 0.5 * (new + chunk)
    if chunk == new:
        chunk_context = load.input_len
    passes = (together / prompts) * (new / chunk)
    prompt_s = engine_step_s(
        Batch(0.0, 0.0, prompts, chunk, chunk_context, prompts * chunk / new, 1.0, 1.0), ANEW,
        operators, segments, machine, engine, times,
    )  # fmt: skip
    # Stages of a pipeline work on different prompts at once.
    first_s = engine.request_s + (passes + load.stages - 1.0) * prompt_s / load.stages
    gain = tokens_per_step(load.speculated, load.acceptance)
    steps = max(0.0, load.output_len - 1.0) / gain
    decode_s = 0.0
    if steps > 0.0:
        decode_s = engine_step_s(
            decode_batch(load, together / load.stages, load.input_len + 0.5 * load.output_len, 1.0),
            ANEW, operators, segments, machine, engine, times,
        )  # fmt: skip
        decode_s *= drafting(load)
    return first_s, waves * (first_s - engine.request_s + steps * decode_s) + engine.request_s
