"""Systems as rows of the bulk kernels (`rtsim_kernels.bulk`), many of them cheaply.

A `System` takes about half a millisecond to make, which a sweep over memory bandwidths would pay
for every value. Three figures of a GPU reach the kernels as they are and decide nothing else:
memory, link and network bandwidth (`PATCHED`). Systems that differ in those alone share one
`System`, their *base*, and get their own figure written into its rows. That this is all the figure
does is checked once per base, against rows made from the changed GPU; where it is not, every value
gets a System of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import bulk_memo, bulk_rows, row_figures, step, tables

from rtsim import units
from rtsim.catalog import gpu_names, load_gpu, load_model
from rtsim.device_facts import stacked
from rtsim.errors import RtsimError
from rtsim.machine import MachineRows, machine_rows, plan_facts
from rtsim.memory import Placement
from rtsim.named_system import system
from rtsim.operator_classes import classes_of, may_repeat, memory_rates
from rtsim.operators import OperatorTable
from rtsim.profile import GROUPS
from rtsim.specs.changes import factor_in
from rtsim.specs.dtype import dtype_bytes
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.system import System
from rtsim.whatif import change

Array = NDArray[Any]

# What tells systems apart beside overrides, as `rtsim.predict.system` takes it.
FIELDS = (
    "model", "gpu", "tp", "pp", "ep", "dp", "cp", "attention_dp", "micro_batches", "num_gpus",
    "stack", "profile", "dtype", "kv_cache_dtype", "quantization",
)  # fmt: skip
# Path of a figure -> where the kernels read it: rows of `MachineRows`, field.
PATCHED = {
    "gpu.hbm_bytes_per_s": ("device", "hbm_bytes_per_s"),
    "link.bytes_per_s": ("collective", "link_bytes_per_s"),
    "network.bytes_per_s": ("collective", "network_bytes_per_s"),
}
_PROBE_FACTOR = 3.0  # any other figure: rows made with it must equal patched ones


@dataclass(frozen=True, eq=False)
class Base:
    """A System as rows. `row` lacks its places in the joined tables; `machine`: a MACHINE row."""

    made: System
    row: Array
    machine: Array
    caches: Array

    @cached_property
    def classes(self) -> Array:
        """(operators,) see `rtsim.operator_classes`."""
        return classes_of(self.made.table, self.machine)


def base_of(made: System) -> Base:
    """The rows of a System."""
    p, profile, gpu, model = made.parallelism, made.profile, made.gpu, made.model
    placement = Placement(model, gpu, p, made.traits, made.formats)
    shape = (model.n_layers, model.hidden_size, model.typical_heads, p.tp)
    batches = [math.log(n) for n in profile.fitted_batches] or [math.nan, math.nan]
    layer_elements, score_elements = placement.activation_elements
    facts = {
        "groups": p.sequence_groups,
        "rank_gpus": p.tp * p.cp,
        "num_gpus": p.num_gpus,
        "peak_flops_per_s": made.peak_flops_per_s,
        "usd_per_hour": math.nan if gpu.price is None else gpu.price.usd_per_hour,
        "power_w": math.nan if gpu.power_w is None else gpu.power_w,
        "max_positions": model.max_positions if model.position == "learned" else math.inf,
        "unlike": profile.shape_distance(tuple(map(float, shape))) / row_figures.UNLIKE_DISTANCE,
        "log_least_batch": batches[0],
        "log_most_batch": batches[1],
        "sigma_row": profile.sigma_row,
        "weights_bytes": placement.weights_bytes,
        "reserved_bytes": placement.reserved_bytes(),
        "capacity_bytes": gpu.memory_bytes,
        "layer_elements": layer_elements,
        "score_elements": score_elements,
        "element_bytes": dtype_bytes(made.formats.dtype),
        "head_bytes": placement.logit_bytes,
        "all_logits": profile.traits.logits == "all",
    }
    row = np.zeros((), row_figures.SYSTEM)
    for name, value in facts.items():
        row[name] = value
    seen = np.array([profile.sigma_seen[group] for group in GROUPS]) ** 2
    unseen = np.array([profile.sigma_unseen[group] for group in GROUPS]) ** 2
    row["seen"] = seen
    row["beyond"] = np.maximum(0.0, unseen - seen)
    if gpu.name != profile.gpu or gpu.what_if:
        row["transfer"] = np.array([profile.transfer_sigma[group] for group in GROUPS]) ** 2
    return Base(made, row, made.rows.joined(), _cache_rows(placement))


_MANY_TOKENS = 2.0**40  # more than any window


def _cache_rows(placement: Placement) -> Array:
    """`Placement.cache_terms` as CACHE rows: min(n, window) + rate n tokens are kept."""
    rows = np.zeros(len(placement.cache_terms), row_figures.CACHE)
    for row, term in zip(rows, placement.cache_terms, strict=True):
        window, rate = math.inf, 0.0
        if term.mixer is not None:
            compression = getattr(term.mixer, "compression", 0)
            rate = 1.0 / compression if compression else 0.0
            kept = term.mixer.cached_tokens(_MANY_TOKENS) - rate * _MANY_TOKENS
            window = kept if kept < _MANY_TOKENS else math.inf
        row["per_entry"], row["fixed"] = term.per_entry, term.state_bytes
        row["window"], row["rate"], row["of_source"] = window, rate, term.mixer is None
    return rows


# Operator tables with what the bulk kernels need of them; the table is kept so that its id stays.
_known_tables: dict[int, tuple[OperatorTable, Array, Array]] = {}
_MOST_TABLES = 1024


def _of_table(table: OperatorTable) -> tuple[Array, Array]:
    """(dependence, same) of an operator table, see `bulk_rows.Tables`."""
    found = _known_tables.get(id(table))
    if found is None:
        same = table.rows["same"]
        same = np.where(same > 0, same - 1, np.arange(len(same)))
        kinds = [bulk_rows.dependence(tables.as_row(row)) for row in table.rows]
        found = table, np.array(kinds), same
        if len(_known_tables) >= _MOST_TABLES:
            _known_tables.clear()
        _known_tables[id(table)] = found
    return found[1:]


@dataclass(frozen=True, eq=False)
class Packed:
    """Systems ready for `bulk.predict_rows`; `errors` is "" or why a system cannot be."""

    systems: Array
    machines: Array
    tables: dict[str, Array]
    errors: list[str]
    bases: list[Base | None]


class Systems:
    """The systems of one job: distinct values by column, and what was made of them.

    values: column -> its distinct values; columns are FIELDS and paths of figures to change.
    Names of files are read once, here. stack: of systems that name neither stack nor profile; None
    is `rtsim.predict`'s choice.
    """

    def __init__(self, values: Mapping[str, Sequence[Any]], stack: str | None = None) -> None:
        self._stack = stack
        self.columns = tuple(values)
        self.values = [[_loaded(name, value) for value in values[name]] for name in self.columns]
        self._patched = [i for i, name in enumerate(self.columns) if name in PATCHED]
        self._bases: dict[tuple[int, ...], tuple[Base | None, str]] = {}
        self._gpu = self.columns.index("gpu")
        self._patches: dict[tuple[int, int], dict[int, float]] = {}
        self._checked: dict[tuple[tuple[int, ...], str], bool] = {}
        places = bulk_memo.PLACES if may_repeat(values) else 0
        self._memo = np.zeros((places, bulk_memo.WORDS), np.int64)

    def _request(self, codes: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arguments of `system`, figures to change) of a system."""
        fields: dict[str, Any] = {}
        changes: dict[str, Any] = {}
        for name, values, code in zip(self.columns, self.values, codes, strict=True):
            value = values[code]
            if isinstance(value, RtsimError):
                raise value
            if value is not None:
                (fields if name in FIELDS else changes)[name] = value
        if self._stack is not None and "stack" not in fields and "profile" not in fields:
            fields["stack"] = self._stack
        return fields, changes

    def base(self, codes: tuple[int, ...], tp: int | None = None) -> tuple[Base | None, str]:
        """The rows of a system, or why there are none; kept. tp: in place of its own."""
        key = (*codes, tp or 0)
        found = self._bases.get(key)
        if found is None:
            try:
                fields, changes = self._request(codes)
                if tp is not None:
                    fields["tp"] = tp
                own = str(fields.get("profile", "")).endswith(".toml")  # may be edited
                make = _base_of_request.__wrapped__ if own else _base_of_request
                found = make(tuple(fields.items()), tuple(changes.items())), ""
            except RtsimError as error:
                found = None, str(error)
            if len(self._bases) > _MOST_BASES:
                self._bases.clear()
            self._bases[key] = found
        return found

    def _shared(self, codes: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, float]]:
        """(codes of the base, figures to patch) of a system."""
        shared = list(codes)
        figures = {}
        for i in self._patched:
            if self.values[i][codes[i]] is None:
                continue
            known = self._figures(codes, i)
            if codes[i] not in known:
                return codes, {}
            shared[i] = next(iter(known))  # the base has the first of them
            figures[self.columns[i]] = known[codes[i]]
        key = tuple(shared)
        for path in figures:
            if (key, path) not in self._checked:
                base, _ = self.base(key)
                self._checked[key, path] = base is not None and _only_patches(base, path)
            if not self._checked[key, path]:
                return codes, {}
        return key, figures

    def _figures(self, codes: tuple[int, ...], column: int) -> dict[int, float]:
        """Figures by code that may be patched into the rows of a system's GPU, if any may."""
        at = codes[self._gpu], column
        known = self._patches.get(at)
        if known is not None:
            return known
        figures = self._patches[at] = {}
        try:
            name = self.values[self._gpu][codes[self._gpu]]
            gpu = name if isinstance(name, GpuSpec) else load_gpu(name)
        except (RtsimError, AttributeError, TypeError):
            return figures  # refused with the right words where the system is made
        stated = _figure_at(gpu, self.columns[column])
        # Which profile serves an unlisted GPU depends on its figures.
        if gpu.software_devices > 1 or gpu.name not in gpu_names() or math.isnan(stated):
            return figures
        for code, value in enumerate(self.values[column]):
            factor = factor_in(value)
            try:
                figure = units.parse(
                    value if factor is None else stated * factor, units.BYTES_PER_SECOND
                )
            except (ValueError, TypeError):
                continue
            if figure != stated:  # the part itself is no "what if"
                figures[code] = figure
        return figures

    def pack(self, systems: Array) -> Packed:
        """Rows of systems given by codes, (systems, columns)."""
        bases: list[Base | None] = []
        errors: list[str] = []
        patches: dict[str, tuple[list[int], list[float]]] = {p: ([], []) for p in PATCHED}
        at: dict[int, int] = {}
        distinct: list[Base] = []
        which = np.full(len(systems), -1)
        for i, codes in enumerate(map(tuple, systems.tolist())):
            key, figures = self._shared(codes)
            base, error = self.base(key)
            bases.append(base)
            errors.append(error)
            if base is None:
                continue
            if id(base) not in at:
                at[id(base)] = len(distinct)
                distinct.append(base)
            which[i] = at[id(base)]
            for path, figure in figures.items():
                patches[path][0].append(i)
                patches[path][1].append(figure)
        if not distinct:
            none = np.zeros(0, step.MACHINE)
            return Packed(np.zeros(len(systems), row_figures.SYSTEM), none, {}, errors, bases)
        joined, rows = _joined(distinct, len(self._memo) > 0)
        joined["memo"] = self._memo
        made = rows[which]
        made["machine"] = np.arange(len(systems))
        made["machine"][which < 0] = -1
        machines = stacked([base.machine for base in distinct])[which]
        for path, (indices, values) in patches.items():
            if indices:
                field, name = PATCHED[path]
                figures_of = np.array(values)
                rows_of = machines[field]
                patched = rows_of[name]
                shape = (-1,) + (1,) * (patched.ndim - 1)
                patched[indices] = figures_of.reshape(shape)
        if len(self._memo):
            made["memory_rate"] = memory_rates(machines["device"]["hbm_bytes_per_s"])
        return Packed(made, machines, joined, errors, bases)


