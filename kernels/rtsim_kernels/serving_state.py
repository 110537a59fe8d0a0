"""State of a serving simulation: row layouts and codes of requests, groups, replicas and sums.

A **group** has sequences, a cache and a scheduler of its own. A **replica** is one or more groups
that step in lockstep (attention data parallel); its step takes as long as that of its slowest
group. Replicas are of one **pool**, or of two where prompts and decoding have GPUs of their own.

Rows are structured records: compiled code takes the arrays, interpreted code their
`numpy.recarray` views; both are read as `rows[i].field`. Times are seconds from the start of the
simulation, caches whole bytes of the fullest GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Policies: how a step is filled, see `scheduling.py`.
MIXED = 0
PREFILL_FIRST = 1
STATIC = 2
# Routing of a request to a group.
ROUND_ROBIN = 0
LEAST_LOADED = 1
# What a group does.
ALL = 0
PREFILL = 1  # prompts only: caches go to a decoding group
DECODE = 2
# How a request ended.
FINISHED = 0
BAD_LENGTH = 1  # no prompt or no output
BEYOND_CONTEXT = 2
BEYOND_CACHE = 3  # its whole length would not fit an empty cache
N_STATUS = 4
# Why `events.run` came back.
DONE = 0
NEEDS_ARRIVALS = 1
NEEDS_ROOM = 2  # for more requests at once
RECORDS_FULL = 3
LOG_FULL = 4

NONE = -1  # no slot
# In compiled code, of the type of a variable: Numba compiles a function anew for a literal number.
FIRST: Any = np.int64(0)
ONE: Any = np.int64(1)
NEVER = np.inf

_INT = np.int64
_FLOAT = np.float64

# What holds of a pool.
RULES = np.dtype(
    [
        ("policy", _INT),
        ("token_budget", _INT),
        ("max_sequences", _INT),  # of a group
        ("reserves", _INT),  # 1: a request is admitted with blocks for its whole length
        (
            "swaps",
            _INT,
        ),  # 1: a preempted sequence's cache moves to the host, 0: it is computed anew
        ("swap_bytes_per_s", _FLOAT),
        ("block_tokens", _INT),
        ("routing", _INT),
        ("most_tokens", _INT),  # prompt and output of one request
        ("concurrency", _INT),  # requests in flight of a closed loop; 0: arrivals by time
        ("transfer_s", _FLOAT),  # latency of moving a cache to another pool
        ("transfer_bytes_per_s", _FLOAT),
        ("prefix_hit", _FLOAT),  # share of a prompt that is in the prefix cache
        ("request_s", _FLOAT),  # outside the engine, see `mixed.ENGINE_COEFFICIENTS`
        ("ttft_limit_s", _FLOAT),  # service level
        ("tpot_limit_s", _FLOAT),
    ]
)

# A request on its way. The slots of those that are gone are used again.
REQUEST = np.dtype(
    [
        ("index", _INT),  # place in the order of arrival
        ("priority", _INT),  # lower goes first
        ("prompt", _INT),
        ("output", _INT),
        ("computed", _INT),  # tokens with keys and values
        ("generated", _INT),
        ("blocks", _INT),
        ("swapped", _INT),  # 1: its cache lies in host memory
        ("new_tokens", _INT),  # that the step under way computes
        ("preemptions", _INT),
        ("group", _INT),
        ("left", _INT),  # queue links, see `request_queue.py`
        ("right", _INT),
        ("arrival_s", _FLOAT),
        ("queued_s", _FLOAT),  # since when it waits
        ("waited_s", _FLOAT),  # in all
        ("first_token_s", _FLOAT),
        ("last_token_s", _FLOAT),
        ("longest_gap_s", _FLOAT),
        ("ready_s", _FLOAT),  # when its cache has been moved
    ]
)

GROUP = np.dtype(
    [
        ("pool", _INT),
        ("role", _INT),
        ("replica", _INT),
        ("queue", _INT),  # slot of the first request that waits
        ("n_waiting", _INT),
        ("n_running", _INT),
        ("crowded", _INT),  # 1: a sequence was preempted and none has ended since
        ("used_bytes", _INT),
        ("most_used_bytes", _INT),
        ("capacity_bytes", _INT),
        ("moves_first", _INT),  # caches on their way to another pool, in order
        ("moves_last", _INT),
        ("link_free_s", _FLOAT),
        ("swap_s", _FLOAT),  # of the step under way
    ]
)

REPLICA = np.dtype(
    [
        ("first_group", _INT),
        ("last_group", _INT),  # one past
        ("touched", _INT),  # 1: something changed, so that a step may start
        ("started_s", _FLOAT),
        ("ends_s", _FLOAT),  # NEVER when idle
        ("busy_s", _FLOAT),
        ("steps", _INT),
    ]
)

# Sums over the simulation, one record; buckets of time are `bucket_s` long.
TOTALS = np.dtype(
    [
        ("now_s", _FLOAT),
        ("bucket_s", _FLOAT),
        ("last_arrival_s", _FLOAT),
        ("next_arrival", _INT),  # row of the arrivals at hand
        ("free_slot", _INT),
        ("n_arrived", _INT),
        ("n_in_flight", _INT),
        ("n_away", _INT),  # of a closed loop: answered, the next request on its way
        ("n_records", _INT),
        ("n_logged", _INT),
        ("n_met", _INT),  # finished within the service level
        ("preemptions", _INT),
        ("recomputed_tokens", _INT),  # that had to be computed anew
        ("prompt_tokens", _INT),  # of prompts and of what is computed anew
        ("output_tokens", _INT),
        ("steps", _INT),
        ("decode_steps", _INT),  # without a prompt
        ("prompt_steps", _INT),  # without a decode
        ("swapped_bytes", _FLOAT),
        ("moved_bytes", _FLOAT),
        ("first_decoder", _INT),  # first group of the decoding pool; 0 without one
        ("next_entry", _INT),  # round robin
        ("next_decoder", _INT),
        ("waiting", _INT),  # requests now, with those whose cache is on its way
        ("running", _INT),
        ("used_bytes", _INT),  # of all groups
        ("waiting_at_last_arrival", _INT),
        ("in_flight_at_last_arrival", _INT),
        ("most_waiting", _INT),
        ("most_running", _INT),  # of a group
    ]
)

RECORD = np.dtype(
    [
        ("request", _INT),
        ("status", _INT),
        ("arrival_s", _FLOAT),
        ("prompt_tokens", _INT),
        ("output_tokens", _INT),
        ("priority", _INT),
        ("group", _INT),
        ("waited_s", _FLOAT),
        ("ttft_s", _FLOAT),
        ("tpot_s", _FLOAT),  # NaN for one token
        ("e2e_latency_s", _FLOAT),
        ("longest_gap_s", _FLOAT),
        ("preemptions", _INT),
    ]
)

STEP = np.dtype(
    [
        ("replica", _INT),
        ("start_s", _FLOAT),
        ("end_s", _FLOAT),
        ("decodes", _INT),
        ("prompts", _INT),
        ("prompt_tokens", _INT),
        ("waiting", _INT),  # requests now, with those whose cache is on its way
        ("running", _INT),
        ("used_bytes", _INT),  # of all groups
    ]
)

# Columns of the figures over time: areas (value x seconds) and counts of a bucket.
WAITING = 0
RUNNING = 1
CACHE = 2
ARRIVED = 3
ENDED = 4
TOKENS = 5
N_SERIES = 6

# Distributions that are kept as histograms.
TTFT = 0
TPOT = 1
E2E = 2
GAP = 3
WAIT = 4
N_DISTRIBUTIONS = 5


class Scheduled(NamedTuple):
    """What schedulers see. Groups that take new requests go before those that only decode.

    rules: of the two pools (2,). running: slots by group and place (groups, max_sequences).
    block_bytes: cache of one sequence by blocks, of both pools (2, blocks + 1). series: figures
    over time (N_SERIES, buckets). totals: one record (1,).
    """

    rules: Any
    requests: Any
    groups: Any
    running: Any
    block_bytes: Any
    series: Any
    totals: Any


class State(NamedTuple):
    """All of a simulation.

    counts: histograms (N_DISTRIBUTIONS, bins), see `timeline.py`; sums: (N_DISTRIBUTIONS, 3) with
    number, sum, most. ended: requests by status (N_STATUS,). log: STEP rows, empty for none.
    away_s: of a closed loop, when requests that are on their way arrive (`time_heap.py`).
    """

    sched: Scheduled
    replicas: Any
    counts: Any
    sums: Any
    ended: Any
    records: Any
    log: Any
    away_s: Any


class Pool(NamedTuple):
    """Rows that time the steps of a pool, and what is remembered of them (`step_memo.py`)."""

    operators: Any
    segments: Any
    machine: Any
    engine: Any
    keys: Any
    kept: Any
    times: Any


class Arrivals(NamedTuple):
    """Requests to come, in order of arrival; `more`: others follow these."""

    arrival_s: Any
    prompt: Any
    output: Any
    priority: Any
    more: bool
