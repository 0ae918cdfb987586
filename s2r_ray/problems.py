"""The distinct problems of pools: questions with their reference answers, each known by a hash of both.

`OUT/problems/<fingerprint>/<unit>.parquet` is what one unit left: the problems that it brings first, with their labels.
Neither traces nor guards matter here. As in the pool index, names are content: a unit is read once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from s2r_ray.candidates import content_key
from s2r_ray.errors import UsageError
from s2r_ray.index import UnitOutcome, label_column
from s2r_ray.keys import KEY
from s2r_ray.mapping import Mapping, label_text, question_of
from s2r_ray.pool_rows import answer_text
from s2r_ray.readers import BadFileError, Unit, read_unit
from s2r_ray.retries import take_repeated
from s2r_ray.storage import Place
from s2r_ray.tables import write_own

_CODE_VERSION = 1
SCHEMA = pa.schema([("key", KEY), ("question", pa.string()), ("answer", pa.string())])
"""`answer` is null where the pool has none. A column for each label follows, called as `index.label_column` says."""


@dataclass(frozen=True)
class ProblemPool:
    """How the problems of one pool are read. Travels to tasks."""

    root: Place
    out: Place
    mapping: Mapping

    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        chat = [self.mapping.chat.column] if self.mapping.chat else []
        named = [*self.mapping.question, *chat, self.mapping.answer, *self.mapping.labels.values()]
        return tuple(dict.fromkeys(name for name in named if name))

    def key(self, unit: Unit) -> str:
        """The unit's name: fingerprint / digest of where the file is and its version."""
        mapping = self.mapping.model_dump(mode="json", include={"question", "chat", "answer", "labels"})
        version = [self.root.uri, unit.path, unit.size, unit.version, unit.row_groups]
        parts = (json.dumps(content, sort_keys=True) for content in ({"code": _CODE_VERSION, **mapping}, version))
        return "/".join(hashlib.sha256(part.encode()).hexdigest()[:32] for part in parts)

    def check(self, found: Sequence[str], where: str) -> None:
        """Compare with a file's columns; answer and labels may be missing.

        Raises:
            UsageError: the question's column is missing.
        """
        first = self.columns()[0]
        if first not in found:
            raise UsageError(f"{where}: no column {first!r} with the question; the file has: {', '.join(found)}")


def problems_place(out: Place, key: str) -> Place:
    """The problems of a unit."""
    return out.child("problems", f"{key}.parquet")


def read_keys(out: Place) -> set[str]:
    """The units that were read already."""
    return {file.path.removesuffix(".parquet") for file in out.child("problems").files()}


def problem_key(question: str, answer: str | None) -> bytes:
    """16 bytes that stand for a question with its reference answer."""
    return content_key(question) if answer is None else content_key(question, answer)


def read_problems(pool: ProblemPool, unit: Unit) -> UnitOutcome:
    """Read a unit and leave its problems. Runs in a Ray task. `traces` of the outcome counts its rows.

    Rows without a question are passed over. A file that cannot be read is an outcome with an error and leaves nothing.
    """
    take_repeated()
    key, rows = pool.key(unit), 0
    found: dict[bytes, list[Any]] = {}
    try:
        for batch in read_unit(pool.root, unit, pool.columns(), pool.check):
            size = len(next(iter(batch.columns.values()), []))
            rows += size
            for row in range(size):
                values = {name: column[row] for name, column in batch.columns.items()}
                question = question_of(values, pool.mapping)
                if row in batch.faults or not isinstance(question, str) or not question.strip():
                    continue
                answer = answer_text(values[pool.mapping.answer]) if pool.mapping.answer else None
                labels = [label_text(values[column]) for column in pool.mapping.labels.values()]
                found.setdefault(problem_key(question, answer), [question, answer, *labels])
    except (BadFileError, UsageError) as error:
        return UnitOutcome(key, unit.pool, unit.path, repeated=take_repeated(), error=str(error))
    schema = pa.schema([*SCHEMA, *((label_column(label), pa.string()) for label in pool.mapping.labels)])
    lines = [dict(zip(schema.names, [key, *texts], strict=True)) for key, texts in found.items()]
    write_own(problems_place(pool.out, key), pa.Table.from_pylist(lines, schema))
    return UnitOutcome(key, unit.pool, unit.path, rows, repeated=take_repeated())
