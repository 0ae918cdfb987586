"""Text left in Arrow's memory, against what `to_pylist` gives."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.candidates import content_key
from s2r_ray.utf8 import Utf8, undecoded_texts

TEXTS = st.lists(st.none() | st.text(max_size=6), max_size=8)


def decoded(value: Any) -> Any:
    """The same with `str` for `Utf8`."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return str(value) if isinstance(value, Utf8) else value


@given(st.lists(st.none() | TEXTS, max_size=6), TEXTS, st.integers(0, 3), st.booleans())
def test_same_as_python_values(lists: list[Any], flat: list[Any], start: int, large: bool) -> None:
    """Catches: texts of another row, where an array is a slice, has nulls, or empty lists among its rows."""
    text = pa.large_string() if large else pa.string()
    nested = pa.large_list(text) if large else pa.list_(text)
    for array in (pa.array(lists, nested).slice(start), pa.array(flat, text).slice(start)):
        assert decoded(undecoded_texts(array)) == array.to_pylist()


@given(st.text(max_size=9))
def test_one_text(text: str) -> None:
    """Catches: a key, or a blank, that depends on whether a text was decoded."""
    (found,) = undecoded_texts(pa.array([text])) or []
    assert str(found) == text
    assert content_key("Q", found) == content_key("Q", text)
    assert found.is_blank() == (not text.strip())


@pytest.mark.parametrize("text", ["", " \n", "\u3000", "\x1f", "\x85", "\xa0x", " x", "\x7f", "\u200b"])
def test_blank(text: str) -> None:
    """Catches: white space outside of ASCII taken for a trace."""
    assert Utf8(memoryview(text.encode())).is_blank() == (not text.strip())


@pytest.mark.parametrize("data", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82"])
def test_not_utf8(data: bytes) -> None:
    """Catches: bytes that Python would refuse to decode later, when nobody expects it."""
    with pytest.raises(UnicodeDecodeError):
        data.decode()
    raw = pa.array([b"ok", data], pa.binary())
    array = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    assert undecoded_texts(array) is None
    assert undecoded_texts(pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), array)) is None


@pytest.mark.parametrize(
    "array", [pa.array([1]), pa.array([b"x"]), pa.array(["x"]).dictionary_encode(), pa.array([[1]])]
)
def test_other_types(array: pa.Array) -> None:
    """Catches: values of another type handed on as text."""
    assert undecoded_texts(array) is None
