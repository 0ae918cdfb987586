"""A selection with its texts, for training: read the chosen rows from the pool, bring them in order, write them.

The data are written as one object. What names them (`dataset_info.json` for LLaMA-Factory) comes last, so that a
target has all of an export or nothing of it. `s2r-export.json` beside the data says which selection it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from s2r_ray.candidates import content_key
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.export_formats import FORMATS, Format, dataset_entry, open_writer, training_file
from s2r_ray.index import Snapshot, snapshot_place
from s2r_ray.models import EMBEDDED
from s2r_ray.pool_rows import Fetched, RunPool, fetch_rows, run_pools
from s2r_ray.printable import one_line
from s2r_ray.progress import Progress
from s2r_ray.readers import would_join
from s2r_ray.reorder import Reordered
from s2r_ray.runs import read_record
from s2r_ray.selection import manifest_place
from s2r_ray.storage import Place, json_object
from s2r_ray.tables import open_parquet, use_threads

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RECORD = "s2r-export.json"
_DATA = (".parquet", ".jsonl", ".csv", ".arrow")
_DATASETS = "dataset_info.json"
_LOCATION = ["file", "row", "generation"]
_DEFAULT_STUDENT = "Qwen/Qwen2.5-7B-Instruct"
_DEFAULT_CUTOFF = 16384

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """The rows of one manifest of a finished run. `budget` is in per cent; `baseline` None for the joint ranking."""

    out: Place
    record: dict[str, Any]
    budget: str
    baseline: str | None
    manifest: Place
    rows: int


@dataclass(frozen=True)
class Exported:
    """What an export has left: `files` are relative to `to`; `bytes` those of the data file; `seed` None for the order
    of rank."""

    run_id: str
    budget: str
    baseline: str | None
    format: str
    seed: int | None
    to: str
    files: tuple[str, ...]
    rows: int
    bytes: int
    seconds: float


def find_selection(out: Place, run_id: str, budget: str | None, baseline: str | None) -> Selection:
    """The manifest to export.

    Args:
        budget: in per cent; None if the run has just one.
        baseline: such as "random"; None for the joint ranking.

    Raises:
        UsageError: the run has no such budget or baseline, or no record; says what there is.
    """
    record = read_record(out, run_id)
    sizes: dict[str, int] = record["budgets"]
    there = ", ".join(f"{known} %" for known in sorted(sizes, key=float))
    if budget is None:
        if len(sizes) != 1:
            raise UsageError(f"run {run_id} has several budgets: {there}; give one with --budget")
        (budget,) = sizes
    if budget not in sizes:
        raise UsageError(
            f"run {run_id} has no budget of {budget} %, it has {there}; "
            f"`s2r select --budget {budget}%` makes a run with it, in seconds"
        )
    run = out.child("runs", run_id)
    if baseline is None:
        return Selection(out, record, budget, None, manifest_place(run, budget), sizes[budget])
    folder = baseline.replace(":", "-")
    names = sorted({file.path.partition("/")[0] for file in run.child("baselines").files()})
    if folder not in names:
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise UsageError(f"run {run_id} has no baseline {one_line(baseline)}, {known}")
    manifest = run.child("baselines", folder, manifest_place(run, budget).name)
    return Selection(out, record, budget, baseline, manifest, sizes[budget])


def export(
    selection: Selection,
    target: str,
    to: Place,
    progress: Progress,
    *,
    name: str | None = None,
    seed: int | None = None,
    force: bool = False,
) -> Exported:
    """Write a selection in the form of a target.

    Args:
        target: one of FORMATS.
        to: the folder to write to.
        name: of the data file, without its ending, and of the dataset. Default: `train`; for LLaMA-Factory one that
            says what was selected.
        seed: shuffle with it; None for the order of rank.
        force: replace what is in the way.

    Raises:
        UsageError: something else is in the way, or the folder is part of the pool.
        S2RError: the pool has changed since the run, or something cannot be read or written; nothing is exported.
    """
    started = monotonic()
    form = _format(target)
    name = _checked_name(name or _default_name(selection, target))
    data = to.child(name + form.suffix)
    identity = _identity(selection, target, seed)
    to.check_reachable()
    pools = _pools(selection)
    _check_apart(to, pools)
    _check_target(data, identity, force)
    if target != "llamafactory":
        _check_alone(to, data)
    if target == "llamafactory":
        _check_entry(to.child(_DATASETS), name, dataset_entry(data.name), force=force)
    to.check_writable()
    with ExitStack() as stack:
        size = _write_data(selection, form, pools, data, seed, stack, progress)
    files = [data.name]
    if target == "llamafactory":
        files.append(_write_training(selection, to, name, force, progress))
    _merge(to.child(_RECORD), data.name, identity, force=True)
    files.append(_RECORD)
    if target == "llamafactory":
        _merge(to.child(_DATASETS), name, dataset_entry(data.name), force=force)
        files.append(_DATASETS)
    seconds = round(monotonic() - started, 3)
    about = {key: identity[key] for key in ("run_id", "budget", "baseline", "format", "seed")}
    return Exported(**about, to=to.uri, files=tuple(files), rows=selection.rows, bytes=size, seconds=seconds)


def _format(target: str) -> Format:
    if target not in FORMATS:
        raise UsageError(f"unknown format {one_line(target)!r}; expected one of: {', '.join(FORMATS)}")
    return FORMATS[target]


def _default_name(selection: Selection, target: str) -> str:
    if target != "llamafactory":
        return "train"
    kind = f"{selection.baseline.replace(':', '-')}_" if selection.baseline else ""
    return f"s2r_{kind}top_{selection.budget}pct"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {one_line(name)}: expected letters, digits, dots, - and _, such as s2r_top_10pct")
    return name


def _identity(selection: Selection, target: str, seed: int | None) -> dict[str, Any]:
    """What makes an export this one and no other: the same gives the same data."""
    return {
        "run_id": selection.record["run_id"],
        "budget": selection.budget,
        "baseline": selection.baseline,
        "format": target,
        "seed": seed,
        "rows": selection.rows,
    }


# --- what must be so before anything is read ------------------------------------------------------


def _pools(selection: Selection) -> tuple[RunPool, ...]:
    record = selection.record
    place = snapshot_place(selection.out, record["snapshot"])
    try:
        snapshot = Snapshot.from_json(place.read_bytes()) if place.exists() else None
    except (KeyError, TypeError, ValueError):
        snapshot = None
    if snapshot is None:
        raise UsageError(
            f"{place} is gone or damaged: without it there is no telling which files run {record['run_id']} read. "
            "`s2r run` makes a new run"
        )
    return run_pools(snapshot, record["config"], selection.out.options)


def _check_apart(to: Place, pools: tuple[RunPool, ...]) -> None:
    for pool in pools:
        if would_join(to, pool.name, pool.root, pool.now):
            raise UsageError(f"--to {to} lies in the pool {pool.name}, whose files it would join; choose another place")


def _check_target(data: Place, identity: dict[str, Any], force: bool) -> None:
    if force or not data.exists():
        return
    record = Place(data.uri.rsplit("/", 1)[0], data.options).child(_RECORD)
    known = (record.read_json() or {}).get(data.name) if record.exists() else None
    if known != identity:
        what = f"an export of {_told(known)}" if isinstance(known, dict) else "not a finished export"
        raise UsageError(f"{data} is there already, and is {what}; give --force to replace it, or another --to")


def _check_alone(to: Place, data: Place) -> None:
    """Refuse a folder with other data: who loads a folder reads all that lies in it."""
    others = [file.path for file in to.files() if file.path.endswith(_DATA) and file.path != data.name]
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise UsageError(
            f"{to} has other data, {one_line(others[0])}{more}, which `load_dataset` would read together with these; "
            "give another --to"
        )


def _told(identity: dict[str, Any]) -> str:
    """An export as a person would call it; what is in the file may be anything."""
    parts = [identity.get("baseline") or "the best", f"{identity.get('budget')} %", f"of run {identity.get('run_id')}"]
    parts.append(f"as {identity.get('format')}")
    seed = identity.get("seed")
    return one_line(" ".join(map(str, parts)) + (f", shuffled with seed {seed}" if seed is not None else ""))


# --- the data -------------------------------------------------------------------------------------


def _write_data(
    selection: Selection,
    form: Format,
    pools: tuple[RunPool, ...],
    data: Place,
    seed: int | None,
    stack: ExitStack,
    progress: Progress,
) -> int:
    """Fetch the rows, bring them in order, write them; returns the bytes written."""
    places, keys = _read_manifest(selection)
    order = _order(selection.rows, seed)
    texts = stack.enter_context(Reordered(selection.rows))
    with progress.stage("export", "rows", selection.rows) as ticker:
        for fetched in fetch_rows(pools, places, originals=form.originals):
            _check_texts(fetched, keys, places)
            texts.add(order[fetched.at], form.rows(fetched))
            ticker.advance(len(fetched.at))
    del places, keys
    columns = [texts]
    if form.numbers:
        numbers = stack.enter_context(Reordered(selection.rows))
        start = 0
        for rows in _manifest_rows(selection.manifest):
            numbers.add(order[start : start + rows.num_rows], rows)
            start += rows.num_rows
        columns = [numbers, texts]
    schema = pa.schema([field for some in columns for field in some.finish()])
    with data.open_output() as sink:
        with open_writer(sink, form.suffix, schema) as write:
            for low, high in texts.spans():
                arrays = [array for some in columns for array in some.take(low, high).columns]
                write(pa.table(arrays, schema=schema))
        return sink.tell()


def _order(rows: int, seed: int | None) -> Ints:
    """Where in the export each row of the manifest comes: int64[rows]. NumPy keeps the numbers that a bit generator
    draws the same in all its versions, unlike what it shuffles with them."""
    if seed is None:
        return np.arange(rows)
    place = np.empty(rows, np.int64)
    place[np.argsort(np.random.PCG64(seed).random_raw(rows), kind="stable")] = np.arange(rows)
    return place


def _read_manifest(selection: Selection) -> tuple[pa.Table, npt.NDArray[np.uint8]]:
    """Where each row lies, in order of rank, and the key of its question, uint8[n, 16]."""
    keys = np.empty((selection.rows, 16), np.uint8)
    start = 0
    for rows in _manifest_rows(selection.manifest, ["question_key"]):
        stop = start + rows.num_rows
        digits = "".join(rows["question_key"].to_pylist())
        keys[start:stop] = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 16)
        start = stop
    with open_parquet(selection.manifest, coded=True) as file:
        wanted = [name for name in ("pool", *_LOCATION) if name in file.schema_arrow.names]
        places = file.read(columns=wanted, use_threads=use_threads(selection.manifest, file))
    return places, keys


def _manifest_rows(manifest: Place, columns: list[str] | None = None) -> Iterator[pa.Table]:
    with open_parquet(manifest) as file:
        for batch in file.iter_batches(1 << 16, columns=columns, use_threads=use_threads(manifest, file)):
            yield pa.Table.from_batches([batch])


def _check_texts(fetched: Fetched, keys: npt.NDArray[np.uint8], places: pa.Table) -> None:
    """Hold what was fetched against the manifest: it must be the question that was judged, and have a response."""
    questions, responses = (fetched.samples[name].to_pylist() for name in ("question", "response"))
    for at, question, response in zip(fetched.at.tolist(), questions, responses, strict=True):
        if question is None or response is None or content_key(question) != keys[at].tobytes():
            row = {name: places[name][at].as_py() for name in _LOCATION}
            raise S2RError(
                f"row {row['row']:,} of {row['file']}, generation {row['generation']}, is not the one that was ranked: "
                "the file has changed in place, or the columns of this preset have. `s2r run` makes a new run"
            )


# --- what stands beside it ------------------------------------------------------------------------


def _write_training(selection: Selection, to: Place, name: str, force: bool, progress: Progress) -> str:
    """The training file, unless there is one that someone has changed."""
    config = selection.record["config"]
    tokenizer = config["tokenizer"]
    student = tokenizer if tokenizer != EMBEDDED else _DEFAULT_STUDENT
    cutoff = config["guards"]["cutoff_tokens"] or _DEFAULT_CUTOFF
    text = training_file(name, yaml.safe_dump(student, default_style='"').strip(), cutoff).encode()
    place = to.child(f"{name}.yaml")
    if not force and place.exists() and place.read_bytes() != text:
        progress.say(f"{place} is there already, and other than the one that would be written; kept")
    else:
        place.write_bytes(text)
    return place.name


def _merge(place: Place, key: str, value: dict[str, Any], *, force: bool) -> None:
    """Set one key of a JSON object and leave the others as they are, whoever else does the same.

    Raises:
        UsageError: the file is no JSON object, or has something else there and `force` is not given.
    """

    def change(old: bytes | None) -> bytes:
        return json.dumps({**_others(place, old, key, value, force), key: value}, indent=2).encode()

    place.replace(change)


def _check_entry(place: Place, key: str, value: dict[str, Any], *, force: bool) -> None:
    """Raises what `_merge` would raise."""
    _others(place, place.read_bytes() if place.exists() else None, key, value, force)


def _others(place: Place, old: bytes | None, key: str, value: dict[str, Any], force: bool) -> dict[str, Any]:
    content = {} if old is None else json_object(old)
    if content is None:
        raise UsageError(f"{place} is not a JSON object, so {key} cannot be added; repair or remove it")
    if content.get(key, value) != value and not force:
        raise UsageError(f"{place} has another entry {key}; give --force to replace it, or another --name")
    return content


# --- the command ----------------------------------------------------------------------------------


def summary(exported: Exported) -> dict[str, Any]:
    """For `--json`."""
    return asdict(exported)


def text(exported: Exported) -> str:
    """For people."""
    what = f"{exported.baseline or 'best'} {exported.budget} % of run {exported.run_id}"
    order = "in order of rank" if exported.seed is None else f"shuffled with seed {exported.seed}"
    lines = [f"{exported.rows:,} rows, {what}, {order}: {exported.to}", *(f"  {name}" for name in exported.files)]
    return "\n".join(lines) + "\n"
