"""report.html: one self-contained page about a run."""

from __future__ import annotations

from importlib import resources

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.index import Snapshot, questions_place
from s2r_ray.publish import RunRecord
from s2r_ray.selection import Ranking
from s2r_ray.storage import Place
from s2r_ray.tables import open_parquet, read_own, read_table

_QUESTION_CHARACTERS = 300
_LOCATION = {"pool", "sample_id", "file", "row", "generation", "question_key", "stratum"}
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def write_report(out: Place, run: Place, snapshot: Snapshot, record: RunRecord, ranking: Ranking) -> None:
    """Write the page. Everything that came from the pool is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    source = (resources.files("s2r_ray") / "report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        record=record,
        rows=top_rows_with_questions(out, snapshot, ranking.top),
        addressing=top_rows_with_questions(out, snapshot, ranking.addressing_top),
        quantiles=_QUANTILES,
        spread=_spread(run),
        signals=list(record.fingerprints),
    )
    run.child("report.html").write_bytes(page.encode("utf-8", "replace"))


def top_rows_with_questions(out: Place, snapshot: Snapshot, top: pa.Table) -> list[dict[str, object]]:
    """These manifest rows as dictionaries, with the first characters of their question."""
    files = set(top["file"].to_pylist())
    wanted = pa.array([bytes.fromhex(key) for key in top["question_key"].to_pylist()], pa.binary(16))
    texts: dict[bytes, str] = {}
    for unit, key in snapshot.units:
        if unit.path in files and len(texts) < len(wanted):
            table = read_own(questions_place(out, key))
            found = table.filter(pc.is_in(table["question_key"], value_set=wanted))
            texts.update(zip(found["question_key"].to_pylist(), found["question"].to_pylist(), strict=True))
    rows: list[dict[str, object]] = top.to_pylist()
    for row, question_key in zip(rows, wanted.to_pylist(), strict=True):
        row["question"] = texts.get(question_key, "")[:_QUESTION_CHARACTERS]
    return rows


def _spread(run: Place) -> dict[str, list[float]]:
    """Quantiles of the ranked rows' columns, one column after the other: as many numbers as rows are held."""
    parts = [run.child("ranking", file.path) for file in run.child("ranking").files()]
    with open_parquet(parts[0]) as ranking:
        names = [name for name in ranking.schema_arrow.names if name not in _LOCATION and name[:5] != "rank_"]
    spread = {}
    for name in names:
        column = pa.chunked_array([chunk for part in parts for chunk in read_table(part, [name])[name].chunks])
        spread[name] = pc.quantile(column, list(_QUANTILES)).to_pylist()
    return spread
