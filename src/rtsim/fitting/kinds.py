"""One way to fit every kind of kernel table: rows -> blocks -> coefficients of a section.

The recipe modules of this package know one kind each. Here they are brought under four verbs
(`blocks_of`, `choose`, `fit_blocks`, `predict`), so that calibration, shipped profiles and the
accuracy report treat all kinds alike. A block is the rows of one section of a profile
("gemm.fp8") measured on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.device_facts import device_row, link_facts_of
from rtsim.fit import Fit
from rtsim.fitting import attention, collective, gemm, gemm_priors, memory_bound, mla, moe
from rtsim.fitting.attention_kernels import (
    decode_kernels,
    latent_kernels,
    made_for_latent,
    major,
    runs_like,
)
from rtsim.fitting.measured_rows import joined
from rtsim.fitting.method import launched, stated, version
from rtsim.fitting.resolve import memory_bound_machine, section_of
from rtsim.measurements import Columns
from rtsim.profile import RELEASE_MARK
from rtsim.specs.gpu import GpuSpec

Array = NDArray[np.float64]

# Kind of table -> kind of section in a profile. Rows of "mla" go into sections by their operator.
SECTION_KINDS = {
    "gemm": "gemm",
    "attention_prefill": "attention_prefill",
    "attention_decode": "attention_decode",
    "elementwise": "memory_bound",
    "collective": "collective",
    "moe": "moe",
    "mla": "mla",
}
# The columns that, beside the GPU, decide the section and machine of a row.
_KEYS = {
    "gemm": ("dtype", "stack_version"),
    "attention_prefill": ("dtype", "kv_dtype"),
    "attention_decode": ("dtype", "kv_dtype"),
    "memory_bound": ("op",),
    "collective": ("topology", "implementation"),
    "moe": ("dtype", "kernel"),
    "mla": ("op", "dtype", "kv_dtype"),
}
# How rows were timed: blocks of both are apart where tables say it.
_METHOD_KEYS = ("timing", "residency")
_OPTIONAL = (*_METHOD_KEYS, "stack_version")
FOLDS = 4
ALIKE_SPREAD = 0.5  # of the declared spreads, about a prior that like kernels set
EAGER_STACKS = gemm_priors.EAGER_STACKS
_PAIR = 2.0  # GPUs of an NVLink bridge


@dataclass(frozen=True)
class Block:
    """Rows of one section on one machine. `rows`, `machine` are those of the kind's recipe."""

    kind: str  # of the section
    section: str
    gpu: GpuSpec
    stack: str
    dtype: str
    rows: Any
    machine: Any
    launched: bool = False  # a launch from the host is in the times
    release: str = ""  # of the stack, where blocks are told apart by it

    def take(self, chosen: NDArray[Any]) -> Block:
        """The same with only the `chosen` rows."""
        return replace(self, rows=self.rows.take(chosen))

    def __len__(self) -> int:
        return len(self.rows.measured_s)

    @property
    def of_release(self) -> Block:
        """The same in the section of its own release, such as "gemm.fp8@0.19.0"."""
        return replace(self, section=f"{self.section}{RELEASE_MARK}{self.release}")

    @property
    def measured_s(self) -> Array:
        """Measured seconds of the rows."""
        return np.asarray(self.rows.measured_s)

    @property
    def table_rows(self) -> NDArray[np.intp]:
        """Indices of the rows in their table."""
        return np.asarray(self.rows.table_rows)


@dataclass(frozen=True)
class SectionFit:
    """A fitted section: coefficients, their uncertainty, and facts that the rows decided.

    traits: changes to `StackTraits`. detail: the recipe's own result where it has one.
    """

    section: str
    fit: Fit
    traits: Mapping[str, Any] = field(default_factory=dict)
    detail: Any = None

    @property
    def coefficients(self) -> dict[str, float]:
        """Fitted values by name."""
        return dict(zip(self.fit.names, self.fit.values.tolist(), strict=True))


def usable(kind: str, columns: Columns) -> NDArray[np.str_]:
    """Why rows of a section kind cannot be fitted, "" where they can."""
    reasons: NDArray[np.str_] = _recipe(kind).usable(columns)
    return reasons


def _recipe(kind: str) -> Any:
    recipes = {
        "gemm": gemm, "memory_bound": memory_bound, "collective": collective, "moe": moe,
        "mla": mla, mla.PREFILL: mla, mla.DECODE: mla,
    }  # fmt: skip
    return recipes.get(kind, attention)


