"""Key sets against what plain Python says about the same keys."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.column import Column
from s2r_ray.keys import KEY, KeySet, halves, hexadecimal, sort_keys

# Halves from a few values, so that keys repeat, share their first half alone, or their second.
HALF = st.sampled_from([bytes(8), b"\xff" * 8, b"\x00" * 7 + b"\x01", b"\x80" + bytes(7), b"abcdefgh"])
KEYS = st.lists(st.one_of(st.tuples(HALF, HALF).map(b"".join), st.binary(min_size=16, max_size=16)), max_size=30)


def array(keys: list[bytes | None]) -> pa.Array:
    return pa.array(keys, KEY)


@given(parts=st.lists(KEYS, max_size=4))
def test_sorting(parts: list[list[bytes]]) -> None:
    """Catches: an order that is not that of the bytes (signed or little-endian numbers), keys that share their first
    half taken for one, and a question found where it occurs for the second time."""
    keys = [key for part in parts for key in part]
    found = sort_keys(map(array, parts))
    distinct = sorted(set(keys))
    assert found.distinct.keys(np.arange(len(found.distinct))).to_pylist() == distinct
    assert found.first().tolist() == [keys.index(key) for key in distinct]
    assert found.place().tolist() == [distinct.index(key) for key in keys]
    assert found.place().dtype == np.int32


@given(held=KEYS, asked=KEYS)
def test_finding(held: list[bytes], asked: list[bytes]) -> None:
    """Catches: a key found that is not there, or missed among others with the same first half, or behind the last."""
    found = sort_keys([array(held)]).distinct
    distinct = sorted(set(held))
    expected = [distinct.index(key) if key in distinct else -1 for key in asked]
    assert found.find(array(asked)).tolist() == expected
    assert found.find(pa.chunked_array([array(asked[:3]), array(asked[3:])])).tolist() == expected


@given(keys=st.lists(st.one_of(st.none(), st.binary(min_size=16, max_size=16)), max_size=20), skip=st.integers(0, 5))
def test_hexadecimal(keys: list[bytes | None], skip: int) -> None:
    """Catches: digits in another order, the neighbours' digits for a slice of an array, a key for a row without one."""
    expected = [None if key is None else key.hex() for key in keys[skip:]]
    assert hexadecimal(array(keys).slice(skip)).to_pylist() == expected
    assert hexadecimal(pa.chunked_array([array(keys[:7]), array(keys[7:])]).slice(skip)).to_pylist() == expected


def test_halves_of_a_slice() -> None:
    """Catches: the first keys of a file for those of a later part of it."""
    keys = array([bytes([number]) * 16 for number in range(5)])
    high, low = halves(keys.slice(3, 1))
    assert high.tolist() == low.tolist() == [int.from_bytes(b"\3" * 8, "big")]


@pytest.mark.parametrize("empty", [array([]), pa.chunked_array([], KEY)])
def test_no_keys(empty: pa.Array) -> None:
    """Catches: a first run, or a snapshot without units, that fails on nothing."""
    none = sort_keys([]).distinct
    assert len(none) == len(sort_keys([empty]).distinct) == 0
    assert isinstance(none, KeySet)
    assert none.find(empty).tolist() == []
    assert none.find(array([bytes(16)])).tolist() == [-1]


@given(pieces=st.lists(st.lists(st.integers(-5, 5), max_size=9), max_size=9))
def test_columns(pieces: list[list[int]]) -> None:
    """Catches: numbers lost or overwritten where an array is full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2r_ray.column._LEAST", 2)
        column = Column(np.int32)
        for piece in pieces:
            column.add(np.array(piece, np.int64))
    assert column.array().tolist() == [number for piece in pieces for number in piece]
    assert column.array().dtype == np.int32
