"""How much may be wrong before a run is not worth its result.

Two shares are held against `max_error_rate`: rows that are broken, among all rows of the index, before anything is
judged; and questions, or samples, that a signal failed on or left without an answer, among the distinct ones, before
anything is ranked. What the guards, duplicates and the choice of a trace leave out is a decision and not an error, and
so is a question or sample that is longer than the model may read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.candidates import ROW_FAULTS
from s2r_ray.errors import TooManyErrors
from s2r_ray.index import Snapshot, candidates_place
from s2r_ray.keys import KeySet
from s2r_ray.printable import one_line
from s2r_ray.signals.base import Signal, Status
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.tables import read_ahead, read_own

_EXAMPLE_CHARACTERS = 100
_FITS = {
    "question": "Nothing was ranked. See whether the judge fits these questions, its prompt and judge.min_label_mass",
    "sample": "Nothing was ranked. See whether the model fits these traces",
}
JUDGE_FAULTS = (Status.FAILED, Status.NO_ANSWER)
"""Statuses that say that the judge did not do its work."""


@dataclass(frozen=True)
class _Fault:
    """A reason, how many it befell, and one of them."""

    reason: str
    count: int
    example: str


def allowed(rate: str, total: int) -> int:
    """How many errors of `total` are put up with: the share, rounded down, but one in any pool unless the rate is 0."""
    share = Fraction(rate)
    return max(1, int(share * total)) if share else 0


def check_rows(out: Place, snapshot: Snapshot, rate: str) -> None:
    """Hold the index's broken rows against the rate.

    Raises:
        TooManyErrors: there are more.
    """
    found = list(read_ahead(lambda item: _reasons(out, item[1]), snapshot.units))
    total = sum(rows for rows, _ in found)
    first: dict[str, int] = {}
    counts: dict[str, int] = {}
    for unit, (_, reasons) in enumerate(found):
        for reason, count in reasons.items():
            counts[reason] = counts.get(reason, 0) + count
            first.setdefault(reason, unit)
    if sum(counts.values()) <= allowed(rate, total):
        return
    faults = [
        _Fault(reason, count, _row_example(out, snapshot, first[reason], pa.array([reason]), "reason"))
        for reason, count in counts.items()
    ]
    raise _refusal(
        faults,
        total,
        rate,
        "rows",
        "Nothing was judged. Repair the rows or the column mapping (README, Your pool)",
    )


def check_judged(out: Place, snapshot: Snapshot, asked: KeySet, signal: Signal, store: ScoreStore, rate: str) -> None:
    """Hold the questions or samples that a signal failed on, or that it did not answer, against the rate.

    Args:
        asked: the keys of the snapshot's distinct ones.

    Raises:
        TooManyErrors: there are more.
    """
    faults_found = store.look_up(asked).faults()
    wrong = faults_found.filter(pc.is_in(faults_found["status"], value_set=pa.array(list(map(str, JUDGE_FAULTS)))))
    if wrong.num_rows <= allowed(rate, len(asked)):
        return
    faults = []
    column = f"{signal.subject}_key"
    for item in wrong["status"].value_counts().to_pylist():
        example = wrong.filter(pc.equal(wrong["status"], item["values"])).slice(0, 1)
        key = asked.keys(example["at"].to_numpy())
        unit = next(unit for unit in range(len(snapshot.units)) if _asks(out, snapshot, unit, key, column))
        where = _row_example(out, snapshot, unit, key, column, detail=example["detail"][0].as_py())
        faults.append(_Fault(f"{signal.name}_{item['values']}", item["counts"], where))
    raise _refusal(
        faults,
        len(asked),
        rate,
        f"distinct {signal.subject}s",
        _FITS[signal.subject],
    )


def _asks(out: Place, snapshot: Snapshot, unit: int, key: pa.Array, column: str) -> bool:
    """Whether a unit has a candidate with this key."""
    table = read_own(candidates_place(out, snapshot.units[unit][1]), [column, "reason"])
    there = pc.and_(pc.is_in(table[column], value_set=key), pc.is_null(table["reason"]))
    return bool(pc.any(there).as_py())


def _reasons(out: Place, key: str) -> tuple[int, dict[str, int]]:
    """(rows of a unit, how many are broken for each reason)."""
    column = read_own(candidates_place(out, key), ["reason"])["reason"].cast(pa.string())
    broken = column.filter(pc.is_in(column, value_set=pa.array(list(map(str, ROW_FAULTS)))))
    return len(column), {item["values"]: item["counts"] for item in broken.value_counts().to_pylist()}


def _row_example(
    out: Place, snapshot: Snapshot, unit: int, wanted: pa.Array, column: str, detail: str | None = None
) -> str:
    """`file row 17: question is null`, for a unit's first row with this value."""
    of, key = snapshot.units[unit]
    table = read_own(candidates_place(out, key), ["row", column, "reason", "detail"])
    values = table[column].cast(pa.string()) if column == "reason" else table[column]
    here = pc.is_in(values, value_set=wanted)
    if column != "reason":
        here = pc.and_(here, pc.is_null(table["reason"]))
    row = table.filter(here).slice(0, 1).to_pylist()[0]
    said = detail if detail is not None else row["detail"]
    path = of.path if len(of.path) <= _EXAMPLE_CHARACTERS // 2 else "…" + of.path[-_EXAMPLE_CHARACTERS // 2 :]
    return one_line(f"{path} row {row['row']}: {said}", _EXAMPLE_CHARACTERS)


def _refusal(faults: Sequence[_Fault], total: int, rate: str, what: str, advice: str) -> TooManyErrors:
    ordered = sorted(faults, key=lambda fault: (-fault.count, fault.reason))
    lines: list[tuple[str, ...]] = [("reason", what.split()[-1], "share", "example")]
    lines += [(f.reason, f"{f.count:,}", _percent(f.count, total), f.example) for f in ordered]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    table = "\n".join(
        f"{reason:<{widths[0]}}  {count:>{widths[1]}}  {share:>{widths[2]}}  {example}"
        for reason, count, share, example in lines
    )
    wrong = sum(fault.count for fault in faults)
    return TooManyErrors(
        f"{wrong:,} of {total:,} {what} are wrong ({_percent(wrong, total)}), at most {allowed(rate, total):,} "
        f"({_percent(Fraction(rate), 1)}) are allowed; see the table above. {advice}, or raise --max-error-rate. "
        "What is indexed and judged is kept.",
        table,
    )


def _percent(part: Any, whole: int) -> str:
    return f"{float(np.round(100 * float(part) / whole, 4)):g} %"