def blocks_of(
    kind: str, columns: Columns, members: NDArray[np.intp], gpu_of: Callable[[str], GpuSpec],
    stack: str = "",
) -> list[Block]:  # fmt: skip
    """The usable table rows `members` by section and machine, in order of appearance.

    stack: whose recipe to use; "" takes each row's own.
    """
    keys = _KEYS[kind]
    found: dict[tuple[str, ...], list[int]] = {}
    names = ("gpu", "stack", *keys, *_METHOD_KEYS)
    values = zip(
        *(
            (
                stated(columns, name, members) if name in _OPTIONAL else columns[name][members]
            ).tolist()
            for name in names
        ),
        strict=True,
    )
    for i, key in zip(members.tolist(), values, strict=True):
        found.setdefault(key, []).append(i)
    merged: dict[tuple[str, ...], tuple[dict[str, str], list[int]]] = {}
    for key, rows in found.items():
        row = dict(zip(names, key, strict=True))
        further = [row.get(name, "") for name in ("topology", "dtype", "kv_dtype", "timing")]
        if kind == "moe":  # there residency is a fact of the machine, elsewhere of each row
            further.append(row["residency"])
        if kind == "gemm":  # libraries choose other kernels from release to release
            further.append(row["stack_version"])
        place = (section_of(kind, row), gpu_of(row["gpu"]).name, row["stack"], *further)
        merged.setdefault(place, (row, []))[1].extend(rows)
    blocks = []
    for (section, *_), (row, rows) in merged.items():
        gpu = gpu_of(row["gpu"])
        block = _block(kind, section, gpu, stack or row["stack"], row, columns, np.sort(rows))
        if block is not None:
            blocks.append(block)
    return blocks


def _block(
    kind: str, section: str, gpu: GpuSpec, stack: str, row: Mapping[str, str], columns: Columns,
    rows: NDArray[np.intp],
) -> Block | None:  # fmt: skip
    made: Any
    machine: Any = None
    if kind == "gemm":
        machine = gemm.machine_of(
            gpu, device_row(gpu), stack, row["dtype"], row.get("stack_version", "")
        )
        if machine is None:
            return None  # the GPU states no rate for this format
        made = gemm.rows_of(columns, rows, gpu.l2_bytes)
    elif kind == "memory_bound":
        made, machine = memory_bound.rows_of(columns, rows), memory_bound_machine(gpu)
    elif kind == "collective":
        made = collective.rows_of(columns, rows)
        machine = collective.Machine(link_facts_of(gpu, row["topology"]), device_row(gpu))
    elif kind == "moe":
        machine = moe.machine_of(gpu, device_row(gpu), row["dtype"], row["residency"])
        if machine is None:
            return None
        made = moe.rows_of(columns, rows)
    elif kind == "mla":
        kind = section.partition(".")[0]
        if kind == "gemm":
            machine = gemm.machine_of(gpu, device_row(gpu), stack, row["dtype"])
            if machine is None:
                return None
            made = mla.product_rows(columns, rows)
        else:
            made = mla.rows_of(columns, rows, kind, lambda _: gpu)
    else:
        made = attention.rows_of(columns, rows, kind, lambda _: gpu)
    eager = launched(row["timing"], stack in EAGER_STACKS)
    form, release = row.get("dtype", ""), row.get("stack_version", "")
    return Block(kind, section, gpu, stack, form, made, machine, eager, release)


def older_releases(blocks: Sequence[Block]) -> list[Block]:
    """`blocks` of one GPU and stack; those of all but the newest release in sections of their own.

    "gemm.fp8" of an older release becomes "gemm.fp8@0.19.0".
    """
    newest: dict[str, str] = {}
    for block in blocks:
        known = newest.setdefault(block.section, block.release)
        newest[block.section] = max(known, block.release, key=version)
    return [
        block if block.release == newest[block.section] else block.of_release for block in blocks
    ]


def choose(blocks: Sequence[Block], count: int) -> list[Block]:
    """At most `count` informative rows of blocks of one section, by the design of its recipe."""
    share = count // len(blocks)
    chosen = []
    for i, block in enumerate(blocks):
        wanted = share + (i < count % len(blocks))
        if wanted == 0:
            continue
        if len(block) <= wanted:
            chosen.append(block)
        else:
            rows = _recipe(block.kind).choose_rows(block.rows, wanted)
            chosen.append(block.take(np.sort(rows)))
    return chosen


