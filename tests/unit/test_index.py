"""One unit of the pool index: its rows and questions, its name, and files that cannot be read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2r_ray import readers
from s2r_ray.candidate_table import read_units, take_rows
from s2r_ray.candidates import Guards, content_key
from s2r_ray.index import (
    QUESTIONS_SCHEMA,
    PoolIndex,
    Snapshot,
    UnitOutcome,
    candidates_place,
    damaged_units,
    forget_unit,
    index_unit,
    indexed_keys,
    questions_place,
    unit_keys,
)
from s2r_ray.mapping import preset
from s2r_ray.models import ModelRef
from s2r_ray.readers import Unit, plan_units, pool_files
from s2r_ray.storage import Place
from s2r_ray.synth import make_rows, write_pool
from s2r_ray.tokens import spell_out


@pytest.fixture
def pool(tmp_path: Path, tokenizer_dir: Path) -> PoolIndex:
    """A pool in tmp_path/pool in LIMO's columns, indexed into tmp_path/out."""
    (tmp_path / "pool").mkdir()
    root, out = Place.of(tmp_path / "pool"), Place.of(tmp_path / "out")
    tokenizer = ModelRef(str(tokenizer_dir), tokenizer_dir, "sha256:x")
    return PoolIndex(root, out, preset("limo"), Guards(), "first", tokenizer)


def put(pool: PoolIndex, name: str, data: bytes) -> Unit:
    pool.root.child(name).write_bytes(data)
    (unit,) = [unit for unit in units_of(pool) if unit.path == name]
    return unit


def units_of(pool: PoolIndex) -> list[Unit]:
    return plan_units(pool.root, 0, pool_files(pool.root.files(), "pool"))


def index(pool: PoolIndex, unit: Unit) -> UnitOutcome:
    outcome = index_unit(pool, unit)
    assert outcome.error is None, outcome.error
    return outcome


def rows(pool: PoolIndex, unit: Unit) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(candidates_place(pool.out, pool.key(unit)).uri).to_pylist()
    return found


def questions(pool: PoolIndex, unit: Unit) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(questions_place(pool.out, pool.key(unit)).uri).to_pylist()
    return found


def line(question: Any, solution: Any) -> bytes:
    return json.dumps({"question": question, "solution": solution}).encode() + b"\n"


# --- what a unit leaves ---------------------------------------------------------------------------


def test_rows_and_questions(pool: PoolIndex) -> None:
    """Catches: a question judged that no candidate asks, one that is missing, bad lines without a row."""
    data = line("Q1", "a") + line("Q2", "") + b"bad\n" + line("Q1", "b") + line(7, "c") + line("Q3", "d")
    data += line("too long a trace", "a b " * 9000)
    unit = put(pool, "a.jsonl", data)
    outcome = index(pool, unit)
    assert (outcome.key, outcome.path, outcome.traces) == (pool.key(unit), "a.jsonl", 7)
    assert outcome.counted_by in ("gigatoken", "tokenizers")
    found = sorted(rows(pool, unit), key=lambda row: row["row"])
    assert [(row["row"], row["reason"]) for row in found] == [
        (0, None),
        (1, "empty"),
        (2, "unreadable_row"),
        (3, None),
        (4, "not_a_string"),
        (5, None),
        (6, "over_cutoff"),
    ]
    assert found[6]["question_key"] == content_key("too long a trace")
    assert found[2]["sample_id"] == "row-2#0"
    assert found[2]["detail"].startswith("not JSON")
    assert questions(pool, unit) == [
        {"question_key": content_key("Q1"), "question": "Q1"},
        {"question_key": content_key("Q3"), "question": "Q3"},
    ]


def test_a_tokenizer_that_travels(pool: PoolIndex, tokenizer_dir: Path) -> None:
    """Catches: other rows, or another key, where the tokenizer came with the work and not from its folder."""
    unit = put(pool, "a.jsonl", line("Q1", "a b <think>c</think>") + line("Q2", "1234567890 ’s"))
    index(pool, unit)
    before = rows(pool, unit)
    gone = replace(pool.tokenizer, folder=Path("gone"))
    travels = replace(pool, tokenizer=gone, spelled_out=spell_out(str(tokenizer_dir)))
    assert travels.key(unit) == pool.key(unit)
    forget_unit(pool.out, pool.key(unit))
    index(travels, unit)
    assert rows(travels, unit) == before
    assert before[0]["trace_tokens"] > 0


