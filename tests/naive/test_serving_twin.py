"""The compiled event simulation against a plain one, step by step: equal times on random traces.

The twin keeps requests in lists, sorts its queue at every step and asks the engine for the time of
every step. It is written from the description of the schedulers, not from the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import mixed

from rtsim.named_system import system
from rtsim.serving.deployment import Deployment
from rtsim.serving.engine import Engine
from rtsim.serving.scheduler import Scheduler
from rtsim.serving.simulate import Run
from rtsim.serving.trace import Requests
from rtsim.serving.transfer import transfer_path

BLOCK = 16


@dataclass
class Request:
    index: int
    arrival: float
    prompt: int
    output: int
    priority: int = 0
    done: int = 0  # tokens with keys and values
    out: int = 0  # tokens that came out
    blocks: int = 0
    now: int = 0  # tokens of the step
    swapped: bool = False
    ready: float = math.inf  # when its cache has been sent
    times: list[float] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, int]:
        return self.priority, self.index

    @property
    def left(self) -> int:
        return self.prompt + self.out - self.done

    @property
    def decodes(self) -> bool:
        return self.out > 0 and self.left == 1


class Server:
    """One replica of one group; `sends` caches to other servers after their prompts."""

    def __init__(self, engine: Engine, capacity: float, swap: bool, sends: bool = False) -> None:
        self.sends, self.link_free = sends, 0.0
        self.moving: list[Request] = []
        self.engine, self.rules, self.capacity = engine, engine.scheduler, capacity
        cache = engine.cache()
        self.bytes_of = lambda blocks: (
            math.ceil(cache.sequence_bytes(blocks * BLOCK)) if blocks else 0
        )
        self.swap_rate = engine.system.gpu.pcie_bytes_per_s if swap else None
        self.queue: list[Request] = []
        self.running: list[Request] = []
        self.ends = math.inf
        self.moved = 0.0
        self.crowded = False
        self.preemptions = 0

    def fits(self, request: Request, tokens: int) -> bool:
        blocks = max(request.blocks, -(-tokens // BLOCK))
        used = sum(self.bytes_of(r.blocks) for r in self.running + self.moving if r is not request)
        if used + self.bytes_of(blocks) > self.capacity:
            return False
        request.blocks = blocks
        return True

    def swap_s(self, request: Request) -> float:
        return self.bytes_of(-(-request.done // BLOCK)) / self.swap_rate

    def preempt(self, request: Request) -> None:
        self.running.remove(request)
        if self.swap_rate:
            self.moved += self.swap_s(request)
            request.swapped = True
        else:
            request.done = 0
        request.blocks, request.now = 0, 0
        self.queue.append(request)
        self.queue.sort(key=lambda r: r.rank)
        self.preemptions += 1
        self.crowded = True

    def make_room(self, request: Request, tokens: int) -> bool:
        """Preempt until `tokens` more of a running request fit; False if it had to go itself."""
        while not self.fits(request, request.done + tokens):
            victim = max(self.running, key=lambda r: r.rank)
            self.preempt(victim)
            if victim is request:
                return False
        return True

    def admit(self, tokens: int, whole: bool) -> bool:
        first = self.queue[0]
        needed = first.prompt + first.output - 1 if whole else first.done + tokens
        if whole and self.sends:
            needed = first.prompt
        if len(self.running) >= self.rules.max_sequences or not self.fits(first, needed):
            return False
        if first.swapped:
            self.moved += self.swap_s(first)
            first.swapped = False
        self.running.append(self.queue.pop(0))
        return True

    def spent(self) -> int:
        return sum(r.now for r in self.running)

    def fill_mixed(self) -> None:
        budget, before = self.rules.token_budget, self.preemptions
        for request in list(self.running):
            tokens = min(request.left, budget - self.spent())
            if request in self.running and tokens > 0 and self.make_room(request, tokens):
                request.now = tokens
        while self.preemptions == before and self.queue and self.spent() < budget:
            first = self.queue[0]
            tokens = min(first.left, budget - self.spent())
            if not self.admit(tokens, self.rules.reserves):
                break
            first.now = tokens

    def fill_apart(self) -> None:
        budget, static = self.rules.token_budget, self.rules.policy == "static"
        for request in list(self.running):
            tokens = min(request.left, budget - self.spent())
            waits = request in self.running and not request.decodes and tokens > 0
            if waits and self.make_room(request, tokens):
                request.now = tokens
        opens = not self.running or not (self.crowded or static)
        while opens and self.queue and (static or self.spent() < budget):
            first = self.queue[0]
            tokens = 1 if first.decodes else min(first.left, budget - self.spent())
            if not self.admit(tokens, static or self.rules.reserves):
                break
            if not first.decodes:
                first.now = tokens
        if self.spent():
            return
        for request in list(self.running):
            if request in self.running and self.make_room(request, 1):
                request.now = 1

    def start(self, now: float) -> None:
        self.queue.sort(key=lambda r: r.rank)
        self.moved, before = 0.0, self.preemptions
        self.fill_mixed() if self.rules.policy == "mixed" else self.fill_apart()
        working = [r for r in self.running if r.now]
        if not working:
            if self.preemptions > before:
                self.start(now)
            return
        decoding = [r for r in working if r.decodes]
        prompts = [r for r in working if not r.decodes]
        batch = mixed.Batch(len(decoding), 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        if decoding:
            mean = sum(r.done + 1 for r in decoding) / len(decoding)
            batch = batch._replace(decode_context=mean)
        if prompts:
            tokens = sum(r.now for r in prompts)
            pairs = sum(sum(r.done + i + 1 for i in range(r.now)) for r in prompts)
            earlier = sum(r.done for r in prompts)
            chunk = (2 * pairs - tokens) / (2 * earlier + tokens)
            context = chunk + earlier / (tokens / chunk)
            ending = sum(r.now == r.left for r in prompts)
            batch = batch._replace(
                n_prompts=tokens / chunk, chunk=chunk, prompt_context=context, n_finished=ending
            )
        self.ends = now + self.engine.step_s(batch) + self.moved

    def end(self, now: float) -> None:
        for request in list(self.running):
            request.done, tokens = request.done + request.now, request.now
            request.now = 0
            if tokens and request.left == 0:
                request.out += 1
                request.times.append(now)
                if request.out == request.output or self.sends:
                    self.running.remove(request)
                    self.crowded = False
                    if request.out < request.output:
                        self.send(request, now)
        self.ends = math.inf

    def send(self, request: Request, now: float) -> None:
        rate = transfer_path(self.engine.system.gpu)[1]
        start = max(now, self.link_free)
        request.ready = start + 1e-3 + self.bytes_of(-(-request.done // BLOCK)) / rate
        self.link_free = request.ready
        request.times = [request.ready]
        self.moving.append(request)


class Router:
    """Sends requests to servers in turn, or to the first of those with the fewest."""

    def __init__(self, servers: list[Server], least_loaded: bool) -> None:
        self.servers, self.least_loaded, self.sent = servers, least_loaded, 0

    def send(self, request: Request) -> None:
        loads = [len(s.queue) + len(s.running) for s in self.servers]
        chosen = self.sent % len(loads)
        if self.least_loaded:
            chosen = loads.index(min(loads))
        self.servers[chosen].queue.append(request)
        self.sent += 1


def plain(
    servers: list[Server],
    requests: list[Request],
    least_loaded: bool,
    decoders: tuple[Server, ...] = (),
) -> None:
    """Play the requests on servers until all of them have been answered."""
    coming = list(requests)
    entry, onward = Router(servers, least_loaded), Router(list(decoders), least_loaded)
    every = [*servers, *decoders]
    while coming or any(s.running or s.queue or s.moving for s in every):
        arrival = coming[0].arrival if coming else math.inf
        moved = [s.moving[0].ready for s in servers if s.moving]
        now = min(arrival, *moved, *(s.ends for s in every))
        while coming and coming[0].arrival == now:
            entry.send(coming.pop(0))
        for server in servers:
            if server.moving and server.moving[0].ready == now:
                sent = server.moving.pop(0)
                sent.blocks = 0
                onward.send(sent)
        for server in every:
            if server.ends == now:
                server.end(now)
        for server in every:
            if server.ends == math.inf:
                server.start(now)


@dataclass(frozen=True)
class Listed:
    """Traffic of a list of requests."""

    requests: Requests
    source: str = "list"
    rate_per_s: float = 1.0

    @property
    def n_requests(self) -> int:
        return len(self.requests.arrival_s)

    def at_rate(self, rate_per_s: float) -> Listed:
        return self

    def blocks(self):
        half = self.n_requests // 2  # two blocks, so that the simulation is left and entered again
        yield Requests(*(column[:half] for column in self.requests))
        yield Requests(*(column[half:] for column in self.requests))


def engine_with(scheduler: Scheduler, cache_tokens: int) -> Engine:
    """An engine whose cache holds so many tokens."""
    made = Engine(system("llama-2-7b", "h100", stack="vllm"), replace(scheduler, memory_frac=1.0))
    whole = made.cache()
    memory = float(made.system.gpu.memory_bytes)
    wanted = whole.sequence_bytes(cache_tokens)
    frac = 1.0 - (whole.capacity_bytes - wanted - 0.5) / memory
    return Engine(made.system, replace(scheduler, memory_frac=frac))


requests = st.lists(
    st.tuples(
        st.floats(0.0, 0.05),  # gap to the one before, s
        st.integers(1, 180),
        st.integers(1, 60),
        st.integers(0, 2),
    ),
    min_size=2,
    max_size=14,
)


@pytest.mark.parametrize(
    ("policy", "preemption", "reserves"),
    [
        ("mixed", "recompute", False),
        ("mixed", "swap", False),
        ("mixed", "recompute", True),
        ("prefill-first", "recompute", False),
        ("prefill-first", "swap", False),
        ("static", "recompute", False),
    ],
)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=requests,
    budget=st.sampled_from([7, 64, 512]),
    places=st.sampled_from([2, 5, 64]),
    blocks=st.integers(15, 40),
    n_servers=st.integers(1, 2),
    least_loaded=st.booleans(),
)
def test_equal_to_the_plain_simulation(
    policy, preemption, reserves, rows, budget, places, blocks, n_servers, least_loaded
):
    scheduler = Scheduler(policy, budget, places, reserves, BLOCK)
    engine = engine_with(scheduler, blocks * BLOCK)
    arrival = np.cumsum([row[0] for row in rows])
    columns = Requests(arrival, *(np.array([row[i] for row in rows]) for i in (1, 2, 3)))
    deployment = Deployment(
        engine,
        n_replicas=n_servers,
        routing="least-loaded" if least_loaded else "round-robin",
        preemption=preemption,
    )
    capacity = deployment.cache_tables()[1][0]
    own = [Request(i, *(column[i].item() for column in columns)) for i in range(len(rows))]
    servers = [Server(engine, capacity, preemption == "swap") for _ in range(n_servers)]
    plain(servers, own, least_loaded)

    compare(deployment, columns, own, servers)


@pytest.mark.parametrize("policy", ["mixed", "prefill-first"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=requests,
    budget=st.sampled_from([64, 512]),
    blocks=st.tuples(st.integers(12, 30), st.integers(15, 40)),
    n_servers=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    least_loaded=st.booleans(),
    reserves=st.booleans(),
)
def test_pools_are_equal_to_the_plain_simulation(
    policy, rows, budget, blocks, n_servers, least_loaded, reserves
):
    scheduler = Scheduler(policy, budget, 8, reserves, BLOCK)
    first, second = (engine_with(scheduler, n * BLOCK) for n in blocks)
    arrival = np.cumsum([row[0] for row in rows])
    columns = Requests(arrival, *(np.array([row[i] for row in rows]) for i in (1, 2, 3)))
    routing = "least-loaded" if least_loaded else "round-robin"
    deployment = Deployment(
        second, first, n_replicas=n_servers[1], n_prefill=n_servers[0], routing=routing
    )
    capacities = deployment.cache_tables()[1]
    own = [Request(i, *(column[i].item() for column in columns)) for i in range(len(rows))]
    prefill = [Server(first, capacities[0], False, sends=True) for _ in range(n_servers[0])]
    decode = [Server(second, capacities[1], False) for _ in range(n_servers[1])]
    plain(prefill, own, least_loaded, tuple(decode))
    compare(deployment, columns, own, [*prefill, *decode])


def compare(deployment, columns, own, servers):
    """Hold that the event simulation gives every request the times of the plain one."""
    run = Run(deployment, Listed(columns))
    ended = np.concatenate([block.requests for block in run.blocks()])
    result = run.result()
    assert len(ended) == len(own) == result.n_finished
    assert result.preemptions == sum(server.preemptions for server in servers)
    outside_s = float(deployment.engine.row["request_s"])
    for row in ended:
        twin = own[row["request"]]
        assert row["ttft_s"] == pytest.approx(twin.times[0] - twin.arrival + outside_s, rel=1e-9)
        e2e_s = twin.times[-1] - twin.arrival + outside_s
        assert row["e2e_latency_s"] == pytest.approx(e2e_s, rel=1e-9)
        gaps = np.diff(twin.times)
        assert row["longest_gap_s"] == pytest.approx(max(gaps, default=0.0), rel=1e-9)
    assert result.output_tokens == sum(request.output for request in own)
