"""Whole generations: from table rows to systems, and the stack-level coefficients on top.

Kernel coefficients are fitted first, on kernel tables; whole generations then have only the host
track and what the eager chain of small kernels adds left to explain, so few rows suffice.

Split: the rows of a calibration table are the fitted ones; every other row is unseen. Which rows
those are is decided by `choose_rows` from the sizes alone, before anything is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import tables

from rtsim.catalog import load_gpu
from rtsim.fit import Fit, fit_coefficients
from rtsim.fitting.generation_rows import grouped, model_of, parallelism_of
from rtsim.measurements import Columns
from rtsim.profile import DECLARED, GROUPS, Profile, for_all_groups, interval_half_width
from rtsim.profile_choice import choose_profile
from rtsim.specs.gpu import GpuSpec
from rtsim.specs.model import ModelSpec
from rtsim.specs.parallelism import ParallelismSpec
from rtsim.system import System

Array = NDArray[np.float64]
Coefficients = Mapping[str, Mapping[str, float]]

# What the model of one step is not expected to explain, and the rounding of a table that is
# printed to a millisecond (uniform: 1 ms / sqrt(12)).
ROW_SIGMA = 0.03
ROUNDING_S = 0.3e-3
COVERED = 0.9  # share of rows that the reported interval is meant to hold


@dataclass(frozen=True)
class Configuration:
    """Rows of a generation table that share model, GPU, stack and parallelism.

    rows: their indices in the table; the sizes and times are of those rows.
    """

    label: str
    gpu: GpuSpec
    stack: str
    traits: str  # as the rows state them, see `generation_rows.with_traits`
    bare_loop: bool
    dtype: str
    model: ModelSpec
    parallelism: ParallelismSpec
    rows: NDArray[np.intp]
    batch: Array
    prompt_tokens: Array
    output_tokens: Array
    runtime_s: Array

    def take(self, chosen: NDArray[np.intp]) -> Configuration:
        """The same with only the `chosen` of its rows (positions, not table indices)."""
        return replace(
            self,
            **{
                name: getattr(self, name)[chosen]
                for name in ("rows", "batch", "prompt_tokens", "output_tokens", "runtime_s")
            },
        )

    def system(self, profile: Profile | None = None) -> System:
        """The system that the rows were measured on; the best profile where none is given."""
        if profile is None:
            profile, _ = choose_profile(self.gpu, self.stack)
        return System(self.model, self.gpu, self.parallelism, profile=profile, dtype=self.dtype)


def configurations(
    columns: Columns, gpu_of: Callable[[str], GpuSpec] = load_gpu
) -> list[Configuration]:
    """Group a generation table by system. The shape columns count, not the model's label.

    gpu_of: GPU by table name. Raises UnknownName for a GPU outside the catalogue, SpecError for an
    impossible shape.
    """
    return [
        Configuration(
            label=str(row["model"]),
            gpu=gpu_of(str(row["gpu"])),
            stack=str(row["stack"]),
            traits=str(row.get("traits", "")),
            bare_loop=bool(row.get("bare_loop", 0)),
            dtype=str(row["dtype"]),
            model=model_of(row),
            parallelism=parallelism_of(row),
            rows=members,
            batch=columns["batch"][members].astype(float),
            prompt_tokens=columns["prompt_tokens"][members].astype(float),
            output_tokens=columns["output_tokens"][members].astype(float),
            runtime_s=columns["runtime_s"][members].astype(float),
        )
        for row, members in grouped(columns)
    ]


def shape_of(configuration: Configuration) -> tuple[float, ...]:
    """(layers, hidden size, heads, tp) of a system: what a profile's `fitted_shapes` hold."""
    model = configuration.model
    heads = model.typical_heads
    sizes = (model.n_layers, model.hidden_size, heads, configuration.parallelism.tp)
    return tuple(map(float, sizes))


def choose_rows(configuration: Configuration, count: int) -> NDArray[np.intp]:
    """Positions of `count` rows that cover a configuration: prompt passes first.

    Three fifths are prompt passes alone (one output token), at prompts spread evenly over the
    measured ones; the rest are the longest generations at prompts spread likewise, which hold
    the decode step.
    """
    prompts, outputs = configuration.prompt_tokens, configuration.output_tokens
    n_decode = max(1, round(count * 2 / 5)) if (outputs > 1).any() else 0
    chosen: list[int] = []
    for wanted, among in ((count - n_decode, outputs == 1), (n_decode, outputs == outputs.max())):
        positions = np.flatnonzero(among)
        positions = positions[np.argsort(prompts[positions], kind="stable")]
        # The ends of the decode rows' prompts are rarer than their middle: quantile midpoints.
        if wanted == n_decode:
            spread = (np.arange(wanted) + 0.5) / wanted * (len(positions) - 1)
        else:
            spread = np.linspace(0, len(positions) - 1, wanted)
        chosen += [int(positions[round(i)]) for i in spread]
    return np.unique(chosen)


def batches_of(fitted: Sequence[Configuration]) -> tuple[float, float]:
    """Sequences of the smallest and of the largest row."""
    batches = np.concatenate([c.batch for c in fitted])
    return float(batches.min()), float(batches.max())


# Fit ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Freedom:
    """A coefficient that a stack fit may move: its section in the profile and declaration."""

    section: str
    coefficient: tables.Coefficient


def host_freedoms() -> list[Freedom]:
    """Every coefficient of the host track."""
    return [Freedom("host", c) for c in DECLARED["host"]]


