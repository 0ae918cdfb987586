"""Edits of a question that leave what it asks as it is: other white space, other spellings of the same LaTeX.

A judge's score should not move with them. How far it does is a measure of what it has learnt by the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_SIZED = re.compile(r"\\left\s*([(\[|])|\\right\s*([)\]|])")
_PLAIN = re.compile(r"(?<!\\left)(?<!\\right)[()]")
_INLINE = re.compile(r"(?<!\\)\$(?=\S)([^$]+?)(?<=[^\s\\])\$(?!\d)")  # as Pandoc has it, so that prices are none
_FORMULA = re.compile(r"\$[^$]+\$|\\\[.+?\\\]|\\\(.+?\\\)", re.DOTALL)


def _in_formulas(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: _FORMULA.sub(lambda found: change(found[0]), text)


def _fractions(text: str) -> str:
    """`\\dfrac` and `\\tfrac` as `\\frac`; where there are none, `\\frac` as `\\dfrac`."""
    plain = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    return plain if plain != text else re.sub(r"\\frac(?![a-zA-Z])", r"\\dfrac", text)


def _brackets(text: str) -> str:
    """`\\left(` as `(`; where there are none, the round brackets of formulas with `\\left` and `\\right`."""
    plain = _SIZED.sub(lambda found: found[1] or found[2], text)
    if plain != text:
        return plain
    sized = {"(": r"\left(", ")": r"\right)"}
    return _in_formulas(_balanced(lambda formula: _PLAIN.sub(lambda found: sized[found[0]], formula)))(text)


def _balanced(change: Callable[[str], str]) -> Callable[[str], str]:
    """Only formulas whose round brackets come in pairs, and that are not marked off by some: `\\(`."""
    return lambda text: text if "\\(" in text or text.count("(") != text.count(")") else change(text)


def _display(text: str) -> str:
    """`$$…$$` as `\\[…\\]`; where there are none, `$…$` as `\\(…\\)`."""
    changed = _DISPLAY.sub(lambda found: f"\\[{found[1]}\\]", text)
    return changed if changed != text else _INLINE.sub(lambda found: f"\\({found[1]}\\)", text)


EDITS: Mapping[str, Callable[[str], str]] = {
    "white_space": lambda text: f"\n{re.sub(r'(?<=[.?!,;]) ', '  ', text)} \n",
    "fractions": _fractions,
    "brackets": _brackets,
    "delimiters": _display,
}
"""Name -> what makes the edit; a text without such a place comes back as it is."""
