"""Feed-forward blocks as operators: dense, and mixtures of experts with their communication.

Experts are spread over the tp x attention_dp GPUs of a stage. With tensor parallelism alone every
GPU has all tokens and sums what its experts, or its slices of experts, give. Where groups of GPUs
have sequences of their own (attention data parallelism), tokens travel to the GPUs that keep their
experts and back: all-to-all with whole experts, all-gather and reduce-scatter with sliced ones.
"""

from __future__ import annotations

from rtsim_kernels import collective, tables

from rtsim.operators.layout import Layout
from rtsim.operators.table import COLLECTIVE_EXPERTS, GEMM_HEAD, Builder
from rtsim.specs.mlp import MlpSpec, MoeSpec


def feed_forward(build: Builder, layout: Layout, mlp: MlpSpec | MoeSpec) -> None:
    """The operators of a layer's feed-forward block."""
    if isinstance(mlp, MoeSpec):
        mixture(build, layout, mlp)
    else:
        dense(build, layout, mlp.ffn_size, mlp, "MLP")


def dense(build: Builder, layout: Layout, size: int, mlp: MlpSpec | MoeSpec, name: str) -> None:
    """Up, activation, down of width `size`, split over the tensor-parallel ranks."""
    hidden, plain = layout.model.hidden_size, layout.plain
    ffn = float(-(-size // layout.tp))  # padded where it does not divide
    build.gemm(f"{name} up projection", (2 if mlp.gated else 1) * ffn, hidden)
    activation = {"silu": "silu", "relu": "relu", "relu2": "relu"}.get(mlp.activation, "gelu")
    if mlp.gated:
        activation = "silu_and_mul" if mlp.activation == "silu" else "gelu_and_mul"
    if plain is not None and plain.activation_kernels:
        for i, work in enumerate(plain.activation_kernels):
            build.elementwise(f"{name} activation {i + 1}", work, ffn)
    else:
        build.elementwise(f"{name} activation", activation, ffn)
    build.gemm(f"{name} down projection", hidden, ffn)


def mixture(build: Builder, layout: Layout, moe: MoeSpec) -> None:
    """Router, routed experts and what runs beside them."""
    parallelism = layout.parallelism
    hidden = layout.model.hidden_size
    width = moe.latent_size or hidden
    gathered = parallelism.attention_dp  # groups whose tokens meet at the experts
    build.gemm("router", moe.n_experts, hidden, row=GEMM_HEAD)
    if moe.latent_size is not None:
        build.gemm("expert input projection", width, hidden)
    _travel(build, layout, moe, width, there=True)
    build.add("experts", tables.MOE, launches=4.0, per_token=float(gathered), k=width,
              n=float(-(-moe.expert_size // parallelism.moe_tp)), n_experts=moe.n_experts,
              n_local_experts=moe.rank_experts(parallelism.ep), top_k=moe.top_k,
              matrices=moe.matrices, skew=moe.skew)  # fmt: skip
    _travel(build, layout, moe, width, there=False)
    if moe.latent_size is not None:
        build.gemm("expert output projection", hidden, width)
    for size, name in ((moe.shared_size, "shared MLP"), (moe.dense_size, "MLP")):
        if size:
            dense(build, layout, size, moe, name)
    if moe.always_size:
        build.elementwise("expert sum", "add", hidden)


def _travel(build: Builder, layout: Layout, moe: MoeSpec, width: int, *, there: bool) -> None:
    """Tokens to the GPUs that keep their experts, or results back."""
    parallelism = layout.parallelism
    if parallelism.attention_dp == 1:
        return
    ranks = parallelism.expert_gpus
    per_node = layout.together(ranks)
    element = build.element_bytes
    if parallelism.ep > 1:
        # A token goes to each GPU that keeps one of its experts, at most top_k of them; ranks of
        # a tensor-parallel group send a share of it each.
        copies = min(moe.top_k, parallelism.ep) / parallelism.tp
        build.communicate(f"expert {'dispatch' if there else 'combination'}",
                          collective.ALL_TO_ALL, COLLECTIVE_EXPERTS, ranks, per_node,
                          per_token=copies * width * element)  # fmt: skip
        return
    code = collective.ALL_GATHER if there else collective.REDUCE_SCATTER
    build.communicate(f"expert {'all-gather' if there else 'reduce-scatter'}", code,
                      COLLECTIVE_EXPERTS, ranks, per_node,
                      per_token=parallelism.attention_dp * width * element)  # fmt: skip
