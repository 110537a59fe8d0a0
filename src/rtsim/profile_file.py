"""Write a profile as TOML that reads well: each coefficient with its unit and meaning.

The reader is `profile.load_profile`. A file is written whole or not at all, so that a failed fit
never damages an older profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

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


def profile_toml(
    profile: Profile, covariance: NDArray[Any], freedoms: Sequence[str], pinned: Sequence[bool]
) -> str:
    """The text of a profile file.

    freedoms: "section.coefficient" of each row of `covariance`, which is that of ln(value);
    pinned: whether the rows, rather than the prior, set it.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment("Fitted by rtsim; see [provenance]. Do not edit by hand."))
    document["name"] = profile.name
    document["gpu"] = profile.gpu
    document["architecture"] = profile.architecture
    document["fitted_shapes"] = tomlkit.array(str([list(s) for s in profile.fitted_shapes]))
    document["fitted_shapes"].comment("layers, hidden size, heads, tp")

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
    document["error"] = error

    uncertainty = tomlkit.table()
    uncertainty.add(tomlkit.comment("Covariance of ln(value) of the stack-level coefficients."))
    uncertainty["coefficients"] = list(freedoms)
    uncertainty["pinned"] = [bool(p) for p in pinned]
    uncertainty["covariance"] = [[rounded(v, 3) for v in row] for row in covariance]
    document["uncertainty"] = uncertainty

    provenance = tomlkit.table()
    for name, value in profile.provenance.items():
        provenance[name] = value
    document["provenance"] = provenance
    return tomlkit.dumps(document)


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
