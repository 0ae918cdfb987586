"""The numbers of a report against pandas and scipy over all rows at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata, spearmanr

from s2r_ray.baselines import baseline_place
from s2r_ray.errors import UsageError
from s2r_ray.index import candidates_place
from s2r_ray.near_cutoff import rows_within_noise
from s2r_ray.ranking import Better, parse_weights
from s2r_ray.report import labelled, stored
from s2r_ray.report.cutoffs import STEPS
from s2r_ray.report.page import page
from s2r_ray.report.statistics import REPEATED, RETHINKING, Statistics, gather
from s2r_ray.report.stored import StoredRun
from s2r_ray.report.tallies import Histogram, Shares, word_edges
from s2r_ray.strata import Strata
from s2r_ray.tables import DamagedError
from tests.made_runs import PLACE, all_rows, made_run

CASES = {
    "ties": {"rows": 900, "levels": 8, "longest": 12, "noise": 0.2},
    "few ties": {"rows": 700, "levels": 1 << 20, "longest": 16_000, "units": 7, "noise": 1e-3},
    "two pools": {"rows": 600, "pools": 2, "units": 6},
    "difficulty alone": {"rows": 500, "levels": 4, "weights": {"difficulty": "1"}, "noise": 0.25},
    "length alone": {"rows": 400, "longest": 9, "weights": {"length": "1"}},
    "one row a budget": {"rows": 30, "budgets": ("0.1", "100"), "units": 2},
    "all the same": {"rows": 120, "levels": 1, "longest": 1},
}
SIGNALS: dict[str, Better] = {"rsr": "low", "gain": "high"}
MANY = {
    "three weights": {"difficulty": "0.2", "rsr": "0.5", "length": "0.3"},
    "low and length": {"rsr": "0.5", "length": "0.5"},
    "low alone": {"rsr": "1"},
    "high and low": {"gain": "0.75", "rsr": "0.25"},
}


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StoredRun, Statistics]]:
    """A run, read in blocks of 64 rows."""
    run = made_run(tmp_path_factory.mktemp("run"), seed=3, **CASES[request.param])
    with pytest.MonkeyPatch.context() as patch:
        for module in (stored, labelled):
            patch.setattr(module, "BATCH_ROWS", 64)
        yield run, gather(run, run.snapshot())


def in_budget(rows: pd.DataFrame, size: int) -> pd.Series:
    return rows["position"].between(1, size)


def test_counts_by_budget(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: rows joined with another row's label or budget, blocks lost or counted twice, a bin's wrong edge."""
    run, found = case
    rows = all_rows(run)
    rows["repeated"] = 1 - rows["trace_tokens_unique"] / rows["trace_tokens"]
    rows["per_thousand"] = 1000 * rows["rethinking_words"] / rows["trace_tokens_unique"]
    columns = {"difficulty": "difficulty", "label_mass": "label_mass", "trace_tokens": "trace_tokens"}
    columns |= {"trace_tokens_unique": "trace_tokens_unique", REPEATED: "repeated", RETHINKING: "per_thousand"}
    assert found.histograms.keys() == columns.keys()
    assert found.rows == len(rows)
    for at, (_, size) in enumerate(run.budgets):
        some = rows[in_budget(rows, size)]
        assert len(some) == size
        for name, column in columns.items():
            histogram = found.histograms[name]
            for part, counts in ((rows, histogram.pool), (some, histogram.selected(at))):
                values = part[column][part["repeated"] > 0] if name == REPEATED else part[column]
                edges = np.where(np.isinf(histogram.edges), 1e9, histogram.edges)
                assert counts.tolist() == np.histogram(values, edges)[0].tolist(), name
        totals = {
            "rows": size,
            "tokens": some["trace_tokens"].sum(),
            "unique_tokens": some["trace_tokens_unique"].sum(),
        }
        totals |= {"repeating": (some["repeated"] > 0).sum(), "words": some["rethinking_words"].sum()}
        assert {name: getattr(found.sums, name)[: at + 1].sum() for name in totals} == totals
    assert found.density is not None
    cells = np.histogram2d(rows["difficulty"], rows["trace_tokens_unique"], (found.density.x, found.density.y))[0]
    assert found.density.counts.tolist() == cells.astype(int).tolist()


