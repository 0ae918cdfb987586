"""A column of numbers that comes piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LEAST = 1 << 16


class Column:
    """Pieces are copied into one array that doubles when it is full: memory that was not written to yet costs nothing,
    where a list of pieces takes as much again while it is joined, and leaves holes behind that stay with the process.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._data: npt.NDArray[Any] = np.empty(_LEAST, dtype)
        self._size = 0

    def add(self, piece: npt.NDArray[Any]) -> None:
        """Append [n] numbers."""
        stop = self._size + len(piece)
        if stop > len(self._data):
            wider = np.empty(max(stop, 2 * len(self._data)), self._data.dtype)
            wider[: self._size] = self._data[: self._size]
            self._data = wider
        self._data[self._size : stop] = piece
        self._size = stop

    def array(self) -> npt.NDArray[Any]:
        """All that was added; not a copy."""
        return self._data[: self._size]
