"""The ways of a request outside the steps: in, to a group, between pools, and out.

**Routing** is in turn or to the group with the fewest requests. What can never be served is refused
on arrival.

**Disaggregation.** A prefill group's request hands its cache to a decoding group after its prompt;
caches leave a group one after the other over its link, hold their blocks until they have left, and
then queue for the decoding group, whose server streams the answer: the first token is out when the
cache is there. What is preempted there is computed anew there.
"""

from __future__ import annotations

import math
from typing import Any

from . import serving_state as st
from ._jit import inner
from .cache_blocks import cache_bytes, give_blocks
from .scheduling import known_prefix, wait
from .timeline import bin_of, count, observe


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
def ended(
    index: int, status: int, prompt: int, output: int, priority: int, arrival_s: float, state: Any
) -> int:
    """Count and record a request that has ended, its times still blank. Returns its record."""
    totals = state.sched.totals[0]
    place = totals.n_records
    totals.n_records += 1
    state.ended[status] += 1
    record = state.records[place]
    record.request = index
    record.status = status
    record.arrival_s = arrival_s
    record.prompt_tokens = prompt
    record.output_tokens = output
    record.priority = priority
    record.group = st.NONE
    record.waited_s = math.nan
    record.ttft_s = math.nan
    record.tpot_s = math.nan
    record.e2e_latency_s = math.nan
    record.longest_gap_s = math.nan
    record.preemptions = 0
    return int(place)


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
        ended(index, status, prompt, output, arrivals.priority[row], now_s, state)
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
    count(st.ENDED, 1.0, state.sched.series, state.sched.totals)
    place = ended(
        request.index, st.FINISHED, request.prompt, request.output, request.priority,
        request.arrival_s, state,
    )  # fmt: skip
    record = state.records[place]
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
