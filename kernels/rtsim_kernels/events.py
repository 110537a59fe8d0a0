"""Event simulation of a serving system: arrivals, steps of replicas, caches on their way.

The clock jumps from event to event; at equal times requests arrive first, then caches, then steps
end, by number of replica, and what becomes idle starts its next step when all of them are done. A
step's composition is that of `scheduling.py`, its time that of the operator model for exactly this
composition (`mixed.engine_step_s`), plus the time of swaps.

Replicas of several pipeline stages are told apart by the caller: S streams of requests, each a
replica here, keep S stages busy, and a step of one takes as long as the pass through all stages.

**Disaggregation.** A prefill group's request hands its cache to a decoding group after its prompt;
caches leave a group one after the other over its link, hold their blocks until they have left, and
then queue for the decoding group, whose server streams the answer: the first token is out when the
cache is there. What is preempted there is computed anew there.

`run` comes back when it needs more arrivals or room, or when what it has recorded has to be taken
away, and goes on with the same state. Prefix reuse is a stated share of every
prompt. Ignored: failures, cancelled requests, speculative decoding.
"""

from __future__ import annotations

import math
from typing import Any

from . import serving_state as st
from ._jit import inner, jit
from .scheduling import (
    batch_of,
    cache_bytes,
    compose,
    give_blocks,
    known_prefix,
    wait,
)
from .step_memo import remembered_step_s
from .timeline import advance, bin_of, count, observe


@inner
def least_loaded(first: int, last: int, groups: Any) -> int:
    """The group with the fewest requests of first <= g < last, the first of equals."""
    best = first
    for g in range(first, last):
        if groups[g].n_waiting + groups[g].n_running < (
            groups[best].n_waiting + groups[best].n_running
        ):
            best = g
    return best


@inner
def send(slot: int, decoder: bool, now_s: float, state: Any) -> None:
    """Route a new request, or one whose cache has been moved to the decoding pool, to a group."""
    groups = state.sched.groups
    totals = state.sched.totals[0]
    first = totals.first_decoder if decoder else 0
    last = len(groups) if decoder or totals.first_decoder == 0 else totals.first_decoder
    if state.sched.rules[0].routing == st.LEAST_LOADED:
        g = least_loaded(first, last, groups)
    elif decoder:
        g = first + totals.next_decoder % (last - first)
        totals.next_decoder += 1
    else:
        g = first + totals.next_entry % (last - first)
        totals.next_entry += 1
    wait(g, slot, now_s, state.sched)
    state.replicas[groups[g].replica].touched = 1


