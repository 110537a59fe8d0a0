"""State-space models, alone and among attention: Mamba, Jamba, Nemotron-H, Zamba2."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rtsim.hf import parts
from rtsim.hf.fields import Fields
from rtsim.specs.model import LayerGroup, ModelSpec
from rtsim.specs.recurrent import Mamba2Spec, MambaSpec

_UNLIMITED = 1_048_576  # nothing in a state-space model limits the context
_STEP_RANK_SHARE = 16  # time_step_rank "auto": a sixteenth of the width


def _unlimited(c: Fields) -> int:
    return c.whole(*parts.POSITIONS, default=_UNLIMITED, high=parts.MOST_POSITIONS)


def mamba(c: Fields) -> ModelSpec:
    """Mamba: a mixer and a norm per layer, no MLP."""
    hidden = parts.width(c)
    inner = c.whole("intermediate_size", "d_inner", default=hidden * c.whole("expand", default=2))
    rank = None if c.raw("time_step_rank") == "auto" else c.whole_or_none("time_step_rank")
    mixer = MambaSpec(
        inner_size=inner,
        state_size=c.whole("state_size", default=16),
        step_rank=rank or -(-hidden // _STEP_RANK_SHARE),
        conv_kernel=c.whole("conv_kernel", default=4, high=1000),
        conv_bias=c.flag("use_conv_bias", default=True),
        proj_bias=c.flag("use_bias", default=False),
    )
    layer = LayerGroup(
        count=parts.layer_count(c), attention=mixer, norm="rmsnorm", norms_per_layer=1
    )
    return parts.decoder(
        c, (layer,), tied=True, position="none", max_positions=_unlimited(c)
    )  # fmt: skip


def mamba2(c: Fields) -> ModelSpec:
    """Mamba-2, in the library's field names."""
    layer = LayerGroup(
        count=parts.layer_count(c),
        attention=_mixer(c, n_groups=8),
        norm="rmsnorm",
        norms_per_layer=1,
    )
    return parts.decoder(c, (layer,), position="none", max_positions=_unlimited(c))


def _mixer(c: Fields, n_groups: int = 1) -> Mamba2Spec:
    """A Mamba-2 mixer under the field names of several families."""
    hidden = parts.width(c)
    inner = hidden * c.whole("mamba_expand", "expand", default=2, high=1000)
    head_names: tuple[str, ...] = ("mamba_num_heads", "n_mamba_heads", "mamba_n_heads")
    dim_names: tuple[str, ...] = ("mamba_head_dim", "mamba_headdim", "mamba_d_head")
    if not c.has(*dim_names) and not c.has(*head_names):
        head_names, dim_names = ("num_heads", "nheads"), ("head_dim", "headdim")
    dim = c.whole_or_none(*dim_names)
    n_heads = c.whole_or_none(*head_names, high=parts.MOST_LAYERS)
    if n_heads is None:
        n_heads = inner // (dim or 64)
    dim = dim or inner // n_heads
    return Mamba2Spec(
        n_ssm_heads=n_heads,
        head_dim=dim,
        state_size=c.whole("ssm_state_size", "mamba_d_state", "state_size", default=128),
        n_groups=c.whole("n_groups", "mamba_ngroups", "mamba_n_groups", default=n_groups),
        conv_kernel=c.whole("conv_kernel", "mamba_d_conv", default=4, high=1000),
        conv_bias=c.flag("use_conv_bias", "mamba_conv_bias", default=True),
        proj_bias=c.flag("use_bias", "mamba_proj_bias", "add_bias_linear", default=False),
    )


