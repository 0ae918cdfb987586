"""Baselines and strata over a made-up index: against pandas, and the same wherever rows lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

from s2r_ray import groups
from s2r_ray.baselines import Baselines, baseline_place, check_baselines, draw
from s2r_ray.errors import UsageError
from s2r_ray.index import candidates_place, label_column
from s2r_ray.ranking import budget_size
from s2r_ray.selection import Ranking, manifest_place, rank
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.strata import Share, Strata
from tests.benchmarks.bench_driver import make, plan_of, snapshot_of

ROWS, UNITS = 2000, 4
BUDGETS = ("1", "10", "50", "100")
NAMES = ("random", "longest", "shortest", "difficulty", "stratified:source")
LENGTH = "trace_tokens_unique"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An index with duplicates, rows without a label, and its scores, some of them faults."""
    place = Place.of(tmp_path_factory.mktemp("made-up"))
    make(place, ROWS, UNITS, seed=0)
    return place


@pytest.fixture(scope="module")
def candidates(out: Place) -> pd.DataFrame:
    """What the index has of each candidate, by sample id."""
    tables = [pq.read_table(candidates_place(out, key).uri) for _, key in plan_of(out, ROWS, UNITS).units]
    frame = pa.concat_tables(tables).combine_chunks().to_pandas().set_index("sample_id")
    return frame[frame["reason"].isna()]


def select(
    out: Place,
    run: Place,
    strata: Strata | None = None,
    names: Sequence[str] = (),
    seed: int = 0,
    *,
    turned: bool = False,
) -> Ranking:
    plan = plan_of(out, ROWS, UNITS)
    stores = {"difficulty": ScoreStore.of(out, plan.signals[0])}
    snapshot = snapshot_of(plan)
    snapshot = replace(snapshot, units=snapshot.units[::-1]) if turned else snapshot
    return rank(out, snapshot, stores, plan.weights, BUDGETS, run, strata, Baselines(tuple(names), seed))


def read(place: Place) -> pd.DataFrame:
    return pq.read_table(place.uri).to_pandas()


def check_manifest(found: pd.DataFrame, order: Sequence[str], ranking: pd.DataFrame, budget: str) -> None:
    """A manifest has the first rows of this order, each with the numbers that the ranking has."""
    size = budget_size(len(ranking), budget)
    assert found["sample_id"].tolist() == list(order[:size])
    assert found["position"].tolist() == list(range(1, size + 1))
    pd.testing.assert_frame_equal(found.drop(columns="position").set_index("sample_id"), ranking.loc[order[:size]])


def in_groups(
    frame: pd.DataFrame, share: str, columns: list[str], ascending: list[bool], lots: str | None = None
) -> list[str]:
    """The slow way: sort each group, give each row its priority, sort them; equal ones by lots, or the longer first."""
    keyed = []
    for _, group in frame.groupby("stratum", dropna=False):
        ordered = group.sort_values(columns, ascending=ascending)
        settling = ordered[lots] if lots else -ordered[LENGTH]
        for place, (name, first) in enumerate(settling.items(), start=1):
            priority = Fraction(2 * place - 1, len(group)) if share == "proportional" else Fraction(place)
            keyed.append((priority, first, name))
    return [str(name) for *_, name in sorted(keyed)]


# --- strata ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["proportional", "equal"])
def test_strata_equal_brute_force(share: Share, out: Place, candidates: pd.DataFrame, tmp_path: Path) -> None:
    """Catches: ranks of the whole pool in place of a group's, weights added up wrongly, rows without a label that are
    lost, groups of rows that are not ranked, and manifests of other rows than the ranking's."""
    run = Place.of(tmp_path)
    found = select(out, run, Strata(by="source", share=share))
    ranking = read(run.child("ranking")).set_index("sample_id")
    assert found.groups == 4
    assert found.ranked == len(ranking)
    labels = candidates.loc[ranking.index, label_column("source")].astype(object)
    assert ranking["stratum"].fillna("").tolist() == labels.fillna("").tolist()
    inside = ranking.groupby("stratum", dropna=False)
    for signal, column in (("difficulty", "difficulty"), ("length", LENGTH)):
        assert (ranking[f"rank_{signal}"] == inside[column].transform(lambda values: rankdata(-values))).all()
    assert (ranking["rank_joint"] == ranking["rank_difficulty"] * 0.25 + ranking["rank_length"] * 0.75).all()
    frame = ranking.assign(id=ranking.index)
    order = in_groups(frame, share, ["rank_joint", LENGTH, "id"], [True, False, True])
    for budget in BUDGETS:
        check_manifest(read(manifest_place(run, budget)), order, ranking, budget)


