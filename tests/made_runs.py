"""Finished runs over an index and scores that are made up, without Ray or a model; what lies in them as one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s2r_ray.baselines import Baselines, baseline_folder
from s2r_ray.candidates import Guards
from s2r_ray.config import Config, PoolSection
from s2r_ray.filters import read_filter
from s2r_ray.index import (
    QUESTIONS_SCHEMA,
    SCHEMA,
    PoolIndex,
    Snapshot,
    candidates_place,
    index_unit,
    label_column,
    questions_place,
    snapshot_place,
)
from s2r_ray.mapping import Mapping as Columns
from s2r_ray.models import find_tokenizer
from s2r_ray.noise import Noise, noise_place
from s2r_ray.publish import RunRecord, new_run_id, publish, recorded_config
from s2r_ray.ranking import Better, parse_weights
from s2r_ray.readers import Unit, plan_units, pool_files
from s2r_ray.report.stored import StoredRun
from s2r_ray.selection import NO_BASELINES, rank
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore, fingerprint_digest
from s2r_ray.strata import Strata
from s2r_ray.tables import read_own, write_own
from tests.fakes import HashJudge

JUDGE = HashJudge()
NO_SIGNALS: Mapping[str, Better] = {}
_COLUMNS = {"id": "id", "question": ("q",), "traces": "a", "labels": {"source": "source"}}
PLACE = ["pool", "file", "row", "generation"]


def made_run(
    folder: Path,
    rows: int,
    seed: int,
    *,
    units: int = 4,
    pools: int = 1,
    levels: int = 16,
    longest: int = 40,
    budgets: Sequence[str] = ("2", "5", "30"),
    weights: Mapping[str, str] | None = None,
    labels: Sequence[Sequence[str]] = (("kind", "source"), ("kind",)),
    noise: float | None = None,
    strata: Strata | None = None,
    baselines: Sequence[str] = (),
    further: Mapping[str, Better] = NO_SIGNALS,
    chosen: str = "",
) -> StoredRun:
    """A run over so many candidates in random order of rows, and a tenth as many left out.

    Args:
        levels, longest: so many values of difficulty, and lengths up to this: small ones make ties.
        labels: of the units, in turn; so some have no such column.
        noise: of the judge, as if it had been measured.
        further: signals that judge samples, with what is better in them; values are by name and length, with ties.
        chosen: a filter.
    """
    rng = np.random.default_rng(seed)
    out = Place.of(folder)
    store = ScoreStore.of(out, JUDGE)
    found = []
    for number, size in enumerate(np.diff(np.linspace(0, rows, units + 1).astype(int)).tolist()):
        names = labels[number % len(labels)]
        key = f"{number % len(labels):032x}/{number:032x}"
        unit = Unit(number * pools // units, f"part-{number // 2}.parquet", 1, "1", first_row=1000 * (number % 2))
        table, questions = _unit(rng, size, unit.first_row, number, names, longest)
        write_own(candidates_place(out, key), table)
        write_own(questions_place(out, key), questions)
        values = rng.integers(0, levels, questions.num_rows) / levels
        store.append(_scores(questions["question_key"].combine_chunks(), values, rng))
        asked = table.filter(pc.is_null(table["reason"]))
        for name in further:
            own = further_store(out, name)
            own.append(_scores(asked["sample_key"].combine_chunks(), _further_values(rng, name, asked)))
        found.append((unit, key))
    snapshot = Snapshot(tuple(f"/pool-{number}" for number in range(pools)), tuple(found))
    snapshot_place(out, snapshot.digest()).write_bytes(snapshot.to_json())
    if noise is not None:
        measured = Noise(64, noise, noise / 2)
        noise_place(store).write_bytes(
            f'{{"pairs": 64, "largest": {measured.largest}, "rms": {measured.rms}}}'.encode()
        )
    config = recorded_config(Config()) | {"pools": [{"uri": uri} for uri in snapshot.pools]}
    weights = weights or {"difficulty": "0.25", "length": "0.75"}
    return ranked_run(out, snapshot, budgets, weights, config, strata, Baselines(tuple(baselines)), further, chosen)


def further_store(out: Place, name: str) -> ScoreStore:
    """The scores of a made-up signal of that name."""
    return ScoreStore.at(out, name, fingerprint_digest(further_fingerprint(name)), (), "sample")


def further_fingerprint(name: str) -> dict[str, Any]:
    """What stands for all that could change its values."""
    return {"signal": name, "fake": "made"}


def _further_values(rng: np.random.Generator, name: str, rows: pa.Table) -> np.ndarray:
    """Below and above zero, in steps of an eighth, the more like the length the shorter the name."""
    length = rows["trace_tokens_unique"].to_numpy()
    noise = rng.normal(size=len(length))
    return np.round(8 * (noise - (length - length.mean()) / max(1, length.std()) / len(name))) / 8


def pool_run(
    folder: Path, rows: Sequence[Mapping[str, Any]], tokenizer: Path, *, budgets: Sequence[str] = ("10", "40")
) -> StoredRun:
    """A run over a pool of one JSONL file, judged by HashJudge. Rows have `id`, `q`, `a`, and perhaps `source`."""
    pool, out = Place.of(folder / "pool"), Place.of(folder / "out")
    lines = [json.dumps(row) for row in rows]
    pool.child("rows.jsonl").write_bytes("\n".join(lines).encode())
    section = PoolSection(uri=pool.uri, mapping=Columns(**_COLUMNS))
    indexer = PoolIndex(pool, out, section.resolved_mapping(), Guards(), "first", find_tokenizer(str(tokenizer)))
    (unit,) = plan_units(pool, 0, pool_files(pool.files(), pool.uri))
    outcome = index_unit(indexer, unit)
    assert outcome.error is None
    snapshot = Snapshot((pool.uri,), ((unit, outcome.key),))
    snapshot_place(out, snapshot.digest()).write_bytes(snapshot.to_json())
    questions = read_own(questions_place(out, outcome.key))
    values = [JUDGE.value(question) for question in questions["question"].to_pylist()]
    rng = np.random.default_rng(0)
    ScoreStore.of(out, JUDGE).append(_scores(questions["question_key"].combine_chunks(), np.array(values), rng))
    weights = {"difficulty": "0.25", "length": "0.75"}
    return ranked_run(out, snapshot, budgets, weights, {"pools": [section.model_dump(mode="json")]})


def ranked_run(
    out: Place,
    snapshot: Snapshot,
    budgets: Sequence[str],
    weights: Mapping[str, str],
    config: Mapping[str, Any],
    strata: Strata | None = None,
    baselines: Baselines = NO_BASELINES,
    further: Mapping[str, Better] = NO_SIGNALS,
    chosen: str = "",
) -> StoredRun:
    """Rank what is stored and publish it with this configuration beside the weights."""
    run_id = new_run_id()
    place = out.child("runs", run_id)
    stores = {JUDGE.name: ScoreStore.at(out, JUDGE.name, fingerprint_digest(JUDGE.fingerprint()), JUDGE.extras)}
    stores |= {name: further_store(out, name) for name in further}
    better: dict[str, Better] = {"difficulty": "high", "length": "high", **further}
    parsed = parse_weights(weights, list(better))
    read = read_filter(chosen) if chosen else None
    ranking = rank(out, snapshot, stores, parsed, budgets, place, strata, baselines, better, read)
    record = RunRecord(
        run_id=run_id,
        started="2026-11-21T12:00:00+00:00",
        config={**config, "weights": dict(weights)},
        pools=list(snapshot.pools),
        snapshot=snapshot.digest(),
        index={"tokenizer": "t", "fingerprints": []},
        fingerprints={JUDGE.name: JUDGE.fingerprint(), **{name: further_fingerprint(name) for name in further}},
        subjects={JUDGE.name: "question", **dict.fromkeys(further, "sample")},
        counts={
            "indexed": ranking.indexed,
            "ranked": ranking.ranked,
            "excluded": sum(ranking.excluded.values()),
            "files_read": len(snapshot.units),
            "files_reused": 0,
            "difficulty_judged": ranking.ranked,
            "difficulty_reused": 0,
        },
        excluded=ranking.excluded,
        budgets=ranking.budgets,
        addressing_judge=ranking.addressing,
        weights=parsed.as_floats(),
        filter=chosen,
        better=better if further else {},
        strata={**strata.model_dump(), "groups": ranking.groups} if strata else None,
        baselines={name: baseline_folder(name) for name in baselines.names},
        seconds={"index": 2.0, "difficulty": 4.0, "difficulty_in_workers": 3.5, "difficulty_loading": 1.0, "rank": 0.5},
    )
    publish(out, place, record)
    return StoredRun(out, place, record)


def _unit(
    rng: np.random.Generator, size: int, first_row: int, number: int, labels: Sequence[str], longest: int
) -> tuple[pa.Table, pa.Table]:
    """A unit's index rows, every eleventh of them left out, and the questions of the others."""
    total = size + size // 10
    left_out = np.zeros(total, np.bool_)
    left_out[rng.permutation(total)[: size // 10]] = True
    keys = [rng.bytes(16) for _ in range(total)]
    unique = rng.integers(1, longest + 1, total)
    columns = {
        "sample_id": [f"{rng.integers(10**6):06d}-{number}-{row}" for row in range(total)],
        "row": first_row + np.arange(total) // 2,
        "generation": np.arange(total) % 2,
        "question_key": keys,
        "sample_key": [rng.bytes(16) for _ in range(total)],
        "question_tokens": np.ones(total),
        "response_tokens": unique + 5,
        "trace_tokens": unique + rng.integers(0, 3, total),
        "trace_tokens_unique": unique,
        "trace_characters": unique * 4,
        "rethinking_words": rng.integers(0, 5, total),
        "addresses_judge": rng.random(total) < 0.1,
        "verified": rng.random(total) < 0.7,
        "complete": pa.array(rng.random(total) < 0.8, mask=rng.random(total) < 0.1),
        "finish_reason": rng.choice(["stop", "length"], total),
        "reason": pa.array(["unverified"] * total, mask=~left_out),
        "detail": pa.array(["no verdict"] * total, mask=~left_out),
    }
    fields = list(SCHEMA)
    for label in labels:
        words = [None if rng.random() < 0.1 else f"{label} {rng.integers(5)}" for _ in range(total)]
        columns[label_column(label)] = words
        fields.append(pa.field(label_column(label), pa.dictionary(pa.int32(), pa.string())))
    arrays = {field.name: pa.array(columns[field.name]).cast(field.type) for field in fields}
    asked = [key for key, out in zip(keys, left_out, strict=True) if not out]
    questions = {"question_key": asked, "question": [f"What is {key.hex()}?" for key in asked]}
    return pa.table(arrays), pa.table(questions, QUESTIONS_SCHEMA)


def _scores(keys: pa.Array, values: np.ndarray, rng: np.random.Generator | None = None) -> pa.Table:
    """With the dice, two rows in a hundred are faults, and there is a label mass."""
    faulty = rng.random(len(keys)) < 0.02 if rng else np.zeros(len(keys), np.bool_)
    extras = {"label_mass": pa.array(1 - rng.random(len(keys)) / 2, mask=faulty)} if rng else {}
    return pa.table(
        {
            "key": keys,
            "value": pa.array(values, mask=faulty),
            **extras,
            "status": np.where(faulty, "too_long", "ok"),
            "detail": pa.array(["9 tokens, at most 8" if bad else None for bad in faulty], pa.string()),
        }
    )


def all_rows(run: StoredRun) -> pd.DataFrame:
    """Every ranked row, with what the index has of it and `position`, 0 for rows that no budget selects."""
    ranking = pq.read_table(Path(run.place.uri) / "ranking").to_pandas()
    manifest = pq.read_table(Path(run.place.uri) / "manifests" / f"top-{run.budgets[-1][0]}pct.parquet").to_pandas()
    snapshot = run.snapshot()
    assert snapshot is not None
    parts = []
    for unit, key in snapshot.units:
        part = pq.read_table(candidates_place(run.out, key).uri).to_pandas()
        parts.append(part.assign(pool=snapshot.pools[unit.pool], file=unit.path))
    index = pd.concat(parts, ignore_index=True).astype({"row": "int64", "generation": "int32"})
    known = ["rethinking_words", "addresses_judge", *(name for name in index.columns if name.startswith("label_"))]
    for table in (ranking, manifest):
        if "pool" not in table:
            table["pool"] = snapshot.pools[0]
    found = ranking.merge(index[[*PLACE, *known]], on=PLACE, how="left", validate="one_to_one")
    found = found.merge(manifest[[*PLACE, "position"]], on=PLACE, how="left", validate="one_to_one")
    assert found["rethinking_words"].notna().all()
    return found.assign(position=found["position"].fillna(0).astype(int))
