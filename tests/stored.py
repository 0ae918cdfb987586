"""The score store read by the book: all rows sorted, the first of each key taken. What `look_up` is held against."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.keys import KeySet, sort_keys
from s2r_ray.signals.base import Status
from s2r_ray.store import ScoreStore
from s2r_ray.tables import read_own


def stored(store: ScoreStore) -> pa.Table:
    """Every key once, sorted by key: an ok row before a fault, then the least in each further column."""
    table = pa.concat_tables([store.schema().empty_table(), *(read_own(store.place.child(n)) for n in store.parts())])
    table = table.append_column("faulty", pc.not_equal(table["status"], str(Status.OK)))
    columns = ["key", "faulty", "value", *store.extras, "status", "detail"]
    table = table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in columns]))
    keys = table["key"].to_pylist()
    first = [place for place, key in enumerate(keys) if not place or keys[place - 1] != key]
    return table.drop_columns("faulty").take(pa.array(first, pa.int64()))


def key_set(*keys: bytes) -> KeySet:
    """These keys."""
    return sort_keys([pa.array(list(keys), pa.binary(16))]).distinct
