"""What the schedulers of serving engines put into a step: growth, preemption, admission.

All see a request the same way (vLLM, V1 engine): it has `prompt + generated` tokens, of which
`computed` have keys and values; a step computes some more, and when none is left a token comes
out. So a decoding sequence has one left, a prompt all of its own, and a preempted one, whose cache
was dropped, its prompt and what it has generated.

* **Mixed** (Sarathi-Serve; vLLM, TensorRT-LLM): running sequences in their order, as many tokens
  each as the budget leaves; then, if none had to be preempted, waiting ones.
* **Prefill first** (Orca, SGLang): prompts have steps of their own, in chunks of the budget;
  decoding goes on when none waits or fits. After a preemption none is admitted until a sequence
  has ended, or the same cache would be filled and dropped again.
* **Static**: a batch is filled from the queue when the last one has ended; its prompts are computed
  in chunks of the budget, then it decodes; those that end early leave their places empty.

Blocks are taken when a step needs them, or for the whole length at once (`reserves`, and static
batches). A sequence that finds none makes the youngest of the lowest priority give up its own.
Waiting is in order: one that does not fit holds up those behind it, as in the engines named.
"""

from __future__ import annotations

from typing import Any

from ._jit import inner
from .cache_blocks import cache_bytes, give_blocks, take_blocks
from .mixed import Batch
from .request_queue import popped, pushed
from .serving_state import FIRST, MIXED, NONE, ONE, PREFILL, STATIC


@inner
def tokens_left(request: Any) -> int:
    """Tokens to compute until the next one comes out."""
    return int(request.prompt + request.generated - request.computed)


@inner
def decodes(request: Any) -> bool:
    """Whether the request's next step is that of one further token."""
    return bool(request.generated > 0 and tokens_left(request) == 1)


@inner
def known_prefix(request: Any, rules: Any) -> int:
    """Tokens of a prompt found in the prefix cache; the last one is always computed."""
    return min(int(rules.prefix_hit * request.prompt), int(request.prompt) - 1)


@inner
def wait(g: int, slot: int, now_s: float, state: Any) -> None:
    """Put a request into the queue of a group."""
    group = state.groups[g]
    state.requests[slot].group = g
    state.requests[slot].queued_s = now_s
    group.queue = pushed(group.queue, slot, state.requests)
    group.n_waiting += 1
    totals = state.totals[0]
    totals.waiting += 1
    totals.most_waiting = max(totals.most_waiting, totals.waiting)


