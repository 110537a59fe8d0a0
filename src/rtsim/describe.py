"""What rtsim knows about one model, GPU or profile, as text facts and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtsim import catalog, units
from rtsim.errors import NotSupported, UnknownName

if TYPE_CHECKING:
    from rtsim.profile import Profile
    from rtsim.specs import LayerGroup, ModelSpec
    from rtsim.specs.provenance import Provenance


@dataclass(frozen=True)
class Description:
    """`facts` are for people, `data` is everything, ready for JSON."""

    title: str
    facts: dict[str, str]
    data: dict[str, Any]


def describe(name: str, changes: Mapping[str, object] | None = None) -> Description:
    """Describe a model, a GPU or a profile by name, alias or file (.toml; config.json of a model).

    `changes`: figures of a model or a GPU by path, see `rtsim.whatif`. Raises UnknownName with
    the nearest of all their names, DataError, SpecError.
    """
    return _kind_of(name)(name, changes or {})


def profile_names() -> list[str]:
    """Names of the packaged profiles, from the file names alone."""
    folder = Path(__file__).parent / "data" / "profiles"
    return sorted(path.stem for path in folder.glob("*.toml"))


def _kind_of(name: str) -> Callable[[str, Mapping[str, object]], Description]:
    if name.lower().endswith(".toml"):
        fields = catalog.read_toml(Path(name))
        if "layers" in fields:
            return _model
        if "sm_count" in fields:
            return _gpu
        if "stack" in fields:
            return _profile
        raise NotSupported(f"{name}: neither a model (layers), a GPU (sm_count) nor a profile")
    if catalog.is_config(name):
        return _model
    if name in profile_names():
        return _profile
    try:
        catalog.resolve("models", name)
        return _model
    except UnknownName:
        pass
    try:
        catalog.resolve("gpus", name)
        return _gpu
    except UnknownName:
        pass
    known = [*catalog.model_names(), *catalog.gpu_names(), *profile_names()]
    others = {
        other: own
        for named in (catalog.aliases("models"), catalog.aliases("gpus"))
        for own, names in named.items()
        for other in names
    }
    raise UnknownName("model, GPU or profile", name, known, stands_for=others)


def _model(name: str, changes: Mapping[str, object]) -> Description:
    model = catalog.load_model(name)
    what_if: tuple[str, ...] = ()
    if changes:
        from rtsim.whatif import change

        changed = change(changes, model=model)
        model, what_if = changed.model or model, changed.notes
    kv_bytes, state_bytes = model.kv_bytes_per_token(), model.state_bytes()
    facts = {
        "Also called": ", ".join(model.aliases),
        "Parameters": units.format_count(model.parameters, 4),
        "Active per token": ""
        if model.active_parameters == model.parameters
        else units.format_count(model.active_parameters, 4),
        "Layers": str(model.n_layers),
        **{f"  encoder {i + 1}": _layer_text(group) for i, group in enumerate(model.encoder)},
        **{f"  group {i + 1}": _layer_text(group) for i, group in enumerate(model.layers)},
        "Hidden size": str(model.hidden_size),
        "Vocabulary": str(model.vocab_size),
        "Positions": f"{model.max_positions}, {model.position}",
        "Embeddings": "tied to the output head" if model.tied_embeddings else "",
        "Dtype": model.dtype,
        "Stored as": _formats_text(model),
        "KV cache": f"{units.format_bytes(kv_bytes)} per token ({model.kv_format()})"
        if kv_bytes and model.keeps != "nothing"
        else "",
        "States": f"{units.format_bytes(state_bytes)} per sequence" if state_bytes else "",
        "What if": "\n".join(what_if),
        **_origin(model.provenance, model.notes),
    }
    data = {
        **model.model_dump(mode="json"),
        "kind": "model",
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "kv_cache_bytes_per_token": kv_bytes,
    }
    return Description(f"{model.name} (model)", _stated(facts), data)


def _formats_text(model: ModelSpec) -> str:
    """Number formats of the parts that are not stored in the model's dtype."""
    stored = model.quantization.model_dump(exclude_defaults=True)
    return ", ".join(f"{part} {name}" for part, name in stored.items())


def _layer_text(group: LayerGroup) -> str:
    parts = [_mixer_text(mixer) for mixer in group.mixers]
    if group.mlp is not None:
        parts.append(_mlp_text(group.mlp))
    order = ", attention and MLP in parallel" if group.parallel else ""
    return f"{group.count} x {'; '.join(parts)}; {group.norm}{order}"


