"""16-byte content keys by the million, as sorted numbers: 16 bytes a key, looked up without a hash table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.column import Column

KEY = pa.binary(16)
Halves = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


_DIGITS = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)
"""The two hexadecimal digits of each byte, as they lie in memory."""


def halves(keys: pa.Array | pa.ChunkedArray) -> tuple[Halves, Halves]:
    """The first and the last eight bytes of each key, as numbers that sort as the bytes do: uint64[n] twice."""
    numbers = _bytes(keys).reshape(-1).view(">u8").reshape(-1, 2)
    return numbers[:, 0].astype(np.uint64), numbers[:, 1].astype(np.uint64)


def hexadecimal(keys: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Each key in 32 digits, null where the key is."""
    data = _bytes(keys)
    text = _DIGITS[data]
    offsets = pa.py_buffer(np.arange(0, 32 * len(data) + 1, 32, dtype=np.int32))
    valid = keys.is_valid().combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys.is_valid()
    mask = valid.buffers()[1] if keys.null_count else None
    return pa.StringArray.from_buffers(len(data), offsets, pa.py_buffer(text), mask)


def _bytes(keys: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """uint8[n, 16]; what a null holds is not said."""
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    if not len(keys):
        return np.zeros((0, 16), np.uint8)
    found = np.frombuffer(keys.buffers()[1], np.uint8, 16 * len(keys), 16 * keys.offset)
    return found.reshape(-1, 16)


@dataclass(frozen=True, eq=False)
class KeySet:
    """Distinct keys, ascending by their bytes: the first and the last eight of each as numbers, uint64[n]."""

    high: Halves
    low: Halves

    def __len__(self) -> int:
        return len(self.high)

    def keys(self, places: Places) -> pa.Array:
        """The keys at these places."""
        numbers = np.stack([self.high[places], self.low[places]], axis=1).astype(">u8")
        return pa.FixedSizeBinaryArray.from_buffers(KEY, len(numbers), [None, pa.py_buffer(numbers)])

    def find(self, keys: pa.Array | pa.ChunkedArray) -> Places:
        """Where in the set each of these keys is, -1 for those that are not in it: int64[m]."""
        found = np.full(len(keys), -1, np.int64)
        if not len(self):
            return found
        high, low = halves(keys)
        order = np.argsort(high)  # sorted look-ups go through the set once, not at random
        high, low = high[order], low[order]
        at = np.searchsorted(self.high, high)
        last = len(self) - 1
        while True:
            inside = np.minimum(at, last)
            half = (at <= last) & (self.high[inside] == high)
            behind = half & (self.low[inside] < low)
            if not behind.any():
                break
            at[behind] += 1  # past keys that share their first half with this one, which is next to never
        same = half & (self.low[inside] == low)
        found[order[same]] = at[same]
        return found


@dataclass(frozen=True, eq=False)
class SortedKeys:
    """Keys that may repeat, sorted.

    `distinct` has each once. `order`: int64[n], places of the keys as they came, by key, then as they came. `new`:
    bool[n], whether the key at this place of the order is another than the one before.
    """

    distinct: KeySet
    order: Places
    new: npt.NDArray[np.bool_]

    def first(self) -> Places:
        """Where each distinct key came first: int64[distinct]."""
        return self.order[self.new]

    def place(self) -> npt.NDArray[np.int32]:
        """Which distinct key each of them is: int32[n], as they came."""
        place = np.empty(len(self.order), np.int32)
        place[self.order] = np.cumsum(self.new, dtype=np.int32) - 1
        return place


def _gather(parts: Iterable[pa.Array | pa.ChunkedArray]) -> tuple[Halves, Halves]:
    first, second = Column(np.uint64), Column(np.uint64)
    for part in parts:
        high, low = halves(part)
        first.add(high)
        second.add(low)
    return first.array(), second.array()


def sort_keys(parts: Iterable[pa.Array | pa.ChunkedArray]) -> SortedKeys:
    """Sort all keys that the parts have. Takes 32 bytes a key while it works and keeps 25."""
    high, low = _gather(parts)
    order = np.argsort(high, kind="stable")
    high = high[order]
    low = low[order]
    if ((high[1:] == high[:-1]) & (low[1:] != low[:-1])).any():  # equal first halves, which is next to never
        again = np.lexsort((low, high))
        high, low, order = high[again], low[again], order[again]
    new = np.ones(len(order), np.bool_)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    if not new.all():
        high = high[new]
        low = low[new]
    return SortedKeys(KeySet(high, low), order, new)