_MOST_BASES = 20_000


def _loaded(column: str, value: Any) -> Any:
    """A value as `system` takes it: a file as its specification or the error that it gives."""
    if isinstance(value, float) and column in FIELDS and value.is_integer():
        return int(value)  # degrees in a column of floats
    if isinstance(value, str) and value.lower().endswith((".toml", ".json")):
        try:
            if column == "model":
                return load_model(value)
            if column == "gpu":
                return load_gpu(value)
        except RtsimError as error:
            return error
    return value


@lru_cache(maxsize=1024)
def _base_of_request(
    fields: tuple[tuple[str, Any], ...], changes: tuple[tuple[str, Any], ...]
) -> Base:
    request = dict(fields)
    model, gpu = request.pop("model", ""), request.pop("gpu", "")
    if not (isinstance(model, str | ModelSpec) and isinstance(gpu, str | GpuSpec)):
        return base_of(system(model, gpu, **request))  # which says what they must be
    if changes:
        model, gpu = _changed(model, gpu, changes)
    return base_of(system(model, gpu, **request))


@lru_cache(maxsize=4096)
def _changed(
    model: str | ModelSpec, gpu: str | GpuSpec, changes: tuple[tuple[str, Any], ...]
) -> tuple[ModelSpec, GpuSpec]:
    """Specifications with changed figures, which all splits of a model share."""
    model = model if isinstance(model, ModelSpec) else load_model(model)
    gpu = gpu if isinstance(gpu, GpuSpec) else load_gpu(gpu)
    changed = change(dict(changes), model, gpu)
    return changed.model or model, changed.gpu or gpu


