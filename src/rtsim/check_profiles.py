"""Lint of the packaged profiles: names, provenance, coefficients within their declared bounds.

Beside `check_data`, which lints models and GPUs without loading NumPy.
"""

from __future__ import annotations

from rtsim.catalog import load_gpu
from rtsim.check_data import Finding
from rtsim.errors import RtsimError
from rtsim.profile import DECLARED, GROUPS, Profile, load_profile, profile_names

_REQUIRED = ("kind", "source", "date", "recipe", "tables", "rows")


def check_profiles() -> list[Finding]:
    """What is wrong with the packaged profiles, nothing if all is well."""
    findings = []
    for name in profile_names():
        file = f"profiles/{name}.toml"
        try:
            profile = load_profile(name)
        except RtsimError as error:
            findings.append(Finding(file, str(error)))
            continue
        findings += [Finding(file, problem) for problem in problems(profile, name)]
    return findings


def problems(profile: Profile, name: str) -> list[str]:
    """What is wrong with one profile that is packaged under `name`."""
    found = []
    if profile.name != name:
        found.append(f"name = {profile.name!r} differs from the file name")
    found += [f"provenance lacks {key}" for key in _REQUIRED if key not in profile.provenance]
    if profile.gpu:
        try:
            gpu = load_gpu(profile.gpu)
        except RtsimError as error:
            found.append(f"gpu: {error}")
        else:
            if gpu.name != profile.gpu:
                found.append(f"gpu = {profile.gpu!r}: the catalogue's name is {gpu.name!r}")
            if gpu.architecture != profile.architecture:
                found.append(f"architecture = {profile.architecture!r}, but {gpu.architecture!r}")
    for section, values in profile.coefficients.items():
        declared = {c.name: c for c in DECLARED[section.partition(".")[0]]}
        for key, value in values.items():
            coefficient = declared[key]
            if not 0.999 * coefficient.lower <= value <= 1.001 * coefficient.upper:
                found.append(
                    f"[{section}] {key} = {value:g} is outside "
                    f"{coefficient.lower:g} to {coefficient.upper:g} {coefficient.unit}"
                )
    for label, sigmas in (
        ("seen", profile.sigma_seen),
        ("unseen", profile.sigma_unseen),
        ("transfer", profile.transfer_sigma),
    ):
        for group in GROUPS:
            if group not in sigmas:
                found.append(f"[error.{label}] lacks {group}")
    return found
