"""For programs: run or select, and read what came out. `import s2r_ray` has these names.

Errors are those of the command line: `UsageError` if a setting is wrong and nothing was begun, else `S2RError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from s2r_ray import pipeline
from s2r_ray.baselines import baseline_place
from s2r_ray.config import Config, load_config
from s2r_ray.errors import UsageError
from s2r_ray.progress import Progress
from s2r_ray.runs import list_runs, read_record
from s2r_ray.selection import manifest_place
from s2r_ray.signals.base import Signal
from s2r_ray.storage import DEFAULT_STORAGE, Place, StorageOptions
from s2r_ray.tables import open_parquet, read_table


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        place: where its files are.
        record: what its `run.json` says: configuration, versions, counts, seconds.
    """

    place: Place
    record: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        """Begins with the time of the run in UTC, so that ids sort by age."""
        return self.place.name

    @property
    def budgets(self) -> dict[str, int]:
        """Per cent as text -> rows selected."""
        return dict(self.record["budgets"])

    def manifest(
        self, budget: str | float, columns: Sequence[str] | None = None, baseline: str | None = None
    ) -> pa.Table:
        """The rows that a budget selects, best first: their places in the pool, scores and ranks, no text.

        Args:
            budget: in per cent, such as 10 or "10%".
            columns: those to read; None for all.
            baseline: such as "random"; None for the joint ranking.

        Raises:
            UsageError: the run has no such budget, baseline or column.
        """
        (name,) = load_config(None, {"budgets": [budget]}).budgets
        if name not in self.budgets:
            known = ", ".join(sorted(self.budgets, key=float))
            raise UsageError(f"run {self.id} has no budget of {name} %; it has {known} %")
        made = self.record.get("baselines") or {}
        if baseline is not None and baseline not in made:
            raise UsageError(f"run {self.id} has no baseline {baseline}; it has {', '.join(made) or 'none'}")
        place = manifest_place(self.place, name) if baseline is None else baseline_place(self.place, baseline, name)
        with open_parquet(place) as file:
            there = file.schema_arrow.names
        absent = [column for column in columns or () if column not in there]
        if absent:
            raise UsageError(f"a manifest has no column {', '.join(absent)}; it has {', '.join(there)}")
        return read_table(place, columns)


def run(config: Config, *, signals: Sequence[Signal] | None = None, quiet: bool = False) -> Run:
    """Index the pools, judge what is new, rank everything and publish, as `s2r run` does.

    Args:
        signals: in place of those of the package; with weights for their names in `config.weights`.
        quiet: no progress on standard error.
    """
    record, place = pipeline.run(config, Progress(quiet=quiet), signals)
    return Run(place, vars(record))


def select(config: Config, *, quiet: bool = False) -> Run:
    """Rank and publish anew with this configuration's weights and budgets what is scored in its output place, as
    `s2r select` does."""
    record, place = pipeline.select(config, Progress(quiet=quiet))
    return Run(place, vars(record))


def open_run(out: str, run_id: str | None = None, storage: StorageOptions = DEFAULT_STORAGE) -> Run:
    """A finished run of an output place.

    Args:
        run_id: its id or the beginning of it; None for the newest.

    Raises:
        UsageError: there is none, or several begin so.
    """
    place = Place.of(out, storage)
    found = list_runs(place).find(run_id)
    return Run(place.child("runs", found), read_record(place, found))
