"""The score store: parts, keys, and one row per key whatever was written by whom and in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2r_ray.errors import S2RError
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore, fingerprint_digest
from s2r_ray.tables import DamagedError
from tests.fakes import HashJudge
from tests.stored import key_set, stored

ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.one_of(st.none(), st.sampled_from([0.0, 0.25, 1.0])),
        st.sampled_from([0.5, 1.0]),
        st.sampled_from(["failed", "no_answer"]),
        st.sampled_from(["a", "b"]),
    ).map(lambda row: make(*row)),
    max_size=5,
)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def make(
    number: int, value: float | None, mass: float = 1.0, status: str = "failed", detail: str = ""
) -> dict[str, Any]:
    """A row of a part: a fault where there is no value."""
    ok = value is not None
    return {
        "key": key(number),
        "value": value,
        "label_mass": mass if ok else None,
        "status": "ok" if ok else status,
        "detail": None if ok else detail,
    }


def store_at(folder: Path) -> ScoreStore:
    return ScoreStore.at(Place.of(folder), "difficulty", "0" * 32, ["label_mass"])


def looked_up(store: ScoreStore, *numbers: int) -> list[dict[str, Any]]:
    """What the store has for these keys, as rows of a part, sorted by key."""
    keys = key_set(*map(key, numbers))
    found = store.look_up(keys)
    faults = {row.pop("at"): row for row in found.faults().to_pylist()}
    assert not found.ok[list(faults)].any()
    rows = []
    for at, name in enumerate(keys.keys(np.arange(len(keys))).to_pylist()):
        values = {column: float(numbers[at]) for column, numbers in found.columns.items()}
        assert found.ok[at] == np.isfinite(list(values.values())).all()
        if found.ok[at]:
            rows.append({"key": name, **values, "status": "ok", "detail": None})
        elif at in faults:
            rows.append({"key": name, **dict.fromkeys(values), **faults[at]})
    return rows


def settled(store: ScoreStore, *numbers: int) -> list[bytes]:
    """Which of these keys are settled, sorted."""
    keys = key_set(*map(key, numbers))
    found: list[bytes] = keys.keys(np.flatnonzero(store.settled(keys).mask)).to_pylist()
    return found


def append(store: ScoreStore, *rows: dict[str, Any]) -> None:
    store.append(pa.Table.from_pylist(list(rows), store.schema()))


def test_round_trip(tmp_path: Path) -> None:
    """Catches: values, extras or faults that come back changed, or keys that are not in order."""
    store = store_at(tmp_path)
    rows = [make(3, 0.5, 0.9), make(1, None, detail="why"), make(2, 0.1)]
    append(store, rows[0])
    append(store, rows[1], rows[2])
    assert stored(store).to_pylist() == looked_up(store, 1, 2, 3) == [rows[1], rows[2], rows[0]]
    assert settled(store, 1, 2, 3, 4) == [key(2), key(3)], "what failed is judged again"


def test_an_empty_store(tmp_path: Path) -> None:
    """Catches: the first run, which finds nothing, and a part without rows."""
    store = store_at(tmp_path)
    for _ in range(2):
        for numbers in ((), (1, 2)):
            assert looked_up(store, *numbers) == settled(store, *numbers) == []
        append(store)
    assert len(store.parts()) == 2


def test_parts_are_never_overwritten(tmp_path: Path) -> None:
    """Catches: two runs whose parts have one name, of which one is lost."""
    for _ in range(3):
        append(store_at(tmp_path), make(1, 0.5))
    assert len(store_at(tmp_path).parts()) == 3
    assert len(looked_up(store_at(tmp_path), 1)) == 1


def test_an_ok_row_wins_over_a_fault(tmp_path: Path) -> None:
    """Catches: a question left out although another run could judge it."""
    store = store_at(tmp_path)
    append(store, make(1, None), make(2, 0.75))
    append(store, make(1, 0.25), make(2, None))
    append(store, make(1, 0.5))
    assert [row["value"] for row in looked_up(store, 1, 2)] == [0.25, 0.75]


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(ROWS, min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_the_result_is_what_was_judged(
    parts: list[list[dict[str, Any]]], order: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Catches: a result that depends on who came first, or on the random names of parts."""
    rows = [row for part in parts for row in part]
    tables = []
    for turn in range(2):
        store = store_at(tmp_path_factory.mktemp("store"))
        for part in parts if turn == 0 else [rows[: len(rows) // 2], rows[len(rows) // 2 :]]:
            append(store, *part)
        order.shuffle(rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("s2r_ray.store._TOGETHER_ROWS", 2 + 100 * turn)
            tables.append(looked_up(store, *range(5)))
        assert tables[turn] == stored(store).to_pylist()
    assert tables[0] == tables[1]
    found = {row["key"]: row for row in tables[0]}
    assert list(found) == sorted({row["key"] for row in rows})
    assert len(found) == len(tables[0])
    for name, row in found.items():
        assert row in rows
        values = [other["value"] for other in rows if other["key"] == name and other["value"] is not None]
        assert row["value"] == min(values, default=None)


def test_what_was_tried_since(tmp_path: Path) -> None:
    """Catches: a question that failed in an earlier run taken for one of this run, or the other way round."""
    store = store_at(tmp_path)
    append(store, make(0, None), make(1, None), make(2, 0.5))
    earlier = store.parts()
    keys = key_set(*map(key, range(4)))
    assert store.tried(keys, earlier).tolist() == [False] * 4
    append(store, make(1, None), make(3, 0.5))
    assert store.tried(keys, earlier).tolist() == [False, True, False, True]
    for part in set(store.parts()).difference(earlier):
        Path(store.place.child(part).uri).write_bytes(b"torn")
    assert store.tried(keys, earlier).tolist() == [False] * 4


def test_a_wrong_table_is_refused(tmp_path: Path) -> None:
    """Catches: a part with other columns, which would make every later read fail."""
    store = store_at(tmp_path)
    with pytest.raises((ValueError, pa.ArrowInvalid, S2RError)):
        store.append(pa.table({"key": pa.array([key(1)], pa.binary(16)), "value": [0.5]}))
    assert store.parts() == []


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "text"])
def test_damaged_parts_are_named(tmp_path: Path, harm: str) -> None:
    """Catches: one torn part that makes the whole store unreadable, a flipped bit that passes for a score, keys of a
    damaged part that count as judged."""
    store = store_at(tmp_path)
    append(store, *(make(number, number / 64) for number in range(64)))
    torn = Path(store.place.child(store.parts()[0]).uri)
    data = bytearray(torn.read_bytes())
    middle = data.index(b"PAR1") + 200  # behind the header of the first page, inside of its keys
    data[middle] ^= 4
    torn.write_bytes({"cut": data[:-9], "flipped": bytes(data), "emptied": b"", "text": b"scores"}[harm])
    append(store, make(77, 0.5))
    assert settled(store, *range(78)) == [key(77)]
    (damage,) = store.settled(key_set()).damaged
    assert damage.place.uri == str(torn)
    with pytest.raises(DamagedError, match="is damaged"):
        store.look_up(key_set(key(77)))
    aside = damage.place.set_aside()
    assert Path(aside.uri).exists()
    assert store.settled(key_set()).damaged == ()
    assert [row["key"] for row in looked_up(store, *range(78))] == [key(77)]


def test_what_else_lies_there_is_not_a_part(tmp_path: Path) -> None:
    """Catches: a half-written temporary file, or about.json, read as scores."""
    store = store_at(tmp_path)
    append(store, make(1, 0.5))
    store.describe({"a": 1})
    Path(store.place.uri, ".part-x.parquet.0.tmp").write_bytes(b"half")
    assert len(store.parts()) == 1
    assert len(looked_up(store, 1)) == 1


def test_describe_once(tmp_path: Path) -> None:
    """Catches: an about.json that does not say what the fingerprint stands for, or that changes later."""
    store = store_at(tmp_path)
    store.describe({"model": "x"})
    store.describe({"model": "y"})
    assert json.loads(store.place.child("about.json").read_bytes()) == {"model": "x"}


def test_fingerprints() -> None:
    """Catches: scores shared by two judges, or lost because a dictionary was built in another order."""
    assert fingerprint_digest({"a": 1, "b": [2]}) == fingerprint_digest({"b": [2], "a": 1})
    assert fingerprint_digest({"a": 1}) != fingerprint_digest({"a": "1"})
    out = Place.of("/out")
    stores = {ScoreStore.of(out, HashJudge(levels=levels)) for levels in (2, 3)}
    assert len(stores) == 2
    assert ScoreStore.of(out, HashJudge(workers=1)) == ScoreStore.of(out, HashJudge(workers=9))
    assert next(iter(stores)).place.uri.startswith("/out/scores/difficulty/")


def many_parts(store: ScoreStore, parts: int) -> list[dict[str, Any]]:
    """What was written: parts of two rows, of which one repeats the part before."""
    rows = [make(number, (number % 7) / 7 if number % 5 else None) for number in range(parts + 1)]
    for number in range(parts):
        append(store, *rows[number : number + 2])
    return rows


def test_small_parts_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: rows lost or changed on the way, parts that stay, and parts put together again each night."""
    monkeypatch.setattr("s2r_ray.store._PART_ROWS", 100)
    store = store_at(tmp_path)
    rows = many_parts(store, 130)
    before = stored(store)
    store.put_together()
    assert len(store.parts()) == 3
    assert stored(store).equals(before)
    assert looked_up(store, *range(131)) == rows
    names = store.parts()
    store.put_together()
    assert store.parts() == names, "few parts are left alone"


def test_a_reader_meanwhile_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a run beside another one that finds parts gone, and judges their questions again or ends."""
    store = store_at(tmp_path)
    rows = many_parts(store, 130)
    listed = ScoreStore.parts
    again: list[int] = []

    def parts(self: ScoreStore) -> list[str]:
        names = listed(self)
        if not again:
            again.append(1)
            self.put_together()
        return names

    monkeypatch.setattr(ScoreStore, "parts", parts)
    assert looked_up(store, *range(131)) == rows
    assert len(listed(store)) == 1


def test_damaged_parts_are_not_put_together(tmp_path: Path) -> None:
    """Catches: damage that hides what it cost, or that keeps sound parts apart."""
    store = store_at(tmp_path)
    many_parts(store, 70)
    damaged = tmp_path.joinpath("scores", "difficulty", "0" * 32, store.parts()[9])
    damaged.write_bytes(b"PAR1")
    store.put_together()
    assert len(store.parts()) == 2
    assert len(store.settled(key_set(key(1))).damaged) == 1


def test_vectors_stay_with_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a vector that is another key's after small parts were put together, one for a key that has no score,
    damage in vectors that costs those who need none, or that goes unseen."""
    monkeypatch.setattr("s2r_ray.store._SMALL_PARTS", 2)
    store = ScoreStore.at(Place.of(tmp_path), "near", "0" * 32, (), "sample", 3)
    numbers = np.arange(30, dtype="<f4").reshape(10, 3) / 4
    for part in np.split(np.arange(10), [3, 4]):
        rows = [make(int(number), None if number == 5 else number / 2) for number in part]
        for row, number in zip(rows, part, strict=True):
            del row["label_mass"]
            row["vector"] = None if number == 5 else numbers[number].tobytes()
        store.append(pa.Table.from_pylist(rows, store.schema()))

    def held() -> dict[bytes, tuple[float, list[float]]]:
        pairs = [pair for rows, vectors in store.vectors() for pair in zip(rows.to_pylist(), vectors, strict=True)]
        return {row["key"]: (row["value"], vector.tolist()) for row, vector in pairs}

    expected = {key(number): (number / 2, numbers[number].tolist()) for number in range(10) if number != 5}
    assert held() == expected
    store.put_together()
    (part,) = store.parts()
    assert held() == expected

    file = tmp_path / "scores" / "near" / ("0" * 32) / part
    data = bytearray(file.read_bytes())
    at = pq.ParquetFile(file).metadata.row_group(0).column(store.schema().names.index("vector"))
    data[at.data_page_offset + at.total_compressed_size - 3] ^= 1
    file.write_bytes(bytes(data))
    assert store.settled(key_set(*expected)).mask.all()
    with pytest.raises(DamagedError):
        held()
