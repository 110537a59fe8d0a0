"""How published weights are stored: `quantization_config` as number formats of the parts.

Read: fp8 (per tensor or in blocks), AWQ, GPTQ, bitsandbytes, compressed-tensors, modelopt, MXFP4,
Quark, FBGEMM. Lists of modules that stay as they were are read by the words in their names
(attention, experts, other feed-forward blocks); embeddings, norms, routers and the output head
count as never quantised. A part is taken as quantised where more than half of its layers are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rtsim.hf.fields import Fields
from rtsim.specs.model import QuantizationSpec

_FORMAT_IN_NAME = re.compile(r"(?i)\b(nvfp4|mxfp4|fp8|w8a8|w4a16|int8|int4|awq|gptq)\b")

_LONGEST_SHOWN = 60  # characters of a value in a note

Format = str  # one of rtsim.specs.dtype.QUANTIZATIONS


class Parts(NamedTuple):
    """How many layers have attention (or another mixer), a dense feed-forward block, experts."""

    attention: int
    mlp: int
    experts: int


def stored_formats(c: Fields, layers: Parts) -> tuple[QuantizationSpec, str | None]:
    """Formats by part, and that of the KV cache where the configuration states one."""
    q = c.part("quantization_config")
    if not q.data:
        named = _FORMAT_IN_NAME.search(c.name)
        if named is not None:
            c.note(
                f"The name says {named.group()}, the configuration says nothing of how weights "
                "are stored: taken as not quantised (see --quantization)."
            )
        return QuantizationSpec(), None
    method = _method(q)
    formats = _READERS[method](q, c, layers)
    cache = _cache_format(q)
    kept = {p: form for p, form in formats.items() if form != "none" and getattr(layers, p)}
    return QuantizationSpec(**kept), cache


def _method(q: Fields) -> str:
    method = (q.text_or_none("quant_method") or "").lower().replace("_", "-")
    if not method:
        # modelopt's own files say it by the algorithm alone, some by the flags of bitsandbytes.
        method = "bitsandbytes" if q.has("load_in_4bit", "load_in_8bit") else "modelopt"
    if method == "fp8" and q.has("quantized_layers", "moe_quant_algo"):
        return "fp8-mixed"
    method = {"modelopt-fp4": "modelopt", "nvfp4": "modelopt"}.get(method, method)
    if method not in _READERS:
        q.refuse("quant_method", method, f"must be one of {', '.join(sorted(_READERS))}")
    return method


# Which modules ---------------------------------------------------------------------------------

_ELSEWHERE = re.compile(r"visi|visual|audio|mm_proj|multi_modal|embed|lm_head|mtp|^head$")
_SMALL = re.compile(r"norm|conv1d|router|in_proj_(a|b|ba)$|(^|[._])gate$|shared_expert_gate|bias$")
_LAYER = re.compile(r"(?:layers|blocks|h)\.(\d+)\b")
_ONE_OF_MANY = re.compile(r"(proj|qkv|dense|fc1|fc2|[._]w[123o])$")


def part_of(module: str) -> str | None:
    """The part that a module's name, or a pattern for it, belongs to.

    >>> part_of("model.layers.0.self_attn*"), part_of("re:.*shared_experts.*")
    ('attention', 'mlp')
    >>> part_of("model.layers.3.mlp.experts.7.up_proj"), part_of("model.layers.3.mlp.gate")
    ('experts', None)
    """
    name = module.lower().removeprefix("re:").replace("\\", "").rstrip("$*.")
    if _ELSEWHERE.search(name) or _SMALL.search(name):
        return None
    if "shared_expert" in name:
        return "mlp"
    if "experts" in name:
        return "experts"
    if re.search(r"attn|attention|mamba|qkv|[qkvo]_proj|in_proj|out_proj", name):
        return "attention"
    if re.search(r"mlp|ffn|feed_forward|moe|(gate|up|gate_up|down)_proj|fc[12]", name):
        return "mlp"
    return None


def _left_out(q: Fields, layers: Parts) -> set[str]:
    """Parts that a list of ignored modules leaves as they were."""
    listed: list[Any] = []
    for field in ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules",
                  "exclude", "llm_int8_skip_modules"):  # fmt: skip
        listed.extend(q.items(field) or ())
    seen = dict.fromkeys(Parts._fields, 0.0)
    for module in listed:
        part = part_of(module) if isinstance(module, str) else None
        if part is None:
            continue
        total = getattr(layers, part)
        text = str(module).rstrip("$*")
        share = 0.25 if _ONE_OF_MANY.search(text) and "re:" not in text else 1.0
        seen[part] += share * (1 if _LAYER.search(text.replace("\\", "")) else total)
    out = set()
    for part, count in seen.items():
        total = getattr(layers, part)
        if total and count > total / 2:
            out.add(part)
        elif total and count >= 1:
            q.note(
                f"Some {part} layers are not quantised (about {count:.0f} of {total}); "
                "taken as quantised like the others."
            )
    return out


def _everywhere(form: Format, q: Fields, layers: Parts) -> dict[str, Format]:
    out = _left_out(q, layers)
    return {part: "none" if part in out else form for part in Parts._fields}


# Methods ---------------------------------------------------------------------------------------


def _fp8_format(q: Fields) -> Format:
    if q.has("weight_block_size"):
        return "fp8_block"
    scheme = q.text_or_none("activation_scheme") or "dynamic"
    if scheme not in ("static", "dynamic"):
        q.refuse("activation_scheme", scheme, "must be one of static, dynamic")
    return "fp8_static" if scheme == "static" else "fp8"


def _fp8(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    formats = _everywhere(_fp8_format(q), q, layers)
    # DeepSeek-V4: experts in 4-bit floats with a scale per 32, multiplied by fp8 activations.
    if c.text_or_none("expert_dtype") == "fp4":
        formats["experts"] = "w4a8_mxfp4_mxfp8"
    return formats


def _fp8_mixed(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    """Weights in fp8 of which some parts were quantised again; `ignore` is about the latter."""
    formats = dict.fromkeys(Parts._fields, _fp8_format(q))
    if q.has("moe_quant_algo"):
        formats["experts"] = _modelopt_format(q, "moe_quant_algo")
    return formats | _by_layer(q)


def _weight_only(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    bits = q.whole("bits", "w_bit", "nbits", "weight_bits", default=4, high=16)
    if bits not in (4, 8):
        q.refuse("bits", bits, "must be one of 4, 8")
    return _everywhere("int4_wo" if bits == 4 else "int8_wo", q, layers)


def _bitsandbytes(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    four = q.flag("load_in_4bit", "_load_in_4bit", default=False)
    return _everywhere("int4_wo" if four else "int8_wo", q, layers)


def _mxfp4(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    formats = _everywhere("w4a16_mxfp4", q, layers)
    return formats | {"attention": "none", "mlp": "none"} if layers.experts else formats


def _compressed_tensors(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    out = _left_out(q, layers)
    formats = dict.fromkeys(Parts._fields, "none")
    for name in q.part("config_groups").data:
        group = q.part("config_groups").part(name)
        form = _group_format(group)
        targets = group.items("targets") or ["Linear"]
        for part in _targeted(targets):
            if part not in out:
                formats[part] = form
    return formats


def _targeted(targets: Iterable[object]) -> set[str]:
    named = [target for target in targets if isinstance(target, str)]
    if any(target.lower() == "linear" for target in named):
        return set(Parts._fields)
    return {part for target in named if (part := part_of(target)) is not None}


def _group_format(group: Fields) -> Format:
    """The format of one group of compressed-tensors."""
    weights, inputs = group.part("weights"), group.part("input_activations")
    bits = weights.whole("num_bits", high=16)
    kind = weights.text_or_none("type") or "int"
    block = weights.text_or_none("strategy") == "block"
    act_bits = inputs.whole("num_bits", high=16) if inputs.data else 16
    act_kind = (inputs.text_or_none("type") or "int") if inputs.data else ""
    if kind == "float" and bits == 8 and act_bits == 8:
        if block:
            return "fp8_block"
        return "fp8" if inputs.flag("dynamic", default=False) else "fp8_static"
    if kind == "float" and bits == 4:
        return _four_bit_float(weights.whole("group_size", default=16), act_bits)
    if kind == "int" and (bits, act_bits) == (8, 8):
        return "int8_sq"
    if bits == 4 and act_bits == 8 and act_kind == "float":
        return "w4afp8"
    if bits == 4 and act_bits == 8:
        group.note("4-bit weights with 8-bit whole activations are taken as 4-bit weights alone.")
    if bits not in (4, 8):
        weights.refuse("num_bits", bits, "must be one of 4, 8")
    return "int4_wo" if bits == 4 else "int8_wo"


def _four_bit_float(group_size: int, act_bits: int) -> Format:
    if act_bits == 8:
        return "w4a8_mxfp4_mxfp8"
    if act_bits == 4:
        return "nvfp4"
    return "w4a16_mxfp4"


_ALGORITHMS = {
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A4_NVFP4": "nvfp4",
    "W4A16_NVFP4": "w4a16_mxfp4",
    "FP8": "fp8_static",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8_block",
    "FP8_PB_REAL": "fp8_block",
    "W4A8_AWQ": "w4afp8",
    "W4A16_AWQ": "int4_wo",
    "W8A16": "int8_wo",
    "INT4_AWQ": "int4_wo",
    "INT8_SQ": "int8_sq",
    "W8A8_SQ_PER_CHANNEL": "int8_sq",
    "W4A16_MXFP4": "w4a16_mxfp4",
    "MXFP4": "w4a16_mxfp4",
    "W4A8_MXFP4_FP8": "w4a8_mxfp4_mxfp8",
    "W4A8_MXFP4_MXFP8": "w4a8_mxfp4_mxfp8",
}


def _modelopt_format(q: Fields, *names: str) -> Format:
    algorithm = (q.text_or_none(*names) or "").upper()
    if algorithm not in _ALGORITHMS:
        q.refuse(names[0], algorithm, f"must be one of {', '.join(sorted(_ALGORITHMS))}")
    return _ALGORITHMS[algorithm]


def _modelopt(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    inner = q.part("quantization") if q.has("quantization") else q
    if (inner.text_or_none("quant_algo") or "").upper() == "MIXED_PRECISION":
        return dict.fromkeys(Parts._fields, "none") | _by_layer(inner)
    if not inner.has("quant_algo") and q.has("config_groups"):
        return _compressed_tensors(q, c, layers)
    return _everywhere(_modelopt_format(inner, "quant_algo"), inner, layers)


def _by_layer(q: Fields) -> dict[str, Format]:
    """What most of a part's modules are, out of a list of them with an algorithm each."""
    votes: dict[str, dict[str, int]] = {}
    table = q.part("quantized_layers")
    for module in table.data:
        part = part_of(module)
        if part is not None:
            form = _modelopt_format(table.part(module), "quant_algo")
            counts = votes.setdefault(part, {})
            counts[form] = counts.get(form, 0) + 1
    return {part: max(counts, key=lambda f: counts[f]) for part, counts in votes.items()}


