"""A run as it lies on disk: its record and its ranked rows, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.baselines import baseline_place
from s2r_ray.index import Snapshot, snapshot_place
from s2r_ray.publish import RunRecord
from s2r_ray.selection import manifest_place
from s2r_ray.signals import INDEX_SIGNALS
from s2r_ray.storage import Place
from s2r_ray.tables import one_ahead, open_parquet, use_threads

BATCH_ROWS = 1 << 17
_NO_SIGNALS = ("pool", "sample_id", "file", "row", "generation", "question_key", "stratum", "trace_tokens")


@dataclass(frozen=True)
class StoredRun:
    """A run below an output place: its ranking and manifests are written, its record may still be in the making."""

    out: Place
    place: Place
    record: RunRecord

    @property
    def budgets(self) -> tuple[tuple[str, int], ...]:
        """(budget in per cent, rows), the smallest first: each is the beginning of the next."""
        return tuple(sorted(self.record.budgets.items(), key=lambda item: (item[1], float(item[0]))))

    @property
    def signals(self) -> dict[str, str]:
        """Signal -> column of the ranking that has its values."""
        ranked = self.record.better or self.record.fingerprints  # the latter for a run of an older version
        return {**{name: name for name in ranked if name not in INDEX_SIGNALS}, **INDEX_SIGNALS}

    @property
    def weighted(self) -> tuple[str, ...]:
        """The signals that move the joint rank."""
        return tuple(name for name, weight in self.record.weights.items() if weight)

    @property
    def stratified(self) -> bool:
        """Whether ranks are those inside of a group, and budgets are filled group by group."""
        return self.record.strata is not None

    def columns(self) -> list[str]:
        """Of the ranking."""
        return list(self._footers[0].schema.names)

    def ranges(self, columns: Sequence[str]) -> dict[str, tuple[float, float]]:
        """The least and the greatest value of each of these columns of numbers, as the ranking's footers have them."""
        found = dict.fromkeys(columns, (float("inf"), float("-inf")))
        for footer in self._footers:
            place = {name: at for at, name in enumerate(footer.schema.names)}
            for group in map(footer.row_group, range(footer.num_row_groups)):
                for name, (low, high) in found.items():
                    statistics = group.column(place[name]).statistics
                    found[name] = min(low, float(statistics.min)), max(high, float(statistics.max))
        return found

    def extras(self) -> list[str]:
        """The columns of the ranking that signals give beside their value, such as the label mass."""
        known = {*_NO_SIGNALS, *self.signals.values()}
        return [name for name in self.columns() if name not in known and not name.startswith("rank_")]

    def rows(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of all ranked rows in order (pool, path, row, generation), a batch at a time."""
        for part in self._parts:
            yield from _batches(part, columns)

    def numbers(self, columns: Sequence[str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """The same as arrays, for columns without nulls."""
        for table in self.rows(columns):
            yield {name: table[name].to_numpy() for name in columns}

    def selected(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of the largest budget in order of their position, a batch at a time."""
        yield from _batches(manifest_place(self.place, self.budgets[-1][0]), columns)

    def baseline(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The same of a baseline."""
        yield from _batches(baseline_place(self.place, name, self.budgets[-1][0]), columns)

    def snapshot(self) -> Snapshot | None:
        """The pools as the run saw them; None where the index is gone."""
        place = snapshot_place(self.out, self.record.snapshot)
        return Snapshot.from_json(place.read_bytes()) if place.exists() else None

    @cached_property
    def _parts(self) -> list[Place]:
        folder = self.place.child("ranking")
        return [folder.child(file.path) for file in folder.files()]

    @cached_property
    def _footers(self) -> list[pq.FileMetaData]:
        footers = []
        for part in self._parts:
            with open_parquet(part) as file:
                footers.append(file.metadata)
        return footers


def _batches(place: Place, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    with open_parquet(place) as file:
        wanted = None if columns is None else list(columns)
        for batch in one_ahead(file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=use_threads(place, file))):
            yield pa.Table.from_batches([batch])
