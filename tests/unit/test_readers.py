"""Parquet and JSONL files: what is read, where units are cut, and what torn or odd files come to."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from s2r_ray import readers
from s2r_ray.errors import UsageError
from s2r_ray.readers import BadFileError, Batch, Unit, bad_file_errors, plan_units, pool_files, read_unit
from s2r_ray.storage import FileInfo, Place

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda data: data,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.compress,
}
ROWS = [{"q": f"question {n}", "t": ["é" * n, None], "unused": n} for n in range(300)]


def lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def put(folder: Path, name: str, data: bytes) -> Unit:
    (folder / name).write_bytes(data)
    return Unit(0, name, len(data), "1")


def put_parquet(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Unit:
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet", **options)
    return Unit(0, "x.parquet", (folder / "x.parquet").stat().st_size, "1")


def accept(found: Sequence[str], where: str) -> None:
    """A check that is content with any columns."""
    del found, where


def read(folder: Path, unit: Unit, columns: Sequence[str] = ("q", "t"), check: Any = accept) -> list[Batch]:
    return list(read_unit(Place.of(folder), unit, columns, check))


def flat(batches: Sequence[Batch], first_row: int = 0) -> list[tuple[Any, ...]]:
    """The rows of all batches, once it is known that their numbers go on without a gap."""
    rows: list[tuple[Any, ...]] = []
    for batch in batches:
        assert batch.first_row == first_row + len(rows)
        rows.extend(zip(*batch.columns.values(), strict=True))
    return rows


EXPECTED = [(row["q"], row["t"]) for row in ROWS]


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACK)
def test_jsonl(suffix: str, tmp_path: Path) -> None:
    """Catches: rows lost at the edges of batches, columns that nobody asked for, wrong row numbers."""
    batches = read(tmp_path, put(tmp_path, "x" + suffix, PACK[suffix](lines(ROWS))))
    assert flat(batches) == EXPECTED
    assert not any(batch.faults for batch in batches)
    assert [list(batch.columns) for batch in batches] == [["q", "t"]] * len(batches)


def test_parquet(tmp_path: Path) -> None:
    """Catches: the same in Parquet, with row groups smaller than a batch and batches across their edges."""
    unit = put_parquet(tmp_path, ROWS, row_group_size=70)
    assert flat(read(tmp_path, unit)) == EXPECTED


def test_several_streams_in_one_file(tmp_path: Path) -> None:
    """Catches: the rest of a file lost after its first gzip member or zstd frame; appending tools write such files."""
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        data = PACK[suffix](lines(ROWS[:100])) + PACK[suffix](lines(ROWS[100:]))
        assert flat(read(tmp_path, put(tmp_path, "x" + suffix, data))) == EXPECTED


def test_skippable_zstd_frames(tmp_path: Path) -> None:
    """Catches: files of parallel compressors, which put frames without text between the others, taken for bad."""
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    data = skippable + zstandard.compress(lines(ROWS[:7])) + skippable + zstandard.compress(lines(ROWS[7:])) + skippable
    assert flat(read(tmp_path, put(tmp_path, "x.jsonl.zst", data))) == EXPECTED


def test_a_large_zstd_frame(tmp_path: Path) -> None:
    """Catches: text lost or doubled where a frame is longer than one read, in either direction."""
    rows = [{"q": f"{n * 7919 % 100_003} " * 300, "t": "loop " * 20_000} for n in range(40)]
    batches = read(tmp_path, put(tmp_path, "x.jsonl.zst", zstandard.compress(lines(rows))))
    assert flat(batches) == [(row["q"], row["t"]) for row in rows]


@pytest.mark.parametrize("suffix", PACK)
def test_last_line_without_an_end(suffix: str, tmp_path: Path) -> None:
    """Catches: the last row lost when no newline follows it."""
    unit = put(tmp_path, "x" + suffix, PACK[suffix](lines(ROWS).rstrip(b"\n")))
    assert flat(read(tmp_path, unit)) == EXPECTED


def test_unicode_line_ends_inside_texts(tmp_path: Path) -> None:
    """Catches: lines cut at U+2028, U+0085 or a lone carriage return, which JSON strings may contain."""
    rows = [{"q": "a\u2028b\u0085c", "t": "\r\n"}, {"q": "x", "t": "y"}]
    unit = put(tmp_path, "x.jsonl", lines(rows).replace(b"}\n", b"}\r\n"))
    assert flat(read(tmp_path, unit)) == [("a\u2028b\u0085c", "\r\n"), ("x", "y")]


# --- odd rows -------------------------------------------------------------------------------------


def test_bad_lines(tmp_path: Path) -> None:
    """Catches: one bad line that loses its file, a bad line without a word, and neighbours shifted by it."""
    bad = [b"{", b"[1]", b'"text"', b"null", b"3", b"\xff\xfe", b'{"q": NaN}', b'{"q": "\\ud800"}']
    good = b'{"q": "Q", "t": "T"}'
    data = b"\n".join([good, *[line for fault in bad for line in (fault, good)]])
    (batch,) = read(tmp_path, put(tmp_path, "x.jsonl", data))
    assert sorted(batch.faults) == list(range(1, 2 * len(bad), 2))
    assert [(q, t) for q, t in flat([batch]) if q] == [("Q", "T")] * (len(bad) + 1)
    assert batch.faults[1].startswith("not JSON: ")
    assert batch.faults[3] == "expected an object, found list"
    assert batch.faults[7] == "expected an object, found NoneType"


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    """Catches: a file edited on Windows or ended with blank lines that is full of faults, and rows that are then
    numbered otherwise than the usual loaders number them."""
    (batch,) = read(
        tmp_path,
        put(tmp_path, "x.jsonl", b"\xef\xbb\xbf" + b"\n\n".join([lines([row]) for row in ROWS[:9]]) + b"\n \n"),
    )
    assert not batch.faults
    assert flat([batch]) == [(row.get("q"), row.get("t")) for row in ROWS[:9]]


def test_a_column_that_may_be_missing(tmp_path: Path) -> None:
    """Catches: an Alpaca file without `input`, in Parquet or JSONL, that is refused or cannot be read."""
    for unit in (put(tmp_path, "x.jsonl", lines([{"q": "a"}])), put_parquet(tmp_path, [{"q": "a"}])):
        (batch,) = read_unit(Place.of(tmp_path), unit, ["q", "t"], lambda *_: None)
        assert batch.columns == {"q": ["a"], "t": [None]}


def test_rows_without_a_column(tmp_path: Path) -> None:
    """Catches: an exception where only some rows lack a key; they have null there."""
    rows = [{"q": "a"}, {"t": "b"}, {}]
    assert flat(read(tmp_path, put(tmp_path, "x.jsonl", lines(rows)))) == [("a", None), (None, "b"), (None, None)]


def test_columns_are_checked_first(tmp_path: Path) -> None:
    """Catches: rows handed out of a file that does not fit its mapping, or a mapping error taken for a bad file."""

    def refuse(found: Sequence[str], where: str) -> None:
        raise UsageError(f"{where}: {','.join(found)}")

    for unit in (put(tmp_path, "x.jsonl", b"not json\n" + lines(ROWS)), put_parquet(tmp_path, ROWS)):
        with pytest.raises(UsageError, match=rf"{unit.path}: q,t,unused"):
            next(read_unit(Place.of(tmp_path), unit, ["q"], refuse))


# --- files that are not what they should be ---------------------------------------------------------


@pytest.mark.parametrize("suffix", PACK)
def test_empty_jsonl(suffix: str, tmp_path: Path) -> None:
    """Catches: an empty shard, which writers do leave, that fails the run. Without rows there is nothing to check."""

    def never(found: Sequence[str], where: str) -> None:
        raise AssertionError((found, where))

    assert read(tmp_path, put(tmp_path, "x" + suffix, PACK[suffix](b"")), check=never) == []


def test_empty_parquet(tmp_path: Path) -> None:
    """Catches: the same for a Parquet file with columns and no rows."""
    pq.write_table(pa.table({"q": pa.array([], pa.string()), "t": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert flat(read(tmp_path, Unit(0, "x.parquet", 1, "1"))) == []


def torn(name: str, tmp_path: Path) -> bytes:
    if name.endswith(".parquet"):
        put_parquet(tmp_path, ROWS)
        data = (tmp_path / "x.parquet").read_bytes()
    else:
        data = PACK[name.removeprefix("x")](lines(ROWS))
    return data


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz", "x.jsonl.zst"])
def test_torn_files(name: str, part: float, tmp_path: Path) -> None:
    """Catches: a file cut short in transfer whose missing rows nobody notices, or an error of some library's type."""
    data = torn(name, tmp_path)
    unit = put(tmp_path, name, data[: max(1, int(len(data) * part))])
    with pytest.raises(BadFileError, match=rf"cannot read .*{name}: .+"):
        read(tmp_path, unit)


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz", "x.jsonl.zst"])
@pytest.mark.parametrize("place", [0, 5, 40, 200, -30, -6])
def test_flipped_bytes(name: str, place: int, tmp_path: Path) -> None:
    """Catches: damaged compression that raises an error of some library's own type and kills the run."""
    data = bytearray(torn(name, tmp_path))
    for offset in range(4):
        data[place + offset] ^= 0xA5
    try:
        read(tmp_path, put(tmp_path, name, bytes(data)))
    except BadFileError as error:
        assert name in str(error)  # noqa: PT017  # not every flipped byte can be noticed


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz", "x.jsonl.zst"])
def test_files_of_another_kind(name: str, tmp_path: Path) -> None:
    """Catches: an error page saved under a data file's name that ends as an unexplained exception."""
    with pytest.raises(BadFileError, match="cannot read"):
        read(tmp_path, put(tmp_path, name, b"<html>404 Not Found</html>\n" * 10))
    with pytest.raises(BadFileError, match="no such file"):
        read(tmp_path, Unit(0, "gone-" + name, 1, "1"))


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    """Catches: an ambiguous column that kills the run instead of naming the file."""
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["q", "q"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(BadFileError, match=r"x\.parquet"):
        read(tmp_path, Unit(0, "x.parquet", 1, "1"), ["q"])


def not_utf8(*values: bytes) -> pa.Array:
    """A text column whose writer did not check what it wrote."""
    raw = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(values), raw.buffers()[1], raw.buffers()[2])


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_text_that_is_not_utf8(nested: bool, tmp_path: Path) -> None:
    """Catches: undecodable text in one row that loses its neighbours, or is patched up and judged as something else.
    The third value is a lone surrogate in the way of CESU-8."""
    column = not_utf8(b"ok", b"\xff\xfe", b"\xed\xa0\x80", b"fine")
    if nested:
        column = pa.ListArray.from_arrays(pa.array(range(5), pa.int32()), column)
    pq.write_table(pa.table({"q": column, "t": pa.array(["a", "b", "c", "d"])}), tmp_path / "x.parquet")
    (batch,) = read(tmp_path, Unit(0, "x.parquet", 1, "1"))
    assert batch.faults == {1: "column 'q': not valid UTF-8", 2: "column 'q': not valid UTF-8"}
    assert [q for q, _ in flat([batch])] == ([["ok"], None, None, ["fine"]] if nested else ["ok", None, None, "fine"])


