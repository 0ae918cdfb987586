"""What a command says at its end: where a run's things are and its first rows, or how two runs differ."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from s2r_ray.baselines import baseline_place
from s2r_ray.diff import ENTERED, LEFT, BudgetDiff, Diff
from s2r_ray.printable import one_line
from s2r_ray.publish import RunRecord
from s2r_ray.selection import manifest_place
from s2r_ray.storage import Place
from s2r_ray.tables import open_parquet, use_threads

_ROWS = 10
_MOST_RANKS = 3
_DIFF_ROWS = 20
_MOST_WIDTH = 110
_SHOWN_CHARACTERS = 34
_SHOWN = {"position", "sample_id", "stratum", "trace_tokens_unique", "rank_joint"}
_TITLES = {"position": "#", "sample_id": "sample", "trace_tokens_unique": "unique tokens", "rank_joint": "joint"}


def run_summary(record: RunRecord, place: Place) -> dict[str, Any]:
    """For machines: where the run's files are, its counts and its seconds."""
    return {
        "run_id": record.run_id,
        "run": place.uri,
        "report": place.child("report.html").uri,
        "manifests": {budget: manifest_place(place, budget).uri for budget in record.budgets},
        "baselines": {
            name: {budget: baseline_place(place, name, budget).uri for budget in record.budgets}
            for name in record.baselines
        },
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
        columns = _shown_columns(record, file.schema_arrow.names)
        batches = file.iter_batches(_ROWS, columns=columns, use_threads=use_threads(manifest, file))
        rows = next(batches).to_pylist()
    table = Table(box=None, pad_edge=False)
    for name in columns:
        title = _TITLES.get(name, name.replace("_", " "))
        if name == "sample_id":
            table.add_column(title)  # gives way where the terminal is narrow
        else:
            table.add_column(title, justify="right", min_width=max(map(len, title.split())))
    for row in rows:
        shown = (_shown(row[name], 1 if name.startswith("rank_") else 4) for name in columns)
        table.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in shown))  # an id is no markup
    sink = io.StringIO()
    console = Console(file=sink, width=_width())
    console.print(table)
    sink.write("\n")
    for budget, size in record.budgets.items():
        sink.write(f"top {budget:>4} %  {size:>9,} samples  {manifest_place(place, budget).uri}\n")
    for folder in record.baselines.values():
        sink.write(f"baseline    {place.child(folder).uri}\n")
    sink.write(f"report      {place.child('report.html').uri}\n")
    return sink.getvalue()


def _width() -> int:
    """Of a table in characters: no wider than the terminal that it is printed to, if it is printed to one."""
    return min(_MOST_WIDTH, shutil.get_terminal_size((_MOST_WIDTH, 0)).columns)


def _shown_columns(record: RunRecord, there: Sequence[str]) -> list[str]:
    """Those of a manifest that a terminal has room for: of signals those with a weight, and their ranks where these are
    few."""
    weighted = [name for name, weight in record.weights.items() if weight]
    ranks = [f"rank_{name}" for name in weighted] if len(weighted) <= _MOST_RANKS else []
    return [name for name in there if name in {*_SHOWN, *weighted, *ranks}]