def test_too_many_groups(out: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a label that is an id, whose values would be held one for each sample."""
    monkeypatch.setattr(groups, "_MOST_GROUPS", 2)
    with pytest.raises(UsageError, match="label source has more than 2 values"):
        select(out, Place.of(tmp_path), Strata(by="source"))


# --- baselines ------------------------------------------------------------------------------------


def test_baselines_equal_brute_force(out: Place, candidates: pd.DataFrame, tmp_path: Path) -> None:
    """Catches: a baseline over other candidates than the ranking's, in another order than its name says, with other
    numbers or columns than manifests, or one that changes the selection itself."""
    run, plain = Place.of(tmp_path / "run"), Place.of(tmp_path / "plain")
    select(out, run, names=NAMES, seed=7)
    select(out, plain)
    ranking = read(run.child("ranking")).set_index("sample_id")
    here = candidates.loc[ranking.index]
    frame = ranking.assign(id=ranking.index, stratum=here[label_column("source")].astype(object))
    for name in ("random", "stratified:source"):
        frame[name] = draw(pa.array(here["sample_key"], pa.binary(16)), 7, name)
    orders = {
        "random": frame.sort_values("random").index,
        "longest": frame.sort_values([LENGTH, "id"], ascending=[False, True]).index,
        "shortest": frame.sort_values([LENGTH, "id"]).index,
        "difficulty": frame.sort_values(["difficulty", LENGTH, "id"], ascending=[False, False, True]).index,
        "stratified:source": in_groups(frame, "proportional", ["stratified:source"], [True], "stratified:source"),
    }
    assert set(orders) == set(NAMES)
    for name, order in orders.items():
        for budget in BUDGETS:
            check_manifest(read(baseline_place(run, name, budget)), list(order), ranking, budget)
    for budget in BUDGETS:
        assert manifest_place(run, budget).read_bytes() == manifest_place(plain, budget).read_bytes()


def test_places_do_not_count(out: Place, tmp_path: Path) -> None:
    """Catches: lots that depend on where a row lies, and groups preferred for being met first."""
    found = []
    for turned in (False, True):
        run = Place.of(tmp_path / str(turned))
        select(out, run, Strata(by="source"), NAMES, turned=turned)
        places = [manifest_place(run, "10"), *(baseline_place(run, name, "10") for name in NAMES)]
        found.append([read(place)["sample_id"].tolist() for place in places])
    assert found[0] == found[1]


def test_lots() -> None:
    """Catches: lots that another version of this package, of NumPy or of Python would draw otherwise, that are the same
    for two seeds or two baselines, or that go with the keys."""
    keys = pa.array([bytes([n] * 16) for n in (0, 1, 255)], pa.binary(16))
    assert draw(keys, 0, "random").tolist() == [1080077585679275086, 3520200447138092303, 4587647275119899143]
    bits = np.random.default_rng(0).bytes(16 * 4096)
    ordered = pa.array(sorted(bits[at : at + 16] for at in range(0, len(bits), 16)), pa.binary(16))
    drawn = [draw(ordered, seed, purpose) for seed, purpose in ((0, "random"), (1, "random"), (0, "stratified:x"))]
    assert all(0 <= lots.min() < lots.max() < 1 << 62 for lots in drawn)
    alike = np.corrcoef([np.arange(4096), *(lots.argsort().argsort() for lots in drawn)])
    assert np.abs(alike - np.eye(4)).max() < 4 / np.sqrt(4096), "four standard deviations of no relation"


@pytest.mark.parametrize("name", ["randon", "stratified", "stratified:colour", "random:source", "a/../b", ""])
def test_no_such_baseline(name: str) -> None:
    """Catches: a misspelt name that is passed over, or that becomes a path."""
    check_baselines(NAMES, ["difficulty"], ["source"])
    with pytest.raises(UsageError, match="no baseline"):
        check_baselines([name], ["difficulty"], ["source"])