def test_shares(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: rows of a pool without the label that get a neighbour's or are not counted."""
    run, found = case
    rows = all_rows(run)
    assert found.shares.keys() == {"kind", "source"}
    for name, shares in found.shares.items():
        column = rows.get(f"label_{name}").astype(object)
        for at, (_, size) in enumerate(run.budgets):
            expected = column[in_budget(rows, size)].value_counts(dropna=False)
            got = {value: int(counts[: at + 1].sum()) for value, counts in shares.values.items()}
            assert {value: count for value, count in got.items() if count} == {
                None if pd.isna(value) else value: count for value, count in expected.items()
            }
        assert sum(int(counts.sum()) for counts in shares.values.values()) == len(rows)
        assert not shares.others.any()
        assert {value: int(count.sum()) for value, count in found.indexed[name].values.items()} == indexed_labels(
            run, name
        )


def indexed_labels(run: StoredRun, name: str) -> dict[str | None, int]:
    """How many rows of the index have each value of a label, ranked or not."""
    counts: Counter[str | None] = Counter()
    for file in Path(run.out.child("index").uri).rglob("*.candidates.parquet"):
        table = pq.read_table(file)
        column = f"label_{name}"
        counts.update(table[column].to_pylist() if column in table.column_names else [None] * table.num_rows)
    return dict(counts)


def test_signals(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: quantiles off by one row, ties counted as values, a correlation of values in place of ranks."""
    run, found = case
    rows = all_rows(run)
    for name, column in run.signals.items():
        values, facts = rows[column], found.signals[name]
        counts = values.value_counts()
        assert facts.distinct == len(counts)
        assert facts.tied == counts[counts > 1].sum()
        assert facts.common_rows == counts.max() == counts[facts.common]
        assert (facts.least_rows, facts.greatest_rows) == (counts[values.min()], counts[values.max()])
        for share, value in facts.quantiles.items():
            assert value == np.quantile(values, share / 100, method="inverted_cdf")
    sides = {name: 1 if found.better[name] == "high" else -1 for name in run.signals}
    assert list(found.signals) == list(run.signals)
    for one, first in run.signals.items():
        for other, second in run.signals.items():
            if rows[first].nunique() == 1 or rows[second].nunique() == 1:
                assert found.correlation(one, other) is None
            else:
                expected = sides[one] * sides[other] * spearmanr(rows[first], rows[second]).statistic
                assert found.correlation(one, other) == pytest.approx(expected, abs=1e-12)


def selected_with(rows: pd.DataFrame, quarters: int, size: int) -> set[int]:
    """Which rows a weight of so many quarters for difficulty selects, by sorting them all."""
    ranks = {name: (2 * rankdata(-rows[name])).astype(int) for name in ("difficulty", "trace_tokens_unique")}
    joint = quarters * ranks["difficulty"] + (4 - quarters) * ranks["trace_tokens_unique"]
    order = rows.assign(joint=joint).sort_values(
        ["joint", "trace_tokens_unique", "sample_id"], ascending=[True, False, True]
    )
    return set(order.index[:size])


def test_overlaps_with_other_weights(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: ties at a cut-off that are cut anywhere, rounding of ranks, rows at one cut-off lost for the others."""
    run, found = case
    rows = all_rows(run)
    assert found.overlaps is not None
    assert found.overlaps.names == (*STEPS, "")
    assert found.overlaps.alone == {"length": 0, "difficulty": 4}
    for budget, size in run.budgets:
        chosen = [selected_with(rows, int(4 * float(step)), size) for step in STEPS]
        chosen.append(set(rows.index[in_budget(rows, size)]))
        expected = [[len(one & other) for other in chosen] for one in chosen]
        assert found.overlaps.common[budget].tolist() == expected


def test_the_run_is_where_its_own_weights_are(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: a selection of the same weights that is not the run's, which would be another rule for ties."""
    run, found = case
    assert found.overlaps is not None
    place = STEPS.index(f"{run.record.weights.get('difficulty', 0):g}")
    for budget, size in run.budgets:
        assert found.overlaps.common[budget][place, -1] == size


def test_cutoffs(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: ties or noise held against another budget's cut-off, or against one of a single block."""
    run, found = case
    rows = all_rows(run)
    weights = parse_weights(run.record.config["weights"], ["difficulty", "length"])
    values = {"difficulty": rows["difficulty"].to_numpy(), "length": rows["trace_tokens_unique"].to_numpy()}
    measured = found.noise.get("difficulty")
    chosen = [in_budget(rows, size).to_numpy() for _, size in run.budgets]
    for (budget, _), inside in zip(run.budgets, chosen, strict=True):
        cut = rows["rank_joint"][inside].max()
        tied = rows["rank_joint"] == cut
        assert found.ties[budget] == ((tied & inside).sum(), (tied & ~inside).sum())
    if measured is None and "difficulty" in run.weighted:
        assert found.near == {}
    else:
        reach = {"difficulty": measured.largest} if measured else {}
        assert list(found.near.values()) == rows_within_noise(values, weights, reach, chosen)


def test_frontiers(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: a line that is drawn where the selection does not end."""
    run, found = case
    rows = all_rows(run)
    for budget, size in run.budgets:
        inside = in_budget(rows, size)
        cut = rows["rank_joint"][inside].max()
        x, y = found.frontiers[budget]
        least = dict(zip(x.tolist(), y.tolist(), strict=True))
        if "length" not in run.weighted:
            assert least.keys() == {rows["difficulty"][inside].min()}
            continue
        for value in x.tolist():
            here = rows[rows["difficulty"] == value]
            above = here["trace_tokens_unique"] >= least[value]
            assert (above == (here["rank_joint"] <= cut)).all()
        others = rows[~rows["difficulty"].isin(x)]
        if rows["difficulty"].nunique() <= 200:
            assert (others["rank_joint"] > cut).all()


def test_the_best_that_are_not_selected(case: tuple[StoredRun, Statistics]) -> None:
    """Catches: just-missed rows of a block and not of the run, and those of equal rank in the order of files."""
    run, found = case
    rows = all_rows(run)
    order = ["rank_joint", "trace_tokens_unique", "sample_id"]
    best = rows.sort_values(order, ascending=[True, False, True])
    expected = best[best["position"] == 0]["sample_id"].tolist()[:3]
    assert (found.missed["sample_id"].to_pylist() if found.missed is not None else []) == expected
    spoken = best[best["addresses_judge"].astype(bool)]["sample_id"].tolist()[:20]
    assert (found.addressing["sample_id"].to_pylist() if found.addressing is not None else []) == spoken


# --- several signals ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MANY)
def several(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StoredRun, Statistics]]:
    """A run of four signals, of one of which low values are better, read in blocks of 64 rows."""
    folder = tmp_path_factory.mktemp("several")
    run = made_run(folder, 600, 4, further=SIGNALS, weights=MANY[request.param], longest=60, chosen="rsr_rank < 0.9")
    with pytest.MonkeyPatch.context() as patch:
        for module in (stored, labelled):
            patch.setattr(module, "BATCH_ROWS", 64)
        yield run, gather(run, run.snapshot())


def test_what_several_signals_have_in_common(several: tuple[StoredRun, Statistics]) -> None:
    """Catches: a correlation of values, not of ranks, where the run prefers the low ones; pairs in another order."""
    assert several[1].better == {"difficulty": "high", **SIGNALS, "length": "high"}
    test_signals(several)
    assert np.allclose(several[1].correlations, several[1].correlations.T)


def test_what_each_signal_alone_selects(several: tuple[StoredRun, Statistics]) -> None:
    """Catches: a signal's selection with another rule for ties, from its wrong end, or of another size."""
    run, found = several
    rows = all_rows(run)
    assert found.overlaps is not None
    assert found.overlaps.alone.keys() == run.signals.keys()
    for name, column in run.signals.items():
        order = rows.sort_values(
            [column, "trace_tokens_unique", "sample_id"], ascending=[found.better[name] == "low", False, True]
        )
        expected = [len(set(order.index[:size]) & set(rows.index[in_budget(rows, size)])) for _, size in run.budgets]
        shares = found.overlaps.shares_of_run(found.overlaps.alone[name])
        assert shares == [common / size for common, (_, size) in zip(expected, run.budgets, strict=True)]
        assert run.weighted != (name,) or shares == [1.0] * len(run.budgets)


def test_the_signal_that_is_held_against_the_length(several: tuple[StoredRun, Statistics]) -> None:
    """Catches: figures of a signal without a weight, a line on the wrong side of what low values select."""
    run, found = several
    rows = all_rows(run)
    weights = run.record.weights
    assert found.judged == ("gain" if "gain" in weights else "rsr")
    if {*run.weighted} - {"rsr", "length"}:
        assert found.frontiers == {}
        return
    for budget, size in run.budgets:
        cut = rows["rank_joint"][in_budget(rows, size)].max()
        selected = rows["rank_joint"] <= cut
        x, y = found.frontiers[budget]
        if "length" not in run.weighted:
            assert set(x.tolist()) == {rows["rsr"][selected].max()}
            continue
        least = dict(zip(x.tolist(), y.tolist(), strict=True))
        above = rows["trace_tokens_unique"] >= rows["rsr"].map(least).fillna(np.inf)
        assert (above == selected).all()


@pytest.mark.parametrize("several", ["three weights"], indirect=True)
def test_the_page_of_several_signals(several: tuple[StoredRun, Statistics]) -> None:
    """Catches: a page that fails or is silent on weights, filter and what is better."""
    run, found = several
    text = " ".join(re.sub(r"<[^>]*>", " ", page(run)).split())
    assert "Ranked is what passed the filter: rsr_rank &lt; 0.9" in text
    assert "rsr (low)" in text
    assert found.overlaps is not None
    shares = " ".join(f"{100 * share:.1f} %" for share in found.overlaps.shares_of_run(found.overlaps.alone["rsr"]))
    assert f"rsr low {run.record.weights.get('rsr', 0):g} {shares}" in text


# --- strata and baselines -------------------------------------------------------------------------


def test_strata_and_baselines(tmp_path: Path) -> None:
    """Catches: cut-offs and just-missed rows of a ranking that is not the run's, a column of the ranking taken for a
    signal, and rows in common with a baseline that are counted in another budget."""
    made = ("random", "shortest", "stratified:kind")
    run = made_run(tmp_path, 500, 3, pools=2, strata=Strata(by="kind", share="equal"), baselines=made, noise=0.1)
    found = gather(run, run.snapshot())
    assert found.ties == found.near == found.frontiers == {}
    assert found.missed is None
    assert "stratum" not in found.histograms
    rows = all_rows(run).set_index(PLACE)
    for name in made:
        expected = []
        for budget, size in run.budgets:
            other = pq.read_table(baseline_place(run.place, name, budget).uri).to_pandas().set_index(PLACE)
            expected.append(len(other.index.intersection(rows.index[in_budget(rows, size)])))
        assert found.baselines[name] == tuple(expected)
    for at, (_, size) in enumerate(run.budgets):
        assert found.sums.rows[: at + 1].sum() == size
        kinds = rows["label_kind"][in_budget(rows, size)].value_counts()
        assert {
            value: int(counts[: at + 1].sum()) for value, counts in found.shares["kind"].values.items() if value
        } == {value: kinds.get(value, 0) for value in rows["label_kind"].dropna().unique()}
    text = page(run)
    for told in ("inside of groups of kind", "Random, as drawn", "Stratified:kind", "Just missed the top 2 %"):
        assert told in text


# --- what is missing ------------------------------------------------------------------------------


def test_labels_that_are_asked_for(tmp_path: Path) -> None:
    """Catches: an unknown label that is silently no figure."""
    run = made_run(tmp_path, 60, 1)
    assert gather(run, run.snapshot(), ["kind"]).shares.keys() == {"kind"}
    with pytest.raises(UsageError, match="label 'colour'; labels there: kind, source"):
        gather(run, run.snapshot(), ["colour"])


@pytest.mark.parametrize("harm", ["gone", "shorter", "another"])
def test_an_index_that_is_not_the_one_ranked(harm: str, tmp_path: Path) -> None:
    """Catches: labels of other rows, where the index was made anew or a file of it is lost."""
    run = made_run(tmp_path, 200, 1)
    snapshot = run.snapshot()
    assert snapshot is not None
    place = candidates_place(run.out, snapshot.units[1][1])
    path = Path(place.uri)
    if harm == "gone":
        path.unlink()
    else:
        table = pq.read_table(path)
        rows = (
            table.slice(0, 20)
            if harm == "shorter"
            else table.set_column(1, "row", pa.array(table["row"].to_numpy() + 500))
        )
        pq.write_table(rows, path)
    with pytest.raises(DamagedError):
        gather(run, snapshot)
    without = gather(run, None)
    assert without.shares == {}
    assert without.rows == run.record.counts["ranked"]
    assert RETHINKING not in without.histograms


def test_labels_without_end() -> None:
    """Catches: a label such as an id, whose every value is kept."""
    shares = Shares.over(2)
    for start in range(0, 5000, 500):
        words = pa.chunked_array([pa.array([f"id {number}" for number in range(start, start + 500)])])
        shares.add(words, np.arange(500) % 2)
    shares.add(pa.chunked_array([pa.array([None, "id 3"])]), np.array([0, 1]))
    assert len(shares.values) == 1001
    assert shares.others.tolist() == [2000, 2000]
    assert shares.values[None].tolist() == [1, 0]
    assert shares.values["id 3"].tolist() == [0, 2]


def test_more_words_than_the_last_bin() -> None:
    """Catches: a trace of nothing but rethinking words that falls out of the figure."""
    histogram = Histogram.over(word_edges(), 1)
    histogram.add(np.array([0.0, 38.9, 39.0, 1e6]), np.zeros(4, np.intp))
    assert histogram.counts[0, [0, -2, -1]].tolist() == [1, 1, 2]
