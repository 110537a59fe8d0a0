"""Service levels: how long users may wait for the first token, and for each further one.

Named levels are the latency limits of MLPerf Inference, which the submitters of a public benchmark
agreed on, so that they stand for what services of these kinds are held to. MLPerf asks that 99 % of
the requests meet them (`SHARE`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtsim.errors import SpecError, UnknownName

SHARE = 0.99  # of the requests that a level asks for: MLPerf's 99th percentile


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """Longest time to first token and per output token, in seconds; infinite: no limit."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf
    name: str = ""
    source: str = ""


LEVELS = {
    level.name: level
    for level in (
        ServiceLevel(
            0.450, 0.040, "interactive", "MLPerf Inference v5.0, Llama 2 70B Interactive (2025-04)"
        ),
        ServiceLevel(2.0, 0.200, "chat", "MLPerf Inference v4.0, Llama 2 70B Server (2024-03)"),
        ServiceLevel(
            math.inf, math.inf, "batch", "MLPerf Inference, Offline scenario: no limit on latency"
        ),
    )
}


def service_level(
    name: str | None = None, ttft_s: float | None = None, tpot_s: float | None = None
) -> ServiceLevel:
    """The level of this name, or of these limits; SpecError or UnknownName.

    >>> service_level("chat").tpot_s, service_level(ttft_s=0.5).tpot_s
    (0.2, inf)
    """
    for field, limit in (("ttft", ttft_s), ("tpot", tpot_s)):
        if limit is not None and not limit > 0.0:
            raise SpecError(field, limit, "must be a time above zero, such as 500ms")
    if name is None:
        if ttft_s is None and tpot_s is None:
            names = ", ".join(LEVELS)
            raise SpecError.of_missing(
                "level", f"give --ttft, --tpot or both, or --level ({names})"
            )
        return ServiceLevel(ttft_s or math.inf, tpot_s or math.inf)
    if ttft_s is not None or tpot_s is not None:
        raise SpecError("level", name, "has limits of its own: give it, or --ttft and --tpot")
    if name not in LEVELS:
        raise UnknownName("level", name, LEVELS)
    return LEVELS[name]
