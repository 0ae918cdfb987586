"""Tests of s2r_ray.cluster: addresses that cannot be right, and Ray started beside other work. What runs on a cluster
is in tests/integration."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from s2r_ray.cluster import Cluster, Connection, connected
from s2r_ray.errors import UsageError


def unused() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "no Ray cluster answers at 127.0.0.1:.*unset RAY_ADDRESS"),
        ("ray://no-such-host.invalid:10001", "no Ray cluster answers at ray://no-such-host.invalid:10001"),
        ("http://127.0.0.1:8265", "address of a dashboard, to which `ray job submit` goes; expected HOST:PORT"),
        ("user:secret@127.0.0.1:6379", "must not contain credentials"),
    ],
)
def test_addresses_that_nobody_answers(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: Ray's own many minutes of tries, and a password in the message."""
    monkeypatch.setenv("RAY_ADDRESS", address or unused())
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the other tests' own
    began = time.monotonic()
    with pytest.raises(UsageError, match=said) as error, connected(None):
        pass
    assert "secret" not in str(error.value)
    assert time.monotonic() - began < 20


class SlowRay:
    """What `connected` is replaced by: it takes until `go` is set, and notes what becomes of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go, self.told = threading.Event(), list[str]()
        self.error: Exception | None = None
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("ray.is_initialized", lambda: False)
        patch.setattr("s2r_ray.cluster.connected", self.connected)

    @contextmanager
    def connected(self, address: str | None, *, cpus: float = 0, logs: bool = False) -> Iterator[Cluster]:
        del address, cpus, logs
        assert self.go.wait(10)
        if self.error:
            raise self.error
        self.told.append("started")
        try:
            yield Cluster((), ours=True)
        finally:
            self.told.append("ended")


def test_ray_starts_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a start that the caller waits for before it needs Ray, or that is made twice, or never ended."""
    slow = SlowRay(monkeypatch)
    with Connection(None) as ray:
        ray.start_ahead()
        assert slow.told == []
        slow.go.set()
        assert ray.cluster.ours
        assert ray.cluster.ours
        assert slow.told == ["started"]
    assert slow.told == ["started", "ended"]


def test_ray_that_starts_is_ended_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a wrong judge, found while Ray starts, that leaves Ray behind or its own message out."""
    slow = SlowRay(monkeypatch)

    def run() -> None:
        with Connection(None) as ray:
            ray.start_ahead()
            slow.go.set()
            raise UsageError("no such judge")

    with pytest.raises(UsageError, match="no such judge"):
        run()
    assert slow.told == ["started", "ended"]


def test_a_start_that_fails_is_told_where_ray_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an error in the thread that nobody hears of, or that hides what went wrong before Ray was needed."""
    slow = SlowRay(monkeypatch)
    slow.error = UsageError("cannot reach Ray")
    slow.go.set()

    def run(wrong: str) -> None:
        with Connection(None) as ray:
            ray.start_ahead()
            if wrong:
                raise UsageError(wrong)
            assert ray.cluster.ours

    with pytest.raises(UsageError, match="cannot reach Ray"):
        run("")
    with pytest.raises(UsageError, match="no such judge"):
        run("no such judge")


def test_a_cluster_is_not_reached_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a connection to a cluster that a run with nothing to do would not have made."""
    slow = SlowRay(monkeypatch)
    slow.go.set()
    with Connection("head:6379") as ray:
        ray.start_ahead()
    assert slow.told == []
