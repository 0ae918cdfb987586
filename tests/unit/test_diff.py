"""Two runs compared: against a slow reference on random runs, and case by case."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2r_ray import diff as diff_module
from s2r_ray.diff import ENTERED, LEFT, Diff, choose_runs, diff_runs
from s2r_ray.errors import UsageError
from s2r_ray.near_cutoff import rows_within_noise
from s2r_ray.noise import Noise, noise_place
from s2r_ray.publish import RunRecord, publish
from s2r_ray.ranking import budget_size, parse_weights
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore, fingerprint_digest
from s2r_ray.summary import diff_summary, diff_text
from tests.made_runs import made_run, ranked_run

WEIGHTS = {"difficulty": "0.25", "length": "0.75"}
JUDGE = {"signal": "difficulty", "model": "m", "prompt": ["", "{question}"]}
SCHEMA = {"file": pa.string(), "row": pa.int64(), "generation": pa.int32(), "pool": pa.string()}


@dataclass
class Row:
    """A trace of a hand-made run; with a reason it is excluded."""

    sample_id: str
    question: str
    difficulty: float = 0.5
    tokens: int = 100
    reason: str | None = None
    file: str = "a"
    pool: int = 0
    stratum: str | None = None
    row: int = 0
    joint: Fraction = field(default=Fraction(0))
    priority: Fraction = field(default=Fraction(0))
    position: int = 0


@dataclass
class Made:
    """A hand-made run: its rows in location order, ranked and excluded, and its record."""

    ranked: list[Row]
    excluded: list[Row]
    record: RunRecord

    @property
    def rows(self) -> list[Row]:
        return [*self.ranked, *self.excluded]


def rank_from(values: Sequence[Any], value: Any) -> Fraction:
    """The average rank of a value among these, from the largest; it is one of them."""
    above = sum(other > value for other in values)
    return above + Fraction(sum(other == value for other in values) + 1, 2)


def priority(place: int, size: int, share: str | None) -> Fraction:
    """What rows come by: their group's s / (2p - 1), turned round, or their turn. Without strata there is one group."""
    return Fraction(2 * place - 1, size) if share == "proportional" else Fraction(place)


