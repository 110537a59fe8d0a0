"""Continuous batching in its steady state: means of a closed loop, in closed form.

n requests are in flight in a group of GPUs, each with I prompt and O output tokens; when one ends
the next arrives. Steps are pure decode steps, which take d, and steps with a chunk of one prompt,
which take t; k chunks make a prompt, so a prompt costs all others

    x = k (t - d) / m    chunks beside decodes        x = k t / m    prompts in steps of their own

with m prompts in a step: those that arrive while one runs, at least one, at most the budget.

A request spends A before its first token (to the scheduler and back, half a step that is under
way, waiting, `own` in its prompt's steps) and D = (O - 1) tpot decoding; in all T. While it
decodes, the n - 1 others send (n - 1) / T prompts a second:

    D = (O - 1) d + x D (n - 1) / T,   T = A + D

Waiting, in A, is that of a server with prompts as customers: with u = x (n - 1) / T the share of
time that the others keep it busy, the mean wait is u x / (2 (1 - u)) (M/D/1; Pollaczek and
Khinchine), and more for those that arrive together with others: a share `bunching` of the n - 1,
half of them ahead. With A = a + u x / (2 (1 - u)) this is a quadratic,

    T^2 - (a + y + s) T + a y - x y / 2 = 0,   y = x (n - 1),   s = (O - 1) d

and no cycle is shorter than the n prompts that are in it. For long outputs tpot = d + y / (O - 1).
Of the n requests the share D / T decodes at a time, which sets the batch of a decode step. Requests
above what runs at once (cache, limit of the scheduler) wait outside, by Little's law T / n each.

Speculative decoding checks m drafted tokens and one more per step and keeps

    (1 - a^(m+1)) / (1 - a)

of them on average for an acceptance a (Leviathan et al., ICML 2023, eq. 1); drafting costs
`draft_frac` of a decode step per token.

Known error: docs/accuracy-serving.md, from rows outside the fit. Ignored: the spread of lengths,
and synchronised starts beyond `bunching`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ._jit import inner, jit
from .mixed import Batch, engine_step_s

# How prompts get into steps.
MIXED = 0.0
PREFILL_FIRST = 1.0
# Of the fixed point between what is in a step and the time that steps take: long outputs settle in
# two rounds, prompts that share steps in four or five.
ROUNDS = 12
STEEPEST = 0.8  # slope of the line to where it settles, rising; falling, 1 over it
SETTLED = 3e-3


class Load(NamedTuple):
    """What is asked of one group, and the limits of its scheduler.

    in_flight requests; running at most `most_running`; cached_tokens of a prompt's input_len are
    in the prefix cache. speculated: tokens drafted per step, with `acceptance` each.
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


class Steady(NamedTuple):
    """Means of the steady state, seconds and counts of one group."""

    ttft_s: float  # arrival to first token, waiting in
    ttft_alone_s: float  # without waiting for others
    tpot_s: float
    decode_step_s: float
    mixed_step_s: float
    cycle_s: float  # from one request to the next of a slot that is never empty
    running: float  # requests in the engine
    decoding: float  # of them
    busy_frac: float  # share of time that prompts take


@inner
def tokens_per_step(speculated: float, acceptance: float) -> float:
    """Tokens that a sequence gets per decode step."""
    if speculated <= 0.0:
        return 1.0
    if acceptance >= 1.0:
        return speculated + 1.0
    return (1.0 - acceptance ** (speculated + 1.0)) / (1.0 - acceptance)


@inner
def decode_batch(load: Any, decoding: float, context: float) -> Any:
    """The batch of a pure decode step; drafted tokens are checked with the last one."""
    return Batch(
        decoding / load.stages, context + load.speculated, 0.0, 0.0, 0.0, 0.0,
        1.0 + load.speculated,
    )  # fmt: skip