def kernel_freedom(section: str, name: str, around: float, spread: float) -> Freedom:
    """A kernel coefficient that whole generations may move a little from its kernel-level value.

    Measured alone a kernel runs cooler and with its operands elsewhere than inside a model.
    """
    declared = next(c for c in DECLARED[section.partition(".")[0]] if c.name == name)
    return Freedom(section, declared._replace(prior=around, spread=spread))


def with_values(
    base: Coefficients, freedoms: Sequence[Freedom], values: Iterable[float]
) -> dict[str, dict[str, float]]:
    """`base` with the freedoms set to `values`."""
    merged = {section: dict(entries) for section, entries in base.items()}
    for freedom, value in zip(freedoms, values, strict=True):
        merged.setdefault(freedom.section, {})[freedom.coefficient.name] = float(value)
    return merged


def runtimes(configuration: Configuration, profile: Profile) -> Array:
    """Predicted seconds by what they are owed to, shape (rows, groups)."""
    system = configuration.system(profile)
    owed = system.runtimes(
        configuration.batch, configuration.prompt_tokens, configuration.output_tokens
    )
    return np.asarray(owed.sum(axis=1))  # prompt pass and decode together


def fit_stack(
    fitted: Sequence[Configuration], profile: Profile, freedoms: Sequence[Freedom]
) -> tuple[Profile, Fit]:
    """Fit the freedoms to whole generations, starting from `profile`'s other coefficients."""
    measured_s = np.concatenate([c.runtime_s for c in fitted])

    def with_profile(values: Array) -> Profile:
        return replace(profile, coefficients=with_values(profile.coefficients, freedoms, values))

    def predicted(values: Array) -> Array:
        candidate = with_profile(values)
        return np.concatenate([runtimes(c, candidate).sum(axis=1) for c in fitted])

    fit = fit_coefficients(
        predicted,
        measured_s,
        tuple(freedom.coefficient for freedom in freedoms),
        row_sigma=np.sqrt(ROW_SIGMA**2 + (ROUNDING_S / measured_s) ** 2),
    )
    return with_profile(fit.values), fit


@dataclass(frozen=True)
class LeftOut:
    """Rows predicted by a fit that did not see them."""

    measured_s: Array
    owed_s: Array  # predicted, (rows, groups)
    log_error: Array  # ln(measured / predicted)


def _left_out(parts: Sequence[tuple[Configuration, Profile]]) -> LeftOut:
    measured_s = np.concatenate([c.runtime_s for c, _ in parts])
    owed_s = np.concatenate([runtimes(c, profile) for c, profile in parts])
    return LeftOut(measured_s, owed_s, np.log(measured_s / owed_s.sum(axis=1)))


def leave_one_out(
    fitted: Sequence[Configuration], profile: Profile, freedoms: Sequence[Freedom]
) -> LeftOut:
    """Predict each configuration from a fit on the others."""
    parts = []
    for left_out in fitted:
        rest = [c for c in fitted if c is not left_out]
        parts.append((left_out, fit_stack(rest, profile, freedoms)[0]))
    return _left_out(parts)


def in_fit(fitted: Sequence[Configuration], profile: Profile, n_freedoms: int) -> LeftOut:
    """The fitted rows, their errors widened for the degrees of freedom that the fit used up.

    What unseen rows of the same systems are off by: the residual standard error.
    """
    rows = _left_out([(c, profile) for c in fitted])
    widening = np.sqrt(len(rows.measured_s) / (len(rows.measured_s) - n_freedoms))
    return replace(rows, log_error=rows.log_error * widening)


# Factors tried on each deviation: a tenth to tenfold.
_FACTORS = np.geomspace(0.1, 10.0, 25)


def fitted_sigmas(
    left_out: LeftOut, sigmas: Mapping[str, float], row_sigma: float
) -> dict[str, float]:
    """The groups' deviations that suit left-out rows best.

    Three factors on `sigmas`, for all kernels together, the host in decode steps and the host in
    prompt passes, of greatest likelihood with normal errors and a log-normal prior around 1
    (deviation a factor e); then a common one, so that 90 % of the rows lie in their interval
    although errors are not quite normal.
    """
    base = np.array([for_all_groups(sigmas)[group] for group in GROUPS])
    of_host = [np.array([group == name for group in GROUPS]) for name in ("host", "prompt_host")]
    total = left_out.owed_s.sum(axis=1)
    frac_variance = (left_out.owed_s * base) ** 2 / total[:, None] ** 2
    parts = [frac_variance[:, ~(of_host[0] | of_host[1])], *(frac_variance[:, h] for h in of_host)]
    kernels, decode, prompt = (part.sum(axis=1) for part in parts)
    own = row_sigma**2 + (ROUNDING_S / left_out.measured_s) ** 2
    error = left_out.log_error

    def badness(factors: Array) -> float:
        variance = own + factors[0] ** 2 * kernels + factors[1] ** 2 * decode
        variance = variance + factors[2] ** 2 * prompt
        fit = 0.5 * (error**2 / variance + np.log(variance)).sum()
        return float(fit + 0.5 * (np.log(factors) ** 2).sum())

    grid = np.stack(np.meshgrid(*[_FACTORS] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    best = min(grid, key=badness)
    factors = np.select(of_host, [best[1], best[2]], best[0])
    half_width = interval_half_width(left_out.owed_s, base * factors, np.sqrt(own))
    common = float(np.quantile(np.abs(error) / half_width, COVERED))
    return dict(zip(GROUPS, (base * factors * common).tolist(), strict=True))
