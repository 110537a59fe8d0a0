"""A linter for the packaged models and GPUs: what a schema alone cannot see.

Held for every file: the name is the file name, aliases stand for one thing only, kind, source
and date are there, the specification validates, and the figures agree with each other: a stated
16-bit peak is FLOP per clock and SM * SMs * clock within 3 %, an fp32 peak a power of two per
clock and SM, a model's parameters what its name says. A file that misses for a known reason is
listed here with the reason; an exception that is no longer needed is a finding too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsim import units
from rtsim.catalog import DATA, Kind, read_toml
from rtsim.errors import RtsimError, fold
from rtsim.specs.attention import AttentionSpec, LatentAttentionSpec
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.mlp import MlpSpec, MoeSpec
from rtsim.specs.model import ModelSpec

_PEAK_TOLERANCE = 0.03  # datasheets round rates and clocks to two or three figures
_NAME_TOLERANCE = 0.06  # "7b" names 6.7 and 7.2 billion parameters, "30b" 31.6
_ACTIVE_TOLERANCE = 0.35  # names count active parameters with embedding and head or without
_SIZE_IN_NAME = re.compile(r"-(\d+(?:\.\d+)?)(m|b)(?:-a(\d+)b)?$")
_SIZE_UNITS = {"m": 1e6, "b": 1e9}

# Peaks that no stated clock gives; file name -> why.
PEAK_EXCEPTIONS = {
    ("h20", "peak_fp32_flops_per_s"): "the published 44 TFLOP/s fits 78 SMs at no credible clock",
}


# Models with widths that no other has; file name -> why.
WIDTH_EXCEPTIONS = {
    "t5-11b": "128 heads of 128 and an MLP of 65536 at a width of 1024, as published",
}


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one data file."""

    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


def check_data(data: Path = DATA) -> list[Finding]:
    """Everything wrong with the packaged models and GPUs; [] when all is well.

    `data` holds the folders `models` and `gpus`.
    """
    findings = [*_check_kind(data, "gpus"), *_check_kind(data, "models")]
    if not findings and data == DATA:
        # Only when all files read: a broken file would make its exception look unused.
        findings.extend(_unused_exceptions(data))
    return findings


def _check_kind(data: Path, kind: Kind) -> Iterator[Finding]:
    files = sorted((data / kind).glob("*"))
    if not files:
        yield Finding(kind, "no data files")
    owners: dict[str, str] = {fold(path.stem): path.stem for path in files}
    for path in files:
        label = f"{kind}/{path.name}"
        if path.suffix != ".toml":
            yield Finding(label, "only .toml files belong here")
            continue
        try:
            raw = read_toml(path)
            spec = _spec(kind, raw, path)
        except RtsimError as error:
            text = str(error)
            yield Finding(label, text.removeprefix(f"{path}: ").removeprefix(f"{path.name}: "))
            continue
        for problem in (
            *_check_names(path, raw, owners),
            *_check_sources(raw),
            *(_check_gpu(spec) if isinstance(spec, GpuSpec) else _check_model(spec)),
        ):
            yield Finding(label, problem)


def _spec(kind: Kind, raw: dict[str, Any], path: Path) -> GpuSpec | ModelSpec:
    if kind == "gpus":
        return GpuSpec.from_mapping(raw, path.name)
    return ModelSpec.from_mapping(raw, path.name)


def _check_names(path: Path, raw: dict[str, Any], owners: dict[str, str]) -> Iterator[str]:
    """`owners` maps every folded name met so far to its file; aliases are added to it."""
    name = raw.get("name")
    if name != path.stem:
        yield f"name is {name!r}, but the file is {path.name}"
    if path.stem != path.stem.lower() or " " in path.stem:
        yield "file names are lower case, without spaces"
    aliases = raw.get("aliases")
    if aliases is None:
        yield "no aliases line (an empty list will do)"
        return
    written = "aliases = [" + ", ".join(f'"{alias}"' for alias in aliases) + "]"
    if written not in path.read_text(encoding="utf-8").splitlines():
        yield "aliases must be on one line in double quotes, where listings look for them"
    for alias in aliases:
        owner = owners.setdefault(fold(alias), path.stem)
        if owner != path.stem:
            yield f"alias {alias!r} also stands for {owner}"
        elif fold(alias) == fold(path.stem):
            yield f"alias {alias!r} is the name itself (case and '-' do not count)"


def _check_sources(raw: dict[str, Any]) -> Iterator[str]:
    if "provenance" not in raw:
        yield "no [provenance] with kind, source and date"


