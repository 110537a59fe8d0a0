"""Feed-forward blocks as shapes: dense, and mixtures of experts.

Parameter counts follow from the shape: n*k for an n-by-k linear layer, plus n with a bias.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rtsim.specs.attention import Count, Width
from rtsim.specs.base import WHOLE, Spec

Activation = Literal["gelu", "relu", "silu", "relu2"]


class MlpSpec(Spec):
    """Feed-forward block: up, activation, down; gated ones have a second, equal up matrix."""

    kind: Literal["mlp"] = "mlp"
    ffn_size: Width
    gated: bool = False
    activation: Activation = "gelu"
    bias: bool = False

    @property
    def matrices(self) -> int:
        """Weight matrices: up, down, and gate where there is one."""
        return 3 if self.gated else 2

    def parameters(self, hidden_size: int) -> int:
        """Weights and biases of one layer's MLP."""
        count = self.matrices * hidden_size * self.ffn_size
        if self.bias:
            count += (self.matrices - 1) * self.ffn_size + hidden_size
        return count

    def active_parameters(self, hidden_size: int) -> int:
        """Those that one token passes through: all."""
        return self.parameters(hidden_size)

    def rank_parameters(self, hidden_size: int, tp: int) -> float:
        """Those of one tensor-parallel rank."""
        return self.parameters(hidden_size) / tp

    def widest(self, tp: int) -> float:
        """Elements per token of the intermediates alive together on one rank."""
        return self.matrices * self.ffn_size / tp


class MoeSpec(Spec):
    """Mixture of experts: a router sends each token to `top_k` of `n_experts` small MLPs.

    `expert_size`: width of one expert. `shared_size`: width of all shared experts together, which
    every token passes through; `shared_gate`: their output is weighted by a sigmoid. `dense_size`:
    an ordinary MLP that runs beside the experts in the same layer. `latent_size`: experts work in
    a narrower space, with a projection into it and one out of it. `bias`: experts and router have
    biases; `router_bias`: the router alone (a correction for load balance). `hidden_act` as in
    MlpSpec. `skew`: exponent a of the power law that experts are chosen by (i-th most popular
    expert: weight i^-a); 0 is uniform, the assumption of balanced training.
    """

    kind: Literal["moe"] = "moe"
    n_experts: Annotated[int, WHOLE, Field(ge=1, le=100_000)]
    top_k: Count
    expert_size: Width
    gated: bool = True
    activation: Activation = "silu"
    shared_size: Annotated[int, WHOLE, Field(ge=0, le=1_000_000)] = 0
    shared_gate: bool = False
    dense_size: Annotated[int, WHOLE, Field(ge=0, le=1_000_000)] = 0
    latent_size: Width | None = None
    bias: bool = False
    router_bias: bool = False
    skew: Annotated[float, Field(ge=0.0, le=3.0)] = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k = {self.top_k} must be at most n_experts = {self.n_experts}")
        return self

    @property
    def matrices(self) -> int:
        """Weight matrices of an expert: up, down, and gate where there is one."""
        return 3 if self.gated else 2

    @property
    def always_size(self) -> int:
        """Width that every token passes through: shared experts and the dense MLP beside them."""
        return self.shared_size + self.dense_size

    def expert_parameters(self, hidden_size: int) -> int:
        """Weights and biases of one expert."""
        width = self.latent_size or hidden_size
        count = self.matrices * width * self.expert_size
        if self.bias:
            count += (self.matrices - 1) * self.expert_size + width
        return count

    def common_parameters(self, hidden_size: int) -> int:
        """Router, shared experts, dense MLP and latent projections."""
        count = hidden_size * self.n_experts
        count += self.n_experts if self.bias or self.router_bias else 0
        count += self.matrices * hidden_size * self.always_size
        count += hidden_size if self.shared_gate else 0
        if self.latent_size is not None:
            count += 2 * hidden_size * self.latent_size
        return count

    def parameters(self, hidden_size: int) -> int:
        """Weights and biases of one layer, all experts."""
        experts = self.n_experts * self.expert_parameters(hidden_size)
        return experts + self.common_parameters(hidden_size)

    def active_parameters(self, hidden_size: int) -> int:
        """Those that one token passes through."""
        experts = self.top_k * self.expert_parameters(hidden_size)
        return experts + self.common_parameters(hidden_size)

    def rank_experts(self, ep: int) -> int:
        """Experts that the fullest of `ep` expert-parallel ranks keeps."""
        return -(-self.n_experts // ep)

    def widest(self, tp: int) -> float:
        """Elements per token of the intermediates alive together on one rank."""
        routed = self.top_k * self.expert_size * self.matrices
        return max(routed, self.matrices * self.always_size) / tp
