"""How a serving stack fills its steps: prompts beside decodes, limits, admission.

The defaults of each stack are those of its documentation in 2025-2026:

* vLLM (V1 engine): prompts in chunks beside decodes, `max_num_batched_tokens` 8192 and
  `max_num_seqs` 1024 for its server on GPUs of 70 GiB and more, 2048 and 256 below; a sequence that
  finds no free block is preempted and computed anew.
* SGLang: prompts first, in steps of their own, in chunks of 8192 tokens (16384 on GPUs of more than
  160 GiB, 2048 below 35 GiB); retracts sequences when the cache is full.
* TensorRT-LLM (PyTorch backend): in-flight batching, prompts beside decodes, `max_num_tokens` 8192,
  `max_batch_size` 2048; admits only what it can finish (GUARANTEED_NO_EVICT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from rtsim.errors import SpecError, UnknownName
from rtsim.specs.gpu import GpuSpec

Policy = Literal["mixed", "prefill-first", "static"]
POLICIES: tuple[Policy, ...] = ("mixed", "prefill-first", "static")

MOST_TOKENS = 2**20  # of a step
MOST_SEQUENCES = 2**16  # of a group; also tokens of a block

_GIB = 2.0**30


@dataclass(frozen=True)
class Scheduler:
    """What an engine puts into one step.

    policy: "mixed" (chunks of prompts beside all running decodes, up to the budget),
        "prefill-first" (waiting prompts get steps of their own before decoding goes on) or
        "static" (a batch is filled, runs to its end, then the next).
    token_budget: most tokens of a step; a prompt above it is cut into chunks.
    max_sequences: most sequences that run at once, per group of GPUs with sequences of its own.
    reserves: a request is admitted only when its whole length fits the cache, so none is preempted.
    block_tokens: tokens of a cache block.
    memory_frac: share of the GPU's memory that weights, activations and cache may take.
    """

    policy: Policy = "mixed"
    token_budget: int = 8192
    max_sequences: int = 1024
    reserves: bool = False
    block_tokens: int = 16
    memory_frac: float = 0.9

    def __post_init__(self) -> None:
        """SpecError, or UnknownName of a policy, for limits that leave nothing to run."""
        if self.policy not in POLICIES:
            raise UnknownName("policy", str(self.policy), POLICIES)
        for name, value, most in (
            ("token_budget", self.token_budget, MOST_TOKENS),
            ("max_sequences", self.max_sequences, MOST_SEQUENCES),
            ("block_tokens", self.block_tokens, MOST_SEQUENCES),
        ):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not 1 <= value <= most:
                raise SpecError(name, value, f"must be a whole number from 1 to {most:,}")
        if not 0.0 < self.memory_frac <= 1.0:
            raise SpecError("memory_frac", self.memory_frac, "must be a share from above 0 to 1")

    def changed(
        self, policy: str | None = None, token_budget: int | None = None,
        max_sequences: int | None = None, memory_frac: float | None = None,
    ) -> Scheduler:  # fmt: skip
        """The scheduler with what is given; raises as it does itself."""
        asked = {
            "policy": policy, "token_budget": token_budget, "max_sequences": max_sequences,
            "memory_frac": memory_frac,
        }  # fmt: skip
        changes: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
        return replace(self, **changes)


def scheduler_of(stack: str, gpu: GpuSpec) -> Scheduler:
    """The defaults of a stack on a GPU; those of vLLM for a stack that does not serve."""
    gib = gpu.memory_bytes / _GIB
    if stack == "sglang":
        chunk = 16384 if gib > 160.0 else 8192 if gib >= 35.0 else 2048
        return Scheduler("prefill-first", chunk, 2048, block_tokens=1, memory_frac=0.9)
    if stack == "trtllm":
        return Scheduler("mixed", 8192, 2048, reserves=True, block_tokens=32, memory_frac=0.95)
    large = gib >= 70.0
    return Scheduler("mixed", 8192 if large else 2048, 1024 if large else 256)
