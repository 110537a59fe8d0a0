"""What can be measured: one case is one row of a measurement table, its time still to be taken.

A case names its sizes in the columns of its kind (`measurement_schema`), counts its own work, and
knows nothing of PyTorch: designs, budgets and tables are made without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rtsim.measurement_schema import KINDS

CALIBRATION, VALIDATION, VARIANT = "calibration", "validation", "variant"
COLD, WARM = "cold", "warm"

# Columns that a run fills in: they do not tell cases apart.
FILLED_BY_RUN = ("source", "gpu", "stack_version", "timing", "time_us", "runtime_s",
                 "runtime_std_s")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One thing to time.

    family: the program that runs it ("gemm", "attention", ...). kind: of its table. values: its
    columns there. flops, moved_bytes: work of one execution, what is read and written at least
    once. memory_bytes: of one set of operands and results. rotated_bytes: of the operands that
    change from call to call where residency is cold. setup_s: expected seconds before it can be
    timed, such as a compilation. host_kernels: kernels that the host issues one by one.
    """

    family: str
    kind: str
    values: Mapping[str, str | int]
    flops: float
    moved_bytes: float
    memory_bytes: float
    rotated_bytes: float = 0.0
    setup_s: float = 0.0
    host_kernels: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    @property
    def role(self) -> str:
        """What the row is for, see `measurement_schema.ROLES`."""
        return str(self.values.get("role", ""))

    @property
    def cold(self) -> bool:
        """Whether operands have to come from DRAM."""
        return self.values.get("residency") == COLD

    @property
    def key(self) -> tuple[str, ...]:
        """Tells the case from all others: its kind, then the columns that are its own, as text."""
        return (self.kind, *(self.text(name) for name in key_columns(self.kind)))

    def text(self, column: str) -> str:
        """A column as its table holds it."""
        if column in self.values:
            return str(self.values[column])
        default = next(c.default for c in KINDS[self.kind].columns if c.name == column)
        return "" if default is None or isinstance(default, float) else str(default)

    def number(self, column: str) -> int:
        """A column that is a count."""
        return int(self.values[column])

    def __str__(self) -> str:
        shown = [f"{k} {v}" for k, v in self.values.items() if k not in ("role", "stack")]
        return f"{self.kind}: {', '.join(shown)}"


def key_columns(kind: str) -> tuple[str, ...]:
    """Columns of a kind that a case decides, in the order of the schema."""
    return tuple(c.name for c in KINDS[kind].columns if c.name not in FILLED_BY_RUN)


@dataclass(frozen=True)
class Scope:
    """What a device offers, as far as designs depend on it.

    products: number formats of matrix products. float_dtype: of everything else. attention: the
    usual kernel of attention, and attention_variants others worth knowing. toy: sizes for a CPU.
    compiler: whether torch.compile can make kernels. grouped_experts: whether there is a grouped
    product. graphs: whether work can be captured and replayed.
    """

    products: tuple[str, ...]
    float_dtype: str
    attention: str
    attention_variants: tuple[str, ...]
    memory_bytes: float
    n_gpus: int = 1
    toy: bool = False
    compiler: bool = True
    grouped_experts: bool = True
    graphs: bool = True

    def fits(self, needed_bytes: float) -> bool:
        """Whether operands fit with room to spare for copies and references."""
        return needed_bytes <= 0.25 * self.memory_bytes


ELEMENT_BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0}
STACK = "pytorch"
COMPILED_STACK = "pytorch-compiled"
GRAPHS_STACK = "pytorch-graphs"
