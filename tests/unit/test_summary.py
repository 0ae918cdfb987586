"""What a command says at its end, in a terminal of any width."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from s2r_ray.publish import RunRecord
from s2r_ray.selection import manifest_place
from s2r_ray.storage import Place
from s2r_ray.summary import top_table
from s2r_ray.tables import write_table


@pytest.mark.parametrize("width", [80, 110, 300])
def test_the_table_fits_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: rows that break over two lines, and numbers cut short where it is the id that can give way."""
    monkeypatch.setenv("COLUMNS", str(width))
    run = Place.of(tmp_path)
    names = ("trace_tokens_unique", "rank_difficulty", "rank_length", "rank_joint")
    ids = [
        "3f667b13-a0f9-46d6-84d6-f48ef074441a#0",
        "an id [bold]with words[/] and more of them than there is room for",
    ]
    columns = {"position": [1, 2], "sample_id": ids, "difficulty": [0.6249, 0.5], "rsr": [7.5, -2.0]}
    write_table(manifest_place(run, "10"), pa.table(columns | {name: [12345.5, 2.0] for name in names}))
    record = RunRecord("r", "", {}, [], "", {}, {}, budgets={"10": 2}, weights={"difficulty": 0.25, "length": 0.75})
    table = top_table(record, run).split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= min(width, 110)
    assert [line.split()[0] for line in table[-2:]] == ["1", "2"], "one line for each row"
    for number in ("0.6249", "12,345.5"):
        assert number in table[-2]
    assert "[bold]" in table[-1]
    assert (ids[0] in table[-2]) == (width > 80)
    assert "7.5" not in table[-2], "a signal without a weight"


def test_many_signals_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: ranks of many signals that push the joint rank out of sight, small and large values cut to nothing."""
    monkeypatch.setenv("COLUMNS", "110")
    run, signals = Place.of(tmp_path), ["difficulty", "rsr", "surprisal", "rethinking", "perplexity"]
    columns: dict[str, list[object]] = {"position": [1], "sample_id": ["an-id-of-a-sample-that-is-long"]}
    columns |= dict(zip(signals, ([0.25], [-1.0625], [1.1875], [12.5], [54321.5]), strict=True))
    columns |= {"trace_tokens_unique": [12345]} | {f"rank_{name}": [777.5] for name in [*signals, "length"]}
    write_table(manifest_place(run, "10"), pa.table(columns | {"rank_joint": [31415.5]}))
    weights = dict.fromkeys(signals, 0.1) | {"length": 0.5}
    table = top_table(RunRecord("r", "", {}, [], "", {}, {}, budgets={"10": 1}, weights=weights), run).splitlines()
    (row,) = (line for line in table if line.startswith("1 "))
    assert row.split()[-7:] == ["0.2500", "-1.0625", "1.1875", "12.5000", "54,321.5", "12,345", "31,415.5"]
