"""The sections of a report: figures with a sentence on how to read each, and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2r_ray.printable import one_line
from s2r_ray.publish import RunRecord
from s2r_ray.report import figures
from s2r_ray.report.cutoffs import STEPS, Overlaps
from s2r_ray.report.examples import Examples, Sample
from s2r_ray.report.statistics import REPEATED, RETHINKING, Statistics
from s2r_ray.report.tallies import Histogram

_VALUE_CHARACTERS = 60


@dataclass(frozen=True)
class Table:
    """`head` and `rows` are text; the first column is a heading of its row, the others are numbers unless named in
    `words`, by their position."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """`svg` is markup of ours; `reading` says how to read it; `table` has its numbers."""

    name: str
    title: str
    svg: str
    reading: str
    table: Table | None = None
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """`text`: sentences; `samples`: rows to look at, by heading."""

    name: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    samples: Sequence[tuple[str, Sequence[Sample]]] = ()


def sections(record: RunRecord, statistics: Statistics, examples: Examples) -> list[Section]:
    """All of a report, in order; what a run has no numbers for is not there."""
    budgets = figures.series(statistics.budgets)
    found = [
        _run(record, statistics),
        _signals(record, statistics, budgets),
        _lengths(statistics, budgets),
        _choice(record, statistics, budgets),
        _together(record, statistics),
        _shares(record, statistics, budgets),
        _cutoffs(record, statistics),
        _samples(examples),
        _left_out(record, examples),
        _addressing(record, statistics, examples),
    ]
    return [section for section in found if section is not None]


# --- the run --------------------------------------------------------------------------------------


def _run(record: RunRecord, statistics: Statistics) -> Section:
    counts = record.counts
    indexed = counts["indexed"]
    rows = [("indexed", _count(indexed), ""), ("ranked", _count(statistics.rows), _percent(statistics.rows, indexed))]
    for reason, number in sorted(record.excluded.items(), key=lambda item: (-item[1], item[0])):
        rows.append((f"left out: {_words(reason)}", _count(number), _percent(number, indexed)))
    went = Table("Where every trace went", ("", "traces", "of the indexed"), rows)
    selected = [
        (
            f"top {budget} %",
            _count(size),
            _percent(int(statistics.sums.tokens[: at + 1].sum()), int(statistics.sums.tokens.sum())),
        )
        for at, (budget, size) in enumerate(statistics.budgets)
    ]
    chosen = Table("What is selected", ("budget", "samples", "of all tokens"), selected)
    work = Table("Work done", ("stage", "what", "seconds", "per second"), list(_stages(record)), frozenset({1}))
    return Section(
        "run",
        "The run",
        (
            "Each trace is either ranked or listed in excluded.parquet with its reason. Distinct questions and samples "
            "are judged once; what an earlier run has judged is taken from the score store.",
            *([f"Ranked is what passed the filter: {one_line(record.filter, 1000)}"] if record.filter else []),
        ),
        (went, chosen, work),
    )


def _stages(record: RunRecord) -> Iterator[tuple[str, ...]]:
    counts, seconds = record.counts, record.seconds
    read, reused = counts.get("files_read", 0), counts.get("files_reused", 0)
    took = seconds.get("index")
    rate = f"{_count(round(counts['indexed'] / took))} traces" if took and not reused else ""
    yield "index", f"{_count(read)} files read, {_count(reused)} as indexed before", _seconds(took), rate
    for signal in record.fingerprints:
        judged, known = counts.get(f"{signal}_judged", 0), counts.get(f"{signal}_reused", 0)
        took = seconds.get(signal)
        rate = f"{judged / took:,.1f} prompts, start included" if took and judged else ""
        yield (
            f"judge {_words(signal)}",
            f"{_count(judged)} {record.subjects.get(signal, 'question')}s judged, {_count(known)} reused",
            _seconds(took),
            rate,
        )
        if seconds.get(f"{signal}_in_workers"):
            loading = f"judging alone; the slowest worker took {_seconds(seconds.get(f'{signal}_loading'))} s to load"
            yield f"judge {_words(signal)}, in workers", loading, _seconds(seconds[f"{signal}_in_workers"]), ""
    took = seconds.get("rank")
    rate = f"{_count(round(counts['ranked'] / took))} traces" if took else ""
    yield "rank", f"{_count(counts['ranked'])} traces", _seconds(took), rate


# --- the signals ----------------------------------------------------------------------------------


def _signals(record: RunRecord, statistics: Statistics, budgets: Sequence[figures.Series]) -> Section:
    shown = []
    for name, histogram in statistics.histograms.items():
        if name in statistics.signals and name != "length":
            reading = (
                f"Each line has the area of the grey one: where it is higher, {_words(name)} of that size is more "
                "common among the selected rows than among all ranked ones."
            )
            alt = f"Distribution of {_words(name)}. {_told(statistics, name)}"
            svg = figures.distribution(name, histogram, budgets, _words(name), alt)
            shown.append(Figure(name, _title(name), svg, reading, _histogram_table(histogram, statistics, 3)))
        elif name not in statistics.signals and "mass" in name:
            reading = (
                "The nearer to 1, the more of its probability the judge put on its two answers; rows to the left "
                "were judged by a model that wanted to say something else."
            )
            low = int(histogram.pool[histogram.edges[:-1] < 0.9].sum())
            alt = f"Distribution of {_words(name)}: {_percent(low, statistics.rows)} of the rows lie below 0.9."
            svg = figures.distribution(name, histogram, budgets, _words(name), alt)
            shown.append(Figure(name, _title(name), svg, reading, _histogram_table(histogram, statistics, 3)))
    facts = [
        (
            _words(name),
            *(_number(value) for value in found.quantiles.values()),
            _count(found.distinct),
            _percent(found.tied, found.rows),
            _percent(found.common_rows, found.rows),
            _percent(found.greatest_rows, found.rows),
            _percent(found.least_rows, found.rows),
        )
        for name, found in statistics.signals.items()
    ]
    head = (
        "signal",
        "5 %",
        "25 %",
        "half",
        "75 %",
        "95 %",
        "distinct",
        "tied rows",
        "most common",
        "at the top",
        "at the bottom",
    )
    table = Table("Spread, ties and saturation: quantiles, distinct values, and shares of the rows", head, facts)
    text = [
        f"From here on, grey stands for all ranked traces: those that passed the guards{_and_filter(record)}.",
        "Rows of the same value share a rank: a signal with many ties, or with many rows at one end of its scale, "
        "cannot tell these rows apart.",
    ]
    like = statistics.correlation(statistics.judged, "length") if statistics.judged else None
    if like is not None:
        text.append(
            f"Spearman's correlation of the ranks by {_words(statistics.judged or '')} and by length is {like:+.3f}: "
            "at +1 the two signals say the same and weights do not matter, at 0 they have nothing to do with each "
            "other, at −1 they contradict."
        )
    return Section("signals", "The signals", text, (table,), shown)


def _told(statistics: Statistics, name: str) -> str:
    found = statistics.signals[name].quantiles
    return f"Half of the ranked traces lie below {_number(found[50])}, 5 % above {_number(found[95])}."


# --- lengths --------------------------------------------------------------------------------------


def _lengths(statistics: Statistics, budgets: Sequence[figures.Series]) -> Section:
    sums = statistics.sums
    tokens, unique = int(sums.tokens.sum()), int(sums.unique_tokens.sum())
    repeating = int(sums.repeating.sum())
    rows = []
    for name, levels in _groups(statistics):
        number, all_tokens = int(sums.rows[levels].sum()), int(sums.tokens[levels].sum())
        few = int(sums.unique_tokens[levels].sum())
        row = [
            name,
            _count(round(all_tokens / number)),
            _count(round(few / number)),
            _percent(all_tokens - few, all_tokens),
        ]
        row.append(_percent(int(sums.repeating[levels].sum()), number))
        rows.append(row)
    head = ("", "mean tokens", "without repeats", "taken away", "traces that repeat")
    table = Table("Tokens of a trace, ranked against selected", head, rows)
    shown = [
        Figure(
            "lengths",
            "Trace length",
            figures.lengths(
                statistics.histograms,
                budgets,
                f"Distribution of trace lengths on a logarithmic axis. {_told(statistics, 'length')}",
            ),
            "The axis is logarithmic; where the thin grey line is away from the area, repeated steps were "
            "taken away from traces of that length.",
            _histogram_table(statistics.histograms["trace_tokens_unique"], statistics, 0),
        ),
        Figure(
            "repeats",
            "What repeat removal took away",
            figures.repeats(
                statistics.histograms[REPEATED],
                f"{_percent(repeating, statistics.rows)} of the traces repeat a step; "
                f"{_percent(tokens - unique, tokens)} of all tokens were taken away.",
            ),
            f"Traces that repeat nothing ({_percent(statistics.rows - repeating, statistics.rows)}) are not in it; "
            "traces far to the right are loops, which would have won by their length.",
            _histogram_table(statistics.histograms[REPEATED], statistics, 2),
        ),
    ]
    if RETHINKING in statistics.histograms:
        shown.append(_rethinking(statistics, budgets))
    return Section("length", "Length of the traces", (), (table,), shown)


def _rethinking(statistics: Statistics, budgets: Sequence[figures.Series]) -> Figure:
    sums = statistics.sums
    rows = []
    for name, levels in _groups(statistics):
        words, tokens = int(sums.words[levels].sum()), int(sums.unique_tokens[levels].sum())
        rows.append(
            (name, f"{1000 * words / max(1, tokens):.2f}", f"{words / max(1, int(sums.rows[levels].sum())):,.1f}")
        )
    alt = f"Rethinking words per 1,000 tokens: {'; '.join(f'{row[0]} {row[1]}' for row in rows)}."
    return Figure(
        RETHINKING,
        "Rethinking words",
        figures.distribution(
            RETHINKING, statistics.histograms[RETHINKING], budgets, "rethinking words per 1,000 tokens", alt
        ),
        "Words such as wait, alternatively and however; lines to the right of the grey area mean that the selected "
        "traces reconsider more often, not only that they are longer. The last bin has all that lies beyond.",
        Table("Rethinking words", ("", "per 1,000 tokens", "per trace"), rows),
    )


# --- what the weights choose ----------------------------------------------------------------------


def _choice(record: RunRecord, statistics: Statistics, budgets: Sequence[figures.Series]) -> Section | None:
    if statistics.judged is None or statistics.overlaps is None:
        return None
    judged, overlaps = _words(statistics.judged), statistics.overlaps
    shown = [
        Figure(
            "density",
            f"{_title(statistics.judged)} against length",
            figures.density(statistics, budgets, _density_alt(statistics)),
            "The deeper the blue, the more ranked traces lie there; a budget selects what lies above its line."
            if statistics.frontiers
            else "The deeper the blue, the more ranked traces lie there.",
            wide=True,
        )
    ]
    baselines = _baselines(statistics, overlaps)
    shown.append(
        Figure(
            "overlap",
            "Against simple baselines",
            figures.overlap(
                baselines,
                budgets,
                "Share of the selection that baselines select too. "
                + " ".join(f"{name}: {_shares_told(found, statistics)}." for name, found in baselines),
            ),
            "A baseline near 100 % would have given nearly the same selection for less; Random is what chance alone "
            "has in common with it on average: the budget itself.",
            Table(
                "Rows in common with baselines",
                ("", *_budget_names(statistics)),
                [(name, *(f"{100 * share:.1f} %" for share in found)) for name, found in baselines],
            ),
        )
    )
    points = [float(step) for step in STEPS]
    kept = {
        at: [int(common[place, -1]) / size for place in range(len(STEPS))]
        for at, ((_, size), common) in enumerate(zip(statistics.budgets, overlaps.common.values(), strict=True))
    }
    moved = Table(
        f"Rows in common with this run's selection, by the weight of {judged}",
        ("weight", *_budget_names(statistics)),
        [(step, *(f"{100 * kept[at][place]:.1f} %" for at in kept)) for place, step in enumerate(STEPS)],
    )
    shown.append(
        Figure(
            "weights",
            "How the selection moves with the weight",
            figures.weights(
                points,
                kept,
                budgets,
                judged,
                f"Share of this run's selection that stays, by the weight of {judged}. "
                + " ".join(f"{row[0]}: {', '.join(row[1:])}." for row in moved.rows),
            ),
            f"At each weight of {judged} (the length has the rest), what share of this run's selection is selected "
            "again: a steep fall means that the choice of the weight decides who is in.",
            moved,
        )
    )
    largest, size = statistics.budgets[-1]
    common = overlaps.common[largest]
    matrix = Table(
        f"Rows in common, top {largest} %, between the weights of {judged}",
        ("weight", *STEPS, "this run"),
        [
            (step, *(f"{100 * int(common[place, other]) / size:.0f} %" for other in (*range(len(STEPS)), -1)))
            for place, step in enumerate(STEPS)
        ],
    )
    text = [
        f"This run's weights: {', '.join(f'{_words(name)} {weight:g}' for name, weight in record.weights.items())}."
    ]
    if record.strata:
        text.append(
            f"It ranks inside of groups of {one_line(str(record.strata['by']), _VALUE_CHARACTERS)} and fills its "
            "budgets group by group; the selections that it is held against here are made over the whole pool."
        )
    return Section("choice", "What the weights choose", text, (matrix,), shown)


def _baselines(statistics: Statistics, overlaps: Overlaps) -> list[tuple[str, list[float]]]:
    """(name, share of each budget that the baseline selects too)."""
    sizes = [size for _, size in statistics.budgets]
    by_length = "longest" if statistics.better["length"] == "high" else "shortest"
    known = {
        by_length if name == "length" else name: overlaps.shares_of_run(place) for name, place in overlaps.alone.items()
    }
    made = {
        name: [number / size for number, size in zip(found, sizes, strict=True)]
        for name, found in statistics.baselines.items()
        if name not in known
    }
    return [
        *((one_line(_title(name), 30), shares) for name, shares in known.items()),
        ("Random, on average", [size / statistics.rows for size in sizes]),
        *(
            (f"{_title(name)}, as drawn" if name == "random" else one_line(_title(name), 30), made[name])
            for name in made
        ),
    ]


def _density_alt(statistics: Statistics) -> str:
    return (
        f"Density of the ranked traces over {_words(statistics.judged or '')} and length, with a line for each budget. "
        f"{_told(statistics, statistics.judged or '')} In length, {_told(statistics, 'length')[0].lower()}"
        f"{_told(statistics, 'length')[1:]}"
    )


def _shares_told(found: Sequence[float], statistics: Statistics) -> str:
    pairs = zip(_budget_names(statistics), found, strict=True)
    return ", ".join(f"{100 * share:.0f} % of the {name}" for name, share in pairs)


# --- all signals ----------------------------------------------------------------------------------


def _together(record: RunRecord, statistics: Statistics) -> Section | None:
    overlaps = statistics.overlaps
    if overlaps is None:
        return None
    names = list(statistics.signals)
    told = [one_line(_words(name), 30) + (" (low)" if statistics.better[name] == "low" else "") for name in names]
    rows = [
        (shown, *(figures.signed(value, 3) for value in row.tolist()))
        for shown, row in zip(told, statistics.correlations, strict=True)
    ]
    pairs = [
        f"{told[one]} and {told[other]} {rows[one][other + 1]}"
        for one in range(len(names))
        for other in range(one + 1, len(names))
    ]
    figure = Figure(
        "correlations",
        "What the signals have in common",
        figures.correlations(
            told, statistics.correlations, f"Spearman's correlations of the signals. {'; '.join(pairs)}."
        ),
        "Spearman's correlation of the ranks of each pair, rank 1 being the best in both: at +1 both prefer the same "
        "traces, at 0 one says nothing about the other, at −1 what one prefers the other puts last. Two signals near "
        "+1 are one signal with the sum of their weights.",
        Table("Spearman's correlations of ranks", ("", *told), rows),
        wide=True,
    )
    alone = Table(
        "What share of the selection each signal alone would select too",
        ("signal", "better", "weight", *_budget_names(statistics)),
        [
            (
                one_line(_words(name), 30),
                statistics.better[name],
                f"{record.weights.get(name, 0):g}",
                *(f"{100 * share:.1f} %" for share in overlaps.shares_of_run(overlaps.alone[name])),
            )
            for name in names
        ],
        frozenset({1}),
    )
    text = (
        "These are all signals of the run, also those without a weight; (low) marks those of which low values are "
        "better. A signal that alone would make nearly the same selection decides it; a share near the budget itself "
        "is what chance gives.",
    )
    return Section("together", "How the signals go together", text, (alone,), (figure,))


# --- shares ---------------------------------------------------------------------------------------


def _shares(record: RunRecord, statistics: Statistics, budgets: Sequence[figures.Series]) -> Section | None:
    shown = [
        _share_figure(number, name, statistics, budgets)
        for number, (name, found) in enumerate(statistics.indexed.items())
        if any(value is not None for value in found.values)
    ]
    if not shown:
        return None
    text = (
        f"All traces are those of the pool, ranked are those that passed the guards{_and_filter(record)}: from the one "
        "to the other is the doing of these, from there to the budgets the ranking's.",
    )
    return Section("shares", "Who is selected", text, (), shown)


def _and_filter(record: RunRecord) -> str:
    return " and the filter" if record.filter else ""


def _share_figure(number: int, name: str, statistics: Statistics, budgets: Sequence[figures.Series]) -> Figure:
    found, indexed, totals = statistics.shares[name], statistics.indexed[name], statistics.sums.rows
    label = one_line(_words(name), _VALUE_CHARACTERS)
    rows = []
    values = figures.common_values(indexed)
    all_rows = indexed.rows
    for value in values[: figures.SHOWN_VALUES]:
        shown = "(none)" if value is None else one_line(value, _VALUE_CHARACTERS)
        before, counts = int(indexed.of(value).sum()), found.of(value)
        rows.append((shown, _count(before), _percent(before, all_rows), *_by_group(counts, statistics)))
    others = values[figures.SHOWN_VALUES :]
    rest = found.others + sum((found.of(value) for value in others), np.zeros_like(totals))
    before = int(indexed.others.sum()) + sum(int(indexed.of(value).sum()) for value in others)
    more = ""
    if before:
        rows.append(("all others", _count(before), _percent(before, all_rows), *_by_group(rest, statistics)))
        more = f" Further values, not drawn, have {_percent(before, all_rows)} of all traces."
    alt = f"Shares by {label}: " + "; ".join(
        f"{row[0]}: {row[2]} of all traces, {row[3]} of the ranked, {row[-1]} of the largest budget" for row in rows[:5]
    )
    return Figure(
        f"label-{number}",
        f"By {label}",
        figures.shares(f"label-{number}", found, indexed, totals, budgets, alt + "."),
        "Bars are shares of the ranked traces, marks those of the selection: a mark beyond its bar means that the "
        f"selection has more of that kind. Upright lines are shares of all traces, ranked or not.{more}",
        Table(f"Shares by {label}", ("", "traces", "all", "ranked", *_budget_names(statistics)), rows),
    )


def _by_group(counts: Any, statistics: Statistics) -> list[str]:
    totals = statistics.sums.rows
    return [_percent(int(counts[levels].sum()), int(totals[levels].sum())) for _, levels in _groups(statistics)]


# --- cut-offs -------------------------------------------------------------------------------------


def _cutoffs(record: RunRecord, statistics: Statistics) -> Section:
    if not statistics.ties:
        told = "This run fills its budgets group by group: each group has its own cut-off, and these are not shown."
        return Section("cutoffs", "At the cut-offs", (told,))
    rows = []
    for budget, size in statistics.budgets:
        inside, outside = statistics.ties[budget]
        near = statistics.near.get(budget)
        told = "not measured" if near is None else f"{_count(near)}  ({_percent(near, size)})"
        rows.append((f"top {budget} %", _count(size), _count(inside), _count(outside), told))
    head = ("budget", "samples", "tied, selected", "tied, not selected", "within the judge's noise")
    noise = "; ".join(
        f"{_words(name)} ±{found.largest:.2g} at the most, "
        f"{found.pairs} {record.subjects.get(name, 'question')}s judged twice"
        for name, found in statistics.noise.items()
        if found
    )
    unknown = [_words(name) for name, found in statistics.noise.items() if not found]
    text = [
        "Tied rows have the joint rank of the last selected one: the longer trace came first, then the sample id. "
        "Rows within the judge's noise would change sides if their own scores moved as far as scores do when the same "
        f"is judged in another batch{f' ({noise})' if noise else ''}. "
        + (
            f"It was not measured for {', '.join(unknown)}, which has a weight, so they are not counted."
            if unknown
            else ""
        )
    ]
    return Section("cutoffs", "At the cut-offs", text, (Table("Rows at the cut-offs", head, rows),))


# --- rows -----------------------------------------------------------------------------------------


def _samples(examples: Examples) -> Section:
    text = ["Questions and traces are shown as they are in the pool, cut, with what is not printable as escapes."]
    if examples.without_traces:
        text = [f"The traces are not shown: {one_line(examples.without_traces, 400)}"]
    return Section("samples", "Look at the rows", text, samples=list(examples.samples.items()))


def _left_out(record: RunRecord, examples: Examples) -> Section | None:
    rows = [
        (
            _words(reason),
            one_line(row["sample_id"] or "", 60),
            f"{one_line(row['file'] or '', 60)}:{row['row']}",
            row["detail"],
        )
        for reason, found in sorted(examples.excluded.items(), key=lambda item: -record.excluded[item[0]])
        for row in found
    ]
    if not rows:
        return None
    table = Table(
        "The first rows of each reason", ("reason", "sample", "file and row", "detail"), rows, frozenset({1, 2, 3})
    )
    return Section("left-out", "What was left out, with examples", ("All of them are in excluded.parquet.",), (table,))


def _addressing(record: RunRecord, statistics: Statistics, examples: Examples) -> Section:
    counts = record.addressing_judge
    budgets = ", ".join(f"{_count(counts.get(budget, 0))} in the top {budget} %" for budget, _ in statistics.budgets)
    ranked = counts.get("ranked", 0)
    text = (
        "A judge is a language model: a question can tell it what to answer. This cannot be prevented, only seen. "
        "These are marked by phrases and control tokens; they are ranked like all others.",
        f"Ranked: {_count(ranked)} ({100 * ranked / statistics.rows:.3f} %). Selected: {budgets}.",
    )
    samples = [("The first of them in order of rank", examples.addressing)] if examples.addressing else []
    return Section("addressing", "Questions that speak to the judge", text, samples=samples)


# --- words and numbers ----------------------------------------------------------------------------


def _groups(statistics: Statistics) -> list[tuple[str, slice]]:
    """(name, its levels): all ranked rows and each budget."""
    budgets = [(f"top {budget} %", slice(0, at + 1)) for at, (budget, _) in enumerate(statistics.budgets)]
    return [("ranked", slice(None)), *budgets]


def _budget_names(statistics: Statistics) -> list[str]:
    return [f"top {budget} %" for budget, _ in statistics.budgets]


def _histogram_table(histogram: Histogram, statistics: Statistics, decimals: int) -> Table:
    """Its bins, four to a row, as shares of the rows."""
    rows = []
    bins = len(histogram.edges) - 1
    for start in range(0, bins, 4):
        stop = min(start + 4, bins)
        low, high = histogram.edges[start], histogram.edges[stop]
        name = f"{low:,.{decimals}f} to {high:,.{decimals}f}" if np.isfinite(high) else f"from {low:,.{decimals}f}"
        counts = histogram.counts[:, start:stop].sum(axis=1)
        shares = [
            _percent(int(counts[levels].sum()), int(histogram.counts[levels].sum()))
            for _, levels in _groups(statistics)
        ]
        rows.append((name, *shares))
    return Table("Shares of the rows", ("", "ranked", *_budget_names(statistics)), rows)


def _count(number: int) -> str:
    return f"{number:,}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _title(name: str) -> str:
    words = _words(name)
    return words[:1].upper() + words[1:]
