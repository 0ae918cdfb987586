"""The reliability plot of a judge: an SVG file of its own, drawn by matplotlib."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

_INK, _GRID, _BARS, _LINE = "#333333", "#dddddd", "#c9d6e5", "#1f5fa8"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "s2r",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "legend.frameon": False,
}


def reliability_plot(table: Sequence[Mapping[str, float]], error: float) -> str:
    """Mean label over mean score for each bin of `evaluate.calibration`, the diagonal, and how many questions each has.

    Args:
        error: the expected calibration error, for the title.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where its cache lies is nobody's concern here
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 4.8), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        above.plot([0, 1], [0, 1], color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), label="calibrated")
        points = [(line["mean_score"], line["mean_outcome"]) for line in table]
        above.plot(*zip(*points, strict=True), "o-", color=_LINE, markersize=5, label="judge", clip_on=False)
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="mean label")
        above.set_title(f"expected calibration error {error:.3f}", fontsize=9, loc="left")
        above.legend(loc="upper left")
        for line in table:
            below.bar(line["from"], line["n"], line["to"] - line["from"], align="edge", color=_BARS, edgecolor="white")
        below.set(xlabel="score", ylabel="questions")
        sink = io.StringIO()
        figure.savefig(sink, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return sink.getvalue()
