"""A Ray cluster of several nodes, an object store behind a proxy that fails on demand, and jobs to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from s2r_ray.storage import Place, StorageOptions
from s2r_ray.store import ScoreStore
from s2r_ray.synth import write_pool
from s2r_ray.tables import read_own
from tests.conftest import ROOT
from tests.faults.proxy import Proxy
from tests.object_store import s3_server

PROBLEMS = 260
BATCH = 8
WORKERS = 2
BUCKET = "faults"  # the servers of one process share what they hold


@dataclass
class Cluster:
    """A head node and one more, as processes of this machine."""

    ray: Any
    nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.ray.address)

    def add_node(self) -> None:
        """One more worker node."""
        self.nodes.append(self.ray.add_node(num_cpus=2, object_store_memory=128 << 20))

    def kill_node(self) -> None:
        """SIGKILL to the youngest worker node's raylet; its workers go with it."""
        self.ray.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with more cores than the machine has; workers can import the tests."""
    from ray.cluster_utils import Cluster as RayCluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    head = {"num_cpus": 2, "object_store_memory": 128 << 20, "include_dashboard": False}
    running = Cluster(RayCluster(initialize_head=True, head_node_args=head))
    running.add_node()
    yield running
    running.ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The address of an S3 server with one bucket."""
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    with s3_server() as endpoint:
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket=BUCKET)
        yield endpoint


@pytest.fixture
def proxy(object_store: str) -> Iterator[Proxy]:
    """The way to the object store, without faults at first."""
    with Proxy(object_store) as running:
        yield running


def storage(endpoint: str) -> dict[str, Any]:
    """The `storage` section of a configuration."""
    return {"endpoint_url": endpoint, "region": "us-east-1", "access_key_id": "key", "secret_access_key": "secret"}


def remote(endpoint: str, path: str) -> Place:
    """A place in the bucket."""
    return Place.of(f"s3://{BUCKET}/{path}", StorageOptions(endpoint, "us-east-1", "key", "secret"))


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up pool of several files."""
    folder = tmp_path_factory.mktemp("faults") / "pool"
    write_pool(Place.of(folder), PROBLEMS, 5, 40)
    return folder


@dataclass
class Job:
    """A run that can be started, killed and started again with the same settings."""

    folder: Path
    config: dict[str, Any]
    judge: dict[str, Any]
    running: subprocess.Popen[str] | None = None

    @property
    def pids(self) -> Path:
        return self.folder / "pids"

    def start(self) -> None:
        """In a process group of its own, its words in `log`."""
        self.pids.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "settings.json"
        settings.write_text(json.dumps({"config": self.config, "judge": {**self.judge, "pids": str(self.pids)}}))
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_ADDRESS"))
        }
        environment |= {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"}
        with (self.folder / "log").open("a") as log:
            self.running = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "faults" / "job.py"), str(settings)],
                stderr=log,
                stdout=log,
                stdin=subprocess.DEVNULL,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def log(self) -> str:
        """All that its runs have said."""
        return (self.folder / "log").read_text()

    def wait(self, seconds: float = 150) -> int:
        """Its exit code."""
        assert self.running is not None
        return self.running.wait(seconds)

    def is_running(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def kill(self) -> None:
        """SIGKILL to the driver and what it started in its own process group."""
        assert self.running is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.wait()

    def judges(self) -> list[psutil.Process]:
        """The judge workers that live."""
        found = []
        for file in self.pids.iterdir():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(file.name))
                if process.status() != psutil.STATUS_ZOMBIE and "ray" in " ".join(process.cmdline()).lower():
                    found.append(process)
        return found

    def wait_seconds(self, seconds: float) -> None:
        """So long, or until the run has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)

    def wait_for_scores(self, out: Place, parts: int) -> None:
        """Until so many parts are in the score store, or the run has ended."""
        while self.is_running() and len(score_parts(out)) < parts:
            time.sleep(0.02)


def job(folder: Path, pool: Path, tokenizer: Path, cluster: Cluster, **judge: Any) -> Job:
    """A run of some seconds of judging; its output is in `folder`/out."""
    config = {
        "pools": [{"uri": str(pool)}],
        "out": str(folder / "out"),
        "tokenizer": str(tokenizer),
        "guards": {"cutoff_tokens": 0},
        "workers": {"address": cluster.address, "cpus_per_index_task": 0.5},
    }
    return Job(folder, config, {"workers": WORKERS, "batch": BATCH, "seconds": 0.04, **judge})


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, pool: Path, tokenizer_dir: Path, cluster: Cluster
) -> tuple[Place, int]:
    """(the output of a run in which nothing goes wrong, how many questions it judges)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    quiet = job(folder, pool, tokenizer_dir, cluster)
    quiet.start()
    assert quiet.wait() == 0, quiet.log()
    record, _ = published(Place.of(folder / "out"))
    counts = record["counts"]
    assert {name: counts[name] for name in ("workers_replaced", "restarts", "damaged_files")} == {
        "workers_replaced": 0,
        "restarts": 0,
        "damaged_files": 0,
    }
    assert len(judged_rows(Place.of(folder / "out"))) == counts["difficulty_judged"] > 150
    return Place.of(folder / "out"), counts["difficulty_judged"]


def score_parts(out: Place) -> list[str]:
    """The parts of all score stores, sorted."""
    return [file.path for file in out.child("scores").files() if file.path.endswith(".parquet")]


def take_apart(out: Place) -> None:
    """Make eight parts of each one of the score stores, as if they had not been put together."""
    for name in score_parts(out):
        whole = out.child("scores", name)
        table = read_own(whole)
        store = ScoreStore(Place(whole.uri.rpartition("/")[0]), tuple(table.column_names[2:-2]))
        size = -(-table.num_rows // 8)
        for start in range(0, table.num_rows, size):
            store.append(table.slice(start, size))
        whole.delete()


def judged_rows(out: Place) -> list[bytes]:
    """The key of every row in the score store, as often as it was judged."""
    keys: list[bytes] = []
    for name in score_parts(out):
        with out.child("scores", name).open_input() as source:
            keys += pq.read_table(source)["key"].to_pylist()
    return keys


def published(out: Place) -> tuple[dict[str, Any], Place]:
    """(record, place) of the run that latest.json names."""
    latest = json.loads(out.child("latest.json").read_bytes())
    run = out.child(latest["path"])
    return json.loads(run.child("run.json").read_bytes()), run
