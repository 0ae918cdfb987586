"""Filters: which candidates compete, said in a line such as `verified and rsr_rank < 0.5`.

A filter has names of columns, numbers, quoted text, comparisons (also `0.1 < x < 0.5` and `x in ("a", "b")`), `and`,
`or`, `not` and parentheses: they mean what they do in Python, whose parser reads them. Nothing else of Python is taken,
and nothing is ever evaluated by it: a filter becomes the few classes below, which compare whole columns.

A comparison with what is not there, such as a label that a sample does not have, is false, whichever it is.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.errors import UsageError
from s2r_ray.printable import one_line

Kind = Literal["number", "text", "flag"]
Bools = npt.NDArray[np.bool_]
Column: TypeAlias = "npt.NDArray[Any] | pa.Array"
"""Numbers and flags are NumPy arrays without nulls (NaN for a number that is not there), text is an Arrow array."""

RANK = "_rank"
"""`difficulty_rank` is the rank of a row by `difficulty`, as a share of the rows that compete, best near 0."""
_MOST_CHARACTERS = 10_000
_DEEPEST = 50
_SIGNS: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KNOWN = "names, numbers, quoted text, comparisons, in (…), and, or, not and parentheses"


@dataclass(frozen=True)
class Name:
    """A column; `at` is where in the filter it stands, in characters from 1."""

    name: str
    at: int


@dataclass(frozen=True)
class Constant:
    """A number or a text."""

    value: float | str
    at: int


@dataclass(frozen=True)
class Several:
    """What stands behind `in`: at least one constant."""

    values: tuple[Constant, ...]
    at: int


@dataclass(frozen=True)
class Comparison:
    """`sign` is one of < <= > >= == != in, not in; with the latter two `right` is Several, else not."""

    left: Name | Constant
    sign: str
    right: Name | Constant | Several


@dataclass(frozen=True)
class Joined:
    """Conditions joined by `and` or `or`, or one with `not` before it."""

    word: Literal["and", "or", "not"]
    parts: tuple[Condition, ...]


Condition = Name | Comparison | Joined


@dataclass(frozen=True)
class Filter:
    """A filter that was read: its text and what it says."""

    text: str
    condition: Condition

    @property
    def names(self) -> list[str]:
        """The columns that it looks at, each once, in order; labels as `label_name` has them."""
        return list(dict.fromkeys(name.name for name in _names(self.condition)))

    @property
    def columns(self) -> list[str]:
        """The same, and for a rank the column that it is of."""
        return [*self.names, *(name.removesuffix(RANK) for name in self.names)]

    def check(self, kinds: Mapping[str, Kind], hints: Mapping[str, str] | None = None) -> None:
        """Hold it against the columns that there are.

        Args:
            hints: what to do for the sake of a name that could be there and is not.

        Raises:
            UsageError: a name is not there, or is compared with what it cannot be compared with.
        """
        for name in _names(self.condition):
            if name.name not in kinds:
                close = difflib.get_close_matches(name.name, kinds, n=1)
                more = f"; did you mean {close[0]}?" if close else "."
                more = f"; {hints[name.name]}." if hints and name.name in hints else more
                raise _refused(
                    self.text, name.at, f"there is no {one_line(name.name)}{more} Names here: {', '.join(kinds)}"
                )
        _check(self.text, self.condition, kinds)

    def keeps(self, columns: Mapping[str, Column]) -> Bools:
        """Which rows pass, bool[n]; `columns` has those of `names`, [n] each, of the kinds that were checked."""
        return _truth(self.condition, columns)


def label_name(label: str, taken: Mapping[str, Kind]) -> str:
    """How a filter calls a label: by its name, or `label("its-name")` where that is no word or is taken by a column."""
    plain = label.isidentifier() and not keyword.iskeyword(label) and label not in taken
    return label if plain else f'label("{label}")'


def label_of(name: str) -> str:
    """The label that has this name, if it is a label's."""
    return name.removeprefix('label("').removesuffix('")')


# --- reading --------------------------------------------------------------------------------------


