"""Efficiency against capability: benchmark scores joined with any efficiency metric.

A table of scores has a row per scenario and model: mean prompt and output tokens, a measured mean
runtime, and one or more scores. Per row the metric is

    raw_runtime          the measured column `mean_runtime_s`
    denoised_runtime     from denoised curves (`rtsim.denoise`) at the row's lengths
    idealized_runtime    rtsim's prediction at the row's lengths, on one GPU and stack for all
    idealized_cost       that x GPUs x price; idealized_energy: that x GPUs x power

The frontier is found in each scenario, and over all: there every model is averaged over the
scenarios that the compared models share. Models that rtsim does not know are kept and marked; a
mapping file says what they stand for. Source: Narayanan et al., NeurIPS 2023, section 5.

Ignored: batching and caching of the API. Prompts longer than a model has learned positions are
timed as if it had them, and the model is marked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rtsim import units
from rtsim.curves import Curve
from rtsim.errors import RtsimError, SpecError, nearest_names
from rtsim.gpus_needed import system_on
from rtsim.pareto import dominators, kendall_tau, swapped
from rtsim.predict import System
from rtsim.scores import ModelMap, Score, Stand, read_scores
from rtsim.study import Study

Metric = Literal[
    "raw_runtime", "denoised_runtime", "idealized_runtime", "idealized_cost", "idealized_energy"
]
METRICS: tuple[Metric, ...] = get_args(Metric)
UNITS = {
    "raw_runtime": "s", "denoised_runtime": "s", "idealized_runtime": "s",
    "idealized_cost": "USD", "idealized_energy": "J",
}  # fmt: skip
OVERALL = "all scenarios"
# A model takes part in the overall comparison when it has this share of the scenarios.
_PRESENT_FRAC = 0.8
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Point:
    """One model in one scenario. dominated_by: no worse in both metrics, better in one."""

    model: str
    x: float
    y: float
    dominated_by: tuple[str, ...] = ()

    @property
    def on_frontier(self) -> bool:
        """No model is better in one and no worse in the other."""
        return not self.dominated_by


@dataclass(frozen=True, slots=True)
class Panel:
    """The points of one scenario, or of all, under one metric; cheapest first."""

    scenario: str
    x: str
    y: str
    points: tuple[Point, ...]

    @property
    def frontier(self) -> tuple[str, ...]:
        """Models on the frontier, cheapest first."""
        return tuple(point.model for point in self.points if point.on_frontier)


@dataclass(frozen=True, slots=True)
class Marked:
    """A model without a metric, or with a remark on it, and why."""

    model: str
    reason: str
    left_out: bool


@dataclass(frozen=True, slots=True)
class OrderChange:
    """How the order of models over all scenarios differs between two metrics."""

    first: str
    second: str
    kendall_tau: float
    swapped: tuple[tuple[str, str], ...]  # faster under the first, slower under the second
    gained: tuple[str, ...]  # on the frontier under the second only
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricView:
    """One metric: the overall panel, a panel per scenario, and the models without it."""

    metric: str
    overall: Panel
    scenarios: tuple[Panel, ...]
    marked: tuple[Marked, ...]
    shared_scenarios: int


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Scores against one or more metrics, and where these disagree."""

    file: str
    score: str
    views: tuple[MetricView, ...]
    changes: tuple[OrderChange, ...]
    unusable_rows: tuple[tuple[int, str], ...]
    gpu: str
    stack: str