@inner
def cycle_of(
    fixed_s: float, prompt_s: float, others: float, decoding_s: float, hindered: float
) -> float:
    """Seconds T of a request's cycle: fixed parts, waiting for prompts, and its decode steps.

    fixed_s: a of the quadratic; decoding_s: s. hindered: 1 where prompts hold decoding up, 0 where
    they run elsewhere.
    """
    others_s = others * prompt_s
    apart_s = (1.0 - hindered) * decoding_s  # of the decode steps, those that prompts do not touch
    base_s = fixed_s + apart_s
    total_s = base_s + others_s + hindered * decoding_s
    product = base_s * others_s - 0.5 * prompt_s * others_s
    root = math.sqrt(max(0.0, total_s * total_s - 4.0 * product))
    return max(0.5 * (total_s + root), (others + 1.0) * prompt_s)


@inner
def where_it_settles(now: float, then: float, before: float, then_before: float) -> float:
    """Where a quantity equals what a round makes of it, on the line through two (Steffensen).

    now, before: what it was in the last round and the one before; then: what those made of it.
    """
    moved = now - before
    if abs(moved) <= 1e-6 * now:
        return then
    slope = min(STEEPEST, max(-1.0 / STEEPEST, (then - then_before) / moved))
    return now + (then - now) / (1.0 - slope)