def mamba_ssm(c: Fields) -> ModelSpec:
    """Mamba-1 and -2 as their authors write them (state-spaces/mamba2-2.7b)."""
    hidden, n = parts.width(c), parts.layer_count(c)
    ssm = c.part("ssm_cfg")
    among = c.items("attn_layer_idx") or []
    if among:
        c.refuse("attn_layer_idx", among, "must be empty: attention among them is not read")
    inner = hidden * ssm.whole("expand", default=2, high=1000)
    mixer: MambaSpec | Mamba2Spec
    if ssm.text_or_none("layer") == "Mamba2":
        dim = ssm.whole("headdim", default=64)
        mixer = Mamba2Spec(
            n_ssm_heads=inner // dim,
            head_dim=dim,
            state_size=ssm.whole("d_state", default=128),
            n_groups=ssm.whole("ngroups", default=1),
            conv_kernel=ssm.whole("d_conv", default=4, high=1000),
        )
    else:
        mixer = MambaSpec(
            inner_size=inner,
            state_size=ssm.whole("d_state", default=16),
            step_rank=-(-hidden // _STEP_RANK_SHARE),
            conv_kernel=ssm.whole("d_conv", default=4, high=1000),
        )
    size = c.whole_or_none("d_intermediate", low=0) or 0
    layer = LayerGroup(
        count=n,
        attention=mixer,
        mlp=parts.mlp(c, gated=True, size=size) if size else None,
        norm="rmsnorm",
        norms_per_layer=2 if size else 1,
    )
    multiple = c.whole("pad_vocab_size_multiple", default=8)
    vocab = -(-parts.vocabulary(c) // multiple) * multiple
    return parts.decoder(
        c, (layer,), tied=True, position="none", vocab_size=vocab, max_positions=_unlimited(c)
    )


def jamba(c: Fields) -> ModelSpec:
    """Jamba: Mamba, each eighth layer attention, experts in every other layer."""
    n, hidden = parts.layer_count(c), parts.width(c)
    mixer = MambaSpec(
        inner_size=hidden * c.whole("mamba_expand", default=2, high=1000),
        state_size=c.whole("mamba_d_state", default=16),
        step_rank=_jamba_rank(c, hidden),
        conv_kernel=c.whole("mamba_d_conv", default=4, high=1000),
        conv_bias=c.flag("mamba_conv_bias", default=True),
        proj_bias=c.flag("mamba_proj_bias", default=False),
        inner_norms=True,
    )
    full = parts.attention(c, rotary_dim=None)

    def every(what: str, period: int, offset: int) -> list[bool]:
        period = c.whole(f"{what}_layer_period", default=period, high=parts.MOST_LAYERS)
        offset = c.whole(f"{what}_layer_offset", default=offset, low=0, high=parts.MOST_LAYERS)
        return [i % period == offset for i in range(n)]

    routed = c.whole("num_experts", default=16, high=parts.MOST_EXPERTS) > 1
    size = parts.ffn_size(c)

    def make(kind: tuple[bool, bool]) -> LayerGroup:
        is_full, has_experts = kind
        experts = has_experts and routed
        return LayerGroup(
            attention=full if is_full else mixer,
            mlp=parts.moe(c, expert_size=size) if experts else parts.mlp(c, gated=True, size=size),
            norm="rmsnorm",
        )

    kinds = zip(every("attn", 8, 4), every("expert", 2, 1), strict=True)
    return parts.decoder(c, parts.groups(kinds, make), position="none")


def _jamba_rank(c: Fields, hidden: int) -> int:
    if c.raw("mamba_dt_rank") in (None, "auto"):
        return -(-hidden // _STEP_RANK_SHARE)
    return c.whole("mamba_dt_rank")


_NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def nemotron_h(c: Fields) -> ModelSpec:
    """Nemotron-H, Nemotron 3: one block per layer, told by letters or by a list."""
    kinds = _nemotron_kinds(c)
    dim = None if c.has("head_dim") else c.whole("attention_head_dim", default=128)

    def make(kind: str) -> LayerGroup:
        return LayerGroup(norm="rmsnorm", norms_per_layer=1, **_nemotron_block(c, kind, dim))

    return parts.decoder(c, parts.groups(kinds, make), position="none")


def _nemotron_block(c: Fields, kind: str, head_dim: int | None) -> dict[str, Any]:
    if kind == "mamba":
        return {"attention": _mixer(c, n_groups=8)}
    bias = c.flag("mlp_bias", default=False)
    if kind == "attention":
        of = parts.heads(c, dim=head_dim)
        return {"attention": parts.attention(c, of=of, rotary_dim=None)}
    if kind == "mlp":
        return {"mlp": parts.mlp(c, gated=False, bias=bias, act=parts.activation(c, "relu2"))}
    shared = c.whole_or_none("moe_shared_expert_intermediate_size", low=0)
    count = c.whole("n_shared_experts", default=1, low=0, high=1000)
    size = count * c.whole("moe_intermediate_size") if shared is None else shared * min(count, 1)
    experts = parts.moe(
        c, gated=False, activation=parts.activation(c, "relu2"), shared_size=size, bias=bias,
        latent_size=c.whole_or_none("moe_latent_size"),
    )  # fmt: skip
    return {"mlp": experts}


def _nemotron_kinds(c: Fields) -> list[str]:
    letters = c.text_or_none("hybrid_override_pattern")
    n = c.whole_or_none(*parts.LAYERS, high=parts.MOST_LAYERS)
    if letters is not None:
        letters = letters.replace("|", "")
        unknown = sorted(set(letters) - set(_NEMOTRON_LETTERS))
        allowed = f"must be made of {', '.join(_NEMOTRON_LETTERS)}"
        if unknown or not letters:
            c.refuse("hybrid_override_pattern", letters, allowed)
        if n is not None and n != len(letters):
            c.refuse(
                "hybrid_override_pattern", f"{len(letters)} layers",
                f"must give one letter per layer, {n}",
            )  # fmt: skip
        return [_NEMOTRON_LETTERS[letter] for letter in letters]
    field = "layers_block_type" if c.has("layers_block_type") else "layer_types"
    listed = c.items(field)
    if not listed:
        c.missing("hybrid_override_pattern", "layers_block_type")
    allowed_kinds = tuple(_NEMOTRON_LETTERS.values())
    return c.kinds(field, len(listed) if n is None else n, allowed_kinds) or []


def zamba2(c: Fields) -> ModelSpec:
    """Mamba-2, and a few transformer blocks whose weights many layers share.

    The shared blocks read the hidden state and the token embedding side by side: half of the
    work of their projections is counted, all of their parameters.
    """
    n, hidden = parts.layer_count(c), parts.width(c)
    kinds = c.kinds("layers_block_type", n, ("mamba", "hybrid"))
    if kinds is None:
        kinds = c.kinds("layer_types", n, ("mamba", "hybrid"))
    if kinds is None:
        c.missing("layers_block_type", "layer_types")
    n_heads = c.whole(*parts.HEADS)
    if 2 * hidden % n_heads:
        allowed = f"must, twice, be a multiple of num_attention_heads = {n_heads}"
        c.refuse("hidden_size", hidden, allowed)
    of = parts.heads(c, dim=2 * hidden // n_heads)
    size = parts.ffn_size(c, default=4 * hidden)
    rank = c.whole("adapter_rank", default=128)
    adapters = rank * (hidden + 2 * size)
    if c.flag("use_shared_attention_adapter", default=False):
        adapters += 3 * rank * 4 * hidden
    count = Counter(kinds)
    layers = [
        LayerGroup(
            count=count[kind], attention=_mixer(c), norm="rmsnorm", norms_per_layer=1,
            other_parameters=hidden * hidden + adapters if kind == "hybrid" else 0,
        )
        for kind in count
    ]  # fmt: skip
    if count["hybrid"]:
        blocks = c.whole("num_mem_blocks", default=1, high=parts.MOST_LAYERS)
        block = LayerGroup(
            count=count["hybrid"],
            stored=min(blocks, count["hybrid"]),
            attention=parts.attention(c, of=of),
            mlp=parts.mlp(c, gated=True, size=size),
            norm="rmsnorm",
            norms_per_layer=3,  # that of the doubled input is twice as wide
            other_parameters=hidden * (of.n + 2 * of.kv) * of.dim,
        )
        layers.append(block)
        c.note(
            f"The {block.count} transformer blocks share {block.stored} sets of weights; their "
            "input is twice as wide as taken here for the time."
        )
    rotary = c.flag("use_mem_rope", default=False)
    return parts.decoder(
        c, tuple(layers), tied=True, position="rotary" if rotary else "none",
        max_positions=parts.positions(c, 4096),
    )  # fmt: skip


def granitemoehybrid(c: Fields) -> ModelSpec:
    """Granite 4: Mamba-2 and attention layers, a shared MLP and experts where there are any."""
    n = parts.layer_count(c)
    kinds = parts.layer_types(c, n, ("mamba", "attention")) or ["attention"] * n
    shared = c.whole_or_none("shared_intermediate_size", low=0) or 0
    experts = c.whole_or_none(*parts.EXPERTS, low=0, high=parts.MOST_EXPERTS) or 0

    def make(kind: str) -> LayerGroup:
        return LayerGroup(
            attention=_mixer(c) if kind == "mamba" else parts.attention(c),
            mlp=parts.moe(c, expert_size=parts.ffn_size(c), shared_size=shared)
            if experts
            else parts.mlp(c, gated=True, size=shared or None),
            norm="rmsnorm",
        )

    rotary = c.text_or_none("position_embedding_type") in (None, "rope")
    layers = parts.groups(kinds, make)
    return parts.decoder(c, layers, tied=True, position="rotary" if rotary else "none")


READERS = {
    "mamba": mamba,
    "falcon_mamba": mamba,
    "mamba2": mamba2,
    "jamba": jamba,
    "nemotron_h": nemotron_h,
    "zamba2": zamba2,
    "granitemoehybrid": granitemoehybrid,
}