def _quark(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    scheme = q.part("global_quant_config")
    weight, inputs = scheme.part("weight"), scheme.part("input_tensors")
    kind = (weight.text_or_none("dtype") or "").lower()
    act = (inputs.text_or_none("dtype") or "").lower()
    if kind.startswith("fp8"):
        dynamic = inputs.flag("is_dynamic", default=False)
        form = "int8_wo" if not act else "fp8" if dynamic else "fp8_static"
    elif kind == "fp4":
        form = _four_bit_float(32, {"fp8_e4m3": 8, "fp4": 4}.get(act, 16))
    elif kind in ("int8", "int4", "uint4"):
        form = ("int8_sq" if act else "int8_wo") if kind == "int8" else "int4_wo"
    else:
        weight.refuse("dtype", kind, "must be one of fp8_e4m3, fp4, int8, int4, uint4")
    return _everywhere(form, q, layers)


def _fbgemm(q: Fields, c: Fields, layers: Parts) -> dict[str, Format]:
    return _everywhere("fp8", q, layers)


_READERS = {
    "fp8": _fp8,
    "fp8-mixed": _fp8_mixed,
    "fbgemm-fp8": _fbgemm,
    "awq": _weight_only,
    "gptq": _weight_only,
    "auto-round": _weight_only,
    "hqq": _weight_only,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "quark": _quark,
}


# KV cache --------------------------------------------------------------------------------------


def _cache_format(q: Fields) -> str | None:
    inner = q.part("quantization") if q.has("quantization") else q
    stated = inner.raw("kv_cache_scheme", "kv_cache_quant_algo")
    if stated is None:
        return None
    if isinstance(stated, Mapping):
        scheme = inner.part("kv_cache_scheme" if inner.has("kv_cache_scheme") else "")
        bits = scheme.whole("num_bits", default=8, high=16)
        kind = scheme.text_or_none("type") or "float"
        stated = f"{'FP' if kind == 'float' else 'INT'}{bits}"
    known = {"FP8": "fp8", "INT8": "int8", "NONE": None}
    name = str(stated).upper()
    if name not in known:
        shown = repr(name[:_LONGEST_SHOWN])
        inner.note(f"A KV cache in {shown} is not modelled: the workload's dtype is taken.")
    return known.get(name)
