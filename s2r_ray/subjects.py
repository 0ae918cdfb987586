"""The texts of what is judged: questions from the index, samples from where they lie in the pools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.candidates import content_key
from s2r_ray.errors import S2RError
from s2r_ray.index import QUESTIONS_SCHEMA, candidates_place, forget_unit, questions_place
from s2r_ray.pool_rows import RunPool, fetch_rows
from s2r_ray.problems import SCHEMA as PROBLEMS
from s2r_ray.problems import problems_place
from s2r_ray.retries import take_repeated
from s2r_ray.signals.base import SubjectKind
from s2r_ray.storage import FileInfo, Place
from s2r_ray.tables import DamagedError, read_own


def load_questions(out: Place, item: dict[str, Any]) -> pa.Table:
    """The texts of one work item, and what it took: columns `key`, `question`, `repeated`. Runs in a CPU task."""
    take_repeated()
    tables = []
    for key, rows in zip(item["units"], item["rows"], strict=True):
        table = _own(out, key, questions_place(out, key), QUESTIONS_SCHEMA.names)
        tables.append(table.take(pa.array(np.frombuffer(rows, np.int32))))
    return _with_repeated(pa.concat_tables(tables).rename_columns(["key", "question"]).combine_chunks())


def load_problems(out: Place, item: dict[str, Any]) -> pa.Table:
    """The same for problems: columns `key`, `question`, `answer`, `repeated`."""
    take_repeated()
    tables = []
    for key, rows in zip(item["units"], item["rows"], strict=True):
        try:
            table = read_own(problems_place(out, key), PROBLEMS.names)
        except DamagedError as error:
            error.place.set_aside()
            raise S2RError(f"{error}; start the same command again, which makes it anew") from error
        tables.append(table.take(pa.array(np.frombuffer(rows, np.int32))))
    return _with_repeated(pa.concat_tables(tables).combine_chunks())


def loader(out: Place, pools: Sequence[RunPool], subject: SubjectKind) -> Callable[[dict[str, Any]], pa.Table]:
    """What loads the items of work of a signal of this subject. Travels to tasks."""
    by_subject: dict[SubjectKind, Callable[[dict[str, Any]], pa.Table]] = {
        "question": partial(load_questions, out),
        "sample": partial(load_samples, out, pools),
        "problem": partial(load_problems, out),
    }
    return by_subject[subject]


def load_samples(out: Place, pools: Sequence[RunPool], item: dict[str, Any]) -> pa.Table:
    """The same for samples, read from where they lie in the pools: columns `key`, `question`, `response`, `repeated`.

    Args:
        pools: their files are taken from the item.

    Raises:
        S2RError: a file of the pool cannot be read, or is not what was indexed.
    """
    take_repeated()
    files = [(pool, FileInfo(*file)) for pool, *file in json.loads(item["files"])]
    of_item = [
        replace(pool, then=mine, now=mine)
        for number, pool in enumerate(pools)
        for mine in [{file.path: file for of, file in files if of == number}]
    ]
    parts = []
    for key, (pool, file), rows in zip(item["units"], files, item["rows"], strict=True):
        part = _candidates(out, str(key)).take(pa.array(np.frombuffer(rows, np.int32)))
        columns = {name: part[name] for name in ("sample_key", "row", "generation")}
        names = {"pool": pools[pool].name, "file": file.path}
        parts.append(pa.table(columns | {name: [text] * part.num_rows for name, text in names.items()}))
    wanted = pa.concat_tables(parts)
    fetched = list(fetch_rows(of_item, wanted))
    found = pa.concat_tables([part.samples for part in fetched])
    found = found.take(pa.array(np.argsort(np.concatenate([part.at for part in fetched]))))
    for row, key in enumerate(wanted["sample_key"].to_pylist()):
        question, response = found["question"][row].as_py(), found["response"][row].as_py()
        if question is None or response is None or content_key(question, response) != key:
            raise S2RError(f"{_where(wanted, row)} is not what was indexed: the file has changed; start again")
    columns = {"key": wanted["sample_key"], "question": found["question"], "response": found["response"]}
    return _with_repeated(pa.table(columns).combine_chunks())


def _where(rows: pa.Table, row: int) -> str:
    found = rows.slice(row, 1).to_pylist()[0]
    return f"{found['pool']}: {found['file']} row {found['row']}"


def _with_repeated(table: pa.Table) -> pa.Table:
    repeated = np.zeros(table.num_rows, np.int64)
    repeated[:1] = take_repeated()
    return table.append_column("repeated", pa.array(repeated))


def _candidates(out: Place, key: str) -> pa.Table:
    """Where the candidates of a unit lie, and their keys."""
    table = _own(out, key, candidates_place(out, key), ["sample_key", "row", "generation", "reason"])
    return table.filter(pc.is_null(table["reason"]))


def _own(out: Place, key: str, place: Place, columns: Sequence[str]) -> pa.Table:
    """Columns of a file of the index."""
    try:
        return read_own(place, columns)
    except DamagedError as error:
        forget_unit(out, key)
        raise S2RError(f"{error}; start the same command again, which reads that part of the pool anew") from error
