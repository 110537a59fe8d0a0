"""Where a number comes from: every data file says kind, source and date."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from rtsim.specs.base import Spec, UsdPerHour

Confidence = Literal["high", "medium", "low"]

_ENTRY = re.compile(r"(.*?) \((.*)\)")
_VERSIONS = re.compile(r"([\w-]+) (\d[^, ]*(?:, \d[^, ]*)*)")


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

    @property
    def source_and_date(self) -> str:
        """Both in a line; the date once, where the source names it."""
        return self.source if self.date in self.source else f"{self.source} ({self.date})"


def condensed(source: str) -> str:
    """Sources that are listed one by one, such as a profile's, with each named once.

    >>> condensed("a/b (vllm 1.0, 1.1); c/d; a/b (vllm 1.1, 2.0); a/b (vllm, whole blocks); c/d")
    'a/b (vllm 1.0, 1.1, 2.0; vllm, whole blocks); c/d'
    """
    found: dict[str, dict[str, list[str]]] = {}
    for entry in source.split("; "):
        match = _ENTRY.fullmatch(entry)
        name, detail = match.groups() if match else (entry, "")
        details = found.setdefault(name, {})
        versions = _VERSIONS.fullmatch(detail)
        if versions:
            known = details.setdefault(versions[1], [])
            known += [v for v in versions[2].split(", ") if v not in known]
        elif detail:
            details.setdefault(detail, [])
    return "; ".join(
        name + (f" ({'; '.join(map(_with_versions, details.items()))})" if details else "")
        for name, details in found.items()
    )


def _with_versions(detail: tuple[str, list[str]]) -> str:
    name, versions = detail
    return " ".join(filter(None, (name, ", ".join(versions))))
