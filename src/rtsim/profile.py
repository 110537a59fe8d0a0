"""Profiles: fitted coefficients of one software stack on one GPU, and how they become rows.

A profile file holds, for each operator kind (and number format where it matters), the
coefficients that its kernel module declares, the stack's traits, the scatter of the errors, and
where all of it came from. A GPU without a profile takes the nearest one: coefficients are
dimensionless or in device units, so its own datasheet facts go into the same formulas, and the
interval widens by what such a transfer has cost on GPUs where it could be checked.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import attention, collective, gemm, memory_bound, step, tables

from rtsim.device_facts import (
    attention_peak_flops_per_s,
    device_row,
    link_facts_of,
    record,
    sustained_flops_per_s,
    threads_per_sm,
)
from rtsim.errors import DataError, NotSupported, UnknownName
from rtsim.operators import TRAIT_VALUES, StackTraits
from rtsim.specs.dtype import WeightFormat, dtype_bytes, operand_format, similar_formats
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]

# Coefficient sections of a profile and the kernel module's declaration of each. Sections with
# a "." after the name are per number format or per implementation.
DECLARED: dict[str, tuple[tables.Coefficient, ...]] = {
    "host": step.HOST_COEFFICIENTS,
    "gemm": gemm.GEMM_COEFFICIENTS,
    "attention_prefill": attention.ATTENTION_PREFILL_COEFFICIENTS,
    "attention_decode": attention.ATTENTION_DECODE_COEFFICIENTS,
    "memory_bound": memory_bound.MEMORY_BOUND_COEFFICIENTS,
    "collective": collective.COLLECTIVE_COEFFICIENTS,
}
# Scatter of ln(error) by what a time is owed to, the groups of `generation.owed`.
GROUPS = (
    "gemm", "scores", "values", "attention", "memory_bound", "collective", "host", "prompt_host",
)  # fmt: skip


# 90 % of a normal distribution lies within this many deviations.
_DEVIATIONS_90 = 1.6449


def interval_half_width(owed_s: Array, sigmas: Array, row_sigma: float | Array) -> Array:
    """Half-width of the 90 % interval in ln(seconds).

    owed_s: (..., groups) seconds owed to each of GROUPS; sigmas: (groups,) deviations of
    ln(error). Errors within a group go together, those of groups are independent, and a row
    scatters by `row_sigma` on its own.
    """
    spread = ((owed_s * sigmas) ** 2).sum(axis=-1) / owed_s.sum(axis=-1) ** 2
    return np.asarray(_DEVIATIONS_90 * np.sqrt(spread + row_sigma**2))


@dataclass(frozen=True)
class Profile:
    """Fitted coefficients of a stack on a GPU, with their uncertainty and provenance.

    coefficients: section -> name -> value, sections "host", "gemm.fp16", "collective.nccl", ...;
        what a section lacks stays at the prior that the kernel module declares.
    sigma: deviation of ln(measured / predicted) by group of `GROUPS`, for a model among those
        fitted ("seen") and for any other ("unseen").
    transfer_sigma: further deviation by group when the profile serves another GPU.
    section_sigma: deviation of ln(measured / predicted) of single kernels by section ("gemm.fp8"),
        where it was measured.
    fitted_shapes: (layers, hidden size, heads, tp) of the whole-model rows in the fit.
    fitted_batches: sequences of the smallest and of the largest of those rows.
    """

    name: str
    stack: str
    gpu: str
    architecture: str
    traits: StackTraits
    coefficients: Mapping[str, Mapping[str, float]]
    sigma_seen: Mapping[str, float]
    sigma_unseen: Mapping[str, float]
    sigma_row: float
    transfer_sigma: Mapping[str, float]
    fitted_shapes: tuple[tuple[float, ...], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    section_sigma: Mapping[str, float] = field(default_factory=dict)
    fitted_batches: tuple[float, ...] = ()

    def section(self, kind: str, *variants: str) -> dict[str, float]:
        """Coefficients of `kind`: of the first fitted of `variants`, else of any, else priors."""
        values = {c.name: c.prior for c in DECLARED[kind]}
        return {**values, **self.coefficients.get(self.section_name(kind, *variants), {})}

    def section_name(self, kind: str, *variants: str) -> str:
        """The section that `section` reads; "" where only priors are there."""
        names = [f"{kind}.{variant}" for variant in variants] + [kind]
        names += [name for name in self.coefficients if name.startswith(f"{kind}.")]
        return next((name for name in names if name in self.coefficients), "")

    def shape_distance(self, shape: tuple[float, ...]) -> float:
        """Distance in log size to the nearest fitted whole-model shape; infinite without one."""
        distances = (
            math.sqrt(sum(math.log(a / b) ** 2 for a, b in zip(shape, fitted, strict=True)))
            for fitted in self.fitted_shapes
        )
        return min(distances, default=math.inf)

    def batch_distance(self, n_sequences: Array) -> Array:
        """How far batches lie outside the fitted ones, in log size; 0 without whole-model rows."""
        if not self.fitted_batches:
            return np.zeros(np.shape(n_sequences))
        least, most = self.fitted_batches
        logs = np.log(n_sequences)
        return np.asarray(np.maximum(0.0, np.maximum(logs - np.log(most), np.log(least) - logs)))


def _packaged() -> Iterable[Any]:
    folder = resources.files("rtsim") / "data" / "profiles"
    return (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))


@lru_cache(maxsize=1)
def profile_names() -> tuple[str, ...]:
    """Names of the packaged profiles."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _packaged()))


