"""Counting tokens on one core, against `tokenizers.encode_batch_fast` on the same texts."""

from __future__ import annotations

import argparse
import os
import random
import sys

import numpy as np

from s2r_ray.judge.prompt import load_tokenizer
from s2r_ray.tokens import TokenCounter
from tests.benchmarks.real_pool import pool_rows, student_tokenizer
from tests.benchmarks.table import Row, alternated, show


def run(megabytes: float = 8, seed: int = 0, repeats: int = 3) -> list[Row]:
    """One row. Traces are drawn without replacement, in an order that the seed gives.

    Raises:
        AssertionError: one trace is counted differently.
    """
    os.environ["RAYON_NUM_THREADS"] = "1"  # the reference would use every core
    source, rows = pool_rows(seed)
    tokenizer, folder = student_tokenizer()
    traces = [trace for row in rows for trace in row["generations"]]
    random.Random(seed).shuffle(traces)
    texts: list[str] = []
    size = 0
    for trace in traces:
        if size >= megabytes * 1e6:
            break
        texts.append(trace)
        size += len(trace.encode())
    reference = load_tokenizer(folder).backend_tokenizer
    counter = TokenCounter(folder)

    def by_reference() -> np.ndarray:
        return np.array([len(item.ids) for item in reference.encode_batch_fast(texts, add_special_tokens=False)])

    name = f"token counting, one core, {size / 1e6:.0f} MB of {source}, {tokenizer}, by {counter.exact_library}"
    name += " / tokenizers.encode_batch_fast"
    return [alternated(name, lambda: counter.count(texts), by_reference, repeats, np.array_equal)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    sys.stdout.write(show(run(given.megabytes, given.seed, given.repeats)))
