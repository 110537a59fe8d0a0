"""The arrays of a simulation: made from a deployment, grown when more requests are on their way."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import rtsim_kernels
from rtsim_kernels import events, step_memo, timeline
from rtsim_kernels import serving_state as st

from rtsim.service_level import ServiceLevel
from rtsim.serving.deployment import Deployment
from rtsim.serving.trace import Array, Requests

_FIRST_SLOTS = 4096
RECORDS = 16_384  # that are taken away at a time
LOGGED_STEPS = 16_384


@dataclass
class Form:
    """The kernels in one of their forms: compiled on arrays, or plain Python on `recarray`s."""

    compiled: bool
    kernels: Any

    def rows(self, array: Array) -> Any:
        """An array of records as the kernels read it."""
        return array if self.compiled else array.view(np.recarray)


def form_of(compiled: bool) -> Form:
    """The compiled kernels, or the interpreted ones."""
    if compiled:
        return Form(True, rtsim_kernels.compiled())
    plain = ModuleType("plain")
    vars(plain).update(events=events, serving_state=st)
    return Form(False, plain)


def new_state(
    deployment: Deployment,
    form: Form,
    level: ServiceLevel,
    concurrency: int,
    log_steps: bool,
) -> Any:
    """State at time zero, see `serving_state.State`."""
    rows = deployment.group_rows()
    tables, capacities = deployment.cache_tables()
    rules = np.zeros(2, st.RULES)
    for pool in range(2):
        for name, value in deployment.rules(min(pool, len(deployment.engines) - 1)).items():
            rules[name][pool] = value
    rules["concurrency"] = concurrency
    rules["request_s"] = deployment.rules(0)["request_s"]
    rules["ttft_limit_s"], rules["tpot_limit_s"] = level.ttft_s, level.tpot_s
    groups = np.zeros(len(rows), st.GROUP)
    groups["pool"], groups["role"], groups["replica"] = ([row[i] for row in rows] for i in range(3))
    groups["capacity_bytes"] = [capacities[row[0]] for row in rows]
    for name in ("queue", "moves_first", "moves_last"):
        groups[name] = st.NONE
    owners = groups["replica"]
    replicas = np.zeros(int(owners[-1]) + 1, st.REPLICA)
    replicas["first_group"] = np.searchsorted(owners, np.arange(len(replicas)))
    replicas["last_group"] = np.searchsorted(owners, np.arange(len(replicas)), side="right")
    replicas["ends_s"] = st.NEVER
    totals = np.zeros(1, st.TOTALS)
    totals["bucket_s"] = timeline.FIRST_BUCKET_S
    if deployment.prefill is not None:
        totals["first_decoder"] = int(np.argmax(groups["role"] == st.DECODE))
    places = max(row[3] for row in rows)
    block_bytes = np.full((2, max(map(len, tables))), np.iinfo(np.int64).max // 4)
    for pool in range(2):
        table = tables[min(pool, len(tables) - 1)]
        block_bytes[pool, : len(table)] = table
    margin = max(row[3] for row in rows) * int(
        (replicas["last_group"] - replicas["first_group"]).max()
    )
    requests = np.zeros(0, st.REQUEST)
    requests, totals["free_slot"] = more_slots(requests, st.NONE, _FIRST_SLOTS)
    scheduled = form.kernels.serving_state.Scheduled(
        rules=form.rows(rules),
        requests=form.rows(requests),
        groups=form.rows(groups),
        running=np.full((len(rows), places), st.NONE, np.int64),
        block_bytes=block_bytes,
        series=np.zeros((st.N_SERIES, timeline.N_BUCKETS)),
        totals=form.rows(totals),
    )
    return form.kernels.serving_state.State(
        sched=scheduled,
        replicas=form.rows(replicas),
        counts=np.zeros((st.N_DISTRIBUTIONS, timeline.N_BINS), np.int64),
        sums=np.zeros((st.N_DISTRIBUTIONS, 3)),
        ended=np.zeros(st.N_STATUS, np.int64),
        records=form.rows(np.zeros(RECORDS + margin, st.RECORD)),
        log=form.rows(np.zeros((LOGGED_STEPS + len(replicas)) if log_steps else 0, st.STEP)),
        away_s=np.zeros(concurrency + 1),
    )


def more_slots(requests: Array, free: int, n: int) -> tuple[Array, int]:
    """Requests with `n` further slots, and the first free one; `free`: that of before."""
    first = len(requests)
    added = np.zeros(n, st.REQUEST)
    added["right"] = np.arange(first + 1, first + n + 1)
    added["right"][-1] = free
    return np.concatenate((requests, added)), first


def grown(state: Any, form: Form) -> Any:
    """The state with twice the slots."""
    sched = state.sched
    requests = np.asarray(sched.requests).view(st.REQUEST)
    wider, first = more_slots(requests, int(sched.totals["free_slot"][0]), len(requests))
    sched.totals["free_slot"][0] = first
    return state._replace(sched=sched._replace(requests=form.rows(wider)))


def pool_rows(deployment: Deployment, form: Form) -> tuple[Any, Any]:
    """The `serving_state.Pool` of each pool; the same twice where there is one."""
    pools = []
    for engine in deployment.engines:
        if form.compiled:
            _, (operators, segments, machine, coefficients) = engine.compiled()
        else:
            operators, segments, machine, coefficients = engine.interpreted()
        n = len(engine.system.table.rows)
        pools.append(
            form.kernels.serving_state.Pool(
                operators, segments, machine, coefficients,
                keys=np.full((step_memo.PLACES, 5), np.nan),
                kept=np.zeros((step_memo.PLACES, n)),
                times=np.zeros((n, 2)),
            )
        )  # fmt: skip
    return pools[0], pools[-1]


def arrivals_row(requests: Requests, more: bool, form: Form) -> Any:
    """A block of requests as the kernels take it."""
    return form.kernels.serving_state.Arrivals(
        np.ascontiguousarray(requests.arrival_s, np.float64),
        *(
            np.ascontiguousarray(column, np.int64)
            for column in (requests.prompt_tokens, requests.output_tokens, requests.priority)
        ),
        more,
    )