@inner
def admit(g: int, now_s: float, state: Any) -> None:
    """Let the first of a queue run."""
    group = state.groups[g]
    slot = group.queue
    request = state.requests[slot]
    group.queue = popped(slot, state.requests)
    group.n_waiting -= 1
    state.totals[0].waiting -= 1
    state.totals[0].running += 1
    request.waited_s += now_s - request.queued_s
    if request.swapped == 1:
        rules = state.rules[group.pool]
        held = -(-request.computed // rules.block_tokens)
        moved = cache_bytes(group.pool, held, state)
        group.swap_s += moved / rules.swap_bytes_per_s
        state.totals[0].swapped_bytes += moved
        request.swapped = 0
    state.running[g, group.n_running] = slot
    group.n_running += 1


@inner
def preempt(g: int, place: int, now_s: float, state: Any) -> None:
    """Send a running sequence back to the queue, its cache dropped or moved to the host."""
    group = state.groups[g]
    running = state.running
    slot = running[g, place]
    for i in range(place, group.n_running - 1):
        running[g, i] = running[g, i + 1]
    group.n_running -= 1
    state.totals[0].running -= 1
    request = state.requests[slot]
    rules = state.rules[group.pool]
    if rules.swaps == 1:
        held = -(-request.computed // rules.block_tokens)
        moved = cache_bytes(group.pool, held, state)
        group.swap_s += moved / rules.swap_bytes_per_s
        state.totals[0].swapped_bytes += moved
        request.swapped = 1
    else:
        kept = min(request.computed, known_prefix(request, rules))
        state.totals[0].recomputed_tokens += request.computed - kept
        request.computed = kept
    give_blocks(g, slot, state)
    request.new_tokens = 0
    request.preemptions += 1
    state.totals[0].preemptions += 1
    group.crowded = 1
    wait(g, slot, now_s, state)


@inner
def last_in_line(g: int, state: Any) -> int:
    """Place of the running sequence that gives way: lowest priority, then youngest."""
    running = state.running
    requests = state.requests
    last = 0
    for i in range(1, state.groups[g].n_running):
        a = requests[running[g, i]]
        b = requests[running[g, last]]
        if a.priority > b.priority or (a.priority == b.priority and a.index > b.index):
            last = i
    return last


@inner
def grow(g: int, place: int, tokens: int, now_s: float, state: Any) -> tuple[int, int]:
    """Blocks for `tokens` further tokens of the running sequence at `place`, by preemption.

    Returns its place now, NONE where it has itself been preempted, and how many tokens of the
    step those had that gave way.
    """
    given = 0
    slot = state.running[g, place]
    needed = state.requests[slot].computed + tokens
    while not take_blocks(g, slot, needed, state):
        victim = last_in_line(g, state)
        given += state.requests[state.running[g, victim]].new_tokens
        preempt(g, victim, now_s, state)
        if victim == place:
            return NONE, given
        if victim < place:
            place -= 1
    return place, given


@inner
def admissible(g: int, tokens: int, reserves: bool, state: Any) -> bool:
    """Whether the first of the queue finds a place and blocks, and takes the blocks."""
    group = state.groups[g]
    rules = state.rules[group.pool]
    if group.n_running >= rules.max_sequences:
        return False
    request = state.requests[group.queue]
    needed = request.computed + tokens
    if reserves:  # the last token has no keys and values; a prefill pool keeps none of the output
        needed = request.prompt + request.output - 1
        if group.role == PREFILL:
            needed = request.prompt
    return bool(take_blocks(g, group.queue, needed, state))


@inner
def compose_mixed(g: int, now_s: float, state: Any) -> None:
    """Fill a step with running sequences, then with waiting ones, up to the budget."""
    group = state.groups[g]
    rules = state.rules[group.pool]
    budget = rules.token_budget
    preempted = state.totals[0].preemptions
    place = FIRST
    while place < group.n_running:
        slot = state.running[g, place]
        tokens = min(tokens_left(state.requests[slot]), budget)
        if tokens > 0:
            found, given = grow(g, place, tokens, now_s, state)
            budget += given
            if found == NONE:
                continue  # the next one has moved to this place
            place = found
            state.requests[slot].new_tokens = tokens
            budget -= tokens
        place += 1
    if state.totals[0].preemptions > preempted:
        return
    while group.queue != NONE and budget > 0:
        slot = group.queue
        tokens = min(tokens_left(state.requests[slot]), budget)
        if not admissible(g, tokens, rules.reserves == 1, state):
            return
        admit(g, now_s, state)
        state.requests[slot].new_tokens = tokens
        budget -= tokens


@inner
def compose_apart(g: int, now_s: float, state: Any) -> None:
    """Fill a step with prompts alone or, where there is none to compute, with decodes alone."""
    group = state.groups[g]
    rules = state.rules[group.pool]
    static = rules.policy == STATIC
    budget = rules.token_budget
    prompts = 0
    place = FIRST
    while place < group.n_running:  # prompts that are under way
        slot = state.running[g, place]
        if not decodes(state.requests[slot]) and budget > 0:
            tokens = min(tokens_left(state.requests[slot]), budget)
            found, given = grow(g, place, tokens, now_s, state)
            budget += given
            if found == NONE:
                continue
            place = found
            state.requests[slot].new_tokens = tokens
            budget -= tokens
            prompts += 1
        place += 1
    opens = group.n_running == 0 or (group.crowded == 0 and not static)
    while opens and group.queue != NONE and (static or budget > 0):
        slot = group.queue
        request = state.requests[slot]
        tokens = 1 if decodes(request) else min(tokens_left(request), budget)
        if not admissible(g, tokens, static or rules.reserves == 1, state):
            break
        admit(g, now_s, state)
        if not decodes(request):
            request.new_tokens = tokens
            budget -= tokens
            prompts += tokens > 0
    if prompts > 0:
        return
    place = FIRST
    while place < group.n_running:
        slot = state.running[g, place]
        found, _ = grow(g, place, ONE, now_s, state)
        if found == NONE:
            continue
        place = found + 1
        state.requests[slot].new_tokens = 1


@inner
def compose(g: int, now_s: float, state: Any) -> None:
    """Decide what a group computes in the step that starts now: `new_tokens` of its requests."""
    group = state.groups[g]
    group.swap_s = 0.0
    if state.rules[group.pool].policy == MIXED:
        compose_mixed(g, now_s, state)
    else:
        compose_apart(g, now_s, state)
    totals = state.totals[0]
    totals.most_running = max(totals.most_running, group.n_running)


@inner
def step_tokens(g: int, state: Any) -> int:
    """Tokens that a group computes in the step that has been composed."""
    tokens = 0
    for i in range(state.groups[g].n_running):
        tokens += state.requests[state.running[g, i]].new_tokens
    return int(tokens)


@inner
def batch_of(g: int, mean_tokens: float, state: Any) -> Batch:
    """The composition of a group's step as the operator model takes it.

    mean_tokens: of the groups that step together; 0 for one alone.

    Unlike chunks stand as n alike ones of q tokens with c keys, where tokens Q = n q, pairs of
    query and key S = n (q c - q (q - 1) / 2) and earlier tokens K = n (c - q) are those of the
    step:

        q = (2 S - Q) / (2 K + Q),   n = Q / q,   c = S / Q + (q - 1) / 2

    Decodes stand at their mean context, which is all that their attention depends on.
    """
    n_decodes = 0
    contexts = 0
    tokens = 0
    pairs = 0
    earlier = 0
    n_finished = 0
    for i in range(state.groups[g].n_running):
        request = state.requests[state.running[g, i]]
        new = request.new_tokens
        if new == 0:
            continue
        if decodes(request):
            n_decodes += 1
            contexts += request.computed + 1
            continue
        tokens += new
        pairs += new * request.computed + new * (new + 1) // 2
        earlier += request.computed
        n_finished += new == tokens_left(request)
    decode_context = contexts / n_decodes if n_decodes > 0 else 0.0
    pooled = 1.0
    if mean_tokens > 0.0 and n_decodes + tokens > 0:
        pooled = mean_tokens / (n_decodes + tokens)
    if tokens == 0:
        return Batch(float(n_decodes), float(decode_context), 0.0, 0.0, 0.0, 0.0, 1.0, pooled)
    chunk = (2.0 * pairs - tokens) / (2.0 * earlier + tokens)
    context = chunk if earlier == 0 else (2.0 * pairs / tokens + chunk - 1.0) / 2.0
    return Batch(
        float(n_decodes), float(decode_context), tokens / chunk, chunk, context,
        float(n_finished), 1.0, pooled,
    )  # fmt: skip
