"""The score store: what has been judged, by content key, under everything that can change a score.

`OUT/scores/<signal>/<fingerprint>/` holds small immutable Parquet parts, each written whole under a name of its own,
and `about.json`, which spells the fingerprint out. It is the checkpoint, the cache and the nightly increment.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.signals.base import Signal, Status
from s2r_ray.storage import Place
from s2r_ray.tables import DamagedError, read_own, write_table

_READ_THREADS = 32
_KEY = pa.binary(16)


@dataclass(frozen=True)
class Settled:
    """`keys` need no judging: in no order, possibly repeated. `damaged` are the parts that could not be read."""

    keys: pa.Array
    damaged: tuple[DamagedError, ...] = ()


@dataclass(frozen=True)
class ScoreStore:
    """The scores of one signal under one fingerprint. Small; travels to workers.

    `extras` are the names of the columns beside the value.
    """

    place: Place
    extras: tuple[str, ...]

    @classmethod
    def of(cls, out: Place, signal: Signal) -> ScoreStore:
        """The signal's store below an output place."""
        return cls.at(out, signal.name, fingerprint_digest(signal.fingerprint()), signal.extras)

    @classmethod
    def at(cls, out: Place, signal: str, digest: str, extras: Sequence[str]) -> ScoreStore:
        """A store by the digest of its fingerprint."""
        return cls(out.child("scores", signal, digest), tuple(extras))

    def describe(self, fingerprint: dict[str, Any]) -> None:
        """Write down what the fingerprint stands for, once."""
        about = self.place.child("about.json")
        if not about.exists():
            about.write_bytes(json.dumps(fingerprint, indent=1, sort_keys=True).encode())

    def schema(self) -> pa.Schema:
        """Columns of a part: the value and extras are null unless `status` is "ok"."""
        extras = [pa.field(name, pa.float64()) for name in self.extras]
        return pa.schema(
            [
                pa.field("key", _KEY),
                pa.field("value", pa.float64()),
                *extras,
                pa.field("status", pa.string()),
                pa.field("detail", pa.string()),
            ]
        )

    def append(self, table: pa.Table) -> None:
        """Add a part; what this returns from is durable."""
        write_table(self.place.child(f"part-{uuid.uuid4().hex}.parquet"), table.cast(self.schema()))

    def parts(self) -> list[str]:
        """Names of the parts, sorted."""
        return [file.path for file in self.place.files() if file.path.endswith(".parquet")]

    def read(self) -> pa.Table:
        """Every key once, sorted by key.

        Where two runs judged the same key at once, an ok row wins over a fault and the smaller value over the
        larger, then the smaller of each further column, so that the result depends on what was judged, not on who
        came first.

        Raises:
            DamagedError: a part cannot be read.
        """
        with ThreadPoolExecutor(_READ_THREADS) as threads:
            tables = list(threads.map(self._read_part, self.parts()))
        if not tables:
            return self.schema().empty_table()
        table = pa.concat_tables(tables).combine_chunks()
        faulty = pc.not_equal(table["status"], str(Status.OK))
        table = table.append_column("faulty", faulty)
        columns = ["key", "faulty", "value", *self.extras, "status", "detail"]
        order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in columns])
        table = table.drop_columns("faulty").take(order)
        keys = table["key"].combine_chunks()
        if len(keys) < 2:
            return table
        repeated = pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1))
        if not pc.any(repeated).as_py():
            return table
        return table.filter(pa.array(np.concatenate([[True], ~repeated.to_numpy(zero_copy_only=False)])))

    def settled(self) -> Settled:
        """What needs no judging. Parts that are damaged are named, and what is in them does not count.

        A key whose judging failed does not count either: what failed may pass the next time.
        """
        with ThreadPoolExecutor(_READ_THREADS) as threads:
            columns = list(threads.map(self._read_settled, self.parts()))
        chunks = [chunk for column in columns if isinstance(column, pa.ChunkedArray) for chunk in column.chunks]
        keys = pa.concat_arrays(chunks) if chunks else pa.array([], _KEY)
        return Settled(keys, tuple(column for column in columns if isinstance(column, DamagedError)))

    def _read_settled(self, name: str) -> pa.ChunkedArray | DamagedError:
        try:
            table = self._read_part(name)  # whole: damage in any column costs the part
        except DamagedError as error:
            return error
        return table.filter(pc.not_equal(table["status"], str(Status.FAILED)))["key"]

    def _read_part(self, name: str) -> pa.Table:
        return read_own(self.place.child(name))


def fingerprint_digest(fingerprint: dict[str, Any]) -> str:
    """32 hex digits that stand for a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:32]
