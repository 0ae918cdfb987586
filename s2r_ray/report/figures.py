"""The drawings of a report: inline SVG by matplotlib.

Matplotlib, because its figures need no script: the page stays inert (texts of a pool are in it), opens from disk and
from an object store, prints, and is some 200 kB. Colours are CSS variables of the page, text is text in the page's
font, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import numpy.typing as npt

from s2r_ray.printable import one_line
from s2r_ray.report.statistics import LENGTHS, Statistics
from s2r_ray.report.tallies import Histogram, Shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
Floats = npt.NDArray[np.float64]

# Stand-ins that matplotlib draws with; the page has a value for each variable, light and dark.
_INK, _MUTED, _GRID, _POOL, _ACCENT = "#010101", "#010102", "#010103", "#010104", "#010105"
_BUDGETS = ("#010106", "#010107", "#010108", "#010109")
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _POOL: "pool", _ACCENT: "accent"}
_VARIABLES |= {colour: f"budget-{number}" for number, colour in enumerate(_BUDGETS)}
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1, 1.5)))
_MARKERS = ("o", "s", "D", "^")
_MARGINS = (0.6, 0.1, 0.3, 0.45)  # left, right, top, bottom; inches
_WIDE, _HALF = (9.8, 4.5), (4.6, 3.0)
_MANY_ROWS = 5000
SHOWN_VALUES = 12
"""Of a label, the most common."""
_LABEL_CHARACTERS = 26
_LEVEL_NAMES = 5
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "s2r",
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Series:
    """How a budget is drawn: its number, its size in per cent as written, colour, dashes and marker."""

    number: int
    budget: str
    colour: str
    dashes: Any
    marker: str

    @property
    def label(self) -> str:
        """For legends."""
        return f"top {self.budget} %"


def series(budgets: Sequence[tuple[str, int]]) -> list[Series]:
    """At most four budgets to draw: the smallest, the largest, and some between."""
    chosen = np.unique(np.linspace(0, len(budgets) - 1, min(len(budgets), len(_BUDGETS))).round().astype(int))
    styles = zip(chosen.tolist(), _BUDGETS, _DASHES, _MARKERS, strict=False)
    return [Series(number, budgets[number][0], *style) for number, *style in styles]


def _styled(draw: Callable[_P, str]) -> Callable[_P, str]:
    """A function that draws, in the style of this page."""

    @wraps(draw)
    def styled(*arguments: _P.args, **names: _P.kwargs) -> str:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where its cache lies is nobody's concern here
        import matplotlib as mpl

        with mpl.rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glyphs that its own font lacks are drawn by the browser
            return draw(*arguments, **names)

    return styled


# --- figures --------------------------------------------------------------------------------------


@_styled
def distribution(name: str, histogram: Histogram, budgets: Sequence[Series], label: str, alt: str) -> str:
    """The shares of the pool's rows, as an area, and of each budget's, as lines, over a number's values."""
    figure, axes = _figure(_HALF)
    histogram = _coarse(histogram)
    edges = np.where(np.isinf(histogram.edges), 2 * histogram.edges[-2] - histogram.edges[-3], histogram.edges)
    _area(axes, edges, histogram.pool, "ranked")
    for item in budgets:
        _line(axes, edges, histogram.selected(item.number), item)
    axes.set_xlabel(label)
    _shares_of_rows(figure, axes)
    return _svg(figure, name, alt)


@_styled
def lengths(histograms: dict[str, Histogram], budgets: Sequence[Series], alt: str) -> str:
    """The same for lengths, on a logarithmic axis; the pool with repeats, too."""
    raw, unique = (_coarse(histograms[name]) for name in LENGTHS)
    figure, axes = _figure(_HALF)
    _area(axes, unique.edges, unique.pool, "ranked")
    axes.stairs(_share(raw.pool), raw.edges, color=_MUTED, linewidth=1, label="with repeats")
    for item in budgets:
        _line(axes, unique.edges, unique.selected(item.number), item)
    axes.set_xscale("log")
    _tokens(axes.xaxis, unique.edges)
    axes.set_xlabel("tokens of the trace without repeated steps")
    _shares_of_rows(figure, axes)
    return _svg(figure, "lengths", alt)


@_styled
def repeats(histogram: Histogram, alt: str) -> str:
    """How much of a trace repeat removal took away, where it took any."""
    figure, axes = _figure(_HALF, fitted=True)
    axes.stairs(histogram.pool, 100 * histogram.edges, fill=True, color=_POOL)
    axes.set_xlabel("share of the trace that was taken away, %")
    axes.set_ylabel("traces")
    if histogram.pool.any():
        axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter(_thousands)
    axes.set_ylim(bottom=0)
    return _svg(figure, "repeats", alt)


