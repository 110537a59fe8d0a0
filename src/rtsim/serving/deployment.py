"""What is simulated: replicas of an engine, or a pool of them for prompts and one for decoding.

Groups and replicas follow from the engine's parallelism: `dp` replicas apart; `attention_dp` groups
of one replica in lockstep; `pp` stages as `pp` streams of requests, which have the cache and the
places of the replica in equal parts. A cache moves between pools as `transfer` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rtsim_kernels import serving_state as st

from rtsim.errors import NotSupported, SpecError, UnknownName
from rtsim.serving import transfer
from rtsim.serving.engine import Engine
from rtsim.serving.trace import Array

Routing = Literal["round-robin", "least-loaded"]
ROUTINGS: tuple[Routing, ...] = ("round-robin", "least-loaded")
Preemption = Literal["recompute", "swap"]
PREEMPTIONS: tuple[Preemption, ...] = ("recompute", "swap")

MOST_GROUPS = 4096
_MOST_TOKENS = 2**22
_LESS_THAN_A_BYTE = 1e-3  # rounding of the sums


@dataclass(frozen=True)
class Deployment:
    """Engines that serve together.

    engine: of all replicas, or of those that decode where `prefill` is given. n_replicas,
    n_prefill: of each; None takes the dp of the engine. most_tokens: prompt and output of one
    request; None takes the model's positions. transfer_bytes_per_s: of one GPU. prefix_hit: share
    of a prompt whose keys and values are in the prefix cache; its blocks count as the request's.
    """

    engine: Engine
    prefill: Engine | None = None
    n_replicas: int | None = None
    n_prefill: int | None = None
    routing: str = "round-robin"
    preemption: str = "recompute"
    most_tokens: int | None = None
    transfer_bytes_per_s: float | None = None
    prefix_hit: float = 0.0

    def __post_init__(self) -> None:
        if self.routing not in ROUTINGS:
            raise UnknownName("routing", self.routing, ROUTINGS)
        if self.preemption not in PREEMPTIONS:
            raise UnknownName("preemption", self.preemption, PREEMPTIONS)
        for field, n in (("decode_workers", self.n_replicas), ("prefill_workers", self.n_prefill)):
            if n is not None and not 1 <= n <= MOST_GROUPS:
                raise SpecError(field, n, f"must be a whole number from 1 to {MOST_GROUPS:,}")
        if self.most_tokens is not None and not 2 <= self.most_tokens <= _MOST_TOKENS:
            raise SpecError("max_model_len", self.most_tokens, f"must be 2 to {_MOST_TOKENS:,}")
        if not 0.0 <= self.prefix_hit < 1.0:
            raise SpecError("prefix_hit", self.prefix_hit, "must be at least 0, below 1")
        for engine in self.engines:
            if engine.system.parallelism.cp > 1:
                raise NotSupported(
                    "serving with context parallelism is not simulated: use --cp 1 and more --tp"
                )
        if len(self.group_rows()) > MOST_GROUPS:
            raise SpecError("dp", sum(self.replicas), f"at most {MOST_GROUPS:,} groups in all")

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine of each pool, that of new requests first."""
        return (self.engine,) if self.prefill is None else (self.prefill, self.engine)

    @property
    def replicas(self) -> tuple[int, ...]:
        """Replicas of each pool."""
        counts = (self.n_replicas,) if self.prefill is None else (self.n_prefill, self.n_replicas)
        return tuple(
            engine.system.parallelism.dp if n is None else n
            for n, engine in zip(counts, self.engines, strict=True)
        )

    @property
    def num_gpus(self) -> int:
        """GPUs in all."""
        return sum(
            n * engine.system.parallelism.gpus_per_replica
            for n, engine in zip(self.replicas, self.engines, strict=True)
        )

    @property
    def usd_per_hour(self) -> float | None:
        """Price of all GPUs; None where one has no price."""
        total = 0.0
        for n, engine in zip(self.replicas, self.engines, strict=True):
            price = engine.system.gpu.price
            if price is None:
                return None
            total += n * engine.system.parallelism.gpus_per_replica * price.usd_per_hour
        return total

    @property
    def longest_request(self) -> int:
        """Prompt and output tokens that a server of this model accepts."""
        positions = min(engine.system.model.max_positions for engine in self.engines)
        return min(self.most_tokens or positions, _MOST_TOKENS)

    def group_rows(self) -> list[tuple[int, int, int, int]]:
        """(pool, role, replica, sequence places) of every group."""
        rows: list[tuple[int, int, int, int]] = []
        replica = 0
        apart = self.prefill is not None
        for pool, (n, engine) in enumerate(zip(self.replicas, self.engines, strict=True)):
            role = (st.PREFILL, st.DECODE)[pool] if apart else st.ALL
            p = engine.system.parallelism
            places = max(1, engine.scheduler.max_sequences // p.pp)
            for _ in range(n * p.pp):
                rows += [(pool, role, replica, places)] * p.attention_dp
                replica += 1
        return rows

    def rules(self, pool: int) -> dict[str, float]:
        """The RULES of a pool, without the service level and the closed loop."""
        engine = self.engines[pool]
        scheduler, gpu = engine.scheduler, engine.system.gpu
        p = engine.system.parallelism
        policies = {"mixed": st.MIXED, "prefill-first": st.PREFILL_FIRST, "static": st.STATIC}
        receiving = self.engine.system.parallelism.tp
        rate = self.transfer_bytes_per_s or transfer.transfer_path(gpu)[1]
        return {
            "policy": policies[scheduler.policy],
            "token_budget": scheduler.token_budget,
            "max_sequences": max(1, scheduler.max_sequences // p.pp),
            "reserves": int(scheduler.reserves),
            "swaps": int(self.preemption == "swap"),
            "swap_bytes_per_s": gpu.pcie_bytes_per_s,
            "block_tokens": scheduler.block_tokens,
            "routing": ROUTINGS.index(self.routing),
            "most_tokens": self.longest_request,
            "transfer_s": transfer.SETUP_S,
            "transfer_bytes_per_s": transfer.group_bytes_per_s(rate, p.tp, receiving),
            "prefix_hit": self.prefix_hit,
            "request_s": float(engine.row["request_s"]),
        }

    def cache_tables(self) -> tuple[list[Array], list[int]]:
        """Bytes of a sequence by its blocks, and bytes for a group's cache, of each pool.

        Bytes are those of the fullest GPU. Raises SpecError where the model does not fit.
        """
        tables, capacities = [], []
        for engine in self.engines:
            cache = engine.cache()
            block = engine.scheduler.block_tokens
            table = np.zeros(-(-self.longest_request // block) + 1)
            fill(lambda blocks: cache.sequence_bytes(blocks * block), table, 1, len(table) - 1)  # noqa: B023
            tables.append(np.ceil(table - _LESS_THAN_A_BYTE).astype(np.int64))
            capacities.append(int(cache.capacity_bytes / engine.system.parallelism.pp))
        return tables, capacities


def fill(value: Callable[[float], float], table: Array, first: int, last: int) -> None:
    """Write value(i) to table[i], first <= i <= last, for a concave `value` of straight pieces.

    The middle of a piece lies on the line between its ends, and only there: the others are cut in
    half. Caches are such: all tokens, or those of a window, or a share of them.

    >>> table = np.zeros(9)
    >>> fill(lambda i: min(i, 5.0), table, 1, 8)
    >>> table.tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0]
    """
    low, high = value(float(first)), value(float(last))
    table[first], table[last] = low, high
    if last - first < 2:
        return
    middle = (first + last) // 2
    steps = np.arange(last - first + 1) / (last - first)
    if abs(low + steps[middle - first] * (high - low) - value(float(middle))) <= 1e-9 * high:
        table[first : last + 1] = low + steps * (high - low)
        return
    fill(value, table, first, middle)
    fill(value, table, middle, last)
