"""Print how far predictions of serving runs and offline batches are from unseen measurements.

    python scripts/accuracy_serving.py MEASUREMENTS_FOLDER [--write]

Judges the shipped profiles on every row outside their calibration tables, and refits what engines
add without each GPU, and without each model, in turn; --write puts the figures into
docs/accuracy-serving.md.

Split: the rows in `calibration/tables/serving` are fitted (`calibration/select_rows.py`: at most 64
serving runs and 64 batches of a stack and GPU, at most half of what there is, chosen from models,
releases, precisions and sizes before any fit); all others are unseen. A GPU is left out by fitting
on at most 64 runs of the same stack on the other GPU; a model by fitting on at most 64 runs of the
other models on the same GPU, or of other models on the other GPU where it is the only one. Kernels
are fitted to tables of kernels alone in every case. Errors are |predicted - measured| / measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "calibration" / "tables" / "serving"
sys.path.insert(0, str(Path(__file__).parent))

from accuracy import percent, put_into, table  # noqa: E402

from rtsim.fitting.serving_cases import Case, batch_cases, serving_cases, sigma_of  # noqa: E402
from rtsim.fitting.serving_cases import profile_times as shipped  # noqa: E402
from rtsim.fitting.serving_fit import SATURATED_S, ServingFit, choose_rows, fit_serving  # noqa: E402
from rtsim.fitting.serving_rows import Deployments  # noqa: E402
from rtsim.measurements import Columns, Table, read_table  # noqa: E402
from rtsim.profile import DEVIATIONS_90  # noqa: E402

MARKDOWN = ROOT / "docs" / "accuracy-serving.md"
RUNS_FITTED = 64
QUEUED_S = 5.0  # time to first token from which on most of it is a queue

Array = NDArray[np.float64]
Predict = Callable[[Case], tuple[float, float]]


@dataclass(frozen=True)
class Judged:
    """Measured and predicted (ttft, tpot) of some rows, (rows, 2), and their deviations."""

    measured_s: Array
    predicted_s: Array
    sigma: Array

    def __add__(self, other: Judged) -> Judged:
        parts = zip(
            (self.measured_s, self.predicted_s, self.sigma),
            (other.measured_s, other.predicted_s, other.sigma), strict=True,
        )  # fmt: skip
        return Judged(*(np.concatenate(pair) for pair in parts))

    def take(self, rows: Array) -> Judged:
        return Judged(self.measured_s[rows], self.predicted_s[rows], self.sigma[rows])

    def errors(self, metric: int) -> Array:
        return self.predicted_s[:, metric] / self.measured_s[:, metric] - 1.0

    def inside(self, metric: int) -> float:
        off = np.abs(np.log(self.predicted_s[:, metric] / self.measured_s[:, metric]))
        return float((off <= DEVIATIONS_90 * self.sigma[:, metric]).mean())


def judge(cases: Sequence[Case], predict: Predict) -> Judged:
    last = "batch" if cases and cases[0].batch else "tpot"
    return Judged(
        np.array([(c.ttft_s, c.tpot_s) for c in cases]),
        np.array([predict(c) for c in cases]),
        np.array([(sigma_of(c, "ttft"), sigma_of(c, last)) for c in cases]),
    )


def spearman(a: Array, b: Array) -> float:
    """Rank correlation; ties take their mean rank."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def ranks(values: Array) -> Array:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[group]


# Which rows were fitted --------------------------------------------------------------------------


def fitted_rows(whole: Table, name: str) -> set[int]:
    """Rows of a table that are in the small tables of that name."""
    columns = list(whole.columns)
    known = set(rows_as_text(whole.columns, columns))
    small: set[tuple[str, ...]] = set()
    for path in sorted(RUNS.glob(f"{name}_*.csv")):
        small |= set(rows_as_text(read_table(path).columns, columns))
    if not small <= known:
        raise SystemExit(f"rows of calibration/tables/serving/{name}_* are not in {whole.file}")
    return {i for i, row in enumerate(rows_as_text(whole.columns, columns)) if row in small}


def rows_as_text(columns: Columns, names: Iterable[str]) -> list[tuple[str, ...]]:
    return list(zip(*(map(str, columns[name].tolist()) for name in names), strict=True))


# Tables of the page ------------------------------------------------------------------------------

HEADER = (
    *("rows", "TPOT error", "median", "bias", "in 90 %", "TTFT rows", "TTFT median error"),
    *("rank correlation",),
)


