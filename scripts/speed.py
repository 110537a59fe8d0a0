"""How fast bulk predictions are: measures, and writes docs/speed.md and its figures.

    python scripts/speed.py [--write] [--most-rows N]

Times are CPU seconds of one thread, the least of some repeats, so that a busy machine changes them
little; the rate with all cores is wall-clock time and is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rtsim
from rtsim.bulk import n_threads, predict_many
from rtsim.named_system import system
from rtsim.specs import ModelSpec
from rtsim.sweep import sweep

PAGE = Path(__file__).resolve().parents[1] / "docs" / "speed.md"
FIGURE = PAGE.parent / "figures" / "speed.svg"

BATCHES = [2**i for i in range(10)]
PROMPTS = [2**i for i in range(7, 17)]
OUTPUTS = [2**i for i in range(10)]
BANDWIDTHS = [1e12 * 1.02**i for i in range(200)]
BASE: dict[str, Any] = {"model": "llama-3.1-70b", "gpu": "h100", "tp": 8}


def cpu_s(function: Callable[[], Any], repeats: int = 5) -> float:
    """Least CPU seconds of this thread."""

    def once() -> float:
        gc.collect()
        before = time.thread_time()
        function()
        return time.thread_time() - before

    return min(once() for _ in range(repeats))


def product(**axes: Any) -> dict[str, Any]:
    """A table with a row for each combination."""
    shaped = np.meshgrid(*(np.arange(len(v)) for v in axes.values()), indexing="ij")
    return {
        name: np.asarray(values)[at.ravel()]
        for (name, values), at in zip(axes.items(), shaped, strict=True)
    }


def row_s(table: dict[str, Any], n_rows: int, repeats: int = 5) -> float:
    """CPU seconds a row of a table."""
    return cpu_s(lambda: predict_many({**BASE, **table}, threads=1), repeats) / n_rows


def grid_row_s(**axes: Any) -> float:
    table = product(**axes)
    return row_s(table, len(next(iter(table.values()))))


def by_rows(most: int) -> list[tuple[int, float]]:
    """(rows, CPU seconds a row) of grids of bandwidth x batch x prompt x output."""
    found = []
    n_rows = 1
    while n_rows <= most:
        per_system = len(BATCHES) * len(PROMPTS) * len(OUTPUTS)
        n_systems = -(-n_rows // per_system)
        axes = {
            **BASE,
            "gpu.hbm_bytes_per_s": [1e12 * (1 + 0.01 * i) for i in range(n_systems)],
            "batch_size": BATCHES, "input_len": PROMPTS, "output_len": OUTPUTS,
        }  # fmt: skip
        if n_rows < per_system:
            axes["output_len"] = OUTPUTS[: max(1, n_rows)]
            axes["input_len"] = PROMPTS[: max(1, n_rows // 10)]
            axes["batch_size"] = BATCHES[: max(1, n_rows // 100)]
        # Nothing is kept, so that memory does not limit the number of rows.
        repeats = 5 if n_rows < 10**6 else 2
        seconds = cpu_s(lambda axes=axes: sweep(axes, where="ttft_s < 0", threads=1), repeats)
        found.append((n_rows, seconds / n_rows))
        n_rows *= 10
    return found


def layered(n_kinds: int) -> ModelSpec:
    """A dense model with this many kinds of layers, of which none equals another."""
    layer = {"attention": {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128}, "norm": "rmsnorm"}
    layers = [
        {**layer, "count": 4, "mlp": {"ffn_size": 8192 + 512 * i, "gated": True}}
        for i in range(n_kinds)
    ]
    return ModelSpec.from_mapping(
        {"name": f"{n_kinds} kinds", "hidden_size": 4096, "vocab_size": 32000,
         "max_positions": 10**6, "layers": layers}
    )  # fmt: skip


def by_operators() -> list[tuple[int, float]]:
    """(operators of a step, CPU seconds a row)."""
    found = []
    table = product(batch_size=BATCHES, input_len=PROMPTS, output_len=OUTPUTS)
    for n_kinds in (1, 2, 4, 8, 16, 32):
        model = layered(n_kinds)
        asked = {**table, "model": np.array([model] * 1000, object), "tp": 1}
        made = system(model, "h100")
        found.append((len(made.table.rows), row_s(asked, 1000)))
    return found


def marginal() -> dict[str, float]:
    """CPU seconds of one more of something, by its name."""
    some = {"gpu.hbm_bytes_per_s": BANDWIDTHS[:10], "batch_size": BATCHES}
    prompts = np.arange(107, 5107, 100)  # of which no two make the same number of tokens
    one = grid_row_s(**some, input_len=prompts, output_len=[1])
    steps = grid_row_s(**some, input_len=[1024], output_len=np.arange(1, 400))
    peaks = [9e14 + 1e10 * i for i in range(300)]
    layers = list(range(2, 82))
    h100 = system("llama-3.1-70b", "h100", 8)
    return {
        "output length of a known prompt": steps,
        "prompt length of a known batch": one,
        **sharing(),
        "batch of a known system": grid_row_s(
            **{**some, "batch_size": list(range(3, 500, 7))}, input_len=[1024], output_len=[256]
        ),
        "memory, link or network bandwidth": grid_row_s(
            **{"gpu.hbm_bytes_per_s": [1e12 + 1e8 * i for i in range(5000)]},
            batch_size=[8], input_len=[1024], output_len=[256],
        ),
        "other figure of a GPU (a new system)": fresh_s("gpu.peak_bf16_flops_per_s", peaks),
        "figure of a model (a new lowering)": fresh_s("model.n_layers", layers),
        "`System.times`, one at a time": cpu_s(
            lambda: [h100.times(8, 1024, 256) for _ in range(1000)]
        ) / 1000,
        "`rtsim.predict`, of which the times are read": cpu_s(
            lambda: [by_names().e2e_latency_s for _ in range(1000)]
        ) / 1000,
        "`rtsim.predict`, all of it read": cpu_s(
            lambda: [dataclasses.replace(by_names()) for _ in range(20)]
        ) / 20,
    }  # fmt: skip


def sharing() -> dict[str, float]:
    """CPU seconds of a prompt length of a further system, with and without products in common.

    Pipelines of 1 to 8 stages with one batch, which share them, or with a batch of their own each,
    which look for them in vain; and systems of other bandwidths, which do not look.
    """
    lengths = np.arange(1009, 3009)

    def systems_s(batches: list[int], **axes: Any) -> float:
        n_systems = len(batches)
        n = n_systems * len(lengths)
        table = {
            **{name: np.repeat(values, len(lengths)) for name, values in axes.items()},
            "batch_size": np.repeat(batches, len(lengths)),
            "input_len": np.tile(lengths, n_systems), "output_len": 1,
        }  # fmt: skip
        return row_s({**table, "tp": 4}, n) * n_systems

    others = [7 + 2 * i for i in range(8)]
    alone = systems_s([7], pp=[1])
    stages = list(range(1, 9))
    return {
        "the same of a further system that shares its products": (
            systems_s([7] * 8, pp=stages, micro_batches=[1] * 8) - alone
        ) / 7,
        "the same of one that looks for them in vain": (
            systems_s(others, pp=stages, micro_batches=[1] * 8) - alone
        ) / 7,
        "the same of one that can have none in common": (
            systems_s([7] * 8, **{"gpu.hbm_bytes_per_s": [1e12 + 1e9 * i for i in stages]}) - alone
        ) / 7,
    }  # fmt: skip


SERVED = (("llama-3.1-70b", 4), ("mixtral-8x7b", 2), ("deepseek-v3", 8))  # with tp


def by_serving() -> list[tuple[str, float, float, float]]:
    """(model, CPU seconds of a batch, of a load that is served, of `rtsim.serve`), new ones."""
    found = []
    counts = np.arange(1, 1001)
    for model, tp in SERVED:
        own = {"model": model, "gpu": "h200", "tp": tp, "input_len": 1000, "output_len": 256}
        batch_s, served_s = (
            row_s({**own, "stack": "vllm", name: counts}, len(counts))
            for name in ("batch_size", "concurrency")
        )
        lengths = {"input_len": 1000, "output_len": 256}
        one_s = cpu_s(
            lambda model=model, tp=tp, lengths=lengths: [
                rtsim.serve(model, "h200", n, tp=tp, stack="vllm", **lengths) for n in (8, 64)
            ]
        )
        found.append((f"{model}, tp {tp}", batch_s, served_s, one_s / 2))
    return found


def by_names() -> rtsim.Prediction:
    """One library prediction, asked for by names."""
    return rtsim.predict(
        "llama-3.1-70b", "h100", tp=8, batch_size=8, input_len=1024, output_len=256, compiled=True
    )


def fresh_s(path: str, values: list[Any]) -> float:
    """CPU seconds of a system that was never made before; a second call would find it."""
    table = {**BASE, path: values, "batch_size": 8, "input_len": 1024, "output_len": 256}
    before = time.thread_time()
    predict_many(table, threads=1)
    return (time.thread_time() - before) / len(values)


MILLION: dict[str, Any] = {
    "model": "llama-3.1-70b", "gpu": "a100,h100,h200,b200", "tp": "1,2,4,8",
    "gpu.hbm_bytes_per_s": [1e12 * 1.025**i for i in range(63)],
    "batch_size": BATCHES, "input_len": PROMPTS, "output_len": OUTPUTS,
}  # fmt: skip
# No two prompts of a system make as many tokens, so that every row has products of its own.
OWN_PROMPTS: dict[str, Any] = {
    **MILLION, "batch_size": [2**i for i in range(8)], "input_len": range(1001, 17001, 128),
    "output_len": [256],
}  # fmt: skip


def million() -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds of a million rows, by what they are and where they go."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, grid, output in (
            ("in memory", MILLION, None),
            ("to Parquet", MILLION, f"{folder}/out.parquet"),
            ("in memory, each row a number of prompt tokens of its own", OWN_PROMPTS, None),
        ):

            def run(grid: Any = grid, output: str | None = output) -> None:
                sweep(grid, output=output)

            run()
            best = (float("inf"), float("inf"))
            for _ in range(3):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
            found[name] = best
    return found


def shares() -> dict[str, float]:
    """Shares of the CPU time of a table of a million rows by what is done."""
    import cProfile
    import pstats

    table = {**BASE, **product(**{"gpu.hbm_bytes_per_s": BANDWIDTHS}, batch_size=BATCHES,
                               input_len=PROMPTS, output_len=OUTPUTS)}  # fmt: skip
    predict_many(table, threads=1)
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(predict_many, table, threads=1)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    of = {key[2]: value[3] for key, value in stats.items()}
    total = of["predict_many"]
    named = {
        "compiled kernels": of["predict_rows"],
        "systems as rows": of["pack"],
        "reading and grouping columns": of["coded"] + of["combined"] + of["_order"],
    }
    named["making columns, the rest"] = total - sum(named.values())
    return {name: seconds / total for name, seconds in named.items()}


_PEAK = (
    "import sys, rtsim; n = int(sys.argv[1]);"
    "rtsim.sweep({'model': 'llama-3.1-70b', 'gpu': 'h100', 'tp': 8, 'batch_size': '1:100',"
    "'input_len': '1:100', 'output_len': range(1, n + 1)}, output=sys.argv[2], where='mfu < 0.02');"
    "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
)


def peak_bytes(n_outputs: int) -> int:
    """Peak memory of a process (Linux) that sweeps 10^4 x n_outputs rows to a file."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, "-c", _PEAK, str(n_outputs), f"{folder}/out.parquet"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return int(run.stdout) * 1024