def fit_blocks(
    blocks: Sequence[Block],
    base: Mapping[str, float] | None = None,
    base_spread: float = 1.0,
    *,
    quick: bool = False,
) -> SectionFit:
    """Fit one set of coefficients to blocks of one section.

    base, base_spread: priors from elsewhere, see `fit.centred`. quick: one start, for the folds
    of a cross-validation.
    """
    first = blocks[0]
    groups = [(block.rows, block.machine) for block in blocks]
    if first.kind == "gemm":
        fit = gemm.fit_rows(groups, first.stack, first.dtype, base, base_spread, first.launched)
        return SectionFit(first.section, fit)
    if first.kind == "memory_bound":
        fit = memory_bound.fit_rows(groups, first.stack, base, base_spread, first.launched)
        return SectionFit(first.section, fit)
    if first.kind == "collective":
        result = collective.fit_rows(groups, base, base_spread)
        switched = any(machine.links.multicast for machine in result.machines)
        traits: dict[str, Any] = {"library_in_switch_reduction": switched}
        if first.section == "collective.tensor":
            traits = {
                "in_switch_reduction": switched,
                "direct_all_reduce_bytes": result.direct_limit_bytes,
            }
        if any(block.machine.links.link_domain == _PAIR for block in blocks):
            traits["pair_links"] = result.linked
        return SectionFit(first.section, result.fit, traits, result)
    if first.kind == "moe":
        return SectionFit(first.section, moe.fit_rows(groups, base, base_spread, quick=quick))
    rows = joined([block.rows for block in blocks])
    if first.kind in mla.COEFFICIENTS:
        return SectionFit(first.section, mla.fit_rows(rows, base, base_spread, quick=quick))
    fit = attention.fit_rows(rows, **({"starts": 1} if quick else {}))
    return SectionFit(first.section, fit)


def fit_family(
    own: Sequence[Block], every: Sequence[Block], stack: str = "", gpu: GpuSpec | None = None
) -> SectionFit:
    """Fit a section for GPUs that were not measured, from blocks of several others.

    own: of the stack in question. every: of all stacks, `own` among them. stack, gpu: for which the
    fit is; None: for any. Only decode and latent attention learn from other stacks, where these run
    like kernels (`attention_kernels`), and only where there are several GPUs.
    """
    first = (*own, *every)[0]
    if first.kind in mla.COEFFICIENTS and gpu is not None:
        kernels = latent_kernels(stack, gpu)
        made = made_for_latent(gpu)
        generation = [b for b in every if made_for_latent(b.gpu) == made] or list(every)
        alike = [b for b in generation if runs_like(kernels, latent_kernels(b.stack, b.gpu))]
        fit = mla.fit_family([b.rows for b in alike], [b.rows for b in generation], kernels)
        return SectionFit(first.section, fit)
    if first.kind != attention.DECODE or len({b.gpu.name for b in every}) == 1:
        return fit_blocks(own)
    alike, of_generation = list(own), []
    if gpu is not None:
        kernels = decode_kernels(stack, gpu)
        alike = [b for b in every if decode_kernels(b.stack, b.gpu) == kernels]
        of_generation = [b for b in own if major(b.gpu) == major(gpu)]
    parts = [[b.rows for b in found] for found in (own, alike, every, of_generation)]
    return SectionFit(first.section, attention.fit_family(*parts))


def predict(block: Block, fitted: SectionFit) -> Array:
    """Seconds of every row of a block with fitted coefficients."""
    values = fitted.coefficients
    if block.kind == "gemm":
        return gemm.predict(block.rows, block.machine, values)
    if block.kind == "memory_bound":
        return memory_bound.predict(block.rows, block.machine, values)
    if block.kind == "collective":
        machine = collective.as_decided(block.machine, fitted.detail)
        limit_bytes = fitted.detail.direct_limit_bytes
        return collective.predict(block.rows, machine, values, limit_bytes)
    if block.kind == "moe":
        return moe.predict(block.rows, block.machine, values)
    if block.kind in mla.COEFFICIENTS:
        return mla.predict(block.rows, values)
    return attention.predict(block.rows, values)


