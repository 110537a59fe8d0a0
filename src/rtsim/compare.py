"""Models, GPUs and stacks on equal footing: idealized runtime, cost and energy with ranks.

Idealized cost = idealized runtime x GPUs x price per GPU hour; idealized energy = idealized
runtime x GPUs x power (Narayanan et al., NeurIPS 2023, section 3; `power` for what is meant by
power). Every system serves the same request, alone. Intervals of cost and energy are those of the
runtime: price and power are taken as given.

A difference between two systems of one model is owed to groups of operators: the host track,
attention, collectives, matrix products and the other kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rtsim_kernels import tables

from rtsim.catalog import load_gpu, load_model
from rtsim.errors import RtsimError, SpecError, UnknownName
from rtsim.gpus_needed import placement_of, system_on
from rtsim.power import EnergyModel, energy_j
from rtsim.prediction import Interval, Prediction
from rtsim.profile_choice import mixed_stacks
from rtsim.specs import GpuSpec, ModelSpec
from rtsim.study import Study
from rtsim.system import System

HOST, ATTENTION, COLLECTIVES, PRODUCTS, OTHERS = (
    *("host track", "attention", "collectives", "matrix products", "other kernels"),
)
GROUPS = (HOST, ATTENTION, COLLECTIVES, PRODUCTS, OTHERS)
_GROUP_OF_KIND = {
    tables.GEMM: PRODUCTS,
    tables.MOE: PRODUCTS,
    tables.SCORES: ATTENTION,
    tables.VALUES: ATTENTION,
    tables.ATTENTION: ATTENTION,
    tables.LATENT: ATTENTION,
    tables.SCAN: ATTENTION,
    tables.COLLECTIVE: COLLECTIVES,
}
# Memory-bound parts of unfused attention; norms, biases and residuals around it are not.
_UNFUSED = ("attention mask", "attention scale", "attention softmax", "attention transpose")
_SMALL_FRAC = 0.05  # of the largest part of a difference: below it a part is not worth naming
_HOST_ROW = "GPU waits for host"


@dataclass(frozen=True, slots=True)
class RankRange:
    """Place among the systems, 1 the least, and the places that overlapping intervals allow."""

    rank: int
    best: int
    worst: int


@dataclass(frozen=True, slots=True)
class Compared:
    """One model on one system with one request. Cost and energy are None where not known.

    min_gpus: the fewest GPUs that hold the workload. time_s_by_group sums to the runtime.
    Ranks are over all systems of the comparison: "runtime", "cost", "energy".
    """

    prediction: Prediction
    label: str
    min_gpus: int | None
    gpus_from: str
    energy_j: float | None
    time_s_by_group: Mapping[str, float]
    ranks: Mapping[str, RankRange]

    @property
    def runtime_s(self) -> float:
        """Idealized runtime of a request."""
        return self.prediction.e2e_latency_s

    @property
    def cost_usd(self) -> float | None:
        """Idealized cost of a request."""
        cost = self.prediction.cost
        return None if cost is None else cost.usd_per_request

    def metric(self, name: str) -> float | None:
        """ "runtime", "cost" or "energy" per request (of one sequence)."""
        return {"runtime": self.runtime_s, "cost": self.cost_usd, "energy": self.energy_j}[name]

    def interval(self, name: str) -> Interval | None:
        """The 90 % interval of a metric."""
        value = self.metric(name)
        if value is None:
            return None
        runtime = self.prediction.interval_90.e2e_latency_s
        return Interval(value * runtime.low / self.runtime_s, value * runtime.high / self.runtime_s)

    def per_token(self, name: str) -> float | None:
        """A metric divided by the output tokens of the request."""
        value = self.metric(name)
        return None if value is None else value / self.prediction.workload.output_len


@dataclass(frozen=True, slots=True)
class Difference:
    """Why one system of a model takes another time than the first: seconds by group."""

    model: str
    baseline: str
    other: str
    runtime_ratio: float  # other / baseline
    delta_s: float
    delta_s_by_group: Mapping[str, float]

    @property
    def main_groups(self) -> list[tuple[str, float]]:
        """Groups that make up the difference, in seconds, largest first; small ones left out."""
        parts = sorted(self.delta_s_by_group.items(), key=lambda item: -abs(item[1]))
        return [
            (group, seconds)
            for group, seconds in parts
            if seconds and abs(seconds) >= _SMALL_FRAC * abs(parts[0][1])
        ]


@dataclass(frozen=True, slots=True)
class Refused:
    """A system that cannot be predicted, and why."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All systems, what explains their differences, and what was refused."""

    systems: tuple[Compared, ...]
    differences: tuple[Difference, ...]
    refused: tuple[Refused, ...]
    energy_model: EnergyModel
    notes: tuple[str, ...] = ()


