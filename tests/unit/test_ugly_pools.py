"""Generated ugly pools through `index_unit`: nothing raises, and every row that comes in is accounted for."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from s2r_ray.candidates import Choice, Guards, Reason
from s2r_ray.index import PoolIndex, candidates_place, index_unit, questions_place
from s2r_ray.mapping import ChatMapping, Mapping
from s2r_ray.models import ModelRef
from s2r_ray.readers import BadFileError, Unit, read_unit
from s2r_ray.storage import Place

LISTS = Mapping(
    question=("q",), traces="t", id="i", verified="v", complete="c", finish_reason="f", labels={"source": "s"}
)
MAPPINGS = [
    LISTS,
    Mapping(question=("q", "s"), traces="t", thinking="v"),
    Mapping(chat=ChatMapping(column="t"), id="i"),
]
COLUMNS = "iqtvcfs"

TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "\n", "a\x00b", "<think>", "</think>x", "<|im_end|>", "a\n\na\n\nb", "stop", "\ufeff"]),
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), TEXT)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", None]), "content": SCALAR})
VALUE = st.one_of(
    SCALAR,
    st.lists(SCALAR, max_size=4),
    st.lists(TURN, max_size=3),
    st.dictionaries(st.text(max_size=3), SCALAR, max_size=2),
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), VALUE, max_size=7)
# Has every column, so that the file is read, and makes candidates common.
FINE = st.fixed_dictionaries(
    {"i": st.integers(0, 3), "q": st.sampled_from("QR"), "t": st.just(["x y"]), "v": st.just([True])}
    | {"c": st.just(True), "f": st.none(), "s": st.just("s")}
)
LINE = st.one_of(
    ROW.map(lambda row: json.dumps(row).encode()),
    FINE.map(lambda row: json.dumps(row).encode()),
    st.binary(max_size=20),
    st.sampled_from([b"", b"{", b"null", b"[]", b'{"q": "\\ud800"}', b"\xef\xbb\xbf{}", b"\r", b'{"q":"a","q":"b"}']),
)
GUARDS = st.sampled_from([Guards(), Guards(verified=False, complete=False, finish_reasons=(), cutoff_tokens=0)])
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda data: data,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.compress,
}


def index_file(name: str, write: Callable[[Path], object], tokenizer: Path, **options: Any) -> list[dict[str, Any]]:
    """The index rows of one file; checks what must hold for any file that can be read. [] for one that cannot be."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = Place.of(Path(folder, "pool")), Place.of(Path(folder, "out"))
        Path(root.uri).mkdir()
        write(Path(root.uri, name))
        pool = PoolIndex(root=root, out=out, tokenizer=ModelRef("", Path(tokenizer), "x"), **options)
        unit = Unit(0, name, Path(root.uri, name).stat().st_size, "1")
        outcome = index_unit(pool, unit)
        if outcome.error is not None:
            assert out.files() == []
            assert name in outcome.error
            return []
        found: list[dict[str, Any]] = pq.read_table(candidates_place(out, outcome.key).uri).to_pylist()
        texts = pq.read_table(questions_place(out, outcome.key).uri).to_pylist()
    assert outcome.traces == len(found)
    asked = {row["question_key"]: row["question"] for row in texts}
    assert all(isinstance(text, str) and text.strip() for text in asked.values())
    for row in found:
        assert row["sample_id"]
        if row["reason"] is None:
            assert row["question_key"] in asked
            assert row["sample_key"] is not None
            assert min(row["trace_tokens"], row["trace_characters"], row["question_tokens"]) > 0
        else:
            assert row["reason"] in list(Reason)
            assert row["detail"]
            assert len(row["detail"]) <= 200
    assert {row["question_key"] for row in found if row["reason"] is None} == set(asked)
    return found


