"""A Transformer's shape: what it computes and stores, nothing about how fast.

A model is a list of (layer kind, count), because windowed and full attention alternate, first
layers can be dense, and so on. Attention and MLP are told apart by `kind`; there is one kind of
each so far. Parameter counts follow from the shape: the weights of an n-by-k linear layer are
n*k, plus n with a bias. Ignored: buffers without weights (rotary tables, causal masks).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rtsim.specs.base import FILLED_IN, WHOLE, Spec
from rtsim.specs.dtype import dtype_bytes
from rtsim.specs.provenance import Provenance

# Far above any published model (widest so far 20480, most layers 126): catches slipped digits.
_Width = Annotated[int, WHOLE, Field(ge=1, le=1_000_000)]
_Count = Annotated[int, WHOLE, Field(ge=1, le=10_000)]
_Vocab = Annotated[int, WHOLE, Field(ge=1, le=10_000_000)]
_Positions = Annotated[int, WHOLE, Field(ge=1, le=100_000_000)]

Norm = Literal["layernorm", "rmsnorm"]


class AttentionSpec(Spec):
    """Multi-head, grouped-query or multi-query attention, full or in a sliding window.

    `n_kv_heads` defaults to `n_heads` (multi-head). `window` is the number of latest tokens
    seen, itself included; None sees all. `qkv_bias`/`out_bias`: biases of the input and output
    projections. `qk_norm`: a norm of width head_dim on queries and one on keys. `rotary_dim`:
    rotated part of each head, None for all of it.
    """

    kind: Literal["attention"] = "attention"
    n_heads: _Count
    n_kv_heads: _Count = FILLED_IN
    head_dim: _Width
    window: _Positions | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    rotary_dim: _Width | None = None

    @model_validator(mode="before")
    @classmethod
    def _multi_head_by_default(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("n_kv_heads") is None and "n_heads" in data:
            return {**data, "n_kv_heads": data["n_heads"]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads = {self.n_heads} must be a multiple of n_kv_heads = {self.n_kv_heads}"
            )
        if self.rotary_dim is not None and self.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary_dim = {self.rotary_dim} must be at most head_dim = {self.head_dim}"
            )
        return self

    @property
    def q_width(self) -> int:
        """Width of all queries together."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all keys together; the values are as wide."""
        return self.n_kv_heads * self.head_dim

    def parameters(self, hidden_size: int) -> int:
        """Weights and biases of one layer's attention."""
        qkv = self.q_width + 2 * self.kv_width
        count = hidden_size * qkv + self.q_width * hidden_size
        count += qkv if self.qkv_bias else 0
        count += hidden_size if self.out_bias else 0
        count += 2 * self.head_dim if self.qk_norm else 0
        return count

    def kv_bytes_per_token(self, kv_dtype: str) -> float:
        """Bytes that one token adds to this layer's cache: a key and a value per KV head."""
        return 2 * self.kv_width * dtype_bytes(kv_dtype)

    def cached_tokens(self, context_tokens: int) -> int:
        """Tokens kept per sequence at a context: all, or the window's worth."""
        return context_tokens if self.window is None else min(context_tokens, self.window)


class MlpSpec(Spec):
    """Feed-forward block: up, activation, down; gated ones have a second, equal up matrix."""

    kind: Literal["mlp"] = "mlp"
    ffn_size: _Width
    gated: bool = False
    activation: Literal["gelu", "relu", "silu", "relu2"] = "gelu"
    bias: bool = False

    def parameters(self, hidden_size: int) -> int:
        """Weights and biases of one layer's MLP."""
        ups = 2 if self.gated else 1
        count = (ups + 1) * hidden_size * self.ffn_size
        if self.bias:
            count += ups * self.ffn_size + hidden_size
        return count

    def active_parameters(self, hidden_size: int) -> int:
        """Those that one token passes through: all."""
        return self.parameters(hidden_size)


# Unions told apart by `kind` as soon as a second kind of each exists.
AnyAttention = AttentionSpec
AnyMlp = MlpSpec


