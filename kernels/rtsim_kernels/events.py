"""Event simulation of a serving system: arrivals, steps of replicas, caches on their way.

The clock jumps from event to event; at equal times requests arrive first, then caches, then steps
end, by number of replica, and what becomes idle starts its next step when all of them are done. A
step's composition is that of `scheduling.py`, its time that of the operator model for exactly this
composition (`mixed.engine_step_s`), plus the time of swaps.

Replicas of several pipeline stages are told apart by the caller: S streams of requests, each a
replica here, keep S stages busy, and a step of one takes as long as the pass through all stages.

`run` comes back when it needs more arrivals or room, or when what it has recorded has to be taken
away, and goes on with the same state. Prefix reuse is a stated share of every
prompt. Ignored: failures, cancelled requests, speculative decoding.

In a closed loop the next request is on its way when one has been answered: for twice `request_s`
times the fractional part of k / phi for request k (phi the golden ratio), that is evenly from 0 to
twice the mean. A client that needs no time would always meet the start of a step.
"""

from __future__ import annotations

import math
from typing import Any

from . import serving_state as st
from ._jit import inner, jit
from .cache_blocks import give_blocks
from .request_flow import arrive, arrive_moved, finish, hand_over
from .scheduling import batch_of, compose, step_tokens
from .step_memo import remembered_step_s
from .timeline import advance, bin_of, count, observe


@inner
def end_step(r: int, now_s: float, state: Any) -> None:
    """Count what a step has computed: tokens, ends, caches to move."""
    replica = state.replicas[r]
    totals = state.sched.totals[0]
    running = state.sched.running
    gap_s = -1.0  # most sequences of a step have the same gap
    gap_bin = 0
    for g in range(replica.first_group, replica.last_group):
        group = state.sched.groups[g]
        kept = 0
        tokens = 0
        for i in range(group.n_running):
            slot = running[g, i]
            request = state.sched.requests[slot]
            running[g, kept] = slot
            kept += 1
            if request.new_tokens == 0:
                continue
            request.computed += request.new_tokens
            request.new_tokens = 0
            if request.computed < request.prompt + request.generated:
                continue
            tokens += 1
            if request.generated == 0:
                request.first_token_s = now_s
            else:
                since_s = now_s - request.last_token_s
                if since_s != gap_s:
                    gap_s = since_s
                    gap_bin = bin_of(gap_s)
                observe(st.GAP, gap_s, gap_bin, state.counts, state.sums)
                request.longest_gap_s = max(request.longest_gap_s, gap_s)
            request.last_token_s = now_s
            request.generated += 1
            if request.generated == request.output:
                give_blocks(g, slot, state.sched)
                finish(slot, now_s, state)
                group.crowded = 0
                kept -= 1
            elif group.role == st.PREFILL:
                hand_over(g, slot, now_s, state)
                group.crowded = 0
                kept -= 1
        totals.running -= group.n_running - kept
        group.n_running = kept
        totals.output_tokens += tokens
        count(st.TOKENS, float(tokens), state.sched.series, state.sched.totals)
    replica.busy_s += now_s - replica.started_s
    replica.ends_s = st.NEVER
    replica.touched = 1