def line(label: str, judged: Judged) -> list[str]:
    """One line: errors of TPOT on all rows, of TTFT on those below QUEUED_S."""
    tpot = judged.errors(1)
    below = judged.measured_s[:, 0] < QUEUED_S
    ttft = judged.errors(0)[below]
    rank = None
    if below.sum() > 2:
        rank = spearman(judged.predicted_s[:, 0], judged.measured_s[:, 0])
    return [
        label, str(len(tpot)), percent(float(np.abs(tpot).mean())),
        percent(float(np.median(np.abs(tpot)))), f"{float(tpot.mean()):+.1%}".replace("%", " %"),
        percent(judged.inside(1)), str(int(below.sum())),
        percent(float(np.median(np.abs(ttft)))) if below.any() else "-",
        "-" if rank is None else f"{rank:.2f}",
    ]  # fmt: skip


def place_of(case: Case) -> str:
    system = case.deployment.engine.system
    return f"{system.profile.stack}, {system.gpu.name}"


def model_of(case: Case) -> str:
    return case.deployment.engine.system.model.name


def by_place(cases: Sequence[Case]) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(place_of(case), []).append(case)
    return dict(sorted(found.items()))


def without_gpu(cases: Sequence[Case]) -> dict[str, Judged]:
    """Each stack on each GPU by a fit on the same stack on the other GPU."""
    places = by_place(cases)
    found = {}
    for place, members in places.items():
        stack = place.partition(",")[0]
        rest = [c for p, cs in places.items() if p != place and p.startswith(stack) for c in cs]
        if rest:
            found[place] = judge(members, fit(rest).predicted)
    return found


def without_model(
    cases: Sequence[Case], fit_cases: Callable[[Sequence[Case]], ServingFit]
) -> dict[str, Judged]:
    """Each model by fits on the others, place by place."""
    places = by_place(cases)
    found: dict[str, Judged] = {}
    for place, members in places.items():
        stack = place.partition(",")[0]
        for model in sorted({model_of(c) for c in members}):
            rest = [c for c in members if model_of(c) != model]
            if not rest:
                others = (cs for p, cs in places.items() if p != place and p.startswith(stack))
                rest = [c for cs in others for c in cs if model_of(c) != model]
            if not rest:
                continue
            left = judge([c for c in members if model_of(c) == model], fit_cases(rest).predicted)
            found[model] = found[model] + left if model in found else left
    return found


def fit(cases: Sequence[Case]) -> ServingFit:
    return fit_serving(choose_rows(cases, RUNS_FITTED))


def fit_batches(cases: Sequence[Case]) -> ServingFit:
    return fit_serving(choose_rows(cases, RUNS_FITTED), particular=False)


def joined(parts: Iterable[Judged]) -> Judged:
    total: Judged | None = None
    for part in parts:
        total = part if total is None else total + part
    if total is None:
        raise SystemExit("no rows to judge")
    return total


def serving_sections(folder: Path) -> dict[str, str]:
    whole = read_table(folder / "serving.csv.gz")
    cases, reasons = serving_cases(whole.columns, Deployments())
    fitted = fitted_rows(whole, "serving")
    agg = [c for c in cases if c.prefill is None]
    unseen = [c for c in agg if c.index not in fitted]
    lines = [line(place, judge(members, shipped)) for place, members in by_place(unseen).items()]
    every = judge(unseen, shipped)
    h100 = judge([c for c in unseen if "h100" in place_of(c)], shipped)
    lines += [line("all on H100", h100), line("**all**", every)]
    gpu = without_gpu(agg)
    gpu_lines = [line(place, judged) for place, judged in gpu.items()]
    gpu_lines.append(line("**all**", joined(gpu.values())))
    model = without_model(agg, fit)
    model_lines = [line(name, judged) for name, judged in sorted(model.items())]
    model_lines.append(line("**all**", joined(model.values())))
    pools = [c for c in cases if c.prefill is not None]
    stated = whole.columns["decode_workers"] > 0
    queued = [c for c in pools if c.ttft_s > SATURATED_S]
    pool_lines = [
        line(label, judge(some, shipped))
        for label, some in (
            ("workers stated", [c for c in pools if stated[c.index]]),
            ("workers not stated", [c for c in pools if not stated[c.index]]),
            ("**all**", pools),
            ("of them with a queue outside", queued),
            ("and without", [c for c in pools if c.ttft_s <= SATURATED_S]),
        )
    ]
    repeats = repeated([c for c in pools if not stated[c.index]], whole.columns)
    suspect = whole.columns["suspect_parallelism"] > 0
    answered = [
        ["rows of the table", str(len(whole))],
        ["answered", f"{len(cases)} ({percent(len(cases) / len(whole))})"],
        ["degrees read as multiplied twice", str(int(suspect.sum()))],
        ["pools whose workers are not counted", str(sum(not stated[c.index] for c in pools))],
        ["time to first token above 10 s: a queue outside",
         str(int((whole.columns["ttft_ms"] > 1e3 * SATURATED_S).sum()))],
        *([reason, "1"] for reason in reasons.values()),
    ]  # fmt: skip
    return {
        "unseen": table(("stack and GPU", *HEADER), lines),
        "gpu": table(("left out", *HEADER), gpu_lines),
        "model": table(("left out", *HEADER), model_lines),
        "pools": table(("pools", *HEADER), pool_lines),
        "repeats": repeats,
        "answered": table(("", "rows"), answered),
        "worst": worst(unseen, every),
    }


