"""A request's cycle in a closed loop, given how long the steps of its engine take.

All is balance of requests over the steps of a cycle; a step has tokens for those in it, so that
what matters is counted in steps, not in time. Symbols: n requests, d and t seconds of a decode step
and of one with prompts, k steps of a prompt, m prompts in a step, O output tokens.

**Outside.** From one answer to the start of the next request's prompt pass `request_s` and what is
left of the step that is under way then (`met_on_arrival`), or all of a step where the request is
back sooner than one ends. Of the decode steps of a cycle the share o passes so: n (1 - o) requests
decode in one.

**Prompts beside decodes** (`MIXED`). A cycle has C = outside + W + k + O - 1 steps, with W of them
waiting, and at least n k' where a prompt takes the share k' of a step's budget. Prompts are in the
share p = n k / (C m) of steps; beside them decode all but those in them, those that wait for them,
and those outside meanwhile, of which there are A:

    D_m = n - m (1 + (W + A) / k),   D_d = n (1 - o)
    tpot = ((1 - p) D_d d + p D_m t) / ((1 - p) D_d + p D_m)

**Prompts first** (`PREFILL_FIRST`). No token comes out while prompts run, which take Y = n k t / m
of a cycle T; the rest of the time is decode steps of n (1 - o):

    (T - Y) (T - outside) = (O - 1) d T

Waiting moves time from decoding to before the first token and leaves T as it is.

**Waiting** beyond that step is that of a server whose customers are prompts, u the share of time
that the others keep it busy with k' steps each: u (k' - 1) / 2 for what is left of a prompt of
several steps, and for those ahead, with b = 1 / k' prompts served at a time (Sakasegawa, Ann. Inst.
Stat. Math. 29, 1977; for b = 1 that of M/D/1, Pollaczek and Khinchine)

    k' u^sqrt(2 (b + 1)) / (2 (1 - u))    steps

**Together.** Those that arrive in one step share the next, so that a request finds others in its
own step and that is longer (`arrival_step_s`), and a step that has any has m (`prompts_together`).
Requests of equal lengths that came together stay together: a share `bunching` of the others, fitted
on such runs, meets a request's prompt each time.

**Lockstep.** Groups that share experts step together (`lockstep.py`): where another has a prompt, a
group's decode step is as long as that prompt's; the experts see the mean of the groups' tokens.
Groups that started together stay in phase where lengths are equal: their prompts share steps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ._jit import inner
from .load import MIXED

_FEW = 1e-9

OFTEN_BUSY = 0.5  # beyond, the wait for a server is found with the round that it lengthens
BISECTIONS = 14


class Steps(NamedTuple):
    """Steps of a stream: seconds, chances and counts.

    decode_s: of a pure decode step; prompt_s: with prompts in it. any_chance: of a step to have
    prompts in any group; own_s: a step without prompts of this group; mean_s: any. together:
    prompts of this group in a step that has some.
    """

    decode_s: float
    prompt_s: float
    any_chance: float
    own_s: float
    mean_s: float
    together: float


class Cycle(NamedTuple):
    """A request's cycle, seconds: all of it, its decode steps; and what is where.

    decoding: sequences of a pure decode step; beside: of one with prompts; sharing: prompts that
    share a request's first step, its own in; each_step: prompts of this group a step.
    """

    cycle_s: float
    decoding_s: float
    decoding: float
    beside: float
    sharing: float
    each_step: float


@inner
def arrival_step_s(
    decode_s: float, each_s: float, per_s: float, most_s: float, policy: float
) -> float:
    """Length of the step in which a request arrives, E[s^2] / E[s], at most most_s.

    per_s: requests that arrive; each_s: what one adds to a step. Those that arrive in a step, a
    Poisson number, make the next one, beside decodes s' = d + x N(s), or in steps of their own
    s' = x N(s), d where there are none; so with u = x per_s

        d / (1 - u) + u x / (1 - u^2)        d / (1 + u) + u x / (1 - u^2)
    """
    busy = min(per_s * each_s, 1.0 - 1e-6)
    apart = 1.0 - busy if policy == MIXED else 1.0 + busy
    return float(min(decode_s / apart + busy * each_s / (1.0 - busy * busy), max(most_s, decode_s)))


@inner
def long_step_s(window_s: float, decode_s: float, per_s: float, least_s: float) -> float:
    """The length of steps that begin per_s, others lasting decode_s, such that an arrival finds
    itself in a step of window_s on average."""
    excess_s = window_s - decode_s
    if per_s <= 0.0 or excess_s <= 0.0:
        return least_s
    root = math.sqrt(decode_s * decode_s + 4.0 * excess_s / per_s)
    return float(max(least_s, 0.5 * (decode_s + root)))


@inner
def prompts_together(decode_s: float, prompt_s: float, per_s: float) -> float:
    """Prompts of a step that has some, where per_s arrive; those of a step make the next one.

    Steps with prompts are the share p of all with p = (1 - p) (1 - exp(-per_s d)) +
    p (1 - exp(-per_s t)).
    """
    some = -math.expm1(-per_s * decode_s)
    if some <= 1e-9:
        return 1.0
    chance = some / (some + math.exp(-min(500.0, per_s * prompt_s)))
    return float(max(1.0, per_s * (decode_s + chance * (prompt_s - decode_s)) / chance))


@inner
def met_on_arrival(
    chance: float, long_s: float, decode_s: float, at_random: float, way_s: float
) -> tuple[float, float]:
    """(chance, mean seconds left) of a step with prompts that a request finds under way.

    chance: of a step to have prompts of others, then it takes long_s. A request is sent when a step
    ends and on its way for anything from 0 to 2 way_s. Ways shorter than such a step meet it where
    it begins at once, or at the end of one of the decode steps in between, h = chance / d a second:

        met = p + (1 - p) (1 - exp(-h a))                                    after a time a < t
        left = p (t - a) + (1 - p) ((t - a) (1 - exp(-h a)) + (1 - exp(-h a) (1 + h a)) / h)

    Longer ones meet steps as a look at random does: at_random of the time, half of one left.
    """
    if chance <= 0.0 or long_s <= 0.0:
        return 0.0, 0.0
    a_s = min(way_s, 0.5 * long_s)
    rate = chance / max(decode_s, 1e-6)
    none = math.exp(-rate * a_s)
    met = chance + (1.0 - chance) * (1.0 - none)
    left_s = (long_s - a_s) * met
    left_s += (1.0 - chance) * (1.0 - none * (1.0 + rate * a_s)) / rate
    short = min(1.0, 0.5 * long_s / max(way_s, 1e-9))
    return (
        short * met + (1.0 - short) * at_random,
        short * left_s + (1.0 - short) * 0.5 * at_random * long_s,
    )


@inner
def at_work(requests: float, away_frac: float) -> float:
    """Of `requests`, those in the engine where there is any."""
    away_frac = min(away_frac, 1.0 - 1e-6)
    return float(requests * (1.0 - away_frac) / (1.0 - away_frac**requests))


@inner
def busy_frac(rest_s: float, service_s: float, others: float, power: float) -> float:
    """Share of the time that a server works for `others`, who are elsewhere for rest_s in a round.

    u = others service_s / C with the round C = rest_s + service_s u^power / (2 (1 - u)): the wait
    is that of the formula for arrivals at random, in a closed loop, which keeps u below 1.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        u = 0.5 * (low + high)
        round_s = rest_s + 0.5 * service_s * u**power / (1.0 - u)
        if u * round_s < others * service_s:
            low = u
        else:
            high = u
    return low


