"""Encoders (BERT and kin) and encoder-decoders (T5, Whisper).

Cross attention is described as causal: it keeps the keys and values that it was given.
"""

from __future__ import annotations

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.specs.attention import AttentionSpec
from rtsim.specs.model import LayerGroup, ModelSpec

_CONVOLUTION = 3  # width of Whisper's two convolutions


def bert(c: Fields) -> ModelSpec:
    """BERT, RoBERTa, DistilBERT: norms after the blocks, learned positions, biases."""
    hidden = parts.width(c)
    size = parts.ffn_size(c, default=4 * hidden)
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=parts.attention(c, bias=True, causal=False, rotary_dim=None),
        mlp=parts.mlp(c, size=size, gated=False, bias=True),
    )
    segments = c.whole_or_none("type_vocab_size", low=0) or 0
    other = segments * hidden
    named = c.items("architectures") or []
    has_head = any("MaskedLM" in str(name) or "PreTraining" in str(name) for name in named)
    if has_head:
        other += hidden * hidden + 3 * hidden  # a dense layer and a norm before the head
    elif any("Model" not in str(name) for name in named):
        c.note("The head of the task is left out.")
    return parts.decoder(
        c,
        (layer,),
        tied=True,
        kind="encoder",
        position="learned",
        embedding_norm=True,
        final_norm=False,
        has_head=has_head,
        head_bias=has_head,
        other_parameters=other,
    )


def t5(c: Fields) -> ModelSpec:
    """T5, T0, Flan-T5, Flan-UL2: relative positions in a table of the first layer of each half."""
    n = c.whole("num_layers", high=parts.MOST_LAYERS)
    n_heads = c.whole("num_heads", high=parts.MOST_LAYERS)
    of = parts.Heads(n_heads, n_heads, c.whole("d_kv", default=64))
    projection = c.text_or_none("feed_forward_proj") or "relu"
    gated = projection.startswith("gated-")
    act = parts.known_activation(c, projection.removeprefix("gated-"), "relu")
    block = parts.mlp(c, gated=gated, size=c.whole("d_ff"), act=act)

    def mixer(causal: bool) -> AttentionSpec:
        return parts.attention(c, of=of, rotary_dim=None, causal=causal)

    encoder = LayerGroup(count=n, attention=mixer(False), mlp=block, norm="rmsnorm")
    layer = LayerGroup(
        count=c.whole("num_decoder_layers", default=n, high=parts.MOST_LAYERS),
        attention=mixer(True),
        cross_attention=mixer(True),
        mlp=block,
        norm="rmsnorm",
        norms_per_layer=3,
    )
    buckets = c.whole("relative_attention_num_buckets", default=32)
    return parts.decoder(
        c,
        (layer,),
        tied=True,
        kind="encoder-decoder",
        encoder=(encoder,),
        position="none",
        vocab_size=parts.vocabulary(c, default=32_128),
        max_positions=parts.positions(c, 512),
        other_parameters=2 * buckets * n_heads,
    )


def whisper(c: Fields) -> ModelSpec:
    """Whisper: an encoder of audio frames, a decoder of text."""
    hidden = parts.width(c)
    frames = c.whole("max_source_positions", default=1500)
    texts = c.whole("max_target_positions", default=448)

    def block(side: str) -> LayerGroup:
        n_heads = c.whole(f"{side}_attention_heads", high=parts.MOST_LAYERS)
        of = parts.heads(c, n=n_heads)
        decodes = side == "decoder"

        def mixer(causal: bool) -> AttentionSpec:
            return parts.attention(c, of=of, bias=True, rotary_dim=None, causal=causal)

        return LayerGroup(
            count=c.whole(f"{side}_layers", high=parts.MOST_LAYERS),
            attention=mixer(decodes),
            cross_attention=mixer(True) if decodes else None,
            mlp=parts.mlp(c, gated=False, bias=True, size=c.whole(f"{side}_ffn_dim")),
            norms_per_layer=3 if decodes else 2,
        )

    bins = c.whole("num_mel_bins", default=80)
    convolutions = _CONVOLUTION * hidden * (bins + hidden) + 2 * hidden
    c.note(
        f"input_len counts audio frames ({frames} for 30 s); the convolutions before the encoder "
        "count as parameters alone."
    )
    return parts.decoder(
        c,
        (block("decoder"),),
        tied=True,
        kind="encoder-decoder",
        encoder=(block("encoder"),),
        position="learned",
        max_positions=frames,
        other_parameters=convolutions + texts * hidden,
    )


READERS = {
    "bert": bert,
    "roberta": bert,
    "xlm-roberta": bert,
    "camembert": bert,
    "distilbert": bert,
    "t5": t5,
    "mt5": t5,
    "umt5": t5,
    "whisper": whisper,
}