@jit
def steady_state(
    load: Any, operators: Any, segments: Any, machine: Any, engine: Any, times: Any
) -> Any:
    """`Steady` of a load on an engine; `times`, shape (operators, 2), is that of a decode step."""
    running = max(1e-9, min(load.in_flight, load.most_running))
    others = max(0.0, running - 1.0)
    new = max(1.0, load.input_len - load.cached_tokens)
    mean_context = load.input_len + 0.5 * load.output_len
    gain = tokens_per_step(load.speculated, load.acceptance)
    steps = max(0.0, load.output_len - 1.0) / gain
    room = load.token_budget
    if load.policy == MIXED:
        room = max(0.25 * load.token_budget, load.token_budget - running / load.stages)
    chunk = min(new, room)
    chunks = new / chunk
    chunk_context = load.cached_tokens + 0.5 * (new + chunk)
    decoding = running if steps > 0.0 else 0.0
    together = 1.0  # prompts in a step
    decode_s = 0.0
    mixed_s = 0.0
    own_s = 0.0
    prompt_s = 0.0
    cycle_s = 0.0
    spent_s = 0.0
    together_before = 0.0
    arriving_before = 0.0
    decoding_before = 0.0
    decoded_before = 0.0
    for i in range(ROUNDS):
        beside = 0.0
        if load.policy == MIXED:
            beside = max(0.0, decoding - 1.0) / load.stages
        in_step = max(decoding, min(1.0, running))  # a step that decodes has a sequence at least
        mixed_s = engine_step_s(
            Batch(beside, mean_context, together, chunk, chunk_context, together / chunks,
                  1.0 + load.speculated), False,
            operators, segments, machine, engine, times,
        )  # fmt: skip
        decode_s = 0.0
        if decoding > 0.0:
            decode_s = engine_step_s(
                decode_batch(load, in_step, mean_context), False, operators, segments, machine,
                engine, times,
            )  # fmt: skip
            decode_s *= 1.0 + load.draft_frac * load.speculated
        own_s = chunks * mixed_s
        # What the decodes beside a prompt would have taken without it is not the prompt's.
        prompt_s = chunks * max(0.0, mixed_s - min(1.0, beside) * decode_s)
        prompt_s /= load.stages * together
        fixed_s = engine.request_s + own_s + 0.5 * engine.bunching * others * prompt_s
        fixed_s += 0.5 * min(1.0, others) * decode_s  # the step that is under way
        cycle_s = cycle_of(fixed_s, prompt_s, others, steps * decode_s, 1.0)
        spent_s = min(steps * decode_s / (1.0 - others * prompt_s / cycle_s), cycle_s - own_s)
        if load.policy == MIXED and decode_s > 0.0:
            # A step takes one budget of prompts: no cycle is shorter than the steps of its prompts,
            # and where all steps hold prompts a token takes one of them.
            spent_s = min(spent_s, steps * max(mixed_s, decode_s))
            cycle_s = max(cycle_s, running * chunks * mixed_s / (load.stages * together))
        arriving = others / cycle_s * mixed_s / load.stages
        arriving = min(max(1.0, arriving), max(1.0, room / chunk))
        decoded = decoding
        if steps > 0.0:
            decoded = max(1e-9, running * spent_s / cycle_s)
        if abs(arriving - together) <= SETTLED * together and (
            abs(decoded - decoding) <= SETTLED * decoding
        ):
            break
        next_together = arriving
        next_decoding = decoded
        if i > 0:
            next_together = where_it_settles(together, arriving, together_before, arriving_before)
            next_decoding = where_it_settles(decoding, decoded, decoding_before, decoded_before)
        together_before = together
        arriving_before = arriving
        decoding_before = decoding
        decoded_before = decoded
        together = min(max(1.0, next_together), max(1.0, room / chunk))
        decoding = min(max(1e-9, next_decoding), running)
    # All that is no decoding comes before the first token.
    first_s = cycle_s - spent_s
    queued = max(0.0, load.in_flight - running)
    return Steady(
        first_s + queued * cycle_s / running,
        engine.request_s + own_s,
        spent_s / steps / gain if steps > 0.0 else math.nan,
        decode_s,
        mixed_s,
        cycle_s,
        running,
        decoding if steps > 0.0 else 0.0,
        min(1.0, running * prompt_s / cycle_s),
    )


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
        Batch(0.0, 0.0, prompts, chunk, chunk_context, prompts * chunk / new, 1.0), False,
        operators, segments, machine, engine, times,
    )  # fmt: skip
    # Stages of a pipeline work on different prompts at once.
    first_s = engine.request_s + (passes + load.stages - 1.0) * prompt_s / load.stages
    gain = tokens_per_step(load.speculated, load.acceptance)
    steps = max(0.0, load.output_len - 1.0) / gain
    decode_s = 0.0
    if steps > 0.0:
        decode_s = engine_step_s(
            decode_batch(load, together, load.input_len + 0.5 * load.output_len), False,
            operators, segments, machine, engine, times,
        )  # fmt: skip
        decode_s *= 1.0 + load.draft_frac * load.speculated
    return first_s, waves * (first_s - engine.request_s + steps * decode_s) + engine.request_s


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
        Batch(0.0, 0.0, 1.0, chunk, context, 1.0 / chunks, 1.0), False,
        prompt_rows[0], prompt_rows[1], prompt_rows[2], engine, prompt_times,
    )  # fmt: skip
    gain = tokens_per_step(load.speculated, load.acceptance)
    steps = max(0.0, load.output_len - 1.0) / gain
    mean_context = load.input_len + 0.5 * load.output_len
    most = min(load.in_flight, load.most_running)
    others = max(0.0, prompt_load.in_flight - 1.0)
    fixed_s = engine.request_s + prompt_s + transfer_s
    fixed_s += 0.5 * engine.bunching * others * prompt_s
    decoding = most
    decode_s = 0.0
    cycle_s = fixed_s
    for _ in range(ROUNDS):
        decode_s = engine_step_s(
            decode_batch(load, max(1e-3, decoding), mean_context), False, decode_rows[0],
            decode_rows[1], decode_rows[2], engine, decode_times,
        )  # fmt: skip
        decode_s *= 1.0 + load.draft_frac * load.speculated
        # One prompt server for each group's share of the requests, which decode elsewhere.
        cycle_s = cycle_of(fixed_s, prompt_s, others, steps * decode_s, 0.0)
        decoded = min(most, load.in_flight * steps * decode_s / cycle_s)
        if abs(decoded - decoding) <= SETTLED * decoding:
            break
        decoding = math.sqrt(max(1e-6, decoding * decoded))
    tpot_s = decode_s / gain
    if steps <= 0.0:
        tpot_s = math.nan
    return cycle_s - steps * decode_s, tpot_s


@jit
def steady_states(
    loads: Any, operators: Any, segments: Any, machine: Any, engine: Any, times: Any, out: Any
) -> None:
    """`steady_state` of many loads, arrays (rows, fields of Load) to (rows, fields of Steady)."""
    for i in range(len(loads)):
        load = Load(
            loads[i, 0], loads[i, 1], loads[i, 2], loads[i, 3], loads[i, 4], loads[i, 5],
            loads[i, 6], loads[i, 7], loads[i, 8], loads[i, 9], loads[i, 10],
        )  # fmt: skip
        made = steady_state(load, operators, segments, machine, engine, times)
        for j in range(len(made)):
            out[i, j] = made[j]
