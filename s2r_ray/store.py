"""The score store: what has been judged, by content key, under everything that can change a score.

`OUT/scores/<signal>/<fingerprint>/` holds small immutable Parquet parts, each written whole under a name of its own,
and `about.json`, which spells the fingerprint out. It is the checkpoint, the cache and the nightly increment. Small
parts are put together now and then; whoever reads meanwhile finds a row once or twice and never not at all.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.keys import KEY, KeySet, Places
from s2r_ray.signals.base import Signal, Status, SubjectKind, vector_length
from s2r_ray.storage import FileInfo, Place
from s2r_ray.tables import DamagedError, GoneError, read_ahead, read_own, write_own

_TOGETHER_ROWS = 1 << 17
_PART_ROWS = 1 << 15
_PART_BYTES = 1 << 24
_SMALL_BYTES = 1 << 18
_SMALL_PARTS = 64
_DELETERS = 16
_NO_FAULTS = pa.schema([("at", pa.int64()), ("status", pa.string()), ("detail", pa.string())]).empty_table()


@dataclass(frozen=True, eq=False)
class Settled:
    """`mask`: bool[keys], whether a key needs no judging. `damaged` are the parts that could not be read."""

    mask: npt.NDArray[np.bool_]
    damaged: tuple[DamagedError, ...] = ()


class Found:
    """What a store has for a set of keys, in their order.

    Attributes:
        columns: "value" and the extras, float64[keys], NaN where there is no score.
        ok: bool[keys], whether there is one.
    """

    def __init__(self, columns: dict[str, npt.NDArray[np.float64]], keys: int) -> None:
        self.columns = columns
        self.ok = np.zeros(keys, np.bool_)
        self._faults: list[pa.Table] = []

    def add_scores(self, at: Places, rows: dict[str, npt.NDArray[np.float64]]) -> None:
        """Take in rows for the keys at these places; of several for one key the least stays."""
        held, known = at[self.ok[at]], np.count_nonzero(self.ok)
        self.ok[at] = True
        if np.count_nonzero(self.ok) - known < len(at):  # some are there already, or come twice
            held = np.unique(held)
            at = np.concatenate([at, held])
            rows = {name: np.concatenate([column, self.columns[name][held]]) for name, column in rows.items()}
            order = np.lexsort((*reversed(rows.values()), at))
            order = order[np.append(True, np.diff(at[order]) > 0)]
            at, rows = at[order], {name: column[order] for name, column in rows.items()}
        for name, column in rows.items():
            self.columns[name][at] = column

    def add_faults(self, at: Places, rows: pa.Table) -> None:
        """Take in statuses and details for the keys at these places."""
        if len(at):
            self._faults.append(rows.append_column("at", pa.array(at)))

    def faults(self) -> pa.Table:
        """Keys without a score whose judging came to something: columns `at` (int64, ascending, each once), `status`,
        `detail`."""
        if not self._faults:
            return _NO_FAULTS
        table = pa.concat_tables(self._faults)
        table = table.filter(pa.array(~self.ok[table["at"].to_numpy()]))
        order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in ("at", "status", "detail")])
        table = table.take(order).select(["at", "status", "detail"])
        at = table["at"].to_numpy()
        return table.filter(pa.array(np.append(True, np.diff(at) > 0)[: len(at)])).combine_chunks()


@dataclass(frozen=True)
class ScoreStore:
    """The scores of one signal under one fingerprint. Small; travels to workers.

    `extras` are the names of the columns beside the value, `subject` what the keys stand for, `vector` how many numbers
    there are in the vector of each key, 0 without.
    """

    place: Place
    extras: tuple[str, ...]
    subject: SubjectKind = "question"
    vector: int = 0

    @classmethod
    def of(cls, out: Place, signal: Signal) -> ScoreStore:
        """The signal's store below an output place."""
        digest = fingerprint_digest(signal.fingerprint())
        return cls.at(out, signal.name, digest, signal.extras, signal.subject, vector_length(signal))

    @classmethod
    def at(
        cls,
        out: Place,
        signal: str,
        digest: str,
        extras: Sequence[str],
        subject: SubjectKind = "question",
        vector: int = 0,
    ) -> ScoreStore:
        """A store by the digest of its fingerprint."""
        return cls(out.child("scores", signal, digest), tuple(extras), subject, vector)

    def describe(self, fingerprint: dict[str, Any]) -> None:
        """Write down what the fingerprint stands for, once."""
        about = self.place.child("about.json")
        if not about.exists():
            about.write_bytes(json.dumps(fingerprint, indent=1, sort_keys=True).encode())

    def schema(self) -> pa.Schema:
        """Columns of a part: the value, extras and vector are null unless `status` is "ok". A vector is one value of
        little-endian float32: as a list, Parquet takes six times as long to read it."""
        extras = [pa.field(name, pa.float64()) for name in self.extras]
        vector = [pa.field("vector", pa.binary(4 * self.vector))] if self.vector else []
        return pa.schema(
            [
                pa.field("key", KEY),
                pa.field("value", pa.float64()),
                *extras,
                *vector,
                pa.field("status", pa.string()),
                pa.field("detail", pa.string()),
            ]
        )

    def append(self, table: pa.Table) -> None:
        """Add a part; what this returns from is durable."""
        write_own(self.place.child(f"part-{uuid.uuid4().hex}.parquet"), table.cast(self.schema()))

    def parts(self) -> list[str]:
        """Names of the parts, sorted."""
        return [file.path for file in self._files()]

    def _files(self) -> list[FileInfo]:
        return [file for file in self.place.files() if file.path.endswith(".parquet")]

    def put_together(self) -> None:
        """Make few parts of many small ones: each costs a request, and a fraction of a millisecond for each column.

        The rows stay as they are. Old parts go after the new one is durable, so a kill in between, or two that do this
        at once, leave rows that are there twice, which every reader puts up with. Damaged parts stay for their readers.
        """
        small = [file.path for file in self._files() if file.size < _SMALL_BYTES]
        if len(small) < _SMALL_PARTS:
            return
        most = min(_PART_ROWS, _PART_BYTES // max(1, 4 * self.vector))
        held: list[tuple[str, pa.Table]] = []
        for name, part in zip(small, read_ahead(self._part, small), strict=True):
            if isinstance(part, pa.Table):
                held.append((name, part))
            if sum(table.num_rows for _, table in held) >= most:
                self._replace(held)
                held.clear()
        if len(held) > 1:
            self._replace(held)

    def _replace(self, parts: Sequence[tuple[str, pa.Table]]) -> None:
        self.append(pa.concat_tables([table for _, table in parts]))
        with ThreadPoolExecutor(_DELETERS) as threads:
            list(threads.map(lambda part: self.place.child(part[0]).delete(), parts))

    def settled(self, keys: KeySet) -> Settled:
        """Which of these keys need no judging. Parts that are damaged are named, and what is in them does not count.

        A key whose judging failed does not count either: what failed may pass the next time.
        """
        mask = np.zeros(len(keys), np.bool_)
        damaged: list[DamagedError] = []
        for rows in self._rows(damaged):
            at = keys.find(rows.filter(pc.not_equal(rows["status"], str(Status.FAILED)))["key"])
            mask[at[at >= 0]] = True
        return Settled(mask, tuple(damaged))

    def tried(self, keys: KeySet, earlier: Collection[str]) -> npt.NDArray[np.bool_]:
        """Which of these keys have a row, whatever it says, in a part that is not among `earlier`: bool[keys].

        Parts that cannot be read say nothing.
        """
        mask = np.zeros(len(keys), np.bool_)
        for part in read_ahead(partial(self._part, columns=["key"]), sorted(set(self.parts()).difference(earlier))):
            if isinstance(part, pa.Table):
                at = keys.find(part["key"])
                mask[at[at >= 0]] = True
        return mask

    def look_up(self, keys: KeySet) -> Found:
        """What the store has for these keys. Takes 8 bytes a key and column; what else is stored takes nothing.

        Where two runs judged the same key at once, an ok row wins over a fault and the smaller value over the
        larger, then the smaller of each further column, so that the result depends on what was judged, not on who
        came first. Of faults the first by status, then detail, stays.

        Raises:
            DamagedError: a part cannot be read.
        """
        found = Found({name: np.full(len(keys), np.nan) for name in ("value", *self.extras)}, len(keys))
        for rows in self._rows():
            at = keys.find(rows["key"])
            ok = pc.equal(rows["status"], str(Status.OK)).to_numpy()
            good, bad = np.flatnonzero((at >= 0) & ok), np.flatnonzero((at >= 0) & ~ok)
            found.add_scores(at[good], {name: rows[name].to_numpy()[good] for name in found.columns})
            found.add_faults(at[bad], rows.select(["status", "detail"]).take(pa.array(bad)))
        return found

    def vectors(self) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """Every key with a score, some 16 MiB at a time: a table of `key` and `value`, and vectors, float32[m, d].

        A key that was judged twice comes twice.

        Raises:
            DamagedError: a part cannot be read.
        """
        for part in self._parts_there(["key", "value", "status", "vector"]):
            if isinstance(part, DamagedError):
                raise part
            rows = part.filter(pc.equal(part["status"], str(Status.OK))).combine_chunks()
            if rows.num_rows:
                column = rows["vector"].chunk(0)
                first = column.offset * self.vector
                numbers = np.frombuffer(column.buffers()[1], "<f4")[first : first + len(column) * self.vector]
                yield rows.select(["key", "value"]), numbers.reshape(-1, self.vector)

    def _rows(self, damaged: list[DamagedError] | None = None) -> Iterator[pa.Table]:
        """The rows of all parts, many parts at a time. Damaged ones are added to the list; without one, raised."""
        waiting: list[pa.Table] = []
        held = 0
        # Whole: damage in any column costs the part. Vectors may be most of what is stored, and few need them.
        for part in self._parts_there([name for name in self.schema().names if name != "vector"]):
            if isinstance(part, DamagedError):
                if damaged is None:
                    raise part
                damaged.append(part)
                continue
            waiting.append(part)
            held += part.num_rows
            if held >= _TOGETHER_ROWS:
                yield pa.concat_tables(waiting)
                waiting, held = [], 0
        if waiting:
            yield pa.concat_tables(waiting)

    def _parts_there(self, columns: Sequence[str]) -> Iterator[pa.Table | DamagedError]:
        """These columns of every part. What is gone since it was listed has been put together with others: they are
        listed anew."""
        read: set[str] = set()
        gone = True
        while gone:
            names = [name for name in self.parts() if name not in read]
            gone = False
            for part in read_ahead(partial(self._part, columns=columns), names):
                if isinstance(part, GoneError):
                    gone = True
                else:
                    yield part
            read.update(names)

    def _part(self, name: str, columns: Sequence[str] | None = None) -> pa.Table | DamagedError:
        try:
            return read_own(self.place.child(name), columns or self.schema().names)
        except DamagedError as error:
            return error


def fingerprint_digest(fingerprint: dict[str, Any]) -> str:
    """32 hex digits that stand for a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:32]
