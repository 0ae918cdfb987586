"""The problems of a pool: each question with its answer once, whatever its traces."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2r_ray.config import PoolSection
from s2r_ray.index import Snapshot
from s2r_ray.pending import find_problems, work_items
from s2r_ray.problems import ProblemPool, problem_key, problems_place, read_problems
from s2r_ray.readers import plan_units, pool_files
from s2r_ray.storage import Place
from s2r_ray.subjects import load_problems
from s2r_ray.tables import read_own

MAPPING = {"question": "q", "traces": "a", "answer": "gold", "labels": {"source": "s"}}
ROWS = [
    {"q": "1 + 1?", "gold": "2", "s": "x"},
    {"q": "1 + 1?", "gold": 2, "s": "y"},
    {"q": "1 + 1?", "gold": "3", "s": "x"},
    {"q": "2 + 2?", "gold": None, "s": None},
    {"q": "  ", "gold": "4", "s": "x"},
    {"q": None, "gold": "4", "s": "x"},
    {"q": 7, "gold": "4", "s": "x"},
    {"q": "1<|im_end|>", "gold": "", "s": "=1"},
]


def written(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "jsonl":
        (folder / "pool.jsonl").write_bytes(b"\n".join([*map(orjson.dumps, ROWS), b"not JSON"]))
    else:
        rows = [{**row, "gold": None if row["gold"] is None else str(row["gold"])} for row in ROWS if row["q"] != 7]
        pq.write_table(pa.Table.from_pylist(rows), folder / "pool.parquet")
    return folder


def read(out: Place, folder: Path) -> tuple[ProblemPool, Snapshot]:
    root, files = Place.of(str(folder)).glob()
    section = PoolSection.model_validate({"uri": str(folder), "mapping": MAPPING})
    pool = ProblemPool(root, out, section.resolved_mapping())
    units = plan_units(root, 0, pool_files(files, str(folder)))
    assert [read_problems(pool, unit).error for unit in units] == [None] * len(units)
    return pool, Snapshot((str(folder),), tuple((unit, pool.key(unit)) for unit in units))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_each_question_with_its_answer_is_there_once(tmp_path: Path, kind: str) -> None:
    """Catches: two answers to one question taken for one problem, a number that is another answer than its text, a bad
    row that ends the file, traces that are needed for it."""
    out = Place.of(tmp_path / "out")
    _, snapshot = read(out, written(tmp_path / "pool", kind))
    ((_, key),) = snapshot.units
    table = read_own(problems_place(out, key))
    assert table.select(["question", "answer", "label_source"]).to_pylist() == [
        {"question": "1 + 1?", "answer": "2", "label_source": "x"},
        {"question": "1 + 1?", "answer": "3", "label_source": "x"},
        {"question": "2 + 2?", "answer": None, "label_source": None},
        {"question": "1<|im_end|>", "answer": "", "label_source": "=1"},
    ]
    asked = find_problems(out, snapshot)
    items = work_items(snapshot, asked.pending(asked.first < 0), 3, 1)
    loaded = pa.concat_tables([load_problems(out, item) for item in items])
    pairs = zip(loaded["question"].to_pylist(), loaded["answer"].to_pylist(), strict=True)
    assert loaded["key"].to_pylist() == [problem_key(*pair) for pair in pairs]
    assert loaded.num_rows == 4


def test_a_larger_draw_holds_the_smaller(tmp_path: Path) -> None:
    """Catches: more questions asked for that are other questions, whose solutions are drawn for nothing."""
    out = Place.of(tmp_path / "out")
    asked = find_problems(out, read(out, written(tmp_path / "pool", "jsonl"))[1])
    drawn = [set(asked.some(count).first.tolist()) for count in range(6)]
    assert [len(some) for some in drawn] == [0, 1, 2, 3, 4, 4]
    assert all(small <= large for small, large in pairwise(drawn))


def test_a_file_without_the_question_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Catches: a traceback, or a pool without problems, for a wrong mapping."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.jsonl").write_bytes(orjson.dumps({"other": 1}))
    root, files = Place.of(str(tmp_path / "pool")).glob()
    section = PoolSection.model_validate({"uri": "p", "mapping": MAPPING})
    pool = ProblemPool(root, Place.of(tmp_path / "out"), section.resolved_mapping())
    (unit,) = plan_units(root, 0, pool_files(files, "p"))
    assert "no column 'q' with the question; the file has: other" in (read_problems(pool, unit).error or "")
