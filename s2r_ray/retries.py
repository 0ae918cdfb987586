"""How often this process had to repeat a request to an object store, counted where the libraries repeat it.

botocore repeats requests (throttled, reset, unanswered) and says in a header which attempt this is; s3fs repeats
reads whose body broke off and says so to its logger.
"""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from typing import Any


class _Count:
    """A number that threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0

    def add(self) -> None:
        with self._lock:
            self._number += 1

    def take(self) -> int:
        with self._lock:
            found, self._number = self._number, 0
            return found


_count = _Count()


def take_repeated() -> int:
    """Requests repeated by this process since this was last asked."""
    return _count.take()


@lru_cache(maxsize=1)
def counting_session() -> Any:
    """The process's session for s3fs: an aiobotocore session whose repeated requests are counted."""
    import aiobotocore.session

    logger = logging.getLogger("s3fs")
    logger.setLevel(logging.DEBUG)
    logger.addFilter(_count_and_hide)
    session = aiobotocore.session.AioSession()
    session.register("before-send.s3", _count_attempt)
    return session


def _count_attempt(request: Any, **_: Any) -> None:
    header = request.headers.get("amz-sdk-request", b"")
    text = header.decode() if isinstance(header, bytes) else str(header)
    attempt = next((part for part in text.split("; ") if part.startswith("attempt=")), "attempt=1")
    if attempt != "attempt=1":
        _count.add()


def _count_and_hide(record: logging.LogRecord) -> bool:
    """A logger's filter: only warnings and worse go on."""
    if str(record.msg).startswith("Retryable error"):
        _count.add()
    return record.levelno >= logging.WARNING
