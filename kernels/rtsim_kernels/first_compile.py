"""The first compile of a machine, shared by two processes.

Numba compiles one function after another, most of it in Python, so threads are of no help. But the
types of most arguments are known beforehand. So where a sweep, a simulation or a forecast finds no
compiled operators in the cache folder and may use two cores, another process compiles one share of
the functions into the folder while this one compiles the other. What then asks for them loads them
from there, as after any earlier run. Where no second process can be had, or it fails, everything is
compiled here as it is asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from . import tables
from ._jit import COMPILED, before_compiles, compile_for, folder_of, n_cores
from .attention import attention_decode_s
from .bulk_memo import keep_s, recalled_s
from .bulk_passes import number_passes
from .bulk_steps import joined_s
from .collective import collective_s
from .cycle import Cycle, Steps, cycle_of
from .events import end_step
from .gemm import gemm_s
from .load import Load
from .mixed import ANEW, ENGINE, Batch, engine_step_s
from .moe import moe_s
from .request_flow import arrive, arrive_moved
from .row_figures import CACHE, SYSTEM, memory_bytes, row_error, set_variance, write_row
from .scan import scan_s
from .scheduling import compose
from .step import MACHINE, latent_s, operator_work, rows_s
from .timeline import advance

# Arguments of the types that predictions hand over.
X = 0.0
N = 0
LINE = np.zeros(1)
GRID = np.zeros((1, 1))
WORDS = np.zeros((1, 1), np.int64)
OPERATORS = np.zeros(1, tables.OPERATOR)
SEGMENTS = np.zeros(1, tables.SEGMENT)
CACHES = np.zeros(1, CACHE)
OPERATOR_ROW = OPERATORS[0]
SYSTEM_ROW = np.zeros(1, SYSTEM)[0]
ENGINE_ROW = np.zeros(1, ENGINE)[0]
MACHINE_ROW = np.zeros(1, MACHINE)[0]
DEVICE_ROW = MACHINE_ROW["device"]
HOST_ROW = MACHINE_ROW["host"]
PLAN_ROW = MACHINE_ROW["plan"]

# Functions with the arguments that they are compiled for, so that both processes are at work for
# about as long: the other one spends 0.7 s on its own start. Where one needs a function of the
# other's share, the other has it by then.
Share = tuple[tuple[Any, tuple[Any, ...]], ...]
STEP: Share = (
    (engine_step_s, (
        Batch(*[X] * len(Batch._fields)), ANEW, OPERATORS, SEGMENTS, MACHINE_ROW, ENGINE_ROW, GRID,
    )),
)  # fmt: skip
THERE: Share = (
    (gemm_s, (*[X] * 5, MACHINE_ROW["gemm"][0], DEVICE_ROW)),
    (rows_s, (OPERATOR_ROW, X, X, X, MACHINE_ROW)),
    (moe_s, (*[X] * 8, MACHINE_ROW["moe"], DEVICE_ROW)),
)
THERE_FOR = {"work": ((operator_work, (OPERATOR_ROW, *[X] * 4, MACHINE_ROW)),), "steps": STEP}
HERE: Share = (
    (latent_s, (OPERATOR_ROW, X, X, X, MACHINE_ROW)),
    (attention_decode_s, (*[X] * 6, MACHINE_ROW["decode"], DEVICE_ROW, X, X)),
    (scan_s, (*[X] * 8, MACHINE_ROW["scan"], DEVICE_ROW)),
    (collective_s, (N, X, X, X, MACHINE_ROW["collective"][0], DEVICE_ROW)),
)
HERE_FOR_ROWS: Share = (
    (write_row, (SYSTEM_ROW, MACHINE_ROW, *[X] * 6, GRID, X, X, GRID, N)),
    (row_error, (SYSTEM_ROW, PLAN_ROW, X, X, X)),
    (set_variance, (SYSTEM_ROW, X, GRID)),
    (memory_bytes, (SYSTEM_ROW, CACHES, PLAN_ROW, X, X, X)),
    (number_passes, (SYSTEM_ROW, PLAN_ROW, N, N, LINE, LINE, GRID)),
    (joined_s, (SYSTEM_ROW, SEGMENTS, HOST_ROW, X, GRID, LINE)),
    (recalled_s, (WORDS, N, X, X, X)),
    (keep_s, (WORDS, N, X, X, X, X)),
)
HERE_FOR_SERVING: Share = (
    (cycle_of, (
        Steps(*[X] * len(Steps._fields)), X, X, X, X, Load(*[X] * len(Load._fields)), ENGINE_ROW,
        Cycle(*[X] * len(Cycle._fields)),
    )),
)  # fmt: skip
LONGEST_S = 60.0  # that the other process is waited for

# What the other process runs: the modules come from the same places as here.
_HELPER = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import rtsim_kernels
shared = rtsim_kernels.compiled().first_compile
shared.compile_share(shared.THERE + shared.THERE_FOR[sys.argv[2]])
"""


