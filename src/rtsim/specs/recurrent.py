"""Layers with a state instead of a cache: Mamba, Mamba-2, gated delta rule, linear attention.

All keep per sequence a state of n_v_heads x key size x value size that every token updates, and
most a short convolution over the last few tokens. State-space papers say heads and state size,
linear attention value heads and key size; `scan` gives the common form.

Sources: Mamba (arXiv:2312.00752), Mamba-2 (arXiv:2405.21060), Gated DeltaNet (arXiv:2412.06464),
Kimi Delta Attention (arXiv:2510.26692), Lightning Attention (arXiv:2501.08313).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from rtsim.specs.attention import Count, Width, rank_share
from rtsim.specs.base import Spec
from rtsim.specs.dtype import dtype_bytes

STATE_BYTES = 4.0  # states are kept in fp32, as the reference implementations do


class Scan(NamedTuple):
    """A recurrence: state of n_v_heads x key_dim x value_dim, keys and queries of n_k_heads.

    channel_gate: decay per channel of the state instead of per head. delta: the delta rule.
    """

    n_k_heads: int
    key_dim: int
    n_v_heads: int
    value_dim: int
    delta: bool
    channel_gate: bool


class _Recurrent(Spec):
    """What the layers of this module share."""

    @property
    def scan(self) -> Scan:
        """The recurrence itself."""
        raise NotImplementedError

    @property
    def convolved_width(self) -> int:
        """Channels that go through the short convolution."""
        return 0

    @property
    def in_width(self) -> int:
        """Columns of the projections from the hidden state."""
        raise NotImplementedError

    @property
    def out_width(self) -> int:
        """Width that the output projection takes."""
        return self.scan.n_v_heads * self.scan.value_dim

    @property
    def shared_width(self) -> int:
        """Columns of keys and queries, whose heads are replicated where there are too few."""
        return 2 * self.scan.n_k_heads * self.scan.key_dim

    def rank_width(self, width: int, tp: int) -> float:
        """One tensor-parallel rank's share of `width` columns, keys and queries among them."""
        shared = self.shared_width
        return (width - shared) / tp + shared * rank_share(self.scan.n_k_heads, tp)

    @property
    def kernel_size(self) -> int:
        """Tokens that the convolution spans; 1 is none."""
        return int(getattr(self, "conv_kernel", 1))

    @property
    def n_heads(self) -> int:
        """Heads that tensor parallelism splits."""
        return self.scan.n_v_heads

    def parameters(self, hidden_size: int) -> int:
        """Weights and biases of one layer."""
        raise NotImplementedError

    def rank_parameters(self, hidden_size: int, tp: int) -> float:
        """Those of one tensor-parallel rank; heads are split, key groups replicated if too few."""
        return self.parameters(hidden_size) / tp

    def cache_bytes_per_token(self, kv_dtype: str) -> float:
        """Bytes that one token adds to a cache: none."""
        return 0.0

    def cache_share(self, tp: int) -> float:
        """Share of the state on one tensor-parallel rank."""
        return 1.0 / tp

    def cached_tokens(self, context_tokens: float) -> float:
        """Tokens kept per sequence; without a cache it does not matter."""
        return context_tokens

    def state_bytes(self, dtype: str) -> float:
        """Bytes of state per sequence: the recurrence's, in fp32, and the convolution's."""
        scan = self.scan
        state = scan.n_v_heads * scan.key_dim * scan.value_dim * STATE_BYTES
        return state + self.convolved_width * (self.kernel_size - 1) * dtype_bytes(dtype)

    def widest(self, tp: int) -> float:
        """Elements per token of the widest intermediate on one rank."""
        return self.rank_width(self.in_width, tp)


class Mamba2Spec(_Recurrent):
    """Mamba-2: scalar decay per head; keys and queries (B, C) shared by `n_groups` of heads."""

    kind: Literal["mamba2"] = "mamba2"
    n_ssm_heads: Count
    head_dim: Width
    state_size: Width
    n_groups: Count = 1
    conv_kernel: Count = 4
    conv_bias: bool = True
    proj_bias: bool = False

    @property
    def scan(self) -> Scan:
        """The recurrence itself."""
        return Scan(self.n_groups, self.state_size, self.n_ssm_heads, self.head_dim, False, False)

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.n_ssm_heads * self.head_dim

    @property
    def convolved_width(self) -> int:
        """Inputs, keys and queries are convolved."""
        return self.inner + 2 * self.n_groups * self.state_size

    @property
    def in_width(self) -> int:
        """Gate, convolved channels and a step per head."""
        return self.inner + self.convolved_width + self.n_ssm_heads

    def parameters(self, hidden_size: int) -> int:
        """Projections, convolution, decay, skip and step per head, gated norm."""
        count = hidden_size * (self.in_width + self.inner)
        count += self.convolved_width * (self.conv_kernel + (1 if self.conv_bias else 0))
        count += (self.in_width + hidden_size) if self.proj_bias else 0
        return count + 3 * self.n_ssm_heads + self.inner


