"""The same pool gives the same ranking to the byte, however the work was cut up, and the ranking is the right one."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

from s2r_ray import parts, pipeline, plan, readers
from s2r_ray.config import load_config
from s2r_ray.errors import UsageError
from s2r_ray.plan import prepare
from s2r_ray.progress import Progress
from s2r_ray.publish import RunRecord
from s2r_ray.ranking import Better
from s2r_ray.signals.base import Scores, Subject
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.summary import top_table
from s2r_ray.synth import make_rows
from tests.command import results
from tests.fakes import HashJudge

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

CUTOFF = 1500
BUDGETS = ("2", "5", "10", "33.3", "100")
BASELINES = ("random", "longest", "difficulty", "stratified:source")
NUMBERS = ["difficulty", "trace_tokens", "trace_tokens_unique", "rank_difficulty", "rank_length", "rank_joint"]


class Novelty(HashJudge):
    """A second signal, without further columns; larger where the first is smaller."""

    name: ClassVar[str] = "novelty"
    ranked: ClassVar[Mapping[str, Better]] = {"novelty": "high"}
    extras: ClassVar[tuple[str, ...]] = ()

    def score(self, batch: Sequence[Subject]) -> Scores:
        return Scores(1 - super().score(batch).values)


def pool_rows() -> pa.Table:
    """300 made-up problems, and 15 of them once more under another id."""
    rows = make_rows(11, range(300))
    again = rows.slice(40, 15)
    ids = pa.array([f"{number:02d}-again" for number in range(15)])
    return pa.concat_tables([rows, again.set_column(rows.schema.get_field_index("uuid"), "uuid", ids)])


def write(folder: Path, rows_per_file: int, group: int) -> Path:
    folder.mkdir()
    table = pool_rows()
    for number, start in enumerate(range(0, table.num_rows, rows_per_file)):
        target = folder / f"part-{number:05d}.parquet"
        pq.write_table(table.slice(start, rows_per_file), target, row_group_size=group)
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several row groups."""
    return write(tmp_path_factory.mktemp("invariance") / "pool", 64, 16)


def run(
    pools: Path | list[Path], out: Path, tokenizer: Path, judge: HashJudge | None = None, **more: Any
) -> tuple[RunRecord, Place]:
    settings = {
        "pools": [{"uri": str(pool)} for pool in (pools if isinstance(pools, list) else [pools])],
        "out": str(out),
        "tokenizer": str(tokenizer),
        "guards": {"cutoff_tokens": CUTOFF},
        "budgets": list(BUDGETS),
        "baselines": list(BASELINES),
        **more,
    }
    return pipeline.run(load_config(None, settings), Progress(quiet=True), signals=[judge or HashJudge()])


@pytest.fixture(scope="module")
def plain(
    pool: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, local_ray: None
) -> tuple[RunRecord, Place]:
    """The run that the others are held against: one worker, large batches, whole files."""
    del local_ray
    return run(pool, tmp_path_factory.mktemp("plain"), tokenizer_dir)


def manifests(place: Place) -> dict[str, str]:
    return {name: digest for name, digest in results(place).items() if name.startswith(("manifests/", "baselines/"))}


def by_strata(place: Place) -> Place:
    """Another run over what this one stored."""
    out = str(Path(place.uri).parents[1])
    settings = {"out": out, "strata": {"by": "source"}, "baselines": list(BASELINES), "budgets": list(BUDGETS)}
    return pipeline.select(load_config(None, settings), Progress(quiet=True))[1]


def table(place: Place, name: str) -> pd.DataFrame:
    return pq.read_table(Path(place.uri) / name).to_pandas()