@inner
def cycle_of(
    steps: Any, requests: float, output_steps: float, chunks: float, budgets: float,
    load: Any, engine: Any, before: Any,
) -> Any:  # fmt: skip
    """`Cycle` of the requests of a stream, given its steps.

    output_steps: decode steps of a request; chunks: steps of a prompt; budgets: of a step that a
    prompt takes. before: the last round's.
    """
    others = requests - 1.0
    running = min(load.in_flight, load.most_running)
    everyone = max(requests, load.groups * running / load.stages)
    company = min(1.0, everyone - 1.0)
    per_s = others / before.cycle_s  # prompts of the others
    most = max(1.0, 1.0 / budgets)  # that a step takes
    each_s = max(0.0, steps.prompt_s - steps.decode_s) / steps.together
    if load.policy != MIXED:
        each_s = steps.prompt_s / steps.together
    full_s = steps.prompt_s + each_s * max(0.0, most - steps.together)
    service_s = (steps.prompt_s if load.policy == MIXED else full_s) * budgets
    # No cycle is shorter: every step has prompts then, as many as come together.
    least_s = requests * steps.prompt_s * max(budgets, chunks / steps.together)
    square = (1.0 - steps.any_chance) * steps.decode_s**2
    window_s = (square + steps.any_chance * steps.prompt_s**2) / steps.mean_s
    # Ways shorter than a step with prompts bring those that were answered when it began.
    short = min(1.0, 0.5 * steps.prompt_s / max(engine.request_s, 1e-9))
    if load.groups <= 1.0 and chunks <= 1.0:
        found_s = arrival_step_s(steps.decode_s, each_s, per_s, full_s, load.policy)
        window_s = short * window_s + (1.0 - short) * max(window_s, found_s)
    prompts_per_s = steps.any_chance / steps.mean_s * (1.0 - 1.0 / max(1.0, everyone))
    long_s = long_step_s(window_s, steps.decode_s, prompts_per_s, steps.prompt_s)
    at_random = min(1.0, prompts_per_s * long_s)
    met, left_s = met_on_arrival(
        prompts_per_s * steps.mean_s, long_s, steps.decode_s, at_random, engine.request_s
    )
    half_s = 0.5 * steps.decode_s
    found_s = max(met * long_s + (1.0 - met) * steps.decode_s, steps.mean_s)
    window_s = short * steps.mean_s + (1.0 - short) * found_s
    away_s = max(
        engine.request_s + company * (left_s + (1.0 - met) * half_s), company * steps.mean_s
    )
    # Beyond the step that a request shares with others that came together with it.
    bunched = engine.bunching * load.equal * others
    bunch_steps = 0.5 * max(0.0, bunched * budgets - 1.0)
    sharing = max(min(1.0 + per_s * window_s + bunched, most), steps.together)
    longer_s = chunks * each_s * (sharing - steps.together) / load.groups
    power = math.sqrt(2.0 * (most + 1.0))
    busy = min(others / requests, per_s * service_s)
    if busy > OFTEN_BUSY:
        rest_s = away_s + chunks * steps.prompt_s + before.decoding_s
        busy = min(others / requests, busy_frac(rest_s, service_s, others, power))
    if load.policy != MIXED:
        busy *= min(1.0, before.decoding_s / before.cycle_s)
    waits_s = 0.5 * busy * max(0.0, budgets - 1.0) * steps.prompt_s
    waits_s += 0.5 * service_s * busy**power / (1.0 - busy)
    seen = min(1.0, met / max(_FEW, at_random))
    waits_s *= seen + (1.0 - seen) * steps.mean_s / steps.prompt_s
    waits_s += bunch_steps * steps.prompt_s
    before_s = away_s + longer_s + chunks * steps.prompt_s + waits_s
    if load.policy == MIXED:
        away_prompts = away_s / steps.mean_s * steps.any_chance
        away_decodes = away_s / steps.mean_s - away_prompts
        if load.groups <= 1.0:
            away_prompts = max(met, prompts_per_s * away_s)
            left_over_s = away_s - away_prompts * steps.prompt_s
            away_decodes = max(0.0, left_over_s) / max(steps.decode_s, 1e-6)
        away = away_prompts + away_decodes
        count = away + chunks + output_steps + waits_s / steps.prompt_s
        count = max(count, requests * budgets)
        idle = min(1.0 - 1e-6, away / count) ** requests if load.groups <= 1.0 else 0.0
        each_step = requests * chunks / (count * (1.0 - idle))
        chance = min(1.0, each_step / steps.together)
        away_frac = away_decodes / max(_FEW, count * (1.0 - chance))
        decoding = at_work(requests, min(away_frac, away_s / before.cycle_s))
        waiting = count - away_decodes - chunks - output_steps
        beside = requests - steps.together * (1.0 + waiting / chunks)
        beside = min(max(0.0, beside), decoding)
        weight = (1.0 - chance) * decoding + chance * beside
        token_s = (1.0 - chance) * decoding * steps.own_s + chance * beside * steps.prompt_s
        decoding_s = 0.0
        if output_steps > 0.0:
            decoding_s = steps.prompt_s if weight <= 0.0 else token_s / weight
            decoding_s = output_steps * decoding_s - longer_s * min(1.0, beside)
            decoding_s = max(decoding_s, output_steps * steps.own_s)
        cycle_s = max(before_s + decoding_s, least_s)
        return Cycle(cycle_s, decoding_s, decoding, beside, sharing, each_step)
    own_s = output_steps * steps.own_s
    decode_away_s = max(engine.request_s + company * half_s, company * steps.decode_s)
    away_frac = min(1.0 - 1e-6, decode_away_s / before.cycle_s)
    idle = away_frac**requests if load.groups <= 1.0 else 0.0
    prompts_s = requests * chunks * steps.prompt_s / steps.together
    stretched_s = prompts_s / (1.0 - idle)
    total_s = stretched_s + decode_away_s + own_s
    root = math.sqrt(max(0.0, total_s * total_s - 4.0 * stretched_s * decode_away_s))
    cycle_s = max(0.5 * (total_s + root), least_s)
    decoding_s = max(cycle_s - before_s, own_s) if output_steps > 0.0 else 0.0
    decode_passes = max(0.0, cycle_s * (1.0 - idle) - prompts_s) / max(_FEW, steps.own_s)
    passes = requests * chunks / steps.together
    each_step = requests * chunks / (passes + decode_passes)
    return Cycle(
        max(cycle_s, decoding_s + before_s), decoding_s, at_work(requests, away_frac), 0.0,
        sharing, each_step,
    )  # fmt: skip