def _figure_at(gpu: GpuSpec, path: str) -> float:
    root, _, field = path.partition(".")
    owner: Any = gpu if root == "gpu" else getattr(gpu, root)
    return math.nan if owner is None else float(getattr(owner, field))


def _only_patches(base: Base, path: str) -> bool:
    """Whether rows of the GPU with another figure at `path` are the base's, patched."""
    made = base.made
    figure = _PROBE_FACTOR * _figure_at(made.gpu, path)
    if not figure <= units.BYTES_PER_SECOND.highest:
        figure = _figure_at(made.gpu, path) / _PROBE_FACTOR
    changed = made.gpu.with_({path.removeprefix("gpu."): figure})
    rows = machine_rows(
        made.profile, changed, made.formats, None, plan_facts(made.model, made.parallelism)
    )
    patched_field, name = PATCHED[path]
    return all(
        _equal(getattr(made.rows, field), getattr(rows, field), name, figure, field, patched_field)
        for field in MachineRows.__dataclass_fields__
    )


def _equal(
    before: Array, after: Array, name: str, figure: float, field: str, patched_field: str
) -> bool:
    if field == patched_field:
        before = before.copy()
        before[name] = figure
    return before.tobytes() == after.tobytes()


def _joined(bases: Sequence[Base], alike: bool) -> tuple[dict[str, Array], Array]:
    """The tables of some bases joined (`bulk_rows.Tables` but `memo`), and their rows in them.

    alike: whether the classes of operators are wanted.
    """
    places: dict[int, tuple[int, int, int, int]] = {}
    names = [field for field in bulk_rows.Tables._fields if field != "memo"]
    parts: dict[str, list[Array]] = {field: [] for field in names}
    parts["classes"].append(np.zeros(0))
    rows = stacked([base.row for base in bases])
    n_operators = n_segments = n_caches = n_classes = 0
    for row, base in zip(rows, bases, strict=True):
        table = base.made.table
        place = places.get(id(table))
        if place is None:
            dependence, same = _of_table(table)
            place = n_operators, n_operators + len(table.rows), n_segments, n_segments + len(
                table.segments
            )  # fmt: skip
            places[id(table)] = place
            parts["operators"].append(table.rows)
            parts["segments"].append(table.segments)
            parts["executions"].append(table.executions)
            parts["dependence"].append(dependence)
            parts["same"].append(same + n_operators)
            n_operators, n_segments = place[1], place[3]
        row["first"], row["last"], row["first_segment"], row["last_segment"] = place
        row["first_cache"], row["last_cache"] = n_caches, n_caches + len(base.caches)
        parts["caches"].append(base.caches)
        n_caches += len(base.caches)
        if alike:
            row["first_class"] = n_classes
            parts["classes"].append(base.classes)
            n_classes += len(base.classes)
    return {field: np.concatenate(arrays) for field, arrays in parts.items()}, rows
