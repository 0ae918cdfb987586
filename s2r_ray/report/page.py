"""report.html: one page about a run. It has no script, loads nothing, and escapes what comes from the pool."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup

from s2r_ray.publish import RunRecord
from s2r_ray.report.examples import find_examples
from s2r_ray.report.sections import sections
from s2r_ray.report.statistics import gather
from s2r_ray.report.stored import StoredRun
from s2r_ray.storage import Place
from s2r_ray.tables import DamagedError


def write_report(out: Place, run: Place, record: RunRecord, labels: Sequence[str] = ()) -> Place:
    """Write the page into the run's folder; returns its place.

    Args:
        labels: whose shares to show; () for all that the index has.

    Raises:
        UsageError: there is no such label.
    """
    place = run.child("report.html")
    place.write_bytes(page(StoredRun(out, run, record), labels).encode("utf-8", "replace"))
    return place


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
    source = (resources.files("s2r_ray.report") / "page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        record=run.record,
        statistics=statistics,
        sections=sections(run.record, statistics, examples),
        index_is_gone=snapshot is None,
        signals=list(run.signals),
    )
