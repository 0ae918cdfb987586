"""Selections from what is stored, with no pool, no model and no Ray; who reads a new pool."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from s2r_ray.cluster import Cluster, Connection
from s2r_ray.config import load_config
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.index import UnitOutcome, indexed_keys, unit_keys
from s2r_ray.pipeline import Done, _index, _outcomes, _reads_here, check_bad_files, select
from s2r_ray.plan import Plan, prepare
from s2r_ray.progress import Progress
from s2r_ray.publish import RunRecord
from s2r_ray.ranking import Better
from s2r_ray.scored import Scored, read_scored, write_scored
from s2r_ray.storage import Place
from s2r_ray.store import fingerprint_digest
from s2r_ray.synth import write_pool
from tests.fakes import HashJudge
from tests.made_runs import JUDGE, further_fingerprint, made_run

SIGNALS: dict[str, Better] = {"rsr": "low", "words": "high"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output place where three signals were scored, two of which no table of the package knows."""
    run = made_run(tmp_path_factory.mktemp("stored"), 200, 3, further=SIGNALS)
    snapshot = run.snapshot()
    assert snapshot is not None
    prints: dict[str, dict[str, Any]] = {name: further_fingerprint(name) for name in SIGNALS}
    prints["difficulty"] = JUDGE.fingerprint()
    ranked = {name: {name: side} for name, side in (SIGNALS | dict(JUDGE.ranked)).items()}
    stores = {
        name: {
            "digest": fingerprint_digest(found),
            "extras": list(JUDGE.extras) if name == JUDGE.name else [],
            "subject": "question" if name == JUDGE.name else "sample",
            "ranked": ranked[name],
            "vector": 0,
            "fingerprint": found,
        }
        for name, found in prints.items()
    }
    index = {"tokenizer": "t", "fingerprints": [], "labels": ["kind"], "stated": ["verified"]}
    write_scored(run.out, Scored(snapshot, stores, index, run.record.config, {"questions": 200, "samples": 200}))
    return run.out.uri


def selected(out: str, **settings: Any) -> tuple[RunRecord, Place]:
    return select(load_config(None, {"out": out, "signals": [], **settings}), Progress(io.StringIO()))


def test_what_is_named_is_combined(out: str) -> None:
    """Catches: a signal from outside the package that is stored and not found, one that is named by the filter alone,
    and one that nobody names and that leaves rows out all the same."""
    record, place = selected(out, weights={"rsr": "0.5", "length": "0.5"}, filter="verified and words_rank < 0.5")
    assert record.fingerprints.keys() == {"rsr", "words"}
    assert record.better == {"rsr": "low", "words": "high", "length": "high"}
    assert record.filter == record.config["filter"] == "verified and words_rank < 0.5"
    assert record.excluded.keys() == {"unverified", "filtered"}
    ranking = pq.read_table(Path(place.uri) / "ranking")
    assert {"rsr", "words", "rank_rsr", "rank_words"} < set(ranking.column_names)
    assert "difficulty" not in ranking.column_names
    best = pq.read_table(Path(place.uri) / "manifests" / "top-10pct.parquet")
    assert best["rank_rsr"].to_pylist()[0] < ranking.num_rows / 4

    record, _ = selected(out, weights={"rsr": "1"}, directions={"rsr": "high"}, filter="label_mass > 0.6")
    assert record.fingerprints.keys() == {"rsr", "difficulty"}
    assert record.better["rsr"] == "high"

    record, place = selected(out, weights={"length": "1"})
    assert (record.fingerprints, record.excluded.keys()) == ({}, {"unverified"})
    assert place.child("report.html").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"filter": "finish_reason == 'stop'"}, "no finish_reason; no mapping of a pool names a column for it"),
        ({"filter": "rethinking < 1"}, "no rethinking; it has no scores here; `s2r run` with this filter"),
        ({"filter": "kind < 1"}, "the number 1 is compared with kind, a text"),
        ({"filter": "rsr <"}, "filter: rsr <: at character 6: invalid syntax"),
        (
            {"weights": {"surprisal": 1}},
            "weight for surprisal, which has no scores in .* Scored: length",
        ),
        ({"weights": {"lenght": 1}}, r"weight for unknown signal lenght; did you mean length\? Signals here: length"),
    ],
)
def test_what_is_not_there(settings: dict[str, Any], told: str, out: str) -> None:
    """Catches: an error that comes after the ranking, or does not say what there is."""
    before = sorted(Path(out, "runs").iterdir())
    with pytest.raises(UsageError, match=told):
        selected(out, **{"weights": {"length": 1}, **settings})
    assert sorted(Path(out, "runs").iterdir()) == before


