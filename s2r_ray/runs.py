"""The runs of an output place, as people name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s2r_ray.errors import UsageError
from s2r_ray.publish import read_latest
from s2r_ray.storage import Place

_SHOWN_RUNS = 5


@dataclass(frozen=True)
class Runs:
    """Ids of the runs in `out`, oldest first; `finished` those that have a record."""

    out: Place
    all: tuple[str, ...]
    finished: tuple[str, ...]

    def find(self, given: str | None = None) -> str:
        """The id of a finished run.

        Args:
            given: an id or its beginning; None for the run that `latest.json` names.

        Raises:
            UsageError: there is no such run, or several, or it has not finished.
        """
        if not self.finished:
            raise UsageError(f"{self.out}: no finished run here; `s2r run` makes one")
        if not given:
            latest = read_latest(self.out)
            return str(latest["run_id"]) if latest else self.finished[-1]
        found = [given] if given in self.all else [run for run in self.all if run.startswith(given)]
        if not found:
            known = ", ".join(self.finished[-_SHOWN_RUNS:])
            raise UsageError(f"no run {given} here; the newest finished runs are: {known}")
        if len(found) > 1:
            more = ", …" if len(found) > _SHOWN_RUNS else ""
            raise UsageError(f"{given} is the beginning of {len(found)} runs: {', '.join(found[:_SHOWN_RUNS])}{more}")
        if found[0] not in self.finished:
            raise UsageError(f"run {found[0]} has not finished: it has no run.json")
        return found[0]


def list_runs(out: Place) -> Runs:
    """The runs that are there now."""
    files = {file.path.partition("/")[::2] for file in out.child("runs").files()}
    runs = sorted({run for run, _ in files})
    return Runs(out, tuple(runs), tuple(run for run in runs if (run, "run.json") in files))


def read_record(out: Place, run_id: str) -> dict[str, Any]:
    """What the `run.json` of a run says; see `publish.RunRecord`.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    place = out.child("runs", run_id, "run.json")
    if not place.exists():
        raise UsageError(f"run {run_id} has not finished: there is no {place}")
    record = place.read_json()
    if record is None or "budgets" not in record:
        raise UsageError(f"{place} is damaged; take another run")
    return record
