"""Tests of s2r_ray.cluster: addresses that cannot be right. What runs on a cluster is in tests/integration."""

from __future__ import annotations

import socket
import time

import pytest

from s2r_ray.cluster import connected
from s2r_ray.errors import UsageError


def unused() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (unused(), "no Ray cluster answers at 127.0.0.1:.*unset RAY_ADDRESS"),
        ("ray://no-such-host.invalid:10001", "no Ray cluster answers at ray://no-such-host.invalid:10001"),
        ("http://127.0.0.1:8265", "address of a dashboard, to which `ray job submit` goes; expected HOST:PORT"),
        ("user:secret@127.0.0.1:6379", "must not contain credentials"),
    ],
)
def test_addresses_that_nobody_answers(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: Ray's own many minutes of tries, and a password in the message."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the other tests' own
    began = time.monotonic()
    with pytest.raises(UsageError, match=said) as error, connected(None):
        pass
    assert "secret" not in str(error.value)
    assert time.monotonic() - began < 20
