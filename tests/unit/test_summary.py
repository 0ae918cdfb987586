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
    columns = {"position": [1, 2], "sample_id": ids, "difficulty": [0.6249, 0.5]}
    write_table(manifest_place(run, "10"), pa.table(columns | {name: [12345.5, 2.0] for name in names}))
    record = RunRecord("r", "", {}, [], "", {}, {}, budgets={"10": 2})
    table = top_table(record, run).split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= min(width, 110)
    assert [line.split()[0] for line in table[-2:]] == ["1", "2"], "one line for each row"
    for number in ("0.6249", "12,345.5"):
        assert number in table[-2]
    assert "[bold]" in table[-1]
    assert (ids[0] in table[-2]) == (width > 80)
