"""The made-up pool: the columns of OpenR1, the ugliness of real pools, and rows that depend on their number alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2r_ray.errors import UsageError
from s2r_ray.mapping import preset, records
from s2r_ray.storage import Place
from s2r_ray.synth import SCHEMA, make_rows, write_pool
from s2r_ray.trace import reasoning, without_repeats


def pool(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


def test_a_row_depends_on_seed_and_number(tmp_path: Path) -> None:
    """Catches: a larger pool, or one in other files, that is another pool: increments could not be tried with it."""
    assert write_pool(Place.of(tmp_path / "a"), 250, seed=5, rows_per_file=100) == 3
    assert write_pool(Place.of(tmp_path / "b"), 120, seed=5, rows_per_file=7) == 18
    assert pool(tmp_path / "a").slice(0, 120).equals(pool(tmp_path / "b"))
    assert pool(tmp_path / "a").num_rows == 250
    assert not make_rows(6, range(50)).equals(make_rows(5, range(50)))
    assert make_rows(5, [40, 7]).equals(pa.concat_tables([make_rows(5, [40]), make_rows(5, [7])]))


def test_the_pool_of_a_seed_stays() -> None:
    """Catches: unseeded randomness, such as the order of a set, that differs from process to process."""
    row = make_rows(0, [0]).to_pylist()[0]
    assert row["uuid"] == "0f6739d2-713f-493a-ba25-c374cdffa600"


def test_columns_are_those_of_the_real_pool(shared: Callable[..., Path]) -> None:
    """Catches: a made-up pool that works where the real one does not."""
    real = pq.read_schema(shared("data", "openr1_pool", "part-00000.parquet"))
    assert real.names == SCHEMA.names
    for name in preset("openr1-math-220k").columns():
        assert real.field(name).type == SCHEMA.field(name).type, name


def test_it_has_what_real_pools_have() -> None:
    """Catches: a pool so clean that no guard, tie or duplicate is ever met."""
    table = make_rows(0, range(1000))
    mapping = preset("openr1-math-220k")
    found = list(records({name: table[name].to_pylist() for name in mapping.columns()}, 0, mapping))
    traces = [trace for record in found for trace in record.traces]
    assert len(traces) > 1500
    assert 0.6 < sum(trace.verified is True for trace in traces) / len(traces) < 0.9
    assert 0.05 < sum(trace.complete is False for trace in traces) / len(traces) < 0.25
    assert {trace.finish_reason for trace in traces} == {"stop", "length"}
    assert table["correctness_math_verify"].null_count > 10
    spans = [reasoning(trace.response) for trace in traces]
    looped = sum(len(without_repeats(span)) < len(span) / 2 for span in spans)
    assert 0.02 < looped / len(traces) < 0.2
    assert max(Counter(record.question for record in found).values()) > 1
    assert len({record.id for record in found}) == 1000
    assert len({len(span) for span in spans}) > 500


@pytest.mark.parametrize("rows", [0, 1])
def test_small_pools(rows: int, tmp_path: Path) -> None:
    """Catches: an empty last file, or none for a single row."""
    assert write_pool(Place.of(tmp_path), rows, seed=0) == rows
    assert len(list(tmp_path.glob("*.parquet"))) == rows


def test_two_pools_in_one_folder_are_refused(tmp_path: Path) -> None:
    """Catches: files of an earlier, larger pool that silently become part of a smaller one."""
    folder = Place.of(tmp_path)
    write_pool(folder, 30, 0, 10)
    write_pool(folder, 30, 1, 10)
    with pytest.raises(UsageError, match=r"part-00001\.parquet.* choose an empty folder"):
        write_pool(folder, 10, 1, 10)
