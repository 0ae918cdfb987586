"""report.html: one page about a run. It has no script, loads nothing, and escapes what comes from the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib import resources

import jinja2
import pyarrow as pa
from markupsafe import Markup

from s2r_ray.errors import UsageError
from s2r_ray.printable import one_line
from s2r_ray.publish import RunRecord
from s2r_ray.report.examples import find_examples
from s2r_ray.report.sections import sections
from s2r_ray.report.statistics import gather
from s2r_ray.report.stored import StoredRun
from s2r_ray.runs import read_record
from s2r_ray.storage import Place
from s2r_ray.tables import DamagedError

NAME = "report.html"


def write_report(out: Place, run: Place, record: RunRecord) -> None:
    """Write the page into the folder of a run whose ranking and manifests are there."""
    run.child(NAME).write_bytes(page(StoredRun(out, run, record)).encode())


def remake_report(out: Place, run_id: str, labels: Sequence[str] = (), to: Place | None = None) -> Place:
    """Make the page of a finished run anew; returns its place.

    Args:
        labels: whose shares to show; () for all that the index has.
        to: where to write it; None for its place in the run.

    Raises:
        UsageError: there is no such label; the run is of another version, or damaged.
    """
    place = out.child("runs", run_id)
    known = {field.name for field in fields(RunRecord)}
    content = {name: value for name, value in read_record(out, run_id).items() if name in known}
    try:
        html = page(StoredRun(out, place, RunRecord(**content)), labels)
    except (TypeError, KeyError) as error:
        raise UsageError(f"run {run_id} was left by another version of s2r; `s2r select` makes a new one") from error
    except (pa.ArrowException, OSError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"a table of run {run_id} is damaged or gone ({why}); name another run") from error
    target = to or place.child(NAME)
    target.write_bytes(html.encode())
    return target


def page(run: StoredRun, labels: Sequence[str] = ()) -> str:
    """The page. What the index or the pool has no more is left out, and said so."""
    snapshot = run.snapshot()
    try:
        statistics = gather(run, snapshot, labels)
    except DamagedError:
        snapshot = None
        statistics = gather(run, None)
    examples = find_examples(run, snapshot, statistics.missed, statistics.addressing)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["drawing"] = Markup  # ours alone: figures escape what they show
    environment.filters["line"] = one_line
    source = (resources.files("s2r_ray.report") / "page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        record=run.record,
        statistics=statistics,
        sections=sections(run.record, statistics, examples),
        index_is_gone=snapshot is None,
        signals=list(run.signals),
    )
