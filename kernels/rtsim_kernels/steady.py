"""Continuous batching in its steady state: means of a closed loop, in closed form.

n requests are in flight in a group of GPUs (a pipeline's stages are streams of n / stages), each
with I prompt and O output tokens; when one ends the next is on its way. Steps are pure decode
steps, which take d, and steps with prompts, which take t; k steps make a prompt, m prompts share
a step. A request's cycle follows from them (`cycle.py`), and what is in a step from the cycle: the
two are iterated to where they agree.

Requests above what runs at once (cache, limit of the scheduler) wait outside, by Little's law T / n
each.

Known error: docs/accuracy-serving.md, from rows outside the fit; against the event simulation
docs/serving.md. Ignored: the spread of contexts, chance differences between groups.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ._jit import inner, jit
from .cycle import Cycle, Steps, cycle_of, prompts_together
from .load import MIXED, decode_batch, drafting, load_in, tokens_per_step
from .lockstep import prompts_in_lockstep
from .mixed import ANEW, Batch, engine_step_s

# Of the fixed point between what is in a step and the time that steps take.
ROUNDS = 12
STEEPEST = 0.8  # slope of the line to where it settles, rising; falling, 1 over it
SETTLED = 3e-3
_FEW = 1e-9


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
def where_it_settles(now: float, then: float, before: float, then_before: float) -> float:
    """Where a quantity equals what a round makes of it, on the line through two (Steffensen).

    now, before: what it was in the last round and the one before; then: what those made of it.
    """
    moved = now - before
    if abs(moved) <= 1e-6 * now:
        return then
    slope = min(STEEPEST, max(-1.0 / STEEPEST, (then - then_before) / moved))
    return now + (then - now) / (1.0 - slope)


@inner
def calmed(change: float, before: float) -> float:
    """A change of a quantity, half of it where it turns round what the last one did."""
    return 0.5 * change if change * before < 0.0 else change


@inner
def near(a: float, b: float) -> bool:
    return bool(abs(a - b) <= SETTLED * max(a, b))


@jit
def steady_state(
    load: Any, operators: Any, segments: Any, machine: Any, engine: Any, times: Any
) -> Any:
    """`Steady` of a load on an engine; `times`, shape (operators, 2), is that of a decode step."""
    running = max(_FEW, min(load.in_flight, load.most_running))
    stated = running / load.stages
    requests = max(1.0, stated)  # of a stream that is not empty
    present = min(1.0, stated)  # the chance of a group to have any
    alike = present if load.groups > 1.0 else 1.0
    # Equal lengths keep groups in phase: their prompts come in the same steps.
    unlike = load.groups > 1.0 and load.equal <= 0.0
    new = max(1.0, load.input_len - load.cached_tokens)
    mean_context = load.input_len + 0.5 * load.output_len
    checked = 1.0 + load.speculated
    gain = tokens_per_step(load.speculated, load.acceptance)
    output_steps = max(0.0, load.output_len - 1.0) / gain
    room = load.token_budget
    if load.policy == MIXED:
        # Decodes take their part of the budget: those of all requests, or of as many as the rest
        # of it lets in.
        kept = output_steps * load.token_budget / (new + output_steps * checked)
        room = load.token_budget - checked * min(requests, kept)
        room = max(0.25 * load.token_budget, room)
    chunk = min(new, room)
    chunks = new / chunk
    budgets = new / room
    chunk_context = load.cached_tokens + 0.5 * (new + chunk)
    most = max(1.0, min(requests, room / chunk))
    decoding = requests
    beside_frac = max(0.0, 1.0 - 1.0 / requests)
    each_step = requests * chunks / (chunks + output_steps)
    together = min(most, 1.0 + 0.5 * each_step * beside_frac)
    steps = Steps(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    cycle = Cycle(0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    together_before = 0.0
    arriving_before = 0.0
    decode_s = 0.0
    decoding_timed = 0.0
    beside_change = 0.0
    each_change = 0.0
    for i in range(ROUNDS):
        chance = min(1.0, each_step / together)
        any_chance = chance
        others_chance = 0.0
        largest = together
        share = 1.0  # of the groups that have prompts where any has
        if unlike:
            shared = prompts_in_lockstep(present * each_step, load.groups)
            any_chance = max(shared.any_chance, chance * present)
            largest = min(most, together * shared.most / shared.together)
            share = chance * present / any_chance
            others_chance = max(0.0, any_chance - chance) / max(_FEW, 1.0 - chance)
        beside = decoding * beside_frac if load.policy == MIXED else 0.0
        pooled = alike
        if unlike:
            own_tokens = beside * checked + largest * chunk
            tokens = share * (beside * checked + together * chunk)
            tokens += max(0.0, present - share) * decoding * checked
            pooled = min(1.0, tokens / own_tokens)
        prompt_s = engine_step_s(
            Batch(beside, mean_context, largest, chunk, chunk_context, largest / chunks, checked,
                  pooled), ANEW, operators, segments, machine, engine, times,
        )  # fmt: skip
        if output_steps > 0.0 and not near(decoding, decoding_timed):
            decoding_timed = decoding
            decode_s = drafting(load) * engine_step_s(
                decode_batch(load, max(decoding, 1.0), mean_context, alike), ANEW, operators,
                segments, machine, engine, times,
            )  # fmt: skip
        if load.policy == MIXED:
            prompt_s = max(prompt_s, decode_s)
        steps = Steps(
            decode_s, prompt_s, any_chance,
            (1.0 - others_chance) * decode_s + others_chance * prompt_s,
            (1.0 - any_chance) * decode_s + any_chance * prompt_s, together,
        )  # fmt: skip
        if i == 0:
            guess_s = (
                engine.request_s + chunks * prompt_s + output_steps * max(decode_s, steps.mean_s)
            )
            cycle = Cycle(guess_s, output_steps * decode_s, 0.0, 0.0, 1.0, each_step)
        cycle = cycle_of(steps, requests, output_steps, chunks, budgets, load, engine, cycle)
        others = requests - 1.0
        arriving = prompts_together(decode_s, prompt_s, others / cycle.cycle_s)
        arriving += engine.bunching * load.equal * others
        if unlike:
            arriving = prompts_in_lockstep(present * cycle.each_step, load.groups).together
        arriving = min(max(arriving, cycle.each_step), most)  # or they would take all steps
        settled = (
            near(arriving, together) and near(cycle.decoding, decoding)
            and near(cycle.each_step, each_step)
            and near(1.0 + cycle.beside, 1.0 + decoding * beside_frac)
        )  # fmt: skip
        if settled:
            break
        decoding = min(requests, cycle.decoding)
        # Near saturation many prompts a step make long waits, after which few are left for a step.
        beside_change = calmed(min(1.0, cycle.beside / decoding) - beside_frac, beside_change)
        beside_frac += beside_change
        each_change = calmed(cycle.each_step - each_step, each_change)
        each_step += each_change
        next_together = arriving
        if i > 0:
            next_together = where_it_settles(together, arriving, together_before, arriving_before)
        together_before = together
        arriving_before = arriving
        together = min(max(1.0, next_together), most)
    queued = max(0.0, load.in_flight - running)
    cycle_s = cycle.cycle_s
    prompts_s = chunks * steps.prompt_s
    extra_s = prompts_s / steps.together
    if load.policy == MIXED:
        extra_s -= chunks * steps.decode_s / steps.together * min(1.0, cycle.beside)
    return Steady(
        cycle_s - cycle.decoding_s + queued * cycle_s / running,
        engine.request_s + prompts_s,
        cycle.decoding_s / output_steps / gain if output_steps > 0.0 else math.nan,
        steps.decode_s,
        steps.prompt_s,
        cycle_s,
        running,
        running * cycle.decoding_s / cycle_s,
        min(1.0, requests * present * extra_s / cycle_s),
    )


@jit
def steady_states(
    loads: Any, operators: Any, segments: Any, machine: Any, engine: Any, times: Any, out: Any
) -> None:
    """`steady_state` of many loads, arrays (rows, fields of Load) to (rows, fields of Steady)."""
    for i in range(len(loads)):
        made = steady_state(load_in(loads[i]), operators, segments, machine, engine, times)
        for j in range(len(made)):
            out[i, j] = made[j]
