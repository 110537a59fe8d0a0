"""Profiles: fitted coefficients of one software stack on one GPU, and how they are read.

A profile file holds, for each operator kind (and number format where it matters), the
coefficients that its kernel module declares, the stack's traits, the scatter of the errors, and
where all of it came from. A GPU without a profile takes the nearest one: coefficients are
dimensionless or in device units, so its own datasheet facts go into the same formulas, and the
interval widens by what such a transfer has cost on GPUs where it could be checked.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import (
    attention,
    collective,
    gemm,
    memory_bound,
    mixed,
    mla,
    moe,
    scan,
    step,
    tables,
)

from rtsim.errors import DataError, UnknownName
from rtsim.operators import TRAIT_VALUES, StackTraits

Array = NDArray[np.float64]

# Coefficient sections of a profile and the kernel module's declaration of each. Sections with
# a "." after the name are per number format or per implementation.
# "gemm.fp8@0.19.0": what a section was in a release whose kernels are not those of the newest one.
RELEASE_MARK = "@"
DECLARED: dict[str, tuple[tables.Coefficient, ...]] = {
    "host": step.HOST_COEFFICIENTS,
    "serving": mixed.ENGINE_COEFFICIENTS,
    "gemm": gemm.GEMM_COEFFICIENTS,
    "attention_prefill": attention.ATTENTION_PREFILL_COEFFICIENTS,
    "attention_decode": attention.ATTENTION_DECODE_COEFFICIENTS,
    "memory_bound": memory_bound.MEMORY_BOUND_COEFFICIENTS,
    "collective": collective.COLLECTIVE_COEFFICIENTS,
    "moe": moe.MOE_COEFFICIENTS,
    "mla_prefill": mla.MLA_PREFILL_COEFFICIENTS,
    "mla_decode": mla.MLA_DECODE_COEFFICIENTS,
    "scan": scan.SCAN_COEFFICIENTS,
}
# Scatter of ln(error) by what a time is owed to, the groups of `generation.owed`.
# In the order of the operator kinds of `tables`, then the host.
GROUPS = (
    "gemm", "scores", "values", "attention", "memory_bound", "collective", "moe", "mla", "scan",
    "host", "prompt_host",
)  # fmt: skip
# Of groups that a profile says nothing about, since no rows of such operators were fitted:
# what such kernels scatter elsewhere, and a guess for recurrent mixers, which nobody measured.
UNFITTED_SIGMA = {"moe": 0.3, "mla": 0.3, "scan": 0.4}


def for_all_groups(sigmas: Mapping[str, float]) -> dict[str, float]:
    """`sigmas` in the order of GROUPS, with what stands for groups without fitted rows."""
    known = {**UNFITTED_SIGMA, **sigmas}
    return {group: known[group] for group in GROUPS if group in known}


# 90 % of a normal distribution lies within this many deviations.
DEVIATIONS_90 = 1.6449


def interval_half_width(owed_s: Array, sigmas: Array, row_sigma: float | Array) -> Array:
    """Half-width of the 90 % interval in ln(seconds).

    owed_s: (..., groups) seconds owed to each of GROUPS; sigmas: (groups,) deviations of
    ln(error). Errors within a group go together, those of groups are independent, and a row
    scatters by `row_sigma` on its own.
    """
    spread = ((owed_s * sigmas) ** 2).sum(axis=-1) / owed_s.sum(axis=-1) ** 2
    return np.asarray(DEVIATIONS_90 * np.sqrt(spread + row_sigma**2))


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
    releases: version of the stack -> "tpot_frac", "ttft_frac": times of serving runs of that
        release over those of the others. What a release changed, speculative decoding too.
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
    releases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sigma_seen", "sigma_unseen", "transfer_sigma"):
            object.__setattr__(self, name, for_all_groups(getattr(self, name)))

    def section(self, kind: str, *variants: str) -> dict[str, float]:
        """Coefficients of `kind`: of the first fitted of `variants`, else of any, else priors."""
        known: dict[Any, dict[str, float]] = self.__dict__.setdefault("_sections", {})
        found = known.get((kind, variants))
        if found is None:
            values = {c.name: c.prior for c in DECLARED[kind]}
            fitted = self.coefficients.get(self.section_name(kind, *variants), {})
            found = known[kind, variants] = {**values, **fitted}
        return dict(found)

    def section_name(self, kind: str, *variants: str) -> str:
        """The section that `section` reads; "" where only priors are there."""
        names = [f"{kind}.{variant}" for variant in variants] + [kind]
        names += [
            name
            for name in self.coefficients
            if name.startswith(f"{kind}.") and RELEASE_MARK not in name
        ]
        return next((name for name in names if name in self.coefficients), "")

    def kernel_releases(self) -> dict[str, tuple[str, ...]]:
        """Older releases of the stack with kernels of their own -> the sections they have."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.coefficients:
            section, mark, release = name.partition(RELEASE_MARK)
            if mark:
                found[release] = (*found.get(release, ()), section)
        return found

    def of_release(self, release: str) -> Profile:
        """This profile with the kernels of an older release, where it has any.

        Raises UnknownName.
        """
        known = self.kernel_releases()
        if release not in known:
            raise UnknownName(f"release of {self.stack} in profile {self.name}", release, known)
        own = {s: f"{s}{RELEASE_MARK}{release}" for s in known[release]}
        sigmas = {s: self.section_sigma[n] for s, n in own.items() if n in self.section_sigma}
        return replace(
            self,
            coefficients={**self.coefficients, **{s: self.coefficients[n] for s, n in own.items()}},
            section_sigma={**self.section_sigma, **sigmas},
        )

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


def packaged_files() -> Iterable[Any]:
    """Files of the packaged profiles."""
    folder = resources.files("rtsim") / "data" / "profiles"
    return (entry for entry in folder.iterdir() if entry.name.endswith(".toml"))


@lru_cache(maxsize=1)
def profile_names() -> tuple[str, ...]:
    """Names of the packaged profiles."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in packaged_files()))


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
            releases=_read_releases(data.get("releases", {}), file),
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


_RELEASE_FRACS = ("tpot_frac", "ttft_frac")


def _read_releases(releases: Any, file: str) -> dict[str, dict[str, float]]:
    return {
        version: {
            name: _number(fracs[name], f"[releases] {version} {name}", file, 0.1, 10.0)
            for name in _RELEASE_FRACS
        }
        for version, fracs in releases.items()
    }


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
    if isinstance(sigmas, dict):
        sigmas = for_all_groups(sigmas)
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