def test_what_was_scored_before_stays(out: str) -> None:
    """Catches: a run with other signals that hides the scores of an earlier one over the same files from `select`."""
    place = Place.of(out)
    all_of_them = read_scored(place)
    few = replace(all_of_them, stores={"words": all_of_them.stores["words"]}, counts={"samples": 200})
    write_scored(place, few)
    assert read_scored(place) == all_of_them
    record, _ = selected(out, weights={"rsr": "0.5", "length": "0.5"})
    assert record.fingerprints.keys() == {"rsr"}
    other = replace(few, index={**few.index, "tokenizer": "another"})
    write_scored(place, other)
    assert read_scored(place).stores.keys() == {"words"}, "other lengths: what was scored is of another index"
    write_scored(place, all_of_them)


def test_another_model_in_the_configuration_is_told(out: str) -> None:
    """Catches: the scores of one student ranked under the name of another, without a word."""
    said = io.StringIO()
    settings = {"out": out, "signals": [], "weights": {"length": 1}}
    select(load_config(None, {**settings, "student": {"model": "another"}}), Progress(said))
    assert "warning: student.model is another in the configuration, and was" in said.getvalue()
    said = io.StringIO()
    select(load_config(None, settings), Progress(said))
    assert "warning: student" not in said.getvalue()


class Ahead(Connection):
    """A Ray of our own that was started ahead, or not, and never comes."""

    def __init__(self, ahead: bool = True) -> None:
        super().__init__(None)
        self._is = ahead

    @property
    def ahead(self) -> bool:
        return self._is

    @property
    def cluster(self) -> Cluster:
        raise AssertionError("Ray was waited for")


@pytest.fixture
def new_pool(tmp_path: Path) -> Plan:
    """A run over two files that nobody has read."""
    write_pool(Place.of(tmp_path / "pool"), 8, 0, 4)
    pools = [{"uri": str(tmp_path / "pool"), "preset": "openr1-math-220k"}]
    return prepare(load_config(None, {"pools": pools, "out": str(tmp_path / "out")}), [HashJudge()])


def test_little_is_read_while_ray_starts(new_pool: Plan) -> None:
    """Catches: a small pool that waits for Ray's processes, or is read without being asked about."""
    outcomes = list(_outcomes(new_pool, Ahead()))
    assert {outcome.key for outcome in outcomes} == indexed_keys(new_pool.out) == {key for _, key in new_pool.fresh}
    assert sum(outcome.traces for outcome in outcomes) > 8
    assert not any(outcome.error for outcome in outcomes)


def test_all_else_is_read_by_tasks(new_pool: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a large pool that one process reads, or a cluster that has nothing to do."""
    assert _reads_here(new_pool, Ahead())
    assert not _reads_here(new_pool, Ahead(ahead=False))
    far = replace(new_pool.pools[0], root=Place.of("s3://bucket/pool"))
    assert not _reads_here(replace(new_pool, pools=(far,)), Ahead())
    assert not _reads_here(replace(new_pool, out=Place.of("s3://bucket/out")), Ahead())
    sizes = sum(Path(new_pool.pool_uris[0], unit.path).stat().st_size for unit, _ in new_pool.units)
    assert new_pool.bytes_to_read == sizes
    monkeypatch.setattr("s2r_ray.pipeline._READ_HERE_BYTES", sizes - 1)
    assert not _reads_here(new_pool, Ahead())


def test_unreadable_files_are_counted_once_and_by_pool(new_pool: Plan) -> None:
    """Catches: files of the same name in two pools taken for one, so that more are put up with than is allowed; a large
    file counted once for each of its parts."""
    bad = [UnitOutcome("a", 0, "x.parquet", error="torn"), UnitOutcome("b", 1, "x.parquet", error="torn, too")]
    check_bad_files([*bad, replace(bad[0], key="c")], 2, Progress())
    with pytest.raises(S2RError, match=r"2 unreadable files, at most 1 allowed: x\.parquet, x\.parquet\. First: torn"):
        check_bad_files(bad, 1, Progress())
    (file, _), *_ = new_pool.units
    parts = tuple(unit_keys(new_pool.pools, [replace(file, row_groups=(at, at + 1)) for at in (0, 1)]))
    config = new_pool.config.model_copy(update={"max_bad_files": 1})
    Path(new_pool.pool_uris[0], file.path).write_bytes(b"PAR1 and no more")
    snapshot = _index(replace(new_pool, config=config, units=parts, fresh=parts), Ahead(), Progress(quiet=True), Done())
    assert [(pool, path) for pool, path, _ in snapshot.unreadable] == [(0, file.path)]
    assert not snapshot.units
