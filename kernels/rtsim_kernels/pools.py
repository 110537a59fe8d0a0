"""Prompts and decoding in pools of their own, in the steady state of a closed loop."""

from __future__ import annotations

import math
from typing import Any

from ._jit import inner, jit
from .load import decode_batch, drafting, load_in, tokens_per_step
from .mixed import ANEW, Batch, engine_step_s
from .steady import ROUNDS, SETTLED


@inner
def queue_cycle(base: float, service: float, others: float) -> float:
    """Cycle of a closed loop of `others` + 1 with one server: base and the wait for the server.

    C = base + u service / (2 (1 - u)) with u = others service / C; at least the n services.
    """
    busy = others * service
    total = base + busy
    product = base * busy - 0.5 * service * busy
    root = math.sqrt(max(0.0, total * total - 4.0 * product))
    return float(max(0.5 * (total + root), busy + service))


@jit
def disaggregated(
    load: Any,
    prompt_load: Any,
    transfer_s: float,
    decode_rows: Any,
    prompt_rows: Any,
    engine: Any,
    decode_times: Any,
    prompt_times: Any,
) -> tuple[float, float]:
    """(ttft, tpot) seconds with pools of their own for prompts and for decoding.

    load, prompt_load: of one group of each pool, were all requests in it. The two share them: a
    cycle is the prompt, its cache sent over in transfer_s, and the decode steps; the pool that is
    slower keeps the others waiting. The prompt pool works on one prompt at a time per group, the
    decode pool has no prompts beside it. *_rows: (operators, segments, machine) of each.
    """
    new = max(1.0, prompt_load.input_len - prompt_load.cached_tokens)
    chunk = min(new, prompt_load.token_budget)
    chunks = new / chunk
    context = prompt_load.cached_tokens + 0.5 * (new + chunk)
    prompt_s = chunks * engine_step_s(
        Batch(0.0, 0.0, 1.0, chunk, context, 1.0 / chunks, 1.0, 1.0), ANEW,
        prompt_rows[0], prompt_rows[1], prompt_rows[2], engine, prompt_times,
    )  # fmt: skip
    gain = tokens_per_step(load.speculated, load.acceptance)
    steps = max(0.0, load.output_len - 1.0) / gain
    mean_context = load.input_len + 0.5 * load.output_len
    most = min(load.in_flight, load.most_running)
    others = max(0.0, prompt_load.in_flight - 1.0)
    fixed_s = engine.request_s + prompt_s + transfer_s
    fixed_s += 0.5 * engine.bunching * load.equal * others * prompt_s
    decoding = most
    decode_s = 0.0
    cycle_s = fixed_s
    for _ in range(ROUNDS):
        decode_s = engine_step_s(
            decode_batch(load, max(1e-3, decoding / load.stages), mean_context, 1.0), ANEW,
            decode_rows[0], decode_rows[1], decode_rows[2], engine, decode_times,
        )  # fmt: skip
        decode_s *= drafting(load)
        # One prompt server for each group's share of the requests, which decode elsewhere.
        cycle_s = queue_cycle(fixed_s + steps * decode_s, prompt_s, others)
        decoded = min(most, load.in_flight * steps * decode_s / cycle_s)
        if abs(decoded - decoding) <= SETTLED * decoding:
            break
        decoding = math.sqrt(max(1e-6, decoding * decoded))
    tpot_s = decode_s / gain
    if steps <= 0.0:
        tpot_s = math.nan
    return cycle_s - steps * decode_s, tpot_s


@jit
def disaggregated_many(
    loads: Any,
    prompt_loads: Any,
    transfer_s: Any,
    decode_rows: Any,
    prompt_rows: Any,
    engine: Any,
    decode_times: Any,
    prompt_times: Any,
    out: Any,
) -> None:
    """`disaggregated` of many loads, arrays (rows, fields of Load) and (rows,) seconds, to `out`.

    out: (rows, 3) with ttft, tpot, and the time of a prompt that waits for nobody.
    """
    for i in range(len(loads)):
        out[i, 0], out[i, 1] = disaggregated(
            load_in(loads[i]), load_in(prompt_loads[i]), transfer_s[i], decode_rows, prompt_rows,
            engine, decode_times, prompt_times,
        )  # fmt: skip
        prompt = loads[i, 2]  # input_len
        out[i, 2] = engine.request_s + engine_step_s(
            Batch(0.0, 0.0, 1.0, prompt, prompt, 1.0, 1.0, 1.0), ANEW, prompt_rows[0],
            prompt_rows[1], prompt_rows[2], engine, prompt_times,
        )  # fmt: skip
