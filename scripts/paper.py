"""Write docs/paper.md: the figures of the paper that the method comes from, out of rtsim alone.

    python scripts/paper.py [MEASUREMENTS_FOLDER] [--write]

MEASUREMENTS_FOLDER holds generation.csv, api_latency.csv, denoised.csv and capability.csv
(stanford-crfm/helm-efficiency). Without one only the parts are made that need nothing but this
repository. --write puts the parts into the page, and their plots into docs/figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from accuracy import percent, put_into, table  # noqa: E402
from denoise_limit import median_per_token  # noqa: E402
from rtsim_kernels import tables  # noqa: E402

from rtsim import units  # noqa: E402
from rtsim.compare import Comparison, compare  # noqa: E402
from rtsim.curves import read_curves  # noqa: E402
from rtsim.denoise import denoise, denoise_model  # noqa: E402
from rtsim.fitting.generation import configurations  # noqa: E402
from rtsim.idealized_against import against_idealized  # noqa: E402
from rtsim.latencies import Latency, read_latencies  # noqa: E402
from rtsim.measurements import read_table  # noqa: E402
from rtsim.named_system import system  # noqa: E402
from rtsim.pareto import kendall_tau  # noqa: E402
from rtsim.plots_paper import (  # noqa: E402
    plot_comparison,
    plot_denoised,
    plot_profiled,
    plot_tradeoff,
)
from rtsim.profiled import ProfiledModel, fit_table, fit_two_parts, profile_fit  # noqa: E402
from rtsim.scores import ModelMap, Stand  # noqa: E402
from rtsim.study import Study, load_study  # noqa: E402
from rtsim.tradeoff import Tradeoff, tradeoff  # noqa: E402

PAGE = ROOT / "docs" / "paper.md"
FIGURES = ROOT / "docs" / "figures"
PROMPTS = (1, 128, 256, 512, 768, 1024, 1536, 1920)
OUTPUTS = (1, 2, 4, 8, 16, 32, 48, 64)
PRINTED_S = 1e-3  # resolution of the times of generation.csv
TABLES = 170  # synthetic ones of each kind
EXPONENTIAL, EXPONENTIAL_MEAN = "exponential, mean 50 %", 0.5
NOISE = {  # waiting as a share of the time of the call
    "Pareto, tail 1.5": lambda r: 0.3 * r.pareto(1.5),
    "log-normal, sigma 1.2": lambda r: r.lognormal(-2.0, 1.2),
    EXPONENTIAL: lambda r: r.exponential(EXPONENTIAL_MEAN),
}
# What API models stand for that the catalogue does not know by that name.
STANDS = ModelMap(
    {
        "anthropic/stanford-online-helpful-v4-s3": Stand(
            "anthropic-52b", denoised="anthropic/stanford-online-all-v4-s3", mapped=True
        ),
        "openai/text-davinci-001": Stand(
            "gpt3-175b", denoised="openai/text-davinci-002", mapped=True
        ),
    }
)


def closed_form() -> str:
    """FLOPs of the layers' matrix products by formula and by counting operators."""
    rows = []
    for name in ("gpt3-175b", "gpt3-6.7b", "j1-jumbo", "opt-66b"):
        chosen = system(name, "a100-sxm4-80gb", stack="megatron-lm")
        model = chosen.model
        h, layers, p, o = model.hidden_size, model.n_layers, 1024, 64
        prompt = layers * (24.0 * p * h**2 + 4.0 * p**2 * h)
        contexts = np.arange(p + 1, p + o)
        output = layers * float((24.0 * h**2 + 4.0 * contexts * h).sum())
        kinds = dict(zip(chosen.table.names, chosen.table.rows["kind"].tolist(), strict=True))
        products = (tables.GEMM, tables.SCORES, tables.VALUES)
        counted = dict.fromkeys(("prefill", "decode"), 0.0)
        for row in chosen.predict(1, p, o).breakdown:
            if kinds.get(row.operator) in products and not row.operator.endswith("head"):
                counted[row.phase] += row.flops
        rows.append([
            name, units.format_flops(prompt), units.format_flops(counted["prefill"]),
            f"{counted['prefill'] / prompt:.4f}", units.format_flops(output),
            units.format_flops(counted["decode"]), f"{counted['decode'] / output:.4f}",
        ])  # fmt: skip
    header = ["model", "prompt, formula", "counted", "ratio", "output, formula", "counted", "ratio"]
    return table(header, rows)


