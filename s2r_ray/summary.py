"""What a command says at the end of a run: where things are, and the first rows."""

from __future__ import annotations

import io
from typing import Any

from s2r_ray.printable import one_line
from s2r_ray.publish import RunRecord
from s2r_ray.selection import manifest_place
from s2r_ray.storage import Place
from s2r_ray.tables import open_parquet

_ROWS = 10
_NOT_SHOWN = {"pool", "file", "row", "generation", "question_key", "label_mass", "trace_tokens"}
_TITLES = {"position": "#", "sample_id": "sample", "trace_tokens_unique": "tokens", "rank_joint": "joint"}


def run_summary(record: RunRecord, place: Place) -> dict[str, Any]:
    """For machines: where the run's files are, its counts and its seconds."""
    return {
        "run_id": record.run_id,
        "run": place.uri,
        "report": place.child("report.html").uri,
        "manifests": {budget: manifest_place(place, budget).uri for budget in record.budgets},
        "counts": record.counts,
        "excluded": record.excluded,
        "budgets": record.budgets,
        "seconds": record.seconds,
    }


def top_table(record: RunRecord, place: Place) -> str:
    """For people: the first rows of the largest manifest and the addresses of what was written."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    largest = max(record.budgets, key=lambda budget: record.budgets[budget])
    manifest = manifest_place(place, largest)
    with open_parquet(manifest) as file:
        columns = [name for name in file.schema_arrow.names if name not in _NOT_SHOWN]
        batches = file.iter_batches(_ROWS, columns=columns, use_threads=not manifest.is_remote)
        rows = next(batches).to_pylist()
    table = Table(box=None, pad_edge=False)
    for name in columns:
        title = _TITLES.get(name, name.replace("_", " "))
        table.add_column(title, justify="left" if name == "sample_id" else "right", overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_shown(row[name])) for name in columns))  # an id is no markup
    sink = io.StringIO()
    console = Console(file=sink, width=110)
    console.print(table)
    sink.write("\n")
    for budget, size in record.budgets.items():
        sink.write(f"top {budget:>4} %  {size:>9,} samples  {manifest_place(place, budget).uri}\n")
    sink.write(f"report      {place.child('report.html').uri}\n")
    return sink.getvalue()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else one_line(str(value))
