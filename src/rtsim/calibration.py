"""What a calibration found: every coefficient, the errors of each section, the profile itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtsim.fitting.sort_rows import (
    FileReport,
    ImpossibleRow,
)
from rtsim.profile import Profile
from rtsim.profile_file import write_profile


@dataclass(frozen=True)
class CoefficientReport:
    """One fitted coefficient. `deviation`: of ln(value), after the fit."""

    name: str
    value: float
    unit: str
    meaning: str
    prior: float
    pinned: bool
    deviation: float


@dataclass(frozen=True)
class SectionReport:
    """One fitted section. Errors are cross-validated, NaN where rows are too few for it."""

    section: str
    rows: int
    fitted_rows: int
    mape: float
    median_ape: float
    sigma: float
    coefficients: tuple[CoefficientReport, ...]
    note: str = ""


@dataclass(frozen=True)
class Calibration:
    """A fitted profile, its file's text, and how it came about."""

    profile: Profile
    text: str
    files: tuple[FileReport, ...]
    sections: tuple[SectionReport, ...]
    impossible: tuple[ImpossibleRow, ...]
    notes: tuple[str, ...]

    def write(self, path: str | Path) -> None:
        """Write the profile file, whole or not at all. Raises OutputError."""
        write_profile(Path(path), self.text)
