"""GPT-2 and its kin: LayerNorm, plain MLPs, biases; learned positions, ALiBi or rotation."""

from __future__ import annotations

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.specs.model import LayerGroup, ModelSpec

_GPT_NEO_WINDOW = 256  # class default of window_size
_OPT_OFFSET = 2  # learned positions start at 2


def gpt2(c: Fields) -> ModelSpec:
    """GPT-2."""
    return _gpt2(c, one_kv=False)


def gpt_bigcode(c: Fields) -> ModelSpec:
    """SantaCoder, StarCoder: GPT-2 with one key-value head, the default of the class."""
    return _gpt2(c, one_kv=c.flag("multi_query", default=True))


def _gpt2(c: Fields, one_kv: bool) -> ModelSpec:
    n, hidden = parts.layer_count(c), parts.width(c)
    of = parts.heads(c, kv=1 if one_kv else 0)
    layer = LayerGroup(
        count=n,
        attention=parts.attention(c, of=of, bias=True),
        mlp=parts.mlp(c, size=parts.ffn_size(c, default=4 * hidden), gated=False, bias=True),
    )
    return parts.decoder(c, (layer,), tied=True, position="learned")


def gpt_neo(c: Fields) -> ModelSpec:
    """Every other layer sees a window; no bias on queries, keys and values."""
    n, hidden = parts.layer_count(c), parts.width(c)
    size = c.whole("window_size", default=_GPT_NEO_WINDOW)

    def make(kind: str) -> LayerGroup:
        seen = size if kind == "local" else None
        return LayerGroup(
            attention=parts.attention(c, out_bias=True, window=seen),
            mlp=parts.mlp(c, size=parts.ffn_size(c, default=4 * hidden), gated=False, bias=True),
        )

    layers = parts.groups(_neo_kinds(c, n), make)
    return parts.decoder(c, layers, tied=True, position="learned")


def _neo_kinds(c: Fields, n: int) -> list[str]:
    given = c.kinds("attention_layers", n, ("global", "local"))
    if given is not None:
        return given
    kinds: list[str] = []
    for entry in c.items("attention_types") or [[["global"], n]]:
        match entry:
            case [[*names], int(times)] if 0 < times <= n:
                kinds += [str(name) for name in names] * times
            case _:
                c.refuse("attention_types", entry, 'must look like [[["global", "local"], 12]]')
    if len(kinds) != n or not set(kinds) <= {"global", "local"}:
        allowed = f"must give global or local for each of {n} layers"
        c.refuse("attention_types", f"{len(kinds)} layers", allowed)
    return kinds


def gptj(c: Fields) -> ModelSpec:
    """Attention and MLP in parallel after one norm; the head has a bias."""
    hidden = parts.width(c)
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c),
        mlp=parts.mlp(c, size=parts.ffn_size(c, default=4 * hidden), gated=False, bias=True),
        norms_per_layer=1,
        parallel=True,
    )
    return parts.decoder(c, (layer,), head_bias=True)


def gpt_neox(c: Fields) -> ModelSpec:
    """Two norms a layer; in parallel unless use_parallel_residual says otherwise."""
    bias = c.flag("attention_bias", default=True)
    dim = parts.heads(c).dim
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, bias=bias, rotary_dim=parts.rotary_dim(c, dim, 0.25)),
        mlp=parts.mlp(c, gated=False, bias=True),
        parallel=c.flag("use_parallel_residual", default=True),
    )
    return parts.decoder(c, (layer,))


def opt(c: Fields) -> ModelSpec:
    """Two positions more than are used; the token table can be narrower than the layers."""
    hidden = parts.width(c)
    bias = c.flag("enable_bias", default=True)
    before = c.flag("do_layer_norm_before", default=True)
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, bias=bias),
        mlp=parts.mlp(c, gated=False, bias=bias),
        norms_per_layer=2 if c.flag("layer_norm_elementwise_affine", default=True) else 0,
    )
    table = c.whole("word_embed_proj_dim", default=hidden)
    return parts.decoder(
        c,
        (layer,),
        tied=True,
        position="learned",
        embedding_size=table if table != hidden else None,
        final_norm=before and not c.flag("_remove_final_layer_norm", default=False),
        other_parameters=_OPT_OFFSET * hidden,
    )


def bloom(c: Fields) -> ModelSpec:
    """ALiBi, and a norm after the token table."""
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, bias=True, rotary_dim=None),
        mlp=parts.mlp(c, size=4 * parts.width(c), gated=False, bias=True),
    )
    return parts.decoder(c, (layer,), tied=True, position="alibi", embedding_norm=True)


