"""Instruction-following difficulty: how much of a response the question does not help with.

IFD = CE(response | question) / CE(response), CE the mean of -ln p over the response's tokens under the student (Li et
al., arXiv 2308.12032). Near 0: given the question, the response is plain; near 1: the question says nothing about it;
above 1 it misleads.

What is better: high, as its authors have it, who drop what is above 1 before they take the highest; here that is a
filter of the configuration, not a part of the value.

Decided here, where the source is silent: in CE(response) the first token stands after the tokenizer's token for the
beginning of text; where there is none, nothing is before it, and it is left out of both means. The authors' code puts
their prompt's mark for a response before it; chat templates have no such mark that stands alone. The student is asked
as it is: the authors' first stage, a short training after which a base model heeds instructions, is left to the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, Scores, Subject
from s2r_ray.signals.student_signal import StudentSignal


class Ifd(StudentSignal):
    """See `signals.base.Signal`. Takes two passes of the student over each response."""

    name = "ifd"
    code_version = 1  # raise it when a change here, in student_signal.py or in student.py can change a value
    ranked: Mapping[str, Better] = {"ifd": "high"}
    extras: tuple[str, ...] = ()

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        responses = [subject.response or "" for subject in batch]
        samples = self.encoder.encode([subject.question for subject in batch], responses)
        asked = self.ask([*samples, *self.encoder.encode_alone(responses)])
        values, faults = np.zeros(len(batch)), {}
        pairs = zip(asked.found[: len(batch)], asked.found[len(batch) :], strict=True)
        for position, (given, free) in enumerate(pairs):
            if isinstance(given, Fault):
                faults[position] = given
            elif isinstance(free, Fault):
                faults[position] = free
            else:
                shared = len(free.logprobs)  # all tokens, or all but the first
                with np.errstate(divide="ignore", invalid="ignore"):  # not finite: a fault, see worker.py
                    values[position] = given.logprobs[-shared:].sum() / free.logprobs.sum()
        return Scores(values, {}, faults, asked.prompts, asked.prompt_tokens)
