"""Edits that leave a question as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.judge.edits import EDITS


@pytest.mark.parametrize(
    ("edit", "text", "changed"),
    [
        ("fractions", r"$\dfrac12 + \tfrac34$", r"$\frac12 + \frac34$"),
        ("fractions", r"$\frac12$", r"$\dfrac12$"),
        ("fractions", r"$\dfracture$", r"$\dfracture$"),
        ("brackets", r"\left(x\right) and [1]", r"(x) and [1]"),
        ("brackets", "f (so) $f(x)$", r"f (so) $f\left(x\right)$"),
        ("brackets", "$(0, 1]$", "$(0, 1]$"),
        ("delimiters", "$$x$$ and $y$", r"\[x\] and $y$"),
        ("delimiters", "$y$", r"\(y\)"),
        ("delimiters", "$5 and $6", "$5 and $6"),
        ("white_space", "A. B", "\nA.  B \n"),
    ],
)
def test_what_an_edit_does(edit: str, text: str, changed: str) -> None:
    """Catches: an edit that asks something else, such as one of prices or of half-open intervals."""
    assert EDITS[edit](text) == changed


@given(st.text("$\\()[] 1ax.{}"))
def test_letters_and_digits_stay(text: str) -> None:
    """Catches: an edit that drops or doubles a part of any text, however broken."""
    marks = ("left", "right", "dfrac", "tfrac", "frac")
    for edit in EDITS.values():
        before, after = text, edit(text)
        for mark in marks:
            before, after = before.replace(f"\\{mark}", ""), after.replace(f"\\{mark}", "")
        assert [sign for sign in after if sign in "1ax.{}"] == [sign for sign in before if sign in "1ax.{}"]
