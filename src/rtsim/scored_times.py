"""Metrics of the rows of scores: measured, denoised, or idealized on one GPU and stack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rtsim import units
from rtsim.curves import Curve
from rtsim.errors import RtsimError, nearest_names
from rtsim.gpus_needed import system_on
from rtsim.scores import ModelMap, Score, Stand
from rtsim.study import Study
from rtsim.system import System

Metric = Literal[
    "raw_runtime", "denoised_runtime", "idealized_runtime", "idealized_cost", "idealized_energy"
]
METRICS: tuple[Metric, ...] = get_args(Metric)
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Marked:
    """A model without a metric, or with a remark on it, and why."""

    model: str
    reason: str
    left_out: bool


class TimedModels:
    """The systems that the models of a table stand for."""

    def __init__(
        self, models: Sequence[str], asked: ModelMap, gpu: str, stack: str | None,
        study: Study | None,
    ) -> None:  # fmt: skip
        self.systems: dict[str, System] = {}
        self.marks: list[Marked] = []
        self.gpu = self.stack = ""
        for model in models:
            stand = asked.stand_for(model)
            if stand.arch is None:
                self.marks.append(Marked(model, stand.reason, True))
                continue
            wanted = stand.num_gpus
            if wanted is None and study is not None:
                wanted = study.gpus_for_name(stand.arch, gpu)
            try:
                chosen = system_on(stand.arch, gpu, stack, num_gpus=wanted)
            except RtsimError as error:
                self.marks.append(Marked(model, str(error), True))
                continue
            self.systems[model] = chosen
            self.gpu, self.stack = chosen.gpu.name, chosen.profile.stack

    def runtimes(self, model: str, scores: Sequence[Score]) -> np.ndarray | None:
        """Idealized seconds of some rows of a model."""
        chosen = self.systems.get(model)
        if chosen is None:
            return None
        prompts = np.array([max(1.0, s.prompt_tokens) for s in scores])
        outputs = np.array([max(1.0, s.output_tokens) for s in scores])
        # Lengths are means over requests, and the time is nearly linear between whole tokens.
        low = np.floor(outputs)
        one = np.ones(len(scores))
        prompts = np.rint(prompts)
        at_low = chosen.runtimes(one, prompts, low).sum(axis=(1, 2))
        at_high = chosen.runtimes(one, prompts, low + 1.0).sum(axis=(1, 2))
        return np.asarray(at_low + (outputs - low) * (at_high - at_low))

    def factor(self, model: str, metric: str) -> float:
        """From seconds to the unit of a metric; NaN where the GPU states no price or power."""
        chosen = self.systems[model]
        gpus = chosen.parallelism.num_gpus
        if metric == "idealized_cost":
            price = chosen.gpu.price
            return math.nan if price is None else gpus * price.usd_per_hour / _SECONDS_PER_HOUR
        if metric == "idealized_energy":
            return math.nan if chosen.gpu.power_w is None else gpus * chosen.gpu.power_w
        return 1.0


def metric_of_rows(
    metric: str, scores: Sequence[Score], asked: ModelMap, timed: TimedModels | None,
    curves: Mapping[str, Curve],
) -> tuple[dict[tuple[str, str], float], list[Marked]]:  # fmt: skip
    """The metric of each (scenario, model), and remarks on models."""
    by_model: dict[str, list[Score]] = {}
    for score in scores:
        by_model.setdefault(score.model, []).append(score)
    values: dict[tuple[str, str], float] = {}
    marks: list[Marked] = []
    for model, rows in by_model.items():
        if metric == "raw_runtime":
            values |= {s.key: s.runtime_s for s in rows if s.runtime_s is not None}
            if all(s.runtime_s is None for s in rows):
                marks.append(Marked(model, "no measured runtime", True))
        elif metric == "denoised_runtime":
            name = asked.denoised_name(model, curves)
            if name is None:
                near = nearest_names(model, curves)
                hint = f"; nearest: {near[0]}" if near else ""
                marks.append(Marked(model, f"no denoised runtime of it{hint}", True))
                continue
            values |= {
                s.key: curves[name].runtime_s(s.prompt_tokens, s.output_tokens) for s in rows
            }
        elif timed is not None:
            runtimes = timed.runtimes(model, rows)
            if runtimes is None:
                continue
            factor = timed.factor(model, metric)
            if math.isnan(factor):
                marks.append(Marked(model, f"{timed.gpu} states no figure for {metric}", True))
                continue
            values |= {s.key: float(t) * factor for s, t in zip(rows, runtimes, strict=True)}
            marks += _remarks(model, rows, timed.systems[model], asked.stand_for(model))
    if timed is not None and metric.startswith("idealized"):
        marks += timed.marks
    return values, marks


def _remarks(model: str, rows: Sequence[Score], chosen: System, stand: Stand) -> list[Marked]:
    marks = []
    if stand.mapped:
        gpus = chosen.parallelism.num_gpus
        marks.append(
            Marked(model, f"taken as {chosen.model.name} on {units.counted(gpus, 'GPU')}", False)
        )
    longest = max(s.prompt_tokens + s.output_tokens for s in rows)
    if chosen.model.position == "learned" and longest > chosen.model.max_positions:
        marks.append(
            Marked(
                model,
                f"prompts of up to {longest:.0f} tokens, timed as if {chosen.model.name} had "
                f"more than its {chosen.model.max_positions} positions",
                False,
            )
        )
    return marks
