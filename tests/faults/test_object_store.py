"""Runs whose pool and output lie in an object store that throttles, breaks off, is slow, or is gone."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from s2r_ray.errors import S2RError, StoreError, UsageError
from s2r_ray.publish import RunRecord, new_run_id, publish, read_latest
from s2r_ray.readers import Unit, read_unit
from s2r_ray.retries import take_repeated
from s2r_ray.storage import Place, StorageOptions
from s2r_ray.tables import read_own
from tests.command import results
from tests.faults.conftest import BUCKET, Cluster, Job, job, judged_rows, published, remote, score_parts, storage
from tests.faults.proxy import Fault, Kind, Proxy

pytestmark = [pytest.mark.s3, pytest.mark.faults]


@pytest.fixture
def fresh(proxy: Proxy) -> Place:
    """A place through the proxy, with nothing counted yet."""
    take_repeated()
    return remote(proxy.endpoint, f"fresh/{new_run_id()}")


# --- single requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["slow_down", "reset", "truncate", "slow", "lost_answer"])
def test_one_thing_at_a_time(kind: Kind, proxy: Proxy, fresh: Place) -> None:
    """Catches: a fault that passes by itself, but ends the run, or gives half an object, or writes something twice."""
    data = bytes(range(256)) * 4096
    place = fresh.child("object")
    proxy.faults[:] = [Fault(kind, times=2)]
    place.write_bytes(data)
    proxy.faults[:] = [Fault(kind, times=2)]
    assert place.read_bytes() == data
    proxy.faults[:] = [Fault(kind, "GET", times=2)]
    with place.open_input() as source:
        assert source.read() == data
    proxy.faults[:] = [Fault(kind, times=2)]
    place.replace(lambda old: (old or b"")[:3] + b"!")
    assert place.read_bytes() == data[:3] + b"!"
    assert proxy.done[kind] >= 5
    assert (take_repeated() > 0) == (kind != "slow"), "each repeated request is counted"


@pytest.mark.parametrize("kind", ["slow_down", "lost_answer"])
def test_large_objects_in_parts(kind: Kind, proxy: Proxy, fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an upload in parts whose completion is repeated, and refused, because it had succeeded."""
    monkeypatch.setattr("s2r_ray.storage._ONE_PUT_BYTES", 12 << 20)
    data = bytes(range(256)) * (60 << 10)
    proxy.faults[:] = [Fault(kind, "POST", "uploadId", times=1), Fault(kind, "PUT", "uploadId", times=1)]
    fresh.child("large").write_bytes(data)
    assert proxy.done[kind] == 2
    assert fresh.child("large").read_bytes() == data


@pytest.mark.parametrize(("kind", "said"), [("down", "check storage.endpoint_url"), ("slow_down", "the store is busy")])
def test_the_bound(kind: Kind, said: str, proxy: Proxy) -> None:
    """Catches: tries without end, and a bound that cannot be set."""
    options = StorageOptions(proxy.endpoint, "us-east-1", "key", "secret", tries=2)
    place = Place.of(f"s3://{BUCKET}/bound", options)
    proxy.faults[:] = [Fault(kind)]
    started = time.monotonic()
    for use in (place.read_bytes, lambda: place.write_bytes(b"x"), lambda: place.replace(lambda _: b"x")):
        before = proxy.done[kind]
        with pytest.raises(StoreError, match=said):
            use()
        assert proxy.done[kind] - before <= 2 * 2 * 2, "two tries of botocore's in each of two of s3fs's; reset twice"
    assert time.monotonic() - started < 30


def test_a_busy_store_is_reachable(proxy: Proxy) -> None:
    """Catches: a run that refuses to start because the store throttled the first request of all."""
    place = remote(proxy.endpoint, "anything")
    proxy.faults.append(Fault("slow_down"))
    place.check_reachable()
    assert proxy.done["slow_down"] == 1
    proxy.faults[:] = [Fault("down")]
    with pytest.raises(UsageError, match=r"storage\.endpoint_url"):
        place.check_reachable()


def test_a_store_that_fails_is_not_a_bad_file(proxy: Proxy, pool: Path) -> None:
    """Catches: a pool file left out as unreadable, within the budget for those, because the network was down."""
    options = StorageOptions(proxy.endpoint, "us-east-1", "key", "secret", tries=2)
    root = Place.of(f"s3://{BUCKET}/notbad", options)
    file = sorted(pool.iterdir())[0]
    root.child(file.name).write_bytes(file.read_bytes())
    unit = Unit(0, file.name, file.stat().st_size, "1")
    for kind in ("down", "truncate", "slow_down"):
        proxy.faults[:] = [Fault(kind, "GET|HEAD")]
        with pytest.raises(StoreError):
            list(read_unit(root, unit, ["problem"], lambda *_: None))
    proxy.faults.clear()
    assert sum(len(batch.columns["problem"]) for batch in read_unit(root, unit, ["problem"], lambda *_: None)) == 40


