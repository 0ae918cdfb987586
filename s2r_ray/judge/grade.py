"""Does a solution end in the reference answer? math-verify says so, in processes of its own.

Answers come from pools and models, and computer algebra can be made to work for ever, to take all memory or to crash
(`9^{9^{9^9}}`). math-verify's own time limits are signals: only a main thread takes them, and native code heeds none.
So each grader is a child process with a limit on its memory, whose watchdog ends it when one grading takes too long;
its parent reads the end of its output and starts another. This file is also the child's program, so nothing of the
package is imported.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import queue
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

GRADING_SECONDS = 10.0
_MEMORY_BYTES = 4 << 30
_ANSWER_CHARACTERS = 2000
_END_CHARACTERS = 20_000
"""Of a solution, counted from its end: the final answer is there, and patterns over long texts take long."""
_PROOF = "proof"
"""What pools such as OpenR1-Math have as the answer of a problem whose solution is a proof."""

_T = TypeVar("_T")


class Graders:
    """So many children, started when they are first needed. Not picklable; `close` ends them."""

    def __init__(self, count: int, seconds: float = GRADING_SECONDS) -> None:
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children = [_Child(seconds) for _ in range(count)]
        for child in self._children:
            self._free.put(child)
        self._threads = ThreadPoolExecutor(count)

    def why_not(self, answers: Sequence[str | None]) -> list[str | None]:
        """For each reference answer: None, or why nothing can be graded against it."""
        return self._each(_why_not, answers)

    def right(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """For each (reference answer, solution): whether the solution ends in the answer; None where grading took too
        long or failed."""
        return self._each(lambda child, pair: child.ask(*pair), pairs)

    def close(self) -> None:
        """End the children."""
        self._threads.shutdown()
        for child in self._children:
            child.close()

    def _each(self, ask: Callable[[_Child, Any], _T], items: Sequence[Any]) -> list[_T]:
        def one(item: Any) -> _T:
            child = self._free.get()
            try:
                return ask(child, item)
            finally:
                self._free.put(child)

        return list(self._threads.map(one, items))


def _why_not(child: _Child, answer: str | None) -> str | None:
    if answer is None or not answer.strip():
        return "there is no reference answer"
    if len(answer) > _ANSWER_CHARACTERS:
        return f"a reference answer of {len(answer):,} characters, at most {_ANSWER_CHARACTERS:,}"
    if answer.strip().lower() == _PROOF:
        return "its solution is a proof"
    return None if child.ask(answer, None) else "its reference answer cannot be read"


class _Child:
    """One grader. `ask` is for one thread at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, answer: str, solution: str | None) -> bool | None:
        """Whether the solution ends in the answer (without one: whether the answer can be read); None: no telling."""
        process = self._process or self._start()
        stdin, stdout = _pipes(process)
        try:
            stdin.write(json.dumps([answer, solution]).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            self.close()
            return None
        told = stdout.readline()
        if not told:
            self.close()
            return None
        grade: bool | None = json.loads(told)
        return grade

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in _pipes(self._process):
                with contextlib.suppress(BrokenPipeError):  # what was not sent yet is sent again
                    pipe.close()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the folder of this file must not stand in for libraries. The path: a child of a Ray worker needs its.
        command = [sys.executable, "-P", __file__, str(self._seconds)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=quiet,
            env=environment,
            start_new_session=True,  # Ctrl-C would end it, and what it had in hand would count as not graded
        )
        return self._process


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a grader without pipes")
    return process.stdin, process.stdout


def _serve(seconds: float) -> None:
    """The child: a line in, [answer, solution or null]; a line out, true, false or null."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import math_verify

    _ = math_verify
    for line in sys.stdin:
        answer, solution = json.loads(line)
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            grade: bool | None = _grade(answer, solution)
        except (Exception, RecursionError):  # noqa: BLE001  # whatever a text does to the library is that text's fault
            grade = None
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(grade) + "\n")
        answers.flush()


def _grade(answer: str, solution: str | None) -> bool:
    from math_verify import parse, verify

    reference = _reference(answer)
    if solution is None or not reference:
        return bool(reference)
    found = parse(solution.rpartition("</think>")[2][-_END_CHARACTERS:], parsing_timeout=None)
    return bool(verify(reference, found, timeout_seconds=None))


@functools.lru_cache(maxsize=64)
def _reference(answer: str) -> list[Any]:
    """What math-verify makes of a pool's answer; an answer without marks is taken for LaTeX."""
    from math_verify import parse

    marked = "$" in answer or "\\boxed" in answer or "\\[" in answer or "\\(" in answer
    found: list[Any] = parse(answer if marked else f"${answer}$", parsing_timeout=None)
    return found


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