_COMPILE = (
    "import time, rtsim, rtsim_kernels; rtsim_kernels.compiled(); start = time.perf_counter();"
    "rtsim.predict_many({'model': 'llama-3.1-70b', 'gpu': 'h100', 'tp': [2, 4]});"
    "print(time.perf_counter() - start)"
)


def first_compile_s() -> float:
    """Seconds of a first bulk prediction with an empty cache, beyond one with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        first, again = (
            float(
                subprocess.run(
                    [sys.executable, "-c", _COMPILE], capture_output=True, text=True, check=True,
                    env={**os.environ, "RTSIM_CACHE_DIR": folder},
                ).stdout
            )
            for _ in range(2)
        )  # fmt: skip
    return first - again


def figure(rows: list[tuple[int, float]], operators: list[tuple[int, float]]) -> None:
    """Cost against rows and against operators."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = made.subplots(1, 2)
    left.loglog(*zip(*((n, 1e6 * s) for n, s in rows), strict=True), "o-", color="#0072B2")
    left.set_xlabel("rows")
    left.set_ylabel("CPU µs a row")
    right.plot(*zip(*((n, 1e6 * s) for n, s in operators), strict=True), "o-", color="#D55E00")
    right.set_xlabel("operators in the table")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    FIGURE.parent.mkdir(exist_ok=True)
    made.savefig(FIGURE, metadata={"Date": None})


