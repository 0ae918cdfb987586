"""Questions, with responses or without, that a user gives beside the pools: a query set, a validation set.

They are read from files of their own and held against what the pools have, for a pool that contains them is, as a rule,
not what was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.candidates import content_key
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.index import Snapshot, question_keys, sample_keys
from s2r_ray.keys import KEY, sort_keys
from s2r_ray.printable import brief, one_line
from s2r_ray.readers import Unit, plan_units, pool_files, read_unit
from s2r_ray.storage import Place

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """A question and, unless the file has none, its response."""

    question: str
    response: str | None = None

    @property
    def key(self) -> bytes:
        """16 bytes that stand for it; with a response, those of a sample of a pool with the same texts."""
        return content_key(self.question, *([] if self.response is None else [self.response]))


def read_pairs(place: Place, question: str, response: str | None, most: int, setting: str) -> list[Pair]:
    """The pairs of Parquet or JSONL files, in the files' order, each distinct one once.

    Args:
        place: a file, folder or glob.
        question, response: their columns; without a response there are questions alone.
        most: pairs to put up with.
        setting: what the configuration calls this set; it goes into errors.

    Raises:
        UsageError: there is no such file, it cannot be read or lacks a column, a value is no text or blank, there is no
            row, or there are too many.
    """
    columns = [question, *([] if response is None else [response])]

    def check(found: Sequence[str], where: str) -> None:
        missing = [name for name in columns if name not in found]
        if missing:
            names, has = ", ".join(map(repr, missing)), one_line(", ".join(found))
            raise UsageError(f"{setting}: {where} has no column {names}; it has {has}")

    pairs: dict[Pair, None] = {}
    try:
        root, files = place.glob()
        for unit in plan_units(root, 0, pool_files(files, str(place))):
            for batch in read_unit(root, unit, columns, check):
                for offset, fault in batch.faults.items():
                    raise UsageError(f"{_row(root, unit, batch.first_row + offset)}: {fault}")
                for offset, values in enumerate(zip(*(batch.columns[name] for name in columns), strict=True)):
                    for name, value in zip(columns, values, strict=True):
                        _check_text(value, name, root, unit, batch.first_row + offset)
                    pairs[Pair(*values)] = None
                if len(pairs) > most:
                    raise UsageError(f"{place} has more than {most:,} pairs; take fewer, or raise the limit")
    except S2RError as error:
        text = str(error)
        raise UsageError(text if text.startswith(f"{setting}: ") else f"{setting}: {text}") from error
    if not pairs:
        raise UsageError(f"{setting}: {place} has no rows; expected one for each question")
    return list(pairs)


def _check_text(value: Any, column: str, root: Place, unit: Unit, row: int) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{_row(root, unit, row)}: {column!r} is {brief(value)}; expected text")


def _row(root: Place, unit: Unit, row: int) -> str:
    return f"{root.child(unit.path)} row {row:,}, counted from 0"


@dataclass(frozen=True, eq=False)
class Overlap:
    """Which pairs the pools have, bool[pairs]: `questions`, the question of some candidate; `samples`, question and
    response of one candidate."""

    questions: Mask
    samples: Mask

    def told(self, setting: str) -> str | None:
        """A sentence for people, None where there is no overlap."""
        if not self.questions.any():
            return None
        total, samples, questions = len(self.questions), int(self.samples.sum()), int(self.questions.sum())
        both = f"{samples:,} with their response" if samples else "none with its response"
        return f"of the {total:,} {setting}, {questions:,} are questions of the pool, {both}"


def find_overlap(out: Place, snapshot: Snapshot, pairs: Sequence[Pair]) -> Overlap:
    """Hold pairs against the candidates of a snapshot, by the hash of their very text.

    Reads keys alone, and holds those of some units at a time.
    """
    questions, samples = ([content_key(pair.question) for pair in pairs], [pair.key for pair in pairs])
    return Overlap(_among(questions, question_keys(out, snapshot)), _among(samples, sample_keys(out, snapshot)))


def _among(keys: Sequence[bytes], parts: Iterable[pa.ChunkedArray]) -> Mask:
    """Which of these keys occur in the parts: bool[keys]."""
    wanted = sort_keys([pa.array(keys, KEY)])
    there = np.zeros(len(wanted.distinct), np.bool_)
    for part in parts:
        at = wanted.distinct.find(part)
        there[at[at >= 0]] = True
    return there[wanted.place()]
