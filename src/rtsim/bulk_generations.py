"""Generations of many rows: batches of prompts, each generated to its end, for all systems at once.

The numbers are those of `rtsim.predict`. Rows come sorted by system, batch and prompt, so that the
compiled kernels (`rtsim_kernels.bulk`) do repeated work once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rtsim_kernels
from numpy.typing import NDArray
from rtsim_kernels import row_figures, tables

from rtsim.errors import RtsimError
from rtsim.specs.workload import WorkloadSpec
from rtsim.system_rows import Packed, Systems

Array = NDArray[Any]

SIZES = ("batch_size", "input_len", "output_len")
METRICS = row_figures.COLUMNS
_MISSING = {"batch_size": 1.0, "input_len": 512.0}
_DECODER_OUTPUT, _ENCODER_OUTPUT = 64.0, 1.0


def evaluate(
    systems: Systems,
    codes: Array,
    first_rows: Array,
    sizes: tuple[Array, Array, Array],
    values: Array,
    targets: Array,
) -> tuple[Array, list[str]]:
    """Predict rows sorted by system, batch and prompt.

    codes: (systems, columns) of `systems`; first_rows: (systems + 1,); sizes: batch, prompt and
    output (rows,), NaN = the default. Writes columns `targets`, (rows,), of `values`, whose rows
    are METRICS. Returns (rows,) the index of each row's error in a list of texts, and that list,
    of which the first is "".
    """
    packed = systems.pack(codes)
    n_rows = len(sizes[0])
    errors = np.zeros(n_rows, np.int64)
    filled = _filled(packed, first_rows, sizes)
    if len(packed.machines):
        kernels = rtsim_kernels.compiled()
        given = (
            packed.systems,
            packed.machines,
            kernels.bulk_rows.Tables(**packed.tables),
            np.ascontiguousarray(first_rows, np.int64),
            *filled,
            np.ascontiguousarray(targets, np.int64),
            values,
            errors,
        )
        model_kinds = packed.machines["plan"]["model_kind"]
        if (model_kinds == tables.DECODER).any():
            kernels.bulk.predict_rows(*given)
        if (model_kinds != tables.DECODER).any():
            kernels.bulk_encoders.predict_encoder_rows(*given)
    texts = [""]
    known = {"": 0}
    row_codes = np.zeros(n_rows, np.int64)
    for i, error in enumerate(packed.errors):
        if error:
            code = known.setdefault(error, len(texts))
            texts += [error] if code == len(texts) else []
            row_codes[first_rows[i] : first_rows[i + 1]] = code
            values[:, targets[first_rows[i] : first_rows[i + 1]]] = np.nan
    wrong = np.flatnonzero(errors)
    if len(wrong):
        _explain(packed, first_rows, filled, sizes, wrong, row_codes, texts, known)
    return row_codes, texts


def _filled(packed: Packed, first_rows: Array, sizes: tuple[Array, Array, Array]) -> list[Array]:
    """Sizes with defaults in place of NaN."""
    filled = []
    for name, size in zip(SIZES, sizes, strict=True):
        missing = np.isnan(size)
        if missing.any():
            default: Any = _MISSING.get(name)
            if default is None:
                kinds = [
                    base is not None and base.made.model.kind == "encoder" for base in packed.bases
                ]
                outputs = np.where(kinds, _ENCODER_OUTPUT, _DECODER_OUTPUT)
                default = np.repeat(outputs, np.diff(first_rows))[missing]
            full = size.copy()
            full[missing] = default
            filled.append(full)
        else:
            filled.append(np.ascontiguousarray(size, np.float64))
    return filled


def _explain(packed: Packed, first_rows: Array, filled: list[Array], sizes: Any, wrong: Array,
             row_codes: Array, texts: list[str], known: dict[str, int]) -> None:  # fmt: skip
    """Errors of rows whose sizes a model cannot take, in the words of `predict`."""
    at = np.searchsorted(first_rows, wrong, side="right") - 1
    models, of_model = {}, np.empty(len(wrong), np.int64)
    for system in np.unique(at).tolist():
        base = packed.bases[system]
        if base is not None:
            models[system] = base.made.model
    keys = np.stack([at.astype(np.float64), *(size[wrong] for size in filled)])
    distinct, of_model = np.unique(keys, axis=1, return_inverse=True)
    codes = np.empty(distinct.shape[1], np.int64)
    for i, (system, *numbers) in enumerate(distinct.T.tolist()):
        text = _size_error(models[int(system)], numbers)
        code = known.setdefault(text, len(texts))
        texts += [text] if code == len(texts) else []
        codes[i] = code
    row_codes[wrong] = codes[of_model.reshape(-1)]


def _size_error(model: Any, numbers: list[float]) -> str:
    plain = [int(n) if np.isfinite(n) and n == int(n) else n for n in numbers]
    try:
        WorkloadSpec.from_mapping(dict(zip(SIZES, plain, strict=True))).check_model(model)
    except RtsimError as error:
        return str(error)
    return "batch_size, input_len or output_len is out of range"
