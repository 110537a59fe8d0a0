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
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from rtsim.fit import select_rows
from rtsim.fitting import collective as collective_rows
from rtsim.fitting.generation import choose_rows, configurations
from rtsim.measurements import Table, read_table, write_table

TABLES = Path(__file__).parent / "tables"
GENERATION_ROWS = {"a100": 10, "v100": 15}
GEMM_ROWS = 64
COLLECTIVE_ROWS = 64
SHORTEST_US = 5.0


def write_chosen(name: str, table: Table, rows: np.ndarray) -> None:
    """Write the chosen rows, in the order of the source, with all their columns."""
    chosen = {column: values[np.sort(rows)] for column, values in table.columns.items()}
    write_table(TABLES / name, chosen)
    print(f"{name}: {len(rows)} of {len(table)} rows")


def main(folder: Path) -> None:
    TABLES.mkdir(exist_ok=True)
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
