"""Times an OpenAI-compatible endpoint over a grid of sizes, for `rtsim.denoise`."""

from __future__ import annotations

from rtsim.measure_api.collect import Collected, Plan, collect
from rtsim.measure_api.endpoint import Endpoint

__all__ = ["Collected", "Endpoint", "Plan", "collect"]
