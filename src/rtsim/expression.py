"""Conditions on columns, such as `fits and tpot_s < 0.05`: parsed, never run as code.

Names of columns, numbers, texts, comparisons, and / or / not, + - * /. Works on whole arrays.
Comparisons with a missing number are false. A column of factors, texts such as "2x", is also read
as the number 2 where it meets numbers.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import SpecError, UnknownName
from rtsim.specs.changes import factor_in

_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_LONGEST = 10_000
_RULES = "may hold columns, numbers, texts, comparisons, and / or / not, + - * /"
# Paths such as gpu.hbm_bytes_per_s are names of columns, too.
_TEXT, _NUMBER, _TRUTH, _FACTOR = "a text", "a number", "a condition", "a factor"


class Condition:
    """A parsed condition. `columns`: names that it reads.

    Raises SpecError (field "where") for what is no condition, UnknownName for a name that is no
    column, with the nearest ones.
    """

    def __init__(
        self,
        text: str,
        known: Collection[str],
        texts: Collection[str] = (),
        other_names: Mapping[str, str] | None = None,
        factors: Collection[str] = (),
    ) -> None:
        """known: names of columns; texts: those of them that hold text, factors: of those, the ones
        that hold factors; other_names: of columns.
        """
        self.text = text
        self._other_names = other_names or {}
        self._known, self._texts, self._factors = known, texts, factors
        self.columns: set[str] = set()
        try:
            if len(text) > _LONGEST:
                raise SpecError("where", text, f"must be at most {_LONGEST} characters")
            self._tree = ast.parse(text.strip(), mode="eval").body
            if self._kind(self._tree) == _TEXT:
                raise self._wrong("is a text, not a condition")
        except (SyntaxError, ValueError):
            raise self._wrong("is no expression, such as fits and tpot_s < 0.05") from None
        except (RecursionError, MemoryError):
            raise self._wrong("is nested too deeply") from None

    def _wrong(self, why: str) -> SpecError:
        return SpecError("where", self.text, why)

    def _kind(self, node: ast.AST) -> str:
        """What a part is; checks everything below it."""
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                if self._kind(part) == _TEXT:
                    raise self._wrong("and, or take conditions, not texts")
            return _TRUTH
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.UAdd):
            if self._kind(node.operand) == _TEXT:
                raise self._wrong("not and minus take no texts")
            return _TRUTH if isinstance(node.op, ast.Not) else _NUMBER
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            if _TEXT in (self._kind(node.left), self._kind(node.right)):
                raise self._wrong("texts cannot be computed with")
            return _NUMBER
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            found = [self._kind(side) for side in sides]
            kinds = [kind == _TEXT for kind in found]
            if any(kinds):  # a factor beside a text is a text
                kinds = [kind in (_TEXT, _FACTOR) for kind in found]
            for op in node.ops:
                if type(op) not in _COMPARISONS:
                    raise self._wrong(_RULES)
                if any(kinds) and not isinstance(op, ast.Eq | ast.NotEq):
                    raise self._wrong("texts are compared with == and !=")
            if any(kinds) and not all(kinds):
                raise self._wrong("compares a text with a number")
            return _TRUTH
        name = self._name(node)
        if name is not None:
            if name not in self._known:
                raise UnknownName("column", name, self._known)
            self.columns.add(name)
            if name in self._factors:
                return _FACTOR
            return _TEXT if name in self._texts else _NUMBER
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return _TEXT
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return _NUMBER
        raise self._wrong(_RULES)

    def __call__(self, columns: Mapping[str, NDArray[Any]], n_rows: int) -> NDArray[np.bool_]:
        """(rows,) whether each row meets the condition."""
        with np.errstate(all="ignore"):
            found = self._value(self._tree, columns)
        found = np.broadcast_to(_truth(found), n_rows)
        return np.asarray(found, np.bool_)

    def _name(self, node: ast.AST) -> str | None:
        name = _name(node)
        return name if name is None else self._other_names.get(name, name)

    def _value(
        self, node: ast.AST, columns: Mapping[str, NDArray[Any]], as_text: bool = False
    ) -> Any:
        if isinstance(node, ast.BoolOp):
            parts = [_truth(self._value(part, columns)) for part in node.values]
            joined = parts[0]
            for part in parts[1:]:
                joined = joined & part if isinstance(node.op, ast.And) else joined | part
            return joined
        if isinstance(node, ast.UnaryOp):
            inner = self._value(node.operand, columns)
            if isinstance(node.op, ast.Not):
                return ~_truth(inner)
            number = np.asarray(inner, float)
            return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.BinOp):
            left = np.asarray(self._value(node.left, columns), float)
            return _ARITHMETIC[type(node.op)](
                left, np.asarray(self._value(node.right, columns), float)
            )
        if isinstance(node, ast.Compare):
            result: Any = True
            sides = [node.left, *node.comparators]
            as_text = any(self._kind(side) == _TEXT for side in sides)
            left = self._value(node.left, columns, as_text)
            for op, side in zip(node.ops, node.comparators, strict=True):
                right = self._value(side, columns, as_text)
                result = result & _compared(type(op), left, right)
                left = right
            return result
        name = self._name(node)
        if name is None:
            return node.value  # type: ignore[attr-defined]
        column = columns[name]
        return _numbers(column) if name in self._factors and not as_text else column


def _name(node: ast.AST) -> str | None:
    """`a` or `a.b.0.c` as the name of a column."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def _numbers(column: NDArray[Any]) -> NDArray[np.float64]:
    """Factors as numbers; there are few different ones."""
    known = {text: factor_in(text) for text in set(column.tolist())}
    numbers = [known[text] for text in column.tolist()]
    return np.array(numbers, float)  # NaN for None


def _truth(value: Any) -> Any:
    """Numbers are true where they are neither 0 nor missing."""
    array = np.asarray(value)
    if array.dtype == np.bool_:
        return array
    return (array != 0) & ~np.isnan(array.astype(float))


def _compared(op: type[ast.AST], left: Any, right: Any) -> Any:
    found = np.asarray(_COMPARISONS[op](np.asarray(left), np.asarray(right)))
    if op is ast.NotEq:  # a missing number is not unequal either
        for side in (left, right):
            array = np.asarray(side)
            if array.dtype.kind == "f":
                found = found & ~np.isnan(array)
    return found
