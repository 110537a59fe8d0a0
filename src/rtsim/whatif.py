"""What if the memory were twice as fast: changes of a model and a GPU, by path and value.

Paths begin with `gpu`, `link` (gpu.link), `network` (gpu.network) or `model`; values are what a
TOML file would hold ("900 GB/s", 8), a factor of the current value ("2x"), or "none". A change is
of the named field alone: stated figures stay, and what was inferred from a changed figure stays
where it was too (a note says so), so that a prediction shows what that one figure bounds.
`model.n_layers` is the exception to "a field": groups of layers keep their proportions.

A GPU keeps its name, and with it the profile of the part that it is a variant of; `GpuSpec.what_if`
holds what differs, where timing depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rtsim import units
from rtsim.changed_values import entry_of, number_in, read_value, shown_value, with_changes
from rtsim.errors import SpecError, nearest_names
from rtsim.specs.base import Spec
from rtsim.specs.changes import factor_in
from rtsim.specs.gpu import GpuSpec, LinkSpec, NetworkSpec
from rtsim.specs.model import ModelSpec

# What the user writes first -> where it is in a specification.
_ROOTS = {"gpu": "", "link": "link.", "network": "network.", "model": ""}
# Paths that people will try, although options of their own set them.
_OPTIONS = (
    *("tp", "pp", "ep", "dp", "num_gpus", "batch_size", "input_len", "output_len"),
    *("dtype", "kv_cache_dtype", "quantization", "stack", "profile", "arch"),
)
_OPTION_GROUPS = {"parallelism": "--tp or --num-gpus", "workload": "--batch-size or --input-len"}
# Fields of a GPU that no time depends on: changing them leaves it a measured part. Power is one
# but for long fp32 products on small boards.
_UNTIMED = frozenset(
    (
        *("name", "aliases", "vendor", "chip", "release_year", "memory_bytes", "memory_type"),
        *("power_w", "price", "provenance", "notes", "assumed", "what_if"),
    )
)
_MOST_LAYERS = 10_000  # of a group of layers


@dataclass(frozen=True)
class Changed:
    """A model and a GPU after the changes; notes say what changed, and what stayed unasked."""

    model: ModelSpec | None
    gpu: GpuSpec | None
    notes: tuple[str, ...] = ()


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """ "PATH=VALUE" texts as a mapping. Raises SpecError (field "set") where one is none.

    >>> parse_settings(["gpu.hbm_bytes_per_s=2x", "link.bytes_per_s = 900 GB/s"])
    {'gpu.hbm_bytes_per_s': '2x', 'link.bytes_per_s': '900 GB/s'}
    """
    settings: dict[str, str] = {}
    for text in texts:
        path, equals, value = (part.strip() for part in text.partition("="))
        if not (path and equals and value):
            raise SpecError("set", text, "must be PATH=VALUE, such as gpu.hbm_bytes_per_s=2x")
        if path in settings:
            raise SpecError("set", text, f"{path} is set twice")
        settings[path] = value
    return settings


def change(
    settings: Mapping[str, object], model: ModelSpec | None = None, gpu: GpuSpec | None = None
) -> Changed:
    """Apply changes to a model and a GPU, each None where there is none to change.

    Raises SpecError: unknown path (with the nearest), a path of what is not there, a value or a
    unit that does not suit its field.
    """
    of_gpu: dict[str, object] = {}
    of_model: dict[str, object] = {}
    for path, value in settings.items():
        root, field = _split(path, value)
        kind, spec = ("model", model) if root == "model" else ("GPU", gpu)
        if spec is None:
            raise SpecError(path, value, f"there is no {kind} here to change")
        changes = of_model if root == "model" else of_gpu
        if field in changes:
            raise SpecError(path, value, f"gpu.{field} is set twice")
        changes[field] = value
    notes: list[str] = []
    if model is not None and of_model:
        model = _changed_model(model, of_model, notes)
    if gpu is not None and of_gpu:
        gpu = _changed_gpu(gpu, of_gpu, notes)
    return Changed(model, gpu, tuple(notes))


def _split(path: str, value: object) -> tuple[str, str]:
    """The root of a path and the field path in its specification."""
    root, _, rest = path.partition(".")
    if root in _ROOTS:
        if rest:
            return root, _ROOTS[root] + rest
        if root in ("link", "network") and value in ("none", None):
            return root, root
        example = {"gpu": "hbm_bytes_per_s", "model": "n_layers"}.get(root, "bytes_per_s")
        raise SpecError(path, value, f"must name a field of it, such as {root}.{example}")
    last = path.rpartition(".")[2]
    if last in _OPTIONS and root in (*_OPTION_GROUPS, last):
        option = f"--{last.replace('_', '-')}"
        raise SpecError(path, value, f"has an option of its own, {option}; set changes figures")
    if root in _OPTION_GROUPS:
        raise SpecError(path, value, f"has options of its own, such as {_OPTION_GROUPS[root]}")
    exact = [known for known in known_paths() if known.partition(".")[2] == path]
    near = exact or nearest_names(path, known_paths())
    raise SpecError(path, value, "must begin with gpu, link, network or model", nearest=near)


def known_paths() -> list[str]:
    """Paths of one step below a root, for those that are near a wrong one."""
    parts: dict[str, type[Spec]] = {
        "gpu": GpuSpec,
        "link": LinkSpec,
        "network": NetworkSpec,
        "model": ModelSpec,
    }
    fields = [f"{root}.{name}" for root, spec in parts.items() for name in spec.model_fields]
    return [*fields, "model.n_layers"]


# A GPU -------------------------------------------------------------------------------------------


def _changed_gpu(gpu: GpuSpec, changes: dict[str, object], notes: list[str]) -> GpuSpec:
    wanted = {path: read_value(GpuSpec, path, value) for path, value in changes.items()}
    changed = with_changes(gpu, {**wanted, **_price(gpu, wanted)})
    doubts = changed.doubts() if not any(map(factor_in, wanted.values())) else ()
    named = {path.partition(".")[0] for path in wanted}
    kept: dict[str, Any] = {}
    for field in GpuSpec.model_fields:
        before = getattr(gpu, field)
        if field in named | {"assumed"} or before is None or getattr(changed, field) == before:
            continue
        kept[field] = before
        notes.append(
            f"gpu.{field} stays at {shown_value(field, before)}, inferred from the figures before "
            "the change"
        )
    changed = changed.with_(kept) if kept else changed
    entries = {path: entry_of(gpu, changed, path, value) for path, value in wanted.items()}
    entries = {path: text for path, text in entries.items() if text}
    timed = [t for path, t in entries.items() if path.partition(".")[0] not in _UNTIMED]
    untimed = [t for path, t in entries.items() if path.partition(".")[0] in _UNTIMED]
    if untimed:
        notes.append(f"what if: {gpu.name} with {', '.join(untimed)}")
    notes += [*doubts, *_uncoupled(changed, entries)]
    return changed.with_(what_if=(*gpu.what_if, *timed)) if timed else changed


def _price(gpu: GpuSpec, wanted: Mapping[str, object]) -> dict[str, object]:
    """A changed price has another source than the list."""
    if "price.usd_per_hour" not in wanted:
        return {}
    listed = gpu.price
    before = "" if listed is None else (
        f"; listed at {units.format_usd(listed.usd_per_hour)}: {listed.source} ({listed.date})"
    )  # fmt: skip
    return {"price.source": f"set by the user{before}", "price.date": "undated"}


def _uncoupled(gpu: GpuSpec, entries: Mapping[str, str]) -> Iterator[str]:
    """Notes on figures that one might expect to move with a changed one."""
    peaks = {
        field.split("_")[1]: field
        for field in GpuSpec.model_fields
        if field.startswith("peak_") and getattr(gpu, field) is not None
    }
    moved = [dtype for dtype, field in peaks.items() if field in entries]
    stay = [dtype for dtype, field in peaks.items() if field not in entries]
    if moved and stay:
        yield (
            f"of the peak rates only that of {', '.join(moved)} is changed; {', '.join(stay)} "
            "keep theirs"
        )
    if not moved and {"sm_count", "clock_hz"} & set(entries):
        yield "peak rates stay as stated when SMs or clock change; set gpu.peak_... to scale them"


# A model -----------------------------------------------------------------------------------------


def _changed_model(model: ModelSpec, changes: dict[str, object], notes: list[str]) -> ModelSpec:
    n_layers = changes.pop("n_layers", None)
    wanted = {path: read_value(ModelSpec, path, value) for path, value in changes.items()}
    changed = with_changes(model, wanted) if wanted else model
    if n_layers is not None:
        changed = _with_layers(changed, n_layers, notes)
    entries = [entry_of(model, changed, path, value) for path, value in wanted.items()]
    if n_layers is not None:
        entries.append(entry_of(model, changed, "n_layers", n_layers))
    entries = [entry for entry in entries if entry]
    if entries:
        notes.append(f"what if: {model.name} with {', '.join(entries)}")
    if "hidden_size" in wanted:
        notes.append(
            "model.hidden_size alone is changed: heads, head_dim and ffn_size keep their sizes"
        )
    return changed


def _with_layers(model: ModelSpec, value: object, notes: list[str]) -> ModelSpec:
    """The model with another number of layers; several groups keep their proportions."""
    counts = [group.count for group in model.layers]
    wanted = _whole("model.n_layers", value, sum(counts))
    if wanted > _MOST_LAYERS * len(counts):
        raise SpecError("model.layers[0].count", wanted, f"must be at most {_MOST_LAYERS}")
    if wanted < len(counts):
        allowed = f"must be at least {len(counts)}, a layer of each group of {model.name}"
        raise SpecError("model.n_layers", value, allowed)
    # Each group its share, rounded down, at least one; the largest remainders take the rest.
    shares = [count * wanted / sum(counts) for count in counts]
    new = [max(1, int(share)) for share in shares]
    by_rest = sorted(range(len(new)), key=lambda i: (shares[i] - new[i], shares[i]), reverse=True)
    while sum(new) < wanted:
        for i in by_rest[: wanted - sum(new)]:
            new[i] += 1
    while sum(new) > wanted:  # groups of less than one layer were rounded up
        new[new.index(max(new))] -= 1
    if len(new) > 1:
        split = " + ".join(map(str, new))
        notes.append(
            f"model.n_layers = {wanted}: the groups of layers keep their proportions, {split}"
        )
    return with_changes(model, {f"layers.{i}.count": count for i, count in enumerate(new)})


def _whole(path: str, value: object, current: int) -> int:
    factor = factor_in(value)
    number: object = value
    if factor is not None:
        number = current * factor
    elif isinstance(value, str):
        number = number_in(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
        raise SpecError(path, value, "must be a whole number above zero, or a factor such as 2x")
    if not math.isfinite(number) or abs(number - round(number)) > 1e-9 * number:
        shown = "" if factor is None else f" ({number:g})"
        raise SpecError(path, value, f"must give a whole number{shown}")
    return round(number)