def falcon(c: Fields) -> ModelSpec:
    """Multi-query (7B) or grouped (40B, 180B), in parallel with the MLP."""
    hidden, n_heads = parts.width(c), c.whole(*parts.HEADS)
    newer = c.flag("new_decoder_architecture", default=False)
    parallel = c.flag("parallel_attn", default=True) or newer
    if newer:
        kv = c.whole(*parts.KV_HEADS, default=n_heads)
    else:
        kv = 1 if c.flag("multi_query", default=True) else n_heads
    norms = 2
    if parallel:
        norms = c.whole("num_ln_in_parallel_attn", default=2 if newer else 1, high=2)
    bias = c.flag("bias", default=False)
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, of=parts.heads(c, kv=kv), bias=bias),
        mlp=parts.mlp(c, size=parts.ffn_size(c, default=4 * hidden), gated=False, bias=bias),
        norms_per_layer=norms,
        parallel=parallel,
    )
    alibi = c.flag("alibi", default=False)
    return parts.decoder(c, (layer,), tied=True, position="alibi" if alibi else "rotary")


def mpt(c: Fields) -> ModelSpec:
    """ALiBi, nothing has a bias."""
    hidden = parts.width(c)
    inner = c.part("attn_config")
    n_heads = c.whole(*parts.HEADS)
    of = parts.heads(c, kv=inner.whole("kv_n_heads", default=n_heads))
    bias = not c.flag("no_bias", default=True)
    ratio = c.number("expansion_ratio", default=4, low=0.01, high=1000)
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(
            c, of=of, bias=bias, rotary_dim=None, qk_norm=inner.flag("qk_ln", default=False),
            qk_norm_scope="projection",
        ),
        mlp=parts.mlp(c, size=round(ratio * hidden), gated=False, bias=bias),
        norm_bias=bias,
    )  # fmt: skip
    alibi = inner.flag("alibi", default=True)
    return parts.decoder(c, (layer,), tied=True, position="alibi" if alibi else "learned")


def phi(c: Fields) -> ModelSpec:
    """Phi-1 and Phi-2: biases, one norm, attention and MLP in parallel."""
    dim = parts.heads(c).dim
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(
            c, bias=True, rotary_dim=parts.rotary_dim(c, dim, 0.5),
            qk_norm=c.flag("qk_layernorm", default=False),
        ),
        mlp=parts.mlp(c, gated=False, bias=True),
        norms_per_layer=1,
        parallel=True,
    )  # fmt: skip
    return parts.decoder(c, (layer,), head_bias=True)


def starcoder2(c: Fields) -> ModelSpec:
    """Grouped heads in a window, biases where use_bias says so."""
    bias = c.flag("use_bias", default=True)
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, bias=bias, window=parts.window(c)),
        mlp=parts.mlp(c, gated=False, bias=bias),
    )
    return parts.decoder(c, (layer,), tied=True)


def nemotron(c: Fields) -> ModelSpec:
    """Nemotron-4, Minitron: LayerNorm, squared ReLU without a gate."""
    bias = c.flag("attention_bias", default=False)
    dim = parts.heads(c).dim
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, bias=bias, rotary_dim=parts.rotary_dim(c, dim, 0.5)),
        mlp=parts.mlp(
            c, gated=False, bias=c.flag("mlp_bias", default=False),
            act=parts.activation(c, "relu2"),
        ),
    )  # fmt: skip
    return parts.decoder(c, (layer,))


def yalm(c: Fields) -> ModelSpec:
    """YaLM: biases as in Megatron-LM, a gated MLP, a token table narrower than the layers."""
    hidden = parts.width(c)
    table = c.whole("embedding_size", default=hidden)
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, bias=True),
        mlp=parts.mlp(c, gated=True, bias=True),
    )
    if not c.has("vocab_size", "padded_vocab_size"):
        c.note("vocab_size is not given: taken as 128000, that of YaLM's tokenizer.")
    return parts.decoder(
        c,
        (layer,),
        tied=True,
        vocab_size=parts.vocabulary(c, default=128_000),
        embedding_size=table if table != hidden else None,
    )


READERS = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
    "gpt_bigcode": gpt_bigcode,
    "opt": opt,
    "bloom": bloom,
    "falcon": falcon,
    "RefinedWeb": falcon,
    "RefinedWebModel": falcon,
    "mpt": mpt,
    "phi": phi,
    "starcoder2": starcoder2,
    "nemotron": nemotron,
    "yalm": yalm,
}
