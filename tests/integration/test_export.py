"""From two pools through a real run to data that load back, row for row as they lie in the pools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from s2r_ray import pipeline
from s2r_ray.config import load_config
from s2r_ray.export import export, find_selection
from s2r_ray.export_formats import FORMATS
from s2r_ray.progress import Progress
from s2r_ray.storage import Place
from s2r_ray.synth import make_rows, write_pool
from tests.fakes import HashJudge

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

QUIET = Progress(quiet=True)
TEXTS = {"openr1": ("problem", "generations"), "limo": ("question", "solution")}


def read_data(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().split("\n") if line]
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def write_pools(folder: Path) -> dict[str, Path]:
    """In the columns of OpenR1-Math-220k, several files, and of LIMO, one of lines."""
    write_pool(Place.of(folder / "openr1"), 100, 5, 40)
    rows = make_rows(6, range(50)).to_pylist()
    limo = [{"question": row["problem"], "solution": row["generations"][0], "answer": row["answer"]} for row in rows]
    (folder / "limo").mkdir()
    (folder / "limo/limo.jsonl").write_text("\n".join(map(json.dumps, limo)))
    return {"openr1": folder / "openr1", "limo": folder / "limo"}


def test_each_format_is_the_pool_row_for_row(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Would catch what a run made up by hand hides: locations, pools, generations and mappings as a real one leaves
    them."""
    pools = write_pools(tmp_path)
    presets = {"openr1": "openr1-math-220k", "limo": "limo"}
    settings = {
        "pools": [{"uri": str(pool), "preset": presets[name]} for name, pool in pools.items()],
        "out": str(tmp_path / "out"),
        "tokenizer": str(tokenizer_dir),
        "candidates": "all",
        "budgets": [50],
    }
    record, run = pipeline.run(load_config(None, settings), QUIET, [HashJudge()])
    selection = find_selection(Place.of(tmp_path / "out"), record.run_id, None, None)
    manifest = read_data(Path(run.uri) / "manifests/top-50pct.parquet")
    assert {row["pool"] for row in manifest} == {str(pool) for pool in pools.values()}
    assert {row["generation"] for row in manifest} > {0, 1}
    originals, exchanges, texts = [], [], []
    for row in manifest:
        name = Path(row["pool"]).name
        original = read_data(pools[name] / row["file"])[row["row"]]
        question, response = (original[column] for column in TEXTS[name])
        response = response if name == "limo" else response[row["generation"]]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        originals.append(original)
        exchanges.append(turns)
        texts.append({"question": question, "response": response, "answer": original["answer"]})
    columns = dict.fromkeys([*pq.read_schema(next(pools["openr1"].glob("*.parquet"))).names, "question"])
    numbered = [{**row, **text} for row, text in zip(manifest, texts, strict=True)]
    expected = {
        "llamafactory": [{"instruction": text["question"], "output": text["response"]} for text in texts],
        "trl": [{"messages": turns} for turns in exchanges],
        "openr1": [{**columns, **row, "messages": turns} for row, turns in zip(originals, exchanges, strict=True)],
        "jsonl": numbered,
        "parquet": numbered,
    }
    for target, form in FORMATS.items():
        done = export(selection, target, Place.of(tmp_path / "to" / target), QUIET, name="data")
        assert done.rows == selection.rows
        assert read_data(tmp_path / "to" / target / f"data{form.suffix}") == expected[target]
