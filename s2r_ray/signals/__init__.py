"""Signals by name. What the index already knows (trace length) needs no worker and is listed apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2r_ray.config import Config
    from s2r_ray.signals.base import Signal


def _difficulty(config: Config) -> Signal:
    from s2r_ray.signals.difficulty import Difficulty

    return Difficulty.from_config(config.judge, config.workers, config.storage.options())


SIGNALS: Mapping[str, Callable[[Config], Signal]] = {
    "difficulty": _difficulty,
}
"""Name -> how to make the signal from the configuration."""

INDEX_SIGNALS: Mapping[str, str] = {
    "length": "trace_tokens_unique",
}
"""Name -> column of the pool index. Larger is better, as for every signal."""