def rows_of(found: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Row -> its generations, ascending; each at most once."""
    result: dict[int, list[int]] = {}
    for row in sorted(found, key=lambda row: (row["row"], row["generation"])):
        result.setdefault(row["row"], []).append(row["generation"])
    assert all(len(set(generations)) == len(generations) for generations in result.values())
    return result


def generations(row: dict[str, Any], mapping: Mapping) -> list[int]:
    """Which traces a row that can be read has, counted another way."""
    if mapping.chat is not None:
        return [0]
    lists = [row.get(name) for name in (mapping.traces, mapping.thinking) if name]
    return list(range(max(len(value) if isinstance(value, list) else 1 for value in lists))) or [-1]


@settings(max_examples=150)
@given(
    lines=st.lists(LINE, max_size=12),
    mapping=st.sampled_from(MAPPINGS),
    guards=GUARDS,
    choice=st.sampled_from(["first", "longest", "all"]),
    suffix=st.sampled_from(list(PACK)),
)
def test_jsonl(
    lines: list[bytes], mapping: Mapping, guards: Guards, choice: Choice, suffix: str, tokenizer_dir: Path
) -> None:
    """Catches: an exception on a line of any content, a line without an index row, a candidate without a question."""
    data = b"\n".join(lines)
    found = index_file(
        "x" + suffix,
        lambda path: path.write_bytes(PACK[suffix](data)),
        tokenizer_dir,
        mapping=mapping,
        guards=guards,
        choice=choice,
    )
    if not found:
        return
    expected = []
    for line in (line for line in data.split(b"\n") if line.strip()):
        try:
            row = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except ValueError:
            row = None
        expected.append(generations(row, mapping) if isinstance(row, dict) else [-1])
    assert rows_of(found) == dict(enumerate(expected))


ARROW_TYPES = [
    *(pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float64(), pa.bool_(), pa.null()),
    *(pa.list_(pa.string()), pa.list_(pa.bool_()), pa.large_list(pa.string()), pa.list_(pa.list_(pa.string()))),
    *(pa.dictionary(pa.int32(), pa.string()), pa.struct([("a", pa.string())]), pa.timestamp("us"), pa.decimal128(9, 2)),
    pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
]


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values that Arrow takes for a type, nulls among them. Bytes stand for text whose UTF-8 nobody checked."""
    if pa.types.is_dictionary(kind):
        return st.one_of(st.none(), TEXT.filter(_is_utf8))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return st.one_of(st.none(), TEXT.filter(_is_utf8).map(str.encode), st.binary(max_size=4))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return st.one_of(st.none(), st.lists(values_of(kind.value_type), max_size=3))
    if pa.types.is_struct(kind):
        return st.one_of(st.none(), st.fixed_dictionaries({field.name: values_of(field.type) for field in kind}))
    plain: dict[pa.DataType, st.SearchStrategy[Any]] = {
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.float64(): st.floats(),
        pa.bool_(): st.booleans(),
        pa.timestamp("us"): st.integers(-(2**63) + 1, 2**63 - 1),
        pa.decimal128(9, 2): st.decimals(-1000, 1000, places=2),
    }
    return st.one_of(st.none(), plain.get(kind, st.none()))


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def raw(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in the place of text."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(raw(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(raw(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, raw(field.type)) for field in kind])
    return kind


def unchecked(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """An array of the type whose text is taken as it is."""
    made = pa.array(values, raw(kind))
    if made.type == kind:
        return made
    return pa.Array.from_buffers(kind, len(made), made.buffers()[: kind.num_buffers], children=children(kind, made))


def children(kind: pa.DataType, made: pa.Array) -> list[pa.Array] | None:
    """The parts of a nested array, their bytes taken for text."""
    if pa.types.is_struct(kind):
        parts = [made.field(number) for number in range(kind.num_fields)]
        return [retyped(kind.field(number).type, part) for number, part in enumerate(parts)]
    return [retyped(kind.value_type, made.values)] if pa.types.is_nested(kind) else None


def retyped(kind: pa.DataType, part: pa.Array) -> pa.Array:
    """The same buffers under another type."""
    if part.type == kind:
        return part
    return pa.Array.from_buffers(kind, len(part), part.buffers()[: kind.num_buffers], children=children(kind, part))


@st.composite
def ugly_tables(draw: st.DrawFn) -> pa.Table:
    """A table with the columns of the mappings, each of any type."""
    count = draw(st.integers(0, 6))
    columns = {}
    for name in COLUMNS:
        kind = draw(st.sampled_from(ARROW_TYPES))
        columns[name] = unchecked(kind, draw(st.lists(values_of(kind), min_size=count, max_size=count)))
    return pa.table(columns)


@settings(max_examples=150)
@given(
    table=ugly_tables(),
    mapping=st.sampled_from(MAPPINGS),
    guards=GUARDS,
    choice=st.sampled_from(["first", "longest", "all"]),
    group=st.integers(1, 4),
)
def test_parquet(
    table: pa.Table, mapping: Mapping, guards: Guards, choice: Choice, group: int, tokenizer_dir: Path
) -> None:
    """Catches: the same for columns of any type and text that is not UTF-8, in several row groups."""
    found = index_file(
        "x.parquet",
        lambda path: pq.write_table(table, path, row_group_size=group),
        tokenizer_dir,
        mapping=mapping,
        guards=guards,
        choice=choice,
    )
    assert list(rows_of(found)) == list(range(table.num_rows))
    column = table[mapping.traces or "t"]
    if pa.types.is_list(column.type) and mapping is LISTS:
        for number, count in enumerate(column.combine_chunks().value_lengths().to_pylist()):
            traces = list(range(1 if count is None else count)) or [-1]
            assert rows_of(found)[number] in ([-1], traces)


@settings(max_examples=300)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([*PACK, ".parquet"]), pack=st.booleans())
def test_arbitrary_bytes(data: bytes, suffix: str, pack: bool) -> None:
    """Catches: any exception but BadFileError out of a reader, and a line that neither is a row nor has a fault."""
    data = PACK.get(suffix, bytes)(data) if pack else data
    rows = faults = 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x" + suffix).write_bytes(data)
        try:
            for batch in read_unit(Place.of(folder), Unit(0, "x" + suffix, len(data), "1"), ["q"], lambda *_: None):
                assert batch.first_row == rows
                rows += len(batch.columns["q"])
                faults += len(batch.faults)
        except BadFileError:
            return
    if suffix == ".jsonl":
        assert rows == sum(bool(line.strip()) for line in data.split(b"\n"))


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz", "x.jsonl.zst"])
@settings(max_examples=150)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_damaged_files(name: str, flips: list[tuple[float, int]], tokenizer_dir: Path) -> None:
    """Catches: pages or blocks damaged behind a good footer that raise an error of some library's own type."""

    def write(path: Path) -> None:
        rows = [{"i": n, "q": f"Q {n}", "t": [f"trace {n} " * 9], "v": [True], "c": [True], "f": ["stop"], "s": "s"}
                for n in range(40)]  # fmt: skip
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=15, write_page_checksum=True)
        else:
            text = b"\n".join(json.dumps(row).encode() for row in rows)
            path.write_bytes(PACK[name.removeprefix("x")](text))
        data = bytearray(path.read_bytes())
        for place, flip in flips:
            data[int(place * len(data))] ^= flip
        path.write_bytes(bytes(data))

    index_file(name, write, tokenizer_dir, mapping=LISTS, guards=Guards(), choice="all")