def _check_gpu(gpu: GpuSpec) -> Iterator[str]:
    if gpu.what_if:
        yield "what_if is for changed copies, not for files"
    yield from gpu.doubts()
    peak = gpu.peak_16_bit_flops_per_s
    per_clock = gpu.tensor_flops_per_clock_per_sm
    if peak is not None and per_clock is not None:
        derived = per_clock * gpu.sm_count * gpu.tensor_clock_hz
        yield from _misfit(gpu.name, "16-bit peak", "", peak, derived)
    clock_stated = not any(note.startswith("clock_hz ") for note in gpu.assumed)
    fp32_stated = not any(note.startswith("peak_fp32") for note in gpu.assumed)
    if clock_stated and fp32_stated:
        per_clock_fp32 = gpu.peak_fp32_flops_per_s / (gpu.sm_count * gpu.clock_hz)
        derived = 2.0 ** round(math.log2(per_clock_fp32)) * gpu.sm_count * gpu.clock_hz
        field = "peak_fp32_flops_per_s"
        yield from _misfit(gpu.name, "fp32 peak", field, gpu.peak_fp32_flops_per_s, derived)
    if peak is not None and peak < gpu.peak_fp32_flops_per_s:
        yield "16-bit peak is below the fp32 one"
    if gpu.peak_fp4_flops_per_s is not None and gpu.peak_fp8_flops_per_s is None:
        yield "an fp4 peak without an fp8 one"
    if gpu.last_level_cache_bytes is not None and gpu.last_level_cache_bytes < gpu.l2_bytes:
        yield "last-level cache is smaller than the L2"
    if gpu.link is not None and gpu.link.bytes_per_s >= gpu.hbm_bytes_per_s:
        yield "the link is as fast as the memory"
    if gpu.link is not None and gpu.link.domain_size < 2:
        yield "a link that joins one GPU is none"
    # FLOP per byte of memory traffic, 16-bit: 26 (P100) to 560 (TPU v6e) so far.
    if peak is not None and not 10.0 <= peak / gpu.hbm_bytes_per_s <= 1000.0:
        yield f"{peak / gpu.hbm_bytes_per_s:.0f} FLOP per byte of bandwidth is not plausible"


def _misfit(name: str, what: str, field: str, stated: float, derived: float) -> Iterator[str]:
    off = stated / derived - 1.0
    if abs(off) > _PEAK_TOLERANCE and (name, field) not in PEAK_EXCEPTIONS:
        yield (
            f"{what} {units.format_flops_per_s(stated, 4)} is {off:+.1%} off what SMs and clock "
            f"give, {units.format_flops_per_s(derived, 4)}"
        )


def _unused_exceptions(data: Path) -> Iterator[Finding]:
    for (name, field), _reason in PEAK_EXCEPTIONS.items():
        path = data / "gpus" / f"{name}.toml"
        if not path.exists():
            yield Finding("check_data.py", f"exception for {name}, which does not exist")
            continue
        gpu = GpuSpec.from_mapping(read_toml(path), path.name)
        per_clock = getattr(gpu, field) / (gpu.sm_count * gpu.clock_hz)
        if abs(per_clock / 2.0 ** round(math.log2(per_clock)) - 1.0) <= _PEAK_TOLERANCE:
            yield Finding("check_data.py", f"exception for {name} {field} is not needed")
    for name in WIDTH_EXCEPTIONS:
        path = data / "models" / f"{name}.toml"
        if not path.exists():
            yield Finding("check_data.py", f"exception for {name}, which does not exist")
        elif not any(_misfit_widths(ModelSpec.from_mapping(read_toml(path), path.name))):
            yield Finding("check_data.py", f"exception for the widths of {name} is not needed")


def _check_model(model: ModelSpec) -> Iterator[str]:
    size = _SIZE_IN_NAME.search(model.name)
    if size is not None:
        unit = _SIZE_UNITS[size.group(2)]
        off = model.parameters / (float(size.group(1)) * unit) - 1.0
        # Some names round (8b: 8.03), some cut (7b: 7.6).
        cut = math.floor(model.parameters / unit) == float(size.group(1))
        if abs(off) > _NAME_TOLERANCE and not cut:
            yield f"{model.parameters:,} parameters are {off:+.1%} off the size in the name"
        if size.group(3) is not None:
            off = model.active_parameters / (float(size.group(3)) * 1e9) - 1.0
            if abs(off) > _ACTIVE_TOLERANCE:
                yield f"{model.active_parameters:,} active are {off:+.1%} off the name"
    if model.name not in WIDTH_EXCEPTIONS:
        yield from dict.fromkeys(_misfit_widths(model))
    if model.vocab_size < model.typical_heads:
        yield f"a vocabulary of {model.vocab_size} is not plausible"


def _misfit_widths(model: ModelSpec) -> Iterator[str]:
    """Widths of parts that no published model has beside its own.

    Dense MLPs 1 (Phi-3.5-MoE's experts) to 8 (GeGLU models) times the width, all heads together
    half to three times (GLM-4.5-Air), state and latent layers up to four, the experts that a
    token visits up to sixty times the space they work in (Nemotron 3 Super).
    """
    hidden = model.hidden_size
    for group in model.all_layers:
        mlp, mixer = group.mlp, group.attention
        if isinstance(mlp, MlpSpec) and not 1.0 <= mlp.ffn_size / hidden <= 8.0:
            yield f"MLP width {mlp.ffn_size} is not plausible beside {hidden}"
        if isinstance(mlp, MoeSpec):
            visited = mlp.top_k * mlp.expert_size
            if not 0.2 <= visited / (mlp.latent_size or hidden) <= 60.0:
                yield f"{visited} wide experts of a token are not plausible beside {hidden}"
            if mlp.latent_size is not None and mlp.latent_size >= hidden:
                yield f"experts' space of {mlp.latent_size} is not narrower than {hidden}"
        if isinstance(mixer, AttentionSpec):
            if not 0.5 <= mixer.q_width / hidden <= 3.0:
                yield f"{mixer.q_width} wide queries are not plausible beside the width"
        elif mixer is not None and not 0.5 <= mixer.out_width / hidden <= 4.0:
            yield f"{mixer.out_width} wide outputs are not plausible beside the width"
        if isinstance(mixer, LatentAttentionSpec) and mixer.kv_lora_rank > hidden:
            yield f"latents of {mixer.kv_lora_rank} are wider than {hidden}"