def make_run(
    out: Path,
    number: int,
    rows: Sequence[Row],
    *,
    weights: dict[str, str] | None = None,
    budgets: Sequence[str] = ("20", "50"),
    pools: Sequence[str] = ("/pool",),
    judge: dict[str, Any] | None = None,
    tokenizer: str = "t",
    unreadable: Sequence[str] = (),
    share: str | None = None,
) -> Made:
    """Rank these rows the slow way, with a share inside of their strata, and leave what a run leaves."""
    rows = sorted(rows, key=lambda row: (row.pool, row.file))
    for place, row in enumerate(rows):
        row.row = place
    ranked = [row for row in rows if row.reason is None]
    excluded = [row for row in rows if row.reason is not None]
    exact = {name: Fraction(weight) for name, weight in (weights or WEIGHTS).items()}
    for stratum in {row.stratum if share else None for row in ranked}:
        group = [row for row in ranked if not share or row.stratum == stratum]
        of = {"difficulty": [row.difficulty for row in group], "length": [row.tokens for row in group]}
        for row in group:
            own = {"difficulty": row.difficulty, "length": row.tokens}
            row.joint = sum((w * rank_from(of[name], own[name]) for name, w in exact.items()), Fraction(0))
        group.sort(key=lambda row: (row.joint, -row.tokens, row.sample_id, row.row))
        for place, row in enumerate(group, start=1):
            row.priority = priority(place, len(group), share)
    order = sorted(ranked, key=lambda row: (row.priority, -row.tokens, row.sample_id, row.row))
    for place, row in enumerate(order):
        row.position = place + 1
    run_id = f"20260101T00000{number}.000Z-{number:08x}"
    run = Place.of(out).child("runs", run_id)
    where = {
        "sample_id": pa.string(),
        **{name: kind for name, kind in SCHEMA.items() if name != "pool" or len(pools) > 1},
        "question_key": pa.string(),
    }

    def table(rows: Sequence[Row], more: dict[str, Any]) -> pa.Table:
        columns: dict[str, Any] = {
            "sample_id": [row.sample_id for row in rows],
            "file": [row.file for row in rows],
            "row": [row.row for row in rows],
            "generation": [0 for _ in rows],
            "pool": [pools[row.pool] for row in rows],
            "question_key": [row.question for row in rows],
        }
        return pa.table({name: pa.array(columns[name], kind) for name, kind in where.items()} | more)

    def scored(rows: Sequence[Row]) -> pa.Table:
        return table(
            rows,
            {
                "difficulty": pa.array([row.difficulty for row in rows], pa.float64()),
                "trace_tokens": pa.array([row.tokens for row in rows], pa.int32()),
                "trace_tokens_unique": pa.array([row.tokens for row in rows], pa.int32()),
                "rank_joint": pa.array([float(row.joint) for row in rows], pa.float64()),
                **({"stratum": pa.array([row.stratum for row in rows], pa.string())} if share else {}),
            },
        )

    sizes = {budget: budget_size(len(ranked), budget) for budget in budgets}
    for folder in ("ranking", "manifests"):
        (out / "runs" / run_id / folder).mkdir(parents=True)
    middle = len(ranked) // 2
    for part, some in enumerate((ranked[:middle], ranked[middle:])):
        pq.write_table(scored(some), f"{run.uri}/ranking/part-{part:05d}.parquet")
    for budget, size in sizes.items():
        best = order[:size]
        manifest = scored(best).add_column(0, "position", pa.array([row.position for row in best], pa.int64()))
        pq.write_table(manifest, f"{run.uri}/manifests/top-{budget}pct.parquet")
    lost = [Row(f"file:{path}", "", reason="unreadable_file", file=path) for path in unreadable]
    reasons = pa.array([row.reason for row in [*lost, *excluded]], pa.string())
    pq.write_table(table([*lost, *excluded], {"reason": reasons}), f"{run.uri}/excluded.parquet")
    counted = {reason: reasons.to_pylist().count(reason) for reason in set(reasons.to_pylist())}
    record = RunRecord(
        run_id=run_id,
        started=f"2026-01-01T00:00:0{number}+00:00",
        config={
            "weights": weights or WEIGHTS,
            "pools": [{"uri": uri, "preset": None, "mapping": None} for uri in pools],
            "candidates": "all",
            "guards": {},
        },
        pools=list(pools),
        snapshot=str(number),
        index={"tokenizer": tokenizer},
        fingerprints={"difficulty": judge or JUDGE},
        counts={"indexed": len(rows) + len(lost), "ranked": len(ranked), "excluded": len(reasons)},
        excluded=counted,
        budgets=sizes,
        weights={name: float(weight) for name, weight in (weights or WEIGHTS).items()},
        strata={"by": "source", "share": share, "groups": 1} if share else None,
    )
    publish(Place.of(out), run, record)
    return Made(ranked, excluded, record)


def measured(out: Path, largest: float) -> None:
    """Leave a noise record as a worker does."""
    store = ScoreStore.at(Place.of(out), "difficulty", fingerprint_digest(JUDGE), ())
    noise_place(store).write_bytes(json.dumps(vars(Noise(64, largest, largest / 2))).encode())


def compare(out: Path, before: Made, after: Made) -> Diff:
    return diff_runs(Place.of(out), before.record.run_id, after.record.run_id)


def moves(table: pa.Table) -> list[tuple[str, str, str | None]]:
    return [(row["sample_id"], row["why"], row["detail"]) for row in table.to_pylist()]


# --- against a reference --------------------------------------------------------------------------


