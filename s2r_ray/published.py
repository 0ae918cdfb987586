"""Index rows as a run publishes them: where they lie, their numbers, or why they were left out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.candidate_table import CandidateTable
from s2r_ray.candidates import Reason
from s2r_ray.index import Snapshot, label_column
from s2r_ray.keys import hexadecimal

RANKED = ("sample_id", "row", "generation", "question_key", "trace_tokens", "trace_tokens_unique")
"""Columns of the index that a ranked row is made of."""
LEFT_OUT = ("sample_id", "row", "generation", "question_key", "reason", "detail")
"""Those of a row that is not ranked."""


def ranked_rows(
    index: pa.Table,
    units: npt.NDArray[np.int32],
    snapshot: Snapshot,
    numbers: Mapping[str, npt.NDArray[np.float64]],
    stratum: str | None,
) -> pa.Table:
    """Ranked rows. `index`: their columns RANKED, [n]; `units`: the unit of each, [n]; `numbers`: scores and ranks;
    `stratum`: the label, another column of `index`, inside of whose groups ranks are."""
    columns = _location(index, units, snapshot)
    if stratum is not None:
        columns["stratum"] = index[label_column(stratum)]
    columns |= {name: pa.array(column) for name, column in numbers.items() if not name.startswith("rank_")}
    columns |= {name: index[name] for name in ("trace_tokens", "trace_tokens_unique")}
    columns |= {name: pa.array(column) for name, column in numbers.items() if name.startswith("rank_")}
    return pa.table(columns)


def left_out_rows(index: pa.Table, unit: int, snapshot: Snapshot, candidates: CandidateTable, first: int) -> pa.Table:
    """A unit's rows, or some of them, that are not ranked, each with its reason.

    `index`: their columns LEFT_OUT; `first`: the position among all candidates of the first candidate in there.
    """
    ranked = index["reason"].is_null().to_numpy()
    candidate = np.flatnonzero(ranked)
    faults = candidates.reasons(first, first + len(candidate))
    which = np.full(index.num_rows, -1, np.int64)
    which[candidate[faults["at"].to_numpy() - first]] = np.arange(faults.num_rows)
    rows = np.flatnonzero(~ranked | (which >= 0))
    index, which = index.take(pa.array(rows)), which[rows]
    at = pa.array(which, mask=which < 0)
    reason = index["reason"].cast(pa.string())
    detail = pc.if_else(pc.is_valid(reason), index["detail"], faults["detail"].take(at))
    reason = pc.coalesce(reason, faults["reason"].take(at))
    units = np.full(index.num_rows, unit, np.int32)
    return pa.table({**_location(index, units, snapshot), "reason": reason, "detail": detail})


def unreadable_files(snapshot: Snapshot) -> pa.Table:
    """One row for each file that could not be read; its rows are unknown."""
    pools, paths, errors = zip(*snapshot.unreadable, strict=True) if snapshot.unreadable else ((), (), ())
    count = len(paths)
    columns = {
        "sample_id": pa.array([f"file:{path}" for path in paths], pa.string()),
        "file": pa.array(paths, pa.string()),
        "row": pa.array([-1] * count, pa.int64()),
        "generation": pa.array([-1] * count, pa.int32()),
    }
    if len(snapshot.pools) > 1:
        columns["pool"] = pa.array([snapshot.pools[pool] for pool in pools], pa.string())
    columns["question_key"] = pa.nulls(count, pa.string())
    columns["reason"] = pa.array([str(Reason.UNREADABLE_FILE)] * count, pa.string())
    columns["detail"] = pa.array(errors, pa.string())
    return pa.table(columns)


def _location(index: pa.Table, units: npt.NDArray[np.int32], snapshot: Snapshot) -> dict[str, pa.Array]:
    """The columns that say which row this is and where it lies; the question key is shown in hexadecimal."""
    at = pa.array(units)
    files = pa.array([unit.path for unit, _ in snapshot.units], pa.string())
    columns = {"sample_id": index["sample_id"], "file": files.take(at)}
    columns |= {"row": index["row"], "generation": index["generation"]}
    if len(snapshot.pools) > 1:
        columns["pool"] = pa.array([snapshot.pools[unit.pool] for unit, _ in snapshot.units], pa.string()).take(at)
    return columns | {"question_key": hexadecimal(index["question_key"])}
