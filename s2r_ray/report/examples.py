"""Single rows for people to look at: the first, the last and the just-missed of each budget, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.errors import S2RError
from s2r_ray.index import Snapshot, questions_place
from s2r_ray.pool_rows import fetch_rows, run_pools
from s2r_ray.printable import one_line
from s2r_ray.report.membership import LOCATION
from s2r_ray.report.stored import StoredRun
from s2r_ray.tables import open_parquet, read_own, use_threads
from s2r_ray.trace import reasoning

_TOP = 3
_AROUND = 2
_QUESTION_CHARACTERS = 700
_LINES = 3
_LINE_CHARACTERS = 200
_EXAMPLES = 3


@dataclass(frozen=True)
class Sample:
    """A ranked row. `position` is None beyond the largest budget; `numbers` are its columns of the ranking.

    `question` is cut, `first` and `last` are lines of the trace with `between` lines left out; all three are None where
    they could not be had. Texts have what is not printable as escapes, line by line; they are no markup.
    """

    position: int | None
    numbers: dict[str, Any]
    question: str | None = None
    first: str | None = None
    last: str | None = None
    between: int = 0


@dataclass(frozen=True)
class Examples:
    """Rows by heading, in order; `excluded`: reason -> a few rows of excluded.parquet; `without_traces`: why there are
    none, if so."""

    samples: dict[str, list[Sample]]
    addressing: list[Sample]
    excluded: dict[str, list[dict[str, Any]]]
    without_traces: str | None = None


def find_examples(
    run: StoredRun, snapshot: Snapshot | None, missed: pa.Table | None, addressing: pa.Table | None
) -> Examples:
    """Read the rows to show, their questions and traces.

    Args:
        missed: the best rows that no budget selects; addressing: those whose question speaks to the judge.
    """
    groups = _groups(run, missed)
    rows = [row for group in groups.values() for row in group]
    texts, why = _texts(run, snapshot, rows)
    spoken = addressing.to_pylist() if addressing is not None else []
    lacking = [row for row in rows if _place(row) not in texts]
    questions = _questions(run, snapshot, [*spoken, *lacking]) if snapshot is not None else {}

    def sample(row: dict[str, Any]) -> Sample:
        numbers = {name: value for name, value in row.items() if name != "position"}
        question, response = texts.get(_place(row), (questions.get(row["question_key"]), None))
        shown = _shown_question(question) if question is not None else None
        return Sample(row.get("position"), numbers, shown, *(_ends(response) if response is not None else ()))

    found = {heading: [sample(row) for row in group] for heading, group in groups.items()}
    return Examples(found, [sample(row) for row in spoken], _left_out(run), why)


# --- which rows -----------------------------------------------------------------------------------


def _groups(run: StoredRun, missed: pa.Table | None) -> dict[str, list[dict[str, Any]]]:
    """Heading -> rows of the largest manifest, and those that it missed."""
    largest = run.budgets[-1][1]
    wanted = {"The first of the ranking": range(1, min(_TOP, largest) + 1)}
    for budget, size in run.budgets:
        wanted[f"The last in the top {budget} %"] = range(max(1, size - _AROUND + 1), size + 1)
        wanted[f"Just missed the top {budget} %"] = range(size + 1, min(size + _AROUND, largest) + 1)
    rows = _at_positions(run, {position for positions in wanted.values() for position in positions})
    found = {heading: [rows[position] for position in positions] for heading, positions in wanted.items()}
    if missed is not None:
        last = found[f"Just missed the top {run.budgets[-1][0]} %"]
        last += missed.slice(0, _AROUND).to_pylist()
    return {heading: group for heading, group in found.items() if group}


def _at_positions(run: StoredRun, positions: set[int]) -> dict[int, dict[str, Any]]:
    wanted = pa.array(sorted(positions), pa.int64())
    found = {}
    for table in run.selected():
        for row in table.filter(pc.is_in(table["position"], value_set=wanted)).to_pylist():
            found[row["position"]] = row
    return found


def _left_out(run: StoredRun) -> dict[str, list[dict[str, Any]]]:
    """Reason -> its first rows in excluded.parquet."""
    found: dict[str, list[dict[str, Any]]] = {reason: [] for reason in run.record.excluded}
    columns = ["sample_id", "file", "row", "generation", "reason", "detail"]
    place = run.place.child("excluded.parquet")
    with open_parquet(place) as file:
        for batch in file.iter_batches(columns=columns, use_threads=use_threads(place, file)):
            lacking = [reason for reason, rows in found.items() if len(rows) < _EXAMPLES]
            if not lacking:
                break
            rows = pa.Table.from_batches([batch])
            for reason in lacking:
                some = rows.filter(pc.equal(rows["reason"], reason)).slice(0, _EXAMPLES - len(found[reason]))
                found[reason] += [{**row, "detail": one_line(row["detail"] or "")} for row in some.to_pylist()]
    return found


# --- their texts ----------------------------------------------------------------------------------


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in LOCATION)


def _texts(
    run: StoredRun, snapshot: Snapshot | None, rows: Sequence[dict[str, Any]]
) -> tuple[dict[tuple[Any, ...], tuple[str | None, str | None]], str | None]:
    """(place -> question and response, both from the pool; why they could not be read)."""
    if snapshot is None:
        return {}, "the index of this run is gone, so it is not known where its pool lies"
    names = [name for name in LOCATION if name in rows[0]]
    unique = {_place(row): row for row in rows}
    places = list(unique)
    table = pa.table({name: [row[name] for row in unique.values()] for name in names})
    found: dict[tuple[Any, ...], tuple[str | None, str | None]] = {}
    try:
        pools = run_pools(snapshot, run.record.config, run.out.options)
        for fetched in fetch_rows(pools, table):
            texts = fetched.samples.select(["question", "response"]).to_pylist()
            for at, row in zip(fetched.at.tolist(), texts, strict=True):
                found[places[at]] = row["question"], row["response"]
    except S2RError as error:
        return {}, str(error)
    return found, None


def _questions(run: StoredRun, snapshot: Snapshot, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Question key -> question, from the index; without those that it does not have any more."""
    by_file: dict[str, set[str]] = {}
    for row in rows:
        by_file.setdefault(row["file"], set()).add(row["question_key"])
    found: dict[str, str] = {}
    for unit, key in snapshot.units:
        wanted = by_file.get(unit.path, set()) - found.keys()
        place = questions_place(run.out, key)
        if wanted and place.exists():
            table = read_own(place)
            keys = pa.array([bytes.fromhex(question) for question in sorted(wanted)], pa.binary(16))
            for row in table.filter(pc.is_in(table["question_key"], value_set=keys)).to_pylist():
                found[row["question_key"].hex()] = row["question"]
    return found


def _shown_question(text: str) -> str:
    lines = [one_line(line, _QUESTION_CHARACTERS) for line in text[:_QUESTION_CHARACTERS].splitlines()]
    return "\n".join(lines) + (" …" if len(text) > _QUESTION_CHARACTERS else "")


def _ends(response: str) -> tuple[str, str | None, int]:
    """The first lines of the trace, the last ones, and how many lines lie between; blank lines do not count."""
    lines = [line for line in reasoning(response).splitlines() if line.strip()]
    first, last = lines[:_LINES], lines[_LINES:][-_LINES:]
    shown = ["\n".join(one_line(line.strip(), _LINE_CHARACTERS) for line in some) for some in (first, last)]
    return shown[0], shown[1] or None, len(lines) - len(first) - len(last)
