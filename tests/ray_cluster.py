"""A Ray cluster as people have it: nodes started with `ray start`, tokens on, dashboard on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

_START_SECONDS = 90
_METRICS_MILLISECONDS = 1000


@dataclass
class RayCluster:
    """A head node inside the `with` block; `add_node` makes it larger. All it leaves is in one temporary folder."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="s2r-c-", dir="/tmp")))
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    metrics_ports: list[int] = field(default_factory=list)

    def __enter__(self) -> RayCluster:
        self.gcs_port, self.dashboard_port = _free_ports(2)
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        try:
            self._start(
                "--head", f"--port={self.gcs_port}", "--dashboard-host=127.0.0.1", "--include-dashboard=true",
                f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={_free_ports(1)[0]}",
                f"--temp-dir={self.folder}", "--num-cpus=1",
            )  # fmt: skip
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self.started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a group of our own: head or node, and all it started
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """For `ray.init` and `workers.address`."""
        return f"127.0.0.1:{self.gcs_port}"

    @property
    def dashboard(self) -> str:
        """For the Jobs API."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to be let in; nothing of the caller's that concerns AWS or Ray is in it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        token = str(self.folder / "token")
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"  # a job says `python`
        return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token, "AWS_EC2_METADATA_DISABLED": "true"}

    def add_node(self, cpus: int, gpus: int = 0, resources: dict[str, float] | None = None, **environment: str) -> None:
        """One more node. Its GPUs are a number only; `environment` is what its workers see besides."""
        self._start(
            f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}",
            f"--resources={json.dumps(resources or {})}", **environment,
        )  # fmt: skip
        self._wait()

    def command(self, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """`ray ARGUMENTS` of somebody who has the token."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "ray"), *arguments],
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.dashboard, "NO_COLOR": "1"},
            capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def metrics(self) -> list[str]:
        """The lines that Prometheus would get from all nodes."""
        lines: list[str] = []
        for port in self.metrics_ports:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                lines += answer.read().decode().splitlines()
        return lines

    def _start(self, *arguments: str, **environment: str) -> None:
        agent, metrics = _free_ports(2)
        self.metrics_ports.append(metrics)
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats",
            f"--object-store-memory={128 << 20}", f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", *arguments,
        ]  # fmt: skip
        log = (self.folder / f"start-{len(self.started)}.log").open("wb")
        settings = {"RAY_metrics_report_interval_ms": str(_METRICS_MILLISECONDS)}
        self.started.append(
            subprocess.Popen(
                command,
                env=self.environment | settings | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )

    def _wait(self) -> None:
        """Until the Jobs API answers and every node that was started is in the cluster."""
        limit = time.monotonic() + _START_SECONDS
        while self._alive() < len(self.started):
            if time.monotonic() > limit or any(process.poll() is not None for process in self.started):
                logs = "\n".join(file.read_text() for file in sorted(self.folder.glob("start-*.log")))
                raise RuntimeError(f"the cluster did not come up:\n{logs}")
            time.sleep(0.5)

    def _alive(self) -> int:
        """Nodes that live and can take jobs, as the dashboard sees it."""
        token = (self.folder / "token").read_text()
        request = urllib.request.Request(
            f"{self.dashboard}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                nodes = json.load(answer)["data"]["summary"]
        except (OSError, urllib.error.URLError, KeyError, ValueError):
            return 0
        return sum(node.get("raylet", {}).get("state") == "ALIVE" and "agent" in node for node in nodes)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
