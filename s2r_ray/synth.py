"""A made-up pool of any size in the columns of OpenR1-Math-220k, for trying things out and for tests.

Row i depends on the seed and i alone: a larger pool begins with the smaller one, whatever the file size. Like real
pools it has several traces for some questions, repetition loops, unfinished and unverified traces, and rows without a
verdict. Its problems are stories of several operations, or short arithmetic, which very small models can partly do.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from s2r_ray.errors import UsageError
from s2r_ray.storage import Place
from s2r_ray.tables import written

_FLAGS = pa.list_(pa.bool_())
SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("solution", pa.string()),
        ("answer", pa.string()),
        ("problem_type", pa.string()),
        ("question_type", pa.string()),
        ("source", pa.string()),
        ("uuid", pa.string()),
        ("is_reasoning_complete", _FLAGS),
        ("generations", pa.list_(pa.string())),
        ("correctness_math_verify", _FLAGS),
        ("correctness_llama", _FLAGS),
        ("finish_reasons", pa.list_(pa.string())),
        ("correctness_count", pa.int64()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)
_SOURCES = ("olympiads", "cn_contest", "aops_forum", "amc_aime", "olympiads_ref")
_NAMES = ("Ana", "Bao", "Chidi", "Dana", "Eero", "Farah", "Goro", "Hana")
_ASKED = (
    "What is {task}?",
    "Work out {task}.",
    "Please find the value of {task} and write it down.",
    "{name} asks for {task}.",
    "There is a short test today. {name} has to find {task} without a calculator. What is the answer?",
)
_HESITATIONS = ("Wait, let me check that.", "Alternatively, go backwards.", "Hmm, maybe not.", "However, it adds up.")
_LOOPED, _UNFINISHED, _WRONG, _NO_VERDICT, _REPEATED_QUESTION = 0.08, 0.12, 0.15, 0.04, 0.1
_CUT_BUT_RIGHT = 0.3


Task = Literal["stories", "arithmetic"]


def write_pool(folder: Place, rows: int, seed: int, rows_per_file: int = 1000, task: Task = "stories") -> int:
    """Write the pool as `part-00000.parquet`, …; returns the number of files.

    Raises:
        UsageError: the folder has files of another pool, which would become part of this one.
    """
    starts = range(0, rows, rows_per_file)
    names = {f"part-{number:05d}.parquet" for number in range(len(starts))}
    others = [file.path for file in folder.files() if file.path not in names]
    if others:
        raise UsageError(
            f"{folder} has {others[0]!r} in it, which is not part of this pool; choose an empty folder, or empty it"
        )
    for number, start in enumerate(starts):
        table = make_rows(seed, range(start, min(start + rows_per_file, rows)), task)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **written(table.schema))
        place, data = folder.child(f"part-{number:05d}.parquet"), sink.getvalue().to_pybytes()
        if not place.exists() or place.read_bytes() != data:  # an unchanged file keeps its date, and is not read again
            place.write_bytes(data)
    return len(starts)


def make_rows(seed: int, numbers: Sequence[int], task: Task = "stories") -> pa.Table:
    """These rows of the pool that the seed stands for."""
    return pa.Table.from_pylist([_row(seed, number, _PROBLEMS[task]) for number in numbers], SCHEMA)


def _row(seed: int, number: int, problem_from: Callable[[random.Random], _Problem]) -> dict[str, Any]:
    dice = random.Random(f"{seed}:{number}")
    # Some rows ask again what an earlier row asked, with traces of their own.
    asked = dice.randrange(number) if number and dice.random() < _REPEATED_QUESTION else number
    problem = problem_from(random.Random(f"{seed}:{asked}:problem"))
    traces = [_trace(problem, dice) for _ in range(dice.choice((1, 1, 2, 2, 3, 4)))]
    verdicts = None if dice.random() < _NO_VERDICT else [trace["right"] for trace in traces]
    return {
        "problem": problem.text,
        "solution": f"The answer is {problem.answer}.",
        "answer": str(problem.answer),
        "problem_type": problem.kind,
        "question_type": "math-word-problem",
        "source": dice.choice(_SOURCES),
        "uuid": str(uuid.UUID(int=dice.getrandbits(128), version=4)),
        "is_reasoning_complete": [trace["complete"] for trace in traces],
        "generations": [trace["text"] for trace in traces],
        "correctness_math_verify": verdicts,
        "correctness_llama": None,
        "finish_reasons": ["stop" if trace["complete"] else "length" for trace in traces],
        "correctness_count": sum(verdicts or []),
        "messages": [{"role": "user", "content": problem.text}, {"role": "assistant", "content": traces[0]["text"]}],
    }


@dataclass(frozen=True)
class _Problem:
    """A question whose answer is what is left of `start` after the operations."""

    text: str
    kind: str
    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> int:
        value = self.start
        for operation, operand in self.operations:
            value = _apply(value, operation, operand)
        return value


def _story(dice: random.Random) -> _Problem:
    """1 to 12 operations on whole numbers; more of them and larger numbers are harder."""
    steps = dice.randint(1, 12)
    largest = dice.choice((9, 99, 999, 9999))
    start = dice.randint(2, largest)
    operations = tuple((dice.choice("+-*"), dice.randint(2, max(3, largest // 3))) for _ in range(steps))
    kind = dice.choice(("Algebra", "Number Theory", "Combinatorics", "Geometry"))
    words = {"+": "adds {}", "-": "takes away {}", "*": "multiplies by {}"}
    told = [words[operation].format(operand) for operation, operand in operations]
    name = dice.choice(_NAMES)
    text = (
        f"{name} starts with the number ${start}$, then {', then '.join(told)}. "
        f"What number does {name} have in the end?"
    )
    return _Problem(text, kind, start, operations)


def _arithmetic(dice: random.Random) -> _Problem:
    """One operation on numbers of one digit, in words whose length says nothing about it."""
    start, operand = (dice.randint(2, dice.choice((3, 9))) for _ in range(2))
    operation = dice.choice("+-*")
    sign = {"+": "+", "-": "-", "*": "\\times"}[operation]
    text = dice.choice(_ASKED).format(name=dice.choice(_NAMES), task=f"${start} {sign} {operand}$")
    return _Problem(text, "Arithmetic", start, ((operation, operand),))


_PROBLEMS: Mapping[Task, Callable[[random.Random], _Problem]] = {"stories": _story, "arithmetic": _arithmetic}


def _apply(value: int, operation: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operation]


def _trace(problem: _Problem, dice: random.Random) -> dict[str, Any]:
    value = problem.start
    steps = [f"Okay, I begin with {value}."]
    for operation, operand in problem.operations:
        result = _apply(value, operation, operand)
        steps.append(f"Now {value} {operation} {operand}. " + _work(value, operation, operand, dice) + f" So {result}.")
        if dice.random() < 0.3:
            steps.append(dice.choice(_HESITATIONS) + f" {result} {_inverse(operation)} {operand} gives {value} again.")
        value = result
    if dice.random() < _LOOPED:
        steps.extend(["Wait, let me check the last step once more."] * dice.randint(20, 200))
    right, complete = dice.random() >= _WRONG, dice.random() >= _UNFINISHED
    answer = problem.answer if right else problem.answer + dice.randint(1, 9)
    if not complete:
        steps = steps[: max(1, len(steps) // 2)]
    body = "<think>\n" + "\n\n".join(steps)
    text = f"{body}\n</think>\n\nThe answer is \\boxed{{{answer}}}." if complete else body
    return {"text": text, "complete": complete, "right": right and (complete or dice.random() < _CUT_BUT_RIGHT)}


def _work(value: int, operation: str, operand: int, dice: random.Random) -> str:
    """Some written-out arithmetic, so that traces differ in length for reasons other than chance."""
    if operation != "*":
        return f"Counting by hand, {value} and {operand}, digit by digit." if dice.random() < 0.5 else ""
    parts = [f"{value} * {digit}{'0' * place}" for place, digit in enumerate(reversed(str(operand)))]
    return "That is " + " + ".join(parts) + "."


def _inverse(operation: str) -> str:
    return {"+": "-", "-": "+", "*": "/"}[operation]