@inner
def refusal(prompt: int, output: int, state: Any) -> int:
    """Why a request can never be served; FINISHED where it can."""
    rules = state.sched.rules
    if prompt < 1 or output < 1:
        return st.BAD_LENGTH
    if prompt + output > rules[0].most_tokens:
        return st.BEYOND_CONTEXT
    for g in range(len(state.sched.groups)):
        group = state.sched.groups[g]
        kept = prompt if group.role == st.PREFILL else prompt + output - 1
        blocks = -(-kept // rules[group.pool].block_tokens)
        if cache_bytes(group.pool, blocks, state.sched) > group.capacity_bytes:
            return st.BEYOND_CACHE
    return st.FINISHED


@inner
def arrive(now_s: float, arrivals: Any, state: Any) -> None:
    """Take the next request in, or refuse it."""
    totals = state.sched.totals[0]
    row = totals.next_arrival
    totals.next_arrival += 1
    index = totals.n_arrived
    totals.n_arrived += 1
    totals.last_arrival_s = now_s
    count(st.ARRIVED, 1.0, state.sched.series, state.sched.totals)
    prompt = arrivals.prompt[row]
    output = arrivals.output[row]
    status = refusal(prompt, output, state)
    if status != st.FINISHED:
        state.ended[status] += 1
        record = state.records[totals.n_records]
        totals.n_records += 1
        record.request = index
        record.status = status
        record.arrival_s = now_s
        record.prompt_tokens = prompt
        record.output_tokens = output
        record.priority = arrivals.priority[row]
        record.group = st.NONE
        record.waited_s = math.nan
        record.ttft_s = math.nan
        record.tpot_s = math.nan
        record.e2e_latency_s = math.nan
        record.longest_gap_s = math.nan
        record.preemptions = 0
    else:
        slot = totals.free_slot
        request = state.sched.requests[slot]
        totals.free_slot = request.right
        totals.n_in_flight += 1
        request.index = index
        request.priority = arrivals.priority[row]
        request.prompt = prompt
        request.output = output
        request.computed = known_prefix(request, state.sched.rules[0])
        request.generated = 0
        request.blocks = 0
        request.swapped = 0
        request.new_tokens = 0
        request.preemptions = 0
        request.arrival_s = now_s
        request.waited_s = 0.0
        request.first_token_s = math.nan
        request.last_token_s = math.nan
        request.longest_gap_s = 0.0
        send(slot, False, now_s, state)
    totals.waiting_at_last_arrival = totals.waiting
    totals.in_flight_at_last_arrival = totals.n_in_flight


@inner
def finish(slot: int, now_s: float, state: Any) -> None:
    """Record a request that has all its tokens, and free its slot."""
    totals = state.sched.totals[0]
    request = state.sched.requests[slot]
    outside_s = state.sched.rules[0].request_s
    ttft_s = request.first_token_s - request.arrival_s + outside_s
    e2e_s = now_s - request.arrival_s + outside_s
    tpot_s = math.nan
    observe(st.TTFT, ttft_s, bin_of(ttft_s), state.counts, state.sums)
    observe(st.E2E, e2e_s, bin_of(e2e_s), state.counts, state.sums)
    observe(st.WAIT, request.waited_s, bin_of(request.waited_s), state.counts, state.sums)
    met = ttft_s <= state.sched.rules[0].ttft_limit_s
    if request.output > 1:
        tpot_s = (now_s - request.first_token_s) / (request.output - 1)
        observe(st.TPOT, tpot_s, bin_of(tpot_s), state.counts, state.sums)
        met = met and tpot_s <= state.sched.rules[0].tpot_limit_s
    totals.n_met += met
    state.ended[st.FINISHED] += 1
    count(st.ENDED, 1.0, state.sched.series, state.sched.totals)
    record = state.records[totals.n_records]
    totals.n_records += 1
    record.request = request.index
    record.status = st.FINISHED
    record.arrival_s = request.arrival_s
    record.prompt_tokens = request.prompt
    record.output_tokens = request.output
    record.priority = request.priority
    record.group = request.group
    record.waited_s = request.waited_s
    record.ttft_s = ttft_s
    record.tpot_s = tpot_s
    record.e2e_latency_s = e2e_s
    record.longest_gap_s = request.longest_gap_s
    record.preemptions = request.preemptions
    request.right = totals.free_slot
    totals.free_slot = slot
    totals.n_in_flight -= 1


@inner
def hand_over(g: int, slot: int, now_s: float, state: Any) -> None:
    """Send a request's cache to the decoding pool, after those that were there before."""
    group = state.sched.groups[g]
    request = state.sched.requests[slot]
    rules = state.sched.rules[group.pool]
    held = -(-request.computed // rules.block_tokens)
    moved = cache_bytes(group.pool, held, state.sched)
    start_s = max(now_s, group.link_free_s)
    request.ready_s = start_s + rules.transfer_s + moved / rules.transfer_bytes_per_s
    group.link_free_s = request.ready_s
    request.first_token_s = request.ready_s
    request.last_token_s = request.ready_s
    request.queued_s = now_s
    request.right = st.NONE
    if group.moves_last == st.NONE:
        group.moves_first = slot
    else:
        state.sched.requests[group.moves_last].right = slot
    group.moves_last = slot
    totals = state.sched.totals[0]
    totals.moved_bytes += moved
    totals.waiting += 1


@inner
def arrive_moved(g: int, now_s: float, state: Any) -> None:
    """The first cache on its way from a group has left it."""
    group = state.sched.groups[g]
    slot = group.moves_first
    request = state.sched.requests[slot]
    group.moves_first = request.right
    if group.moves_first == st.NONE:
        group.moves_last = st.NONE
    give_blocks(g, slot, state.sched)
    state.replicas[group.replica].touched = 1
    request.waited_s += now_s - request.queued_s
    state.sched.totals[0].waiting -= 1
    send(slot, True, now_s, state)


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
    for g in range(replica.first_group, replica.last_group):
        group = state.sched.groups[g]
        compose(g, now_s, state.sched)
        batch = batch_of(g, state.sched)
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
    return float(totals.now_s) if totals.n_in_flight < most else st.NEVER


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
        which = 0
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