def tradeoff(
    path: str | Path,
    xs: Sequence[str],
    y: str = "exact_match",
    *,
    gpu: str = "a100",
    stack: str | None = None,
    study: Study | None = None,
    curves: Mapping[str, Curve] | None = None,
    model_map: ModelMap | None = None,
) -> Tradeoff:
    """Join the scores of `path` with the metrics `xs`.

    study: how many GPUs each model takes; others take the fewest that hold them. curves: denoised
    runtimes by model, for denoised_runtime. model_map: what unknown models stand for. Each view
    holds every row that has its metric; the orders of two metrics are compared on the rows that
    have them all. Raises SpecError for an unknown metric, DataError for a table without usable
    rows or without the score.
    """
    for x in xs:
        if x not in METRICS:
            raise SpecError(
                "x", x, f"must be one of {', '.join(METRICS)}", nearest=nearest_names(x, METRICS)
            )
    if not xs:
        raise SpecError("x", "", f"must be one of {', '.join(METRICS)}")
    if "denoised_runtime" in xs and not curves:
        raise SpecError("denoised", "", "denoised_runtime needs a table of denoised runtimes")
    table = read_scores(path, y)
    asked = model_map or ModelMap({})
    models = list(dict.fromkeys(score.model for score in table.scores))
    timed = _Timed(models, asked, gpu, stack, study) if any(
        x.startswith("idealized") for x in xs
    ) else None  # fmt: skip
    joined = {x: _join(x, table.scores, asked, timed, curves or {}) for x in xs}
    views = {x: _view(x, y, table.scores, *joined[x]) for x in xs}
    for x, view in views.items():
        if not view.scenarios:
            reasons = [mark.reason for mark in view.marked if mark.left_out]
            raise SpecError("x", x, f"no row has it: {reasons[0] if reasons else 'no value'}")
    # Orders are compared on equal terms: on the rows that have every metric.
    common = set.intersection(*(set(values) for values, _ in joined.values()))
    shared = [score for score in table.scores if score.key in common]
    equal = {x: _view(x, y, shared, *joined[x]) for x in xs}
    changes = [
        _change(equal[a], equal[b]) for i, a in enumerate(views) for b in list(views)[i + 1 :]
    ]
    return Tradeoff(
        str(path), y, tuple(views.values()), tuple(changes), table.unusable,
        "" if timed is None else timed.gpu, "" if timed is None else timed.stack,
    )  # fmt: skip


class _Timed:
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


def _join(
    metric: str, scores: Sequence[Score], asked: ModelMap, timed: _Timed | None,
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


def _view(
    metric: str, y: str, scores: Sequence[Score], values: Mapping[tuple[str, str], float],
    marks: Sequence[Marked],
) -> MetricView:  # fmt: skip
    by_scenario: dict[str, dict[str, tuple[float, float]]] = {}
    for score in scores:
        if score.key not in values:
            continue
        by_scenario.setdefault(score.scenario, {})[score.model] = (values[score.key], score.score)
    panels = [_panel(name, metric, y, points) for name, points in by_scenario.items()]
    count: dict[str, int] = {}
    for points in by_scenario.values():
        for model in points:
            count[model] = count.get(model, 0) + 1
    most = max(count.values(), default=0)
    members = [model for model, n in count.items() if n >= _PRESENT_FRAC * most]
    shared = [points for points in by_scenario.values() if all(m in points for m in members)]
    overall = {
        model: (
            float(np.mean([points[model][0] for points in shared])),
            float(np.mean([points[model][1] for points in shared])),
        )
        for model in members
    } if shared else {}  # fmt: skip
    rest = [
        Marked(
            model, f"in {n} of {len(by_scenario)} scenarios: not in the overall comparison", False
        )
        for model, n in count.items()
        if model not in members
    ]
    return MetricView(
        metric, _panel(OVERALL, metric, y, overall), tuple(panels), (*marks, *rest), len(shared)
    )


def _panel(scenario: str, x: str, y: str, points: Mapping[str, tuple[float, float]]) -> Panel:
    better = dominators(points)
    cheapest_first = sorted(points, key=lambda model: (points[model][0], -points[model][1], model))
    return Panel(
        scenario, x, y, tuple(Point(m, *points[m], dominated_by=better[m]) for m in cheapest_first)
    )


def _change(first: MetricView, second: MetricView) -> OrderChange:
    a = {point.model: point.x for point in first.overall.points}
    b = {point.model: point.x for point in second.overall.points}
    names = [name for name in a if name in b]
    tau = kendall_tau([a[n] for n in names], [b[n] for n in names])
    before, after = first.overall.frontier, second.overall.frontier
    return OrderChange(
        first.metric, second.metric, tau, tuple(swapped(a, b)),
        tuple(m for m in after if m not in before), tuple(m for m in before if m not in after),
    )  # fmt: skip


def only_scenario(result: Tradeoff, scenario: str) -> Tradeoff:
    """The same with the panels of one scenario. Raises SpecError where there is none."""
    known = [panel.scenario for panel in result.views[0].scenarios]
    if scenario not in known:
        raise SpecError(
            "scenario", scenario, f"is not in {result.file}", nearest=nearest_names(scenario, known)
        )
    views = tuple(
        replace(view, scenarios=tuple(p for p in view.scenarios if p.scenario == scenario))
        for view in result.views
    )
    return replace(result, views=views)
