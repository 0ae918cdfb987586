"""A pool that changes between two nights: what is read, what is judged, and what the second night says of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2r_ray.signals import SIGNALS
from s2r_ray.storage import Place
from s2r_ray.synth import make_rows, write_pool
from tests.command import Said, assert_told, documented, s2r, s2r_inside
from tests.conftest import ROOT
from tests.fakes import HashJudge

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Nights:
    """Two runs over one output place, the pool changed in every way between them."""

    pool: Path
    out: Path
    first: dict[str, Any]
    second: dict[str, Any]
    edited: list[str]
    added: list[str]
    removed: set[str]


def column(path: Path, name: str) -> list[Any]:
    found: list[Any] = pq.read_table(path, columns=[name])[name].to_pylist()
    return found


def ranked(summary: dict[str, Any], name: str) -> list[Any]:
    return column(Path(summary["run"]) / "ranking", name)


@pytest.fixture
def inside(
    tokenizer_dir: Path, local_ray: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Runs a command in this process, on the tests' Ray, with a judge that needs no model."""
    del local_ray
    monkeypatch.setitem(SIGNALS, "difficulty", lambda _config: HashJudge())  # type: ignore[misc]

    def command(name: str, *arguments: str | Path) -> Said:
        more = ("--tokenizer", tokenizer_dir) if name == "run" else ()
        said = s2r_inside(capfd, name, *arguments, *more)
        assert said.code == 0, said.err
        return said

    return command


@pytest.fixture
def nights(inside: Callable[..., Said], tmp_path: Path) -> Nights:
    """Files a to e of 40 rows, all traces in the running. Then: two rows of a edited, b removed, c renamed, d touched,
    e as it was, f new, with two rows of its own and one that asks what e asks."""
    pool, out, spare = tmp_path / "pool", tmp_path / "out", tmp_path / "spare"
    settings = tmp_path / "settings.yaml"
    settings.write_text("guards: {verified: false, complete: false, finish_reasons: [], cutoff_tokens: 0}\n")
    write_pool(Place.of(spare), 200, 8, 40)
    pool.mkdir()
    for name, file in zip("abcde", sorted(spare.iterdir()), strict=True):
        file.rename(pool / f"{name}.parquet")
    options = ["--pool", pool, "--out", out, "--config", settings, "--json", "--quiet"]
    first = inside("run", *options).json()

    table = pq.read_table(pool / "a.parquet")
    problems = table["problem"].to_pylist()
    edited = [f"{problems[number]} And twice that?" for number in (3, 30)]
    problems[3], problems[30] = edited
    at = table.schema.get_field_index("problem")
    pq.write_table(table.set_column(at, "problem", pa.array(problems)), pool / "a.parquet")
    removed = {f"{name}#0" for name in column(pool / "b.parquet", "uuid")}
    (pool / "b.parquet").unlink()
    (pool / "c.parquet").rename(pool / "renamed.parquet")
    os.utime(pool / "d.parquet", ns=(1, 1))
    new = make_rows(99, range(3)).to_pylist()
    new[2]["problem"] = column(pool / "e.parquet", "problem")[0]
    pq.write_table(pa.Table.from_pylist(new, table.schema), pool / "f.parquet")
    second = inside("run", *options).json()
    return Nights(pool, out, first, second, edited, [row["problem"] for row in new[:2]], removed)


def test_only_what_changed_is_paid_for(nights: Nights) -> None:
    """Would catch files read again that are the same, changed files that are not, questions judged again because
    their file was renamed, touched or has new neighbours, and samples of a removed file that stay in the ranking."""
    asked = {name: set(column(file, "problem")) for name, file in ((f.stem, f) for f in nights.pool.iterdir())}
    everything = set.union(*asked.values())
    counts = nights.second["counts"]
    assert (counts["files"], counts["files_read"], counts["files_reused"]) == (5, 4, 1)
    assert counts["difficulty_judged"] == len({*nights.edited, *nights.added}) == 4
    assert counts["difficulty_reused"] == len(everything) - 4
    assert counts["questions"] == len(everything)
    before = nights.first["counts"]
    assert (before["files"], before["files_read"], before["files_reused"]) == (5, 5, 0)
    assert before["difficulty_judged"] == before["questions"]
    assert not nights.removed & set(ranked(nights.second, "sample_id"))
    assert nights.removed & set(ranked(nights.first, "sample_id"))
    assert set(ranked(nights.second, "file")) <= {file.name for file in nights.pool.iterdir()}
    record = json.loads((Path(nights.second["run"]) / "run.json").read_text())
    assert record["counts"] == counts