# --- latest.json ---------------------------------------------------------------------------------------


def test_many_publish_at_once(proxy: Proxy, fresh: Place) -> None:
    """Catches: latest.json set back by an older run, or a run that fails because the answer to its put was lost."""
    proxy.faults[:] = [Fault("lost_answer", "PUT", "latest.json", chance=0.3), Fault("slow", chance=0.2)]
    ids = sorted(new_run_id() for _ in range(12))

    def one(run_id: str) -> None:
        record = RunRecord(run_id, "", {}, [], "", {}, {}, counts={"indexed": 0, "ranked": 0})
        publish(fresh, fresh.child("runs", run_id), record)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, [*ids[6:], *ids[:6]]))
    latest = read_latest(fresh)
    assert latest is not None
    assert latest["run_id"] == ids[-1]


def test_a_store_without_conditional_puts(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a store that cannot do it, on which no run could ever be published."""
    calls = []
    place = fresh.child("latest.json")
    filesystem = place.filesystem()

    def refuse(method: str, **arguments: Any) -> None:
        calls.append((method, arguments))
        answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
        error = OSError("A header you provided implies functionality that is not implemented")
        error.__cause__ = RuntimeError()
        error.__cause__.response = answer  # type: ignore[attr-defined]  # as botocore's errors have it
        raise error

    monkeypatch.setattr(filesystem, "call_s3", refuse)
    place.replace(lambda old: b"1" if old is None else None)
    assert len(calls) == 1
    assert place.read_bytes() == b"1"


# --- whole runs ----------------------------------------------------------------------------------------


def remote_job(folder: Path, endpoint: str, pool: Path, tokenizer: Path, cluster: Cluster, **judge: Any) -> Job:
    """Like `job`, with the pool and the output in the object store."""
    found = job(folder, pool, tokenizer, cluster, **judge)
    for file in pool.iterdir():
        remote(endpoint, f"pool/{folder.name}").child(file.name).write_bytes(file.read_bytes())
    found.config |= {
        "pools": [{"uri": f"s3://{BUCKET}/pool/{folder.name}"}],
        "out": f"s3://{BUCKET}/out/{folder.name}",
        "storage": storage(endpoint),
    }
    return found


@pytest.mark.ray
def test_a_run_through_a_bad_network(
    tmp_path: Path, proxy: Proxy, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: a run that gives other results, or none, when one request in ten goes wrong."""
    running = remote_job(tmp_path, proxy.endpoint, pool, tokenizer_dir, cluster, seconds=0.0)
    kinds: tuple[Kind, ...] = ("slow_down", "reset", "truncate", "slow", "lost_answer")
    proxy.faults[:] = [Fault(kind, chance=0.02) for kind in kinds]
    running.start()
    assert running.wait() == 0, running.log()
    proxy.faults.clear()
    record, run = published(remote(proxy.endpoint, f"out/{tmp_path.name}"))
    assert results(run) == results(published(undisturbed[0])[1])
    assert sum(proxy.done.values()) > 10
    assert 0 < record["counts"]["requests_repeated"] <= 2 * sum(proxy.done.values())


@pytest.mark.ray
def test_the_store_dies_between_two_writes(
    tmp_path: Path, proxy: Proxy, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: a run that hangs, or leaves something half done, when the object store goes away under it, and one that
    then judges again what was stored."""
    running = remote_job(tmp_path, proxy.endpoint, pool, tokenizer_dir, cluster, seconds=0.05)
    running.config["storage"]["tries"] = 2
    out = remote(proxy.endpoint, f"out/{tmp_path.name}")
    running.start()
    running.wait_for_scores(out, 5)
    proxy.faults[:] = [Fault("down")]
    assert running.wait(90) == 1
    assert re.search(r"^error: .*(cannot (read|write|list|look at)) s3://", running.log(), re.MULTILINE), running.log()
    assert "Traceback" not in running.log()
    proxy.faults.clear()
    stored = len(set(judged_rows(out)))
    assert stored >= 5
    running.start()
    assert running.wait() == 0, running.log()
    record, run = published(out)
    assert results(run) == results(published(undisturbed[0])[1])
    assert record["counts"]["difficulty_reused"] >= stored
    assert len(judged_rows(out)) == undisturbed[1], "nothing was judged twice"
    assert len(score_parts(out)) == 1, "they were put together at the end"
    assert json.loads(out.child("latest.json").read_bytes())["run_id"] == record["run_id"]


def test_a_cut_part_in_the_store_is_told(fresh: Place) -> None:
    """Catches: an object that the store itself lost the end of, read as if it were whole."""
    fresh.child("part.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(S2RError, match="is damaged"):
        read_own(fresh.child("part.parquet"))
