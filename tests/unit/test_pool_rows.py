"""Rows by file and number: the same as reading everything, and only from files as the run saw them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray import pool_rows
from s2r_ray.errors import S2RError, StoreError, UsageError
from s2r_ray.index import Snapshot
from s2r_ray.mapping import Mapping
from s2r_ray.pool_rows import RunPool, fetch_rows, run_pools
from s2r_ray.readers import Unit
from s2r_ray.storage import Place, StorageOptions
from s2r_ray.synth import make_rows
from tests.faults.proxy import Fault, Proxy
from tests.object_store import s3_server

MAPPING = {"question": "q", "traces": "traces", "answer": "answer"}


def content(name: str, rows: int) -> list[dict[str, Any]]:
    """Rows of up to three generations, each text naming its file, row and generation."""
    return [
        {
            "q": f"question {name} {row}",
            "traces": [f"<think>\n{name} {row} {generation}\n</think>\n\nso" for generation in range(1 + row % 3)],
            "answer": row if row % 2 else None,
            "more": {"row": row},
        }
        for row in range(rows)
    ]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """In the form that the name says; Parquet in row labels of seven; JSONL with blank lines between the rows."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        return
    text = "\n\n".join(map(json.dumps, rows)).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(pack.get(path.suffix, bytes)(text))


def opened(*roots: Place, mapping: dict[str, Any] | None = None) -> tuple[RunPool, ...]:
    """The pools as a run that was made just now would know them."""
    units = []
    for number, root in enumerate(roots):
        units += [(Unit(number, file.path, file.size, file.version), "key") for file in root.glob()[1]]
    sections = [{"uri": root.uri, "mapping": mapping or MAPPING} for root in roots]
    snapshot = Snapshot(tuple(root.uri for root in roots), tuple(units))
    return run_pools(snapshot, {"pools": sections}, roots[0].options)


def asked(rows: list[tuple[str, str, int, int]]) -> pa.Table:
    """A table of (pool, file, row, generation)."""
    names = ["pool", "file", "row", "generation"]
    types = [pa.string(), pa.string(), pa.int64(), pa.int32()]
    columns = zip(*rows, strict=True) if rows else [[], [], [], []]
    return pa.table([pa.array(list(column), kind) for column, kind in zip(columns, types, strict=True)], names)


def fetched(pools: tuple[RunPool, ...], rows: pa.Table, **options: Any) -> dict[int, dict[str, Any]]:
    """Which of the rows asked for -> its texts, and its original columns if there are any."""
    found: dict[int, dict[str, Any]] = {}
    for some in fetch_rows(pools, rows, **options):
        whole = some.originals.to_pylist() if some.originals is not None else [{}] * len(some.at)
        for at, sample, original in zip(some.at.tolist(), some.samples.to_pylist(), whole, strict=True):
            assert at not in found
            found[at] = {**sample, "original": original}
    return found


FILES = {"a/x.parquet": 20, "b.parquet": 3, "c.jsonl": 9, "d.jsonl.gz": 9, "e.jsonl.zst": 9}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPool, ...]:
    """Two pools of files of each kind; the second has other rows under the same names."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for folder in folders:
        for name, rows in FILES.items():
            write(folder, name, content(f"{folder}/{name}", rows))
    return opened(*(Place.of(folder) for folder in folders))


places = st.sampled_from(sorted(FILES)).flatmap(
    lambda name: st.tuples(st.integers(0, 1), st.just(name), st.integers(0, FILES[name] - 1), st.integers(0, 2))
)


@given(rows=st.lists(places, max_size=60), originals=st.booleans())
def test_rows_are_those_of_a_plain_reading(
    pools: tuple[RunPool, ...], rows: list[tuple[int, str, int, int]], originals: bool
) -> None:
    """Would catch a row that is one off at the edge of a row group or a batch, a wrong generation, files of two pools
    mixed up, rows that are lost or come twice, and blank lines that are counted."""
    table = asked([(pools[pool].name, *rest) for pool, *rest in rows])
    found = fetched(pools, table, originals=originals)
    assert sorted(found) == list(range(len(rows)))
    for at, (pool, name, row, generation) in enumerate(rows):
        expected = content(f"{pools[pool].name}/{name}", row + 1)[row]
        traces = expected["traces"]
        assert found[at]["question"] == expected["q"]
        assert found[at]["response"] == (traces[generation] if generation < len(traces) else None)
        assert found[at]["answer"] == (None if expected["answer"] is None else str(expected["answer"]))
        assert found[at]["original"] == (expected if originals else {})


def test_a_row_of_many_chosen_generations_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a row that is unpacked with all its traces once for each of them that was chosen."""
    rows = [{"q": f"q {row}", "traces": [f"{row} {at}" for at in range(50)], "answer": None} for row in range(3)]
    write(tmp_path, "a.parquet", rows)
    pools = opened(Place.of(tmp_path))
    seen = []
    plain = pool_rows.python_values

    def counted(batch: pa.RecordBatch, **options: Any) -> Any:
        seen.append(batch.num_rows)
        return plain(batch, **options)

    monkeypatch.setattr(pool_rows, "python_values", counted)
    wanted = [(str(tmp_path), "a.parquet", row, at) for row in (2, 0) for at in range(49, -1, -1)]
    found = fetched(pools, asked(wanted), originals=True)
    assert [found[at]["response"] for at in range(100)] == [f"{row} {at}" for _, _, row, at in wanted]
    assert [found[at]["original"] for at in range(100)] == [rows[row] for _, _, row, _ in wanted]
    assert max(seen) == 2