@inner
def start_step(r: int, now_s: float, state: Any, pools: Any) -> None:
    """Start the next step of an idle replica, if there is anything to do."""
    replica = state.replicas[r]
    totals = state.sched.totals[0]
    replica.touched = 0
    preempted = totals.preemptions
    longest_s = 0.0
    decodes = 0.0
    prompts = 0
    prompt_tokens = 0.0
    groups = replica.last_group - replica.first_group
    tokens = 0  # of all groups, which meet at the experts
    for g in range(replica.first_group, replica.last_group):
        compose(g, now_s, state.sched)
        if groups > 1:
            tokens += step_tokens(g, state.sched)
    for g in range(replica.first_group, replica.last_group):
        group = state.sched.groups[g]
        batch = batch_of(g, tokens / groups, state.sched)
        if batch.n_decodes == 0.0 and batch.n_prompts == 0.0:
            continue
        if group.pool == 0:
            seconds = remembered_step_s(batch, pools[0])
        else:
            seconds = remembered_step_s(batch, pools[1])
        longest_s = max(longest_s, seconds + group.swap_s)
        decodes += batch.n_decodes
        prompts += math.ceil(batch.n_prompts - 1e-9)
        prompt_tokens += batch.n_prompts * batch.chunk
    if longest_s <= 0.0:
        # Nothing runs, since caches on their way left too few blocks: others may find room.
        replica.touched = int(totals.preemptions > preempted)
        return
    replica.started_s = now_s
    replica.ends_s = now_s + longest_s
    replica.steps += 1
    totals.steps += 1
    totals.decode_steps += prompt_tokens == 0.0
    totals.prompt_steps += decodes == 0.0
    totals.prompt_tokens += int(prompt_tokens + 0.5)
    if len(state.log) > 0:
        step = state.log[totals.n_logged]
        totals.n_logged += 1
        step.replica = r
        step.start_s = now_s
        step.end_s = replica.ends_s
        step.decodes = int(decodes)
        step.prompts = prompts
        step.prompt_tokens = int(prompt_tokens + 0.5)
        step.waiting = totals.waiting


@inner
def next_arrival_s(arrivals: Any, state: Any) -> float:
    """When the next request arrives: as stated, or in a closed loop when one may."""
    totals = state.sched.totals[0]
    if totals.next_arrival >= len(arrivals.arrival_s):
        return st.NEVER
    most = state.sched.rules[0].concurrency
    if most == 0:
        return float(max(totals.now_s, arrivals.arrival_s[totals.next_arrival]))
    if totals.n_in_flight + totals.n_away < most:
        return float(totals.now_s)
    return float(state.away_s[0]) if totals.n_away > 0 else st.NEVER


@jit
def run(state: Any, arrivals: Any, pools: Any) -> int:
    """Simulate until all is served (DONE) or the caller has to act (the other codes).

    pools: a `Pool` for prompts and decoding (or prompts alone) and one for decoding.
    """
    totals = state.sched.totals[0]
    replicas = state.replicas
    widest = 1
    for r in range(len(replicas)):
        groups = replicas[r].last_group - replicas[r].first_group
        widest = max(widest, groups * state.sched.running.shape[1])
    while True:
        if totals.n_records + widest > len(state.records):
            return st.RECORDS_FULL
        if len(state.log) > 0 and totals.n_logged + len(replicas) > len(state.log):
            return st.LOG_FULL
        if totals.next_arrival >= len(arrivals.arrival_s) and arrivals.more:
            return st.NEEDS_ARRIVALS
        now_s = totals.now_s
        next_s = next_arrival_s(arrivals, state)
        what = 0
        which = st.FIRST
        if next_s < st.NEVER and totals.free_slot == st.NONE:
            return st.NEEDS_ROOM
        for g in range(len(state.sched.groups)):
            first = state.sched.groups[g].moves_first
            if first != st.NONE and state.sched.requests[first].ready_s < next_s:
                next_s = state.sched.requests[first].ready_s
                what = 1
                which = g
        waits = False
        for r in range(len(replicas)):
            if replicas[r].ends_s < next_s:
                next_s = replicas[r].ends_s
                what = 2
                which = r
            if replicas[r].touched == 1 and replicas[r].ends_s == st.NEVER:
                waits = True
        if waits and next_s > now_s:
            for r in range(len(replicas)):
                if replicas[r].touched == 1 and replicas[r].ends_s == st.NEVER:
                    start_step(r, now_s, state, pools)
            continue
        if next_s == st.NEVER:
            return st.DONE
        advance(now_s, next_s, state.sched.series, state.sched.totals)
        totals.now_s = next_s
        if what == 0:
            arrive(next_s, arrivals, state)
        elif what == 1:
            arrive_moved(which, next_s, state)
        else:
            end_step(which, next_s, state)