def _mixer_text(mixer: Any) -> str:
    if mixer.kind == "attention":
        text = f"{mixer.n_heads} heads of {mixer.head_dim}"
        if mixer.n_kv_heads != mixer.n_heads:
            text += f" ({mixer.n_kv_heads} KV heads)"
        text += f", window {mixer.window}" if mixer.window else ""
        text += "" if mixer.causal else ", sees everything"
    elif mixer.kind == "mla":
        text = f"{mixer.n_heads} heads of {mixer.head_dim} from latents of {mixer.kv_lora_rank}"
    elif mixer.kind == "compressed":
        text = f"{mixer.n_heads} heads of {mixer.head_dim}, window {mixer.window}"
        if mixer.compression:
            text += f", earlier tokens pooled by {mixer.compression}"
    else:
        scan = mixer.scan
        name = mixer.kind.replace("_", " ")
        text = f"{name}, state {scan.n_v_heads} x {scan.key_dim} x {scan.value_dim}"
    indexer = getattr(mixer, "indexer", None)
    return text + (f", the best {indexer.top_k} keys" if indexer else "")


def _mlp_text(mlp: Any) -> str:
    gate = "gated " if mlp.gated else ""
    if mlp.kind == "mlp":
        return f"{gate}MLP {mlp.ffn_size} ({mlp.activation})"
    text = f"{mlp.top_k} of {mlp.n_experts} {gate}experts {mlp.expert_size} ({mlp.activation})"
    text += f", shared {mlp.shared_size}" if mlp.shared_size else ""
    text += f", dense {mlp.dense_size}" if mlp.dense_size else ""
    return text


def _gpu(name: str, changes: Mapping[str, object]) -> Description:
    gpu = catalog.load_gpu(name)
    what_if: tuple[str, ...] = ()
    if changes:
        from rtsim.whatif import change

        changed = change(changes, gpu=gpu)
        gpu = changed.gpu or gpu
        what_if = (*gpu.what_if, *changed.notes)
    rates = {
        f"Peak {dtype}": units.format_flops_per_s(rate)
        for dtype in ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4")
        if (rate := gpu.peak_flops_per_s(dtype)) is not None
    }
    facts = {
        "Also called": ", ".join(gpu.aliases),
        "Architecture": f"{gpu.vendor} {gpu.chip or gpu.architecture}",
        "SMs": f"{gpu.sm_count} at {units.format_hertz(gpu.clock_hz)}",
        **rates,
        "Memory": f"{units.format_bytes(gpu.memory_bytes)} {gpu.memory_type}, "
        f"{units.format_bytes_per_s(gpu.hbm_bytes_per_s)}",
        "L2 cache": units.format_bytes(gpu.l2_bytes),
        "Link": ""
        if gpu.link is None
        else f"{gpu.link.name}, {units.format_bytes_per_s(gpu.link.bytes_per_s)} one way, "
        f"{gpu.link.domain_size} GPUs ({gpu.link.topology})",
        "PCIe": units.format_bytes_per_s(gpu.pcie_bytes_per_s),
        "Network": ""
        if gpu.network is None
        else f"{units.format_bytes_per_s(gpu.network.bytes_per_s)} per GPU, one way",
        "GPUs per node": str(gpu.gpus_per_node),
        "Power": "" if gpu.power_w is None else units.format_watts(gpu.power_w),
        "Price": ""
        if gpu.price is None
        else f"{units.format_usd(gpu.price.usd_per_hour)} per hour ({gpu.price.source_and_date})",
        "What if": "\n".join(what_if),
        "Assumed": "\n".join(gpu.assumed),
        **_origin(gpu.provenance, gpu.notes),
    }
    data = {**gpu.model_dump(mode="json"), "kind": "gpu"}
    return Description(f"{gpu.name} (GPU)", _stated(facts), data)


def _profile(name: str, changes: Mapping[str, object]) -> Description:
    if changes:
        raise NotSupported(f"{name} is a profile: set changes figures of models and GPUs only")
    from dataclasses import asdict

    from rtsim.profile import load_profile
    from rtsim.specs.provenance import condensed

    profile = load_profile(name)
    facts = {
        "Stack": profile.stack,
        "Fitted on": profile.gpu,
        "Architecture": profile.architecture,
        **{
            f"[{section}]": _coefficients(profile, section)
            for section in sorted(profile.coefficients)
        },
        **{
            key.replace("_", " ").capitalize(): _listed(value)
            for key, value in {
                **profile.provenance,
                "source": condensed(profile.provenance.get("source", "own")),
            }.items()
        },
    }
    data = {**asdict(profile), "kind": "profile"}
    return Description(f"{profile.name} (profile)", _stated(facts), data)


def _listed(value: Any) -> str:
    """A value of a profile's provenance in words: lists in a line, tables a line an entry."""
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {text}" for name, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _coefficients(profile: Profile, section: str) -> str:
    values = profile.coefficients[section]
    return ", ".join(f"{name} {units.format_number(value)}" for name, value in values.items())


def _origin(provenance: Provenance | None, notes: tuple[str, ...]) -> dict[str, str]:
    facts = {}
    if provenance is not None:
        facts["Source"] = f"{provenance.source} ({provenance.kind}, {provenance.date})"
        facts["Remarks"] = provenance.notes
    return {**facts, "Notes": "\n".join(notes)}


def _stated(facts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in facts.items() if text}