def read_filter(text: str) -> Filter:
    """A filter from what a user wrote.

    Raises:
        UsageError: it is not one; says what was found, and where.
    """
    text = text.strip().replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"filter: {len(text):,} characters, at most {_MOST_CHARACTERS:,}")
    if not text:
        raise UsageError("filter: it is blank; leave it out, or write one such as `difficulty > 0.5`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about odd code
            tree = ast.parse(text, mode="eval").body
        return Filter(text, _condition(text, tree))
    except SyntaxError as error:
        at = _before(text, error.lineno or 1) + error.offset if error.offset else len(text) + 1
        raise _refused(text, at, error.msg) from error
    except (ValueError, RecursionError, MemoryError) as error:
        why = "it is nested too deeply" if not isinstance(error, ValueError) else str(error)
        raise _refused(text, 1, why) from error


def _refused(text: str, at: int, why: str) -> UsageError:
    return UsageError(f"filter: {one_line(text)}: at character {at}: {why}")


def _at(text: str, node: ast.expr) -> int:
    """Where a node begins, in characters from 1; `ast` counts bytes of a line."""
    line = text.split("\n")[node.lineno - 1]
    return _before(text, node.lineno) + len(line.encode()[: node.col_offset].decode()) + 1


def _before(text: str, line: int) -> int:
    """How many characters come before a line, which are counted from 1."""
    return sum(len(earlier) + 1 for earlier in text.split("\n")[: line - 1])


def _condition(text: str, node: ast.expr, depth: int = 0) -> Condition:
    if depth > _DEEPEST:
        raise _refused(text, _at(text, node), "it is nested too deeply")
    if isinstance(node, ast.BoolOp):
        word: Literal["and", "or"] = "and" if isinstance(node.op, ast.And) else "or"
        return Joined(word, tuple(_condition(text, part, depth + 1) for part in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Joined("not", (_condition(text, node.operand, depth + 1),))
    if isinstance(node, ast.Compare):
        return _comparison(text, node)
    found = _operand(text, node)
    if isinstance(found, Name):
        return found
    raise _refused(text, found.at, f"{found.value!r} alone says nothing; compare it, such as difficulty > 0.5")


def _comparison(text: str, node: ast.Compare) -> Condition:
    sides = [node.left, *node.comparators]
    parts: list[Condition] = []
    for left, right, sign in zip(sides, sides[1:], node.ops, strict=False):
        if type(sign) not in _SIGNS:
            raise _refused(text, _at(text, left), "`is` is for Python; write == or !=")
        if isinstance(sign, ast.In | ast.NotIn):
            compared = Comparison(_operand(text, left), _SIGNS[type(sign)], _several(text, right))
        else:
            compared = Comparison(_operand(text, left), _SIGNS[type(sign)], _operand(text, right))
        if not any(isinstance(side, Name) for side in (compared.left, compared.right)):
            raise _refused(text, compared.left.at, "this compares no column; one side must be a name")
        parts.append(compared)
    return parts[0] if len(parts) == 1 else Joined("and", tuple(parts))


def _operand(text: str, node: ast.expr) -> Name | Constant:
    at = _at(text, node)
    match node:
        case ast.Name(id=name):
            return Name(name, at)
        case ast.Call(func=ast.Name(id="label"), args=[ast.Constant(value=str(label))], keywords=[]):
            return Name(f'label("{label}")', at)
        case ast.Constant(value=str(value)):
            value.encode()  # a lone surrogate is a ValueError, as it is outside of quotes
            return Constant(value, at)
        case ast.Constant(value=bool()):
            raise _refused(text, at, "a flag is not compared: write it alone, such as `verified` or `not verified`")
        case ast.Constant(value=int() | float() as value):
            return Constant(_number(text, value, at), at)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as value)) if (
            not isinstance(value, bool)
        ):
            return Constant(_number(text, -value if isinstance(node.op, ast.USub) else value, at), at)
    raise _refused(text, at, f"found {one_line(ast.unparse(node), 40)}; a filter has {_KNOWN}, and nothing else")


def _number(text: str, value: float, at: int) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise _refused(text, at, "this number is too large")
    return number


def _several(text: str, node: ast.expr) -> Several:
    if not isinstance(node, ast.Tuple | ast.List | ast.Set) or not node.elts:
        raise _refused(
            text, _at(text, node), 'behind `in` stand constants in parentheses, such as ("a", "b") or ("a",)'
        )
    found = [_operand(text, item) for item in node.elts]
    constants = tuple(item for item in found if isinstance(item, Constant))
    if len(constants) < len(found):
        raise _refused(text, _at(text, node), "behind `in` stand constants, no names")
    return Several(constants, _at(text, node))


def _names(condition: Condition) -> Iterator[Name]:
    if isinstance(condition, Joined):
        for part in condition.parts:
            yield from _names(part)
    else:
        sides = (condition.left, condition.right) if isinstance(condition, Comparison) else (condition,)
        yield from (side for side in sides if isinstance(side, Name))


# --- kinds ----------------------------------------------------------------------------------------


def _check(text: str, condition: Condition, kinds: Mapping[str, Kind]) -> None:
    """See whether each name is where its kind belongs."""
    if isinstance(condition, Joined):
        for part in condition.parts:
            _check(text, part, kinds)
    elif isinstance(condition, Name):
        kind = kinds[condition.name]
        if kind != "flag":
            how = "> 0.5" if kind == "number" else '== "…"'
            said = f"{condition.name} is a {kind} and not a flag; compare it, such as {condition.name} {how}"
            raise _refused(text, condition.at, said)
    else:
        _check_comparison(text, condition, kinds)


def _check_comparison(text: str, compared: Comparison, kinds: Mapping[str, Kind]) -> None:
    right = compared.right.values if isinstance(compared.right, Several) else (compared.right,)
    sides = (compared.left, *right)
    found = [_kind(side, kinds) for side in sides]
    for side, kind in zip(sides, found, strict=True):
        if kind == "flag" and isinstance(side, Name):
            said = f"{side.name} is a flag: write it alone, as `{side.name}` or `not {side.name}`"
            raise _refused(text, side.at, said)
        if kind != found[0]:
            comma = "," if isinstance(side, Name) else ""
            said = f"{_told(side, kind)}{comma} is compared with {_told(sides[0], found[0])}"
            raise _refused(text, side.at, said)
    if found[0] == "text" and compared.sign in _ORDER:
        raise _refused(text, compared.left.at, f"text is compared by ==, != and in, not by {compared.sign}")


def _kind(side: Name | Constant, kinds: Mapping[str, Kind]) -> Kind:
    if isinstance(side, Name):
        return kinds[side.name]
    return "text" if isinstance(side.value, str) else "number"


def _told(side: Name | Constant, kind: Kind) -> str:
    if isinstance(side, Name):
        return f"{side.name}, a {kind}"
    return f"the {kind} {one_line(repr(side.value), 40) if isinstance(side.value, str) else f'{side.value:g}'}"


# --- columns ----------------------------------------------------------------------------------------


def _truth(condition: Condition, columns: Mapping[str, Column]) -> Bools:
    if isinstance(condition, Name):
        return np.asarray(columns[condition.name], np.bool_)
    if isinstance(condition, Comparison):
        return _compared(condition, columns)
    parts = (_truth(part, columns) for part in condition.parts)
    if condition.word == "not":
        return ~next(parts)
    return reduce(np.logical_and if condition.word == "and" else np.logical_or, parts)


def _compared(compared: Comparison, columns: Mapping[str, Column]) -> Bools:
    right = compared.right.values if isinstance(compared.right, Several) else (compared.right,)
    first, *others = (columns[side.name] if isinstance(side, Name) else side.value for side in (compared.left, *right))
    if compared.sign in _ORDER:
        return np.asarray(_ORDER[compared.sign](first, others[0]), np.bool_)
    equal = reduce(np.logical_or, (_equal(first, other) for other in others))
    return equal if compared.sign in ("==", "in") else reduce(np.logical_and, map(_there, (first, *others)), ~equal)


def _equal(one: Column | float | str, other: Column | float | str) -> Bools:
    if isinstance(one, pa.Array | str):
        found: Bools = pc.fill_null(pc.equal(one, other), False).to_numpy(zero_copy_only=False)
        return found
    return np.asarray(one == other, np.bool_)


def _there(values: Column | float | str) -> Any:
    """Whether a value is there, row by row or for all of them."""
    if isinstance(values, pa.Array):
        return values.is_valid().to_numpy(zero_copy_only=False)
    return True if isinstance(values, str) else ~np.isnan(values)