def test_dates_that_python_cannot_say(tmp_path: Path) -> None:
    """Catches: a date of the year 200,000 in a column that is carried along, which ends the run."""
    column = pa.array([1, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"q": ["a", "b"], "t": column}), tmp_path / "x.parquet")
    (batch,) = read(tmp_path, Unit(0, "x.parquet", 1, "1"))
    assert list(batch.faults) == [1]
    assert batch.faults[1].startswith("column 't': ")


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]
)
def test_parquet_text_types(kind: pa.DataType, tmp_path: Path) -> None:
    """Catches: texts lost because another writer chose another text type. Bytes stay bytes: they are no text."""
    column = pa.array(["a", None, "b"])
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    pq.write_table(pa.table({"q": column}), tmp_path / "x.parquet")
    found = flat(read(tmp_path, Unit(0, "x.parquet", 1, "1"), ["q"]))
    assert found == ([(b"a",), (None,), (b"b",)] if kind == pa.binary() else [("a",), (None,), ("b",)])


# --- bombs: small files that unpack to something absurd ---------------------------------------------


def tables(name: str) -> pa.Table:
    """A table that packs to almost nothing."""
    text = "x" * 100_000
    coded = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([text]))
    return {
        "one long text, often": pa.table({"q": coded}),
        "the same in lists": pa.table({"q": pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), coded)}),
        "long texts": pa.table({"q": [text * 10 + str(n) for n in range(100)]}),
        "many nulls": pa.table({"q": pa.nulls(200_000, pa.string())}),
        "a list of many nulls": pa.table(
            {"q": pa.ListArray.from_arrays(pa.array([0, 200_000], pa.int32()), pa.nulls(200_000, pa.string()))}
        ),
    }[name]