def load_profile(name: str) -> Profile:
    """A packaged profile by name, or a user's by path of a .toml file, which is read anew.

    Raises UnknownName, or DataError for a file that is not a profile.
    """
    if name.endswith(".toml"):
        try:
            return _parse(Path(name).read_text(encoding="utf-8"), name)
        except FileNotFoundError:
            raise DataError(name, "no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(name, f"cannot be read: {error}") from None
    return _packaged_profile(name)


@lru_cache(maxsize=64)
def _packaged_profile(name: str) -> Profile:
    if name not in profile_names():
        raise UnknownName("profile", name, profile_names())
    entry = resources.files("rtsim") / "data" / "profiles" / f"{name}.toml"
    return _parse(entry.read_text(encoding="utf-8"), f"{name}.toml")


def _parse(text: str, file: str) -> Profile:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(file, f"not valid TOML: {error}") from None
    except RecursionError:
        raise DataError(file, "not valid TOML: nested too deeply") from None
    coefficients: dict[str, dict[str, float]] = {}
    for kind, declared in DECLARED.items():
        section = data.get(kind)
        if section is None:
            continue
        has_variants = isinstance(section, dict) and any(
            isinstance(value, dict) for value in section.values()
        )
        for variant, values in (section if has_variants else {"": section}).items():
            name = f"{kind}.{variant}" if variant else kind
            coefficients[name] = _read_section(values, name, declared, file)
    try:
        stack, scatter = data["stack"], data["error"]
        return Profile(
            name=_text(data["name"], "name", file),
            stack=_text(stack["name"], "[stack] name", file),
            gpu=_text(data.get("gpu", ""), "gpu", file),
            architecture=_text(data["architecture"], "architecture", file),
            traits=_read_traits(stack, file),
            coefficients=coefficients,
            sigma_seen=_read_sigmas(scatter["seen"], "[error.seen]", file),
            sigma_unseen=_read_sigmas(scatter["unseen"], "[error.unseen]", file),
            sigma_row=_number(scatter["row"], "[error] row", file),
            transfer_sigma=_read_sigmas(scatter["transfer"], "[error.transfer]", file),
            fitted_shapes=_read_shapes(data.get("fitted_shapes", ()), file),
            fitted_batches=_read_batches(data.get("fitted_batches", ()), file),
            provenance=data["provenance"],
            section_sigma={
                name: _number(value, f"[error.section] {name}", file)
                for name, value in scatter.get("section", {}).items()
            },
        )
    except (KeyError, TypeError) as problem:
        raise DataError(file, f"not a profile: {problem}") from None


# Bounds are those of the fit; a file rounds its values to five digits.
_ROUNDING_FRAC = 1e-3


def _read_section(
    values: Any, name: str, declared: tuple[tables.Coefficient, ...], file: str
) -> dict[str, float]:
    """Coefficients of one section, each known and within its declared bounds."""
    known = {c.name: c for c in declared}
    if not isinstance(values, dict):
        raise DataError(file, f"[{name}] = {values!r}: must be a table of coefficients")
    read = {}
    for key, value in values.items():
        if key not in known:
            raise DataError(file, f"[{name}] has no coefficient {key!r}")
        lower = known[key].lower * (1.0 - _ROUNDING_FRAC)
        upper = known[key].upper * (1.0 + _ROUNDING_FRAC)
        read[key] = _number(value, f"[{name}] {key}", file, lower, upper)
    return read


_SHAPE_SIZES = 4  # layers, hidden size, heads, tp


def _read_shapes(shapes: Any, file: str) -> tuple[tuple[float, ...], ...]:
    for shape in shapes:
        if len(shape) != _SHAPE_SIZES:
            raise DataError(file, f"fitted_shapes: {shape!r} must have {_SHAPE_SIZES} sizes")
    return tuple(
        tuple(_number(size, "fitted_shapes", file, lower=1.0) for size in shape) for shape in shapes
    )


def _read_batches(batches: Any, file: str) -> tuple[float, ...]:
    if len(batches) not in (0, 2):
        raise DataError(file, f"fitted_batches = {batches!r}: must be the least and the most")
    return tuple(_number(batch, "fitted_batches", file, lower=1.0) for batch in batches)


def _read_traits(stack: Mapping[str, Any], file: str) -> StackTraits:
    """Traits of the kinds that `StackTraits` declares."""
    defaults = vars(StackTraits())
    for name, value in stack.items():
        if name == "name":
            continue
        if name not in defaults:
            raise DataError(file, f"not a profile: [stack] has no trait {name!r}")
        default = defaults[name]
        allowed = TRAIT_VALUES.get(name)
        if allowed is not None and value not in allowed:
            raise DataError(file, f"[stack] {name} = {value!r}: must be {' or '.join(allowed)}")
        if isinstance(default, bool) and not isinstance(value, bool):
            raise DataError(file, f"[stack] {name} = {value!r}: must be true or false")
        if isinstance(default, float):
            _number(value, f"[stack] {name}", file)
    return StackTraits(**{name: value for name, value in stack.items() if name != "name"})


def _read_sigmas(sigmas: Any, name: str, file: str) -> dict[str, float]:
    """A deviation for every group."""
    missing = [group for group in GROUPS if group not in sigmas]
    if missing:
        raise DataError(file, f"{name} lacks {missing[0]}")
    return {group: _number(value, f"{name} {group}", file) for group, value in sigmas.items()}


def _number(value: Any, name: str, file: str, lower: float = 0.0, upper: float = math.inf) -> float:
    """A finite number within bounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not lower <= value <= upper or not math.isfinite(value):
        bounds = f"of at least {lower:g}" if upper == math.inf else f"from {lower:g} to {upper:g}"
        raise DataError(file, f"{name} = {value!r}: must be a number {bounds}")
    return float(value)


def _text(value: Any, name: str, file: str) -> str:
    if not isinstance(value, str):
        raise DataError(file, f"{name} = {value!r}: must be text")
    return value


# Profile choice ------------------------------------------------------------------------------


# Stacks that serve requests: a profile of one stands for another where there is nothing nearer.
SERVING_STACKS = ("vllm", "sglang", "trtllm")
# Stacks that are taken when none is named: whole generations are the best evidence.
DEFAULT_STACKS = ("megatron-lm", *SERVING_STACKS)
# Further names of stacks: as tables write them, and of the library that all stacks call.
STACK_ALIASES = {
    "sarathi-serve/pytorch": "sarathi-serve",
    "pytorch-nccl": "sarathi-serve",
    "pytorch/transformers": "pytorch",
    "tensorrt-llm": "trtllm",
    "nccl": "vllm",
}
GENERIC = "generic"  # architecture of the profile for all GPUs


@dataclass(frozen=True)
class ProfileHead:
    """What a choice between profiles needs of one. `gpu` is "" for a family of GPUs."""

    name: str
    stack: str
    gpu: str
    architecture: str
    has_generations: bool


@lru_cache(maxsize=1)
def profile_heads() -> tuple[ProfileHead, ...]:
    """Heads of the packaged profiles; faster than reading them whole."""
    heads = []
    for entry in sorted(_packaged(), key=lambda entry: str(entry.name)):
        # The file begins with plain entries and [stack]; the next table ends the head.
        text = "\n[".join(entry.read_text(encoding="utf-8").split("\n[", 2)[:2])
        try:
            data = tomllib.loads(text)
            heads.append(
                ProfileHead(
                    data["name"], data["stack"]["name"], data.get("gpu", ""),
                    data["architecture"], bool(data.get("fitted_shapes")),
                )
            )  # fmt: skip
        except (tomllib.TOMLDecodeError, KeyError) as problem:
            raise DataError(entry.name, f"not a profile: {problem}") from None
    return tuple(heads)


def stack_names() -> tuple[str, ...]:
    """Stacks that have a profile."""
    return tuple(sorted({head.stack for head in profile_heads()}))


def stack_name(name: str) -> str:
    """The stack that a name or alias stands for. Raises UnknownName.

    >>> stack_name("TensorRT-LLM")
    'trtllm'
    """
    known = name.lower()
    known = STACK_ALIASES.get(known, known)
    if known not in stack_names():
        raise UnknownName("stack", name, stack_names())
    return known


def choose_profile(gpu: GpuSpec, stack: str | None = None) -> tuple[Profile, list[str]]:
    """The profile with the best evidence for a GPU, and notes on how good that is.

    In order: fitted on this GPU; on a GPU with the same die; on the GPUs of the same
    architecture together; on one of them; on all GPUs together; on the GPU most like it. With no
    stack named, `DEFAULT_STACKS` compete, whole generations before kernels alone. A family's
    profile is of the first serving stack and stands for the others where these have nothing of
    the architecture. Raises UnknownName for a stack without any profile.
    """
    heads = profile_heads()
    if stack is not None:
        stack = stack_name(stack)
        wanted: tuple[str, ...] = (stack,)
    else:
        wanted = DEFAULT_STACKS
    serving = bool(set(wanted) & set(SERVING_STACKS))
    best: tuple[tuple[float, ...], ProfileHead] | None = None
    for head in heads:
        own = head.stack in wanted
        if not own and not (serving and not head.gpu):
            continue
        rank = (*_rank(gpu, head, own), _default_order(head))
        if best is None or rank < best[0]:
            best = rank, head
    if best is None:
        raise NotSupported("no profile is installed")
    chosen = load_profile(best[1].name)
    if chosen.gpu == gpu.name:
        return chosen, []
    fitted_on = chosen.gpu or f"GPUs of all kinds ({chosen.name})"
    if not chosen.gpu and chosen.architecture != GENERIC:
        fitted_on = f"GPUs of architecture {chosen.architecture}"
    note = (
        f"{gpu.name} has no measured profile"
        + (f" for {stack}" if stack else "")
        + f": coefficients fitted on {fitted_on} with {chosen.stack} are used with its own "
        "datasheet figures, and the interval is wider for it"
    )
    return chosen, [note]


def _rank(gpu: GpuSpec, head: ProfileHead, own_stack: bool) -> tuple[float, ...]:
    """How far the evidence of a profile is from a GPU: (tier, distance), least is best."""
    same_family = head.architecture == gpu.architecture
    if head.gpu == gpu.name:
        return 0.0, 0.0
    if not head.gpu:
        if head.architecture == GENERIC:
            return 4.0, 0.0
        # Never for another architecture.
        return (2.0 if own_stack else 3.5, 0.0) if same_family else (math.inf, 0.0)
    distance = _distance(gpu, head.gpu, head.architecture)
    if same_family and _die(gpu.chip) and _die(gpu.chip) == _die_of(head.gpu):
        return 1.0, distance
    return (3.0 if same_family else 5.0), distance


def _default_order(head: ProfileHead) -> float:
    """Between equals: whole generations first, then the order of the stacks."""
    if head.has_generations:
        return -1.0
    return float(DEFAULT_STACKS.index(head.stack)) if head.stack in DEFAULT_STACKS else math.inf


def _die(chip: str) -> str:
    """The name of the die in a description of a chip, such as GH100; "" where there is none."""
    match = re.search(r"\b[A-Z]{2}[0-9]{3}\b", chip)
    return match.group() if match else ""


@lru_cache(maxsize=512)
def _die_of(gpu_name: str) -> str:
    from rtsim.catalog import load_gpu

    try:
        return _die(load_gpu(gpu_name).chip)
    except UnknownName:
        return ""


# A change of architecture counts like a factor e^2 in one datasheet figure.
_ARCHITECTURE_DISTANCE = 2.0


@lru_cache(maxsize=512)
def _facts(gpu_name: str) -> tuple[float, ...] | None:
    from rtsim.catalog import load_gpu

    try:
        return _log_facts(load_gpu(gpu_name))
    except UnknownName:
        return None


def _log_facts(gpu: GpuSpec) -> tuple[float, ...]:
    peak = gpu.peak_16_bit_flops_per_s or gpu.peak_fp32_flops_per_s
    return tuple(math.log(x) for x in (peak, gpu.hbm_bytes_per_s, gpu.sm_count * gpu.clock_hz))


def gpu_distance(gpu: GpuSpec, profile: Profile) -> float:
    """How unlike a GPU is to the one a profile was fitted on: 0 for the same, in log units."""
    return _distance(gpu, profile.gpu, profile.architecture)


def _distance(gpu: GpuSpec, other_name: str, architecture: str) -> float:
    if other_name == gpu.name:
        return 0.0
    other = _facts(other_name)
    if other is None:
        return math.inf
    distance = math.sqrt(sum((a - b) ** 2 for a, b in zip(_log_facts(gpu), other, strict=True)))
    if architecture != gpu.architecture:
        distance += _ARCHITECTURE_DISTANCE
    return distance + 1e-9  # never as good as the GPU itself


# Rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Formats:
    """Number formats of a run: activations and compute, weights, KV cache."""

    dtype: str
    kv_dtype: str
    weights: WeightFormat
    quantization: str


def peak_for(gpu: GpuSpec, dtype: str, notes: list[str]) -> float:
    """Dense peak FLOP rate for products in `dtype`; a note where the GPU computes otherwise.

    A GPU without fp8 or int4 units computes such formats in 16 bits, one without bf16 in fp16.
    """
    for candidate in dict.fromkeys((dtype, "fp16" if dtype == "bf16" else "bf16", "fp16", "fp32")):
        peak = gpu.peak_flops_per_s(candidate)
        if peak is not None:
            if candidate != dtype:
                notes.append(f"{gpu.name} states no {dtype} rate; computed at its {candidate} rate")
            return peak
    raise NotSupported(f"{gpu.name} states no rate that {dtype} could be computed at")


@dataclass(frozen=True)
class MachineRows:
    """The records behind a `step.Machine`: shape () each, (rows,) for gemm and collective."""

    device: NDArray[np.void]
    gemm: NDArray[np.void]
    prefill: NDArray[np.void]
    decode: NDArray[np.void]
    memory: NDArray[np.void]
    collective: NDArray[np.void]
    host: NDArray[np.void]

    def interpreted(self) -> step.Machine:
        """For interpreted kernels: plain Python numbers."""
        row = tables.as_row
        return step.Machine(
            row(self.device),
            tuple(row(r) for r in self.gemm),
            row(self.prefill),
            row(self.decode),
            row(self.memory),
            tuple(row(r) for r in self.collective),
            row(self.host),
        )

    def compiled(self, kernels: Any) -> Any:
        """For the compiled kernels: NumPy records."""
        return kernels.step.Machine(
            self.device[()],
            self.gemm,
            self.prefill[()],
            self.decode[()],
            self.memory[()],
            self.collective,
            self.host[()],
        )


def gemm_row(
    profile: Profile,
    gpu: GpuSpec,
    form: str,
    dtype: str = "bf16",
    *,
    variants: tuple[str, ...] = (),
    activation_copies: float = 1.0,
    notes: list[str] | None = None,
) -> NDArray[np.void]:
    """GEMM record, shape (): products in number format `form`, a dtype or a quantisation.

    dtype: of the activations around a quantised product. variants: sections of the profile to
    look into before those of the format and of formats like it. A GPU without the units of a
    format multiplies in `dtype`, with its weights stored as they are, and a note says so.
    Raises NotSupported for a format that is not modelled.
    """
    operands = operand_format(form, dtype)
    if operands is None:
        raise NotSupported(f"matrix products in {form} are not modelled")
    peak = peak_for(gpu, operands.math_dtype, notes if notes is not None else [])
    peak = sustained_flops_per_s(gpu, operands.math_dtype, peak)
    if operands.quantize_bytes and gpu.peak_flops_per_s(operands.math_dtype) is None:
        operands = replace(operands, a_bytes=dtype_bytes(dtype), quantize_bytes=0.0)
    return record(
        gemm.GEMM,
        peak_flops_per_s=peak,
        a_bytes=operands.a_bytes,
        b_bytes=operands.b_bytes,
        out_bytes=operands.out_bytes,
        quantize_bytes=operands.quantize_bytes,
        activation_copies=activation_copies,
        **profile.section("gemm", *variants, *gemm_variants(form, dtype)),
    )


def gemm_variants(form: str, dtype: str = "bf16") -> tuple[str, ...]:
    """Variants of the "gemm" section that serve a number format, best first."""
    return (*similar_formats(form), *similar_formats(dtype))


def attention_row(
    profile: Profile, gpu: GpuSpec, kind: str, dtype: str, kv_dtype: str
) -> NDArray[np.void]:
    """ATTENTION_PREFILL or ATTENTION_DECODE record, shape (), by `kind`, the section's name."""
    rows = {
        "attention_prefill": attention.ATTENTION_PREFILL,
        "attention_decode": attention.ATTENTION_DECODE,
    }
    return record(
        rows[kind],
        peak_flops_per_s=attention_peak_flops_per_s(gpu, dtype, kv_dtype),
        # Queries arrive, and outputs leave, in 16 bits also where the products are in fp8.
        query_element_bytes=max(2.0, dtype_bytes(_narrow(dtype))),
        kv_element_bytes=dtype_bytes(_narrow(kv_dtype)),
        **profile.section(kind, *attention_variants(dtype, kv_dtype)),
    )


def attention_variants(dtype: str, kv_dtype: str) -> tuple[str, ...]:
    """Variants of an attention section that serve a query and a cache format, best first.

    >>> attention_variants("bf16", "fp8")
    ('bf16_fp8', 'fp16_fp8', 'fp8', 'bf16', 'fp16')
    """
    queries, cache = _narrow(dtype), _narrow(kv_dtype)
    wide = similar_formats("bf16" if queries == "fp8" else queries)
    mixed = tuple(f"{name}_{cache}" for name in wide)
    if queries == "fp8":
        return ("fp8", *(f"{name}_fp8" for name in wide), *wide)
    return wide if cache in wide else (*mixed, cache, *wide)


def _narrow(dtype: str) -> str:
    """fp8 for every way to scale it."""
    return "fp8" if dtype.startswith("fp8") else dtype


def memory_bound_row(profile: Profile, gpu: GpuSpec) -> NDArray[np.void]:
    """MEMORY_BOUND record, shape ()."""
    facts = {"threads_per_sm": threads_per_sm(gpu.compute_capability)}
    coefficients = profile.section("memory_bound", "general")
    return record(memory_bound.MEMORY_BOUND, **{**coefficients, **facts})


def collective_row(
    profile: Profile, gpu: GpuSpec, *, own: bool, topology: str = "", eager: bool = False
) -> NDArray[np.void]:
    """COLLECTIVE record, shape (): of the stack's own all-reduce, or of the library.

    topology: of the machine, as in `device_facts.link_facts`. eager: called one by one from the
    host, with the cost of that in the time; in a whole model the host track holds it.
    """
    traits = profile.traits
    links = vars(link_facts_of(gpu, topology))
    if links["link_domain"] == _PAIR and not traits.pair_links:
        links = {**links, "link_domain": 1.0}
    switched = traits.in_switch_reduction if own else traits.library_in_switch_reduction
    return record(
        collective.COLLECTIVE,
        **{**links, "multicast": links["multicast"] if switched else 0.0},
        staged=float(eager),
        direct_limit_bytes=traits.direct_all_reduce_bytes if own else 0.0,
        **profile.section("collective", *collective_variants(own)),
    )


_PAIR = 2.0  # GPUs of an NVLink bridge


def collective_variants(own: bool) -> tuple[str, ...]:
    """Variants of the "collective" section for the stack's own kernels or the library's."""
    return ("tensor", "nccl") if own else ("nccl", "tensor")


def machine_rows(
    profile: Profile, gpu: GpuSpec, formats: Formats, notes: list[str] | None = None
) -> MachineRows:
    """Resolve a profile for a GPU and number formats: facts and coefficients in one row each.

    The order of the gemm and collective rows is that of `operators.GEMM_*`, `COLLECTIVE_*`.
    Appends to `notes` what had to be assumed.
    """
    dtype, kv_dtype = formats.dtype, formats.kv_dtype
    weights = dtype if formats.quantization == "none" else formats.quantization
    library = collective_row(profile, gpu, own=False)
    return MachineRows(
        device=device_row(gpu),
        gemm=np.array(
            [
                gemm_row(profile, gpu, weights, dtype, notes=notes),
                gemm_row(profile, gpu, dtype, dtype, notes=notes),
                gemm_row(profile, gpu, dtype, dtype, variants=("batched",)),
            ]
        ),
        prefill=attention_row(profile, gpu, "attention_prefill", dtype, kv_dtype),
        decode=attention_row(profile, gpu, "attention_decode", dtype, kv_dtype),
        memory=memory_bound_row(profile, gpu),
        collective=np.array([collective_row(profile, gpu, own=True), library, library]),
        host=record(step.HOST, **profile.section("host")),
    )
