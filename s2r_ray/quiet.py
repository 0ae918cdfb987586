"""Keep other programs' words apart from ours: while Ray and the engine work, what they print goes to a file.

Ray's C++ core writes to file descriptor 2, its listeners to sys.stdout. Neither may reach a person's terminal or the
standard output that a machine parses. Our own progress has a descriptor of its own (`own_stream`).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def own_stream(stream: TextIO) -> TextIO:
    """A writer to where `stream` goes now, which later redirections do not touch."""
    try:
        copy = os.dup(stream.fileno())
    except (OSError, io.UnsupportedOperation, AttributeError):  # not a real file: a test's or a notebook's
        return stream
    return os.fdopen(copy, "w", buffering=1, encoding=stream.encoding or "utf-8", errors="replace")


@contextlib.contextmanager
def captured() -> Iterator[Path]:
    """Send standard output and error to a file inside the block, of Python and of native code.

    Yields the file's path. The file is kept when the block raises an error, and removed otherwise.
    """
    handle, name = tempfile.mkstemp(prefix="s2r-", suffix=".log")
    path = Path(name)
    with os.fdopen(handle, "w", buffering=1, errors="replace") as sink, contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            os.dup2(sink.fileno(), descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
        stack.enter_context(contextlib.redirect_stdout(sink))
        stack.enter_context(contextlib.redirect_stderr(sink))
        try:
            yield path
        except Exception:
            raise
        except BaseException:  # Ctrl-C: there is nothing to look up
            path.unlink(missing_ok=True)
            raise
    path.unlink(missing_ok=True)
