"""Real rows for benchmarks where the shared data is there, made-up ones elsewhere; names say which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.synth import make_rows

_SHARED = Path(__file__).resolve().parents[3] / "shared"
_MADE_UP_ROWS = 1000


def pool_rows(seed: int) -> tuple[str, list[dict[str, Any]]]:
    """(what they are, rows in the columns of OpenR1-Math-220k)."""
    folder = _SHARED / "data" / "openr1_pool"
    if folder.is_dir():
        return "real traces", pq.read_table(folder).to_pylist()
    return "made-up traces", make_rows(seed, range(_MADE_UP_ROWS)).to_pylist()


def student_tokenizer() -> tuple[str, str]:
    """(its name, its folder)."""
    folder = _SHARED / "tokenizers" / "qwen2.5"
    if folder.is_dir():
        return "Qwen2.5 tokenizer", str(folder)
    return "the embedded judge's tokenizer", str(EMBEDDED_JUDGE)