MEASURED = ("ttft_ms", "tpot_ms", "measured_date", "container_image")


def repeated(cases: Sequence[Case], columns: Columns) -> str:
    """Rows that state the same configuration, how far apart, and the least error of one answer."""
    stated = [name for name in columns if name not in MEASURED]
    texts = rows_as_text(columns, stated)
    groups: dict[tuple[str, ...], list[float]] = {}
    for case in cases:
        groups.setdefault(texts[case.index], []).append(case.tpot_s)
    several = [np.sort(times) for times in groups.values() if len(times) > 1]
    apart = np.array([times[-1] / times[0] for times in several])
    # The mean of |p / m - 1| is piecewise linear in p: least at one of the measured times.
    least = [min(float(np.abs(p / times - 1.0).mean()) for p in times) for times in several]
    rows = np.array([len(times) for times in several])
    figures = [
        str(len(several)), str(int(rows.sum())), f"{float(np.median(apart)):.2f}",
        str(int((apart > 1.3).sum())), percent(float((rows * np.array(least)).sum() / rows.sum())),
        percent(float(np.array(least)[apart > 1.3].mean())),
    ]  # fmt: skip
    header = (
        *("configurations", "rows", "slowest over fastest, median", "of them above 1.3"),
        *("least error of one answer", "where above 1.3"),
    )
    return table(header, [figures])


def worst(cases: Sequence[Case], judged: Judged, count: int = 8) -> str:
    """The rows whose time per token is furthest off."""
    off = np.abs(np.log(judged.predicted_s[:, 1] / judged.measured_s[:, 1]))
    lines = []
    for i in np.argsort(-off)[:count].tolist():
        model, release, precision, _, prompt, output, tp, in_flight = cases[i].labels
        lines.append(
            [
                f"{place_of(cases[i])} {release}", model, precision, f"{prompt} / {output}",
                str(tp), str(in_flight), f"{judged.measured_s[i, 1] * 1e3:.1f} ms",
                f"{judged.predicted_s[i, 1] * 1e3:.1f} ms",
            ]
        )  # fmt: skip
    header = (
        *("stack, GPU, release", "model", "precision", "tokens", "tp", "in flight"),
        *("measured", "predicted"),
    )
    return table(header, lines)


BATCH_HEADER = ("rows", "error", "median", "bias", "in 90 %")


def batch_line(label: str, judged: Judged) -> list[str]:
    return line(label, judged)[:6]


def batch_sections(folder: Path) -> dict[str, str]:
    whole = read_table(folder / "offline_batch.csv")
    cases, reasons = batch_cases(whole.columns, Deployments())
    fitted = fitted_rows(whole, "batches")
    unseen = [c for c in cases if c.index not in fitted]
    lines = [
        batch_line(place, judge(members, shipped)) for place, members in by_place(unseen).items()
    ]
    lines.append(batch_line("**all**", judge(unseen, shipped)))
    model = without_model(cases, fit_batches)
    model_lines = [batch_line(name, judged) for name, judged in sorted(model.items())]
    model_lines.append(batch_line("**all**", joined(model.values())))
    counted: dict[str, int] = {}
    for reason in reasons.values():
        counted[reason] = counted.get(reason, 0) + 1
    left = [[reason, str(count)] for reason, count in sorted(counted.items())]
    return {
        "batches": table(("stack and GPU", *BATCH_HEADER), lines),
        "batch-model": table(("left out", *BATCH_HEADER), model_lines),
        "batch-refused": table(("not answered", "rows"), left or [["none", "0"]]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    sections = {**serving_sections(arguments.folder), **batch_sections(arguments.folder)}
    for name, text in sections.items():
        print(f"\n{name}\n\n{text}")
        if arguments.write:
            put_into(MARKDOWN, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
