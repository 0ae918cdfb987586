"""How unexpected a student finds each response: surprisal, perplexity, and rank-surprisal ratio.

For the n tokens of a response, p_t what the student gives token t after the question and the tokens before it, and r_t
its place among all tokens by probability (1 is the likeliest):

- surprisal = Σ -ln p_t / n, in nats per token; perplexity = exp(surprisal).
- RSR = Σ min(r_t, 100) / Σ -ln p_t (arXiv 2601.14249): low for a response that is news to the student in tokens that it
  ranks high all the same. The clip at 100 is the authors' (their `rsr_cal.py`).

What is better: in RSR low values, as its authors have it. In the other two, which give one order, high ones: that is
the baseline Top-PPL of arXiv 2503.01807, whose Mid-PPL is `middle:perplexity` here. Sources differ: arXiv 2502.04194
takes the response that the student finds likeliest (`directions: {surprisal: low}`).

Decided here, where sources differ or are silent: the response alone counts, without an end-of-text token; logits are
float32 whatever the weights' type, so that there are hardly any tokens of one probability, to which the authors' code
gives the first place that they share and vLLM the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from s2r_ray.engines import TokenScores
from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, Scores, Subject
from s2r_ray.signals.student_signal import StudentSignal

_LAST_RANK = 100


class Surprisal(StudentSignal):
    """See `signals.base.Signal`. The value is in nats per token of the response."""

    name = "surprisal"
    code_version = 1  # raise it when a change here, in student_signal.py or in student.py can change a value
    ranked: Mapping[str, Better] = {"surprisal": "high", "perplexity": "high", "rsr": "low"}
    extras: tuple[str, ...] = ("perplexity", "rsr")

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        samples = self.encoder.encode(
            [subject.question for subject in batch], [subject.response or "" for subject in batch]
        )
        asked = self.ask(samples)
        rows, faults = np.zeros((3, len(batch))), {}
        for position, item in enumerate(asked.found):
            if isinstance(item, Fault):
                faults[position] = item
            else:
                rows[:, position] = surprisal_row(item)
        surprisal, perplexity, rsr = rows
        extras = {"perplexity": perplexity, "rsr": rsr}
        return Scores(surprisal, extras, faults, asked.prompts, asked.prompt_tokens)


def surprisal_row(scores: TokenScores) -> tuple[float, float, float]:
    """(surprisal, perplexity, RSR) of a response; infinite where the student is sure of every token."""
    total = -scores.logprobs.sum()
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.minimum(scores.ranks, _LAST_RANK).sum() / total
        surprisal = total / len(scores.logprobs)
        return float(surprisal), float(np.exp(surprisal)), float(ratio)
