"""Print how far predictions of whole generations are from measurements they never saw.

    python scripts/accuracy.py [MEASUREMENTS_FOLDER] [--write]

With a folder that holds generation.csv (1,840 whole generations of Megatron-LM on A100 and V100,
stanford-crfm/helm-efficiency) it judges the shipped profiles on every row outside their
calibration tables, and refits without each model in turn. Without one it does the same on the
calibration tables alone (rows left out of the fit one model at a time), which needs nothing but
this repository. --write puts the tables of a folder into docs/accuracy.md and README.md, and the
README's example in either case.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "calibration"))

import fit_megatron  # noqa: E402
from rtsim.catalog import load_gpu, load_model  # noqa: E402
from rtsim.fitting.generation import (  # noqa: E402
    Configuration,
    configurations,
    fit_stack,
    runtimes,
)
from rtsim.measurements import read_table  # noqa: E402
from rtsim.profile import Profile, load_profile  # noqa: E402
from rtsim.specs import ParallelismSpec  # noqa: E402
from rtsim.system import System  # noqa: E402

# GPT-3 175B on eight A100-80GB, the paper's own system, as helm-efficiency prints it
# (openai_davinci, batch 1; outside the calibration tables): prompt and output tokens, seconds.
HEADLINE = ((512, 1, 0.179), (512, 64, 5.326), (1024, 32, 2.843))


class Errors:
    """Relative errors and interval coverage of some rows."""

    def __init__(self, configuration: Configuration, profile: Profile) -> None:
        system = configuration.system(profile)
        owed = runtimes(configuration, profile)
        self.predicted_s = owed.sum(axis=1)
        self.measured_s = configuration.runtime_s
        self.error = self.predicted_s / self.measured_s - 1.0
        half_width = system.interval_frac(owed, configuration.batch)
        self.inside = np.abs(np.log(self.measured_s / self.predicted_s)) <= half_width
        self.prompt_only = configuration.output_tokens == 1
        self.roofline_s = roofline_runtimes(configuration)


def roofline_runtimes(configuration: Configuration) -> np.ndarray:
    """The plain roofline: max(FLOPs / peak, weight and cache bytes / bandwidth) of every pass."""
    model, gpu, tp = configuration.model, configuration.gpu, configuration.parallelism.tp
    peak = gpu.peak_flops_per_s(configuration.dtype) * tp
    bandwidth = gpu.hbm_bytes_per_s * tp
    weights = 2.0 * model.parameters
    totals = []
    for prompt, output in zip(
        configuration.prompt_tokens, configuration.output_tokens, strict=True
    ):
        attention = 4.0 * model.n_layers * model.hidden_size
        prefill_flops = 2.0 * model.parameters * prompt + attention * prompt**2
        total = max(prefill_flops / peak, weights / bandwidth)
        context = prompt + output / 2
        cache = model.kv_bytes_per_token("fp16") * context
        total += (output - 1) * max(
            (2.0 * model.parameters + attention * context) / peak, (weights + cache) / bandwidth
        )
        totals.append(total)
    return np.array(totals)


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)])


def without_rows(full: Configuration, fitted: Sequence[Configuration]) -> Configuration:
    """The rows of `full` that no calibration row repeats."""
    used = {
        (c.label, p, o)
        for c in fitted
        for p, o in zip(c.prompt_tokens, c.output_tokens, strict=True)
    }
    keep = [
        (full.label, p, o) not in used
        for p, o in zip(full.prompt_tokens, full.output_tokens, strict=True)
    ]
    return full.take(np.flatnonzero(keep))


def headline(profile: Profile) -> str:
    davinci = System(
        load_model("gpt3-175b"), load_gpu("a100"), ParallelismSpec(tp=8), profile=profile
    )
    rows = []
    for prompt, output, measured_s in HEADLINE:
        predicted_s = davinci.times(1, prompt, output).e2e_latency_s
        rows.append([
            str(prompt), str(output), f"{measured_s:.3f} s", f"{predicted_s:.3f} s",
            f"{100 * (predicted_s / measured_s - 1.0):+.1f} %",
        ])  # fmt: skip
    return table(["prompt", "output", "measured", "predicted", "error"], rows)


def unseen_rows(
    full: Sequence[Configuration], fitted: Sequence[Configuration], profile: Profile
) -> tuple[str, str]:
    """(table by model, one-line summary) of the rows outside the fit."""
    rows, every = [], []
    for configuration in full:
        errors = Errors(without_rows(configuration, fitted), profile)
        every.append(errors)
        rows.append(_summary(configuration.label, [errors]))
    rows.append(_summary("all", every))
    return table(_HEADER, rows), _line(every)


_HEADER = ["model", "rows", "mean error", "median", "prompt only", "in 90 %", "plain roofline"]


def _summary(label: str, parts: Sequence[Errors]) -> list[str]:
    error = np.abs(np.concatenate([p.error for p in parts]))
    prompt = np.concatenate([p.prompt_only for p in parts])
    inside = np.concatenate([p.inside for p in parts])
    roofline = np.abs(
        np.concatenate([p.roofline_s for p in parts])
        / np.concatenate([p.measured_s for p in parts]) - 1.0
    )  # fmt: skip
    figures = (error.mean(), np.median(error), error[prompt].mean(), inside.mean(), roofline.mean())
    return [label, str(len(error)), *(percent(float(figure)) for figure in figures)]


def _line(parts: Sequence[Errors]) -> str:
    error = np.abs(np.concatenate([p.error for p in parts]))
    inside = np.concatenate([p.inside for p in parts])
    return (
        f"median {percent(float(np.median(error)))}, mean {percent(error.mean())}, "
        f"{percent(inside.mean())} inside the 90 % interval"
    )


def left_out_models(
    full: Sequence[Configuration],
    fitted: Sequence[Configuration],
    profile: Profile,
    base: Profile,
    recipe: fit_megatron.Recipe,
) -> str:
    """Each model predicted by a fit without any of its rows."""
    rows, every = [], []
    for configuration in full:
        rest = [c for c in fitted if c.label != configuration.label]
        refitted, _ = fit_stack(rest, base, fit_megatron.freedoms_of(recipe, base))
        judged = replace(
            refitted,
            sigma_seen=profile.sigma_unseen, sigma_unseen=profile.sigma_unseen,
            sigma_row=profile.sigma_row, gpu=profile.gpu,
        )  # fmt: skip
        errors = Errors(configuration, judged)
        every.append(errors)
        rows.append(_summary(configuration.label, [errors]))
    rows.append(_summary("all", every))
    return table(_HEADER, rows)


def bases() -> list[tuple[fit_megatron.Recipe, Profile]]:
    """What each recipe starts from, as calibration/fit_megatron.py has it."""
    a100 = load_profile(f"megatron-lm-{fit_megatron.RECIPES[0].gpu}")
    return [
        (fit_megatron.RECIPES[0], fit_megatron.kernel_profile()),
        (fit_megatron.RECIPES[1], a100),
    ]


def report(folder: Path | None) -> str:
    """The Markdown text."""
    parts = []
    for recipe, base in bases():
        profile = load_profile(f"megatron-lm-{recipe.gpu}")
        fitted = configurations(read_table(fit_megatron.TABLES / recipe.table).columns)
        full = fitted
        if folder is not None:
            columns = read_table(folder / "generation.csv").columns
            full = [c for c in configurations(columns) if c.gpu.name == profile.gpu]
        n_fitted = sum(len(c.rows) for c in fitted)
        parts.append(f"### {profile.gpu}, {profile.stack} ({n_fitted} whole generations fitted)")
        if recipe.gpu.startswith("a100"):
            parts += ["GPT-3 175B on 8 GPUs, fp16, batch 1:", headline(profile)]
        if folder is not None:
            by_model, line = unseen_rows(full, fitted, profile)
            parts += [f"Rows outside the fit: {line}.", by_model]
        parts += [
            "Model left out (fitted without any of its rows, then predicted):",
            left_out_models(full, fitted, profile, base, recipe),
        ]
    return "\n\n".join(parts) + "\n"


def example() -> str:
    """The README's example: the command's own output."""
    command = "rtsim predict --arch gpt3-175b --gpu a100 --tp 8"
    environment = {**os.environ, "COLUMNS": "80"}
    run = subprocess.run(
        [sys.executable, "-c", "from rtsim.cli.main import main; main()", *command.split()[1:]],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return f"```\n$ {command}\n{run.stdout.strip()}\n```\n"


def put_into(path: Path, what: str, text: str) -> None:
    """Replace what stands between the markers of a file."""
    start, end = f"<!-- {what}: start -->", f"<!-- {what}: end -->"
    old = path.read_text(encoding="utf-8")
    head, _, rest = old.partition(start)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{start}\n\n{text}\n{end}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = report(options.folder)
    print(text)
    if options.write and options.folder is not None:
        put_into(ROOT / "docs/accuracy.md", "accuracy", text)
        a100 = text.partition("### v100")[0].strip() + "\n"
        put_into(ROOT / "README.md", "accuracy", a100)
    if options.write:
        put_into(ROOT / "README.md", "example", example())


if __name__ == "__main__":
    main()
