"""A Transformer's shape: what it computes and stores, nothing about how fast.

A model is a list of (layer kind, count), because windowed and full attention alternate, first
layers can be dense, and so on; which layer comes where does not matter to time or memory, so
equal layers may be given as one group. A layer mixes tokens (`attention.py`, `recurrent.py`),
has a feed-forward block (`mlp.py`), or both. Parameter counts follow from the shape. Ignored:
buffers without weights (rotary tables, causal masks).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from rtsim.specs.attention import (
    AttentionSpec,
    CompressedAttentionSpec,
    Count,
    LatentAttentionSpec,
    Positions,
    Width,
)
from rtsim.specs.base import WHOLE, Spec
from rtsim.specs.dtype import KvDType, Quantization
from rtsim.specs.mlp import MlpSpec, MoeSpec
from rtsim.specs.provenance import Provenance
from rtsim.specs.recurrent import GatedDeltaSpec, LinearAttentionSpec, Mamba2Spec, MambaSpec

_Vocab = Annotated[int, WHOLE, Field(ge=1, le=10_000_000)]
_Other = Annotated[int, WHOLE, Field(ge=0, le=10**13)]

Norm = Literal["layernorm", "rmsnorm"]


def _kind_of(default: str) -> Discriminator:
    """Tells the members of a union apart by `kind`, which files may leave out."""

    def tag(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, dict) else value.kind
        return f"kind={kind}"

    return Discriminator(
        tag,
        custom_error_type="unknown_kind",
        custom_error_message="no such kind",
    )


AnyMixer = Annotated[
    Annotated[AttentionSpec, Tag("kind=attention")]
    | Annotated[LatentAttentionSpec, Tag("kind=mla")]
    | Annotated[CompressedAttentionSpec, Tag("kind=compressed")]
    | Annotated[MambaSpec, Tag("kind=mamba")]
    | Annotated[Mamba2Spec, Tag("kind=mamba2")]
    | Annotated[GatedDeltaSpec, Tag("kind=gated_delta")]
    | Annotated[LinearAttentionSpec, Tag("kind=linear_attention")],
    _kind_of("attention"),
]
AnyMlp = Annotated[
    Annotated[MlpSpec, Tag("kind=mlp")] | Annotated[MoeSpec, Tag("kind=moe")], _kind_of("mlp")
]


class LayerGroup(Spec):
    """`count` equal layers.

    `attention` mixes tokens (any kind), `mlp` is the feed-forward block; one of them may be
    missing. `cross_attention` attends to the encoder's output. `norms_per_layer`: 2 for the usual
    attention and MLP norms, 1 where a parallel block shares one or there is one block, 4 where
    outputs are normed too. `parallel`: attention and MLP read the same input and are summed
    (GPT-J, GPT-NeoX), so tensor parallelism needs one all-reduce instead of two.
    `other_parameters`: stored per layer without a share in the time worth modelling (tables of
    relative positions, residual mixers). `stored`: how many of the layers have weights of their
    own, the others use those again (Zamba2's shared blocks); None: all.
    """

    count: Count = 1
    stored: Count | None = None
    attention: AnyMixer | None = None
    cross_attention: AttentionSpec | None = None
    mlp: AnyMlp | None = None
    norm: Norm = "layernorm"
    norm_bias: bool | None = None
    norms_per_layer: Annotated[int, WHOLE, Field(ge=0, le=8)] = 2
    parallel: bool = False
    other_parameters: _Other = 0

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.attention is None and self.mlp is None:
            raise ValueError("attention, mlp or both must be given")
        if self.stored is not None and self.stored > self.count:
            raise ValueError(f"stored = {self.stored} must be at most count = {self.count}")
        return self

    @property
    def stored_count(self) -> int:
        """Layers with weights of their own."""
        return self.count if self.stored is None else self.stored

    @property
    def has_norm_bias(self) -> bool:
        """LayerNorm has a bias and RMSNorm none, unless stated otherwise."""
        return self.norm == "layernorm" if self.norm_bias is None else self.norm_bias

    def norm_parameters(self, hidden_size: int) -> int:
        """Gain, and bias where there is one, of a single norm."""
        return hidden_size * (2 if self.has_norm_bias else 1)

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The parts of a layer that there are: token mixer, cross attention, MLP."""
        parts = (self.attention, self.cross_attention, self.mlp)
        return tuple(part for part in parts if part is not None)

    @property
    def mixers(self) -> tuple[Any, ...]:
        """The parts that mix tokens and keep a cache or a state."""
        return tuple(p for p in (self.attention, self.cross_attention) if p is not None)

    def small_parameters(self, hidden_size: int) -> int:
        """Norms and whatever `other_parameters` says, of one layer."""
        return self.norms_per_layer * self.norm_parameters(hidden_size) + self.other_parameters

    def parameters(self, hidden_size: int) -> int:
        """One layer of this group."""
        blocks = sum(int(block.parameters(hidden_size)) for block in self.blocks)
        return blocks + self.small_parameters(hidden_size)

    def active_parameters(self, hidden_size: int) -> int:
        """One layer, the part that one token passes through."""
        if self.mlp is None:
            return self.parameters(hidden_size)
        inactive = self.mlp.parameters(hidden_size) - self.mlp.active_parameters(hidden_size)
        return self.parameters(hidden_size) - inactive


class QuantizationSpec(Spec):
    """Number formats of stored weights by part; "none" is the model's dtype.

    Embeddings, norms, routers and the output head are never quantised here. `experts` are the
    routed ones; shared experts count as `mlp`.
    """

    attention: Quantization = "none"
    mlp: Quantization = "none"
    experts: Quantization = "none"


class ModelSpec(Spec):
    """A Transformer.

    `kind`: "decoder" generates; "encoder" makes one pass over its input; "encoder-decoder" reads
    the prompt with `encoder` and generates with `layers`. `vocab_size` as in the weights, padding
    included. `embedding_size`: width of the token table where it differs from hidden_size (a
    projection joins them). `tied_embeddings`: the output head is the token table. `has_head`:
    False for encoders without one. `max_positions`: the longest context it was made for; a hard
    limit only with learned positions. `quantization`: how the weights are stored as published.
    `other_parameters`: stored beside the layers, without a share in the time. `prediction_layers`:
    layers of multi-token prediction that come with it and may draft tokens; in no count, no time.
    """

    name: str = Field(min_length=1, max_length=200)
    aliases: tuple[str, ...] = ()
    kind: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    hidden_size: Width
    vocab_size: _Vocab
    embedding_size: Width | None = None
    max_positions: Positions
    position: Literal["learned", "rotary", "alibi", "none"] = "rotary"
    tied_embeddings: bool = False
    embedding_norm: bool = False
    final_norm: bool = True
    has_head: bool = True
    head_bias: bool = False
    dtype: Literal["fp16", "bf16", "fp32"] = "bf16"
    quantization: QuantizationSpec = QuantizationSpec()
    kv_cache_dtype: KvDType | None = None
    layers: tuple[LayerGroup, ...]
    encoder: tuple[LayerGroup, ...] = ()
    other_parameters: _Other = 0
    prediction_layers: int = Field(0, ge=0, le=10_000)
    provenance: Provenance | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        # Not Field(min_length=1): that adds a second, misleading error when an entry is wrong.
        if not self.layers:
            raise ValueError("layers must hold at least one group")
        if bool(self.encoder) != (self.kind == "encoder-decoder"):
            raise ValueError('encoder must be given for kind = "encoder-decoder" and for no other')
        return self

    @property
    def n_layers(self) -> int:
        """Layers in all; of an encoder-decoder those of both."""
        return sum(group.count for group in self.all_layers)

    @property
    def all_layers(self) -> tuple[LayerGroup, ...]:
        """Groups of the encoder, if any, then of the decoder."""
        return self.encoder + self.layers

    @property
    def mixers(self) -> tuple[Any, ...]:
        """Every group's token mixers."""
        return tuple(mixer for group in self.all_layers for mixer in group.mixers)

    @property
    def n_experts(self) -> int:
        """Experts of its mixture layers; 0 without any."""
        counts = (g.mlp.n_experts for g in self.all_layers if isinstance(g.mlp, MoeSpec))
        return max(counts, default=0)

    @property
    def typical_heads(self) -> int:
        """Heads of the first layer that mixes tokens; 1 without any."""
        return next((int(mixer.n_heads) for mixer in self.mixers), 1)

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
            count += self.all_layers[0].norm_parameters(self.hidden_size)
        return count

    @cached_property
    def head_parameters(self) -> int:
        """Final norms and output head, without a token table that is counted as embedding."""
        count = self.vocab_size if self.head_bias else 0
        if self.final_norm:
            ends = (self.layers[-1], *self.encoder[-1:])
            count += sum(group.norm_parameters(self.hidden_size) for group in ends)
        if self.token_width != self.hidden_size:
            count += self.token_width * self.hidden_size
        if self.has_head and not self.tied_embeddings:
            count += self.vocab_size * self.token_width
        return count

    @cached_property
    def parameters(self) -> int:
        """All stored parameters; a tied head counts once."""
        layers = sum(g.stored_count * g.parameters(self.hidden_size) for g in self.all_layers)
        return self._outside + layers

    @cached_property
    def active_parameters(self) -> int:
        """Parameters without the experts that a token does not visit."""
        hidden = self.hidden_size
        layers = sum(g.stored_count * g.active_parameters(hidden) for g in self.all_layers)
        return self._outside + layers

    @property
    def _outside(self) -> int:
        return self.embedding_parameters + self.head_parameters + self.other_parameters

    @property
    def keeps(self) -> str:
        """What is kept of a sequence: "keys and values", "states", both, or "nothing"."""
        kept = {
            "keys and values": self.kv_bytes_per_token() > 0.0,
            "states": self.state_bytes() > 0.0,
        }
        return ", ".join(what for what, there in kept.items() if there) or "nothing"

    def state_bytes(self) -> float:
        """Bytes of the states of one sequence, whatever its length, all layers."""
        return sum(
            g.count * float(mixer.state_bytes(self.dtype)) for g in self.all_layers
            for mixer in g.mixers if _caches(mixer)
        )  # fmt: skip

    def kv_bytes_per_token(self, kv_dtype: str | None = None) -> float:
        """Bytes that one token adds to the cache, all layers, before any window is full."""
        dtype = self.kv_format(kv_dtype)
        return sum(
            g.count * float(mixer.cache_bytes_per_token(dtype)) for g in self.all_layers
            for mixer in g.mixers if _caches(mixer)
        )  # fmt: skip

    def kv_bytes(self, context_tokens: int, kv_dtype: str | None = None) -> float:
        """Cache and state bytes of one sequence at a context, windows taken into account."""
        dtype = self.kv_format(kv_dtype)
        return sum(
            g.count
            * float(
                mixer.cache_bytes_per_token(dtype) * mixer.cached_tokens(context_tokens)
                + mixer.state_bytes(self.dtype)
            )
            for g in self.all_layers
            for mixer in g.mixers
            if _caches(mixer)
        )

    def kv_format(self, kv_dtype: str | None = None) -> str:
        """The cache's number format: as asked, as the model states, or its dtype."""
        return kv_dtype or self.kv_cache_dtype or self.dtype


def _caches(mixer: Any) -> bool:
    """Encoders see their whole input at once and keep nothing."""
    return bool(getattr(mixer, "causal", True))