def partners(before: Sequence[Row], after: Sequence[Row], several: bool) -> dict[int, Row]:
    """id() of a row of `after` -> the same sample's row before, as diff.py's first lines have it."""

    def key(row: Row, turn: int) -> tuple[Any, ...]:
        pool = row.pool if several else 0
        lengths = row.tokens if row.reason is None else None
        return (
            (row.sample_id, row.question, lengths, row.reason),
            (pool, row.sample_id, row.question),
            (pool, row.sample_id),
            (row.sample_id, row.question),
        )[turn]

    found: dict[int, Row] = {}
    used: set[int] = set()
    for turn in range(4):
        for row in after:
            same = (a for a in before if id(a) not in used and key(a, turn) == key(row, turn))
            partner = None if id(row) in found else next(same, None)
            if partner is not None:
                found[id(row)] = partner
                used.add(id(partner))
    return found


def last_place(row: Row, made: Made) -> int:
    """The last place of what its run does not tell from a row beyond the manifests."""
    strata = made.record.strata
    group = [rival for rival in made.ranked if not strata or rival.stratum == row.stratum]
    last = sum(float(rival.joint) <= float(row.joint) for rival in group)
    reached = priority(last, len(group), strata["share"] if strata else None)
    return sum(rival.priority <= reached for rival in made.ranked)


def expected_moves(here: Made, there: Made, of: dict[int, Row], budget: str, names: Sequence[str]) -> list[Any]:
    """(id, position here, position there, why, detail) of the rows chosen here and not there, best first."""
    sizes = (here.record.budgets[budget], there.record.budgets[budget])
    largest = max(there.record.budgets.values())
    found = []
    for row in sorted(here.ranked, key=lambda row: row.position)[: sizes[0]]:
        other = of.get(id(row))
        if other is None:
            found.append((row.sample_id, row.position, None, names[0], None))
        elif other.reason is not None:
            found.append((row.sample_id, row.position, None, names[1], other.reason))
        elif other.position > sizes[1]:
            place = other.position
            if place > largest:
                place = last_place(other, there)
            changed = [
                name
                for name, a, b in (
                    ("difficulty", row.difficulty, other.difficulty),
                    ("length", row.tokens, other.tokens),
                )
                if a != b
            ]
            why = names[2] if changed else names[3]
            found.append((row.sample_id, row.position, place, why, ", ".join(changed) or None))
    return found


ROW = st.builds(
    Row,
    sample_id=st.sampled_from(["p#0", "q#0", "r#0", "s#0", "t#0", "u#0"]),
    question=st.sampled_from(["k1", "k2", "k3"]),
    difficulty=st.sampled_from([0.0, 0.25, 0.5]),
    tokens=st.integers(1, 4),
    reason=st.sampled_from([None, None, None, "unverified", "duplicate_sample"]),
    file=st.sampled_from(["a", "b"]),
    pool=st.sampled_from([0, 1]),
    stratum=st.sampled_from([None, "x", "y"]),
)
SHARE = st.sampled_from([None, "proportional", "equal"])
ROWS = st.lists(ROW, min_size=1, max_size=14).filter(lambda rows: any(row.reason is None for row in rows))