def cross_validated(
    blocks: Sequence[Block],
    base: Mapping[str, float] | None = None,
    base_spread: float = 1.0,
    folds: int = FOLDS,
    seed: int = 0,
    every: Sequence[Block] = (),
) -> Array:
    """ln(measured / predicted) of every row, predicted by a fit without its fold.

    every: blocks of all stacks, where the fit is that of `fit_family`.
    """
    others = [b for b in every if not any(b is block for block in blocks)]
    rng = np.random.default_rng(seed)
    fold = [rng.permutation(len(block)) % folds for block in blocks]
    errors: list[Array] = []
    for k in range(folds):
        kept = [b.take(f != k) for b, f in zip(blocks, fold, strict=True)]
        kept = [block for block in kept if len(block)]
        left = [b.take(f == k) for b, f in zip(blocks, fold, strict=True)]
        if not kept:
            continue
        if every:
            fitted = fit_family(kept, [*kept, *others])
        else:
            fitted = fit_blocks(kept, base, base_spread, quick=True)
        errors += [np.log(b.measured_s / predict(b, fitted)) for b in left if len(b)]
    return np.concatenate(errors)


# Physical bounds ------------------------------------------------------------------------------

# No SM loads more than this per clock (an L1 line), and no kernel takes less than this.
_SM_BYTES_PER_CLOCK = 128.0
_SHORTEST_KERNEL_S = 0.3e-6
# Rates are quoted at nominal clocks and rounded: only times below this share of the bound are
# impossible. NVLink send/recv of one profiled rank comes out 15 % above the link.
IMPOSSIBLE_FRAC = 0.75


def impossible(block: Block) -> NDArray[np.bool_]:
    """Which times beat the physical bound: the peak rates, with all the L2 holds read from it."""
    return block.measured_s < IMPOSSIBLE_FRAC * bound_s(block)


def bound_s(block: Block) -> Array:
    """Least seconds of each row that the hardware allows."""
    r, gpu = block.rows, block.gpu
    if block.kind == "collective":
        links = block.machine.links
        rate = max(links.link_bytes_per_s, links.pcie_bytes_per_s)
        share = (r.ranks - 1.0) / r.ranks
        within = r.message_bytes * share / rate
        return np.asarray(np.maximum(within, _SHORTEST_KERNEL_S))
    flops, moved, peak = work_of(block)
    if block.kind == "moe":  # how many experts are visited is the model's guess; top_k are for sure
        share = np.minimum(1.0, r.top_k * (r.n_local_experts == r.n_experts) / r.n_experts)
        moved = np.minimum(moved, share * weight_bytes(block))
    loaded = moved / (_SM_BYTES_PER_CLOCK * gpu.sm_count * gpu.clock_hz)
    missing = np.maximum(moved - gpu.l2_bytes, 0.0) / gpu.hbm_bytes_per_s
    return np.asarray(
        np.maximum.reduce([flops / peak, loaded, missing, np.full(len(block), _SHORTEST_KERNEL_S)])
    )


def weight_bytes(block: Block) -> Array:
    """Weights of all experts of each `moe` row."""
    r = block.rows
    weights = moe.MATRICES * r.n_experts * r.hidden_size * r.expert_width
    return np.asarray(weights * block.machine.facts["b_bytes"])


def work_of(block: Block) -> tuple[Array, Array, Any]:
    """FLOPs, compulsory bytes and peak rate of each row."""
    r = block.rows
    if block.kind == "gemm":
        facts = block.machine.facts
        a, b, c = facts["a_bytes"], facts["b_bytes"], facts["out_bytes"]
        moved = r.batch * (a * r.m * r.k + b * r.k * r.n + c * r.m * r.n)
        return 2.0 * r.batch * r.m * r.n * r.k, moved, facts["peak_flops_per_s"]
    if block.kind == "memory_bound":
        return 0.0 * r.rows, r.read_bytes + r.written_bytes, 1.0
    if block.kind == "moe":
        return *moe.work(r, block.machine), block.machine.facts["peak_flops_per_s"]
    if block.kind in mla.COEFFICIENTS:
        return *mla.work(r), r.facts[:, 0]
    seen = np.where(r.window > 0, np.minimum(r.context, r.window), r.context)
    masked = np.where(r.causal > 0, np.minimum(r.new_tokens, seen) / 2.0, 0.0)
    pairs = r.n_sequences * r.new_tokens * (seen - masked)
    kv_bytes = 2.0 * r.n_sequences * r.n_kv_heads * r.head_dim * seen * r.facts[:, 2]
    return 4.0 * pairs * r.n_heads * r.head_dim, kv_bytes, r.facts[:, 0]
