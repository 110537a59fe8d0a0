"""Tables of benchmark scores, and what their models stand for.

Columns: `scenario`, `model`, a score such as `exact_match`, `mean_prompt_tokens`,
`mean_output_tokens`; where there are, `provider` and `mean_runtime_s`. A model written
"name,variant=x" is the model `name` in a scenario of that variant: prompts differ between
variants, so they are compared with their like only.

A mapping file (TOML) says what models stand for, for those rtsim does not know:

    ["anthropic/stanford-online-helpful-v4-s3"]
    arch = "anthropic-52b"                          # a catalogue name or a .toml file
    num_gpus = 4                                    # optional
    denoised = "anthropic/stanford-online-all-v4-s3"  # optional: its name in denoised curves
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rtsim.catalog import read_toml, resolve
from rtsim.errors import DataError, UnknownName, nearest_names
from rtsim.table_text import read_cells

REQUIRED = ("scenario", "model", "mean_prompt_tokens", "mean_output_tokens")
_FIELDS = ("arch", "num_gpus", "denoised")


@dataclass(frozen=True, slots=True)
class Score:
    """One model in one scenario."""

    scenario: str
    model: str
    prompt_tokens: float
    output_tokens: float
    runtime_s: float | None
    score: float

    @property
    def key(self) -> tuple[str, str]:
        """(scenario, model)."""
        return self.scenario, self.model


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Usable rows, and (line, reason) of the others."""

    scores: tuple[Score, ...]
    unusable: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Stand:
    """What a model of a table stands for; arch None: nothing known, for the reason given."""

    arch: str | None
    num_gpus: int | None = None
    denoised: str | None = None
    mapped: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelMap:
    """Entries of a mapping file by model."""

    entries: Mapping[str, Stand]

    def stand_for(self, model: str) -> Stand:
        """By the mapping, else by the catalogue."""
        entry = self.entries.get(model)
        if entry is not None and entry.arch is not None:
            return entry
        try:
            return Stand(resolve("models", model))
        except UnknownName as error:
            return Stand(None, reason=f"{error}; a mapping file can say what it stands for")

    def denoised_name(self, model: str, curves: Mapping[str, object]) -> str | None:
        """The name of a model among denoised curves; None: it is not there."""
        entry = self.entries.get(model)
        for name in (entry.denoised if entry else None, model):
            if name in curves:
                return name
        return None


def read_model_map(path: str | Path) -> ModelMap:
    """Read a mapping file. Raises DataError, with the nearest name where one is not known."""
    entries: dict[str, Stand] = {}
    for model, entry in read_toml(Path(path)).items():
        if not isinstance(entry, dict):
            raise DataError(path, f"'{model}' must be a table with {', '.join(_FIELDS)}")
        unknown = [name for name in entry if name not in _FIELDS]
        if unknown:
            raise DataError(
                path, f"'{model}': no field '{unknown[0]}'; there are {', '.join(_FIELDS)}"
            )
        arch, gpus = entry.get("arch"), entry.get("num_gpus")
        if gpus is not None and (not isinstance(gpus, int) or gpus < 1):
            raise DataError(path, f"'{model}': num_gpus = {gpus!r} must be at least 1")
        if arch is not None and not str(arch).endswith(".toml"):
            try:
                resolve("models", str(arch))
            except UnknownName as error:
                raise DataError(path, f"'{model}': arch: {error}") from None
        denoised = entry.get("denoised")
        entries[model] = Stand(
            None if arch is None else str(arch), gpus,
            None if denoised is None else str(denoised), mapped=True,
        )  # fmt: skip
    return ModelMap(entries)


def read_scores(path: str | Path, score: str) -> ScoreTable:
    """Read a table of scores. Raises DataError where a column or every usable row is missing."""
    columns, lines = read_cells(path)
    for name in (*REQUIRED, score):
        if name not in columns:
            near = nearest_names(name, columns, count=1)
            hint = f"; is it '{near[0]}'?" if near else ""
            raise DataError(path, f"column '{name}' is missing{hint}", line=1)
    scores: dict[tuple[str, str], Score] = {}
    unusable: list[tuple[int, str]] = []
    for i, line in enumerate(lines.tolist()):
        row = {name: cells[i].strip() for name, cells in columns.items()}
        found = _score(row, score)
        if isinstance(found, str):
            unusable.append((line, found))
        elif found.key in scores:
            unusable.append((line, f"{found.model} appears twice in {found.scenario}"))
        else:
            scores[found.key] = found
    if not scores:
        raise DataError(path, f"no usable row: {unusable[0][1]}", line=unusable[0][0])
    return ScoreTable(tuple(scores.values()), tuple(unusable))


def _score(row: Mapping[str, str], score: str) -> Score | str:
    """The row, or what is wrong with it."""
    numbers: dict[str, float] = {}
    for name in ("mean_prompt_tokens", "mean_output_tokens", score, "mean_runtime_s"):
        text = row.get(name, "")
        if not text:
            if name == "mean_runtime_s":
                continue
            return f"{name} is missing"
        try:
            numbers[name] = float(text)
        except ValueError:
            return f"{name} '{text}' is not a number"
        if not math.isfinite(numbers[name]) or numbers[name] < 0.0:
            return f"{name} {text} is not a number of at least 0"
    if not row["model"] or not row["scenario"]:
        return "the model or the scenario is missing"
    runtime_s = numbers.get("mean_runtime_s")
    if runtime_s is not None and runtime_s <= 0.0:
        return f"mean_runtime_s {row['mean_runtime_s']} is not above zero"
    model, _, variant = row["model"].partition(",")
    provider = row.get("provider", "")
    return Score(
        f"{row['scenario']} ({variant})" if variant else row["scenario"],
        f"{provider}/{model}" if provider else model,
        numbers["mean_prompt_tokens"],
        numbers["mean_output_tokens"],
        runtime_s,
        numbers[score],
    )
