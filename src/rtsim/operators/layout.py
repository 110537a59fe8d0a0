"""What the parts of a lowering share: the model, the stack, and how GPUs split them."""

from __future__ import annotations

from dataclasses import dataclass

from rtsim.operators.table import PlainForward, StackTraits
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec


@dataclass(frozen=True)
class Layout:
    """One GPU's place in a system. joined: GPUs that reach each other without the network."""

    model: ModelSpec
    traits: StackTraits
    plain: PlainForward | None
    parallelism: ParallelismSpec
    joined: int

    @property
    def tp(self) -> int:
        """Ranks that split a layer."""
        return self.parallelism.tp

    @property
    def per_node(self) -> int:
        """Tensor-parallel ranks that share a node."""
        return min(self.tp, self.joined)

    def together(self, ranks: int, stride: int = 1) -> int:
        """Of `ranks` that lie `stride` GPUs apart, those that share a node."""
        return max(1, min(ranks, self.joined // stride))