def compare(
    archs: Sequence[str | Path | ModelSpec],
    gpus: Sequence[str | Path | GpuSpec] = ("a100",),
    stacks: Sequence[str | None] = (None,),
    *,
    input_len: int = 512,
    output_len: int = 64,
    batch_size: int = 1,
    num_gpus: int | None = None,
    study: Study | None = None,
    energy_model: EnergyModel = "power",
) -> Comparison:
    """Every model on every GPU with every stack. `study` says how many GPUs each model takes.

    num_gpus: for every model; None: the study's number where its GPU is used, else the fewest
    of a node, or whole nodes, that hold the model. A system that cannot be predicted is refused
    with its reason, the others stand; where none is left, or a name is not known, the error is
    raised.

    >>> both = compare(["gpt3-175b", "gpt3-6.7b"], ["a100"], ["megatron-lm"])
    >>> [one.prediction.num_gpus for one in both.systems]
    [6, 1]
    """
    if not (archs and gpus and stacks):
        raise SpecError("arch", list(map(str, archs)), "needs at least one model, GPU and stack")
    energy_model_known(energy_model)
    # A name that nothing answers to is a fault of the whole question.
    models = [arch if isinstance(arch, ModelSpec) else load_model(arch) for arch in archs]
    parts = [gpu if isinstance(gpu, GpuSpec) else load_gpu(gpu) for gpu in gpus]
    found: list[Compared] = []
    refused: list[Refused] = []
    errors: dict[str | None, list[RtsimError]] = {stack: [] for stack in stacks}
    for arch in models:
        for gpu in parts:
            for stack in stacks:
                wanted, why = num_gpus, "stated"
                if wanted is None and study is not None:
                    wanted, why = study.gpus_for(arch, gpu)
                try:
                    chosen = system_on(
                        arch, gpu, stack, num_gpus=wanted, batch_size=batch_size,
                        input_len=input_len, output_len=output_len,
                    )  # fmt: skip
                    prediction = chosen.predict(batch_size, input_len, output_len)
                except RtsimError as error:
                    errors[stack].append(error)
                    label = " / ".join(filter(None, (arch.name, gpu.name, stack)))
                    refused.append(Refused(label, str(error)))
                    continue
                why = why if wanted is not None else "fewest that fit"
                found.append(_compared(chosen, prediction, why, energy_model))
    for of_stack in errors.values():
        if of_stack and (not found or all(isinstance(e, UnknownName) for e in of_stack)):
            raise of_stack[0]
    ranked = _ranked(found)
    notes = _notes(ranked)
    if None in stacks:
        notes = (*mixed_stacks(parts), *notes)
    return Comparison(ranked, _differences(ranked), tuple(refused), energy_model, notes)


def energy_model_known(name: str) -> None:
    """Raise SpecError for the name of no energy model."""
    from rtsim.power import ENERGY_MODELS

    if name not in ENERGY_MODELS:
        raise SpecError("energy_model", name, f"must be one of {', '.join(ENERGY_MODELS)}")


def _compared(chosen: System, p: Prediction, why: str, energy_model: EnergyModel) -> Compared:
    batch = p.workload.batch_size
    energy = energy_j(p, energy_model)
    last = p.workload.input_len + p.workload.output_len - 1
    fewest = placement_of(chosen).min_gpus(batch, p.workload.input_len, last)
    return Compared(
        prediction=p,
        label=f"{p.model.name} / {p.gpu.name} / {p.stack}",
        min_gpus=fewest,
        gpus_from=why,
        energy_j=None if energy is None else energy / batch,
        time_s_by_group=time_by_group(chosen, p),
        ranks={},
    )


def time_by_group(chosen: System, prediction: Prediction) -> dict[str, float]:
    """Seconds of a request by group of operators; they sum to its runtime."""
    kinds = dict(zip(chosen.table.names, chosen.table.rows["kind"].tolist(), strict=True))
    groups = dict.fromkeys(GROUPS, 0.0)
    for row in prediction.breakdown:
        if row.operator == _HOST_ROW:
            groups[HOST] += row.time_s
        elif row.operator.endswith(_UNFUSED):
            groups[ATTENTION] += row.time_s
        else:
            groups[_GROUP_OF_KIND.get(kinds[row.operator], OTHERS)] += row.time_s
    return groups


def _ranked(systems: Sequence[Compared]) -> tuple[Compared, ...]:
    ranks: list[dict[str, RankRange]] = [{} for _ in systems]
    for name in ("runtime", "cost", "energy"):
        known = [i for i, one in enumerate(systems) if one.metric(name) is not None]
        ends = {i: systems[i].interval(name) for i in known}
        for i in known:
            mine, own = systems[i].metric(name), ends[i]
            if mine is None or own is None:
                continue
            less = sum((systems[j].metric(name) or 0.0) < mine for j in known)
            surely = sum(e is not None and e.high < own.low for j, e in ends.items() if j != i)
            maybe = sum(e is not None and e.low < own.high for j, e in ends.items() if j != i)
            ranks[i][name] = RankRange(1 + less, 1 + surely, 1 + maybe)
    return tuple(replace(one, ranks=rank) for one, rank in zip(systems, ranks, strict=True))


def _differences(systems: Sequence[Compared]) -> tuple[Difference, ...]:
    """Each further system of a model against the model's first."""
    first: dict[str, Compared] = {}
    found = []
    for one in systems:
        base = first.setdefault(one.prediction.model.name, one)
        if base is one:
            continue
        by_group = {
            group: one.time_s_by_group[group] - base.time_s_by_group[group] for group in GROUPS
        }
        found.append(
            Difference(
                one.prediction.model.name, _system_label(base), _system_label(one),
                one.runtime_s / base.runtime_s, one.runtime_s - base.runtime_s, by_group,
            )
        )  # fmt: skip
    return tuple(found)


def _system_label(one: Compared) -> str:
    p = one.prediction
    return f"{p.num_gpus} x {p.gpu.name}, {p.stack}"


def _notes(systems: Sequence[Compared]) -> tuple[str, ...]:
    """What the predictions have to say, once each."""
    return tuple(dict.fromkeys(note for one in systems for note in one.prediction.notes))