class LayerGroup(Spec):
    """`count` equal layers in a row.

    `norms_per_layer`: 2 for the usual attention and MLP norms, 1 where a parallel block shares
    one, 4 where outputs are normed too. `parallel`: attention and MLP read the same input and
    are summed (GPT-J, GPT-NeoX), so tensor parallelism needs one all-reduce instead of two.
    """

    count: _Count = 1
    attention: AnyAttention
    mlp: AnyMlp
    norm: Norm = "layernorm"
    norm_bias: bool | None = None
    norms_per_layer: Annotated[int, WHOLE, Field(ge=0, le=8)] = 2
    parallel: bool = False

    @property
    def has_norm_bias(self) -> bool:
        """LayerNorm has a bias and RMSNorm none, unless stated otherwise."""
        return self.norm == "layernorm" if self.norm_bias is None else self.norm_bias

    def norm_parameters(self, hidden_size: int) -> int:
        """Gain, and bias where there is one, of a single norm."""
        return hidden_size * (2 if self.has_norm_bias else 1)

    def parameters(self, hidden_size: int) -> int:
        """One layer of this group."""
        return (
            self.attention.parameters(hidden_size)
            + self.mlp.parameters(hidden_size)
            + self.norms_per_layer * self.norm_parameters(hidden_size)
        )

    def active_parameters(self, hidden_size: int) -> int:
        """One layer, the part that one token passes through."""
        inactive = self.mlp.parameters(hidden_size) - self.mlp.active_parameters(hidden_size)
        return self.parameters(hidden_size) - inactive


class ModelSpec(Spec):
    """A decoder-only Transformer.

    `vocab_size` as in the weights, padding included. `embedding_size`: width of the token
    table where it differs from hidden_size (a projection joins them). `tied_embeddings`: the
    output head is the token table. `max_positions`: the longest context it was made for; a hard
    limit only with learned positions.
    """

    name: str = Field(min_length=1, max_length=200)
    aliases: tuple[str, ...] = ()
    hidden_size: _Width
    vocab_size: _Vocab
    embedding_size: _Width | None = None
    max_positions: _Positions
    position: Literal["learned", "rotary", "alibi", "none"] = "rotary"
    tied_embeddings: bool = False
    embedding_norm: bool = False
    final_norm: bool = True
    head_bias: bool = False
    dtype: Literal["fp16", "bf16", "fp32"] = "bf16"
    layers: tuple[LayerGroup, ...]
    provenance: Provenance | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        # Not Field(min_length=1): that adds a second, misleading error when an entry is wrong.
        if not self.layers:
            raise ValueError("layers must hold at least one group")
        return self

    @property
    def n_layers(self) -> int:
        return sum(group.count for group in self.layers)

    @property
    def token_width(self) -> int:
        """Width of the token table."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @cached_property
    def embedding_parameters(self) -> int:
        """Token table, its projection, learned positions and the norm after them."""
        count = self.vocab_size * self.token_width
        if self.token_width != self.hidden_size:
            count += self.token_width * self.hidden_size
        if self.position == "learned":
            count += self.max_positions * self.hidden_size
        if self.embedding_norm:
            count += self.layers[0].norm_parameters(self.hidden_size)
        return count

    @cached_property
    def head_parameters(self) -> int:
        """Final norm and output head, without a token table that is counted as embedding."""
        count = self.vocab_size if self.head_bias else 0
        if self.final_norm:
            count += self.layers[-1].norm_parameters(self.hidden_size)
        if self.token_width != self.hidden_size:
            count += self.token_width * self.hidden_size
        if not self.tied_embeddings:
            count += self.vocab_size * self.token_width
        return count

    @cached_property
    def parameters(self) -> int:
        """All stored parameters; a tied head counts once."""
        layers = sum(g.count * g.parameters(self.hidden_size) for g in self.layers)
        return self.embedding_parameters + layers + self.head_parameters

    @cached_property
    def active_parameters(self) -> int:
        """Parameters without the experts that a token does not visit."""
        layers = sum(g.count * g.active_parameters(self.hidden_size) for g in self.layers)
        return self.embedding_parameters + layers + self.head_parameters

    def kv_bytes_per_token(self, kv_dtype: str | None = None) -> float:
        """Bytes that one token adds to the cache, all layers, before any window is full."""
        dtype = kv_dtype or self.dtype
        return sum(g.count * g.attention.kv_bytes_per_token(dtype) for g in self.layers)

    def kv_bytes(self, context_tokens: int, kv_dtype: str | None = None) -> float:
        """Cache bytes of one sequence at a context, windows taken into account."""
        dtype = kv_dtype or self.dtype
        return sum(
            g.count
            * g.attention.kv_bytes_per_token(dtype)
            * g.attention.cached_tokens(context_tokens)
            for g in self.layers
        )
