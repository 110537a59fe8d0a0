"""Which operators of many systems take the same time: the keys of `rtsim_kernels.bulk_memo`.

A *class* is a number for all that the time of a product, of attention, a mixture of experts or a
scan depends on beside the step: its sizes and formats, the fitted rows and the device, but for the
memory bandwidth, which has a number of its own since systems differ in it alone. Numbers are given
out once; two operators have the same one only where all of these are equal.

Memory-bound kernels and collectives have none: finding one takes about as long as timing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rtsim_kernels import step, tables

from rtsim.operators import OperatorTable

Array = NDArray[Any]

# Columns of systems that the products do not see, or not all: where one has several values, what
# one system times may serve another. Kernels look nothing up where no such column has.
_UNSEEN = {"pp", "ep", "dp", "cp", "attention_dp", "micro_batches", "num_gpus", "kv_cache_dtype"}
_UNSEEN_PATHS = ("link.", "network.", "model.", "gpu.memory_bytes", "gpu.power_w", "gpu.price")

_PRODUCTS = (tables.GEMM, tables.SCORES, tables.VALUES)  # with a row of their format
_ROWS = {  # of a machine, by kind
    tables.ATTENTION: ("prefill", "decode"),
    tables.LATENT: ("prefill", "mla_prefill", "mla_decode"),
    tables.MOE: ("moe",),
    tables.SCAN: ("scan",),
}
# Fields that say how often an operator runs or of how many units it is, not how long they take.
_OF_STEP = ("row", "phase", "launches", "same")
_UNITS = ("per_token", "per_sequence", "per_cached")

_numbers: dict[bytes, int] = {}
_next = count(1)
_MOST_KEPT = 100_000
_MOST_NUMBERS = 2.0**26  # sums of a class and this many times another number are exact


def may_repeat(values: Mapping[str, Sequence[Any]]) -> bool:
    """Whether systems with these columns, distinct values by name, may have products in common."""
    return any(
        len(own) > 1 and (name in _UNSEEN or name.startswith(_UNSEEN_PATHS))
        for name, own in values.items()
    )


def classes_of(table: OperatorTable, machine: Array) -> Array:
    """(operators,) class of each operator; 0: none, or its time is that of an earlier row.

    machine: the system's MACHINE row.
    """
    device = machine["device"].copy()
    device["hbm_bytes_per_s"] = 0.0
    own = device.tobytes()
    products = [own + row.tobytes() for row in machine["gemm"]]
    others = {
        kind: own + b"".join(machine[name].tobytes() for name in names)
        for kind, names in _ROWS.items()
    }
    classes = np.zeros(len(table.rows))
    for i, (kind, row, sizes) in enumerate(_seen(table)):
        if sizes:
            rows = products[row] if kind in _PRODUCTS else others[kind]
            classes[i] = _number(rows + sizes)
    return classes


def memory_rates(bytes_per_s: Array) -> Array:
    """Numbers of memory bandwidths, (systems,), whose sums with classes tell all pairs apart."""
    distinct, which = np.unique(bytes_per_s, return_inverse=True)
    return np.array([_number(rate.tobytes()) for rate in distinct])[which] * _MOST_NUMBERS


def _number(seen: bytes) -> int:
    """The number of something; never one that anything else has had."""
    if len(_numbers) >= _MOST_KEPT:
        _numbers.clear()
    return _numbers.setdefault(seen, next(_next))


# The table is kept so that its id stays.
_known: dict[int, tuple[OperatorTable, list[tuple[int, int, bytes]]]] = {}
_MOST_TABLES = 1024


def _seen(table: OperatorTable) -> list[tuple[int, int, bytes]]:
    """Of each operator its kind, its row of the machine, and its own part of the class."""
    found = _known.get(id(table))
    if found is None:
        bare = table.rows.copy()
        for name in _OF_STEP:
            bare[name] = 0
        for i, record in enumerate(table.rows):
            if step.by_units(tables.as_row(record)):
                for name in _UNITS:
                    bare[name][i] = 0.0
        kept = np.isin(table.rows["kind"], (*_PRODUCTS, *_ROWS)) & (table.rows["same"] == 0)
        parts = [
            (int(record["kind"]), int(record["row"]), own.tobytes() if has else b"")
            for record, own, has in zip(table.rows, bare, kept, strict=True)
        ]
        if len(_known) >= _MOST_TABLES:
            _known.clear()
        found = _known[id(table)] = (table, parts)
    return found[1]
