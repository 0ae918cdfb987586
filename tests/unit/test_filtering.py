"""Filters over the candidates of a run, held against pandas over all of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

from s2r_ray.errors import S2RError, UsageError
from s2r_ray.filtering import check_filter
from s2r_ray.filters import read_filter
from s2r_ray.index import candidates_place
from s2r_ray.ranking import Better
from s2r_ray.report.stored import StoredRun
from s2r_ray.strata import Strata
from tests.made_runs import PLACE, made_run

ROWS = 700
FURTHER: dict[str, Better] = {"rsr": "low", "gain": "high"}
WEIGHTS = {"difficulty": "0.2", "rsr": "0.5", "length": "0.3"}


def run(folder: Path, chosen: str = "", strata: Strata | None = None) -> StoredRun:
    baselines = ("random", "middle:rsr", "stratified:kind")
    return made_run(
        folder,
        ROWS,
        5,
        pools=2,
        budgets=("5", "40"),
        weights=WEIGHTS,
        further=FURTHER,
        strata=strata,
        baselines=baselines,
        chosen=chosen,
    )


def indexed(run: StoredRun) -> pd.DataFrame:
    """All candidates with what the index has of them; of labels and flags that are not there, None."""
    snapshot = run.snapshot()
    assert snapshot is not None
    parts = []
    for unit, key in snapshot.units:
        part = pq.read_table(candidates_place(run.out, key).uri).to_pandas()
        parts.append(part.assign(pool=snapshot.pools[unit.pool], file=unit.path))
    found = pd.concat(parts, ignore_index=True)
    found["label_source"] = found["label_source"].astype(object)
    return found[found["reason"].isna()].drop(columns=["sample_id", "trace_tokens", "trace_tokens_unique"])


def ranking(run: StoredRun) -> pd.DataFrame:
    return pq.read_table(Path(run.place.uri) / "ranking").to_pandas()


def excluded(run: StoredRun) -> pd.DataFrame:
    return pq.read_table(Path(run.place.uri) / "excluded.parquet").to_pandas()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """All rows that compete without a filter, with their numbers and what the index has of them."""
    whole = run(tmp_path_factory.mktemp("whole"))
    return ranking(whole).merge(indexed(whole), on=PLACE, how="left", validate="one_to_one")


def share(rows: pd.DataFrame, column: str, side: Better) -> np.ndarray:
    values = rows[column] if side == "low" else -rows[column]
    return np.asarray(rankdata(values) / len(rows))


CASES = {
    "verified and rsr_rank < 0.5": lambda r: r["verified"] & (share(r, "rsr", "low") < 0.5),
    "gain_rank <= 0.25 or length_rank <= 0.25": lambda r: (
        (share(r, "gain", "high") <= 0.25) | (share(r, "trace_tokens_unique", "high") <= 0.25)
    ),
    "not complete": lambda r: r["complete"].isna() | (r["complete"] == False),  # noqa: E712  # what is null is not set
    "finish_reason == 'stop' and label_mass > 0.6 and -1 < rsr < 1": lambda r: (
        (r["finish_reason"] == "stop") & (r["label_mass"] > 0.6) & r["rsr"].between(-1, 1, inclusive="neither")
    ),
    "source in ('source 1', 'source 3') and not addresses_judge": lambda r: (
        r["label_source"].isin(["source 1", "source 3"]) & ~r["addresses_judge"]
    ),
    "source != 'source 1'": lambda r: r["label_source"].notna() & (r["label_source"] != "source 1"),
    "length < 30 and trace_tokens < 31 and rethinking_words in (1, 2)": lambda r: (
        (r["trace_tokens_unique"] < 30) & (r["trace_tokens"] < 31) & r["rethinking_words"].isin([1, 2])
    ),
}


@pytest.mark.parametrize("chosen", CASES)
def test_who_competes(chosen: str, before: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a neighbour's row filtered where a block ends, ranks among those that passed already, rows that are lost
    from the count, ranks and budgets over rows that are not there any more."""
    monkeypatch.setattr("s2r_ray.filtering._BLOCK", 50)
    found = run(tmp_path, chosen)
    passed = CASES[chosen](before).astype(bool)
    assert 10 < passed.sum() < len(before) - 10
    ranked = ranking(found)
    assert ranked["sample_id"].tolist() == before["sample_id"][passed].tolist()
    out = excluded(found)
    filtered = out[out["reason"] == "filtered"]
    assert filtered["sample_id"].tolist() == before["sample_id"][~passed].tolist()
    assert set(filtered["detail"]) == {chosen}
    record = found.record
    assert record.counts["indexed"] == len(ranked) + len(out)
    assert record.excluded == out["reason"].value_counts().to_dict()
    for name, column, side in (("rsr", "rsr", "low"), ("length", "trace_tokens_unique", "high")):
        assert ranked[f"rank_{name}"].to_numpy() / len(ranked) == pytest.approx(share(ranked, column, side))
    assert record.budgets == {"5": max(1, len(ranked) * 5 // 100), "40": len(ranked) * 40 // 100}
    for place in [*found.place.child("manifests").files(), *found.place.child("baselines").files()]:
        folder = "manifests" if place.path.startswith("top-") else "baselines"
        rows = pq.read_table(found.place.child(folder, place.path).uri)["sample_id"].to_pylist()
        assert set(rows) <= set(ranked["sample_id"])


def test_ranks_inside_of_groups(before: pd.DataFrame, tmp_path: Path) -> None:
    """Catches: a filter by ranks of the whole pool where the run ranks inside of groups."""
    found = run(tmp_path, "rsr_rank <= 0.3", Strata(by="kind"))
    parts = [part.assign(share=share(part, "rsr", "low")) for _, part in before.groupby("label_kind", dropna=False)]
    expected = pd.concat(parts).query("share <= 0.3")
    assert set(ranking(found)["sample_id"]) == set(expected["sample_id"])
    assert found.record.counts["ranked"] == len(expected)


def test_a_filter_that_leaves_nothing(tmp_path: Path) -> None:
    """Catches: an empty selection, or a fault told as another one."""
    with pytest.raises(S2RError, match=r"nothing to rank: .*filtered 6\d\d.*the filter is: length > 1000000"):
        run(tmp_path, "length > 1000000")


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ("complete", "there is no complete; no mapping of a pool names a column for it"),
        ("rethinking_rank < 0.5", "there is no rethinking_rank; it has no scores here; `s2r run` with this filter"),
        ("label('of-it') == 'x'", r"there is no label\(\"of-it\"\); `s2r run --label of-it=COLUMN`"),
        ("label('kind') == 'x'", r"there is no label\(\"kind\"\); write kind"),
        ("label_mass_rank < 1", r"there is no label_mass_rank; did you mean label_mass\?"),
        ("kind > 1", "the number 1 is compared with kind, a text"),
    ],
)
def test_what_there_is(chosen: str, told: str) -> None:
    """Catches: a name that is told to be wrong with no word on how to have it."""
    columns, ranked = ["difficulty", "label_mass"], ["difficulty", "length"]
    with pytest.raises(UsageError, match=told):
        check_filter(read_filter(chosen), columns, ranked, ["verified"], ["kind", "my-label", "length"])
    good = "verified and label('my-label') == 'x' and label('length') != 'y' and length_rank < 1 and length > 2"
    check_filter(read_filter(good), columns, ranked, ["verified"], ["kind", "my-label", "length"])
