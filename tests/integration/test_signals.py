"""Several signals in one run: computed once, combined with weights and directions, against plain Python and scipy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import rankdata

from s2r_ray.config import load_config
from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.judge.prompt import load_tokenizer
from s2r_ray.rethinking import RETHINKING_WORDS, count_rethinking
from s2r_ray.signals.base import Subject
from s2r_ray.signals.rds import Rds
from s2r_ray.trace import reasoning
from tests.command import assert_told, s2r
from tests.integration.test_pipeline import summary_of


def config(folder: Path, **settings: object) -> Path:
    file = folder / "s2r.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def rethinking_of(pool: Path, ranking: pa.Table) -> np.ndarray:
    """The value of each ranked row, from the pool itself and the reference tokenizer."""
    tokenizer = load_tokenizer(str(EMBEDDED_JUDGE)).backend_tokenizer
    found = []
    for row in ranking.to_pylist():
        traces = pq.read_table(pool / row["file"], columns=["generations"])["generations"][row["row"]].as_py()
        trace = reasoning(traces[row["generation"]])
        tokens = len(tokenizer.encode(trace, add_special_tokens=False).ids)
        found.append(1000 * int(count_rethinking([trace], RETHINKING_WORDS)[0]) / tokens)
    return np.array(found)


@pytest.mark.ray
def test_traces_are_judged_once_and_ranked_either_way(tmp_path: Path) -> None:
    """Catches: a signal over traces that sees another trace, judges again, or is ranked the wrong way round; a `select`
    that does not see what is stored."""
    pool, out = tmp_path / "pool", tmp_path / "out"
    assert s2r("synth", "--rows", "150", "--rows-per-file", "60", "--out", pool).code == 0
    weights = {"rethinking": 0.25, "length": 0.75}
    settings = config(tmp_path, signals=[], weights=weights, candidates="all", baselines=["middle:rethinking"])
    first = summary_of("run", "--pool", pool, "--out", out, "--config", settings)
    ranking = pq.read_table(Path(first["run"]) / "ranking")
    assert first["counts"]["rethinking_judged"] == first["counts"]["samples"] >= ranking.num_rows > 150
    assert "difficulty" not in ranking.column_names
    values, lengths = ranking["rethinking"].to_numpy(), ranking["trace_tokens_unique"].to_numpy()
    assert np.abs(values - rethinking_of(pool, ranking)).max() <= 2.0**-20
    assert len(set(values.tolist())) > 20
    ranks = {"rethinking": rankdata(-values), "length": rankdata(-lengths)}
    assert (ranking["rank_rethinking"].to_numpy() == ranks["rethinking"]).all()
    assert np.allclose(ranking["rank_joint"].to_numpy(), 0.25 * ranks["rethinking"] + 0.75 * ranks["length"])

    middle = pq.read_table(Path(first["run"]) / "baselines" / "middle-rethinking" / "top-10pct.parquet")
    away = np.abs(ranks["rethinking"] - (len(values) + 1) / 2)
    expected = np.lexsort((ranking["sample_id"].to_numpy(zero_copy_only=False), -lengths, away))[: middle.num_rows]
    assert middle["sample_id"].to_pylist() == ranking["sample_id"].take(pa.array(expected)).to_pylist()

    settings = config(tmp_path, signals=[], weights=weights, directions={"rethinking": "low"})
    other = summary_of("select", "--out", out, "--config", settings)
    assert (pq.read_table(Path(other["run"]) / "ranking")["rank_rethinking"].to_numpy() == rankdata(values)).all()

    settings = config(tmp_path, signals=[], weights={"length": 1})
    chosen = "verified and rethinking_rank < 0.5"
    some = summary_of("select", "--out", out, "--config", settings, "--filter", chosen)
    kept = pq.read_table(Path(some["run"]) / "ranking")
    assert (
        kept["sample_id"].to_pylist()
        == ranking["sample_id"].filter(ranks["rethinking"] / len(values) < 0.5).to_pylist()
    )
    assert some["counts"]["indexed"] == kept.num_rows + some["counts"]["excluded"]
    assert some["excluded"]["filtered"] == ranking.num_rows - kept.num_rows
    assert json.loads((Path(some["run"]) / "run.json").read_bytes())["filter"] == chosen

    settings = config(tmp_path, signals=[], weights=weights, candidates="all")
    again = summary_of("run", "--pool", pool, "--out", out, "--config", settings)
    assert again["counts"]["rethinking_judged"] == 0
    assert again["counts"]["rethinking_reused"] == first["counts"]["samples"]


def test_names_that_are_wrong_are_told(tmp_path: Path) -> None:
    """Catches: a misspelt signal that silently weighs nothing."""
    pool, out = tmp_path / "pool", tmp_path / "out"
    assert s2r("synth", "--rows", "20", "--out", pool).code == 0
    for settings, words in (
        ({"signals": ["dificulty"]}, "there is no dificulty"),
        ({"directions": {"rethinking": "low"}}, "directions name rethinking"),
        ({"baselines": ["middle:rethink"]}, "no baseline middle:rethink"),
        (
            {"filter": "rethinking_rank < 0.5 and verfied"},
            "at character 27: there is no verfied; did you mean verified?",
        ),
        ({"filter": "rethinking_rnk < 0.5"}, "there is no rethinking_rnk"),
        ({"filter": "rethinking <"}, "filter: rethinking <: at character 13: invalid syntax"),
        ({"rethinking": {"words": ["wait", " "]}}, "a blank word would count everywhere"),
        ({"weights": {"rsr": 1}}, "set student.model"),
    ):
        said = s2r("plan", "--pool", pool, "--out", out, "--config", config(tmp_path, **settings))
        assert_told(said, 2, words)


@pytest.mark.ray
def test_a_student_is_asked_about_traces(tmp_path: Path, tiny_judge: Path) -> None:
    """Catches: a column that comes with a signal and is not ranked, or the wrong way round; perplexity baselines that
    take other samples than the middle ones and the top ones; a trace that is too long and is ranked or not counted."""
    pool, out = tmp_path / "pool", tmp_path / "out"
    assert s2r("synth", "--rows", "60", "--out", pool).code == 0
    student = {"model": str(tiny_judge), "engine": "transformers", "max_tokens": 900}
    names = ["surprisal", "perplexity", "middle:perplexity", "ifd"]
    settings = config(tmp_path, signals=[], weights={"rsr": 1}, student=student, candidates="all", baselines=names)
    first = summary_of("run", "--pool", pool, "--out", out, "--config", settings, "--budget", "20%")
    ranking = pq.read_table(Path(first["run"]) / "ranking")
    values = {name: ranking[name].to_numpy() for name in ("surprisal", "perplexity", "rsr", "ifd")}
    assert all(len(set(column.tolist())) > 20 for column in values.values())
    assert (ranking["rank_rsr"].to_numpy() == rankdata(values["rsr"])).all()
    assert np.allclose(values["perplexity"], np.exp(values["surprisal"]), rtol=1e-5)
    long = first["excluded"]["surprisal_too_long"]
    assert long > 0
    assert first["counts"]["surprisal_judged"] == first["counts"]["ifd_judged"] == ranking.num_rows + long

    ids = ranking["sample_id"].to_numpy(zero_copy_only=False)
    ties = (ids, -ranking["trace_tokens_unique"].to_numpy())
    ranks = {name: rankdata(-column) for name, column in values.items()}
    orders = {name: ranks[name] for name in ("surprisal", "perplexity", "ifd")}
    orders["middle-perplexity"] = np.abs(ranks["perplexity"] - (len(ids) + 1) / 2)
    for name, order in orders.items():
        found = pq.read_table(Path(first["run"]) / "baselines" / name / "top-20pct.parquet")["sample_id"].to_pylist()
        assert found == ids[np.lexsort((*ties, order))[: len(found)]].tolist(), name


@pytest.mark.ray
def test_queries_take_turns(tmp_path: Path, tiny_judge: Path) -> None:
    """Catches: cosines stored with another sample, turns over samples that are not ranked, in another order or from
    another file than the one of the run; vectors that get into what is published; a query set from the pool itself
    that nobody is told of; a `select` that needs the student."""
    pool, out, queries = tmp_path / "pool", tmp_path / "out", tmp_path / "queries.jsonl"
    assert s2r("synth", "--rows", "60", "--rows-per-file", "25", "--out", pool).code == 0
    rows = pq.read_table(pool).to_pylist()
    fit = next(row for row in rows if row["correctness_math_verify"][0] and row["is_reasoning_complete"][0])
    pairs = [(f"{number} + 1 = ?", f"It is {number}. " * number) for number in range(1, 5)]
    pairs += [(fit["problem"], fit["generations"][0]), (fit["problem"], "Who knows.")]
    queries.write_text("".join(json.dumps({"q": question, "r": response}) + "\n" for question, response in pairs))
    settings: dict[str, Any] = {
        "signals": [],
        "weights": {"rds": 1},
        "candidates": "all",
        "student": {"model": str(tiny_judge), "engine": "transformers"},
        "rds": {"queries": str(queries), "question": "q", "response": "r"},
    }
    said = s2r("run", "--json", "--pool", pool, "--out", out, "--config", config(tmp_path, **settings), timeout=300)
    assert said.code == 0, said.err
    assert "of the 6 rds.queries, 2 are questions of the pool, 1 with their response" in " ".join(said.err.split())
    moved = queries.rename(tmp_path / "moved.jsonl")
    names = ["--baseline", "round_robin:rds", "--baseline", "rds", "--budget", "30%"]
    found = summary_of("select", "--out", out, "--config", config(tmp_path, **settings), *names)

    ranking = pq.read_table(Path(found["run"]) / "ranking")
    assert "vector" not in ranking.column_names
    signal = Rds.from_config(load_config(None, {**settings, "rds": {**settings["rds"], "queries": str(moved)}}))
    signal.open()
    texts = [rows_of(pool, row) for row in ranking.to_pylist()]
    vectors = signal.score([Subject(b"", *text) for text in texts]).vectors
    assert vectors is not None
    vectors = np.round(vectors * 2**20) / 2**20
    assert np.abs(ranking["rds"].to_numpy() - vectors.max(axis=1)).max() <= 2.0**-18
    ids = ranking["sample_id"].to_pylist()
    manifest = pq.read_table(Path(found["baselines"]["round_robin:rds"]["30"]))
    assert "vector" not in manifest.column_names
    taken: list[int] = []
    for turn, name in enumerate(manifest["sample_id"].to_pylist()):
        left = [row for row in range(len(ids)) if row not in taken]
        best = max(vectors[row, turn % len(pairs)] for row in left)
        row = ids.index(name)
        assert row in left
        assert vectors[row, turn % len(pairs)] >= best - 2.0**-18, "another batch moves the last bits of a cosine"
        taken.append(row)
    assert len(taken) == len(ids) * 3 // 10
    assert vectors[taken[4], 4] == pytest.approx(1, abs=1e-5), "the query that is in the pool takes itself"


def rows_of(pool: Path, row: dict[str, Any]) -> tuple[str, str]:
    """Question and response of a ranked row."""
    found = pq.read_table(pool / row["file"], columns=["problem", "generations"]).slice(row["row"], 1).to_pylist()[0]
    return found["problem"], found["generations"][row["generation"]]