def _shown(value: Any, decimals: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{decimals}f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else one_line(str(value))


def diff_summary(diff: Diff) -> dict[str, Any]:
    """For machines: all of it, with every row that entered or left."""
    return {
        **{
            side: {name: record[name] for name in ("run_id", "started", "counts", "excluded")}
            for side, record in (("before", diff.before), ("after", diff.after))
        },
        "differences": {name: {"before": a, "after": b} for name, (a, b) in diff.differences.items()},
        "noise": {name: None if noise is None else vars(noise) for name, noise in diff.noise.items()},
        "budgets": {
            item.budget: {
                "before": item.size_before,
                "after": item.size_after,
                "stayed": item.stayed,
                "entered": _reasons(item.entered, ENTERED),
                "left": _reasons(item.left, LEFT),
                "within_noise": item.within_noise,
                "rows_entered": _rows(item.entered),
                "rows_left": _rows(item.left),
            }
            for item in diff.budgets
        },
    }


def diff_text(diff: Diff) -> str:
    """For people: what differs between the runs, then for each budget who entered and who left."""
    from rich.console import Console
    from rich.table import Table

    sink = io.StringIO()
    console = Console(file=sink, width=_width(), highlight=False, markup=False)
    head = Table(box=None, pad_edge=False)
    for title in ("", "before", "after"):
        head.add_column(title, overflow="ellipsis", no_wrap=True)
    for line in _head(diff):
        head.add_row(*line)
    console.print(head)
    for item in diff.budgets:
        console.print()
        console.print(
            f"top {item.budget} %: {item.size_before:,} samples before, {item.size_after:,} after; "
            f"{item.entered.num_rows:,} entered, {item.left.num_rows:,} left, {item.stayed:,} stayed"
        )
        console.print(_noise_line(item, diff))
        for verb, table, names in (("entered", item.entered, ENTERED), ("left", item.left, LEFT)):
            if table.num_rows:
                console.print()
                reasons = [f"{_words(name)} {count:,}" for name, count in _reasons(table, names).items() if count]
                console.print(f"{verb}: {', '.join(reasons)}")
                console.print(_moves(table))
    return "".join(f"{line.rstrip()}\n" for line in sink.getvalue().splitlines())


def _head(diff: Diff) -> list[tuple[str, ...]]:
    """Lines of the table at the top: what both runs are, then what else differs."""
    sides = (diff.before, diff.after)
    lines: list[tuple[str, ...]] = [
        (name.replace("_", " "), *(str(record[name]) for record in sides)) for name in ("run_id", "started")
    ]
    lines.append(("ranked, left out", *(f"{r['counts']['ranked']:,}, {r['counts']['excluded']:,}" for r in sides)))
    lines.append(("files read", *(_share(r["counts"], "files_read", "files") for r in sides)))
    for signal in diff.after["fingerprints"]:
        name = f"{signal}_judged"
        whole = f"{diff.after.get('subjects', {}).get(signal, 'question')}s"
        lines.append((name.replace("_", " "), *(_share(r["counts"], name, whole) for r in sides)))
    for name, (first, second) in diff.differences.items():
        shown = ("", "changed") if name == "pool files" else (_brief(first), _brief(second))
        if shown[0] == shown[1]:
            shown = ("", "changed")
        lines.append((name.replace("_", " "), *shown))
    return lines


def _share(counts: dict[str, Any], part: str, whole: str) -> str:
    return f"{counts[part]:,} of {counts[whole]:,}" if part in counts and whole in counts else "-"


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{name} {_brief(item)}" for name, item in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(_brief, value))
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _noise_line(item: BudgetDiff, diff: Diff) -> str:
    if item.within_noise is None:
        unknown = ", ".join(name for name, noise in diff.noise.items() if noise is None)
        return f"rows within the judge's own noise of the cut-off: not measured ({unknown})"
    measured = [f"{name} ±{noise.largest:.2g}, {noise.pairs} pairs" for name, noise in diff.noise.items() if noise]
    return (
        f"rows within the judge's own noise of the cut-off: {item.within_noise:,} ({'; '.join(measured) or 'no judge'})"
    )


def _moves(table: pa.Table) -> Any:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for title in ("# before", "# after"):
        shown.add_column(title, justify="right", no_wrap=True)
    for title in ("sample", "why"):
        shown.add_column(title, overflow="ellipsis", no_wrap=True)
    for row in table.slice(0, _DIFF_ROWS).to_pylist():
        places = ("-" if row[name] is None else f"{row[name]:,}" for name in ("position_before", "position_after"))
        detail = f": {_words(row['detail'])}" if row["detail"] else ""
        shown.add_row(*places, one_line(row["sample_id"]), _words(row["why"]) + detail)
    more = table.num_rows - _DIFF_ROWS
    if more > 0:
        shown.add_row("", "", f"and {more:,} more", "")
    return shown


def _reasons(table: pa.Table, names: Sequence[str]) -> dict[str, int]:
    found = {item["values"]: item["counts"] for item in table["why"].value_counts().to_pylist()}
    return {name: found.get(name, 0) for name in names}


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Without `pool` where there is only one."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return [{name: value for name, value in row.items() if name != "pool" or value} for row in rows]


def _words(name: str) -> str:
    return "cut-off moved" if name == "cut_off_moved" else name.replace("_", " ")
