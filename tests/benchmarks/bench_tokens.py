"""Counting tokens on one core, against `tokenizers.encode_batch_fast` on the same texts."""

from __future__ import annotations

import os

import numpy as np

from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.judge.prompt import load_tokenizer
from s2r_ray.synth import make_rows
from s2r_ray.tokens import TokenCounter
from tests.benchmarks.table import Row, alternated


def run(megabytes: float = 8, seed: int = 0, repeats: int = 3, tokenizer: str = str(EMBEDDED_JUDGE)) -> list[Row]:
    """One row. The texts are made-up traces; a real pool's are counted in the same way by tests/unit."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # the reference would use every core
    texts: list[str] = []
    size = number = 0
    while size < megabytes * 1e6:
        for traces in make_rows(seed, range(number, number + 200))["generations"].to_pylist():
            texts += traces
            size += sum(len(trace) for trace in traces)
        number += 200
    reference = load_tokenizer(tokenizer).backend_tokenizer
    counter = TokenCounter(tokenizer)

    def by_reference() -> np.ndarray:
        return np.array([len(item.ids) for item in reference.encode_batch_fast(texts, add_special_tokens=False)])

    name = f"token counting, {size / 1e6:.0f} MB, by {counter.exact_library} / tokenizers"
    return [alternated(name, lambda: counter.count(texts), by_reference, repeats, np.array_equal)]
