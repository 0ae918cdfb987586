"""The texts of samples, as signals get them, against a plain reading of the pool."""

from __future__ import annotations

import random
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2r_ray.candidates import Guards, content_key
from s2r_ray.config import PoolSection
from s2r_ray.errors import S2RError
from s2r_ray.index import PoolIndex, Snapshot, index_unit
from s2r_ray.models import find_tokenizer
from s2r_ray.pending import find_samples, work_items
from s2r_ray.pool_rows import RunPool
from s2r_ray.readers import plan_units, pool_files
from s2r_ray.storage import Place
from s2r_ray.subjects import load_samples

_PRESET = {"mapping": {"id": "id", "question": "q", "traces": "a", "verified": "ok"}}


def write_pool(folder: Path, seed: int, kind: str) -> list[tuple[str, str]]:
    """Files of rows with several traces each, some unverified, some twice; returns question and trace of the rest."""
    random.seed(seed)
    folder.mkdir(parents=True)
    good = []
    for file in range(3):
        rows = []
        for number in range(random.randint(1, 40)):
            traces = [f"trace {random.randint(0, 60)}" for _ in range(random.randint(1, 3))]
            verified = [random.random() < 0.7 for _ in traces]
            rows.append(
                {"id": f"{file}-{number}", "q": f"question {random.randint(0, 30)}?", "a": traces, "ok": verified}
            )
            good += [(rows[-1]["q"], trace) for trace, ok in zip(traces, verified, strict=True) if ok]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{file}.parquet", row_group_size=7)
        else:
            (folder / f"{file}.jsonl").write_bytes(b"\n\n".join(orjson.dumps(row) for row in rows))
    return good


def index(out: Place, folders: list[Path], tokenizer: Path) -> tuple[Snapshot, list[RunPool], list[PoolIndex]]:
    pools, units = [], []
    guards = Guards(verified=True, complete=False)
    for number, folder in enumerate(folders):
        root, files = Place.of(str(folder)).glob()
        section = PoolSection.model_validate({"uri": str(folder), **_PRESET})
        pools.append(PoolIndex(root, out, section.resolved_mapping(), guards, "all", find_tokenizer(str(tokenizer))))
        units += plan_units(root, number, pool_files(files, str(folder)))
    for unit in units:
        assert index_unit(pools[unit.pool], unit).error is None
    snapshot = Snapshot(tuple(map(str, folders)), tuple((unit, pools[unit.pool].key(unit)) for unit in units))
    lean = [RunPool(str(folder), pool.root, pool.mapping) for folder, pool in zip(folders, pools, strict=True)]
    return snapshot, lean, pools


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_each_distinct_sample_once_with_its_own_texts(tmp_path: Path, tokenizer_dir: Path, batch: int) -> None:
    """Catches: a row's neighbour, another generation or another pool's file in its place; samples lost or doubled."""
    folders = [tmp_path / "one", tmp_path / "two"]
    good = [
        pair for folder, kind in zip(folders, ("parquet", "jsonl"), strict=True) for pair in write_pool(folder, 3, kind)
    ]
    out = Place.of(tmp_path / "out")
    snapshot, pools, _ = index(out, folders, tokenizer_dir)
    samples = find_samples(out, snapshot)
    nothing = samples.keys.find(pa.array([], pa.binary(16)))
    assert len(nothing) == 0
    pending = samples.pending(samples.first < 0)
    items = work_items(snapshot, pending, batch, 1, with_files=True)
    assert len(items) == -(-len(set(good)) // batch)
    found = pa.concat_tables([load_samples(out, pools, item) for item in items])
    assert sorted(zip(found["question"].to_pylist(), found["response"].to_pylist(), strict=True)) == sorted(set(good))
    for row in found.to_pylist():
        assert row["key"] == content_key(row["question"], row["response"])


def test_a_file_that_changed_is_told(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Catches: another text scored under the key of the one that was indexed."""
    write_pool(tmp_path / "pool", 5, "parquet")
    out = Place.of(tmp_path / "out")
    snapshot, pools, _ = index(out, [tmp_path / "pool"], tokenizer_dir)
    samples = find_samples(out, snapshot)
    items = work_items(snapshot, samples.pending(samples.first < 0), 1000, 1, with_files=True)
    file = tmp_path / "pool" / "1.parquet"
    rows = pq.read_table(file)
    changed = pa.array([[trace + "!" for trace in row] for row in rows["a"].to_pylist()])
    pq.write_table(rows.set_column(rows.column_names.index("a"), "a", changed), file)
    with pytest.raises(S2RError, match=r"1\.parquet row \d+ is not what was indexed"):
        [load_samples(out, pools, item) for item in items]
    file.unlink()
    with pytest.raises(S2RError, match=r"1\.parquet"):
        [load_samples(out, pools, item) for item in items]
