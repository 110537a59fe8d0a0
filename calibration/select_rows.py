"""Choose the calibration rows out of large measurement tables. Run once; its output is committed.

    python calibration/select_rows.py MEASUREMENTS_FOLDER

Rows are chosen by their sizes alone, before anything is fitted:

* generation_a100.csv, generation_v100.csv: `fitting.generation.choose_rows`, 10 rows of each of
  the six A100 models and 15 of each of the two V100 models;
* collective_a100.csv: 64 rows of PyTorch's NCCL calls on A100-SXM4 nodes, all-reduce and
  send/recv, `fitting.collective.choose_rows`;
* gemm_a100.csv: 64 rows of fp16 products timed inside whole layers, farthest-point design over
  the logarithms of m, n, k among aligned products of at least 5 us (the source has a resolution
  of 1 us).
* kernels/<kind>_<gpu>_<stack>.csv: kernels of software stacks, at most 64 rows per section of a
  profile (operator kind and number format), of the newest version of the stack that has it (of
  quantised products, whose kernels change most, 16 of them of each older version instead), by
  the design of the kind's recipe (`fitting.kinds.choose`). All other rows are unseen.
* serving/serving_<gpu>_<stack>.csv, serving/batches_<gpu>_<stack>.csv: 64 serving runs with prompts
  and decodes together, and 64 offline batches, at most half of what there is, by the design of
  `fitting.serving_fit.choose_rows` over models, releases, precisions and sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from rtsim.catalog import load_gpu
from rtsim.fit import select_rows
from rtsim.fitting import collective as collective_rows
from rtsim.fitting import (
    gemm_priors,
    kernel_rows,
    kinds,
    mla,
    mla_module,
    serving_cases,
    serving_fit,
)
from rtsim.fitting.generation import choose_rows, configurations
from rtsim.fitting.serving_rows import Deployments
from rtsim.measurements import Columns, Table, read_table
from rtsim.table_text import write_table

TABLES = Path(__file__).parent / "tables"
GENERATION_ROWS = {"a100": 10, "v100": 15}
GEMM_ROWS = 64
COLLECTIVE_ROWS = 64
SHORTEST_US = 5.0
KERNEL_ROWS = 64  # per section, GPU and stack
OLDER_ROWS = 16  # of them, of each older release of a quantised product
RUNS = 64  # serving runs, and batches, per GPU and stack

# Stacks as tables name them -> in the names of our tables and profiles.
STACKS = {
    "vllm": "vllm", "trtllm": "trtllm", "sglang": "sglang", "nccl": "nccl",
    "sarathi-serve/pytorch": "sarathi-serve", "pytorch-nccl": "sarathi-serve",
    "pytorch": "pytorch",
}  # fmt: skip
# One method of timing per stack: LLMCompass times PyTorch from the host, NeuSight by events.
LEFT_OUT_SOURCES = ("PrincetonUniversity/LLMCompass",)
UNSAID = ("timing", "residency", "role")  # columns that are written only where rows say something
# Columns that neither a fit nor its provenance needs.
LEFT_OUT_COLUMNS = ("model", "tp", "op", "kernel")
KEPT_LABELS = {
    "elementwise": LEFT_OUT_COLUMNS, "moe": ("tp", "kernel"), "mla": ("op",),
}  # fmt: skip
UNSERVED = "_marlin_int4"
LEAST_SHARE = 16  # rows of each family of kernels that shares a format


def write_chosen(name: str, table: Table, rows: np.ndarray) -> None:
    """Write the chosen rows, in the order of the source, with all their columns."""
    chosen = {column: values[np.sort(rows)] for column, values in table.columns.items()}
    for column in UNSAID:
        if column in chosen and not any(chosen[column].tolist()):
            del chosen[column]
    write_table(TABLES / name, chosen)
    print(f"{name}: {len(rows)} of {len(table)} rows")


Key = tuple[str, str, str]  # GPU, stack, section


def place(block: kinds.Block) -> tuple[str, ...]:
    """What a version of a stack is the newest of: a format of expert layers, else a block.

    Tables of expert layers that time something else than what the stack serves with hide no older
    ones (`fitting.moe`).
    """
    if block.kind == "moe":
        return (block.gpu.name, block.stack, block.dtype, str(block.section.endswith(UNSERVED)))
    if block.kind == "gemm":  # blocks of releases are apart
        return (block.gpu.name, block.stack, block.dtype, block.section)
    return (block.gpu.name, block.stack, block.dtype, block.section, str(block.table_rows[0]))


def shared_counts(sections: dict[Key, list[kinds.Block]]) -> dict[Key, int]:
    """Rows to choose of each section: KERNEL_ROWS of each format, which families of kernels share.

    In proportion to their rows, at least LEAST_SHARE each; small ones give way.
    """
    formats: dict[tuple[str, str, str, str], dict[Key, int]] = {}
    for key, found in sections.items():
        gpu, stack, section = key
        # Only sections of expert layers share a format.
        form = found[0].dtype if found[0].kind == "moe" else section
        sizes = formats.setdefault((gpu, stack, found[0].kind, form), {})
        sizes[key] = sum(map(len, found))
    counts = {}
    for sizes in formats.values():
        left, rest = KERNEL_ROWS, sum(sizes.values())
        for key, size in sorted(sizes.items(), key=lambda item: item[1]):
            count = min(size, left, max(min(LEAST_SHARE, left), round(left * size / rest)))
            counts[key] = count
            left, rest = left - count, rest - size
    return counts


def choose_whole_blocks(columns: Columns, sections: set[Key]) -> dict[tuple[str, str], np.ndarray]:
    """Whole blocks of latent attention, KERNEL_ROWS of each operator and format, by GPU and stack.

    Only of stacks without rows of the attention alone (`sections`).
    """
    chosen: dict[tuple[str, str], list[np.ndarray]] = {}
    usable = np.isin(columns["stack"], list(STACKS)) & (mla.predictable(columns) == "")
    for op, kind in mla_module.KINDS.items():
        members = np.flatnonzero(usable & (columns["op"] == op))
        by = ("gpu", "stack", "dtype", "kv_dtype")
        for key, rows in kernel_rows.grouped(columns, by, members):
            gpu, stack = load_gpu(key["gpu"]), STACKS[key["stack"]]
            if any(k[:2] == (gpu.name, stack) and k[2].startswith(kind) for k in sections):
                continue
            made = mla.rows_of(columns, rows, kind, lambda _, gpu=gpu: gpu)
            picked = rows[mla.choose_rows(made, KERNEL_ROWS)]
            chosen.setdefault((gpu.name, stack), []).append(picked)
    return {key: np.concatenate(rows) for key, rows in chosen.items()}


def choose_kernels(folder: Path) -> None:
    """Write the tables of kernels, one per kind, GPU and stack."""
    for kind, section_kind in kinds.SECTION_KINDS.items():
        table = read_table(folder / f"{kind}.csv.gz")
        columns = table.columns
        fits = (kinds.usable(section_kind, columns) == "") & ~np.isin(
            columns["source"], LEFT_OUT_SOURCES
        )
        of_stack = np.isin(columns["stack"], list(STACKS))
        members = np.flatnonzero(fits & of_stack & ~table.repeated)
        blocks = kinds.blocks_of(section_kind, columns, members, load_gpu)
        versions = columns["stack_version"]
        newest: dict[tuple[str, ...], tuple[int, ...]] = {}
        for block in blocks:
            of_block = max(kinds.version(v) for v in versions[block.table_rows])
            newest[place(block)] = max(newest.get(place(block), ()), of_block)
        sections: dict[Key, list[kinds.Block]] = {}
        older: dict[Key, list[kinds.Block]] = {}
        for block in blocks:
            new = [kinds.version(v) == newest[place(block)] for v in versions[block.table_rows]]
            stack = STACKS[str(columns["stack"][block.table_rows[0]])]
            key = (block.gpu.name, stack, block.section)
            if any(new):
                sections.setdefault(key, []).append(block.take(np.array(new)))
            elif block.kind == "gemm" and block.dtype not in gemm_priors.HALF:
                older.setdefault(key, []).append(block)
        files: dict[tuple[str, str], list[np.ndarray]] = {}
        counts = shared_counts(sections)
        for (gpu, stack, section), found in sections.items():
            count = counts[gpu, stack, section]
            for block in older.get((gpu, stack, section), ()):
                files.setdefault((gpu, stack), []).append(
                    kinds.choose([block], OLDER_ROWS)[0].table_rows
                )
                count -= OLDER_ROWS
            rows = [b.table_rows for b in kinds.choose(found, count)] if count else []
            files.setdefault((gpu, stack), []).extend(rows)
        if kind == "mla":
            for key, rows in choose_whole_blocks(columns, set(sections)).items():
                files.setdefault(key, []).append(rows)
        named = KEPT_LABELS.get(kind, ())
        kept = {n: v for n, v in columns.items() if n not in LEFT_OUT_COLUMNS or n in named}
        for (gpu, stack), rows in sorted(files.items()):
            name = f"kernels/{kind}_{gpu}_{stack}.csv"
            write_chosen(
                name, Table(name, kind, kept, table.lines, table.repeated), np.concatenate(rows)
            )


def choose_runs(folder: Path) -> None:
    """Write the tables of serving runs and of offline batches, one per GPU and stack."""
    (TABLES / "serving").mkdir(parents=True, exist_ok=True)
    for file, name, cases_of in (
        ("serving.csv.gz", "serving", serving_cases.serving_cases),
        ("offline_batch.csv", "batches", serving_cases.batch_cases),
    ):
        table = read_table(folder / file)
        members = np.flatnonzero(~table.repeated)
        cases, _ = cases_of(table.columns, Deployments(), members.tolist())
        places: dict[tuple[str, str], list[serving_cases.Case]] = {}
        for case in cases:
            system = case.deployment.engine.system
            if case.prefill is None:
                key = (load_gpu(table.columns["gpu"][case.index]).name, system.profile.stack)
                places.setdefault(key, []).append(case)
        for (gpu, stack), found in sorted(places.items()):
            chosen = serving_fit.choose_rows(found, min(RUNS, len(found) // 2))
            rows = np.array([case.index for case in chosen])
            write_chosen(f"serving/{name}_{gpu}_{stack}.csv", table, rows)


def main(folder: Path) -> None:
    (TABLES / "kernels").mkdir(parents=True, exist_ok=True)
    choose_kernels(folder)
    choose_runs(folder)
    generation = read_table(folder / "generation.csv")
    systems = configurations(generation.columns)
    for gpu, count in GENERATION_ROWS.items():
        chosen = [c.rows[choose_rows(c, count)] for c in systems if c.gpu.name.startswith(gpu)]
        write_chosen(f"generation_{gpu}.csv", generation, np.concatenate(chosen))

    collective = read_table(folder / "collective.csv.gz")
    column = collective.columns
    library = np.flatnonzero(
        (column["stack"] == "pytorch-nccl") & (column["gpu"] == "A100-SXM4-80GB")
    )
    rows = collective_rows.rows_of(column, library)
    write_chosen(
        "collective_a100.csv",
        collective,
        library[collective_rows.choose_rows(rows, COLLECTIVE_ROWS)],
    )

    gemm = read_table(folder / "gemm.csv.gz")
    column = gemm.columns
    usable = (
        (column["source"] == "microsoft/vidur")
        & (column["gpu"] == "A100-80GB")
        & (column["n"] % 8 == 0)
        & (column["k"] % 8 == 0)
        & (column["time_us"] >= SHORTEST_US)
    )
    rows = np.flatnonzero(usable)
    sizes = np.log(np.stack([column[name][rows] for name in "mnk"], axis=1).astype(float))
    write_chosen("gemm_a100.csv", gemm, rows[select_rows(sizes, GEMM_ROWS)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
