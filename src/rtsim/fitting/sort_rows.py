"""Which rows of measurement tables a calibration can use, and why not the others.

Left out are rows of other GPUs and stacks, repeats, what the recipe of a kind cannot use, and
times that beat the physical bound (most often a unit off by a factor of 1,000).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.catalog import load_gpu
from rtsim.errors import DataError, UnknownName, nearest_names
from rtsim.fit import Fit
from rtsim.fitting import generation
from rtsim.fitting.kinds import (
    SECTION_KINDS,
    Block,
    SectionFit,
    blocks_of,
    impossible,
    predict,
    usable,
)
from rtsim.fitting.method import VALIDATION, stated
from rtsim.measurement_schema import KINDS
from rtsim.measurements import Columns, Table
from rtsim.profile import DECLARED
from rtsim.profile_choice import STACK_ALIASES, stack_names
from rtsim.specs.gpu import GpuSpec

# Rows of the communication library serve every stack that calls it.
LIBRARY_STACKS = ("nccl",)
# Ways to run a library's models, whose kernels are those of the library.
KERNELS_OF = {"pytorch-compiled": "pytorch", "pytorch-graphs": "pytorch"}
TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")

_KEPT_OUT = {"validation": "kept for validation", "variant": "not the usual kernel"}

_NAMES_SHOWN = 6

# A table whose times are this far from any plausible ones is in another unit.
_OTHER_UNIT = 100.0


@dataclass(frozen=True)
class ImpossibleRow:
    """A time below what the hardware allows; `bound_s`, `measured_s` seconds."""

    file: str
    line: int
    measured_s: float


@dataclass(frozen=True)
class FileReport:
    """What became of the rows of one file; `skipped`: reason -> rows."""

    file: str
    kind: str
    rows: int
    used: int
    skipped: dict[str, int]


def table_paths(files: Iterable[str | Path]) -> list[Path]:
    """Files as given; of a folder, every table in it. Raises DataError for a folder without."""
    paths: list[Path] = []
    for file in map(Path, files):
        if not file.is_dir():
            paths.append(file)
            continue
        inside = sorted(p for p in file.iterdir() if p.name.endswith(TABLE_SUFFIXES))
        if not inside:
            raise DataError(file, f"a folder without tables ({', '.join(TABLE_SUFFIXES)})")
        paths += inside
    if not paths:
        raise DataError("FILE", "no table was named")
    return paths


# Kinds of tables of whole runs of an engine.
RUN_KINDS = ("serving", "offline_batch")


@dataclass(frozen=True, eq=False)
class Runs:
    """Rows of a table of serving runs or batches."""

    table: Table
    members: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class SortedRows:
    """What of some tables can be fitted, and what became of the rest."""

    blocks: list[Block]
    generations: list[generation.Configuration]
    runs: list[Runs]
    reports: list[FileReport]
    beaten: list[ImpossibleRow]


def sort_rows(tables: Sequence[Table], gpu: GpuSpec, stack: str) -> SortedRows:
    """Rows of tables by what they are fitted as. Raises DataError for times in another unit."""
    blocks: list[Block] = []
    generations: list[generation.Configuration] = []
    runs: list[Runs] = []
    reports: list[FileReport] = []
    beaten: list[ImpossibleRow] = []
    for table in tables:
        kind = SECTION_KINDS.get(table.kind)
        if table.kind == "launch":  # see `launch_s`
            own = _launches_of(table.columns, gpu, stack)
            left = {"another GPU or stack": len(table) - int(own.sum())} if not own.all() else {}
            reports.append(FileReport(table.file, table.kind, len(table), int(own.sum()), left))
            continue
        if kind is None and table.kind not in ("generation", *RUN_KINDS):
            what = "unknown kind of table" if table.kind not in KINDS else "kind not fitted"
            reports.append(FileReport(table.file, table.kind, len(table), 0, {what: len(table)}))
            continue
        reasons = _foreign(table.columns, gpu, stack, table.kind).astype(object)
        roles = stated(table.columns, "role", np.arange(len(table)))
        for role in VALIDATION:
            reasons[(reasons == "") & (roles == role)] = _KEPT_OUT[role]
        reasons[(reasons == "") & table.repeated] = "repeats an earlier row"
        columns = _filled(table.columns)
        if kind is not None:
            unusable = usable(kind, columns)
            reasons = np.where(reasons == "", unusable, reasons)
            members = np.flatnonzero(reasons == "")
            found = blocks_of(kind, columns, members, lambda _: gpu, stack)
            served = {int(i) for block in found for i in block.table_rows}
            for i in members.tolist():
                if i not in served:
                    reasons[i] = "the GPU states no rate for this dtype"
            for block in found:
                beats = impossible(block)
                for i in block.table_rows[beats].tolist():
                    reasons[i] = "faster than the hardware allows"
                    time_s = float(columns["time_us"][i]) * 1e-6
                    beaten.append(ImpossibleRow(table.file, int(table.lines[i]), time_s))
                kept = block.take(~beats)
                if len(kept):
                    _check_unit(table.file, kept)
                    blocks.append(kept)
        elif table.kind in RUN_KINDS:
            members = np.flatnonzero(reasons == "")
            if len(members):
                runs.append(Runs(table, members))
        else:
            members = np.flatnonzero(reasons == "")
            taken = {name: values[members] for name, values in columns.items()}
            if len(members):
                generations += generation.configurations(taken, lambda _: gpu)
        used = int((reasons == "").sum())
        skipped = Counter(str(r) for r in reasons if r)
        reports.append(FileReport(table.file, table.kind, len(table), used, dict(skipped)))
    return SortedRows(blocks, generations, runs, reports, beaten)


def _filled(columns: Columns) -> Columns:
    """An empty cache dtype stands for that of the queries."""
    if "kv_dtype" not in columns or "dtype" not in columns:
        return columns
    empty = columns["kv_dtype"] == ""
    return {**columns, "kv_dtype": np.where(empty, columns["dtype"], columns["kv_dtype"])}


def _foreign(columns: Columns, gpu: GpuSpec, stack: str, kind: str) -> NDArray[np.str_]:
    """Why rows are not of this GPU and stack, "" where they are."""
    reasons = np.full(len(columns["gpu"]), "", dtype=object)
    own_names = {name.lower() for name in (gpu.name, *gpu.aliases)}
    for name in set(columns["gpu"].tolist()):
        rows = columns["gpu"] == name
        if name.lower() not in own_names:
            found = _gpu_name(name)
            if found is None:
                reasons[rows] = f"unknown GPU '{name}'"
            elif found != gpu.name:
                reasons[rows] = "another GPU"
    stacks = {stack, ""}
    if kind == "collective":
        stacks.update(LIBRARY_STACKS)
    if kind != "generation" and stack in KERNELS_OF:
        stacks.add(KERNELS_OF[stack])
    if kind in RUN_KINDS:
        stacks.update(alias for alias, name in STACK_ALIASES.items() if name == stack)
    other = ~np.isin(columns["stack"], sorted(stacks))
    reasons[(reasons == "") & other] = "another stack"
    return reasons


def launch_s(tables: Sequence[Table], gpu: GpuSpec, stack: str) -> float | None:
    """Median host seconds per kernel of the `launch` rows of a GPU and stack; None without any."""
    found: list[float] = []
    for table in tables:
        if table.kind == "launch":
            own = _launches_of(table.columns, gpu, stack)
            per_kernel_us = table.columns["time_us"][own] / table.columns["kernels"][own]
            found += (per_kernel_us * 1e-6).tolist()
    return float(np.median(found)) if found else None


def _launches_of(columns: Columns, gpu: GpuSpec, stack: str) -> NDArray[np.bool_]:
    """Which `launch` rows are of this GPU and of this very stack."""
    named = columns["stack"] == stack
    return np.asarray(named & (_foreign(columns, gpu, stack, "launch") == ""))


@lru_cache(maxsize=512)
def _gpu_name(name: str) -> str | None:
    try:
        return load_gpu(name).name
    except UnknownName:
        return None


def _check_unit(file: str, block: Block) -> None:
    """Refuse times that are a hundred times what the hardware could explain, or more."""
    plain = SectionFit(block.section, _priors_as_fit(block))
    try:
        expected = predict(block, plain)
    except AttributeError:  # collectives need the facts that only a fit decides
        return
    ratio = float(np.median(block.measured_s / expected))
    if ratio > _OTHER_UNIT:
        raise DataError(
            file,
            f"times of {block.section} are {ratio:,.0f} times what {block.gpu.name} should take: "
            "is the column in microseconds?",
            column="time_us",
        )


def _priors_as_fit(block: Block) -> Fit:
    declared = DECLARED[block.kind]
    priors = np.array([c.prior for c in declared])
    nothing = np.zeros(0)
    names = tuple(c.name for c in declared)
    return Fit(names, priors, nothing, nothing.astype(bool), nothing, priors)


def why_nothing(
    tables: Sequence[Table], reports: Sequence[FileReport], beaten: Sequence[ImpossibleRow],
    stack: str,
) -> str:  # fmt: skip
    """Why no row of the tables can be fitted, with the GPUs and stacks that they are of."""
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.skipped)
    parts = [f"{units.counted(count, 'row')}: {reason}" for reason, count in reasons.most_common(4)]
    if beaten:
        first = beaten[0]
        parts.append(f"such as line {first.line} of {Path(first.file).name}")
    if any(reason.startswith("another") for reason in reasons):
        held = filter(None, (_named(tables, "gpu", "GPU"), _named(tables, "stack", "stack")))
        parts.append(f"they are of {' and '.join(held)}")
    near = nearest_names(stack, [*_cells(tables, "stack"), *stack_names()])
    if near and stack not in near:
        parts.append(f"nearest stack: {', '.join(near)}")
    return "; ".join(parts) or "the tables are empty"


def _cells(tables: Sequence[Table], column: str) -> list[str]:
    every = [table.columns[column].tolist() for table in tables if column in table.columns]
    return sorted({cell for cells in every for cell in cells if cell})


def _named(tables: Sequence[Table], column: str, title: str) -> str:
    names = _cells(tables, column)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{title} {', '.join(names[:_NAMES_SHOWN])}{more}" if names else ""
