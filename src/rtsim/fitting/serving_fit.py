"""Serving runs and batches predicted, and what engines add to kernels fitted to them.

Kernel coefficients are fitted first, on kernels timed alone. Serving runs then have little left to
say (`mixed.ENGINE_COEFFICIENTS`), in three stages of ever finer factors, so that what is common is
fitted as such and a model or release left out loses little:

1. the engine's coefficients, on time per output token, in turn with those of the first token: who
   waits with others for a prompt is not held up by it later. Releases have factors meanwhile, so
   that the engine does not take on what is one release's;
2. factors of single weight formats on products and expert layers, and of single releases
   (`RELEASE_SPREAD`), with those of stage 1 fixed;
3. time before the first token: the fixed part, bunching, and a factor of each release.

Split: `choose_rows` picks at most `count` rows by their sizes and labels alone, before anything is
fitted; every other row is unseen. Rows that repeat sizes of a chosen one may be other runs of the
same configuration: repeats differ by 2 % in the median, 80 % in the worst tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import mixed
from rtsim_kernels.tables import Coefficient

from rtsim.fit import Fit, fit_coefficients
from rtsim.fitting.kinds import SectionFit
from rtsim.fitting.serving_cases import Case, batch_cases, serving_cases, times_of, with_factors
from rtsim.fitting.serving_rows import Deployments
from rtsim.measurements import Columns
from rtsim.profile import DEVIATIONS_90, Profile

Array = NDArray[np.float64]

# What the model of a run is not expected to explain: repeats of one configuration.
TPOT_SIGMA = 0.10
TTFT_SIGMA = 0.25
# Deviation of ln(factor) of one weight format, or one release, around the common one.
FORMAT_SPREAD = 0.15
RELEASE_SPREAD = 0.15
# Waiting beyond this is a queue in front of the engine, whose length the source does not state.
SATURATED_S = 10.0

_OF_TPOT = (
    *("step_s", "sequence_s", "prompt_step_s", "gemm_frac", "attention_frac"),
    *("memory_frac", "collective_frac", "moe_frac", "parted_frac", "prompt_frac"),
)
_OF_TTFT = ("request_s", "bunching")
_FRACS_OF_FORMAT = {"mlp": "gemm_frac", "experts": "moe_frac"}


def choose_rows(cases: Sequence[Case], count: int) -> list[Case]:
    """At most `count` cases that lie far apart in their labels and log sizes, chosen one by one.

    The first is the one nearest the middle; nothing measured is looked at.
    """
    if len(cases) <= count:
        return list(cases)
    texts, sizes = _LABELS
    distance_of = [np.log2([float(c.labels[j]) for c in cases]) for j in sizes]
    codes = [np.unique([str(c.labels[j]) for c in cases], return_inverse=True)[1] for j in texts]
    points = np.stack(distance_of, axis=1)

    def distance(i: int) -> Array:
        apart = ((points - points[i]) ** 2).sum(axis=1)
        return np.asarray(apart + sum(_UNLIKE * (code != code[i]) for code in codes))

    middle = points.mean(axis=0)
    chosen = [int(((points - middle) ** 2).sum(axis=1).argmin())]
    nearest = distance(chosen[0])
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance(chosen[-1]))
    return [cases[i] for i in sorted(chosen)]


_LABELS = (0, 1, 2, 3), (4, 5, 6, 7)
_UNLIKE = 32.0  # squared distance of other labels: as a factor 2^5.6 in one size


@dataclass(frozen=True)
class ServingFit:
    """Fitted sections "serving.engine", "serving.<format>", and factors of releases."""

    sections: Mapping[str, Mapping[str, float]]
    releases: Mapping[str, Mapping[str, float]]
    engine: Fit

    def values_of(self, case: Case) -> dict[str, float]:
        """The engine's coefficients for the formats of a case."""
        values = dict(self.sections["serving.engine"])
        for form, name in zip(case.formats, _FRACS_OF_FORMAT.values(), strict=True):
            values[name] = self.sections.get(f"serving.{form}", {}).get(name, values[name])
        return values

    def predicted(self, case: Case) -> tuple[float, float]:
        """(ttft, tpot) seconds, the release's factors in."""
        return with_factors(times_of(case, self.values_of(case)), self.releases, case)


def _declared(names: Iterable[str]) -> tuple[Coefficient, ...]:
    known = {c.name: c for c in mixed.ENGINE_COEFFICIENTS}
    return tuple(known[name] for name in names)


