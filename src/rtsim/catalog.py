"""Names to packaged models and GPUs, and the user's own files.

One TOML file per thing under data/, file name = name. Listing and looking up names read no more
than file names and the `aliases = [...]` line, so that they stay fast and free of pydantic.
Names compare without case, '-', '_' and spaces.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rtsim.errors import DataError, SpecError, UnknownName, fold

if TYPE_CHECKING:
    from rtsim.specs.gpu import GpuSpec
    from rtsim.specs.model import ModelSpec

Kind = Literal["models", "gpus"]
_Spec = TypeVar("_Spec")

# Plain paths: importlib.resources would load tempfile and zipfile to give the same path, a tenth
# of what a fast command may take. The wheel is installed unpacked.
DATA = Path(__file__).parent / "data"
_WORDS = {"models": "model", "gpus": "GPU"}
_ALIASES_START = "aliases = ["
_MAKERS = ("nvidia", "amd", "intel", "google", "aws", "tesla", "geforce", "instinct", "datacenter")


def model_names() -> list[str]:
    """Names of the packaged models, sorted."""
    return _names("models")


def gpu_names() -> list[str]:
    """Names of the packaged GPUs, sorted."""
    return _names("gpus")


def aliases(kind: Kind) -> dict[str, tuple[str, ...]]:
    """Each packaged name with its other names, as written in its file."""
    return {name: _aliases_of(_path(kind, name)) for name in _names(kind)}


def resolve(kind: Kind, name: str) -> str:
    """The packaged name that `name` or alias stands for; UnknownName with the nearest."""
    index = _index(kind)
    found = index.get(fold(name))
    if found is None and kind == "models" and name.count("/") == 1:  # the owner: openai/davinci
        found = index.get(fold(name.rpartition("/")[2]))
    if found is None and kind == "gpus":  # as drivers report them: NVIDIA A100-SXM4-80GB
        found = index.get(_without_maker(fold(name)))
    if found is None:
        others = {other: known for known, names in aliases(kind).items() for other in names}
        raise UnknownName(_WORDS[kind], name, _names(kind), stands_for=others)
    return found


def load_model(name_or_path: str | Path) -> ModelSpec:
    """A packaged model by name or alias, a user's TOML file (a path that ends in .toml), or a
    Hugging Face configuration (a path that ends in .json, or a folder that holds config.json).

    A plain name that is both a packaged model and a folder means the packaged model; ./NAME is
    the folder. Raises UnknownName, DataError (file missing or malformed) or SpecError (a wrong
    field).
    """
    if is_config(name_or_path):
        from rtsim.hf import read_config

        return read_config(name_or_path)
    if _is_file(name_or_path):
        return _from_file(Path(name_or_path), _model_from)
    return _packaged_model(resolve("models", str(name_or_path)))


def is_config(name_or_path: str | Path) -> bool:
    """Whether a name means a Hugging Face configuration or the folder of one."""
    text = str(name_or_path)
    if text.lower().endswith(".json"):
        return True
    if text.lower().endswith(".toml") or not Path(text).parts or not os.path.isdir(text):  # noqa: PTH112 (never raises)
        return False
    if isinstance(name_or_path, Path) or text.startswith((".", "/", "~")) or text.endswith("/"):
        return True
    try:
        resolve("models", text)
    except UnknownName:
        return True
    # Owner and name: a download beats the catalogue, which takes any owner.
    return "/" in text and Path(text, "config.json").is_file()


def load_gpu(name_or_path: str | Path) -> GpuSpec:
    """A packaged GPU by name or alias, or a user's TOML file (a path that ends in .toml).

    Figures of a user's file that look wrong (a peak above what SMs and clock give) are in its
    `notes`. Raises UnknownName, DataError (file missing or malformed) or SpecError (a wrong field,
    a rate that can only be the sparse one).
    """
    if _is_file(name_or_path):
        gpu = _from_file(Path(name_or_path), _gpu_from)
        try:
            gpu.refuse_sparse()
        except SpecError as error:
            raise SpecError(
                error.field, error.value, error.allowed, where=str(name_or_path)
            ) from None
        doubts = gpu.doubts()
        return gpu.with_(notes=(*gpu.notes, *doubts)) if doubts else gpu
    return _packaged_gpu(resolve("gpus", str(name_or_path)))


def template(kind: Kind) -> str:
    """A commented TOML file of the figures that a new model or GPU needs; valid as it is."""
    return (DATA / "templates" / f"{_WORDS[kind].lower()}.toml").read_text(encoding="utf-8")


def read_toml(path: Path) -> dict[str, Any]:
    """The file as plain data; DataError (one line) where it is missing or malformed."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    except IsADirectoryError:
        raise DataError(path, "is a directory, not a file") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(path, f"not UTF-8 text (byte {error.start})") from None
    import tomllib  # here: listing names does not need it

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(path, f"malformed TOML: {error}") from None
    except RecursionError:
        raise DataError(path, "malformed TOML: nested too deeply") from None


def _without_maker(folded: str) -> str:
    """A folded GPU name without the maker and brand words in front."""
    for word in _MAKERS:
        folded = folded.removeprefix(word)
    return folded


def _is_file(name_or_path: str | Path) -> bool:
    return isinstance(name_or_path, Path) or name_or_path.lower().endswith(".toml")


def _from_file(path: Path, make: Callable[[dict[str, Any], str], _Spec]) -> _Spec:
    data = read_toml(path)
    data.setdefault("name", path.stem)
    return make(data, str(path))


def _model_from(data: dict[str, Any], where: str) -> ModelSpec:
    from rtsim.specs.model import ModelSpec

    return ModelSpec.from_mapping(data, where)


def _gpu_from(data: dict[str, Any], where: str) -> GpuSpec:
    from rtsim.specs.gpu import GpuSpec

    return GpuSpec.from_mapping(data, where)


@cache
def _packaged_model(name: str) -> ModelSpec:
    path = _path("models", name)
    return _model_from(read_toml(path), path.name)


@cache
def _packaged_gpu(name: str) -> GpuSpec:
    path = _path("gpus", name)
    return _gpu_from(read_toml(path), path.name)


def _path(kind: Kind, name: str) -> Path:
    return DATA / kind / f"{name}.toml"


@cache
def _names_of(kind: Kind) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (DATA / kind).glob("*.toml")))


def _names(kind: Kind) -> list[str]:
    return list(_names_of(kind))


@cache
def _index(kind: Kind) -> dict[str, str]:
    """Every name and alias, folded, to the packaged name. A file's own name goes first."""
    index: dict[str, str] = {}
    for name, others in aliases(kind).items():
        for other in others:
            index.setdefault(fold(other), name)
    index.update({fold(name): name for name in _names(kind)})
    return index


def _aliases_of(path: Path) -> tuple[str, ...]:
    """The aliases line alone: parsing whole files would take most of a listing's time.

    The data check holds that the line is there, on one line, in plain double quotes.
    """
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith(_ALIASES_START):
                return tuple(line.split('"')[1::2])
            if line.startswith("["):
                break
    return ()
