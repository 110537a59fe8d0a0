"""Studies: lists of models with the GPUs each was given, packaged or the user's own TOML files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsim.catalog import DATA, read_toml, resolve
from rtsim.errors import DataError, UnknownName
from rtsim.specs import GpuSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class StudyModel:
    """A model of a study: who made it, its catalogue name, its GPUs, and where they are from."""

    family: str
    arch: str
    num_gpus: int
    gpus_source: str


@dataclass(frozen=True, slots=True)
class Study:
    """Models with their GPU counts. `gpu` and `stack`: what the counts are of."""

    name: str
    gpu: str
    stack: str
    input_len: int
    output_len: int
    models: tuple[StudyModel, ...]
    source: str

    def gpus_for(self, arch: object, gpu: object) -> tuple[int | None, str]:
        """(GPUs, where the number is from); None for other GPUs and models."""
        if gpu_name(gpu) != self.gpu:
            return None, ""
        name = getattr(arch, "name", arch)
        for model in self.models:
            if model.arch == name:
                return model.num_gpus, f"study {self.name}: {model.gpus_source}"
        return None, ""

    def gpus_for_name(self, arch: str, gpu: object) -> int | None:
        """The same for a name or alias of the catalogue, or a file."""
        return self.gpus_for(arch if arch.endswith(".toml") else resolve("models", arch), gpu)[0]


def gpu_name(gpu: object) -> str:
    """The catalogue name of a GPU given by name, file or specification."""
    if isinstance(gpu, GpuSpec | ModelSpec):
        return gpu.name
    text = str(gpu)
    return text if text.endswith(".toml") else resolve("gpus", text)


def study_names() -> list[str]:
    """Names of the packaged studies, sorted."""
    return sorted(path.stem for path in (DATA / "studies").glob("*.toml"))


def load_study(name_or_path: str | Path) -> Study:
    """A packaged study by name, or a user's TOML file. Raises UnknownName or DataError."""
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    else:
        if name_or_path not in study_names():
            raise UnknownName("study", name_or_path, study_names())
        path = DATA / "studies" / f"{name_or_path}.toml"
    data = read_toml(path)
    try:
        models = tuple(_model(path, entry) for entry in data["models"])
        study = Study(
            str(data.get("name", path.stem)), resolve("gpus", str(data["gpu"])),
            str(data["stack"]), int(data["input_len"]), int(data["output_len"]), models,
            str(data.get("source", "")),
        )  # fmt: skip
    except KeyError as error:
        raise DataError(path, f"{error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:
        raise DataError(path, f"is no study: {error}") from None
    if not models:
        raise DataError(path, "names no model")
    return study


def _model(path: Path, entry: Any) -> StudyModel:
    gpus = entry["num_gpus"]
    if not isinstance(gpus, int) or gpus < 1:
        raise DataError(path, f"num_gpus = {gpus!r} of {entry['arch']} must be at least 1")
    arch = str(entry["arch"])
    own_file = arch.endswith(".toml")
    return StudyModel(
        str(entry.get("family", "")), arch if own_file else resolve("models", arch), gpus,
        str(entry.get("gpus_source", "stated")),
    )  # fmt: skip
