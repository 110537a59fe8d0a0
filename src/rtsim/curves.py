"""Denoised runtimes as formulas, one per model, and the tables that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtsim.errors import DataError
from rtsim.measurements import read_table
from rtsim.table_text import write_table


@dataclass(frozen=True, slots=True)
class Curve:
    """The denoised runtime of one model as a formula.

    prefill_s: at each of `prompt_tokens`. overhead_s: network, tokenizing and queueing that every
    call has; None where the prompts of the table cannot tell it from prefill, which then holds
    both.
    """

    model: str
    prompt_tokens: tuple[int, ...]
    prefill_s: tuple[float, ...]
    per_output_token_s: float
    overhead_s: float | None

    def runtime_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds of a call without contention, its overhead included.

        Between prompts of the table linear; beyond them the last slope goes on.
        """
        return (self.overhead_s or 0.0) + self.idle_runtime_s(prompt_tokens, output_tokens)

    def idle_runtime_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """The same without the overhead: what the model itself takes."""
        prompts, prefills = np.array(self.prompt_tokens), np.array(self.prefill_s)
        prefill = float(np.interp(prompt_tokens, prompts, prefills))
        if prompt_tokens > prompts[-1] and len(prompts) > 1:
            slope = (prefills[-1] - prefills[0]) / (prompts[-1] - prompts[0])
            prefill += float(slope * (prompt_tokens - prompts[-1]))
        return prefill + (output_tokens - 1.0) * self.per_output_token_s


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Denoised runtimes by model from a table of kind `denoised`, such as `write_curves` makes.

    Raises DataError where it is no such table.
    """
    table = read_table(path)
    if table.kind != "denoised":
        raise DataError(path, f"a table of kind denoised is wanted, this is of kind {table.kind}")
    columns = table.columns
    curves: dict[str, Curve] = {}
    for model in dict.fromkeys(columns["model"].tolist()):
        mine = np.flatnonzero(columns["model"] == model)
        mine = mine[np.argsort(columns["prompt_tokens"][mine])]
        curves[model] = Curve(
            model,
            tuple(columns["prompt_tokens"][mine].tolist()),
            tuple(columns["prefill_s"][mine].tolist()),
            float(columns["per_output_token_s"][mine[0]]),
            float(columns["overhead_s"][mine[0]]),
        )
    return curves


def write_curves(path: str | Path, curves: Sequence[Curve], source: str) -> None:
    """Write a table of kind `denoised`, whole or not at all. Raises OutputError."""
    rows = [(c, p, prefill) for c in curves for p, prefill in zip(
        c.prompt_tokens, c.prefill_s, strict=True)]  # fmt: skip
    write_table(
        path,
        {
            "source": [source] * len(rows),
            "model": [c.model for c, _, _ in rows],
            "prompt_tokens": [p for _, p, _ in rows],
            "prefill_s": [round(prefill, 6) for _, _, prefill in rows],
            "per_output_token_s": [round(c.per_output_token_s, 6) for c, _, _ in rows],
            "overhead_s": [round(c.overhead_s or 0.0, 6) for c, _, _ in rows],
        },
    )