# --- the same to the byte -------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "batch"), [(3, 7), (2, 1000)])
def test_workers_and_batches(
    workers: int,
    batch: int,
    pool: Path,
    plain: tuple[RunRecord, Place],
    tmp_path: Path,
    tokenizer_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch scores joined by position instead of key, and results in order of arrival."""
    monkeypatch.setattr(ScoreStore, "put_together", lambda _store: None)
    _, place = run(pool, tmp_path, tokenizer_dir, HashJudge(workers, batch))
    assert results(place) == results(plain[1])
    parts = [file for file in Place.of(tmp_path).child("scores").files() if "/part-" in file.path]
    assert (len(parts) > 20) == (batch == 7), "the batches were not cut as this test thinks"


def test_unit_sizes(
    pool: Path, plain: tuple[RunRecord, Place], tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch row numbers that begin anew in each part of a file, and rows lost or doubled at its edges."""
    monkeypatch.setattr(readers, "_UNIT_BYTES", 20_000)
    record, place = run(pool, tmp_path, tokenizer_dir)
    assert record.counts["units"] > 10
    assert results(place) == results(plain[1])


@pytest.mark.parametrize("rows", [0, 1, 16, 64, 65, 333])
def test_parts_and_row_groups(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch parts that are cut where a pool file happens to end, and rows lost or doubled at a cut."""
    monkeypatch.setattr(parts, "_PART_ROWS", 64)
    monkeypatch.setattr(parts, "_GROUP_ROWS", 16)
    whole = pa.table({"number": np.arange(rows), "text": [f"row {row}" for row in range(rows)]})
    dice = random.Random(rows)
    found = []
    for attempt in range(5):
        writer = parts.Parts(Place.of(tmp_path / str(attempt)))
        cuts = [0, *sorted(dice.randint(0, rows) for _ in range(10 * attempt)), rows]
        for start, stop in pairwise(cuts):
            writer.add(whole.slice(start, stop - start))
        writer.finish()
        found.append(results(Place.of(tmp_path / str(attempt))))
    assert found == [found[0]] * 5
    assert len(found[0]) == max(1, -(-rows // 64))
    assert pq.read_table(tmp_path / "4").equals(whole)


def test_order_of_listing(
    pool: Path, plain: tuple[RunRecord, Place], tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch ties broken, or duplicates chosen, by who comes first in a listing."""
    ordered = readers.plan_units

    def shuffled(*arguments: Any) -> list[readers.Unit]:
        units = ordered(*arguments)
        random.Random(1).shuffle(units)
        return units

    monkeypatch.setattr(readers, "_UNIT_BYTES", 20_000)
    monkeypatch.setattr(plan, "plan_units", shuffled)
    _, place = run(pool, tmp_path, tokenizer_dir)
    assert manifests(place) == manifests(plain[1])
    for name in ("ranking", "excluded.parquet"):
        by_location = ["file", "row", "generation"]
        found, expected = (table(run, name).sort_values(by_location, ignore_index=True) for run in (place, plain[1]))
        pd.testing.assert_frame_equal(found, expected)


def test_cut_into_other_files(plain: tuple[RunRecord, Place], tmp_path: Path, tokenizer_dir: Path) -> None:
    """Would catch ranks per file, and sample ids, ties or lots that depend on where a row lies."""
    _, place = run(write(tmp_path / "pool", 31, 1000), tmp_path / "out", tokenizer_dir)
    assert len(manifests(place)) == len(BUDGETS) * (1 + len(BASELINES))
    for runs in ((place, plain[1]), (by_strata(place), by_strata(plain[1]))):
        for name in manifests(place):
            found, expected = (table(run, name).drop(columns=["file", "row"]) for run in runs)
            pd.testing.assert_frame_equal(found, expected)


def test_order_of_pools(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Would catch one pool preferred to another because it was named first, and a row that is not told which pool it
    comes from."""
    pools = []
    for seed in (1, 2):
        pools.append(tmp_path / f"pool-{seed}")
        pools[-1].mkdir()
        pq.write_table(make_rows(seed, range(60)), pools[-1] / "part-00000.parquet")
    _, one = run(pools, tmp_path / "one", tokenizer_dir)
    _, other = run(pools[::-1], tmp_path / "other", tokenizer_dir)
    assert manifests(one) == manifests(other)
    top = table(one, "manifests/top-100pct.parquet")
    assert set(top["pool"]) == {str(pool) for pool in pools}


# --- and the right one ----------------------------------------------------------------------------


def expected_ranking(rows: pa.Table, tokenizer_dir: Path, choice: str) -> tuple[pd.DataFrame, Counter[str]]:
    """METHOD.md from scratch, slowly: (what is ranked, by sample id; how many are left out for which reason)."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(str(tokenizer_dir)).encode
    judge = HashJudge()
    left_out: Counter[str] = Counter()
    fit: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        passed = []
        for generation, text in enumerate(row["generations"]):
            verdicts = row["correctness_math_verify"]
            if verdicts is None or not verdicts[generation]:
                left_out["unverified"] += 1
                continue
            if not row["is_reasoning_complete"][generation]:
                left_out["incomplete"] += 1
                continue
            trace = re.fullmatch(r"<think>(.*)</think>.*", text, re.DOTALL)[1]  # type: ignore[index]
            steps = list(dict.fromkeys(step.strip() for step in trace.split("\n\n") if step.strip()))
            if len(encode(row["problem"])) + len(encode(text)) > CUTOFF:
                left_out["over_cutoff"] += 1
                continue
            passed.append(
                {
                    "sample_id": f"{row['uuid']}#{generation}",
                    "question": row["problem"],
                    "text": text,
                    "difficulty": judge.value(row["problem"]),
                    "trace_tokens": len(encode(trace)),
                    "trace_tokens_unique": len(encode("\n\n".join(steps))) if has_repeat(trace) else len(encode(trace)),
                }
            )
        if passed and choice != "all":
            best = passed[0] if choice == "first" else max(passed, key=lambda sample: sample["trace_tokens_unique"])
            left_out["not_chosen"] += len(passed) - 1
            passed = [best]
        fit += passed
    frame = pd.DataFrame(fit).sort_values("sample_id")
    twice = frame.duplicated(["question", "text"])
    left_out["duplicate_sample"] = int(twice.sum())
    frame = frame[~twice]
    silent = frame["question"].map(judge.is_silent)
    left_out["difficulty_too_long"] = int(silent.sum())
    frame = frame[~silent]
    frame["rank_difficulty"] = rankdata(-frame["difficulty"])
    frame["rank_length"] = rankdata(-frame["trace_tokens_unique"])
    return frame.set_index("sample_id"), +left_out


def has_repeat(trace: str) -> bool:
    steps = [step.strip() for step in trace.split("\n\n") if step.strip()]
    return len(set(steps)) < len(steps)


def in_order(frame: pd.DataFrame, difficulty: str, length: str) -> pd.DataFrame:
    """By the weighted sum of ranks, exactly; equals by the longer trace, then by sample id."""
    weights = Fraction(difficulty), Fraction(length)
    joint = [
        (weights[0] * Fraction(hard) + weights[1] * Fraction(long)) / sum(weights)
        for hard, long in zip(frame["rank_difficulty"], frame["rank_length"], strict=True)
    ]
    keys = zip(joint, -frame["trace_tokens_unique"], frame.index, range(len(frame)), strict=True)
    frame = frame.assign(rank_joint=np.array(joint, float))
    return frame.iloc[[position for *_, position in sorted(keys)]]


@pytest.mark.parametrize("choice", ["first", "longest", "all"])
def test_equals_brute_force(choice: str, pool: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    """Would catch almost everything: guards, the choice of a trace, duplicates, lengths, ranks, ties, budgets; and
    rows that are neither ranked nor accounted for."""
    record, place = run(pool, tmp_path, tokenizer_dir, candidates=choice)
    rows = pool_rows()
    expected, left_out = expected_ranking(rows, tokenizer_dir, choice)
    assert record.excluded == left_out
    assert left_out["over_cutoff"] > 0
    assert left_out["duplicate_sample"] > 0
    assert table(place, "excluded.parquet")["reason"].value_counts().to_dict() == left_out
    traces = sum(map(len, rows["generations"].to_pylist()))
    assert record.counts["indexed"] == record.counts["ranked"] + record.counts["excluded"] == traces

    ranking = table(place, "ranking").set_index("sample_id")
    assert ranking.index.is_unique
    best = in_order(expected, "0.25", "0.75")
    pd.testing.assert_frame_equal(
        ranking.loc[best.index, NUMBERS], best[NUMBERS], check_dtype=False, check_exact=False, rtol=1e-12
    )
    for budget in BUDGETS:
        top = table(place, f"manifests/top-{budget}pct.parquet")
        size = max(1, floor(len(expected) * Fraction(budget) / 100))
        assert top["sample_id"].tolist() == best.index[:size].tolist()
        assert top["position"].tolist() == list(range(1, size + 1))
        assert record.budgets[budget] == size


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        ({"difficulty": "0", "length": "1"}, "trace_tokens_unique"),
        ({"difficulty": "1", "length": "0"}, "difficulty"),
        ({"difficulty": "3", "length": "1"}, None),
    ],
)
def test_other_weights(
    weights: dict[str, str], first: str | None, plain: tuple[RunRecord, Place], tokenizer_dir: Path
) -> None:
    """Would catch w = 0 that is not pure length, w = 1 that is not pure difficulty, and weights that must add up to
    one. With one signal alone its order is simply the order of its values."""
    out = str(Path(plain[1].uri).parents[1])
    settings = load_config(None, {"out": out, "weights": weights, "budgets": ["100"]})
    _, place = pipeline.select(settings, Progress(quiet=True))
    top = table(place, "manifests/top-100pct.parquet")
    expected, _ = expected_ranking(pool_rows(), tokenizer_dir, "first")
    assert top["sample_id"].tolist() == in_order(expected, weights["difficulty"], weights["length"]).index.tolist()
    if first:
        by_hand = expected.reset_index().sort_values(
            [first, "trace_tokens_unique", "sample_id"], ascending=[False, False, True]
        )
        assert top["sample_id"].tolist() == by_hand["sample_id"].tolist()
        assert (top["rank_joint"] == top["rank_length" if first != "difficulty" else "rank_difficulty"]).all()


def test_signals_that_the_package_does_not_know(pool: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    """Would catch a stage, report or table that counts on a signal called difficulty, and scores of two signals that
    land in each other's columns."""
    settings = {
        "pools": [{"uri": str(pool)}],
        "out": str(tmp_path / "out"),
        "tokenizer": str(tokenizer_dir),
        "weights": {"novelty": "0.5", "difficulty": "0.5"},
    }
    quiet = Progress(quiet=True)
    _, place = pipeline.run(load_config(None, settings), quiet, signals=[HashJudge(), Novelty()])
    ranking = pq.read_table(Path(place.uri) / "ranking")
    assert {"difficulty", "novelty", "rank_difficulty", "rank_novelty", "rank_length"} <= set(ranking.column_names)
    assert set((ranking["difficulty"].to_numpy() + ranking["novelty"].to_numpy()).tolist()) == {1.0}
    # Opposite signals of equal weight: the ranks add up to N + 1 in every row.
    assert set(ranking["rank_joint"].to_numpy().tolist()) == {(ranking.num_rows + 1) / 2}
    alone = load_config(None, {**settings, "weights": {"novelty": "1"}, "out": str(tmp_path / "alone")})
    record, place = pipeline.run(alone, quiet, signals=[Novelty()])
    assert "novelty" in top_table(record, place)
    with pytest.raises(UsageError, match="label_mass"):
        prepare(load_config(None, {**settings, "weights": {"length": "1"}}), [HashJudge(), HashJudge()])


def test_output_in_the_pool_is_refused(pool: Path, tokenizer_dir: Path) -> None:
    """Would catch an index that is read as part of the pool by the next run."""
    for out in (pool, pool / "selection"):
        settings = {"pools": [{"uri": str(pool)}], "out": str(out), "tokenizer": str(tokenizer_dir)}
        with pytest.raises(UsageError, match="lies in the pool"):
            prepare(load_config(None, settings), [HashJudge()])


def test_a_pool_of_one_file_takes_an_output_beside_it(pool: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    """Would catch a file of the working folder that cannot be tried with an output there."""
    file = next(path for path in sorted(pool.iterdir()) if path.suffix == ".parquet")
    shutil.copy(file, tmp_path / file.name)
    pools = [{"uri": str(tmp_path / file.name), "preset": "openr1-math-220k"}]
    settings = {"pools": pools, "out": str(tmp_path / "out"), "tokenizer": str(tokenizer_dir)}
    assert [unit.path for unit, _ in prepare(load_config(None, settings), [HashJudge()]).units] == [file.name]
