"""Values of a pool in one bounded line: for details, messages and terminals."""

from __future__ import annotations

import reprlib
from typing import Any


def one_line(text: str, limit: int = 200) -> str:
    """At most `limit` characters, with what is not printable (line ends, terminal escapes, marks that turn the
    direction of writing, lone surrogates) as backslash escapes."""
    if len(text) <= limit and text.isprintable():
        return text
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text[:limit])
    return shown if len(text) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"


def brief(value: Any, limit: int = 200) -> str:
    """The same of any value's representation; long or deeply nested values are abridged."""
    try:
        return one_line(reprlib.repr(value), limit)
    except (ValueError, OverflowError):  # whole numbers of thousands of digits have no decimal form
        return f"a value of type {type(value).__name__}"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