@pytest.mark.parametrize("schema", [True, False])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one long text, often", "unpack to more than 200 times as many"),
        ("the same in lists", "unpack to more than 200 times as many"),
        ("long texts", "unpack to more than 200 times as many"),
        ("many nulls", "more than 100,000 rows"),
        ("a list of many nulls", "200,000 values; at most 150,000"),
    ],
)
def test_parquet_bombs(name: str, said: str, schema: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a file of a few kilobytes that fills the memory of a worker; limits are lowered, the ratio is real."""
    for limit, value in {"_EXPANSION_FREE_BYTES": 4 << 20, "_UNIT_ROWS": 100_000, "_GROUP_VALUES": 150_000}.items():
        monkeypatch.setattr(readers, limit, value)
    if name == "many nulls":
        monkeypatch.setattr(readers, "_GROUP_VALUES", 1 << 30)
    pq.write_table(tables(name), tmp_path / "x.parquet", compression="zstd", store_schema=schema)
    size = (tmp_path / "x.parquet").stat().st_size
    assert size < 30_000
    with pytest.raises(BadFileError, match=said):
        read(tmp_path, Unit(0, "x.parquet", size, "1"), ["q"])


def test_columns_that_are_not_read_cannot_be_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a pool refused because of a column that the mapping does not ask for."""
    monkeypatch.setattr(readers, "_EXPANSION_FREE_BYTES", 4 << 20)
    table = pa.table({"q": ["a"] * 100, "t": ["x" * 100_000 + str(n) for n in range(100)]})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    size = (tmp_path / "x.parquet").stat().st_size
    assert len(flat(read(tmp_path, Unit(0, "x.parquet", size, "1"), ["q"]))) == 100


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("text", [b"{}\n" * (8 << 20), b'{"q": "' + b"x" * (24 << 20) + b'"}\n', b"\n" * (24 << 20)])
def test_jsonl_bombs(suffix: str, text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a small compressed file that unpacks without end, in short lines, in one line or in blank ones."""
    monkeypatch.setattr(readers, "_EXPANSION_FREE_BYTES", 1 << 20)
    monkeypatch.setattr(readers, "_ROW_BYTES", 1 << 20)
    with pytest.raises(BadFileError, match="unpack to more than 200 times as many"):
        read(tmp_path, put(tmp_path, "x" + suffix, PACK[suffix](text)), ["q"])


@pytest.mark.parametrize("suffix", PACK)
def test_lines_that_are_too_long(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a file lost for one endless line, the rest of that line taken for rows, or neighbours shifted."""
    monkeypatch.setattr(readers, "_ROW_BYTES", 1000)
    long = b'{"q": "' + b"x" * 5000 + b'"}'
    data = b"\n".join([b'{"q": "a"}', long, b'{"q": "b"}', long, long])
    (batch,) = read(tmp_path, put(tmp_path, "x" + suffix, PACK[suffix](data)), ["q"])
    assert batch.columns == {"q": ["a", None, "b", None, None]}
    assert list(batch.faults) == [1, 3, 4]
    assert batch.faults[1] == "row of 1,001 bytes or more, at most 1,000 are read"


def test_rows_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the same in Parquet."""
    monkeypatch.setattr(readers, "_ROW_BYTES", 1000)
    monkeypatch.setattr(readers, "_BATCH_BYTES", 1000)
    unit = put_parquet(tmp_path, [{"q": text, "t": [text]} for text in ("a", "x" * 5000, "b")])
    batches = read(tmp_path, unit)
    assert [row for batch in batches for row in batch.columns["q"]] == ["a", None, "b"]
    assert [(batch.first_row, list(batch.faults)) for batch in batches] == [(0, []), (1, [0]), (2, [])]


def test_large_rows_come_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: 128 rows of 60 MB each held at once."""
    monkeypatch.setattr(readers, "_BATCH_BYTES", 5000)
    rows = [{"q": "x" * 1000, "t": ["y"]} for _ in range(100)]
    for unit in (put(tmp_path, "x.jsonl", lines(rows)), put_parquet(tmp_path, rows)):
        batches = read(tmp_path, unit)
        assert max(len(batch.columns["q"]) for batch in batches) <= 5
        assert len(flat(batches)) == 100


# --- units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit_bytes", [1, 3000, 10_000])
def test_units_are_the_file(unit_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: row groups left out or read twice, and row numbers that start anew in each unit."""
    monkeypatch.setattr(readers, "_UNIT_BYTES", unit_bytes)
    whole = put_parquet(tmp_path, ROWS, row_group_size=29)
    units = plan_units(Place.of(tmp_path), 3, [FileInfo(whole.path, whole.size, "1")])
    assert len(units) > 1 or whole.size <= unit_bytes
    assert {(unit.pool, unit.path, unit.size, unit.version) for unit in units} == {(3, "x.parquet", whole.size, "1")}
    rows: list[tuple[Any, ...]] = []
    for unit in units:
        assert unit.first_row == len(rows)
        rows += flat(read(tmp_path, unit), unit.first_row)
    assert rows == EXPECTED


def test_small_files_are_not_opened(tmp_path: Path) -> None:
    """Catches: a footer read for each of ten thousand small files before anything starts."""
    files = [FileInfo("gone.parquet", 1 << 20, "1"), FileInfo("large.jsonl", 1 << 40, "2")]
    assert plan_units(Place.of(tmp_path), 0, files) == [
        Unit(0, "gone.parquet", 1 << 20, "1"),
        Unit(0, "large.jsonl", 1 << 40, "2"),
    ]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all", b"\xff\xff\xff\x7fPAR1"])
def test_a_torn_large_file_is_left_to_its_task(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: one bad file that ends the planning of all of them."""
    monkeypatch.setattr(readers, "_UNIT_BYTES", 0)
    put(tmp_path, "x.parquet", data)
    files = [FileInfo("gone.parquet", 9, "1"), FileInfo("x.parquet", 9, "1")]
    units = plan_units(Place.of(tmp_path), 0, files)
    assert [unit.row_groups for unit in units] == [None, None]


def test_a_large_file_without_rows_is_still_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a file that no unit stands for, so that its columns are never checked."""
    monkeypatch.setattr(readers, "_UNIT_BYTES", 0)
    with pq.ParquetWriter(tmp_path / "x.parquet", pa.schema([("q", pa.string())])):
        pass
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 0
    assert len(plan_units(Place.of(tmp_path), 0, [FileInfo("x.parquet", 9, "1")])) == 1


def test_a_lack_of_memory_is_no_fault_of_the_file(tmp_path: Path) -> None:
    """Catches: a sound file put up with as a bad one, and a sound part of the score store set aside, which costs what
    is in it. Arrow's error is a MemoryError and one of Arrow's as well."""
    for error in (pa.ArrowMemoryError("malloc of size 64 failed"), MemoryError()):
        with pytest.raises(MemoryError), bad_file_errors(Place.of(tmp_path)):
            raise error


def test_which_files_belong_to_a_pool() -> None:
    """Catches: markers, checksums and hidden or unfinished files read as data; data passed over."""
    names = [
        *("a.parquet", "b/c.jsonl", "d.jsonl.gz", "e.jsonl.zst"),
        *("_SUCCESS", "README.md", ".a.parquet.crc", "_tmp/a.parquet", "b/.x/c.jsonl"),
        *("f.json", "g.gz", "h.parquet.part"),
    ]
    found = pool_files([FileInfo(name, 1, "1") for name in names], "pool")
    assert [file.path for file in found] == names[:4]


def test_a_pool_without_data_files() -> None:
    """Catches: a folder of something else taken for an empty pool; the message names the endings it looked for."""
    with pytest.raises(UsageError, match=r"pool: no pool file among 1 files; .*\.parquet, \.jsonl"):
        pool_files([FileInfo("notes.txt", 1, "1")], "pool")