@_styled
def density(statistics: Statistics, budgets: Sequence[Series], alt: str) -> str:
    """Where the pool's rows lie in the two signals, and from which line upwards each budget selects."""
    found = statistics.density
    if found is None:
        raise ValueError("a density needs a judged signal")
    figure, axes = _figure(_WIDE, fitted=True)
    from matplotlib.colors import to_rgb

    image = np.zeros((*found.counts.T.shape, 4))
    image[..., :3] = to_rgb("#5b7fa6")
    most = max(1, int(found.counts.max()))
    image[..., 3] = np.where(found.counts.T > 0, 0.12 + 0.88 * np.log1p(found.counts.T) / np.log1p(most), 0)
    low, high = np.log10(found.y[[0, -1]])
    axes.imshow(image, extent=(found.x[0], found.x[-1], low, high), origin="lower", aspect="auto", interpolation="none")
    axes.set_autoscale_on(False)
    for item in budgets:
        if item.budget not in statistics.frontiers:
            continue
        x, y = statistics.frontiers[item.budget]
        if len(x):
            top = 10**high
            if statistics.better[statistics.judged or ""] == "high":
                x, y = np.append(x[0], x), np.append(top, y)
            else:
                x, y = np.append(x, x[-1]), np.append(y, top)
            axes.plot(x, np.log10(y), color=item.colour, linestyle=item.dashes, linewidth=1.8, label=item.label)
    ticks = _token_ticks(found.y)
    axes.set_yticks(np.log10(ticks), [f"{tick:,}" for tick in ticks])
    axes.set_xlabel(_words(statistics.judged or ""))
    axes.set_ylabel("tokens of the trace without repeats")
    _legend(figure, axes)
    return _svg(figure, "density", alt)


@_styled
def overlap(rows: Sequence[tuple[str, Sequence[float]]], budgets: Sequence[Series], alt: str) -> str:
    """What share of each budget other ways to select pick too: (name, share by budget number)."""
    figure, axes = _figure((_HALF[0], 0.9 + 0.5 * len(rows)), fitted=True)
    for item in budgets:
        shares = [100 * row[1][item.number] for row in rows]
        axes.plot(
            shares,
            range(len(rows)),
            item.marker,
            color=item.colour,
            markersize=6.5,
            label=item.label,
            clip_on=False,
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _percent_axis(axes)
    axes.set_xlabel("of the selected rows, % that this would select too")
    _legend(figure, axes)
    return _svg(figure, "overlap", alt)


@_styled
def weights(
    points: Sequence[float], shares: Mapping[int, Sequence[float]], budgets: Sequence[Series], signal: str, alt: str
) -> str:
    """What share of each budget stays with other weights of this signal; shares: budget number -> at points."""
    figure, axes = _figure(_HALF)
    for item in budgets:
        axes.plot(
            points,
            [100 * share for share in shares[item.number]],
            color=item.colour,
            linestyle=item.dashes,
            marker=item.marker,
            markersize=5,
            label=item.label,
            clip_on=False,
        )
    axes.set_xticks(points)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"weight of {signal}; the length has the rest", parse_math=False)
    axes.set_ylabel("rows in common, %")
    _legend(figure, axes)
    return _svg(figure, "weights", alt)


@_styled
def correlations(names: Sequence[str], found: Floats, alt: str) -> str:
    """A field for each pair of columns with its correlation, float64[names, names]: the deeper the nearer to +1, in the
    accent's colour, or to −1, in a budget's."""
    from matplotlib.patches import Rectangle

    rows = len(names)
    slanted: Any = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if rows > _LEVEL_NAMES else {}
    figure, axes = _figure((_WIDE[0], 0.4 + 0.36 * rows + (0.6 if slanted else 0)), fitted=True)
    for row in range(rows):
        for column in range(rows):
            value = float(found[row, column])
            corner, depth = (column - 0.49, row - 0.47), 0 if row == column or np.isnan(value) else 0.5 * abs(value)
            colour = _ACCENT if value > 0 else _BUDGETS[1]
            axes.add_patch(Rectangle(corner, 0.98, 0.94, facecolor=colour, linewidth=0, alpha=depth))
            axes.add_patch(Rectangle(corner, 0.98, 0.94, fill=False, edgecolor=_GRID, linewidth=0.7))
            axes.text(column, row, signed(value, 2), ha="center", va="center")
    axes.set_xticks(range(rows), names, parse_math=False, **slanted)
    axes.set_yticks(range(rows), names, parse_math=False)
    axes.set_xlim(-0.5, rows - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure, "correlations", alt)


