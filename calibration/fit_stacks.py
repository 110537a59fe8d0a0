"""Fit the profiles of software stacks and of GPU families from the small tables in tables/kernels.

    python calibration/fit_stacks.py [--runs] [--check | --transfer] [NAME...]

Writes src/rtsim/data/profiles/<stack>-<gpu>.toml and family-<architecture>.toml, or only those
named; with --check it writes nothing and exits with status 1 if a shipped profile differs from
what the tables give. With --runs only what engines add ([serving.*], releases) is fitted anew, on
top of the kernels that the shipped profiles hold; the same comes out as with all of it.

* vllm, trtllm, sglang on A100, H100, L40S, B200: every section from its own rows, at most 64 per
  operator kind and number format (16-bit products with a joint fit of the other two stacks as
  prior, int4 experts of vllm and sglang, which both run Marlin, with that of each other); the
  communication library from nccl-tests on the same GPU; norms, activations and the like from
  kernels timed inside layers (of these stacks only the quantisation of activations was measured).
  A kind that was not measured in a stack takes the coefficients of another stack on that GPU.
  Expert layers have a section for each family of kernels that a stack switches between. Latent
  attention of vllm was measured in whole blocks only: what its other kernels take is predicted.
* sarathi-serve (PyTorch kernels timed inside layers, NCCL called from PyTorch) on A100, A40, H100.
* pytorch (single eager calls between two events, fp32) on P100, V100, T4, A100.
* family-<architecture>: one set for the GPUs of an architecture, and `family-generic` for all
  others, fitted jointly over GPUs; of the stacks the reference one (vllm), since kernels of
  different stacks in one fit are worse than either; decode attention learns from all stacks
  first (`kinds.fit_family`). They serve GPUs that nobody measured.

What an engine adds to its kernels (scheduler, prompts beside decodes, kernels in graphs) is fitted
to serving runs and offline batches (tables in tables/serving) on top of the kernels, where there
are any; another GPU takes that of the same stack on the GPU that `RUNS_OF` names. Single batches
without a server keep a stated host track (`HOST`): no whole generation was measured in a serving
stack, its deviation is wide, and each profile says so.

Transfer deviations (`TRANSFER`) come from leaving each GPU out of a joint fit of its stack over
the others; --transfer measures and prints them anew, which takes minutes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from rtsim.calibrate import TRANSFER_SIGMAS, UNFITTED_SIGMAS, blank_profile
from rtsim.catalog import load_gpu
from rtsim.fitted_sections import GROUPS_OF_KIND, error_figures, uncertainty_of, with_section
from rtsim.fitting import kernel_rows, kinds, mla, mla_module, serving_fit
from rtsim.fitting.attention_kernels import made_for_latent
from rtsim.fitting.kinds import Block, SectionFit
from rtsim.kernel_records import attention_variants
from rtsim.measurements import read_table
from rtsim.operators import StackTraits
from rtsim.profile import RELEASE_MARK, Profile, load_profile
from rtsim.profile_file import profile_toml, rounded, uncertainties, write_profile

HERE = Path(__file__).parent
TABLES = HERE / "tables" / "kernels"
RUNS = HERE / "tables" / "serving"
PROFILES = HERE.parent / "src" / "rtsim" / "data" / "profiles"
DATE = "2026-11-23"
OF_RUNS = "serving."  # sections of what engines add

SERVING = ("vllm", "trtllm", "sglang")
REFERENCE = "vllm"
# Latent attention of the reference stack was measured in whole blocks only; that of this one alone.
LATENT_REFERENCE = "trtllm"
LATENT_KINDS = ("mla_prefill", "mla_decode")
ABSORB = "gemm.absorb"  # its batched products
SERVED = ("a100-sxm4-80gb", "h100-sxm5-80gb", "l40s", "b200-hgx-180gb")
IN_LAYERS = ("a100-sxm4-80gb", "a40", "h100-sxm5-80gb", "a100-pcie-80gb", "h100-nvl-94gb")
EAGER = ("p100-pcie-16gb", "v100-pcie-32gb", "t4", "a100-pcie-40gb")
FAMILIES = {
    "volta": ("v100-sxm3-32gb",),
    "ampere": ("a100-sxm4-80gb", "a40"),
    "ada": ("l40s",),
    "hopper": ("h100-sxm5-80gb",),
    "blackwell": ("b200-hgx-180gb",),
    "generic": SERVED,
}
# A chip that stands for an architecture without measured serving kernels.
VOLTA_PROFILE = "megatron-lm-v100-sxm3-32gb"
# GPUs whose serving runs, and whose batches, stand for those of another.
RUNS_OF = {"b200-hgx-180gb": "b200-hgx-180gb"}
RUNS_ELSE = "h100-sxm5-80gb"
# Further deviation of serving runs on another GPU: docs/accuracy-serving.md, GPU left out.
TRANSFER_RUNS = 0.15

# Host track of a serving stack that replays CUDA graphs, stated: a graph issues a kernel in 1 to
# 2 us, the scheduler and sampler of a step take a few hundred us; prompts are tokenised before
# they arrive. Kernel times from graph replays hold the gap between kernels already.
HOST = {
    "step_s": 4e-4, "launch_s": 1.5e-6, "collective_s": 1e-6, "exposed_frac": 1e-3,
    "prefill_layer_s": 2e-6, "prompt_token_s": 1e-8, "corner": 6.0, "kernel_gap_s": 2e-7,
    "score_passes": 1.0,
}  # fmt: skip
HOST_NOTE = (
    "host track stated, not fitted: no whole generation was measured in this stack "
    "(CUDA-graph replay, 1.5 us per kernel, 0.4 ms per step)"
)
EAGER_NOTE = "kernels timed as single eager calls, launch in the time; host track at its priors"
# Norms and the like of these stacks stream, as whole blocks of latent attention say
# (rtsim_kernels/memory_bound.py).
SERVING_TRAITS = StackTraits(vector_kernels=True)
EAGER_TRAITS = StackTraits(attention="unfused", logits="all", fused_norm=False, eager_copies=True)

# Further deviation by group on a GPU left out of the fit, as --transfer prints it.
TRANSFER = {
    "gemm": 0.12, "scores": 0.12, "values": 0.12, "attention": 0.21, "memory_bound": 0.18,
    "collective": 0.36, "moe": 0.14, "mla": 0.11,
}  # fmt: skip

# 16-bit products run in one library in all serving stacks: what the others' rows say of a GPU is
# the prior of each (`kinds.ALIKE_SPREAD`). Error on unseen rows falls from 8.14 to
# 8.00 % over three other choices of rows, from 8.34 to 8.32 % with the rows in tables/kernels;
# quantised products gain nothing from one another.
PRODUCTS_16_BIT = "gemm.bf16"
# Both run Marlin for int4 experts: 3 % apart on H100.
MARLIN_STACKS = ("vllm", "sglang")
MARLIN_EXPERTS = "moe.int4_wo_marlin"

KINDS = tuple(GROUPS_OF_KIND)


@dataclass
class Draft:
    """A profile that is being put together section by section."""

    profile: Profile
    fits: list[SectionFit] = field(default_factory=list)
    described: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)
    rows: int = 0

    def add(
        self, blocks: Sequence[Measured], section: str = "", *,
        alike: Sequence[Measured] = (), every: Sequence[Measured] = (),
    ) -> None:  # fmt: skip
        """Fit one section to `blocks`; `section` renames it.

        alike: blocks that set the priors. every: see `kinds.fit_family`.
        """
        fit, error = fitted(tuple(blocks), tuple(alike), tuple(every))
        if section:
            fit = replace(fit, section=section)
        mape, median, sigma = error_figures(error)
        groups = GROUPS_OF_KIND[fit.section.partition(".")[0]]
        if self.profile.gpu and self.profile.gpu not in {b.block.gpu.name for b in blocks}:
            sigma = math.hypot(sigma, TRANSFER[groups[0]])
        self.profile = with_section(self.profile, fit, sigma)
        self.fits.append(fit)
        count = sum(len(b.block) for b in blocks)
        self.rows += count
        where = sorted({f"{b.block.gpu.name} {b.stack}" for b in blocks})
        self.described[fit.section] = (
            f"{count} rows of {', '.join(where)}; cross-validated error {mape:.1%} "
            f"(median {median:.1%})"
        )
        if alike:
            stacks = ", ".join(sorted({b.stack for b in alike}))
            total = sum(len(b.block) for b in alike)
            self.described[fit.section] += f"; priors from {total} rows of {stacks}"
        for group in groups:
            self.errors.setdefault(group, []).append(sigma)
        for b in (*blocks, *alike):
            self.tables += [b.table] if b.table not in self.tables else []
            self.sources += [b.source] if b.source not in self.sources else []

    def borrow(self, other: Profile, kind: str) -> None:
        """Take the sections of a kind from another profile."""
        for section, values in other.coefficients.items():
            if section.partition(".")[0] != kind or section in self.profile.coefficients:
                continue
            sigmas = dict(self.profile.section_sigma)
            if section in other.section_sigma:
                sigmas[section] = other.section_sigma[section]
                for group in GROUPS_OF_KIND[kind]:
                    self.errors.setdefault(group, []).append(sigmas[section])
            self.profile = replace(
                self.profile,
                coefficients={**self.profile.coefficients, section: values},
                section_sigma=sigmas,
            )
            self.described[section] = f"as in {other.name}"
            source = f"profile {other.name}"
            if source not in self.sources:
                self.sources.append(source)

    def add_runs(self, stack: str, gpu_name: str) -> None:
        """What engines add, from serving runs and batches of a stack on a GPU."""
        for name, fit_table in (
            ("serving", serving_fit.fit_serving_table), ("batches", serving_fit.fit_batch_table),
        ):  # fmt: skip
            path = RUNS / f"{name}_{gpu_name}_{stack}.csv"
            if not path.exists():
                continue
            table = read_table(path)
            # On kernels as they are written down, so that runs can be fitted without them.
            made = fit_table(as_written(self.profile), table.columns, range(len(table)), len(table))
            if made is None:
                continue
            self.profile = replace(
                made.profile, coefficients={**made.profile.coefficients, **self.kernels}
            )
            self.fits.append(made.fit)
            self.rows += made.used
            figures = {what: error_figures(error) for what, error in made.log_error.items()}
            errors = ", ".join(
                f"{what} {mape:.1%} (median {median:.1%})"
                for what, (mape, median, _) in figures.items()
            )
            self.described[made.fit.section] = (
                f"{made.used} runs; cross-validated error of {errors}"
            )
            sources = ", ".join(sorted(set(table.columns["source"].tolist())))
            self.tables.append(f"serving/{path.name}")
            self.sources += [f"{sources} ({stack}, runs)"]

    @property
    def kernels(self) -> Mapping[str, Mapping[str, float]]:
        """Coefficients of all but runs."""
        known = self.profile.coefficients
        return {name: values for name, values in known.items() if not name.startswith(OF_RUNS)}

    def borrow_runs(self, other: Profile) -> None:
        """Take what engines add from another profile, as far as nothing was fitted here."""
        sections = {
            name: values
            for name, values in other.coefficients.items()
            if name.startswith(OF_RUNS) and name not in self.profile.coefficients
        }
        if "serving.batch" in sections and "serving.engine" not in sections:
            return
        sigmas = {
            name: math.hypot(sigma, TRANSFER_RUNS)
            for name, sigma in other.section_sigma.items()
            if name.startswith(OF_RUNS) and name not in self.profile.section_sigma
        }
        self.profile = replace(
            self.profile,
            coefficients={**self.profile.coefficients, **sections},
            section_sigma={**self.profile.section_sigma, **sigmas},
            releases=self.profile.releases or other.releases,
        )
        for section in sections:
            self.described[section] = f"as in {other.name}"

    def finish(self, notes: Iterable[str]) -> tuple[Profile, str]:
        """The profile with its scatter and provenance, and the text of its file."""
        squares = {g: [s**2 for s in v if not math.isnan(s)] for g, v in self.errors.items()}
        sigmas = {
            **UNFITTED_SIGMAS,
            **{g: math.sqrt(sum(v) / len(v)) for g, v in squares.items() if v},
        }
        profile = replace(
            self.profile, sigma_seen=sigmas, sigma_unseen=sigmas,
            transfer_sigma={**TRANSFER_SIGMAS, **TRANSFER},
            provenance={
                "kind": "fitted", "source": "; ".join(self.sources), "date": DATE,
                "recipe": "calibration/fit_stacks.py", "tables": self.tables, "rows": self.rows,
                "notes": list(notes), "sections": dict(sorted(self.described.items())),
            },
        )  # fmt: skip
        return profile, profile_toml(profile, kernels=[uncertainty_of(fit) for fit in self.fits])


def as_written(profile: Profile) -> Profile:
    """The profile with coefficients as its file states them."""
    written = {
        section: {name: rounded(value) for name, value in values.items()}
        for section, values in profile.coefficients.items()
    }
    return replace(profile, coefficients=written)


@dataclass(frozen=True, eq=False)
class Measured:
    """A block of calibration rows, and where it is from. `stack`: as profiles name it."""

    block: Block
    stack: str
    table: str
    source: str


@cache
def measured() -> tuple[Measured, ...]:
    """All blocks of the small tables."""
    found = []
    for path in sorted(TABLES.glob("*.csv")):
        table = read_table(path)
        stack = path.stem.rpartition("_")[2]
        sources = sorted(set(table.columns["source"].tolist()))
        versions = sorted(set(table.columns["stack_version"].tolist()) - {""})
        source = f"{', '.join(sources)} ({stack} {', '.join(versions)})".replace(" )", ")")
        members = np.arange(len(table))
        if table.kind == "mla":  # whole blocks need a profile: `whole_blocks`
            members = members[~np.isin(table.columns["op"], mla.MODULES)]
        for block in kinds.older_releases(
            kinds.blocks_of(kinds.SECTION_KINDS[table.kind], table.columns, members, load_gpu)
        ):
            found.append(Measured(block, stack, f"kernels/{path.name}", source))
    return tuple(found)


def whole_blocks(profile: Profile, kind: str) -> dict[str, list[Measured]]:
    """Latent attention inside whole blocks by section; a profile times the rest of the block."""
    path = TABLES / f"mla_{profile.gpu}_{profile.stack}.csv"
    if not path.exists():
        return {}
    columns = read_table(path).columns
    gpu = load_gpu(profile.gpu)
    found: dict[str, list[Measured]] = {}
    for op, op_kind in mla_module.KINDS.items():
        for key, members in kernel_rows.grouped(
            columns, ("dtype", "kv_dtype"), np.flatnonzero(columns["op"] == op)
        ):
            if op_kind != kind:
                continue
            section = f"{kind}.{attention_variants(key['dtype'], key['kv_dtype'])[0]}"
            rows = mla_module.rows_of(columns, members, op, gpu, profile, absorbed=False)
            block = Block(kind, section, gpu, profile.stack, key["dtype"], rows, None)
            source = ", ".join(sorted(set(columns["source"].tolist())))
            source = f"{source} ({profile.stack}, whole blocks)"
            found[section] = [Measured(block, profile.stack, f"kernels/{path.name}", source)]
    return found


def blocks(stacks: Iterable[str], gpus: Iterable[str], kind: str = "") -> dict[str, list[Measured]]:
    """Blocks of some stacks and GPUs by section."""
    found: dict[str, list[Measured]] = {}
    for m in measured():
        if m.stack in stacks and m.block.gpu.name in gpus and kind in ("", m.block.kind):
            found.setdefault(m.block.section, []).append(m)
    return found


@cache
def fitted(
    members: tuple[Measured, ...],
    alike: tuple[Measured, ...] = (),
    every: tuple[Measured, ...] = (),
) -> tuple[SectionFit, np.ndarray]:
    """Fit of a section and its cross-validated ln(measured / predicted).

    alike: blocks whose joint fit is the prior. every: blocks of all stacks, for a family of GPUs.
    """
    parts = [m.block for m in members]
    if every:
        others = [m.block for m in every]
        return kinds.fit_family(parts, others), kinds.cross_validated(parts, every=others)
    base = kinds.fit_blocks([m.block for m in alike]).coefficients if alike else None
    return (
        kinds.fit_blocks(parts, base, kinds.ALIKE_SPREAD),
        kinds.cross_validated(parts, base, kinds.ALIKE_SPREAD),
    )


def related_blocks(stack: str, gpu_name: str, section: str) -> list[Measured]:
    """Blocks that set the priors of a section on a GPU.

    Of other serving stacks, where its kernels are alike; of the newest release for an older one.
    """
    newest, mark, _ = section.partition(RELEASE_MARK)
    if mark:
        return blocks([stack], [gpu_name])[newest]
    sharing = {PRODUCTS_16_BIT: SERVING, MARLIN_EXPERTS: MARLIN_STACKS}.get(section, ())
    others = [name for name in sharing if name != stack and stack in sharing]
    return blocks(others, [gpu_name]).get(section, [])


def serving_profile(stack: str, gpu_name: str) -> tuple[Profile, str]:
    """A serving stack on a GPU."""
    gpu = load_gpu(gpu_name)
    blank = blank_profile(stack, gpu, SERVING_TRAITS)
    draft = Draft(replace(blank, name=f"{stack}-{gpu_name}"))
    draft.profile = replace(draft.profile, coefficients={"host": HOST})
    for section, found in blocks([stack], [gpu_name]).items():
        draft.add(found, alike=related_blocks(stack, gpu_name, section))
    elsewhere = related_blocks(stack, gpu_name, MARLIN_EXPERTS)
    if elsewhere and MARLIN_EXPERTS not in draft.profile.coefficients:
        draft.add(elsewhere)
    for found in blocks(["nccl"], [gpu_name]).values():
        draft.add(found)
    draft.add(in_layers_blocks([gpu_name]))
    has = {section.partition(".")[0] for section in draft.profile.coefficients}
    if ABSORB not in draft.profile.coefficients:
        for section, found in blocks([LATENT_REFERENCE], [gpu_name], "gemm").items():
            if section == ABSORB:
                draft.add(found)
    for kind in LATENT_KINDS:
        if kind not in has:
            own = whole_blocks(draft.profile, kind)
            for found in (own or blocks([LATENT_REFERENCE], [gpu_name], kind)).values():
                draft.add(found)
                has.add(kind)
    for kind in KINDS:
        if kind not in has and stack != REFERENCE:
            draft.borrow(serving_profile_cached(REFERENCE, gpu_name)[0], kind)
    draft.add_runs(stack, gpu_name)
    stand_in = stand_in_of(gpu_name)
    if stand_in != gpu_name:
        draft.borrow_runs(serving_profile_cached(stack, stand_in)[0])
    return draft.finish([HOST_NOTE])


def stand_in_of(gpu_name: str) -> str:
    """The GPU whose runs stand for those of a GPU."""
    return RUNS_OF.get(gpu_name, RUNS_ELSE)


def in_layers_blocks(gpus: Sequence[str]) -> list[Measured]:
    """Memory-bound kernels timed inside layers: on these GPUs, else on all together."""
    for wanted in (gpus, IN_LAYERS):
        found = blocks(["sarathi-serve"], wanted, "memory_bound").get("memory_bound.general")
        if found:
            return found
    raise LookupError("no memory-bound kernels were timed inside layers")


serving_profile_cached = cache(serving_profile)


def in_layers_profile(gpu_name: str) -> tuple[Profile, str]:
    """Kernels of PyTorch timed inside layers, and NCCL called from PyTorch."""
    gpu = load_gpu(gpu_name)
    draft = Draft(replace(blank_profile("sarathi-serve", gpu), name=f"sarathi-serve-{gpu_name}"))
    draft.profile = replace(draft.profile, coefficients={"host": HOST})
    for found in blocks(["sarathi-serve"], [gpu_name]).values():
        draft.add(found)
    sibling = "h100-sxm5-80gb" if gpu.architecture == "hopper" else "a100-sxm4-80gb"
    for kind in ("gemm", "memory_bound"):
        if gpu_name != sibling:
            draft.borrow(in_layers_profile(sibling)[0], kind)
    for kind in ("attention_prefill", "attention_decode"):
        draft.borrow(serving_profile_cached(REFERENCE, sibling)[0], kind)
    draft.borrow_runs(serving_profile_cached(REFERENCE, RUNS_ELSE)[0])
    return draft.finish([HOST_NOTE])


def eager_profile(gpu_name: str) -> tuple[Profile, str]:
    """Single eager calls of PyTorch in fp32."""
    gpu = load_gpu(gpu_name)
    blank = blank_profile("pytorch", gpu, EAGER_TRAITS)
    draft = Draft(replace(blank, name=f"pytorch-{gpu_name}"))
    for found in blocks(["pytorch"], [gpu_name]).values():
        draft.add(found)
    return draft.finish([EAGER_NOTE])


def family_profile(architecture: str) -> tuple[Profile, str]:
    """One set of coefficients for the GPUs of an architecture."""
    gpus = FAMILIES[architecture]
    blank = blank_profile(REFERENCE, load_gpu(gpus[0]), SERVING_TRAITS)
    draft = Draft(
        replace(
            blank, name=f"family-{architecture}", gpu="", architecture=architecture,
            coefficients={"host": HOST},
        )
    )  # fmt: skip
    if architecture == "volta":
        draft.borrow(load_profile(VOLTA_PROFILE), "gemm")
        for kind in KINDS:
            draft.borrow(family_cached("generic")[0], kind)
        draft.borrow_runs(serving_profile_cached(REFERENCE, RUNS_ELSE)[0])
        return draft.finish([HOST_NOTE])
    own = blocks([REFERENCE, "nccl"], gpus)
    every = blocks([*SERVING, "nccl"], gpus)
    for section, found in every.items():
        if RELEASE_MARK in section:
            continue
        members = own.get(section, found)
        if section.startswith(LATENT_KINDS):
            members = [m for m in found if m.stack == LATENT_REFERENCE] or found
            older = [m for m in members if not made_for_latent(m.block.gpu)]
            if architecture == "generic" and older:
                members = older  # newer GPUs have families of their own
        if section == PRODUCTS_16_BIT:  # 16-bit products run alike in all stacks, and in layers
            members = found + blocks(["sarathi-serve"], gpus, "gemm").get("gemm.fp16", [])
        if section == MARLIN_EXPERTS:
            members = found
        draft.add(members, every=found)
    draft.add(in_layers_blocks(IN_LAYERS if architecture == "generic" else gpus))
    draft.borrow_runs(serving_profile_cached(REFERENCE, stand_in_of(gpus[0]))[0])
    return draft.finish([HOST_NOTE])


family_cached = cache(family_profile)


def transfer_sigmas() -> Mapping[str, float]:
    """What a GPU left out of the fit costs beyond the scatter of fitted ones, by group."""
    further: dict[str, list[float]] = {}
    compared = ("gemm.bf16", "memory_bound.general")  # few GPUs share a quantised kernel
    for stack in (*SERVING, "sarathi-serve"):
        for section, found in blocks([stack], {*SERVED, *IN_LAYERS}).items():
            if section.startswith(("gemm.", "memory_bound.")) and section not in compared:
                continue
            gpus = {m.block.gpu.name for m in found}
            for gpu in sorted(gpus) if len(gpus) > 2 else ():
                rest = [m.block for m in found if m.block.gpu.name != gpu]
                elsewhere = {*SERVED, *IN_LAYERS} - {gpu}
                every = [m.block for m in blocks((*SERVING, "sarathi-serve"), elsewhere)[section]]
                fit = kinds.fit_family(rest, every, stack, load_gpu(gpu))
                left = [m for m in found if m.block.gpu.name == gpu]
                error = np.concatenate(
                    [np.log(m.block.measured_s / kinds.predict(m.block, fit)) for m in left]
                )
                within = error_figures(fitted(tuple(left))[1])[2]
                square = max(0.0, error_figures(error)[2] ** 2 - within**2)
                for group in GROUPS_OF_KIND[section.partition(".")[0]]:
                    further.setdefault(group, []).append(square)
    return {g: round(math.sqrt(float(np.median(v))), 2) for g, v in further.items()}


def recipes() -> dict[str, tuple[str, ...]]:
    """Profile name -> what makes it."""
    made = {f"{stack}-{gpu}": ("serving", stack, gpu) for stack in SERVING for gpu in SERVED}
    made |= {f"sarathi-serve-{gpu}": ("in_layers", gpu) for gpu in IN_LAYERS}
    made |= {f"pytorch-{gpu}": ("eager", gpu) for gpu in EAGER}
    return made | {f"family-{name}": ("family", name) for name in FAMILIES}


def make(name: str) -> tuple[Profile, str]:
    """A profile by name, with the text of its file."""
    how, *arguments = recipes()[name]
    makers = {
        "serving": serving_profile_cached, "in_layers": in_layers_profile,
        "eager": eager_profile, "family": family_cached,
    }  # fmt: skip
    return makers[how](*arguments)


@cache
def with_runs(name: str) -> tuple[Profile, str]:
    """A shipped profile with what engines add fitted anew, and the text of its file."""
    shipped = load_profile(name)
    how, *of = recipes()[name]
    kept = {k: v for k, v in shipped.coefficients.items() if not k.startswith(OF_RUNS)}
    sigmas = {k: v for k, v in shipped.section_sigma.items() if not k.startswith(OF_RUNS)}
    draft = Draft(replace(shipped, coefficients=kept, section_sigma=sigmas, releases={}))
    stand_in = f"{REFERENCE}-{RUNS_ELSE}"
    if how == "serving":
        draft.add_runs(*of)
        stand_in = f"{of[0]}-{stand_in_of(of[1])}"
    elif how == "family" and of[0] != "volta":
        stand_in = f"{REFERENCE}-{stand_in_of(FAMILIES[of[0]][0])}"
    if stand_in != name and how != "eager":
        draft.borrow_runs(with_runs(stand_in)[0])
    said = dict(shipped.provenance)
    sections = {k: v for k, v in said["sections"].items() if not k.startswith(OF_RUNS)}
    said["sections"] = dict(sorted({**sections, **draft.described}.items()))
    profile = replace(draft.profile, provenance=said)
    known = [u for u in uncertainties(PROFILES / f"{name}.toml") if not u.label.startswith(OF_RUNS)]
    return profile, profile_toml(profile, kernels=known + [uncertainty_of(f) for f in draft.fits])


def main(check: bool, runs: bool, names: Sequence[str]) -> int:
    """Fit every profile, or those named; the exit status."""
    status = 0
    for name in names or recipes():
        profile, text = with_runs(name) if runs else make(name)
        path = PROFILES / f"{name}.toml"
        if check:
            same = path.exists() and path.read_text(encoding="utf-8") == text
            print(f"{name}: {'reproduced' if same else 'DIFFERS'}")
            status |= not same
        else:
            write_profile(path, text)
            print(f"{name}: {profile.provenance['rows']} rows, {len(text)} bytes", flush=True)
    return int(status)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--transfer" in arguments:
        print(transfer_sigmas())
        sys.exit(0)
    names = [a for a in arguments if not a.startswith("--")]
    sys.exit(main("--check" in arguments, "--runs" in arguments, names))
