"""Values of a pool on one line."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.printable import brief, one_line


@given(st.text(st.characters(codec=None), max_size=40), st.integers(2, 50))
def test_one_bounded_printable_line(text: str, limit: int) -> None:
    """Catches: a terminal escape, a line end or a lone surrogate that gets through, and a line that is too long."""
    shown = one_line(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    if text.isprintable() and len(text) <= limit:
        assert shown == text


@pytest.mark.parametrize(
    "value", [[10**5000], [[[[[[[[[[1]]]]]]]]]], "x" * 10**6, b"\xff" * 1000, {"a": object()}, None]
)
def test_any_value(value: Any) -> None:
    """Catches: an exception or a megabyte in a detail."""
    assert sys.get_int_max_str_digits() < 5000
    assert 0 < len(brief(value)) <= 200
