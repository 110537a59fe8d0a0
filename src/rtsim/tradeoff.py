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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rtsim.curves import Curve
from rtsim.errors import SpecError, nearest_names
from rtsim.pareto import dominators, kendall_tau, swapped
from rtsim.scored_times import METRICS, Marked, TimedModels, metric_of_rows
from rtsim.scores import ModelMap, Score, read_scores
from rtsim.study import Study

UNITS = {
    "raw_runtime": "s", "denoised_runtime": "s", "idealized_runtime": "s",
    "idealized_cost": "USD", "idealized_energy": "J",
}  # fmt: skip
OVERALL = "all scenarios"
# A model takes part in the overall comparison when it has this share of the scenarios.
_PRESENT_FRAC = 0.8


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
    timed = TimedModels(models, asked, gpu, stack, study) if any(
        x.startswith("idealized") for x in xs
    ) else None  # fmt: skip
    joined = {x: metric_of_rows(x, table.scores, asked, timed, curves or {}) for x in xs}
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