def test_schemas(pool: PoolIndex) -> None:
    """Catches: a unit without rows, or without any value in a column, whose file has other types than the others."""
    for name, data in {"empty.jsonl": b"", "bad.jsonl": b"x\n", "good.jsonl": line("Q", "a")}.items():
        unit = put(pool, name, data)
        index(pool, unit)
        key = pool.key(unit)
        assert pq.read_schema(candidates_place(pool.out, key).uri).equals(pool.schema)
        assert pq.read_schema(questions_place(pool.out, key).uri).equals(QUESTIONS_SCHEMA)


def test_every_row_of_a_long_bad_file(pool: PoolIndex) -> None:
    """Catches: faults counted from the start of a batch instead of the file."""
    data = b"".join(b"bad\n" if number % 3 == 0 else line(f"Q{number}", "a") for number in range(1000))
    unit = put(pool, "a.jsonl", data)
    assert index(pool, unit).traces == 1000
    found = {row["row"]: row for row in rows(pool, unit)}
    assert sorted(found) == list(range(1000))
    assert {number for number, row in found.items() if row["reason"]} == set(range(0, 1000, 3))
    assert all(found[number]["question_key"] == content_key(f"Q{number}") for number in range(1000) if number % 3)


@pytest.mark.parametrize("unit_bytes", [1, 20_000])
def test_units_of_a_file_are_the_file(pool: PoolIndex, unit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an index that depends on how a large file was cut."""
    pool = replace(pool, mapping=preset("openr1-math-220k"), choice="all")
    pq.write_table(make_rows(3, range(200)), pool.root.child("a.parquet").uri, row_group_size=17)
    (whole,) = units_of(pool)
    index(pool, whole)
    monkeypatch.setattr(readers, "_UNIT_BYTES", unit_bytes)
    units = units_of(pool)
    assert len(units) > 1
    for unit in units:
        index(pool, unit)
    assert [row for unit in units for row in rows(pool, unit)] == rows(pool, whole)
    asked = [question for unit in units for question in questions(pool, unit)]
    assert {question["question_key"]: question["question"] for question in asked} == {
        question["question_key"]: question["question"] for question in questions(pool, whole)
    }


def test_indexing_again_leaves_the_same_bytes(pool: PoolIndex, tmp_path: Path) -> None:
    """Catches: a time or a random name in the index; two workers may index one unit at once."""
    unit = put(pool, "a.jsonl", line("Q", "a"))
    index(pool, unit)
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    index(pool, unit)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")} == first
    assert len(first) == 2


# --- names ----------------------------------------------------------------------------------------


def test_indexed_keys(pool: PoolIndex) -> None:
    """Catches: a unit half written (its questions alone) taken for indexed, or an indexed one read again."""
    assert indexed_keys(pool.out) == set()
    unit, other = put(pool, "a.jsonl", line("Q", "a")), put(pool, "b.jsonl", line("Q", "a"))
    index(pool, unit)
    questions_place(pool.out, pool.key(other)).write_bytes(b"half")
    assert indexed_keys(pool.out) == {pool.key(unit)}


def test_fingerprint_changes_with_each_setting(pool: PoolIndex) -> None:
    """Catches: rows of another mapping, guard, choice or tokenizer reused; and rows read again for no reason."""
    variants = [
        pool,
        replace(pool, mapping=preset("alpaca")),
        *[
            replace(pool, guards=guards)
            for guards in (
                Guards(verified=False),
                Guards(complete=False),
                Guards(finish_reasons=()),
                Guards(cutoff_tokens=1),
            )
        ],
        replace(pool, choice="longest"),
        replace(pool, tokenizer=replace(pool.tokenizer, identity="sha256:y")),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    same = replace(pool, root=Place.of("/x"), out=Place.of("/y"), tokenizer=replace(pool.tokenizer, name="/z"))
    assert same.fingerprint == pool.fingerprint


def test_key_changes_with_the_file(pool: PoolIndex) -> None:
    """Catches: a changed file, or another file of the same name in another pool, taken for one that is indexed."""
    unit = Unit(0, "a.parquet", 10, "1")
    others = [
        replace(unit, path="b.parquet"),
        replace(unit, size=11),
        replace(unit, version="2"),
        replace(unit, row_groups=(0, 1)),
        replace(unit, row_groups=(0, 2)),
    ]
    keys = [key for _, key in unit_keys([pool], [unit, *others])]
    keys.append(replace(pool, root=Place.of("/elsewhere")).key(unit))
    assert len(set(keys)) == 7
    assert pool.key(replace(unit, pool=3)) == pool.key(unit)


def test_snapshot_round_trip(pool: PoolIndex) -> None:
    """Catches: a unit that comes back different, so that `select` looks for files that are not there."""
    units = [Unit(0, "a.parquet", 10, "1", (0, 3), 0), Unit(0, "a.parquet", 10, "1", (3, 4), 70), Unit(0, "b", 1, "é")]
    snapshot = Snapshot(("s3://b/p",), tuple(unit_keys([pool], units)), ((0, "c", "torn"),))
    again = Snapshot.from_json(snapshot.to_json())
    assert again == snapshot
    assert again.digest() == snapshot.digest()
    assert replace(snapshot, unreadable=()).digest() != snapshot.digest()
    assert replace(snapshot, units=snapshot.units[:1]).digest() != snapshot.digest()


# --- files that cannot be read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.parquet", b"", "cannot read"),
        ("a.parquet", b"PAR1 torn", "cannot read"),
        ("a.jsonl.gz", gzip.compress(line("Q", "a") * 500)[:-9], "cannot read"),
        ("a.jsonl.zst", b"no zstd", "cannot read"),
        ("a.jsonl", b'{"text": "x"}\n', "column 'question', 'solution' not found. The file has: text."),
    ],
)
def test_a_bad_file_is_an_outcome(pool: PoolIndex, name: str, data: bytes, said: str) -> None:
    """Catches: one bad file among many that ends the job, or that leaves half of its rows in the index."""
    unit = put(pool, name, data)
    outcome = index_unit(pool, unit)
    assert outcome.error is not None
    assert said in outcome.error
    assert name in outcome.error
    assert pool.out.files() == []


def test_a_file_gone_since_it_was_listed(pool: PoolIndex) -> None:
    """Catches: the same for a file that was removed between listing and reading."""
    unit = put(pool, "a.jsonl", b"")
    pool.root.child("a.jsonl").delete()
    assert "no such file" in (index_unit(pool, unit).error or "")


# --- a whole pool ---------------------------------------------------------------------------------


def test_a_synthetic_pool_is_accounted_for(pool: PoolIndex) -> None:
    """Catches: traces that are in the files and not in the index."""
    pool = replace(pool, mapping=preset("openr1-math-220k"))
    write_pool(pool.root, 300, seed=1, rows_per_file=100)
    units = units_of(pool)
    outcomes = [index(pool, unit) for unit in units]
    traces = sum(len(row) for unit in units for row in _generations(pool.root.child(unit.path).uri))
    found = [row for unit in units for row in rows(pool, unit)]
    assert sum(outcome.traces for outcome in outcomes) == len(found) == traces
    assert {row["reason"] for row in found} == {None, "unverified", "incomplete", "not_chosen"}


def test_the_real_pool_is_accounted_for(pool: PoolIndex, shared: Callable[..., Path]) -> None:
    """Catches: the same on real rows, and verdicts or finish reasons read differently from the plain rule."""
    root = Place.of(shared("data", "openr1_pool"))
    pool = replace(pool, root=root, mapping=preset("openr1-math-220k"), choice="all", guards=Guards(cutoff_tokens=0))
    unit = units_of(pool)[0]
    index(pool, unit)
    expected = {}
    for row in pq.read_table(root.child(unit.path).uri).to_pylist():
        for generation in range(len(row["generations"])):
            flags = [row["correctness_math_verify"], row["is_reasoning_complete"]]
            fit = all(flag and flag[generation] for flag in flags)
            stopped = (row["finish_reasons"] or {generation: None})[generation] in (None, "stop")
            expected[f"{row['uuid']}#{generation}"] = fit and stopped
    assert {row["sample_id"]: row["reason"] is None for row in rows(pool, unit)} == expected


def _generations(path: str) -> list[list[str]]:
    column: list[list[str]] = pq.read_table(path, columns=["generations"])["generations"].to_pylist()
    return column


def test_labels(pool: PoolIndex) -> None:
    """Catches: a label in another row's place, one that is lost where a file or a pool lacks its column, blank text or
    a null of pandas (NaN) that makes a group of its own, and text that would spoil a page or a terminal."""
    values = ["web", None, " ", 7, "\x1b[31m", float("nan")]
    data = [json.dumps({"question": str(n), "solution": "a", "lang": v}).encode() for n, v in enumerate(values)]
    labelled = replace(pool, mapping=pool.mapping.model_copy(update={"labels": {"language": "lang", "field": "f"}}))
    keys = []
    for name, some, index_of in (
        ("a.jsonl", [*data, b"not JSON"], labelled),
        ("b.jsonl", [line("Q", "a").strip()], labelled),
        ("c.jsonl", [line("R", "a").strip()], pool),
    ):
        unit = put(pool, name, b"\n".join(some))
        index(index_of, unit)
        keys.append((unit, index_of.key(unit)))
    assert pq.read_schema(candidates_place(pool.out, keys[0][1]).uri).equals(labelled.schema)
    snapshot = Snapshot(("pool",), tuple(keys))
    tables = list(read_units(pool.out, snapshot, range(3), ["row"], ["language"]))
    assert [table["label_language"].to_pylist() for table in tables] == [
        ["web", None, None, "7", "\\x1b[31m", None, None],
        [None],
        [None],
    ]
    assert {str(table["label_language"].type) for table in tables} == {"string"}
    found = take_rows(pool.out, snapshot, np.array([0, 6, 7, 8]), np.array([7, 3, 0]), ["row"], ["language", "field"])
    assert found["label_language"].to_pylist() == [None, "7", "web"]
    assert found["label_field"].null_count == 3


def test_damage_to_labels(pool: PoolIndex) -> None:
    """Catches: an index file of which only the columns that every pool has are looked at for damage."""
    pool = replace(pool, mapping=pool.mapping.model_copy(update={"labels": {"language": "lang"}}))
    data = b"".join(
        json.dumps({"question": str(n), "solution": "a", "lang": f"no {n}"}).encode() + b"\n" for n in range(9)
    )
    unit = put(pool, "a.jsonl", data)
    index(pool, unit)
    place = candidates_place(pool.out, pool.key(unit))
    assert damaged_units(pool.out, [pool.key(unit)]) == []
    column = pq.read_metadata(place.uri).row_group(0)
    (at,) = [column.column(n) for n in range(column.num_columns) if column.column(n).path_in_schema == "label_language"]
    stored = bytearray(place.read_bytes())
    stored[at.data_page_offset + at.total_compressed_size // 3] ^= 1
    place.write_bytes(bytes(stored))
    (damage,) = damaged_units(pool.out, [pool.key(unit)])
    assert damage.place == place


def test_tables_can_be_joined(pool: PoolIndex) -> None:
    """Catches: dictionary columns of different units that cannot be put together."""
    tables = []
    for name, question in {"a.jsonl": "Q", "b.jsonl": None}.items():
        unit = put(pool, name, line(question, "a"))
        index(pool, unit)
        tables.append(pq.read_table(candidates_place(pool.out, pool.key(unit)).uri))
    assert pa.concat_tables(tables).combine_chunks()["reason"].to_pylist() == [None, "not_a_string"]