def us(seconds: float) -> str:
    return f"{1e6 * seconds:,.2f}" if seconds < 1e-5 else f"{1e6 * seconds:,.0f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(most_rows: int) -> str:
    predict_many({**BASE, "batch_size": 1})  # compiled from here on
    rows, operators = by_rows(most_rows), by_operators()
    marginals, parts = marginal(), shares()
    sweeps = million()
    peaks = {n: peak_bytes(n) for n in (10, 100, 500, 1500)}
    figure(rows, operators)
    slope = (operators[-1][1] - operators[0][1]) / (operators[-1][0] - operators[0][0])
    per_row = rows[-1][1]
    grid_rows = 4 * 4 * 63 * 1000  # of each
    compile_s = first_compile_s()
    lines = [
        "# How fast bulk predictions are",
        "",
        "Written by `python scripts/speed.py --write`; the benchmarks are in `benchmarks/`.",
        f"Measured on {n_threads()} cores of {platform.machine()}, Python "
        f"{platform.python_version()}, warm.",
        "Times are CPU time of one thread; a full prediction is prefill and decode over the whole",
        "context with memory, cost, energy, utilisation and interval.",
        "",
        "## Rate",
        "",
        f"A grid of bandwidth x batch x prompt x output of a dense model costs {us(per_row)} µs of "
        f"CPU a row:",
        f"**{1 / per_row:,.0f} full predictions a second and core.**",
        "",
        table(
            ("rows", "CPU µs a row", "ratio to the row before"),
            [
                (f"{n:,}", us(s), f"{s / rows[i - 1][1]:.2f}" if i else "")
                for i, (n, s) in enumerate(rows)
            ],
        ),
        "",
        "A million rows (4 GPUs x 4 tp x 63 bandwidths x 10 batches x 10 prompts x 10 outputs, or",
        "8 batches x 125 prompts). Wall times include what else the machine had to do:",
        "",
        table(
            (
                "",
                "CPU s",
                f"rows a second, {n_threads()} free cores (from CPU)",
                "wall s, all cores",
                "rows a second (wall)",
            ),
            [
                (
                    name,
                    f"{cpu:.2f}",
                    f"{grid_rows * n_threads() / cpu:,.0f}",
                    f"{wall:.2f}",
                    f"{grid_rows / wall:,.0f}",
                )
                for name, (wall, cpu) in sweeps.items()
            ],
        ),
        "",
        f"The first sweep of a machine compiles its kernels, once: {compile_s:.1f} s on "
        f"{n_threads()} cores; a first simulation some four more.",
        "",
        "Memory of a sweep to a file that keeps part of its rows:",
        "",
        table(
            ("rows", "peak memory"),
            [(f"{10_000 * n:,}", f"{size / 1e6:,.0f} MB") for n, size in peaks.items()],
        ),
        "",
        "![cost against rows and operators](figures/speed.svg)",
        "",
        "## What one more costs",
        "",
        table(
            ("one more", "CPU µs", "a second and core"),
            [(name, us(s), f"{1 / s:,.0f}") for name, s in marginals.items()],
        ),
        "",
        "A new prompt length times the products and kernels of its number of tokens; a new output",
        "length only weighs steps that are known. Bandwidths are written into the rows of a system",
        "that is there already; other figures make a system anew. Systems that differ in pipeline,",
        "replicas, links, memory size, price or number of layers have products, attention and",
        "experts in common, which are timed once: all threads keep times in one table of 1 MB.",
        "Where no such axis has several values, nothing is looked up.",
        "",
        "## Serving",
        "",
        "A further number of requests in flight (`concurrency`, 1 to 1000, 1000 + 256 tokens) of a",
        "known system, in its steady state, against a further batch that is generated to its end.",
        "Loads share nothing but their system, since what a step holds depends on all of a load;",
        "batches also share what they have in common, so further prompts and outputs of a known",
        "batch cost less than any load (above).",
        "",
        table(
            ("model", "batch, CPU µs", "served, CPU µs", "ratio", "`rtsim.serve`, CPU µs"),
            [
                (name, us(batch), us(served), f"{served / batch:.1f}", us(one))
                for name, batch, served, one in by_serving()
            ],
        ),
        "",
        "## Against operators",
        "",
        f"Linear: {1e9 * slope:,.0f} ns a row for each further operator of the table (layers of a",
        "kind share their operators, so depth costs nothing).",
        "",
        table(
            ("operators", "CPU µs a row", "µs an operator"),
            [(str(n), us(s), f"{1e6 * s / n:.3f}") for n, s in operators],
        ),
        "",
        "## Where the time goes",
        "",
        table(("", "share of CPU time"), [(name, f"{100 * x:.1f} %") for name, x in parts.items()]),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--most-rows", type=int, default=10**7)
    options = parser.parse_args()
    text = page(options.most_rows)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