def test_reasoning_of_its_own_column_and_chats(tmp_path: Path) -> None:
    """Would catch texts that are put together otherwise than those that were ranked."""
    write(tmp_path / "kept", "a.jsonl", [{"input": "q", "think": "hm", "content": "so"}])
    write(tmp_path / "chat", "a.parquet", [{"turns": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}])
    row = asked([("", "a", 0, 0)]).drop_columns(["pool"])
    kept = opened(Place.of(tmp_path / "kept"), mapping={"question": "input", "thinking": "think", "traces": "content"})
    chat = {"chat": {"column": "turns", "role": "from", "content": "value"}}
    chats = opened(Place.of(tmp_path / "chat"), mapping=chat)
    rows = [row.set_column(0, "file", pa.array([name])) for name in ("a.jsonl", "a.parquet")]
    assert fetched(kept, rows[0])[0]["response"] == "<think>\nhm\n</think>\n\nso"
    assert fetched(chats, rows[1])[0] == {"question": "q", "response": "r", "answer": None, "original": {}}


def test_texts_that_are_none_are_null(tmp_path: Path) -> None:
    """Excluded rows may be fetched too: a row that is not JSON, or has a number for a question, must not end it."""
    (tmp_path / "a.jsonl").write_text('{"q": 3, "traces": ["r"]}\nno json\n{"q": "q", "traces": [null]}\n')
    pools = opened(Place.of(tmp_path))
    found = fetched(pools, asked([(pools[0].name, "a.jsonl", row, 0) for row in range(3)]))
    assert [(found[row]["question"], found[row]["response"]) for row in range(3)] == [
        (None, "r"),
        (None, None),
        ("q", None),
    ]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_what_changed_since_the_run_is_told_before_anything_is_read(tmp_path: Path, name: str) -> None:
    """Would catch rows of a new version given out as those that were ranked, a traceback for a file that is gone."""
    write(tmp_path, name, content("a", 5))
    write(tmp_path, "other.parquet", content("b", 5))
    pools = opened(Place.of(tmp_path))
    then = Snapshot((pools[0].name,), tuple((Unit(0, f.path, f.size, f.version), "") for f in pools[0].then.values()))
    config = {"pools": [{"uri": pools[0].name, "mapping": MAPPING}]}
    rows = asked([(pools[0].name, "other.parquet", 0, 0), (pools[0].name, name, 0, 0)])
    write(tmp_path, name, content("a", 6))
    with pytest.raises(S2RError, match=rf"{name} has changed since the run read it .*bytes then.*`s2r run` again"):
        next(fetch_rows(run_pools(then, config), rows))
    (tmp_path / name).unlink()
    with pytest.raises(S2RError, match=rf"{name} is gone since the run read it\. "):
        next(fetch_rows(run_pools(then, config), rows))
    assert len(fetched(run_pools(then, config), rows.slice(0, 1))) == 1, "other files are as good as before"


def test_rows_of_another_run_are_refused(tmp_path: Path) -> None:
    """Would catch rows that silently do not come, or an IndexError."""
    write(tmp_path, "a.parquet", content("a", 5))
    write(tmp_path, "a.jsonl", content("a", 5))
    pools = opened(Place.of(tmp_path))
    name = pools[0].name
    for file in ("a.parquet", "a.jsonl"):
        with pytest.raises(S2RError, match=r"cannot read .*it has 5 rows; row 5, counted from 0, was asked for"):
            fetched(pools, asked([(name, file, 5, 0)]))
    with pytest.raises(S2RError, match=r"the run read no file b\.parquet"):
        fetched(pools, asked([(name, "b.parquet", 0, 0)]))
    with pytest.raises(S2RError, match="s3://x is no pool of this run"):
        fetched(pools, asked([("s3://x", "a.parquet", 0, 0)]))
    with pytest.raises(UsageError, match="another version"):
        run_pools(Snapshot((name,), ()), {"pools": [{"uri": name, "mapping": {"colour": "red"}}]})


