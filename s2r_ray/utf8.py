"""Text that stays in Arrow's memory: most traces of a pool are left out, and never become strings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LISTS = (pa.types.is_list, pa.types.is_large_list)
_OFFSETS = {pa.string(): np.int32, pa.large_string(): np.int64}


@dataclass(frozen=True, slots=True)
class Utf8:
    """A text that nobody has had to decode so far. `data` is valid UTF-8."""

    data: memoryview

    def __str__(self) -> str:
        return str(self.data, "utf-8")

    def is_blank(self) -> bool:
        """Whether it has nothing but white space."""
        return not self.data or (not 32 < self.data[0] < 128 and str(self).isspace())


def undecoded_texts(column: pa.Array) -> list[Any] | None:
    """A column of text, or of lists of text, as `to_pylist` gives it, each text a `Utf8`.

    None: its type is another, or some of it is not UTF-8.
    """
    nested = any(is_list(column.type) for is_list in _LISTS)
    texts = column.flatten() if nested else column
    if texts.type not in _OFFSETS:
        return None
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return None
    found = _texts(texts)
    if not nested:
        return list(found)
    lengths = pc.list_value_length(column).to_pylist()
    return [None if length is None else list(islice(found, length)) for length in lengths]


def _texts(texts: pa.Array) -> Iterator[Utf8 | None]:
    _, offsets, data = texts.buffers()
    kind = np.dtype(_OFFSETS[texts.type])
    ends = (
        np.frombuffer(offsets, kind, len(texts) + 1, texts.offset * kind.itemsize) if len(texts) else np.zeros(1, kind)
    )
    view = memoryview(data if data is not None else b"")
    for valid, start, end in zip(texts.is_valid().to_pylist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield Utf8(view[start:end]) if valid else None
