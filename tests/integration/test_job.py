"""`ray job submit` on a real cluster: a head, a node with GPUs on paper, tokens, an object store behind a proxy."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
import yaml

from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.metrics import METRICS
from s2r_ray.storage import Place, StorageOptions
from s2r_ray.synth import write_pool
from tests.command import assert_told, results, s2r
from tests.conftest import ROOT
from tests.faults.proxy import Fault, Proxy
from tests.object_store import s3_server
from tests.ray_cluster import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.s3]

BUCKET = "jobs"
KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
JUDGES = 2


@dataclass
class Site:
    """A cluster, a store and what a user has: configuration files and a token."""

    cluster: RayCluster
    proxy: Proxy
    folder: Path

    def config(self, name: str, **changes: Any) -> str:
        """A configuration file for a judge in the object store, on the node with GPUs."""
        workers = {
            "judges_min": JUDGES, "judges_max": JUDGES, "gpus_per_judge": 1, "judge_batch": 16,
            "judge_resources": {"judge_node": 1},
        }  # fmt: skip
        content = {
            "pools": [{"uri": str(self.folder / "pool")}],
            "out": f"s3://{BUCKET}/{name}",
            "tokenizer": f"s3://{BUCKET}/judge",
            "judge": {"model": f"s3://{BUCKET}/judge", "engine": "transformers", "deterministic": True},  # slow
            "workers": workers,
            "storage": {"endpoint_url": self.proxy.endpoint, "region": "us-east-1", "tries": 8}
            | {"access_key_id": "key", "secret_access_key": "secret"},
        } | changes
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        return str(file)

    def out(self, name: str) -> Place:
        """An output place, for the test to look at."""
        return Place.of(f"s3://{BUCKET}/{name}", StorageOptions(self.proxy.upstream, "us-east-1", "key", "secret"))

    def submit(self, entry: str, *arguments: str) -> str:
        """Submit and do not wait; the job's id."""
        said = self.cluster.command(
            "job", "submit", "--no-wait", "--working-dir", str(ROOT), "--", "python", entry, *arguments
        )
        assert said.returncode == 0, said.stdout + said.stderr
        return re.findall(r"Job '(raysubmit_\w+)' submitted", said.stdout + said.stderr)[0]

    def get(self, path: str) -> Any:
        """The dashboard's answer."""
        token = (self.cluster.folder / "token").read_text()
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.cluster.dashboard + path, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def job(self, identity: str) -> Any:
        """Status, exit code and the like."""
        return self.get(f"/api/jobs/{identity}")

    def wait(self, identity: str, until: Callable[[], bool] = lambda: False, seconds: float = 400) -> str:
        """Until the condition holds or the job has ended; its status."""
        limit = time.monotonic() + seconds
        while (status := str(self.job(identity)["status"])) in ("PENDING", "RUNNING") and not until():
            assert time.monotonic() < limit, self.log(identity)
            time.sleep(0.3)
        return status

    def log(self, identity: str) -> str:
        """What a job has said."""
        return str(self.get(f"/api/jobs/{identity}/logs")["logs"])

    def judged(self, name: str) -> list[bytes]:
        """The key of each row in the score store."""
        keys: list[bytes] = []
        scores = self.out(name).child("scores")
        for file in scores.files():
            if file.path.endswith(".parquet"):
                with scores.child(file.path).open_input() as source:
                    keys += pq.read_table(source)["key"].to_pylist()
        return keys


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The head runs no judge; the other node has a cache of its own, as another machine would."""
    folder = tmp_path_factory.mktemp("job")
    write_pool(Place.of(folder / "pool"), 400, 7, 100)
    with s3_server() as upstream, Proxy(upstream) as proxy, RayCluster() as cluster:
        client = boto3.client("s3", endpoint_url=upstream, region_name="us-east-1", **KEYS)
        client.create_bucket(Bucket=BUCKET)
        for file in EMBEDDED_JUDGE.iterdir():
            client.upload_file(str(file), BUCKET, f"judge/{file.name}")
        cluster.add_node(3, 2, {"judge_node": 2}, S2R_CACHE=str(folder / "cache"))
        yield Site(cluster, proxy, folder)


def metric_names(lines: list[str]) -> set[str]:
    """Names of ours with a value, as they are defined in `METRICS`."""
    found = {re.split(r"[{ ]", line)[0] for line in lines if line.startswith("ray_s2r_")}
    return {name.removeprefix("ray_").removesuffix("_total") for name in found}


def test_submit_stop_submit(site: Site) -> None:
    """Catches: a job that cannot be submitted, stopped and gone on with; judges on the wrong node; a model that is
    downloaded by each worker; metrics that never reach Prometheus; logs nobody can read; other results after a stop."""
    site.proxy.faults.append(Fault("slow_down", method="GET", path="stopped", chance=0.1))
    site.proxy.asked.clear()
    first = site.submit("jobs/score_pool.py", "--config", site.config("stopped"))
    seen: set[str] = set()
    nodes: set[str] = set()

    def far_enough() -> bool:
        seen.update(metric_names(site.cluster.metrics()))
        actors = site.get("/api/v0/actors?detail=true")["data"]["result"]["result"]
        nodes.update(
            actor["node_id"] for actor in actors if actor["state"] == "ALIVE" and "MapWorker" in actor["class_name"]
        )
        return len(site.out("stopped").child("scores").files()) > 3 and len(nodes) >= 1 and "s2r_prefill_tokens" in seen

    assert site.wait(first, far_enough) == "RUNNING", site.log(first)
    site.proxy.faults.append(Fault("slow_down", method="PUT", path="stopped/scores"))  # no end before the stop
    stopped = site.cluster.command("job", "stop", first)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert site.wait(first) == "STOPPED"
    site.proxy.faults.pop()
    assert "stopped; what was indexed and judged is kept" in site.log(first)
    assert not site.out("stopped").child("latest.json").exists()
    before = site.judged("stopped")
    assert site.proxy.asked[f"GET /{BUCKET}/judge/model.safetensors"] == 1, "once for two workers of a node"
    here = site.get("/api/v0/nodes?detail=true")["data"]["result"]["result"]
    assert nodes == {node["node_id"] for node in here if "judge_node" in node["resources_total"]}

    second = site.submit("jobs/score_pool.py", "--config", site.config("stopped"))

    def watched() -> bool:
        seen.update(metric_names(site.cluster.metrics()))
        return False

    assert site.wait(second, watched) == "SUCCEEDED", site.log(second)
    site.proxy.faults.clear()
    assert site.job(second)["driver_exit_code"] == 0
    keys = site.judged("stopped")
    assert len(keys) > len(before)
    assert len(keys) - len(set(keys)) <= JUDGES * 16, "more was judged twice than was in flight"
    assert seen == set(METRICS)
    log = site.log(second)
    for said in (r"difficulty: \d+ of [\d,]+ questions, .*/s", r"rank: \d+ traces ranked", r"top +10 %"):
        assert re.search(said, log), log
    assert len(log.splitlines()) < 60, log

    third = site.submit("jobs/nightly_rescore.py", "--config", site.config("whole"))
    assert site.wait(third) == "SUCCEEDED", site.log(third)
    runs = []
    for name in ("stopped", "whole"):
        latest = json.loads(site.out(name).child("latest.json").read_bytes())
        runs.append(results(site.out(name).child(latest["path"])))
    assert runs[0] == runs[1]

    fourth = site.submit("jobs/select_pool.py", "--out", f"s3://{BUCKET}/whole", "--budget", "50%", "--config",
                         site.config("whole"))  # fmt: skip
    assert site.wait(fourth) == "SUCCEEDED", site.log(fourth)
    assert re.search(r"top +50 %", site.log(fourth))


def test_exit_code(site: Site) -> None:
    """Catches: a job that failed shown as one that succeeded, and a wrong setting that is told by a traceback."""
    config = site.config("typo", workers={"judges": 2})
    said = site.cluster.command(
        "job", "submit", "--working-dir", str(ROOT), "--", "python", "jobs/score_pool.py", "--config", config
    )
    assert said.returncode == 1
    text = said.stdout + said.stderr
    assert "error: " in text
    assert "unknown key workers.judges" in text
    assert "Traceback" not in text
    identity = re.findall(r"Job '(raysubmit_\w+)' submitted", text)[0]
    assert site.job(identity)["driver_exit_code"] == 2


@pytest.mark.parametrize(
    ("workers", "parts"),
    [
        ({"gpus_per_judge": 3}, ["no node of the cluster has room for a difficulty worker", "3 GPU", "2 GPU"]),
        ({"judges_min": 3, "judges_max": 3, "gpus_per_judge": 1}, ["room for 2, but 3 are asked for"]),
        ({"accelerator_type": "H100", "tensor_parallel": 1}, ["H100", "there is: "]),
        ({"judge_resources": {"big": 1}}, ["1 big", "add nodes"]),
        ({"index_resources": {"cheap": 1}}, ["a task that reads", "1 cheap"]),
        ({"judges_min": 4, "judges_max": 4, "gpus_per_judge": 0}, ["need 5 CPUs at once", "Lower workers.judges_min"]),
    ],
)
def test_what_the_cluster_has_not(site: Site, workers: dict[str, Any], parts: list[str]) -> None:
    """Catches: a run that indexes for hours, or waits for ever, before it says that no node can judge."""
    config = site.config("misfit", workers=workers | {"address": site.cluster.address})
    for command in ("plan", "run"):
        said = s2r(command, "--config", config, **site.cluster.environment)
        assert_told(said, 2, *parts)
    assert not [file for file in site.out("misfit").files() if file.path.startswith("index/")]


def test_nodes_without_credentials(site: Site) -> None:
    """Catches: keys that only the driver has, told by an index task or a judge after minutes."""
    storage = {"endpoint_url": site.proxy.endpoint, "region": "us-east-1"}
    config = site.config("keys", storage=storage, workers={"address": site.cluster.address})
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    said = s2r("run", "--config", config, **(site.cluster.environment | keys))
    assert_told(said, 2, "nodes with room for a task that reads", "no AWS credentials")


def test_no_token(site: Site, tmp_path: Path) -> None:
    """Catches: a cluster that asks for a token, told by a traceback or a time-out without a word on tokens."""
    wanted = site.config("token", workers={"address": site.cluster.address})
    without = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    said = s2r("run", "--config", wanted, **(site.cluster.environment | without))
    assert_told(said, 2, site.cluster.address, "RAY_AUTH_TOKEN_PATH")
    said = s2r("run", "--config", wanted, **without, RAY_AUTH_MODE="disabled")
    assert_told(said, 2, site.cluster.address, "RAY_AUTH_MODE=token")