def predicted_shapes(study: Study) -> tuple[str, list[ProfiledModel]]:
    """The two-part form fitted to rtsim's own predictions: how linear they are."""
    rows, fitted = [], []
    sizes = [(p, o) for p in PROMPTS for o in OUTPUTS]
    for one in study.models:
        chosen = system(one.arch, study.gpu, tp=min(8, one.num_gpus),
                        pp=max(1, one.num_gpus // 8), stack=study.stack)  # fmt: skip
        batch = np.ones(len(sizes))
        prompts, outputs = (np.array([float(s[i]) for s in sizes]) for i in (0, 1))
        predicted_s = chosen.runtimes(batch, prompts, outputs).sum(axis=(1, 2))
        model = fit_table("prediction", one.arch, sizes, predicted_s, range(len(sizes)))
        fitted.append(model)
        one_token = [t for (_, o), t in zip(sizes, predicted_s, strict=True) if o == 1]
        rows.append([
            one.family, one.arch, str(one.num_gpus), one.gpus_source,
            units.format_seconds(model.fit.per_output_token_s),
            units.format_seconds(one_token[PROMPTS.index(512)]),
            units.format_seconds(one_token[-1]), f"{model.r_squared:.6f}",
            str(len(model.fit.knots)),
        ])  # fmt: skip
    header = [
        "family", "model", "GPUs", "GPUs from", "per output token", "prefill 512", "prefill 1920",
        "R^2", "knots",
    ]  # fmt: skip
    return table(header, rows), fitted


def compared(study: Study) -> tuple[str, Comparison]:
    """The study's table: runtime, cost, energy by both energy models, ranks."""
    arguments = {"input_len": study.input_len, "output_len": study.output_len, "study": study}
    archs = [model.arch for model in study.models]
    rated = compare(archs, [study.gpu], [study.stack], **arguments)
    used = compare(archs, [study.gpu], [study.stack], energy_model="utilisation", **arguments)
    by_use = {one.prediction.model.name: one.energy_j for one in used.systems}
    rows = []
    for one in sorted(rated.systems, key=lambda s: s.runtime_s):
        p, interval = one.prediction, one.interval("runtime")
        ranks = [one.ranks[m] for m in ("runtime", "cost", "energy")]
        rows.append([
            p.model.name, units.format_count(p.model.parameters), str(p.num_gpus),
            str(one.min_gpus), units.format_seconds(one.runtime_s),
            f"{interval.low:.2f}-{interval.high:.2f} s", units.format_usd(one.cost_usd or 0.0),
            joules(one.energy_j), joules(by_use[p.model.name]),
            "/".join(str(rank.rank) for rank in ranks),
        ])  # fmt: skip
    header = [
        "model", "size", "GPUs", "fewest", "runtime", "90 %", "cost", "energy, rated",
        "energy, by use", "ranks",
    ]  # fmt: skip
    return table(header, rows), rated


def stacks() -> str:
    """The same models on other GPUs and stacks, and what explains the difference."""
    result = compare(
        ["gpt3-175b", "llama-2-7b"], ["a100", "h100"],
        ["megatron-lm", "vllm", "trtllm", "sglang"], num_gpus=None,
    )  # fmt: skip
    rows = []
    for one in result.differences:
        owed = ", ".join(
            f"{group} {'+' if s > 0 else '-'}{units.format_seconds(abs(s))}"
            for group, s in one.main_groups
        )
        rows.append([one.model, one.other, f"{one.runtime_ratio:.2f}", owed])
    return table(["model", "system", "runtime, first = 1", "owed to"], rows)


def joules(energy_j: float | None) -> str:
    if energy_j is None:
        return "-"
    return f"{energy_j:.0f} J" if energy_j < 1e3 else f"{energy_j / 1e3:.3g} kJ"


def profiled(models: Sequence[ProfiledModel]) -> str:
    """Fit and prediction of every model of generation.csv."""
    rows = []
    for one in models:
        u = one.unprofiled
        per_token = u.per_output_token_s / one.fit.per_output_token_s - 1.0
        tried = max(count for count, _ in u.error_by_rows)
        rows.append([
            one.model, one.system.replace(", megatron-lm", ""), str(one.rows),
            f"{one.r_squared:.5f}", units.format_seconds(one.fit.per_output_token_s),
            percent(one.errors.mean), percent(u.errors.mean), f"{100 * per_token:+.1f} %",
            f"more than {tried}" if u.rows_to_match is None else str(u.rows_to_match),
        ])  # fmt: skip
    header = [
        "model", "system", "rows", "R^2", "per output token", "error of fit",
        "error of prediction", "its per token", "rows a fit needs to match",
    ]  # fmt: skip
    return table(header, rows)


def ranking(folder: Path) -> str:
    """Kendall tau of the order of models, predicted against measured, over all workloads."""
    columns = read_table(folder / "generation.csv").columns
    by_gpu: dict[str, list] = {}
    for c in configurations(columns):
        by_gpu.setdefault(c.gpu.name, []).append(c)
    rows = []
    for gpu, members in by_gpu.items():
        found: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
        for c in members:
            times = c.system().runtimes(c.batch, c.prompt_tokens, c.output_tokens)
            spreads = columns["runtime_std_s"][c.rows] + 0.5 * PRINTED_S
            sizes = zip(c.prompt_tokens.astype(int), c.output_tokens.astype(int), strict=True)
            for size, predicted, measured, spread in zip(
                sizes, times.sum(axis=(1, 2)), c.runtime_s, spreads, strict=True
            ):
                found.setdefault(size, []).append(
                    (float(predicted), float(measured), float(spread))
                )
        whole = [models for models in found.values() if len(models) == len(members)]

        def taus(groups: Sequence[Sequence[tuple]], ties: bool) -> list[float]:
            return [
                kendall_tau(*[[row[k] for row in group] for k in ((0, 1, 2) if ties else (0, 1))])
                for group in groups
            ]

        pooled = [row for models in found.values() for row in models]
        for ties in (False, True):
            each = taus(whole, ties)
            rows.append([
                gpu, str(len(members)), str(len(each)), "within their spread" if ties else "none",
                f"{np.mean(each):.4f}", f"{min(each):.3f}",
                str(sum(tau < 1.0 - 1e-9 for tau in each)), f"{taus([pooled], ties)[0]:.4f}",
            ])  # fmt: skip
    header = [
        "GPU", "models", "workloads", "ties", "mean tau", "least tau", "workloads with a swap",
        "tau of all rows",
    ]  # fmt: skip
    return table(header, rows)


Truth = tuple[float, float, float]  # overhead, per prompt token, per output token
SYNTHETIC = [(p, o) for p in (1, 256, 512, 1024, 1536) for o in (1, 2, 4, 8, 16, 32, 64)]


def synthetic_table(noise: str, repeats: int, seed: int) -> tuple[Truth, np.ndarray]:
    """A random truth, and seconds of calls of each SYNTHETIC size, (sizes, repeats)."""
    random = np.random.default_rng(5000 + seed)  # not those the fit was designed on
    per_token, overhead = 10.0 ** random.uniform(-2.3, -1.0), random.uniform(0.02, 0.5)
    per_prompt = random.uniform(1e-5, 5e-4)
    draw = NOISE[noise]
    runtime_s = []
    for p, o in SYNTHETIC:
        alone = overhead + per_prompt * (p - 1) + per_token * o
        runtime_s.append([alone * (1.0 + float(draw(random))) for _ in range(repeats)])
    return (overhead, per_prompt, per_token), np.array(runtime_s)


def synthetic() -> str:
    """Known truth plus heavy-tailed noise: how well it comes back, and who says it may not."""
    rows = []
    for repeats in (2, 5, 10):
        for noise in NOISE:
            errors, inside, noted = [], [], []
            for seed in range(TABLES):
                (_, _, per_token), runtime_s = synthetic_table(noise, repeats, seed)
                calls = [
                    Latency(0, p, o, float(t))
                    for (p, o), times in zip(SYNTHETIC, runtime_s, strict=True)
                    for t in times
                ]
                fit = denoise_model("synthetic", calls, bootstraps=40)
                errors.append(abs(fit.curve.per_output_token_s / per_token - 1.0))
                interval = fit.per_output_token_interval_s
                inside.append(interval.low <= per_token <= interval.high)
                noted.append(any(note.startswith("cells too thin") for note in fit.notes))
            silent = [e for e, n in zip(errors, noted, strict=True) if not n]
            rows.append([
                str(repeats), noise, percent(float(np.median(errors))),
                percent(float(np.mean(np.array(errors) <= 0.03))), percent(max(errors)),
                percent(float(np.mean(inside))), percent(float(np.mean(noted))),
                percent(max(silent)) if silent else "-",
            ])  # fmt: skip
    header = [
        "repeats", "noise", "median error", "within 3 %", "largest", "in the interval",
        "said too thin", "largest of the others",
    ]  # fmt: skip
    return table(header, rows)


def limit() -> str:
    """The same tables by an estimator that knows what none can know."""
    prompts, outputs = np.array(SYNTHETIC, dtype=float).T
    rows = []
    for repeats in (5, 10):
        errors = []
        for seed in range(TABLES):
            (overhead, per_prompt, per_token), runtime_s = synthetic_table(
                EXPONENTIAL, repeats, seed
            )
            truth = np.array([overhead + per_token, per_prompt, per_token])
            found = median_per_token(prompts, outputs, runtime_s, EXPONENTIAL_MEAN, truth)
            errors.append(abs(found / per_token - 1.0))
        rows.append([
            str(repeats), percent(float(np.median(errors))),
            percent(float(np.mean(np.array(errors) <= 0.03))), percent(max(errors)),
        ])  # fmt: skip
    return table(["repeats", "median error", "within 3 %", "largest"], rows)


def least_squares(calls: Sequence[Latency]) -> float:
    """Seconds per output token by least squares over the fastest repeat of each cell."""
    fastest: dict[tuple[int, int], float] = {}
    for call in calls:
        size = (call.prompt_tokens, call.output_tokens)
        fastest[size] = min(call.runtime_s, fastest.get(size, call.runtime_s))
    sizes = np.array(list(fastest), dtype=float)
    fit = fit_two_parts(sizes[:, 0], sizes[:, 1], np.array(list(fastest.values())))
    return fit.per_output_token_s


def denoised(folder: Path, path: Path | None) -> str:
    """Fits to api_latency.csv beside the published ones."""
    latencies = read_latencies(folder / "api_latency.csv")
    published = read_curves(folder / "denoised.csv")
    fits = denoise(latencies)
    if path is not None:
        plot_denoised(fits, latencies, str(path))
    rows = []
    for fit in fits:
        known, curve = published[fit.curve.model], fit.curve
        naive = least_squares(latencies.by_model[curve.model])
        interval = fit.per_output_token_interval_s
        above_s = [
            call.runtime_s - known.runtime_s(call.prompt_tokens, call.output_tokens)
            for call in latencies.by_model[curve.model]
        ]
        rows.append([
            curve.model, str(fit.rows), f"{1e3 * curve.per_output_token_s:.1f} ms",
            f"{1e3 * interval.low:.1f}-{1e3 * interval.high:.1f} ms",
            f"{1e3 * known.per_output_token_s:.0f} ms",
            f"{100 * (curve.per_output_token_s / known.per_output_token_s - 1.0):+.1f} %",
            f"{100 * (naive / known.per_output_token_s - 1.0):+.0f} %",
            units.format_seconds(curve.overhead_s or 0.0),
            units.format_seconds(known.overhead_s or 0.0),
            f"{1e3 * min(above_s):.0f} ms, {sum(s < 0.0 for s in above_s)} below",
            units.format_seconds(curve.prefill_s[2]), units.format_seconds(known.prefill_s[3]),
        ])  # fmt: skip
    header = [
        "model", "calls", "per output token", "interval", "published", "difference",
        "least squares", "overhead", "published", "fastest call above published",
        "prefill 1024", "published",
    ]  # fmt: skip
    return table(header, rows)


def against(folder: Path, study: Study, stack: str) -> str:
    """Published denoised times beside idealized ones."""
    curves = read_curves(folder / "denoised.csv").values()
    found, _ = against_idealized(curves, gpu=study.gpu, stack=stack, study=study)
    rows = []
    for one in found:
        rows.append([
            one.model, one.arch, str(one.num_gpus), units.format_seconds(one.denoised_s),
            units.format_seconds(one.idealized_s), f"{one.ratio:.2f}",
            f"{one.ratio_interval_90.low:.2f}-{one.ratio_interval_90.high:.2f}",
            "-" if one.explained_by is None else str(one.explained_by), one.reading,
        ])  # fmt: skip
    header = [
        "model", "taken as", "GPUs", "denoised", "idealized", "ratio", "90 %", "GPUs that explain",
        "reading",
    ]  # fmt: skip
    return table(header, rows)


def frontiers(result: Tradeoff) -> str:
    """Who is on the frontier under each metric, over all scenarios."""
    models = sorted({p.model for view in result.views for p in view.overall.points})
    rows = []
    for model in models:
        row = [model]
        for view in result.views:
            point = next((p for p in view.overall.points if p.model == model), None)
            if point is None:
                row.append("-")
                continue
            place = [p.model for p in view.overall.points].index(model) + 1
            mark = "frontier" if point.on_frontier else f"below {point.dominated_by[0]}"
            row.append(f"{place}. {point.x:.3g}, {mark}")
        rows.append([*row, f"{point.y:.3f}" if point else "-"])
    return table(["model", *(view.metric for view in result.views), result.score], rows)


def order_changes(result: Tradeoff) -> str:
    """Where the order of models changes between metrics of time."""

    def short(names: Iterable[str]) -> str:
        return ", ".join(name.rpartition("/")[2] for name in names) or "none"

    lines = []
    for change in result.changes:
        if "idealized_cost" in (change.first, change.second):
            continue
        overtaken: dict[str, list[str]] = {}
        for ahead, behind in change.swapped:
            overtaken.setdefault(ahead, []).append(behind)
        swaps = "; ".join(f"{short([a])} behind {short(b)}" for a, b in overtaken.items())
        lines.append(
            f"* **{change.first} to {change.second}**: Kendall tau {change.kendall_tau:.2f}. "
            f"Onto the frontier: {short(change.gained)}; off it: {short(change.lost)}. "
            f"Falls behind: {swaps or 'none'}."
        )
    return "\n".join(lines)


def parts(folder: Path | None, write: bool) -> Iterable[tuple[str, str]]:
    """(marker, Markdown) of every part of the page."""
    study = load_study("paper")

    def figure(name: str) -> Path | None:
        return FIGURES / f"{name}.png" if write else None

    yield "closed form", closed_form()
    shapes, fitted = predicted_shapes(study)
    yield "shapes", shapes
    text, comparison = compared(study)
    yield "study", text
    yield "stacks", stacks()
    yield "synthetic", synthetic()
    yield "limit", limit()
    if write:
        chosen = ("gpt3-175b", "anthropic-52b", "opt-66b", "j1-grande", "gpt3-6.7b", "gpt3-350m")
        shown = [model for model in fitted if model.model in chosen]
        plot_profiled(shown, str(figure("predicted-runtime")))
        plot_comparison(comparison, str(figure("study")))
    if folder is None:
        return
    models = profile_fit(folder / "generation.csv")
    yield "profiled", profiled(models)
    yield "ranking", ranking(folder)
    yield "denoised", denoised(folder, figure("denoised"))
    yield "against eager", against(folder, study, "megatron-lm")
    yield "against fused", against(folder, study, "trtllm")
    result = tradeoff(
        folder / "capability.csv",
        ["raw_runtime", "denoised_runtime", "idealized_runtime", "idealized_cost"],
        stack=study.stack, study=study, curves=read_curves(folder / "denoised.csv"),
        model_map=STANDS,
    )  # fmt: skip
    yield "frontiers", frontiers(result)
    yield "order changes", order_changes(result)
    if write:
        plot_profiled(models, str(figure("measured-runtime")))
        plot_tradeoff(result, str(figure("tradeoff")))
        idealized = replace(result, views=result.views[2:3])
        plot_tradeoff(idealized, str(figure("tradeoff-scenarios")), scenarios=True)


def shrink(path: Path) -> None:
    """Rewrite a PNG with a palette: a third of the size, and no difference to the eye."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write:
        FIGURES.mkdir(exist_ok=True)
    for marker, text in parts(options.folder, options.write):
        print(f"## {marker}\n\n{text}\n")
        if options.write:
            put_into(PAGE, marker, text + "\n")
    if options.write:
        for path in FIGURES.glob("*.png"):
            shrink(path)


if __name__ == "__main__":
    main()