def test_the_ranking_is_that_of_a_first_run(nights: Nights, inside: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch an increment that ends elsewhere than judging everything from nothing would."""
    settings = tmp_path / "settings.yaml"
    options = ["--pool", nights.pool, "--config", settings, "--json", "--quiet"]
    fresh = inside("run", *options, "--out", tmp_path / "fresh").json()
    for name in ("ranking/part-00000.parquet", "excluded.parquet", "manifests/top-10pct.parquet"):
        assert (Path(fresh["run"]) / name).read_bytes() == (Path(nights.second["run"]) / name).read_bytes()


def test_a_third_night_without_changes(nights: Nights, inside: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch a file that is read, or a question that is judged, every night; and movement where there is none."""
    options = ["--pool", nights.pool, "--out", nights.out, "--config", tmp_path / "settings.yaml", "--json"]
    third = inside("run", *options, "--diff").json()
    counts = third["counts"]
    assert (counts["files_read"], counts["difficulty_judged"]) == (0, 0)
    assert third["diff"]["differences"] == {}
    assert third["diff"]["before"]["run_id"] == nights.second["run_id"]
    for budget in third["diff"]["budgets"].values():
        assert budget["stayed"] == budget["before"] == budget["after"]
    chosen = inside("select", "--out", nights.out, "--weight", "length=1", "--json").json()
    assert (chosen["counts"]["files"], chosen["counts"]["files_read"], chosen["counts"]["difficulty_judged"]) == (
        5,
        0,
        0,
    )


def test_the_diff_says_what_happened(nights: Nights, inside: Callable[..., Said]) -> None:
    """Would catch the rows of the renamed or touched file told as new, gone or rescored, and a diff whose default is
    another pair of runs."""
    found = inside("diff", "--out", nights.out, "--budget", "10", "--json").json()
    assert set(found) == documented()["diff"]
    assert found["before"]["run_id"] == nights.first["run_id"]
    assert found["after"]["run_id"] == nights.second["run_id"]
    assert set(found["differences"]) == {"pool files"}
    assert found["noise"]["difficulty"]["largest"] == 0, "a hash is a hash in any batch"
    assert found["noise"]["difficulty"]["pairs"] > 40
    (budget,) = found["budgets"].values()
    assert budget["within_noise"] == 0
    top = {
        side: column(Path(run["manifests"]["10"]), "sample_id")
        for side, run in (("a", nights.first), ("b", nights.second))
    }
    assert sorted(row["sample_id"] for row in budget["rows_entered"]) == sorted(set(top["b"]) - set(top["a"]))
    assert sorted(row["sample_id"] for row in budget["rows_left"]) == sorted(set(top["a"]) - set(top["b"]))
    gone = {row["sample_id"] for row in budget["rows_left"] if row["why"] == "gone"}
    assert gone == {name for name in set(top["a"]) - set(top["b"]) if name in nights.removed}
    assert gone
    new = set(column(nights.pool / "f.parquet", "uuid"))
    for row in budget["rows_entered"]:
        assert (row["why"] == "new_sample") == (row["sample_id"].partition("#")[0] in new)
    text = inside("diff", "--out", nights.out, nights.first["run_id"][:19]).out
    assert f"4 of {nights.second['counts']['questions']}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_what_diff_refuses(nights: Nights, tmp_path: Path) -> None:
    """Would catch a traceback, an exit code of success, or a diff of other runs than those meant."""
    assert_told(s2r("diff", "--out", tmp_path / "none"), 2, "no finished run")
    assert_told(s2r("diff"), 2, "--out")
    assert_told(s2r("diff", "--out", nights.out, "1999"), 2, "no run 1999", nights.second["run_id"])
    assert_told(s2r("diff", "--out", nights.out, "2"), 2, "beginning of 2 runs")
    assert_told(s2r("diff", "--out", nights.out, "--budget", "3"), 2, "no budget of 3 %", "2 %, 5 %, 10 %")
    assert_told(s2r("diff", "--out", nights.out, "--budget", "x"), 2, "budget")
    (Path(nights.first["run"]) / "run.json").unlink()
    assert_told(s2r("diff", "--out", nights.out), 2, "no finished run before")
    assert_told(s2r("diff", "--out", nights.out, nights.first["run_id"]), 2, "has not finished")


def test_the_nightly_job(tiny_judge: Path, tmp_path: Path) -> None:
    """Would catch a job that fails on its first night for want of a run before it, or says nothing on the second."""
    pool, settings = tmp_path / "pool", tmp_path / "settings.yaml"
    write_pool(Place.of(pool), 60, 5, 30)
    settings.write_text(
        f"pools: [{{uri: '{pool}'}}]\nout: '{tmp_path / 'out'}'\ntokenizer: '{tiny_judge}'\n"
        f"judge: {{model: '{tiny_judge}', engine: transformers, min_label_mass: 0}}\n"
    )

    def night(*more: str) -> subprocess.CompletedProcess[str]:
        job = [sys.executable, "jobs/nightly_rescore.py", "--config", str(settings), *more]
        return subprocess.run(job, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)

    first = night()
    assert first.returncode == 0, first.stderr
    assert "no diff" in first.stderr
    shutil.copy(pool / "part-00000.parquet", pool / "part-00002.parquet")
    second = night("--quiet")
    assert second.returncode == 0, second.stderr
    assert "top 10 %:" in second.stdout
    assert "0 of" in second.stdout, "a copy has no new questions"
    assert night("--budget", "0").returncode == 2