def test_columns_of_one_name_are_told(tmp_path: Path) -> None:
    """Would catch Arrow's traceback, or the wrong one of two columns in an export."""
    table = pa.table([pa.array(["q"]), pa.array([["r"]]), pa.array([1]), pa.array([2])], ["q", "traces", "n", "n"])
    pq.write_table(table, tmp_path / "a.parquet")
    pools = opened(Place.of(tmp_path))
    rows = asked([(pools[0].name, "a.parquet", 0, 0)])
    assert fetched(pools, rows)[0]["response"] == "r"
    with pytest.raises(S2RError, match="more than one column is called 'n'"):
        fetched(pools, rows, originals=True)


# --- from an object store -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """An S3 server behind a proxy that counts bytes, with a pool of 8 files of 4 row labels and one JSONL file."""
    with s3_server() as upstream, Proxy(upstream) as proxy:
        place(proxy).filesystem().call_s3("create_bucket", Bucket="rows")
        for number in range(8):
            table = make_rows(number, range(80))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, row_group_size=20, compression="none")
            place(proxy).child(f"{number}.parquet").write_bytes(sink.getvalue().to_pybytes())
        yield proxy


def place(proxy: Proxy) -> Place:
    return Place.of("s3://rows/pool", StorageOptions(proxy.endpoint, "us-east-1", "anyone", "anything"))


@pytest.mark.s3
def test_only_needed_columns_of_needed_row_labels_are_asked_for(proxy: Proxy) -> None:
    """Would catch reading ahead, whole files, or columns that nobody wants: on S3 each costs time and money."""
    pools = opened(place(proxy), mapping={"question": "problem", "traces": "generations"})
    rows = asked([(pools[0].name, f"{number}.parquet", row, 0) for number in (2, 5) for row in (25, 31)])
    with place(proxy).child("2.parquet").open_arrow() as source:
        group = pq.ParquetFile(source).metadata.row_group(1)
    needed = sum(
        group.column(number).total_compressed_size
        for number in range(group.num_columns)
        if group.column(number).path_in_schema.split(".")[0] in ("problem", "generations")
    )
    proxy.sent.clear()
    found = fetched(pools, rows)
    expected = make_rows(5, [25]).to_pylist()[0]
    assert (found[2]["question"], found[2]["response"]) == (expected["problem"], expected["generations"][0])
    read = {path.rsplit("/", 1)[-1]: sent for path, sent in proxy.sent.items() if path.startswith("GET")}
    assert set(read) == {"2.parquet", "5.parquet"}
    footer = 65536
    assert needed < read["2.parquet"] < needed + 1.5 * footer, read


@pytest.mark.s3
def test_requests_that_fail_are_repeated_and_a_dead_store_is_told(proxy: Proxy) -> None:
    """Would catch bytes of a broken answer taken for the rows, and a traceback of the network library."""
    pools = opened(place(proxy), mapping={"question": "problem", "traces": "generations"})
    rows = asked([(pools[0].name, f"{number}.parquet", 3, 0) for number in range(8)])
    undisturbed = fetched(pools, rows)
    proxy.faults = [Fault("truncate", "GET", "parquet", times=2), Fault("slow_down", "GET", "parquet", times=2)]
    proxy.done.clear()
    assert fetched(pools, rows) == undisturbed
    assert proxy.done["truncate"] == proxy.done["slow_down"] == 2
    impatient = StorageOptions(proxy.endpoint, "us-east-1", "anyone", "anything", tries=1)
    hasty = tuple(
        RunPool(pool.name, Place(pool.root.uri, impatient), pool.mapping, pool.then, pool.now) for pool in pools
    )
    proxy.faults = [Fault("down")]
    with pytest.raises(StoreError, match=r"cannot read s3://rows/pool/0\.parquet"):
        fetched(hasty, rows)
    proxy.faults = []


def test_texts_only_reads_no_flags() -> None:
    """Would catch flags and labels being read from the store for nothing."""
    mapping = Mapping.model_validate({**MAPPING, "id": "i", "verified": "v", "labels": {"source": "s"}})
    assert mapping.texts_only().columns() == ("q", "traces")
    assert mapping.texts_only().answer == "answer"
    assert "answer" not in mapping.columns()
