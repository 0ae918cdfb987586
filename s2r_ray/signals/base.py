"""What a signal is. A new one is one file beside this one and one line in the table of `signals/__init__.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from s2r_ray.ranking import Better

if TYPE_CHECKING:
    from s2r_ray.pairs import Overlap, Pair

FloatArray = npt.NDArray[np.float64]

GRID = 2.0**20
"""Values are rounded to multiples of 1 / GRID, so that noise in the last bits does not make or break ties."""


class Status(StrEnum):
    """How judging one key went. Only OK carries a value; the others appear as reasons in excluded.parquet."""

    OK = "ok"
    NO_ANSWER = "no_answer"
    TOO_LONG = "too_long"
    UNGRADABLE = "ungradable"
    FAILED = "failed"


SubjectKind = Literal["question", "sample", "problem"]


@dataclass(frozen=True)
class Subject:
    """One thing to judge. `key` is its 16-byte content key.

    `response` is all that a student would learn to write: the trace, between its marks, and the answer. It is None for
    signals that judge questions. `answer` is the reference answer, for signals that judge problems and where there is
    one.
    """

    key: bytes
    question: str
    response: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Fault:
    """Why one row of a batch has no value."""

    status: Status
    detail: str


@dataclass(frozen=True)
class Scores:
    """A batch's result, one place per subject in the order given.

    `values`: float64[n]; `extras`: further float64[n] columns by name; `faults`: position -> why it has no value
    (its values are then ignored). `prompts` and `prompt_tokens` say what it took of a model, for those who watch.
    `vectors`: float32[n, d], of a signal that has them.
    """

    values: FloatArray
    extras: dict[str, FloatArray] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    prompts: int = 0
    prompt_tokens: int = 0
    vectors: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Resources:
    """What one worker takes, and what is put up with.

    Attributes:
        workers: how many there are (at least, at most).
        cpus, gpus: of one worker. `accelerator_type`: the only kind of GPU that will do, by Ray's name for it.
        threads: of a worker's native libraries; None: one for each of its `cpus`, which is what Ray has.
        custom: custom Ray resources of one worker.
        batch: subjects per call of a worker, and rows per part of the score store.
        restarts: how often a worker that died is replaced, and how often in a row all are started again without having
            scored anything.
        hang_seconds: a worker that loads, or scores one batch, for longer is taken for dead.
    """

    workers: tuple[int, int] = (1, 1)
    cpus: float = 1
    gpus: float = 0
    threads: int | None = None
    accelerator_type: str | None = None
    custom: Mapping[str, float] = field(default_factory=dict)
    batch: int = 512
    restarts: int = 3
    hang_seconds: float = 1800

    def needs(self) -> dict[str, float]:
        """What one worker takes of a node, by Ray's names."""
        needs = {"CPU": self.cpus, "GPU": self.gpus, **self.custom}
        if self.accelerator_type is not None:
            needs[f"accelerator_type:{self.accelerator_type}"] = 0.001  # what Ray itself asks for
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True, eq=False)
class Workload:
    """What a signal that judges samples is about to do.

    `samples` have no value yet; `tokens` are those of their questions and responses together, of the run's tokenizer;
    `overlap` tells which pairs of a set the pools have (see pairs.py).
    """

    samples: int
    tokens: int
    overlap: Callable[[Sequence[Pair]], Overlap]


class Signal(Protocol):
    """Scores subjects. Instances are pickled to workers before `open`, so they hold settings only until then.

    `subject` says what is judged once: each distinct question, each distinct sample, which is a question with its
    response, or each distinct problem, which is a question with its reference answer. The value goes into a column
    called as the signal; `extras` names the further columns. `ranked` are those of them all that weights and filters
    may name, each with what is better; a configuration may say otherwise. `fatal` are the exception types after which
    the worker is not fit to go on. A signal that keeps anything of earlier batches also has `forget()`, which drops it:
    what is judged after that is judged anew (see noise.py); one whose values are drawn by lot has `drawn`, True, and no
    noise is measured. One that needs more of a node than `resources` says also has `check_node()`: it runs on every
    node that may get a worker, before any work, and raises an S2RError where a worker could not run.

    A signal over samples that has more to say of each than numbers to rank by, such as how near it is to each of d
    queries, says in `vector` that this is d numbers. They lie in the score store and nowhere else, on the grid of the
    values; the baseline `round_robin:<signal>` reads them.

    A signal over samples whose work is dear, or that a pool may not suit, also has `announce(workload)`: it returns
    sentences that are told before any work, or raises a UsageError. One that needs something made of the pool first
    has `to_prepare()`, how many subjects it wants drawn by lot for that, 0 if it is there already, and
    `prepare(subjects)`, which runs once, on one worker of its resources, before the others start. That leaves what it
    makes below the output place, where `open` finds it, and returns sentences to tell (see preparation.py).
    """

    @property
    def name(self) -> str: ...

    @property
    def subject(self) -> SubjectKind: ...

    @property
    def ranked(self) -> Mapping[str, Better]: ...

    @property
    def extras(self) -> tuple[str, ...]: ...

    @property
    def fatal(self) -> tuple[type[BaseException], ...]: ...

    def fingerprint(self) -> dict[str, Any]:
        """Everything that can change a value, as plain JSON."""
        ...

    def resources(self, gpus_in_cluster: float) -> Resources:
        """What one worker takes and how many there are, on a cluster with so many GPUs."""
        ...

    def open(self) -> None:
        """Load what scoring needs; called once per worker. Heavy imports belong here."""
        ...

    def score(self, batch: Sequence[Subject]) -> Scores:
        """Score a batch. An exception not in `fatal` is taken as some row's fault, and the batch is split."""
        ...


def vector_length(signal: Signal) -> int:
    """How many numbers the vector of a sample has, 0 where a signal has none."""
    return int(getattr(signal, "vector", 0))
