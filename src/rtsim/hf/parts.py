"""The parts that configurations of all families have in common, as parts of a ModelSpec.

What differs between families (biases, norms, which layer is what) the family's reader says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from rtsim.hf.fields import Fields
from rtsim.hf.quantization import Parts, stored_formats
from rtsim.specs.attention import AttentionSpec
from rtsim.specs.mlp import Activation, MlpSpec, MoeSpec
from rtsim.specs.model import LayerGroup, ModelSpec

_Key = TypeVar("_Key", bound=Hashable)

# The most that rtsim.specs takes: above any published model, catches slipped digits.
MOST_LAYERS = 10_000
MOST_POSITIONS = 100_000_000
MOST_TOKENS = 10_000_000
MOST_EXPERTS = 100_000
_USUAL_POSITIONS = 2048
_LONGEST_SHOWN = 60  # characters of a value in a note

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model", "n_embed", "dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
FFN_SIZES = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim")
POSITIONS = (
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len",
    "seq_length", "model_max_length", "n_ctx",
)  # fmt: skip
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_k")
PREDICTION_LAYERS = (
    "num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_transformer_layers",
    "num_mtp_modules",
)  # fmt: skip

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu",
    "gelu_python": "gelu", "quick_gelu": "gelu", "gelu_python_tanh": "gelu", "geglu": "gelu",
    "relu": "relu", "silu": "silu", "swish": "silu", "swiglu": "silu", "swigluoai": "silu",
    "relu2": "relu2", "relu_squared": "relu2",
}  # fmt: skip


class Heads(NamedTuple):
    """Query heads, key-value heads and the size of a head."""

    n: int
    kv: int
    dim: int


def layer_count(c: Fields) -> int:
    """How many layers there are."""
    return c.whole(*LAYERS, high=MOST_LAYERS)


def width(c: Fields) -> int:
    """Size of the hidden state."""
    return c.whole(*WIDTHS)


def ffn_size(c: Fields, *names: str, default: int | None = None) -> int:
    """Width of a feed-forward block."""
    return c.whole(*(names or FFN_SIZES), default=default)


def positions(c: Fields, default: int | None = None) -> int:
    """The longest context it was made for; where nothing says so, a default, and a note."""
    found = c.whole_or_none(*POSITIONS, high=MOST_POSITIONS)
    if found is None:
        found = _USUAL_POSITIONS if default is None else default
        c.note(f"max_position_embeddings is not given: taken as {found}.")
    return found


def prediction_layers(c: Fields) -> int:
    """Layers of multi-token prediction, which are left out."""
    return c.whole_or_none(*PREDICTION_LAYERS, low=0, high=MOST_LAYERS) or 0


def heads(c: Fields, *, dim: int | None = None, n: int | None = None, kv: int = 0) -> Heads:
    """The heads, and that they fit each other. `dim`: of the family where no field says it."""
    if n is None:
        n = c.whole(*HEADS)
    kv = kv or c.whole(*KV_HEADS, default=n)
    if n % kv:
        name = next((k for k in KV_HEADS if c.has(k)), KV_HEADS[0])
        c.refuse(name, kv, f"must divide num_attention_heads = {n}")
    size = c.whole_or_none("head_dim", "kv_channels", "attention_head_dim", "d_kv")
    if size is None:
        size = dim
    if size is None:
        hidden = width(c)
        if hidden % n:
            name = next((k for k in WIDTHS if c.has(k)), WIDTHS[0])
            c.refuse(
                name, hidden, f"must be a multiple of num_attention_heads = {n} without a head_dim"
            )
        size = hidden // n
    return Heads(n, kv, size)


def rotary_dim(c: Fields, head_dim: int, default: float = 1.0) -> int | None:
    """The rotated part of a head; None for all of it."""
    share = c.raw("rotary_dim")
    if share is not None:
        size = c.whole("rotary_dim", low=0, high=head_dim)
    else:
        at_top = c.has("partial_rotary_factor", "rotary_pct", "rope_pct")
        place = c if at_top or not isinstance(c.raw("rope_parameters"), dict) else None
        place = place or c.part("rope_parameters")
        names = ("partial_rotary_factor", "rotary_pct", "rope_pct")
        size = int(head_dim * place.number(*names, default=default, low=0.0, high=1.0))
    return size if 0 < size < head_dim else None


def attention(c: Fields, *, of: Heads | None = None, bias: bool = False, **more: Any) -> (
    AttentionSpec
):  # fmt: skip
    """Attention with the heads of the configuration. `bias`: of all its projections."""
    found = of or heads(c)
    known: dict[str, Any] = {"qkv_bias": bias, "out_bias": bias}
    known["rotary_dim"] = rotary_dim(c, found.dim)
    known |= more
    return AttentionSpec(n_heads=found.n, n_kv_heads=found.kv, head_dim=found.dim, **known)


def activation(c: Fields, default: Activation) -> Activation:
    """The activation, as far as rtsim tells them apart."""
    names = ("hidden_act", "activation_function", "hidden_activation", "mlp_hidden_act")
    return known_activation(c, c.text_or_none(*names, "activation"), default)


def known_activation(c: Fields, name: str | None, default: Activation) -> Activation:
    """An activation by its name; one that rtsim does not know is taken as the default."""
    if name is None:
        return default
    if name not in _ACTIVATIONS:
        c.note(f"The activation {name[:_LONGEST_SHOWN]!r} is taken to cost what {default} costs.")
    return _ACTIVATIONS.get(name, default)


def mlp(
    c: Fields,
    *,
    size: int | None = None,
    gated: bool,
    bias: bool = False,
    act: Activation | None = None,
) -> MlpSpec:
    """A dense feed-forward block."""
    act = act or activation(c, "silu" if gated else "gelu")
    return MlpSpec(ffn_size=size or ffn_size(c), gated=gated, activation=act, bias=bias)


def moe(c: Fields, *, expert_size: int | None = None, **more: Any) -> MoeSpec:
    """A mixture of gated experts."""
    n_experts = c.whole(*EXPERTS, high=MOST_EXPERTS)
    top_k = c.whole(*TOP_K, "experts_per_token", high=MOST_LAYERS)
    if top_k > n_experts:
        name = next(k for k in (*TOP_K, "experts_per_token") if c.has(k))
        c.refuse(name, top_k, f"must be at most the number of experts, {n_experts}")
    if expert_size is None:
        expert_size = c.whole("moe_intermediate_size", *FFN_SIZES)
    known: dict[str, Any] = {"gated": True, "activation": activation(c, "silu"), **more}
    return MoeSpec(n_experts=n_experts, top_k=top_k, expert_size=expert_size, **known)


def shared_experts(c: Fields, *sizes: str, expert: str = "moe_intermediate_size") -> int:
    """Width of all shared experts together: given as such, or as a number of experts."""
    size = c.whole_or_none(*sizes, low=0) if sizes else None
    if size is not None:
        return size
    count = c.whole_or_none("n_shared_experts", "num_shared_experts", low=0, high=1000) or 0
    return count * c.whole(expert) if count else 0


def routed_layers(c: Fields, n: int) -> list[bool]:
    """Which of `n` layers have experts: the ways in which configurations say so."""
    kinds = c.kinds("mlp_layer_types", n, ("dense", "sparse", "moe", "hash_moe"), _spare(c))
    if kinds is not None:
        return [kind != "dense" for kind in kinds]
    if isinstance(c.raw("moe_layer_freq"), list):
        return [bool(x) for x in c.wholes("moe_layer_freq", n, high=1, spare=_spare(c)) or ()]
    every = c.whole("moe_layer_freq", "decoder_sparse_step", default=1, high=MOST_LAYERS)
    first = c.whole("first_k_dense_replace", default=0, low=0, high=MOST_LAYERS)
    dense = set(c.wholes("mlp_only_layers", None, high=MOST_LAYERS) or ())
    # DeepSeek counts from the first layer, Qwen so that the last of each group has experts.
    offset = 1 if c.has("decoder_sparse_step") else 0
    return [i >= first and (i + offset) % every == 0 and i not in dense for i in range(n)]


def window(c: Fields, name: str = "sliding_window") -> int | None:
    """The window of the windowed layers; None where it is not smaller than the context."""
    found = c.whole_or_none(name, high=MOST_POSITIONS)
    limit = c.whole_or_none(*POSITIONS, high=MOST_POSITIONS)
    return None if found is None or (limit is not None and found >= limit) else found


def windows(c: Fields, n: int, pattern: Callable[[int], bool]) -> list[int | None]:
    """The window of each layer: from layer_types, or where `pattern` says so for a layer."""
    size = window(c)
    kinds = layer_types(c, n, ("full_attention", "sliding_attention", "chunked_attention"))
    if kinds is not None:
        return [size if kind != "full_attention" else None for kind in kinds]
    return [size if pattern(i) else None for i in range(n)]


def layer_types(c: Fields, n: int, allowed: Sequence[str]) -> list[str] | None:
    """The list layer_types, if there is one."""
    return c.kinds("layer_types", n, allowed, _spare(c))


def _spare(c: Fields) -> int:
    return min(prediction_layers(c), MOST_LAYERS)


def groups(kinds: Iterable[_Key], make: Callable[[_Key], LayerGroup]) -> tuple[LayerGroup, ...]:
    """The layers of each kind as a group, equal ones as one, in order of first appearance."""
    counted: dict[LayerGroup, int] = {}
    for kind, count in Counter(kinds).items():
        group = make(kind)
        counted[group] = counted.get(group, 0) + count
    return tuple(group.with_(count=count) for group, count in counted.items())


def decoder(
    c: Fields,
    layers: tuple[LayerGroup, ...],
    *,
    tied: bool = False,
    max_positions: int | None = None,
    **more: Any,
) -> ModelSpec:
    """The whole model. `tied`: whether the head is the token table where no field says it."""
    known: dict[str, Any] = {
        "hidden_size": more.pop("hidden_size", None) or width(c),
        "vocab_size": more.pop("vocab_size", None) or vocabulary(c),
        "max_positions": max_positions or positions(c),
        "tied_embeddings": c.flag("tie_word_embeddings", "tie_embeddings", default=tied),
        "dtype": dtype(c),
        "layers": layers,
    }
    skipped = prediction_layers(c)
    if skipped:
        c.note(f"Layers of multi-token prediction ({skipped}) are left out.")
        known["prediction_layers"] = skipped
    with_experts = [g.count for g in layers if isinstance(g.mlp, MoeSpec)]
    parts = Parts(
        attention=sum(g.count for g in layers if g.attention is not None),
        mlp=sum(g.count for g in layers if g.mlp is not None and _has_dense(g.mlp)),
        experts=sum(with_experts),
    )
    formats, kv_dtype = stored_formats(c, parts)
    known |= {"quantization": formats, "kv_cache_dtype": kv_dtype}
    notes = (*more.pop("notes", ()), *c.notes)
    return ModelSpec(name=c.name, notes=notes, **(known | more))


def _has_dense(block: MlpSpec | MoeSpec) -> bool:
    return isinstance(block, MlpSpec) or block.always_size > 0


def vocabulary(c: Fields, default: int | None = None) -> int:
    """Rows of the token table."""
    return c.whole("padded_vocab_size", "vocab_size", default=default, high=MOST_TOKENS)


_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "bf16", "half": "fp16"}


def dtype(c: Fields) -> str:
    """The number format that the model runs in where it is not quantised.

    Training checkpoints in float32 are served in 16 bits (vLLM's and SGLang's dtype "auto").
    """
    name = c.text_or_none("dtype", "torch_dtype")
    short = _DTYPES.get((name or "").removeprefix("torch."))
    if short is None:
        given = "is not given" if name is None else f"is {name[:_LONGEST_SHOWN]!r}"
        c.note(f"torch_dtype {given}: taken as bf16.")
    elif "float32" in (name or ""):
        c.note("Weights are stored in float32: run in bf16, as serving stacks do, unless asked.")
    return short or "bf16"