def fit_serving(
    cases: Sequence[Case],
    *,
    priors: Mapping[str, float] | None = None,
    particular: bool = True,
    format_spread: float = FORMAT_SPREAD,
    release_spread: float = RELEASE_SPREAD,
) -> ServingFit:
    """Fit an engine to `cases`.

    priors: other middles of coefficients, those of a like engine. particular: with factors of
    formats and releases.
    """
    start = {c.name: c.prior for c in mixed.ENGINE_COEFFICIENTS} | dict(priors or {})
    tpot_s = np.array([c.tpot_s for c in cases])
    timed = [c for c in cases if 0.0 < c.ttft_s < SATURATED_S]
    common = start
    if timed:
        common, _ = _fit_tpot(cases, common, start, release_spread)
        common, _ = _fit_ttft(timed, {"serving.engine": common}, start, release_spread)
    common, engine = _fit_tpot(cases, common, start, release_spread)
    formats: dict[str, dict[str, float]] = {}
    releases: dict[str, float] = {}
    if particular:
        formats, releases = _fit_particular(cases, common, tpot_s, format_spread, release_spread)

    # The first token: with the steps as they now are.
    sections = {"serving.engine": common, **formats}
    fracs: dict[str, dict[str, float]] = {
        name: {"tpot_frac": frac, "ttft_frac": 1.0} for name, frac in releases.items()
    }
    if timed:
        common, ttft = _fit_ttft(timed, sections, start, release_spread)
        sections["serving.engine"] = common
        for name, frac in ttft.items():
            fracs[name]["ttft_frac"] = frac
    return ServingFit(sections, fracs, engine)


def _fit_tpot(
    cases: Sequence[Case], common: Mapping[str, float], start: Mapping[str, float],
    release_spread: float,
) -> tuple[dict[str, float], Fit]:  # fmt: skip
    """The engine's coefficients with those of time per output token, priors at `start`."""
    declared = tuple(c._replace(prior=start[c.name]) for c in _declared(_OF_TPOT))
    versions = _versions(cases)

    def predicted(values: Array) -> Array:
        tried = {**common, **dict(zip(_OF_TPOT, values.tolist(), strict=False))}
        of_release = dict(zip(versions, values[len(_OF_TPOT) :].tolist(), strict=True))
        return np.array(
            [times_of(c, tried)[1] * of_release.get(c.deployment.version, 1.0) for c in cases]
        )

    freedoms = (*declared, *_release_freedoms(versions, release_spread))
    tpot_s = np.array([c.tpot_s for c in cases])
    fit = fit_coefficients(predicted, tpot_s, freedoms, row_sigma=1.5 * TPOT_SIGMA)
    own = fit.first(len(declared))
    return {**common, **dict(zip(_OF_TPOT, own.values.tolist(), strict=True))}, own