@_styled
def shares(
    name: str, found: Shares, indexed: Shares, totals: npt.NDArray[np.int64], budgets: Sequence[Series], alt: str
) -> str:
    """The share of each of the most common values of a label in all traces, in the ranked ones and in each budget."""
    rows = common_values(indexed)[:SHOWN_VALUES]
    figure, axes = _figure((_HALF[0], 0.95 + 0.27 * len(rows)), fitted=True)
    counts = np.array([found.of(value) for value in rows])
    places = np.arange(len(rows))
    axes.barh(places, 100 * counts.sum(axis=1) / totals.sum(), color=_POOL, height=0.62, label="ranked")
    before = np.array([indexed.of(value).sum() for value in rows]) / max(1, indexed.rows)
    axes.plot(100 * before, places, "|", color=_MUTED, markersize=13, markeredgewidth=1.6, label="all traces")
    for item in budgets:
        part = counts[:, : item.number + 1].sum(axis=1) / max(1, totals[: item.number + 1].sum())
        axes.plot(100 * part, places, item.marker, color=item.colour, markersize=5, label=item.label, clip_on=False)
    names = ["(none)" if value is None else one_line(value, _LABEL_CHARACTERS) for value in rows]
    axes.set_yticks(places, names, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the rows, %")
    axes.grid(visible=False, axis="y")
    _legend(figure, axes)
    return _svg(figure, name, alt)


def signed(value: float, decimals: int) -> str:
    """With its sign, of which zero has none; NaN as a dash."""
    text = f"{value:+.{decimals}f}"
    return "–" if np.isnan(value) else text.replace("-", "−") if float(text) else text[1:]


def common_values(found: Shares) -> list[str | None]:
    """Values of a label, the most common first."""
    return sorted(found.values, key=lambda value: (-int(found.of(value).sum()), value or ""))


# --- parts of them --------------------------------------------------------------------------------


def _coarse(histogram: Histogram) -> Histogram:
    """The same, or with two bins in one where there are few rows."""
    counts = histogram.counts
    if counts.sum() >= _MANY_ROWS or counts.shape[1] % 2:
        return histogram
    return Histogram(histogram.edges[::2], counts[:, ::2] + counts[:, 1::2])


def _share(counts: npt.NDArray[np.int64]) -> Floats:
    found: Floats = 100 * counts / max(1, int(counts.sum()))
    return found


def _area(axes: Axes, edges: Floats, counts: npt.NDArray[np.int64], label: str) -> None:
    axes.stairs(_share(counts), edges, fill=True, color=_POOL, label=label)


def _line(axes: Axes, edges: Floats, counts: npt.NDArray[np.int64], item: Series) -> None:
    axes.stairs(_share(counts), edges, color=item.colour, linestyle=item.dashes, linewidth=1.5, label=item.label)


def _shares_of_rows(figure: Figure, axes: Axes) -> None:
    axes.set_ylabel("share of the rows, %")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    _legend(figure, axes)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the axes, the ranked rows first."""
    found = zip(*axes.get_legend_handles_labels(), strict=True)
    entries = sorted(found, key=lambda entry: not entry[1].startswith("ranked"))
    if entries:
        handles, labels = zip(*entries, strict=True)
        figure.legend(
            handles,
            labels,
            loc="outside upper left" if figure.get_layout_engine() else "upper left",
            ncols=len(entries),
            borderpad=0,
            handlelength=1.8,
            handletextpad=0.5,
            columnspacing=1.2,
        )


def _percent_axis(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 20))


def _token_ticks(edges: Floats) -> list[int]:
    """Round numbers of tokens between the edges."""
    ticks = [step * 10**power for power in range(8) for step in (1, 2, 5)]
    found = [tick for tick in ticks if edges[0] <= tick <= edges[-1]]
    return found if len(found) <= 9 else [tick for tick in found if str(tick)[0] == "1"]


def _tokens(axis: Any, edges: Floats) -> None:
    ticks = _token_ticks(edges)
    axis.set_ticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(inches: tuple[float, float], *, fitted: bool = False) -> tuple[Figure, Axes]:
    """With room for shares at the left. What else may stand there is to be `fitted`, which takes as long as drawing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained" if fitted else None)
    if not fitted:
        left, right, top, bottom = (margin / inches[at > 1] for at, margin in enumerate(_MARGINS))
        figure.subplots_adjust(left=left, right=1 - right, top=1 - top, bottom=bottom)
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure, called `name` in the page; `alt` says in words what it shows."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(sink.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> str:
    """The drawing as a part of the page: ids of its own, colours and font of the page, words for who cannot see it."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    for unwanted in (r"<metadata>.*?</metadata>\s*", r"<style.*?</style>\s*", r'(?<=<g) id="[^"]*"'):
        body = re.sub(unwanted, "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*|font-family: [^;\"]*; ", lambda found: _size(found[1]), body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    label = escape(alt, quote=True)
    return f'<svg role="img" aria-label="{label}" viewBox="{box[1] if box else ""}">{body}'


def _size(pixels: str | None) -> str:
    return f"font-size: {pixels}" if pixels else ""