@settings(max_examples=60)
@given(before=ROWS, after=ROWS, several=st.booleans(), small=st.booleans(), shares=st.tuples(SHARE, SHARE))
def test_against_a_reference(
    before: list[Row],
    after: list[Row],
    several: bool,
    small: bool,
    shares: tuple[str | None, str | None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Catches: rows paired with a namesake, a wrong reason or position, rows counted twice or not at all, samples
    missed because only the manifests were looked at or because a batch ended, and rows that a budget left out in their
    group and that the whole pool's joint ranks would put inside."""
    out = tmp_path_factory.mktemp("diff")
    if not several:
        for row in (*before, *after):
            row.pool = 0
    pools = ("/x", "/y") if several else ("/x",)
    first, second = (
        make_run(out, n, rows, pools=pools, share=share)
        for n, rows, share in zip((1, 2), (before, after), shares, strict=True)
    )
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(diff_module, "_BATCH_ROWS", 3)
        found = compare(out, first, second)
    forth = partners(first.rows, second.rows, several)
    by_place = {id(row): row for row in second.rows}
    back = {id(old): by_place[new] for new, old in forth.items()}
    for item in found.budgets:
        columns = ["sample_id", "position_after", "position_before", "why", "detail"]
        entered = expected_moves(second, first, forth, item.budget, ENTERED)
        assert [tuple(row[name] for name in columns) for row in item.entered.to_pylist()] == entered
        columns[1], columns[2] = columns[2], columns[1]
        left = expected_moves(first, second, back, item.budget, LEFT)
        assert [tuple(row[name] for name in columns) for row in item.left.to_pylist()] == left
        assert item.size_after == item.stayed + item.entered.num_rows
        assert item.size_before == item.stayed + item.left.num_rows
        assert item.within_noise is None, "it was never measured"


@given(
    values=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), min_size=1, max_size=12),
    reach=st.sampled_from([0.0, 0.0625, 0.1, 0.125, 0.3, 2.0]),
    weight=st.sampled_from(["0", "0.25", "1"]),
    k=st.integers(1, 12),
)
def test_noise_against_a_reference(values: list[tuple[int, int]], reach: float, weight: str, k: int) -> None:
    """Catches: a row that competes with its own old value, ties at the cut-off counted as flips, and a reach that is
    open where it should be closed."""
    difficulty, length = np.array([a / 8 for a, _ in values]), np.array([b for _, b in values])
    shares = {"difficulty": Fraction(weight), "length": 1 - Fraction(weight)}

    def joint(row: int, value: float) -> Fraction:
        others = [*np.delete(difficulty, row).tolist(), value]
        return shares["difficulty"] * rank_from(others, value) + shares["length"] * rank_from(
            length.tolist(), length[row]
        )

    rows = range(len(values))
    plain = [joint(row, difficulty[row]) for row in rows]
    order = sorted(rows, key=lambda row: (plain[row], -length[row], row))
    inside = set(order[:k])
    expected = 0
    if len(inside) < len(values):
        last, first = max(plain[row] for row in inside), min(plain[row] for row in rows if row not in inside)
        for row in rows:
            moved = [joint(row, difficulty[row] + way * reach) for way in (-1, 1)]
            expected += any(there > first for there in moved) if row in inside else any(there < last for there in moved)
    weights = parse_weights({name: str(float(share)) for name, share in shares.items()}, list(shares))
    chosen = np.isin(np.arange(len(values)), list(inside))
    got = rows_within_noise({"difficulty": difficulty, "length": length}, weights, {"difficulty": reach}, [chosen])
    assert got == [expected]


# --- case by case ---------------------------------------------------------------------------------


def pool_of(count: int, **more: Any) -> list[Row]:
    """Rows whose rank is their number: both signals fall."""
    return [Row(f"{n:02d}#0", f"k{n}", 1 - n / 64, 1000 - n, **more) for n in range(count)]


def test_every_reason(tmp_path: Path) -> None:
    """Catches: two reasons mixed up, or a detail that belongs to the other run."""
    before, after = pool_of(20), pool_of(20)
    before[10].reason = "unverified"
    after[0].reason = "incomplete"
    after[1].difficulty, after[1].tokens = 0.0, 1
    after[10].tokens = 1990
    after[11].difficulty, after[11].tokens = 1.0, 2000
    after += [Row("new#0", "new", 1.0, 1500), *(Row(f"low{n}#0", "low", 0.0, 2 + n) for n in range(5))]
    del after[2]
    runs = [make_run(tmp_path, n, rows, budgets=["30"]) for n, rows in ((1, before), (2, after))]
    found = compare(tmp_path, *runs).budgets[0]
    assert (found.size_before, found.size_after, found.stayed) == (5, 7, 2)
    assert sorted(moves(found.left)) == [
        ("00#0", "excluded", "incomplete"),
        ("01#0", "rescored", "difficulty, length"),
        ("02#0", "gone", None),
    ]
    assert sorted(moves(found.entered)) == [
        ("05#0", "cut_off_moved", None),
        ("06#0", "cut_off_moved", None),
        ("10#0", "was_excluded", "unverified"),
        ("11#0", "rescored", "difficulty, length"),
        ("new#0", "new_sample", None),
    ]


