"""Signals by name. What the index already knows (trace length) needs no worker and is listed apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2r_ray.config import Config
    from s2r_ray.signals.base import Signal


def _imported(module: str, name: str) -> Callable[[Config], Signal]:
    """`from_config` of a class of this package, imported when it is called."""

    def make(config: Config) -> Signal:
        signal: Signal = getattr(import_module(f"{__name__}.{module}"), name).from_config(config)
        return signal

    return make


SIGNALS: Mapping[str, Callable[[Config], Signal]] = {
    "difficulty": _imported("difficulty", "Difficulty"),
    "rethinking": _imported("rethinking", "Rethinking"),
    "surprisal": _imported("surprisal", "Surprisal"),
    "ifd": _imported("ifd", "Ifd"),
    "rds": _imported("rds", "Rds"),
    "influence": _imported("influence", "Influence"),
}
"""Name -> how to make the signal from the configuration."""

FURTHER: Mapping[str, str] = {
    "perplexity": "surprisal",
    "rsr": "surprisal",
    "benefit": "influence",
    "harm": "influence",
}
"""Further columns that weights may name -> the signal that they come from."""

WITH_VECTORS: Collection[str] = ("rds",)
"""Signals that the baseline `round_robin:SIGNAL` can be of."""

INDEX_SIGNALS: Mapping[str, str] = {
    "length": "trace_tokens_unique",
}
"""Name -> column of the pool index. Larger is better."""


def signals_for(asked: Collection[str], columns: Collection[str]) -> list[str]:
    """The signals of the table that a run needs, in the table's order.

    Args:
        asked: signals to compute in any case.
        columns: what weights, filters and baselines name; what is no signal's column is passed over.
    """
    wanted = {*asked, *columns, *(FURTHER[name] for name in columns if name in FURTHER)}
    return [name for name in SIGNALS if name in wanted]
