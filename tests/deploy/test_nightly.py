"""nightly.py, which the CronJob's pod runs, against an API server of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.deploy.files import DEPLOY, document, documents

LABEL = "s2r-nightly-job-uid"


class Api(ThreadingHTTPServer):
    """RayJobs of one namespace; `script` says what the status of one is, question by question. 503 is an outage."""

    def __init__(self, script: list[dict[str, str] | int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.rayjobs: list[dict[str, Any]] = []
        self.refused: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Api
    base = "/apis/ray.io/v1/namespaces/nights/rayjobs"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == self.base:
            key, _, value = parse_qs(address.query)["labelSelector"][0].partition("=")
            found = [item for item in self.server.rayjobs if item["metadata"]["labels"].get(key) == value]
            return self.answer(200, {"items": found})
        script = self.server.script
        status = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(status, int):
            return self.answer(status, {})
        return self.answer(200, {"status": status})

    def do_POST(self) -> None:
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        made["metadata"]["name"] = f"{made['metadata']['generateName']}x{len(self.server.rayjobs)}"
        self.server.rayjobs.append(made)
        self.answer(201, made)

    def answer(self, code: int, body: dict[str, Any]) -> None:
        if self.headers["Authorization"] != "Bearer a-token":
            self.server.refused.append(self.path)
            code, body = 401, {}
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api([])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def night(api: Api, folder: Path, job: str = "s2r-nightly-1") -> subprocess.CompletedProcess[str]:
    """Run the script as the pod of this Job does."""
    (folder / "namespace").write_text("nights\n")
    (folder / "token").write_text("a-token\n")
    return subprocess.run(
        [sys.executable, str(DEPLOY / "kuberay/nightly.py"), str(DEPLOY / "kuberay/rayjob.yaml")],
        env={
            **os.environ,
            "SERVICE_ACCOUNT": str(folder),
            "KUBERNETES_API": f"http://127.0.0.1:{api.server_port}",
            "POLL_SECONDS": "0.05",
            "JOB_NAME": job,
            "JOB_UID": f"uid-of-{job}",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
RETRYING = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
STOPPED = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
INVALID = {"jobDeploymentStatus": "ValidationFailed", "message": "bad spec"}


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([{}, RUNNING, RETRYING, RUNNING, DONE], 0),
        ([RUNNING, 503, 500, RUNNING, DONE], 0),
        ([RUNNING, STOPPED], 3),
        ([RUNNING, FAILED], 3),
        ([{}, INVALID], 3),
    ],
)
def test_the_pod_ends_when_and_how_its_rayjob_ends(
    api: Api, tmp_path: Path, script: list[dict[str, str] | int], code: int
) -> None:
    """Would catch a pod that goes before its RayJob, so that two nights overlap, or that calls a failure a success."""
    api.script = script
    ended = night(api, tmp_path)
    assert ended.returncode == code, ended.stderr
    assert len(api.script) == 1, "it did not wait for the end"
    (made,) = api.rayjobs
    assert made["spec"] == document("kuberay/rayjob.yaml")["spec"]
    assert made["metadata"]["labels"] == {"app": "s2r-ray", LABEL: "uid-of-s2r-nightly-1"}
    (owner,) = made["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": "s2r-nightly-1", "uid": "uid-of-s2r-nightly-1"}


def test_a_pod_that_is_started_again_makes_no_second_rayjob(api: Api, tmp_path: Path) -> None:
    """Would catch two clusters in one night after the waiting pod was evicted; another night does get its own."""
    api.script = [DONE]
    for job in ("s2r-nightly-1", "s2r-nightly-1", "s2r-nightly-2"):
        assert night(api, tmp_path, job).returncode == 0
    assert [made["metadata"]["labels"][LABEL] for made in api.rayjobs] == [
        "uid-of-s2r-nightly-1",
        "uid-of-s2r-nightly-2",
    ]


def test_a_missing_right_is_not_waited_out(api: Api, tmp_path: Path) -> None:
    """Would catch a pod that asks for ever about a RayJob that it may not see or that was deleted."""
    api.script = [RUNNING, 404]
    ended = night(api, tmp_path)
    assert ended.returncode not in (0, 3), "the Job must try again, and not call the RayJob a failure"
    assert "404" in ended.stderr
    assert api.refused == []


def test_the_job_knows_the_exit_code_of_a_failed_rayjob() -> None:
    """Would catch a Job that starts its pod again and again for a RayJob that has failed for good."""
    job = next(found for found in documents("kuberay/cronjob.yaml") if found["kind"] == "CronJob")["spec"][
        "jobTemplate"
    ]
    (values,) = [
        rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    script = (DEPLOY / "kuberay/nightly.py").read_text()
    assert f"RAYJOB_FAILED = {values[0]}\n" in script
    env = {item["name"] for item in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env == {"JOB_NAME", "JOB_UID"}
