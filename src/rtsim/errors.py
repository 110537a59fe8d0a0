"""The one exception tree of rtsim, and how its messages are worded.

Every error a user can cause is one line that names the field, the value, what is allowed and,
for names, the nearest ones. `exit_status` is the exit status of the command line: 2 for bad
input, 1 for anything else. Nothing here imports pydantic; `spec_error` reads its errors only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_NAMES_SHOWN = 3  # of the known ones, where none is near
_CLOSE, _FAINT = 0.6, 0.4  # likeness of names: difflib's own default, and for a long list of fields
_FIELDS_SHOWN = 12  # with more of them those least unlike are named instead
_LONGEST_VALUE_SHOWN = 60  # characters: a longer value would push the message off the line


class RtsimError(Exception):
    """Anything rtsim refuses or cannot do. The message is one line."""

    exit_status = 1


class SpecError(RtsimError):
    """A field of a specification has a value that is not allowed.

    Attributes: `field` (dotted path), `value` as given, `allowed` what would be right,
    `where` the file or object the field belongs to (None where there is none).
    """

    exit_status = 2

    def __init__(
        self,
        field: str,
        value: object,
        allowed: str,
        *,
        nearest: Sequence[str] = (),
        where: str | None = None,
    ) -> None:
        self.field, self.value, self.allowed, self.where = field, value, allowed, where
        self.nearest = tuple(nearest)
        text = f"{field}{_shown(value)}: {allowed}"
        if where:
            text = f"{where}: {text}"
        super().__init__(_one_line(text + _did_you_mean(self.nearest)))

    @classmethod
    def of_missing(cls, field: str, allowed: str, *, where: str | None = None) -> SpecError:
        """About a field that is not there, so that there is no value to show."""
        return cls(field, _NOTHING, allowed, where=where)


class UnknownName(RtsimError):  # noqa: N818 (the tree's own naming)
    """A model, GPU, stack, ... that the catalogue does not hold; offers the nearest names.

    `stands_for` maps other names (aliases) to the candidate that they mean.
    """

    exit_status = 2

    def __init__(
        self,
        kind: str,
        name: str,
        candidates: Iterable[str],
        *,
        stands_for: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.name = kind, name
        known = list(dict.fromkeys(candidates))
        aliases = dict(stands_for or {})
        close = nearest_names(name, [*known, *aliases], count=8)
        self.nearest = tuple(dict.fromkeys(aliases.get(near, near) for near in close))[:3]
        text = f"unknown {kind} {_quoted(name)}"
        if self.nearest:
            text += _did_you_mean(self.nearest)
        elif known:
            shown = known[:_NAMES_SHOWN]
            more = len(known) > len(shown)
            text += f"; {len(known)} are known, such as" if more else "; known:"
            text += f" {', '.join(shown)}"
        super().__init__(_one_line(text))


class DoesNotFit(RtsimError):  # noqa: N818 (the tree's own naming)
    """A request that needs more memory than there is, where an answer is impossible without it."""


class DataError(RtsimError):
    """A file that cannot be read or whose contents are malformed.

    `line` and `column` count from 1 and are None where they are not known.
    """

    exit_status = 2

    def __init__(
        self,
        file: str | Path,
        problem: str,
        *,
        line: int | None = None,
        column: int | str | None = None,
    ) -> None:
        self.file, self.problem, self.line, self.column = str(file), problem, line, column
        where = str(file)
        if line is not None:
            where += f", line {line}"
        if column is not None:
            where += f", column {column}"
        super().__init__(_one_line(f"{where}: {problem}"))


class OutputError(RtsimError):
    """An output file that cannot be written. Nothing was left half-written."""

    exit_status = 2

    def __init__(self, file: str | Path, problem: str) -> None:
        self.file, self.problem = str(file), problem
        super().__init__(_one_line(f"cannot write {file}: {problem}"))


class NotSupported(RtsimError):  # noqa: N818 (the tree's own naming)
    """Something that is valid but that rtsim does not model, and what to do instead."""

    exit_status = 2


class NothingSatisfies(RtsimError):  # noqa: N818 (the tree's own naming)
    """No system of the stated space meets what was asked; names the nearest miss and a way out."""

    exit_status = 2


def nearest_names(
    name: str, candidates: Iterable[str], count: int = 3, least: float = _CLOSE
) -> list[str]:
    """The `count` candidates most like `name`, best first; [] where none is close.

    least: the likeness that counts as close, 0 to 1.

    Case, '-', '_' and spaces do not count as differences; a candidate that contains the
    name, or is contained in it, counts as close.

    >>> nearest_names("gpt3_175", ["gpt3-175b", "opt-175b", "llama-2-7b"])
    ['gpt3-175b', 'opt-175b']
    """
    import difflib  # here: only failing runs need it

    wanted = fold(name)
    if not wanted:
        return []
    scored: list[tuple[float, str]] = []
    for candidate in candidates:
        folded = fold(candidate)
        score = difflib.SequenceMatcher(None, wanted, folded).ratio()
        if folded and (wanted in folded or folded in wanted):
            score += 0.5  # one inside the other: ahead of a chance likeness of the same ratio
        if score >= least:
            scored.append((score, candidate))
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    return [candidate for _, candidate in scored[:count]]


def fold(name: str) -> str:
    """The form in which names are compared: lower case, without '-', '_' and spaces.

    >>> fold("A100_SXM4 80GB")
    'a100sxm480gb'
    """
    return name.casefold().replace("-", "").replace("_", "").replace(" ", "")


def spec_error(
    error: ValidationError, model: type[BaseModel], where: str | None = None
) -> SpecError:
    """One SpecError for a pydantic ValidationError: the first problem, and how many more.

    `model` is the class that was validated; it serves to offer the nearest field name for an
    unknown one.
    """
    problems = error.errors(include_url=False)
    # An unknown field explains the "missing" one that it stands for, so it goes first.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    path = list(first["loc"])
    value: object = first["input"]
    if first["type"] == "unknown_kind":
        return _unknown_kind(model, path, value, where)
    nearest: list[str] = []
    if first["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        allowed = "no such field"
        name = str(path[-1])
        nearest = nearest_names(name, fields)
        if not nearest and len(fields) > _FIELDS_SHOWN:
            nearest = nearest_names(name, fields, least=_FAINT)
        if not nearest and fields:
            allowed += f"; there are {', '.join(fields)}"
    elif first["type"] == "missing":
        allowed, value = "missing, but required", _NOTHING
    else:
        allowed = _plain_words(first["msg"])
    if isinstance(value, Mapping | list | tuple) or hasattr(value, "model_fields"):
        value = _NOTHING  # a whole table as the value says nothing; the path and message do
    if len(problems) > 1:
        more = "1 more fault" if len(problems) == 2 else f"{len(problems) - 1} more faults"
        allowed += f" ({more})" if not nearest else ""
    return SpecError(
        path_text(path) or model.__name__, value, allowed, nearest=nearest, where=where
    )


def path_text(path: Sequence[int | str]) -> str:
    """A field path as written in messages.

    >>> path_text(["layers", 0, "attention", "n_heads"])
    'layers[0].attention.n_heads'
    """
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step.startswith(_KIND):
            text += f".{step}" if text else step
    return text


_KIND = "kind="  # steps of a path that name the member of a union, as specs/model.py tags them


def _unknown_kind(
    model: type[BaseModel], path: list[int | str], value: object, where: str | None
) -> SpecError:
    kind = value.get("kind") if isinstance(value, Mapping) else value
    parent: Any = model
    for step in path[:-1]:
        if not isinstance(step, int) and not step.startswith(_KIND):
            parent = model_in(parent.model_fields[step].annotation)
    kinds = [kind_of(member) for member in models_in(parent.model_fields[str(path[-1])].annotation)]
    return SpecError(
        f"{path_text(path)}.kind", kind, f"must be one of {', '.join(kinds)}",
        nearest=nearest_names(str(kind), kinds), where=where,
    )  # fmt: skip


def kind_of(model: type[BaseModel]) -> str:
    """The `kind` that tells a member of a union apart; "" for a model without one."""
    field = model.model_fields.get("kind")
    return str(field.default) if field is not None else ""


class _Nothing:
    """Marks that a message has no value to show."""


_NOTHING = _Nothing()


def _shown(value: object) -> str:
    return "" if isinstance(value, _Nothing) else f" = {_quoted(value)}"


def _quoted(value: object) -> str:
    text = repr(value)
    if len(text) > _LONGEST_VALUE_SHOWN:
        text = text[: _LONGEST_VALUE_SHOWN - 3] + "..."
    return text


def _did_you_mean(nearest: Sequence[str]) -> str:
    return f"; nearest: {', '.join(nearest)}" if nearest else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain_words(message: str) -> str:
    """Pydantic's wording in the style of the other messages."""
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    message = message.replace("Input should be", "must be")
    return message[:1].lower() + message[1:] if message.startswith("Input") else message


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the (nested) model that `path` leads to; [] where it is unclear."""
    current: Any = model
    annotation: Any = None
    for step in path:
        if isinstance(step, int):
            continue
        if step.startswith(_KIND):
            current = model_in(annotation, step.removeprefix(_KIND))
            continue
        fields = getattr(current, "model_fields", {})
        if step not in fields:
            return []
        annotation = fields[step].annotation
        current = model_in(annotation)
    return list(getattr(current, "model_fields", {}))


def models_in(annotation: Any) -> list[Any]:
    """The pydantic models inside an annotation such as tuple[LayerGroup, ...] or X | Y | None."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def model_in(annotation: Any, kind: str = "") -> Any:
    """The model of a `kind` inside an annotation, the first one if none is of it; None: none."""
    models = models_in(annotation)
    return next((m for m in models if kind and kind_of(m) == kind), models[0] if models else None)