def test_files_that_were_renamed(tmp_path: Path) -> None:
    """Catches: every sample of a renamed file told as gone and new, and so for a pool at a new address."""
    before = make_run(tmp_path, 1, pool_of(20))
    after = make_run(tmp_path, 2, pool_of(20, file="renamed"), pools=("/elsewhere",))
    found = compare(tmp_path, before, after)
    assert [item.stayed for item in found.budgets] == [4, 10]
    assert [item.entered.num_rows + item.left.num_rows for item in found.budgets] == [0, 0]
    assert found.differences["pools"] == (["/pool"], ["/elsewhere"])


def test_duplicated_ids(tmp_path: Path) -> None:
    """Catches: a row with a duplicated id that is told as changed because its namesake is gone."""
    before = [Row("x#0", "k1", 1.0, 900), Row("x#0", "k2", 0.9, 800), Row("x#0", "k2", 0.9, 700), *pool_of(3)]
    after = [Row("x#0", "k2", 0.9, 700), *pool_of(3)]
    found = compare(
        tmp_path,
        make_run(tmp_path, 1, before, budgets=["100"]),
        make_run(tmp_path, 2, after, budgets=["100"]),
    ).budgets[0]
    assert moves(found.entered) == []
    assert moves(found.left) == [("x#0", "gone", None)] * 2
    assert {(row["position_before"], row["question_key"]) for row in found.left.to_pylist()} == {(4, "k1"), (5, "k2")}