def _fit_particular(
    cases: Sequence[Case], common: Mapping[str, float], tpot_s: Array, format_spread: float,
    release_spread: float,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:  # fmt: skip
    """Factors of formats, as sections, and of releases."""
    of_part = zip(*(c.formats for c in cases), strict=True)
    keys = [
        (form, name)
        for forms, name in zip(of_part, _FRACS_OF_FORMAT.values(), strict=True)
        for form in sorted({f for f in forms if f})
    ]
    versions = _versions(cases)
    bounds = {c.name: c for c in mixed.ENGINE_COEFFICIENTS}
    freedoms = tuple(
        bounds[name]._replace(prior=common[name], spread=format_spread) for _, name in keys
    ) + _release_freedoms(versions, release_spread)
    if not freedoms:
        return {}, {}

    def predicted(values: Array) -> Array:
        fracs = dict(zip(keys, values[: len(keys)].tolist(), strict=True))
        of_release = dict(zip(versions, values[len(keys) :].tolist(), strict=True))
        out = []
        for case in cases:
            tried = dict(common)
            for form, name in zip(case.formats, _FRACS_OF_FORMAT.values(), strict=True):
                tried[name] = fracs.get((form, name), tried[name])
            frac = of_release.get(case.deployment.version, 1.0)
            out.append(times_of(case, tried)[1] * frac)
        return np.array(out)

    fit = fit_coefficients(predicted, tpot_s, freedoms, row_sigma=TPOT_SIGMA)
    sections: dict[str, dict[str, float]] = {}
    for (form, name), value in zip(keys, fit.values.tolist(), strict=False):
        sections.setdefault(f"serving.{form}", {})[name] = value
    return sections, dict(zip(versions, fit.values[len(keys) :].tolist(), strict=True))


def _versions(cases: Sequence[Case]) -> list[str]:
    return sorted({c.deployment.version for c in cases} - {""})


def _release_freedoms(versions: Sequence[str], spread: float) -> tuple[Coefficient, ...]:
    meaning = "time of serving runs of this release over that of the others"
    return tuple(Coefficient(v, 1.0, spread, 0.2, 5.0, "1", meaning) for v in versions)


def _fit_ttft(
    cases: Sequence[Case],
    sections: Mapping[str, Mapping[str, float]],
    start: Mapping[str, float],
    release_spread: float,
) -> tuple[dict[str, float], dict[str, float]]:
    """The engine's coefficients with those of the first token, priors at `start`, and factors of
    releases.
    """
    common = dict(sections["serving.engine"])
    versions = _versions(cases)
    declared = tuple(c._replace(prior=start[c.name]) for c in _declared(_OF_TTFT))
    measured_s = np.array([c.ttft_s for c in cases])
    known = ServingFit(sections, {}, None)  # type: ignore[arg-type]
    values_of = [known.values_of(case) for case in cases]

    def predicted(values: Array) -> Array:
        tried = dict(zip(_OF_TTFT, values[: len(_OF_TTFT)].tolist(), strict=True))
        of_release = dict(zip(versions, values[len(_OF_TTFT) :].tolist(), strict=True))
        return np.array(
            [
                times_of(case, {**own, **tried})[0] * of_release.get(case.deployment.version, 1.0)
                for case, own in zip(cases, values_of, strict=True)
            ]
        )

    freedoms = (*declared, *_release_freedoms(versions, release_spread))
    fit = fit_coefficients(predicted, measured_s, freedoms, row_sigma=TTFT_SIGMA)
    common |= dict(zip(_OF_TTFT, fit.values.tolist(), strict=False))
    return common, dict(zip(versions, fit.values[len(_OF_TTFT) :].tolist(), strict=True))


# Tables -> profile ---------------------------------------------------------------------------

FOLDS = 4


@dataclass(frozen=True)
class EngineFit:
    """A profile with what its serving runs, or its batches, say; and how well they are met.

    used: rows fitted, of `rows`. log_error: ln(measured / predicted) of chosen rows by a fit that
    left them out, by "ttft", "tpot" or "batch".
    """

    profile: Profile
    fit: SectionFit
    rows: int
    used: int
    log_error: Mapping[str, Array]


def fit_serving_table(
    profile: Profile, columns: Columns, members: Iterable[int], count: int
) -> EngineFit | None:
    """The profile with sections "serving.engine", "serving.<format>", and releases.

    members: rows of the profile's GPU and stack. None where fewer than LEAST_CASES can be used.
    """
    cases, _ = serving_cases(columns, Deployments(profile), members)
    together = [c for c in cases if c.prefill is None]
    if len(together) < LEAST_CASES:
        return None
    chosen = choose_rows(together, count)
    fit = fit_serving(chosen)
    left_out = _left_out(chosen, fit_serving)
    errors = {
        name: np.log(np.array([m for m, _ in pairs]) / np.array([p for _, p in pairs]))
        for name, pairs in (
            ("ttft", [(c.ttft_s, p[0]) for c, p in left_out if 0.0 < c.ttft_s < SATURATED_S]),
            ("tpot", [(c.tpot_s, p[1]) for c, p in left_out]),
        )
        if pairs
    }
    sections, releases = dict(fit.sections), dict(fit.releases)
    return EngineFit(
        _with_sections(profile, sections, releases, errors),
        SectionFit("serving.engine", fit.engine), len(together), len(chosen), errors,
    )  # fmt: skip


def fit_batch_table(
    profile: Profile, columns: Columns, members: Iterable[int], count: int
) -> EngineFit | None:
    """The profile with section "serving.batch": the stack as a library that is handed one batch."""
    cases, _ = batch_cases(columns, Deployments(profile), members)
    if len(cases) < LEAST_CASES:
        return None
    chosen = choose_rows(cases, count)

    def fit_batches(some: Sequence[Case]) -> ServingFit:
        return fit_serving(some, particular=False)

    fit = fit_batches(chosen)
    pairs = [(c.tpot_s, p[1]) for c, p in _left_out(chosen, fit_batches)]
    errors = {"batch": np.log(np.array([m / p for m, p in pairs]))}
    sections = {"serving.batch": fit.sections["serving.engine"]}
    return EngineFit(
        _with_sections(profile, sections, profile.releases, errors),
        SectionFit("serving.batch", fit.engine), len(cases), len(chosen), errors,
    )  # fmt: skip


LEAST_CASES = 12


def _left_out(
    cases: Sequence[Case], fit: Callable[[Sequence[Case]], ServingFit]
) -> list[tuple[Case, tuple[float, float]]]:
    """Each case with its (ttft, tpot) by a fit of the other folds; neighbours in different ones."""
    found = []
    for fold in range(FOLDS):
        rest = fit([c for i, c in enumerate(cases) if i % FOLDS != fold])
        found += [(c, rest.predicted(c)) for i, c in enumerate(cases) if i % FOLDS == fold]
    return found


def _with_sections(
    profile: Profile, sections: Mapping[str, Mapping[str, float]],
    releases: Mapping[str, Mapping[str, float]], errors: Mapping[str, Array],
) -> Profile:  # fmt: skip
    sigmas = {
        f"serving.{name}": float(np.quantile(np.abs(error), 0.9)) / DEVIATIONS_90
        for name, error in errors.items()
    }
    return replace(
        profile,
        coefficients={**profile.coefficients, **sections},
        releases=releases,
        section_sigma={**profile.section_sigma, **sigmas},
    )
