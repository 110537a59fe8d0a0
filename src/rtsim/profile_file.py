"""Write a profile as TOML that reads well: each coefficient with its unit and meaning.

The reader is `profile.load_profile`. A file is written whole or not at all, so that a failed fit
never damages an older profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
from numpy.typing import NDArray
from rtsim_kernels.tables import Coefficient

from rtsim.operators import StackTraits
from rtsim.output import write_text
from rtsim.profile import DECLARED, GROUPS, Profile

_DIGITS = 5  # significant: an order more than any coefficient is known to


def rounded(value: float, digits: int = _DIGITS) -> float:
    """`value` to `digits` significant digits."""
    return float(f"{value:.{digits}g}")


@dataclass(frozen=True)
class Uncertainty:
    """How well a fit knows its coefficients: covariance of ln(value), and which are pinned down.

    coefficients: "section.coefficient" of each row of the covariance.
    """

    label: str
    coefficients: Sequence[str]
    pinned: Sequence[bool]
    covariance: NDArray[Any]


def profile_toml(
    profile: Profile,
    covariance: NDArray[Any] | None = None,
    freedoms: Sequence[str] = (),
    pinned: Sequence[bool] = (),
    *,
    kernels: Sequence[Uncertainty] = (),
) -> str:
    """The text of a profile file.

    freedoms: "section.coefficient" of each row of `covariance`, which is that of ln(value);
    pinned: whether the rows, rather than the prior, set it. These are of the stack-level fit;
    `kernels` are those of the kernel-level ones, each on its own.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment("Fitted by rtsim; see [provenance]. Do not edit by hand."))
    document["name"] = profile.name
    document["gpu"] = profile.gpu
    document["architecture"] = profile.architecture
    document["fitted_shapes"] = tomlkit.array(str([list(s) for s in profile.fitted_shapes]))
    document["fitted_shapes"].comment("layers, hidden size, heads, tp")
    if profile.fitted_batches:
        document["fitted_batches"] = list(profile.fitted_batches)
        document["fitted_batches"].comment("least and most sequences of those")

    stack = tomlkit.table()
    stack["name"] = profile.stack
    for trait in fields(StackTraits):
        stack[trait.name] = getattr(profile.traits, trait.name)
    document["stack"] = stack

    for kind, declared in DECLARED.items():
        for section, values in profile.coefficients.items():
            if section == kind:
                document[kind] = _coefficients(declared, values)
            elif section.startswith(f"{kind}."):
                parent = document.setdefault(kind, tomlkit.table(is_super_table=True))
                parent[section.partition(".")[2]] = _coefficients(declared, values)

    if profile.releases:
        releases = tomlkit.table()
        releases.add(
            tomlkit.comment("Times of serving runs of a release over those of the others.")
        )
        for version, fracs in profile.releases.items():
            entry = tomlkit.inline_table()
            entry.update({name: rounded(value, 3) for name, value in fracs.items()})
            releases[version] = entry
        document["releases"] = releases

    error = tomlkit.table()
    error.add(tomlkit.comment("Deviations of ln(measured / predicted) by what a time is owed to."))
    error["row"] = rounded(profile.sigma_row, 3)
    for name, sigmas in (
        ("seen", profile.sigma_seen),
        ("unseen", profile.sigma_unseen),
        ("transfer", profile.transfer_sigma),
    ):
        table = tomlkit.table()
        for group in GROUPS:
            table[group] = rounded(sigmas[group], 3)
        error[name] = table
    if profile.section_sigma:
        sections = tomlkit.table()
        for section, sigma in profile.section_sigma.items():
            sections[section] = rounded(sigma, 3)
        error["section"] = sections
    document["error"] = error

    uncertainty = tomlkit.table()
    uncertainty.add(tomlkit.comment("Covariance of ln(value) of the stack-level coefficients."))
    uncertainty["coefficients"] = list(freedoms)
    uncertainty["pinned"] = [bool(p) for p in pinned]
    uncertainty["covariance"] = (
        [] if covariance is None else [[rounded(v, 3) for v in row] for row in covariance]
    )
    for kernel in kernels:
        uncertainty[kernel.label] = _kernel_uncertainty(kernel)
    document["uncertainty"] = uncertainty

    provenance = tomlkit.table()
    for name, value in profile.provenance.items():
        provenance[name] = value
    document["provenance"] = provenance
    return tomlkit.dumps(document)


def _kernel_uncertainty(kernel: Uncertainty) -> Any:
    """Compact, for speed: reading a profile parses it all."""
    table = tomlkit.table()
    table.add(tomlkit.comment("Covariance: lower triangle, row by row, in the order of names."))
    table["coefficients"] = " ".join(kernel.coefficients)
    known = zip(kernel.coefficients, kernel.pinned, strict=True)
    table["not_pinned"] = " ".join(name for name, pinned in known if not pinned)
    lower = kernel.covariance[np.tril_indices(len(kernel.covariance))]
    table["covariance"] = " ".join(f"{rounded(v, 2):g}" for v in lower.tolist())
    return table


def uncertainties(path: Path) -> list[Uncertainty]:
    """What `profile_toml` was told of kernels, from the file that it made."""
    found = []
    for label, told in tomlkit.parse(path.read_text(encoding="utf-8"))["uncertainty"].items():
        if not isinstance(told, dict):
            continue
        names = str(told["coefficients"]).split()
        free = set(str(told["not_pinned"]).split())
        matrix = np.zeros((len(names), len(names)))
        rows, columns = np.tril_indices(len(names))
        matrix[rows, columns] = matrix[columns, rows] = [
            float(v) for v in str(told["covariance"]).split()
        ]
        found.append(Uncertainty(label, names, [name not in free for name in names], matrix))
    return found


def _coefficients(declared: tuple[Coefficient, ...], values: Any) -> Any:
    table = tomlkit.table()
    for coefficient in declared:
        if coefficient.name in values:
            entry = tomlkit.item(rounded(values[coefficient.name]))
            entry.comment(f"{coefficient.unit}: {coefficient.meaning}")
            table[coefficient.name] = entry
    return table


def write_profile(path: Path, text: str) -> None:
    """Write beside, then rename. Raises OutputError."""
    write_text(path, text)