class MambaSpec(_Recurrent):
    """Mamba: a decay of its own for every channel and state, no heads.

    `step_rank`: rank of the projection of the step. `inner_norms`: norms on step, B and C (Jamba).
    """

    kind: Literal["mamba"] = "mamba"
    inner_size: Width
    state_size: Width
    step_rank: Width
    conv_kernel: Count = 4
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norms: bool = False

    @property
    def scan(self) -> Scan:
        """The recurrence itself: every channel a head with a value of one element."""
        return Scan(1, self.state_size, self.inner_size, 1, False, True)

    @property
    def convolved_width(self) -> int:
        """The inputs are convolved."""
        return self.inner_size

    @property
    def in_width(self) -> int:
        """Gate and inputs."""
        return 2 * self.inner_size

    @property
    def shared_width(self) -> int:
        """None: keys and queries are made from the inputs."""
        return 0

    @property
    def selection_width(self) -> int:
        """Columns of the projection from the inputs to step, B and C."""
        return self.step_rank + 2 * self.state_size

    def parameters(self, hidden_size: int) -> int:
        """Projections, convolution, decay and skip."""
        inner = self.inner_size
        count = hidden_size * 3 * inner + inner * self.selection_width
        count += self.step_rank * inner + inner
        count += inner * (self.conv_kernel + (1 if self.conv_bias else 0))
        count += inner * self.state_size + inner
        count += self.selection_width if self.inner_norms else 0
        return count + (2 * inner + hidden_size if self.proj_bias else 0)


class GatedDeltaSpec(_Recurrent):
    """Gated delta rule (Gated DeltaNet, Kimi Delta Attention).

    `decay_rank`: rank of the projection of a decay per channel (Kimi); None: a decay per head.
    `gate_rank`: rank of the output gate's projection; None: of full rank.
    """

    kind: Literal["gated_delta"] = "gated_delta"
    n_k_heads: Count
    n_v_heads: Count
    k_head_dim: Width
    v_head_dim: Width
    conv_kernel: Count = 4
    decay_rank: Width | None = None
    gate_rank: Width | None = None

    @property
    def scan(self) -> Scan:
        """The recurrence itself."""
        channels = self.decay_rank is not None
        return Scan(
            self.n_k_heads, self.k_head_dim, self.n_v_heads, self.v_head_dim, True, channels
        )

    @property
    def k_width(self) -> int:
        """Width of all keys; the queries are as wide."""
        return self.n_k_heads * self.k_head_dim

    @property
    def v_width(self) -> int:
        """Width of all values."""
        return self.n_v_heads * self.v_head_dim

    @property
    def convolved_width(self) -> int:
        """Queries, keys and values are convolved."""
        return 2 * self.k_width + self.v_width

    @property
    def in_width(self) -> int:
        """Queries, keys, values, learning rate, decay (or what it is made from), gate."""
        decay = self.n_v_heads if self.decay_rank is None else self.decay_rank
        gate = self.v_width if self.gate_rank is None else self.gate_rank
        return self.convolved_width + self.n_v_heads + decay + gate

    def parameters(self, hidden_size: int) -> int:
        """Projections, convolution, decay, norm of the outputs."""
        count = hidden_size * (self.in_width + self.v_width)
        count += self.convolved_width * self.conv_kernel + self.v_head_dim
        if self.decay_rank is None:
            count += 2 * self.n_v_heads
        else:
            decays = self.n_v_heads * self.k_head_dim
            count += self.decay_rank * decays + decays + self.n_v_heads
        if self.gate_rank is not None:
            count += self.gate_rank * self.v_width
        return count


class LinearAttentionSpec(_Recurrent):
    """Linear attention with a fixed decay per head (Lightning Attention; MiniMax-Text-01).

    `output_gate`: outputs are normed and multiplied by a gate as wide as they are.
    """

    kind: Literal["linear_attention"] = "linear_attention"
    n_attention_heads: Count
    head_dim: Width
    output_gate: bool = True

    @property
    def scan(self) -> Scan:
        """The recurrence itself."""
        heads, size = self.n_attention_heads, self.head_dim
        return Scan(heads, size, heads, size, False, False)

    @property
    def in_width(self) -> int:
        """Queries, keys, values and gate."""
        return (4 if self.output_gate else 3) * self.n_attention_heads * self.head_dim

    def parameters(self, hidden_size: int) -> int:
        """Projections, and the norm of the outputs."""
        width = self.n_attention_heads * self.head_dim
        return hidden_size * (self.in_width + width) + (width if self.output_gate else 0)
