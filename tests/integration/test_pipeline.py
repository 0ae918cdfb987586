"""The whole job through the `s2r` command with the real engine, on a made-up pool and, if it is there, the real one."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2r_ray.judge.prompt import load_tokenizer
from s2r_ray.trace import reasoning, without_repeats
from tests.command import s2r

SHARED = Path(__file__).parents[3] / "shared"
MANIFEST_COLUMNS = [
    "position",
    "sample_id",
    "file",
    "row",
    "generation",
    "question_key",
    "difficulty",
    "label_mass",
    "trace_tokens",
    "trace_tokens_unique",
    "rank_difficulty",
    "rank_length",
    "rank_joint",
]


def summary_of(*arguments: str | Path, **environment: str) -> dict[str, Any]:
    """Run the command with --json; it must succeed and print one JSON object and nothing else."""
    said = s2r(*arguments, "--json", timeout=300, **environment)
    assert said.code == 0, said.err
    assert "Traceback" not in said.err
    return said.json()


def no_compiler(folder: Path) -> str:
    """A PATH with all that this machine has but compilers."""
    folder = folder / "bin"
    folder.mkdir()
    for place in (Path(sys.executable).parent, Path("/bin"), Path("/usr/bin")):
        for program in place.iterdir():
            compiles = re.search(r"(^|-)(cc|gcc|c\+\+|g\+\+|clang)", program.name)
            if not compiles:
                with contextlib.suppress(FileExistsError):
                    (folder / program.name).symlink_to(program)
    return str(folder)


def top_level(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.iterdir()}


def check_run(out: Path, summary: dict[str, Any]) -> pa.Table:
    """What a run must leave behind; returns the ranking."""
    run = Path(summary["run"])
    assert top_level(out) == {"index", "scores", "runs", "latest.json"}
    assert top_level(run) == {"ranking", "manifests", "excluded.parquet", "report.html", "run.json"}
    assert top_level(run / "manifests") == {f"top-{budget}pct.parquet" for budget in ("2", "5", "10")}
    assert json.loads((out / "latest.json").read_text()) == {"run_id": run.name, "path": f"runs/{run.name}"}
    record = json.loads((run / "run.json").read_text())
    excluded = pq.read_table(run / "excluded.parquet")
    ranking = pq.read_table(run / "ranking")
    assert record["counts"]["indexed"] == ranking.num_rows + excluded.num_rows
    assert excluded["reason"].null_count == 0
    assert ranking.column_names == MANIFEST_COLUMNS[1:]
    assert len(set(ranking["sample_id"].to_pylist())) == ranking.num_rows
    largest = pq.read_table(run / "manifests" / "top-10pct.parquet")
    assert largest.column_names == MANIFEST_COLUMNS
    for budget in (2, 5, 10):
        manifest = pq.read_table(run / "manifests" / f"top-{budget}pct.parquet")
        assert manifest.num_rows == max(1, ranking.num_rows * budget // 100)
        assert manifest["position"].to_pylist() == list(range(1, manifest.num_rows + 1))
        assert manifest.equals(largest.slice(0, manifest.num_rows)), "smaller budgets are the start of larger ones"
    return ranking


@pytest.mark.engine
@pytest.mark.ray
def test_made_up_pool_from_command_to_manifest(tmp_path: Path) -> None:
    """Would catch a job that works only in pieces or needs a compiler, a second run that judges again, and a `select`
    that needs the model; a mocked engine would hide label ids and batching that do not fit the real one."""
    pool, out = tmp_path / "pool", tmp_path / "out"
    assert s2r("synth", "--rows", "400", "--rows-per-file", "150", "--out", pool).code == 0
    first = summary_of("run", "--pool", pool, "--out", out, "--quiet", PATH=no_compiler(tmp_path))
    ranking = check_run(out, first)
    traces = sum(len(row) for row in pq.read_table(pool, columns=["generations"])["generations"].to_pylist())
    assert first["counts"]["indexed"] == traces
    assert first["counts"]["difficulty_judged"] == len(set(ranking["question_key"].to_pylist()))
    difficulty = ranking["difficulty"].to_numpy()
    assert np.isfinite(difficulty).all()
    assert len(set(difficulty.tolist())) > ranking.num_rows / 10, "the judge tells questions apart"

    again = summary_of("run", "--pool", pool, "--out", out)
    assert again["counts"]["units_read"] == again["counts"]["difficulty_judged"] == 0
    for name in ("manifests/top-10pct.parquet", "excluded.parquet", "ranking/part-00000.parquet"):
        assert (Path(first["run"]) / name).read_bytes() == (Path(again["run"]) / name).read_bytes()

    longest = summary_of("select", "--out", out, "--weight", "length=1", "--budget", "100%")
    everything = pq.read_table(Path(longest["run"]) / "manifests" / "top-100pct.parquet")
    assert everything.num_rows == ranking.num_rows
    assert (np.diff(everything["trace_tokens_unique"].to_numpy()) <= 0).all()


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.skipif(not (SHARED / "data" / "openr1_pool").exists(), reason="the real pool is not beside the checkout")
def test_real_pool(tmp_path: Path) -> None:
    """Would catch what made-up pools do not have: real traces' lengths, null verdicts, dozens of traces in a row."""
    pool, tokenizer = SHARED / "data" / "openr1_pool", SHARED / "tokenizers" / "qwen2.5"
    out = tmp_path / "out"
    summary = summary_of("run", "--pool", pool, "--preset", "openr1-math-220k", "--tokenizer", tokenizer, "--out", out)
    ranking = check_run(out, summary).to_pylist()
    rows = {path.name: pq.read_table(path).to_pylist() for path in sorted(pool.glob("*.parquet"))}
    assert summary["counts"]["indexed"] == sum(len(row["generations"]) for file in rows.values() for row in file)

    encode = load_tokenizer(tokenizer).encode
    for item in ranking[::4]:
        row = rows[item["file"]][item["row"]]
        trace = reasoning(row["generations"][item["generation"]])
        assert item["sample_id"] == f"{row['uuid']}#{item['generation']}"
        assert item["trace_tokens"] == len(encode(trace, add_special_tokens=False))
        assert item["trace_tokens_unique"] == len(encode(without_repeats(trace), add_special_tokens=False))

    ranked = {(item["file"], item["row"]): item["generation"] for item in ranking}
    excluded = pq.read_table(Path(summary["run"]) / "excluded.parquet").to_pylist()
    reasons = {(item["file"], item["row"], item["generation"]): item["reason"] for item in excluded}
    for name, file in rows.items():
        for number, row in enumerate(file):
            fit = [
                generation
                for generation in range(len(row["generations"]))
                if (row["correctness_math_verify"] or [False] * 99)[generation]
                and row["is_reasoning_complete"][generation]
                and row["finish_reasons"][generation] == "stop"
                and reasons.get((name, number, generation)) != "over_cutoff"
            ]
            if fit and reasons.get((name, number, fit[0])) != "duplicate_sample":
                assert ranked[name, number] == fit[0], "the first trace that passed"
            else:
                assert (name, number) not in ranked