def here_for_events(state: Any, arrivals: Any, pools: Any) -> Share:
    """Functions of a simulation, for the types of the arguments of `events.run`."""
    scheduled = state[state.fields.index("sched")]
    series, totals = (scheduled[scheduled.fields.index(name)] for name in ("series", "totals"))
    return (
        (compose, (N, X, scheduled)),
        (arrive, (X, arrivals, state)),
        (arrive_moved, (N, X, state)),
        (end_step, (N, X, state)),
        (advance, (X, X, series, totals)),
    )


# What this process compiles beside the operators, given the types of a function's arguments, and
# what the other does, where that function is the first to be compiled.
NEEDED_BY: dict[str, tuple[Callable[..., Share], str]] = {
    "predict_rows": (lambda *_: HERE_FOR_ROWS, "work"),
    "predict_encoder_rows": (lambda *_: HERE_FOR_ROWS, "work"),
    "generation_many": (lambda *_: (), "work"),
    "engine_step_s": (lambda *_: (), "steps"),
    "batch_s": (lambda *_: (), "steps"),
    "disaggregated": (lambda *_: HERE_FOR_SERVING, "steps"),
    "steady_state": (lambda *_: HERE_FOR_SERVING, "steps"),
    "steady_states": (lambda *_: HERE_FOR_SERVING, "steps"),
    "run": (here_for_events, "steps"),
}


def compile_share(share: Share) -> None:
    """Compile the functions of a share, or load those that are in the cache."""
    for function, arguments in share:
        compile_for(function, arguments)


def worth_sharing() -> bool:
    """Whether operators are to be compiled that no cache has, and a second process may help."""
    folder = folder_of(latent_s)  # None where none is writable
    frozen = getattr(sys, "frozen", False)  # then the executable is a program and not Python
    if folder is None or frozen or not sys.executable or n_cores() < 2:
        return False
    return not any(folder.glob(f"*.{latent_s.__name__}-*.nbi"))


def compile_in_two(here: Share, further: str) -> None:
    """Compile `here` while another process compiles THERE and what is `further` to be done there.

    Waits for it.
    """
    try:
        helper = subprocess.Popen(
            [sys.executable, "-c", _HELPER, json.dumps(sys.path), further],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:  # no further process allowed
        return
    try:
        compile_share(here)
        helper.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        helper.kill()
        helper.wait()


def share_first_compile(function: Any, arguments: tuple[Any, ...]) -> bool:
    """Share the first compile of this process that needs the operators; whether this is it.

    function: about to be compiled for `arguments`, Numba types.
    """
    if function.__name__ not in NEEDED_BY:
        return False
    if worth_sharing():
        here, further = NEEDED_BY[function.__name__]
        compile_in_two(HERE + here(*arguments), further)
    return True


if COMPILED:
    before_compiles(share_first_compile)
