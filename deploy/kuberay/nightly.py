"""Make a RayJob from a template file and wait until it has ended; runs in the pod of the CronJob.

Exit codes: 0 the RayJob succeeded, 3 it failed; anything else is this script's own trouble, and the Job tries it again.
A pod that is started again waits for the RayJob that its predecessor made.
Only the standard library and PyYAML, so that it runs in the job's own image: no second image to pin and to trust.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "30"))
RAYJOB_FAILED = 3
JOB_LABEL = "s2r-nightly-job-uid"
# KubeRay sets Failed only when no retry is left.
ENDED = ("Complete", "Failed", "ValidationFailed")


def rayjobs(method: str, path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to the API server about the RayJobs of this namespace."""
    token = (ACCOUNT / "token").read_text().strip()  # read each time: it is replaced while this runs
    namespace = (ACCOUNT / "namespace").read_text().strip()
    request = urllib.request.Request(
        f"{API}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}",
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    authority = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if API.startswith("https") else None
    with urllib.request.urlopen(request, timeout=60, context=authority) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def start(template: dict[str, Any], job: str, uid: str) -> str:
    """The name of this Job's RayJob, which is made if it is not there. It is deleted with the Job, and so stopped."""
    selector = urllib.parse.quote(f"{JOB_LABEL}={uid}")
    for found in rayjobs("GET", f"?labelSelector={selector}")["items"]:
        return str(found["metadata"]["name"])
    metadata = template["metadata"]
    metadata["labels"] = {**metadata.get("labels", {}), JOB_LABEL: uid}
    metadata["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}]
    return str(rayjobs("POST", body=template)["metadata"]["name"])


def wait(name: str) -> bool:
    """Whether the RayJob succeeded. An API server that does not answer is asked again."""
    said = ""
    while True:
        try:
            status = rayjobs("GET", f"/{name}").get("status") or {}
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404):  # not passing: the account lacks a right, or the RayJob was deleted
                raise
            status = {"jobDeploymentStatus": f"unknown ({error})"}
        except OSError as error:
            status = {"jobDeploymentStatus": f"unknown ({error})"}
        keys = ("jobDeploymentStatus", "jobStatus", "reason", "message")
        now = f"rayjob {name}: " + " ".join(str(status[key]) for key in keys if status.get(key))
        if now != said:
            sys.stderr.write(now + "\n")
            said = now
        if status.get("jobDeploymentStatus") in ENDED:
            return status.get("jobStatus") == "SUCCEEDED"
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Start and wait."""
    template = yaml.safe_load(Path(sys.argv[1]).read_text())
    name = start(template, os.environ["JOB_NAME"], os.environ["JOB_UID"])
    sys.exit(0 if wait(name) else RAYJOB_FAILED)


if __name__ == "__main__":
    main()