def test_the_same_id_in_two_pools(tmp_path: Path) -> None:
    """Catches: a sample of one pool taken for its namesake in another pool."""
    pools = ("/x", "/y")
    before = [Row("1#0", "k1", 0.5, 500, pool=0), Row("2#0", "k2", 0.4, 400, pool=1)]
    after = [Row("1#0", "k9", 0.5, 500, pool=1), Row("2#0", "k2", 0.4, 400, pool=0)]
    runs = [make_run(tmp_path, n, rows, pools=pools, budgets=["100"]) for n, rows in ((1, before), (2, after))]
    found = compare(tmp_path, *runs).budgets[0]
    assert moves(found.entered) == [("1#0", "new_sample", None)]
    assert moves(found.left) == [("1#0", "gone", None)]
    assert found.entered["pool"].to_pylist() == ["/y"]
    assert found.stayed == 1, "a sample that moved to the other pool is the same"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Catches: samples told as gone, and the next night as new, because their file could not be read for once."""
    whole = [*pool_of(10), Row("lost#0", "lost", 1.0, 5000, file="torn")]
    first = make_run(tmp_path, 1, whole)
    second = make_run(tmp_path, 2, pool_of(10), unreadable=["torn"])
    third = make_run(tmp_path, 3, [*pool_of(10), Row("lost#0", "lost", 1.0, 5000, file="torn")])
    assert moves(compare(tmp_path, first, second).budgets[0].left) == [("lost#0", "excluded", "unreadable_file")]
    assert moves(compare(tmp_path, second, third).budgets[0].entered) == [("lost#0", "was_excluded", "unreadable_file")]


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    """Catches: movement that other weights, another prompt or another tokenizer made, told without them."""
    before = make_run(tmp_path, 1, pool_of(10))
    judge = JUDGE | {"prompt": ["", "How hard is {question}?"]}
    weights = {"difficulty": "1", "length": "0"}
    budgets = ["100", "50", "9"]
    after = make_run(tmp_path, 2, pool_of(10), judge=judge, weights=weights, tokenizer="u", budgets=budgets)
    found = compare(tmp_path, before, after)
    assert set(found.differences) == {"weights", "budgets", "tokenizer", "difficulty prompt", "pool files"}
    assert found.differences["tokenizer"] == ("t", "u")
    assert found.differences["budgets"] == (["20", "50"], ["9", "50", "100"])
    assert [item.budget for item in found.budgets] == ["50"], "what both have"
    text = diff_text(found)
    for word in ("weights", "difficulty prompt", "tokenizer", "budgets", "not measured"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


def test_filters_and_directions_are_told(tmp_path: Path) -> None:
    """Catches: who left because of another filter told as gone; low values that are better, and a signal that is not
    called difficulty, not told."""
    weights = {"rsr": "0.5", "length": "0.5"}
    before = made_run(tmp_path, 300, 2, further={"rsr": "high"}, weights=weights, budgets=("30",))
    snapshot = before.snapshot()
    assert snapshot is not None
    filters: dict[str, Any] = {"further": {"rsr": "low"}, "chosen": "length_rank > 0.2"}
    after = ranked_run(before.out, snapshot, ("30",), weights, before.record.config, **filters)
    found = diff_runs(before.out, before.record.run_id, after.record.run_id)
    assert found.differences == {
        "filter": ("none", "length_rank > 0.2"),
        "what is better": ("high values", {"rsr": "low"}),
    }
    (budget,) = found.budgets
    left = Counter((row["why"], row["detail"]) for row in budget.left.to_pylist())
    assert left["excluded", "filtered"] > 10
    assert left["cut_off_moved", None] > 10
    assert left.keys() == {("excluded", "filtered"), ("cut_off_moved", None)}
    text = " ".join(diff_text(found).split())
    for told in (
        "filter none length_rank > 0.2",
        "is better high values rsr low",
        "excluded: filtered",
        "measured (rsr)",
    ):
        assert told in text


def test_a_signal_without_weight_moves_nobody(tmp_path: Path) -> None:
    """Catches: «rescored» for a value that does not count."""
    weights = {"length": "1"}
    before = make_run(tmp_path, 1, pool_of(10), weights=weights)
    rows = [Row(row.sample_id, row.question, 0.0, row.tokens) for row in pool_of(10)]
    after = make_run(tmp_path, 2, [*rows, Row("new#0", "n", 0.0, 5000)], weights=weights, budgets=["10", "20"])
    found = diff_runs(Place.of(tmp_path), before.record.run_id, after.record.run_id, ["20"]).budgets[0]
    assert moves(found.left) == [("01#0", "cut_off_moved", None)]
    assert found.within_noise == 0, "length has no noise"


def test_the_noise_that_was_measured(tmp_path: Path) -> None:
    """Catches: rows near the cut-off that are not counted, and a number made up where nothing was measured."""
    runs = [make_run(tmp_path, n, pool_of(20)) for n in (1, 2)]
    assert compare(tmp_path, *runs).budgets[0].within_noise is None
    counts = []
    for largest in (0.0, 1 / 64, 1.0):
        measured(tmp_path, largest)
        found = compare(tmp_path, *runs)
        assert found.noise["difficulty"] == Noise(64, largest, largest / 2)
        counts.append(found.budgets[0].within_noise)
    assert counts[0] == 0
    assert counts[1] == 0, "a quarter of one place is less than the distance to the next row"
    assert counts[2] is not None
    assert counts[2] > 2
    assert f"cut-off: {counts[2]} (difficulty ±1, 64 pairs)" in diff_text(found)


def test_json_has_every_row(tmp_path: Path) -> None:
    """Catches: numpy numbers that JSON does not take, lists cut as for people, and an empty pool column."""
    before = make_run(tmp_path, 1, pool_of(100))
    after = make_run(tmp_path, 2, [Row(f"new-{n:03d}#0", f"n{n}", 1.0, 9000 + n) for n in range(100)])
    found = compare(tmp_path, before, after)
    summary = json.loads(json.dumps(diff_summary(found)))["budgets"]["50"]
    assert summary["entered"] == {"new_sample": 50, "was_excluded": 0, "rescored": 0, "cut_off_moved": 0}
    assert summary["left"]["gone"] == len(summary["rows_left"]) == 50
    assert "pool" not in summary["rows_left"][0]
    assert "and 30 more" in diff_text(found)


# --- which runs -----------------------------------------------------------------------------------


def test_the_default_is_the_newest_and_the_one_before(tmp_path: Path) -> None:
    """Catches: a run that was stopped, or the newest by name, taken for the newest finished one."""
    place = Place.of(tmp_path)
    with pytest.raises(UsageError, match="no finished run"):
        choose_runs(place)
    first = make_run(tmp_path, 1, pool_of(4)).record.run_id
    with pytest.raises(UsageError, match="no finished run before"):
        choose_runs(place)
    second, third = (make_run(tmp_path, n, pool_of(4)).record.run_id for n in (2, 3))
    (tmp_path / "runs" / "20260101T000002.500Z-0" / "ranking").mkdir(parents=True)
    (tmp_path / "runs" / "20260101T000002.500Z-0" / "ranking" / "part-00000.parquet").write_bytes(b"")
    assert choose_runs(place) == (second, third)
    assert choose_runs(place, first[:16]) == (first, third)
    assert choose_runs(place, third, first) == (third, first)
    assert choose_runs(place, after=second) == (first, second)
    place.child("latest.json").write_bytes(json.dumps({"run_id": second, "path": ""}).encode())
    assert choose_runs(place) == (first, second)


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    """Catches: a traceback, or another run than the one meant."""
    runs = [make_run(tmp_path, n, pool_of(4)).record.run_id for n in (1, 2)]
    make_run(tmp_path, 3, pool_of(4), budgets=["70"])
    place = Place.of(tmp_path)
    (tmp_path / "runs" / runs[0] / "run.json").unlink()
    for given_runs, words in (
        (("2025",), "no run 2025"),
        (("2026",), "beginning of 3 runs"),
        ((runs[0],), "has not finished"),
        ((runs[1], runs[1]), "both runs are"),
        ((None, runs[1]), "no finished run before"),
    ):
        with pytest.raises(UsageError, match=words):
            choose_runs(place, *given_runs)
    first, third = choose_runs(place)
    with pytest.raises(UsageError, match="no budget in common"):
        diff_runs(place, first, third)
    with pytest.raises(UsageError, match=r"has no budget of 20 %; it has 70 %"):
        diff_runs(place, first, third, ["20"])


def test_strata_are_named(tmp_path: Path) -> None:
    """Catches: a selection that moved because groups were made, or share alike, with no word of it; and an older run,
    which knew of no strata, taken for damaged."""
    rows = [Row(f"{n:02d}#0", f"k{n}", 1 - n / 64, 1000 - n, stratum="xy"[n % 3 // 2]) for n in range(20)]
    made = [make_run(tmp_path, n, rows, share=share) for n, share in ((1, None), (2, "equal"), (3, "proportional"))]
    older = tmp_path / "runs" / made[0].record.run_id / "run.json"
    record = json.loads(older.read_text())
    del record["strata"]
    older.write_text(json.dumps(record))
    found = compare(tmp_path, made[0], made[1])
    assert found.differences == {"pool files": ("1", "2"), "strata": ("none", {"by": "source", "share": "equal"})}
    assert "by source, share equal" in diff_text(found)
    assert {row["why"] for row in found.budgets[0].entered.to_pylist()} == {"cut_off_moved"}
    assert compare(tmp_path, made[1], made[2]).differences["strata"][1] == {"by": "source", "share": "proportional"}


def test_noise_inside_of_strata(tmp_path: Path) -> None:
    """Catches: a row held against the cut-off of another group."""
    rows = [Row(f"{n:02d}#0", f"k{n}", 1 - n / 64, 1000 - n, stratum="xy"[n % 2]) for n in range(20)]
    measured(tmp_path, 5 / 64)
    weights = {"difficulty": "1", "length": "0"}
    made = [make_run(tmp_path, n, rows, weights=weights, budgets=["50"], share="equal") for n in (1, 2)]
    (item,) = compare(tmp_path, *made).budgets
    # In each group the values are 2/64 apart and 5/64 is reached: one row on either side passes two neighbours.
    assert item.within_noise == 4
