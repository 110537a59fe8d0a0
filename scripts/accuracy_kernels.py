"""Print how far predictions of single kernels and forward passes are from unseen measurements.

    python scripts/accuracy_kernels.py [MEASUREMENTS_FOLDER] [--write]

With a folder of measurement tables it judges the shipped profiles on every row outside their
calibration tables, refits without each GPU in turn, and shows the error against the number of
fitted rows. Without one it needs nothing but this repository: the same on the rows of
`calibration/tables/kernels`, each predicted by a fit without it (four folds). --write puts the
figures into docs/accuracy-kernels.md and docs/accuracy-kernels.json; without a folder it writes
the part of the small tables only, which is what CI compares.

Split: the rows in `calibration/tables/kernels` are fitted (`calibration/select_rows.py`: at most
64 of each operator kind, number format, GPU and stack, chosen from sizes alone before any fit);
all others are unseen. Errors are |predicted - measured| / measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "calibration" / "tables" / "kernels"
sys.path.insert(0, str(Path(__file__).parent))

import accuracy  # noqa: E402
from accuracy import percent, put_into, table  # noqa: E402

from rtsim.catalog import load_gpu  # noqa: E402
from rtsim.device_facts import attention_peak_flops_per_s  # noqa: E402
from rtsim.errors import NotSupported  # noqa: E402
from rtsim.fitting import gemm_priors, kernel_rows, kinds, mla, network_rows  # noqa: E402
from rtsim.fitting.attention_kernels import made_for_latent  # noqa: E402
from rtsim.fitting.generation import configurations, fit_stack  # noqa: E402
from rtsim.measurements import Columns, read_table  # noqa: E402
from rtsim.profile import RELEASE_MARK, Profile, load_profile, profile_names  # noqa: E402
from rtsim.profile_choice import gpu_distance  # noqa: E402
from rtsim.specs.gpu import GpuSpec  # noqa: E402

MARKDOWN = ROOT / "docs" / "accuracy-kernels.md"
JSON = ROOT / "docs" / "accuracy-kernels.json"

PREDICTORS = {
    "gemm": kernel_rows.predict_gemm,
    "attention_prefill": kernel_rows.predict_attention_prefill,
    "attention_decode": kernel_rows.predict_attention_decode,
    "elementwise": kernel_rows.predict_elementwise,
    "collective": kernel_rows.predict_collective,
    "moe": kernel_rows.predict_moe,
    "mla": kernel_rows.predict_mla,
}
# Columns that the small tables leave out.
LEFT_OUT_LABELS = {
    "elementwise": ("model", "tp", "kernel"), "moe": ("model", "op"), "mla": ("model", "kernel"),
}  # fmt: skip
# One stack under two names: kernels and communication of the same layers.
STACKS = {"sarathi-serve/pytorch": "sarathi-serve", "pytorch-nccl": "sarathi-serve"}
OTHER_METHOD = ("PrincetonUniversity/LLMCompass",)  # timed from the host, in no fit
FULL_16_BIT = gemm_priors.HALF
SIXTEEN_BITS = "16 bits"
NARROW_CACHE = "attention_prefill.bf16_fp8"  # written in 8 bits; on older GPUs the rest is as in 16
CURVE = (8, 16, 32, 64, 128)
CURVE_STACKS = ("vllm", "nccl", "sarathi-serve")  # one stack per kind and GPU is enough to see it
MOST_JUDGED = 3000  # rows of a section judged in refits: a fixed sample of a larger one
SEED = 0
WORST_SECTIONS = 3  # listed per kind


@dataclass(frozen=True)
class Section:
    """Rows of one operator kind and number format on one GPU with one stack.

    versions: of the stack, among the fitted rows.
    """

    kind: str  # of the table
    gpu: str
    stack: str
    section: str  # of a profile: "gemm.fp8"
    fitted: list[kinds.Block]
    unseen: list[kinds.Block]
    versions: set[str]

    @property
    def format(self) -> str:
        return self.section.partition(".")[2] or "-"


@dataclass(frozen=True)
class Group:
    """Errors of some rows: ln(predicted / measured) by predictor."""

    log_errors: Mapping[str, np.ndarray]
    inside: np.ndarray  # of the 90 % interval; empty where there is none
    same: np.ndarray  # whether a row is of a version of the stack that was fitted

    def mape(self, predictor: str = "rtsim") -> float:
        return float(np.abs(np.expm1(self.log_errors[predictor])).mean())

    def of_versions(self, fitted: bool) -> Group | None:
        """The rows of versions that were fitted, or of all others; None where there are none."""
        chosen = self.same == fitted
        if not chosen.any():
            return None
        inside = self.inside[chosen] if len(self.inside) else self.inside
        errors = {name: values[chosen] for name, values in self.log_errors.items()}
        return Group(errors, inside, self.same[chosen])

    def figures(self) -> dict[str, Any]:
        own = np.expm1(self.log_errors["rtsim"])
        body = {
            "rows": len(own),
            "mape": float(np.abs(own).mean()),
            "median_ape": float(np.median(np.abs(own))),
            "bias": float(own.mean()),
            "coverage_90": float(self.inside.mean()) if len(self.inside) else None,
        }
        others = (name for name in self.log_errors if name != "rtsim")
        return {**body, **{f"{name}_mape": self.mape(name) for name in others}}


# Rows --------------------------------------------------------------------------------------------


def stack_of(name: str) -> str:
    return STACKS.get(name, name)


def fitted_tables(kind: str) -> list[Columns]:
    """The calibration tables of a kind of table."""
    return [read_table(path).columns for path in sorted(TABLES.glob(f"{kind}_*.csv"))]


def row_keys(columns: Columns, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


def is_fitted(kind: str, columns: Columns) -> np.ndarray:
    """Which rows of a large table are in the calibration tables."""
    own = fitted_tables(kind)
    # The small tables leave out labels; every size, the stack, its version and the time are in.
    labels = LEFT_OUT_LABELS.get(kind, ("model", "tp", "op", "kernel"))
    names = [name for name in columns if name not in labels]
    used = {key for c in own for key in row_keys(c, names)}
    return np.array([key in used for key in row_keys(columns, names)])


def blocks(kind: str, columns: Columns, members: np.ndarray) -> list[kinds.Block]:
    section_kind = kinds.SECTION_KINDS[kind]
    usable = kinds.usable(section_kind, columns) == ""
    known = ~np.isin(columns["source"], OTHER_METHOD)
    members = members[(usable & known)[members]]
    return kinds.blocks_of(section_kind, columns, members, load_gpu)


def sections(kind: str, columns: Columns | None) -> list[Section]:
    """The sections of a kind; without a large table (`columns`) nothing is unseen."""
    found: dict[tuple[str, str, str], Section] = {}

    def place(block: kinds.Block) -> Section:
        key = (block.gpu.name, stack_of(block.stack), block.section)
        return found.setdefault(key, Section(kind, *key, [], [], set()))

    for own in fitted_tables(kind):
        for block in kinds.older_releases(blocks(kind, own, np.arange(len(own["gpu"])))):
            section = place(block)
            section.fitted.append(block)
            section.versions.update(own["stack_version"][block.table_rows].tolist())
    if columns is not None:
        for block in blocks(kind, columns, np.flatnonzero(~is_fitted(kind, columns))):
            known = (block.gpu.name, stack_of(block.stack), block.of_release.section) in found
            place(block.of_release if known else block).unseen.append(block)
    return [s for _, s in sorted(found.items()) if s.fitted]


def sampled(parts: Sequence[kinds.Block], most: int = MOST_JUDGED) -> list[kinds.Block]:
    """A fixed sample of at most `most` rows."""
    total = sum(len(block) for block in parts)
    if total <= most:
        return list(parts)
    rng = np.random.default_rng(SEED)
    return [
        b.take(np.sort(rng.permutation(len(b))[: max(1, len(b) * most // total)])) for b in parts
    ]


# Baselines ---------------------------------------------------------------------------------------


def roofline_s(block: kinds.Block) -> np.ndarray:
    """The plain roofline: max(FLOPs / peak, compulsory bytes / bandwidth), with nothing fitted.

    Communication: what crosses one GPU's link over the link's rate (the network's between nodes).
    """
    rows, gpu = block.rows, block.gpu
    if block.kind == "collective":
        links = block.machine.links
        linked = rows.ranks <= links.link_domain
        rate = np.where(linked, links.link_bytes_per_s, links.pcie_bytes_per_s)
        rate = np.where(rows.ranks_per_node < rows.ranks, links.network_bytes_per_s, rate)
        passes = np.where(rows.op == 0, 2.0, 1.0)  # all-reduce: there and back
        return passes * rows.message_bytes * (rows.ranks - 1.0) / rows.ranks / rate
    flops, moved, peak = kinds.work_of(block)
    return np.maximum(flops / peak, moved / gpu.hbm_bytes_per_s)


def log_ratio(predicted_s: np.ndarray, block: kinds.Block) -> np.ndarray:
    return np.log(predicted_s / block.measured_s)


def scale_of(fitted: Iterable[kinds.Block]) -> float:
    """ln of the one factor on the roofline with the least mean error on a section's rows.

    sum |s p/m - 1| is least at the median of m/p weighted by p/m.
    """
    log_times = np.sort(np.concatenate([-log_ratio(roofline_s(b), b) for b in fitted]))
    weight = np.cumsum(np.exp(-log_times))
    return float(log_times[np.searchsorted(weight, 0.5 * weight[-1])])


def judged(
    parts: Sequence[kinds.Block],
    fitted: Sequence[kinds.Block],
    own: Sequence[np.ndarray],
    inside: Sequence[np.ndarray] = (),
    same: Sequence[np.ndarray] = (),
) -> Group:
    """Errors of blocks beside both baselines. own: ln(predicted / measured) of each block."""
    plain = np.concatenate([log_ratio(roofline_s(b), b) for b in parts])
    errors = {
        "rtsim": np.concatenate(own), "roofline": plain, "scaled": plain + scale_of(fitted)
    }  # fmt: skip
    return Group(
        errors,
        np.concatenate(inside) if inside else np.zeros(0),
        np.concatenate(same) if same else np.ones(len(plain), bool),
    )


def together(groups: Sequence[Group]) -> Group:
    names = groups[0].log_errors
    return Group(
        {name: np.concatenate([g.log_errors[name] for g in groups]) for name in names},
        np.concatenate([g.inside for g in groups]),
        np.concatenate([g.same for g in groups]),
    )


# What is judged ----------------------------------------------------------------------------------


def shipped(all_sections: Sequence[Section], columns: Columns, kind: str) -> list[Group]:
    """The shipped profiles on unseen rows, as `rtsim validate` predicts them.

    A stack without a profile is judged by a fit to its calibration rows, without an interval.
    """
    times = PREDICTORS[kind](columns, None)["time"]
    log_error = np.log(times.predicted_s / times.measured_s)
    covered = (times.low_s <= times.measured_s) & (times.measured_s <= times.high_s)
    groups = []
    for section in all_sections:
        fitted_versions = sorted(section.versions)
        same = [
            np.isin(columns["stack_version"][b.table_rows], fitted_versions) for b in section.unseen
        ]
        if np.isnan(log_error[section.unseen[0].table_rows]).any():
            fitted = kinds.fit_blocks(section.fitted)
            own = [log_ratio(kinds.predict(b, fitted), b) for b in section.unseen]
            groups.append(judged(section.unseen, section.fitted, own, (), same))
            continue
        own = [log_error[b.table_rows] for b in section.unseen]
        inside = [covered[b.table_rows] for b in section.unseen]
        groups.append(judged(section.unseen, section.fitted, own, inside, same))
    return groups


def cross_validated(all_sections: Sequence[Section]) -> list[Group]:
    """The calibration rows, each predicted by a fit without its fold.

    The few of an older release start from the newest one, as in `calibration/fit_stacks.py`.
    """
    of = {(s.gpu, s.stack, s.section): s for s in all_sections}

    def error_of(section: Section) -> np.ndarray:
        newest, mark, _ = section.section.partition(RELEASE_MARK)
        if not mark:
            return -kinds.cross_validated(section.fitted, seed=SEED)
        base = kinds.fit_blocks(of[section.gpu, section.stack, newest].fitted).coefficients
        return -kinds.cross_validated(section.fitted, base, kinds.ALIKE_SPREAD, seed=SEED)

    return [judged(s.fitted, s.fitted, [error_of(s)]) for s in all_sections]


def gpu_left_out(all_sections: Sequence[Section]) -> dict[tuple[str, str, str], Group]:
    """(stack, section, GPU) -> errors on the GPU with a joint fit on other GPUs.

    The fit is of the stack on other GPUs; of all stacks for 16-bit products, which run alike in
    them; of all stacks first, then of those with like kernels, for decode attention and, within
    a generation of kernels, for latent attention (`fitting.attention_kernels`); of prompts in 16
    bits where only the cache has 8 and the GPU does not multiply in them.
    """
    errors = {}
    fits: dict[tuple[str, str, str], kinds.SectionFit] = {}

    def alike(section: Section) -> str:
        if section.kind == "gemm" and is_16_bit(section):
            return SIXTEEN_BITS
        return f"{section.stack} {section.section}"

    for section in all_sections:
        gpu = load_gpu(section.gpu)
        elsewhere = [s for s in all_sections if s.gpu != section.gpu]
        wanted = alike(section)
        if section.section == NARROW_CACHE and not multiplies_in_8_bits(gpu):
            wanted = wanted.removesuffix("_fp8")
        others = [b for s in elsewhere if alike(s) == wanted for b in s.fitted]
        every = [b for s in elsewhere if s.section == section.section for b in s.fitted]
        if is_latent(section):
            made = made_for_latent(gpu)
            every = others = [b for b in every if made_for_latent(b.gpu) == made]
        if len({block.gpu.name for block in others}) < (1 if is_latent(section) else 2):
            continue
        key_of_fit = (section.stack, section.gpu, section.section)
        if alike(section) == SIXTEEN_BITS:  # one fit serves all stacks
            key_of_fit = (alike(section), section.gpu, "")
        if key_of_fit not in fits:
            fits[key_of_fit] = kinds.fit_family(others, every, section.stack, gpu)
        fitted = fits[key_of_fit]
        parts = sampled(section.unseen or section.fitted)
        own = [log_ratio(kinds.predict(b, fitted), b) for b in parts]
        key = (section.stack, section.section, section.gpu)
        errors[key] = judged(parts, others, own)
    return errors


def multiplies_in_8_bits(gpu: GpuSpec) -> bool:
    """Whether attention does where only its cache has 8 bits."""
    peaks = [attention_peak_flops_per_s(gpu, "bf16", cache) for cache in ("fp8", "bf16")]
    return peaks[0] > peaks[1]


def curve(all_sections: Sequence[Section]) -> dict[int, float]:
    """Mean over GPUs of the error on rows outside the fit, by number of fitted rows.

    One stack per GPU, in its widest format; rows by the recipe's own design.
    """
    points: dict[int, list[float]] = {}
    for section in all_sections:
        if section.stack not in CURVE_STACKS or not section.unseen:
            continue
        if section.format not in ("bf16", "fp16", "nccl", "tensor", "general"):
            continue
        for count in CURVE:
            chosen = kinds.choose(section.unseen, count)
            if sum(map(len, chosen)) < count:
                continue
            used = {int(i) for b in chosen for i in b.table_rows}
            rest = sampled([
                b.take(np.array([int(i) not in used for i in b.table_rows]))
                for b in section.unseen
            ])  # fmt: skip
            fitted = kinds.fit_blocks(chosen, quick=True)
            errors = [np.expm1(log_ratio(kinds.predict(b, fitted), b)) for b in rest]
            points.setdefault(count, []).append(float(np.abs(np.concatenate(errors)).mean()))
    return {count: float(np.mean(found)) for count, found in points.items()}


def network_left_out(columns: Columns) -> dict[str, dict[str, np.ndarray]]:
    """Way -> GPU -> signed errors of forward passes with no row of the GPU in any fit.

    "nearest": the shipped profile of the GPU most like it, as the command would choose; "joint":
    one fit of the kernels over all other GPUs.
    """
    shipped_profiles = [p for p in map(load_profile, profile_names()) if p.stack == "pytorch"]
    kernels = {
        kind: [s for s in sections(kind, None) if s.stack == "pytorch"]
        for kind in ("gemm", "elementwise")
    }
    errors: dict[str, dict[str, np.ndarray]] = {"nearest": {}, "joint": {}}
    for name in sorted(set(columns["gpu"].tolist())):
        gpu = load_gpu(name)
        others = [p for p in shipped_profiles if p.gpu != gpu.name]
        nearest = min(others, key=lambda p: gpu_distance(gpu, p))
        coefficients = {}
        for found in kernels.values():
            fitted = kinds.fit_blocks([b for s in found if s.gpu != gpu.name for b in s.fitted])
            coefficients[fitted.section] = fitted.coefficients
        joint = replace(nearest, coefficients=coefficients)
        errors["nearest"][name] = pass_errors(columns, name, nearest)
        errors["joint"][name] = pass_errors(columns, name, joint)
    return errors


def pass_errors(columns: Columns, gpu: str, profile: Profile) -> np.ndarray:
    """Signed errors of a GPU's forward passes with a profile."""
    own = []
    for i in np.flatnonzero(columns["gpu"] == gpu):
        row = {column: columns[column][i].item() for column in columns}
        try:
            predicted_s = network_rows.forward_pass(row, load_gpu(gpu), profile).seconds
        except NotSupported:
            continue
        own.append(predicted_s / (1e-3 * row["measured_ms"]) - 1.0)
    return np.array(own)


def generation_goals(folder: Path) -> list[tuple[str, float, float, float]]:
    """(what, must, aim, value) of whole generations with a model left out, see accuracy.py."""
    columns = read_table(folder / "generation.csv").columns
    goals = []
    for recipe, base in accuracy.bases():
        shipped_profile = accuracy.load_profile(f"megatron-lm-{recipe.gpu}")
        path = accuracy.fit_megatron.TABLES / recipe.table
        fitted = configurations(read_table(path).columns)
        errors, prompt_only = [], []
        for full in configurations(columns):
            if full.gpu.name != shipped_profile.gpu:
                continue
            rest = [c for c in fitted if c.label != full.label]
            freedoms = accuracy.fit_megatron.freedoms_of(recipe, base)
            refitted, _ = fit_stack(rest, base, freedoms)
            judged_errors = accuracy.Errors(full, replace(refitted, gpu=shipped_profile.gpu))
            errors.append(np.abs(judged_errors.error))
            prompt_only.append(judged_errors.prompt_only)
        error, prompt = np.concatenate(errors), np.concatenate(prompt_only)
        if recipe.gpu.startswith("a100"):
            goals.append(
                ("generation, model left out (A100), end to end", 0.04, 0.025, error.mean())
            )
            goals.append(("the same, prompt pass only", 0.10, 0.06, error[prompt].mean()))
        else:
            what = "generation, V100, one model fitted, the other predicted"
            goals.append((what, 0.08, 0.05, error.mean()))
    return [(what, must, aim, float(value)) for what, must, aim, value in goals]


def whole_blocks(columns: Columns, fitted: np.ndarray) -> dict[tuple[str, str, str], np.ndarray]:
    """(operator, stack, GPU) -> signed errors of whole blocks of latent attention, unseen rows."""
    times = PREDICTORS["mla"](columns, None)["time"]
    error = times.predicted_s / times.measured_s - 1.0
    known = np.isin(columns["op"], mla.MODULES) & ~np.isnan(error) & ~fitted
    found = kernel_rows.grouped(columns, ("op", "stack", "gpu"), np.flatnonzero(known))
    return {(k["op"], k["stack"], k["gpu"]): error[rows] for k, rows in found}


# Text --------------------------------------------------------------------------------------------


HEADER = (
    "kind", "stack", "GPU", "format", "rows", "mean error", "median", "bias", "in 90 %",
    "scaled roofline", "roofline",
)  # fmt: skip


def line(labels: Sequence[str], group: Group) -> list[str]:
    f = group.figures()
    covered = "-" if f["coverage_90"] is None else percent(f["coverage_90"])
    return [
        *labels, str(f["rows"]), percent(f["mape"]), percent(f["median_ape"]),
        f"{100 * f['bias']:+.1f} %", covered, percent(f["scaled_mape"], 0),
        percent(f["roofline_mape"], 0),
    ]  # fmt: skip


def section_lines(all_sections: Sequence[Section], groups: Sequence[Group]) -> list[list[str]]:
    rows = [
        line([s.kind, s.stack, s.gpu, s.format], g)
        for s, g in zip(all_sections, groups, strict=True)
    ]
    return [*rows, line([all_sections[0].kind, "all", "all", "all"], together(groups))]


Chosen = Callable[[Section], bool]


def mean_over_gpus(
    all_sections: Sequence[Section], groups: Sequence[Group | None], chosen: Chosen
) -> float | None:
    """Mean over GPUs of the mean error of the chosen sections' rows."""
    by_gpu: dict[str, list[Group]] = {}
    for section, group in zip(all_sections, groups, strict=True):
        if group is not None and chosen(section):
            by_gpu.setdefault(section.gpu, []).append(group)
    if not by_gpu:
        return None
    return float(np.mean([together(found).mape() for found in by_gpu.values()]))


def is_16_bit(section: Section) -> bool:
    return section.format in FULL_16_BIT


def is_latent(section: Section) -> bool:
    return section.section.startswith("mla_")


def is_latent_prefill(section: Section) -> bool:
    return section.section.startswith("mla_prefill.")


def is_latent_decode(section: Section) -> bool:
    return section.section.startswith("mla_decode.")


def is_quantised(section: Section) -> bool:
    return section.format not in (*FULL_16_BIT, "fp32", "tf32")


def every(section: Section) -> bool:
    return True


# (what, kind of table, which sections, must, aim); the work's own list.
TARGETS: tuple[tuple[str, str, Chosen, float, float], ...] = (
    ("GEMM bf16/fp16, mean over GPUs", "gemm", is_16_bit, 0.07, 0.05),
    ("GEMM fp8 and other quantised formats, mean over GPUs", "gemm", is_quantised, 0.10, 0.07),
    ("fused prefill attention, mean over GPUs", "attention_prefill", every, 0.10, 0.06),
    ("fused decode attention, mean over GPUs", "attention_decode", every, 0.12, 0.07),
    ("memory-bound operators, mean over GPUs", "elementwise", every, 0.12, 0.08),
    ("collectives, mean over GPUs", "collective", every, 0.15, 0.10),
    ("mixture-of-experts layers, mean over GPUs", "moe", every, 0.15, 0.10),
    ("latent attention, prefill, mean over GPUs", "mla", is_latent_prefill, 0.15, 0.10),
    ("latent attention, decode, mean over GPUs", "mla", is_latent_decode, 0.15, 0.10),
)
LEFT_OUT_TARGETS: tuple[tuple[str, tuple[str, ...], float, float], ...] = (
    ("GEMM (16 bits) on a GPU left out", ("gemm.bf16", "gemm.fp16"), 0.12, 0.08),
    ("prefill attention (16 bits) on a GPU left out",
     ("attention_prefill.bf16", "attention_prefill.fp16"), 0.20, 0.12),
    ("decode attention (16 bits) on a GPU left out",
     ("attention_decode.bf16", "attention_decode.fp16"), 0.20, 0.12),
    ("mixture-of-experts layers (16 bits) on a GPU left out",
     ("moe.bf16", "moe.bf16_triton", "moe.bf16_cutlass"), 0.25, 0.15),
    ("latent attention, prefill (16 bits) on a GPU left out",
     ("mla_prefill.bf16",), 0.25, 0.15),
    ("latent attention, decode (16 bits) on a GPU left out",
     ("mla_decode.bf16",), 0.25, 0.15),
)  # fmt: skip
NETWORK_MUST, NETWORK_AIM = 0.09, 0.06
NETWORK_WAYS = {
    "nearest": "forward passes, no row of the GPU in any fit: profile of the nearest GPU",
    "joint": "forward passes, no row of the GPU in any fit: joint fit of the others",
}
COVERED_MUST, COVERED_AIM = (0.85, 0.95), (0.88, 0.92)


def share(value: float) -> str:
    """A target: 7 %, 2.5 %."""
    return f"{100 * value:g} %"


def verdict(value: float, must: float, aim: float) -> str:
    if value <= aim:
        return "aim reached"
    return "reached" if value <= must else "MISSED"


def covered_verdict(value: float) -> str:
    if COVERED_AIM[0] <= value <= COVERED_AIM[1]:
        return "aim reached"
    return "reached" if COVERED_MUST[0] <= value <= COVERED_MUST[1] else "MISSED"


@dataclass
class Report:
    """Figures under names, and the Markdown that shows them."""

    figures: dict[str, Any]
    text: list[str]


def report(folder: Path | None) -> Report:
    out = Report({}, [])
    lines: list[list[str]] = []
    left_lines: list[list[str]] = []
    curves: dict[str, dict[int, float]] = {}
    goals: list[list[str]] = []
    left_out: dict[tuple[str, str, str], Group] = {}
    by_kind: dict[str, tuple[list[Section], list[Group]]] = {}
    for kind in kinds.SECTION_KINDS:
        columns = None if folder is None else read_table(folder / f"{kind}.csv.gz").columns
        found = sections(kind, columns)
        if columns is None:
            groups = cross_validated(found)
        else:
            found = [s for s in found if s.unseen]
            groups = shipped(found, columns, kind)
            curves[kind] = curve(found)
        by_kind[kind] = found, groups
        lines += section_lines(found, groups)
        left_out.update(gpu_left_out(found))
        print(f"{kind}: judged", file=sys.stderr)
    out.figures["sections"] = [
        {"kind": s.kind, "gpu": s.gpu, "stack": s.stack, "format": s.format,
         "fitted_rows": sum(map(len, s.fitted)), **g.figures()}
        for found, groups in by_kind.values()
        for s, g in zip(found, groups, strict=True)
    ]  # fmt: skip
    version_lines = []
    for what, kind, chosen, must, aim in TARGETS:
        found, groups = by_kind[kind]
        value = mean_over_gpus(found, groups, chosen)
        if value is None:
            continue
        goals.append([what, share(must), share(aim), percent(value), verdict(value, must, aim)])
        parts = [
            mean_over_gpus(found, [g.of_versions(fitted) for g in groups], chosen)
            for fitted in (True, False)
        ]
        version_lines.append([what, *("-" if v is None else percent(v) for v in parts)])
    for what, names, must, aim in LEFT_OUT_TARGETS:
        values: dict[str, list[Group]] = {}
        for (_, section, gpu), group in left_out.items():
            if section in names:
                values.setdefault(gpu, []).append(group)
        if not values:
            continue
        value = float(np.mean([together(groups).mape() for groups in values.values()]))
        goals.append([what, share(must), share(aim), percent(value), verdict(value, must, aim)])
    left_lines = [
        line([section.partition(".")[0], stack, gpu, section.partition(".")[2] or "-"], group)
        for (stack, section, gpu), group in left_out.items()
    ]
    out.figures["gpu_left_out"] = [
        {"stack": stack, "section": section, "gpu": gpu, **group.figures()}
        for (stack, section, gpu), group in left_out.items()
    ]
    network_rows_text: list[list[str]] = []
    block_rows: list[list[str]] = []
    if folder is not None:
        latent = read_table(folder / "mla.csv.gz").columns
        blocks_found = whole_blocks(latent, is_fitted("mla", latent))
        out.figures["whole_blocks"] = [
            {"op": op, "stack": stack, "gpu": gpu, "rows": len(e),
             "mape": float(np.abs(e).mean()), "bias": float(e.mean())}
            for (op, stack, gpu), e in blocks_found.items()
        ]  # fmt: skip
        block_rows = [
            [op, stack, gpu, str(len(e)), percent(np.abs(e).mean()), f"{100 * e.mean():+.1f} %"]
            for (op, stack, gpu), e in blocks_found.items()
        ]
    if folder is not None:
        for what, must, aim, value in generation_goals(folder):
            goals.append([what, share(must), share(aim), percent(value), verdict(value, must, aim)])
        times = network_rows.predict_rows(
            read_table(folder / "network_inference.csv").columns, None
        )["forward"]
        known = ~np.isnan(times.predicted_s)
        whole = np.abs(times.predicted_s / times.measured_s - 1.0)[known]
        value = float(whole.mean())
        goals.append(
            ["forward passes (network_inference), none in any fit, kernels of the GPU known",
             share(NETWORK_MUST), share(NETWORK_AIM), percent(value),
             verdict(value, NETWORK_MUST, NETWORK_AIM)]
        )  # fmt: skip
        inside = (times.low_s <= times.measured_s) & (times.measured_s <= times.high_s)
        network_covered = float(inside[known].mean())
        out.figures["network"] = {
            "rows": len(whole), "mape": value, "coverage_90": network_covered
        }  # fmt: skip
        network = network_left_out(read_table(folder / "network_inference.csv").columns)
        for way, found_errors in network.items():
            value = float(np.abs(np.concatenate(list(found_errors.values()))).mean())
            goals.append(
                [NETWORK_WAYS[way], share(NETWORK_MUST), share(NETWORK_AIM), percent(value),
                 verdict(value, NETWORK_MUST, NETWORK_AIM)]
            )  # fmt: skip
        network_rows_text = [
            [NETWORK_WAYS[way], gpu, str(len(e)), percent(np.abs(e).mean()),
             f"{100 * e.mean():+.1f} %"]
            for way, found_errors in network.items()
            for gpu, e in found_errors.items()
        ]  # fmt: skip
        out.figures["network_left_out"] = {
            way: {
                gpu: {"rows": len(e), "mape": float(np.abs(e).mean()), "bias": float(e.mean())}
                for gpu, e in found_errors.items()
            }
            for way, found_errors in network.items()
        }
        for kind, (_, groups) in by_kind.items():
            inside = together(groups).inside
            if len(inside) == 0:
                continue
            covered = float(inside.mean())
            goals.append(
                [f"90 % interval covers, {kind}", "85-95 %", "88-92 %", percent(covered),
                 covered_verdict(covered)]
            )  # fmt: skip
        goals.append(
            ["90 % interval covers, network_inference", "85-95 %", "88-92 %",
             percent(network_covered), covered_verdict(network_covered)]
        )  # fmt: skip
    out.figures["targets"] = [
        dict(zip(("what", "must", "aim", "measured", "verdict"), goal, strict=True))
        for goal in goals
    ]
    out.figures["curve"] = {kind: {str(n): v for n, v in c.items()} for kind, c in curves.items()}
    out.text += [
        "Targets:", table(["what", "must", "aim", "measured", "verdict"], goals),
        "By kind, stack, GPU and number format:", table(HEADER, lines),
        "A GPU left out: one fit to the calibration rows of the stack's other GPUs (16-bit "
        "products: of all stacks on other GPUs; decode and latent attention: of all stacks "
        "first, then of like kernels; prompts with an 8-bit cache on a GPU that multiplies in "
        "16 bits: of those in 16 bits), "
        "applied with the datasheet figures of this one.",
        table(HEADER, left_lines),
    ]  # fmt: skip
    worst = [
        line([s.kind, s.stack, s.gpu, s.format], g)
        for found, groups in by_kind.values()
        for s, g in sorted(zip(found, groups, strict=True), key=lambda pair: -pair[1].mape())[
            :WORST_SECTIONS
        ]
    ]
    out.text += ["Where it misses most:", table(HEADER, worst)]
    if folder is not None:
        out.text += [
            "Unseen rows by version of the stack:",
            table(["what", "versions with fitted rows", "other versions"], version_lines),
        ]
    if network_rows_text:
        out.text += [
            "Forward passes with no kernel row of the GPU in the fit:",
            table(["way", "GPU", "rows", "mean error", "bias"], network_rows_text),
        ]
    if block_rows:
        out.text += [
            "Whole blocks of latent attention, put together from their kernels:",
            table(["block", "stack", "GPU", "rows", "mean error", "bias"], block_rows),
        ]
    if curves:
        header = ["kind", *(f"{count} rows" for count in CURVE)]
        rows = [
            [kind, *(percent(c[count]) if count in c else "-" for count in CURVE)]
            for kind, c in curves.items()
        ]
        out.text += [
            "Error against the number of fitted rows (16-bit formats, "
            f"{', '.join(CURVE_STACKS)}; mean over GPUs):", table(header, rows),
        ]  # fmt: skip
    return out


def rounded(value: Any) -> Any:
    """Figures to four decimals: what is printed, and no noise of another machine's last digits."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    result = report(options.folder)
    text = "\n\n".join(result.text) + "\n"
    print(text)
    if options.write:
        part = "small tables" if options.folder is None else "unseen rows"
        put_into(MARKDOWN, part, text)
        known = json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else {}
        known[part] = rounded(result.figures)
        JSON.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
