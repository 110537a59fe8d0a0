"""Where a number comes from: every data file says kind, source and date."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rtsim.specs.base import Spec, UsdPerHour

Confidence = Literal["high", "medium", "low"]


class Provenance(Spec):
    """kind: datasheet | measured | fitted | inferred | published | stated (by the user).

    `source` names the paper, sheet or file; `date` is when the source was made or read (ISO,
    year alone is fine).
    """

    kind: Literal["datasheet", "measured", "fitted", "inferred", "published", "stated"]
    source: str = Field(min_length=1)
    date: str = Field(min_length=4, pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")
    confidence: Confidence = "medium"
    notes: str = ""


class PriceSpec(Spec):
    """A single on-demand list price of one GPU, and where and when it was seen.

    `date` may be "undated" where the source has none.
    """

    usd_per_hour: UsdPerHour
    source: str = Field(min_length=1)
    date: str = Field(pattern=r"^(\d{4}(-\d{2}(-\d{2})?)?|undated)$")
    confidence: Confidence = "medium"
