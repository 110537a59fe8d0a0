"""Attention as a shape: full, grouped, windowed, sparse; latent (MLA); compressed (CSA).

Every mixer (these and those of `recurrent.py`) answers the same questions: how many parameters,
how many of them a tensor-parallel rank holds, what it caches per token and per sequence.
Weights of an n-by-k linear layer are n*k, plus n with a bias.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rtsim.specs.base import FILLED_IN, WHOLE, Spec
from rtsim.specs.dtype import dtype_bytes

# Far above any published model (widest so far 20480, most layers 126): catches slipped digits.
Width = Annotated[int, WHOLE, Field(ge=1, le=1_000_000)]
Count = Annotated[int, WHOLE, Field(ge=1, le=10_000)]
Positions = Annotated[int, WHOLE, Field(ge=1, le=100_000_000)]


def rank_share(heads: int, tp: int) -> float:
    """Share of `heads` that the fullest of `tp` ranks holds; heads are replicated, not cut.

    >>> rank_share(8, 4), rank_share(2, 4)
    (0.25, 0.5)
    """
    return max(1.0, -(-heads // tp)) / heads


class IndexerSpec(Spec):
    """Picks the keys that each query attends to (DeepSeek-V3.2's lightning indexer and its kin).

    `n_heads` small query heads of `head_dim` are scored against one key per cached token, and the
    best `top_k` tokens are attended to. `query_rank`: width that the index queries are projected
    from; None: the hidden state. `every`: layers that share one choice.
    """

    n_heads: Count
    head_dim: Width
    top_k: Positions
    query_rank: Width | None = None
    every: Annotated[float, Field(ge=1.0, le=1000.0)] = 1.0

    def parameters(self, hidden_size: int) -> int:
        """Query, key and weight projections and the norm of the key, where there is an indexer."""
        queries = (self.query_rank or hidden_size) * self.n_heads * self.head_dim
        keys = hidden_size * self.head_dim + 2 * self.head_dim
        return round((queries + keys + hidden_size * self.n_heads) / self.every)


class AttentionSpec(Spec):
    """Multi-head, grouped-query or multi-query attention, full or in a sliding window.

    `n_kv_heads` defaults to `n_heads` (multi-head). `v_head_dim`: size of a value head, None for
    head_dim. `window` is the number of latest tokens seen, itself included; None sees all.
    `causal`: False for encoders. `qkv_bias`/`out_bias`: biases of the input and output
    projections. `qk_norm`: a norm of width head_dim on queries and one on keys, or, with
    `qk_norm_scope` "projection", of the width of all heads. `rotary_dim`: rotated part of each
    head, None for all of it. `sinks`: a learnt score per head beside those of the keys.
    `output_gate`: the output is multiplied by a gate as wide as the queries. `value_projection`:
    False where values are the keys. `own_cache`: False where keys and values are those of an
    earlier layer.
    """

    kind: Literal["attention"] = "attention"
    n_heads: Count
    n_kv_heads: Count = FILLED_IN
    head_dim: Width
    v_head_dim: Width | None = None
    window: Positions | None = None
    causal: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    qk_norm_scope: Literal["head", "projection"] = "head"
    rotary_dim: Width | None = None
    sinks: bool = False
    output_gate: bool = False
    value_projection: bool = True
    own_cache: bool = True
    indexer: IndexerSpec | None = None

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
    def v_dim(self) -> int:
        """Size of a value head."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def q_width(self) -> int:
        """Width of all queries together."""
        return self.n_heads * self.head_dim

    @property
    def k_width(self) -> int:
        """Width of all keys together."""
        return self.n_kv_heads * self.head_dim

    @property
    def v_width(self) -> int:
        """Width of all values together."""
        return self.n_kv_heads * self.v_dim

    @property
    def out_width(self) -> int:
        """Width that the output projection takes."""
        return self.n_heads * self.v_dim

    @property
    def projected_kv_width(self) -> int:
        """Columns of the key and value projections: fewer where values are keys, or all shared."""
        if not self.own_cache:
            return 0
        return self.k_width + (self.v_width if self.value_projection else 0)

    def parameters(self, hidden_size: int) -> int:
        """Weights and biases of one layer's attention."""
        qkv = self.q_width + self.projected_kv_width
        count = hidden_size * qkv + self.out_width * hidden_size
        count += hidden_size * self.out_width if self.output_gate else 0
        count += qkv if self.qkv_bias else 0
        count += hidden_size if self.out_bias else 0
        if self.qk_norm:
            normed = (self.head_dim, self.head_dim)
            if self.qk_norm_scope == "projection":
                normed = (self.q_width, self.k_width)
            count += normed[0] + (normed[1] if self.own_cache else 0)
        count += self.n_heads if self.sinks else 0
        count += self.indexer.parameters(hidden_size) if self.indexer else 0
        return count

    def rank_parameters(self, hidden_size: int, tp: int) -> float:
        """Those of one tensor-parallel rank: heads are split, KV heads replicated if too few."""
        kv = self.projected_kv_width * hidden_size
        indexer = self.indexer.parameters(hidden_size) if self.indexer else 0
        split = self.parameters(hidden_size) - kv - indexer
        return split / tp + kv * rank_share(self.n_kv_heads, tp) + indexer

    def cache_bytes_per_token(self, kv_dtype: str) -> float:
        """Bytes that one token adds to this layer's cache: a key and a value per KV head."""
        if not self.own_cache:
            return 0.0
        index = self.indexer.head_dim / self.indexer.every if self.indexer else 0.0
        return (self.k_width + self.v_width) * dtype_bytes(kv_dtype) + index

    def cache_share(self, tp: int) -> float:
        """Share of the cache on one tensor-parallel rank."""
        return rank_share(self.n_kv_heads, tp)

    def cached_tokens(self, context_tokens: float) -> float:
        """Tokens kept per sequence at a context: all, or the window's worth."""
        return context_tokens if self.window is None else min(context_tokens, self.window)

    def state_bytes(self, dtype: str) -> float:
        """Bytes per sequence that do not grow with the context: none."""
        return 0.0

    def widest(self, tp: int) -> float:
        """Elements per token of the widest intermediate on one rank."""
        kv = (self.k_width + self.v_width) * rank_share(self.n_kv_heads, tp)
        return self.q_width / tp * (2.0 if self.output_gate else 1.0) + kv


class LatentAttentionSpec(Spec):
    """Multi-head latent attention (MLA; DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Keys and values of all heads are made from one latent of `kv_lora_rank` per token, which is
    what the cache holds, with one rotated key of `qk_rope_head_dim` beside it. The prompt pass
    makes keys and values from the latents; decode absorbs that product into queries and outputs.
    `q_lora_rank` None: queries come from the hidden state at once. `output_gate`: a gate as wide
    as the values of all heads.
    """

    kind: Literal["mla"] = "mla"
    n_heads: Count
    q_lora_rank: Width | None = None
    kv_lora_rank: Width
    qk_nope_head_dim: Width
    qk_rope_head_dim: Width
    v_head_dim: Width
    qkv_bias: bool = False
    output_gate: bool = False
    indexer: IndexerSpec | None = None

    @property
    def head_dim(self) -> int:
        """Size of a query or key head, rotated part included."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def q_width(self) -> int:
        """Width of all queries together."""
        return self.n_heads * self.head_dim

    @property
    def out_width(self) -> int:
        """Width that the output projection takes."""
        return self.n_heads * self.v_head_dim

    @property
    def latent_width(self) -> int:
        """Elements that one token adds to the cache."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def kv_up_width(self) -> int:
        """Columns of the projection from the latent to keys and values of all heads."""
        return self.n_heads * (self.qk_nope_head_dim + self.v_head_dim)

    @property
    def down_width(self) -> int:
        """Columns of the projections from the hidden state that all ranks hold whole."""
        return self.latent_width + (self.q_lora_rank or 0)

    def parameters(self, hidden_size: int) -> int:
        """Weights, norms of the latents included."""
        return self._whole(hidden_size) + self._split(hidden_size)

    def _whole(self, hidden_size: int) -> int:
        count = hidden_size * self.down_width + self.kv_lora_rank + (self.q_lora_rank or 0)
        count += self.down_width if self.qkv_bias else 0
        return count + (self.indexer.parameters(hidden_size) if self.indexer else 0)

    def _split(self, hidden_size: int) -> int:
        count = (self.q_lora_rank or hidden_size) * self.q_width
        count += self.kv_lora_rank * self.kv_up_width + self.out_width * hidden_size
        return count + (hidden_size * self.out_width if self.output_gate else 0)

    def rank_parameters(self, hidden_size: int, tp: int) -> float:
        """Those of one tensor-parallel rank: heads are split, projections to latents are not."""
        return self._whole(hidden_size) + self._split(hidden_size) / tp

    def cache_bytes_per_token(self, kv_dtype: str) -> float:
        """Bytes that one token adds to this layer's cache: a latent, and an index key."""
        index = self.indexer.head_dim / self.indexer.every if self.indexer else 0.0
        return self.latent_width * dtype_bytes(kv_dtype) + index

    def cache_share(self, tp: int) -> float:
        """Share of the cache on one tensor-parallel rank: all of it, heads share the latents."""
        return 1.0

    def cached_tokens(self, context_tokens: float) -> float:
        """Tokens kept per sequence: all."""
        return context_tokens

    def state_bytes(self, dtype: str) -> float:
        """Bytes per sequence that do not grow with the context: none."""
        return 0.0

    def widest(self, tp: int) -> float:
        """Elements per token of the widest intermediate on one rank: keys, values and queries."""
        return (self.q_width + self.kv_up_width) / tp + self.down_width


class CompressedAttentionSpec(Spec):
    """Attention over compressed keys beside a local window (DeepSeek-V4's CSA and HCA).

    One shared key-value head of `head_dim`. Groups of `compression` earlier tokens are pooled to
    one entry; queries see the latest `window` tokens as they are and, of the compressed ones, all
    or the best `indexer.top_k`. `compression` 0: the window alone. `overlap`: each group is pooled
    together with the one before it, from projections of its own (CSA). Queries go through
    `q_lora_rank`; outputs through `o_groups` products to `o_lora_rank` columns each.
    `other_parameters`: stored per layer without a share in the time worth modelling.
    """

    kind: Literal["compressed"] = "compressed"
    n_heads: Count
    head_dim: Width
    qk_rope_head_dim: Width
    q_lora_rank: Width
    o_lora_rank: Width
    o_groups: Count
    window: Positions
    compression: Annotated[int, WHOLE, Field(ge=0, le=1_000_000)] = 0
    overlap: bool = False
    indexer: IndexerSpec | None = None
    other_parameters: Annotated[int, WHOLE, Field(ge=0)] = 0

    @property
    def q_width(self) -> int:
        """Width of all queries together."""
        return self.n_heads * self.head_dim

    @property
    def out_width(self) -> int:
        """Width that the second output product takes."""
        return self.o_groups * self.o_lora_rank

    @property
    def down_width(self) -> int:
        """Columns of the projections from the hidden state that all ranks hold whole."""
        compressor = self.head_dim * (4 if self.overlap else 2) if self.compression else 0
        return self.q_lora_rank + self.head_dim + compressor

    def parameters(self, hidden_size: int) -> int:
        """Weights and norms of the latents; sinks are one per head."""
        return self._whole(hidden_size) + self._split(hidden_size)

    def _whole(self, hidden_size: int) -> int:
        count = hidden_size * self.down_width + self.q_lora_rank + self.head_dim
        count += self.n_heads + self.other_parameters
        return count + (self.indexer.parameters(hidden_size) if self.indexer else 0)

    def _split(self, hidden_size: int) -> int:
        count = self.q_lora_rank * self.q_width
        return count + self.q_width * self.o_lora_rank + self.out_width * hidden_size

    def rank_parameters(self, hidden_size: int, tp: int) -> float:
        """Those of one tensor-parallel rank: heads and output groups are split."""
        return self._whole(hidden_size) + self._split(hidden_size) / tp

    def cache_bytes_per_token(self, kv_dtype: str) -> float:
        """Bytes per cached entry (`cached_tokens`), its share of an index key included."""
        index = self.indexer.head_dim if self.indexer else 0.0
        return self.head_dim * dtype_bytes(kv_dtype) + index

    def cache_share(self, tp: int) -> float:
        """Share of the cache on one tensor-parallel rank: all of it, heads share the entries."""
        return 1.0

    def cached_tokens(self, context_tokens: float) -> float:
        """Entries kept per sequence: the window and the compressed rest."""
        far = context_tokens / self.compression if self.compression else 0.0
        return min(context_tokens, self.window) + far

    def state_bytes(self, dtype: str) -> float:
        """Bytes per sequence that do not grow with the context: none beyond the window."""
        return 0.0

    def widest(self, tp: int) -> float:
        """Elements per token of the widest intermediate on one rank."""
        return self.q_width / tp + self.down_width
