"""Query and validation sets: what is read, what is refused, and what a pool has of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2r_ray.candidates import content_key
from s2r_ray.errors import UsageError
from s2r_ray.index import QUESTIONS_SCHEMA, Snapshot, candidates_place, questions_place
from s2r_ray.keys import KEY
from s2r_ray.pairs import Pair, find_overlap, read_pairs
from s2r_ray.readers import Unit
from s2r_ray.storage import Place
from s2r_ray.tables import write_own


def lines(file: Path, *rows: dict[str, Any]) -> Place:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Place.of(file)


def test_each_pair_once_in_the_order_of_the_files(tmp_path: Path) -> None:
    """Catches: pairs in another order from run to run, a repeated one that counts twice, a column read for another."""
    lines(tmp_path / "a.jsonl", {"q": "1 + 1 = ?", "r": "2", "x": 1}, {"q": "1 + 1 = ?", "r": "two"})
    rows = {"q": ["解方程", "1 + 1 = ?"], "r": ["x = 1", "2"]}
    pq.write_table(pa.table(rows), tmp_path / "b.parquet")
    found = read_pairs(Place.of(tmp_path), "q", "r", 3, "queries")
    assert found == [Pair("1 + 1 = ?", "2"), Pair("1 + 1 = ?", "two"), Pair("解方程", "x = 1")]
    assert read_pairs(Place.of(tmp_path), "q", None, 2, "queries") == [Pair("1 + 1 = ?"), Pair("解方程")]
    assert found[0].key == content_key("1 + 1 = ?", "2")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no column 'q', 'r'|has no rows"),
        ([{"q": "a", "answer": "b"}], "no column 'r'; it has q, answer"),
        ([{"q": "a", "r": "b"}, {"q": None, "r": "b"}], "row 1, counted from 0: 'q' is None; expected text"),
        ([{"q": "a", "r": " "}], "'r' is ' '"),
        ([{"q": ["a"], "r": "b"}], r"'q' is \['a'\]"),
        ([{"q": str(number), "r": "b"} for number in range(6)], "more than 5 pairs"),
    ],
)
def test_what_is_no_set_of_pairs_is_told(rows: Sequence[dict[str, Any]], words: str, tmp_path: Path) -> None:
    """Catches: a traceback, a set of which a part is passed over in silence, an error that does not name the set."""
    with pytest.raises(UsageError, match=f"^queries: .*({words})"):
        read_pairs(lines(tmp_path / "a.jsonl", *rows), "q", "r", 5, "queries")


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    """Catches: the same of what is not there, of damaged files, and of files that are no tables."""
    for name, text, words in (
        ("a.jsonl", "{", "not JSON"),
        ("a.parquet", "x", "cannot read"),
        ("a.txt", "x", "no pool"),
    ):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(UsageError, match=f"^queries: .*{words}"):
            read_pairs(Place.of(folder), "q", "r", 5, "queries")
    with pytest.raises(UsageError, match=r"^queries: .*no such place"):
        read_pairs(Place.of(tmp_path / "none"), "q", "r", 5, "queries")


def test_overlap_is_that_of_the_texts(tmp_path: Path) -> None:
    """Catches: an overlap that is missed in the second unit, that counts traces which were left out, or that takes a
    question for a sample."""
    out = Place.of(tmp_path)
    units = [[("a", "1", None), ("b", "2", "unverified")], [], [("c", "3", None), ("a", "4", None), ("c", "5", None)]]
    names = [f"fingerprint/{number}" for number in range(len(units))]
    for name, unit in zip(names, units, strict=True):
        keys = pa.array([content_key(question, response) for question, response, _ in unit], KEY)
        reasons = pa.array([reason for *_, reason in unit], pa.string())
        write_own(candidates_place(out, name), pa.table({"sample_key": keys, "reason": reasons}))
        asked = [question for question, _, reason in unit if reason is None]
        columns = [pa.array(map(content_key, asked), KEY), pa.array(asked, pa.string())]
        write_own(questions_place(out, name), pa.table(columns, QUESTIONS_SCHEMA))
    snapshot = Snapshot(("pool",), tuple((Unit(0, name, 1, "1"), name) for name in names))
    pairs = [Pair("c", "5"), Pair("a", "2"), Pair("b", "2"), Pair("c", "5 "), Pair("a", "1"), Pair("a")]
    found = find_overlap(out, snapshot, pairs)
    assert found.questions.tolist() == [True, True, False, True, True, True]
    assert found.samples.tolist() == [True, False, False, False, True, False]
    assert found.told("rds.queries") == "of the 6 rds.queries, 5 are questions of the pool, 2 with their response"
    assert find_overlap(out, snapshot, [Pair("z", "1")]).told("rds.queries") is None
