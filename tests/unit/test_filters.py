"""The language of filters, held against Python itself, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.errors import UsageError
from s2r_ray.filters import Kind, label_name, label_of, read_filter
from s2r_ray.signals import signals_for

KINDS: dict[str, Kind] = {"a": "number", "b": "number", "s": "text", "t": "text", "f": "flag", "g": "flag"}
NUMBERS, WORDS = st.sampled_from([-2.5, -1.0, 0.0, 0.5, 1.0, 3.0]), st.sampled_from(["x", "y", "é 'z'"])
ORDER = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
SAME = st.sampled_from(["==", "!="])
ROWS = st.fixed_dictionaries(
    {"a": NUMBERS, "b": NUMBERS, "s": WORDS, "t": WORDS, "f": st.booleans(), "g": st.booleans()}
)


def comparisons() -> st.SearchStrategy[str]:
    """Of numbers, also chained, and of texts; at least one side of each pair is a name."""
    number, word = st.sampled_from(["a", "b"]), st.sampled_from(["s", "t"])
    in_word = st.sampled_from(["in", "not in"])
    return st.one_of(
        st.builds("{} {} {!r}".format, number, ORDER, NUMBERS),
        st.builds("{!r} {} {} {} {}".format, NUMBERS, ORDER, number, ORDER, number),
        st.builds("{} {} {!r}".format, number, in_word, st.lists(NUMBERS, min_size=1, max_size=3).map(tuple)),
        st.builds("{} {} {!r}".format, word, SAME, WORDS),
        st.builds("{} {} {}".format, word, SAME, word),
        st.builds("{} {} {!r}".format, word, in_word, st.lists(WORDS, min_size=1, max_size=3).map(tuple)),
        st.sampled_from(["f", "g"]),
    )


def conditions(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} and {})".format, parts, parts),
        st.builds("{} or {}".format, parts, parts),
        st.builds("not ({})".format, parts),
        st.builds("not {}".format, parts),
    )


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    arrays: dict[str, Callable[[list[Any]], Any]] = {"number": np.array, "flag": np.array, "text": pa.array}
    return {name: arrays[kind]([row[name] for row in rows]) for name, kind in KINDS.items()}


@given(
    text=st.recursive(comparisons(), conditions, max_leaves=8),
    rows=st.lists(ROWS, min_size=1, max_size=8),
)
def test_it_means_what_it_means_in_python(text: str, rows: list[dict[str, Any]]) -> None:
    """Catches: another precedence, a chain of comparisons that loses a link, `not` of one row for another's."""
    found = read_filter(text)
    found.check(KINDS)
    expected = [eval(text, {"__builtins__": {}}, row) for row in rows]
    assert found.keeps(columns(rows)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s == 'x'", [True, False]),
        ("s != 'x'", [False, False]),
        ("s != t", [False, False]),
        ("'x' != s", [False, False]),
        ("s not in ('y', 'z')", [True, False]),
        ("not s == 'x'", [False, True]),
        ("a < 5", [True, False]),
        ("a != 5", [True, False]),
        ("a not in (5, 6)", [True, False]),
        ("a == b", [True, False]),
    ],
)
def test_what_is_not_there(text: str, expected: list[bool]) -> None:
    """Catches: a sample without a label that passes because it is not the label that is asked for."""
    there = {"a": np.array([1.0, np.nan]), "b": np.array([1, 2]), "s": pa.array(["x", None]), "t": pa.array(["x", "x"])}
    found = read_filter(text)
    found.check(KINDS)
    assert found.keeps(there).tolist() == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is blank"),
        ("(f", r"at character 1: '\(' was never closed"),
        ("f and", "at character 6: invalid syntax"),
        ("a = 1", "at character 3: invalid syntax"),
        ("f and aa < 1", r"at character 7: there is no aa; did you mean a\? Names here: a, b, s, t, f, g"),
        ("'é' == s and\nnope".replace("\n", " "), r"at character 14: there is no nope\. Names here"),
        ("(f and\r\n nope)", "at character 9: there is no nope"),
        ("a", "a is a number and not a flag; compare it, such as a > 0.5"),
        ("f and s", 'at character 7: s is a text and not a flag; compare it, such as s == "…"'),
        ("f == 1", "f is a flag: write it alone, as `f` or `not f`"),
        ("f == True", "a flag is not compared"),
        ("s < 'x'", "text is compared by ==, != and in, not by <"),
        ("s == 1", "at character 6: the number 1 is compared with s, a text"),
        ("a in (1, 'x')", "at character 10: the text 'x' is compared with a, a number"),
        ("a in (1, b)", "behind `in` stand constants, no names"),
        ("a in 1", "behind `in` stand constants in parentheses"),
        ("s in ()", "behind `in` stand constants in parentheses"),
        ("1 < 2", "compares no column"),
        ("0.5", "0.5 alone says nothing"),
        ("a is 1", "`is` is for Python"),
        ("a + 1 < 2", r"found a \+ 1; a filter has names, numbers"),
        ("a < 10**9", r"found 10 \*\* 9"),
        ("__import__('os').system('true')", r"found __import__\('os'\)"),
        ("label(s) == 'x'", r"found label\(s\)"),
        ("f.__class__", "found f.__class__"),
        ("[f for f in a]", "found "),
        ("f'{a}' == s", "found "),
        ("a < 1e999", "too large"),
        ("a < " + "9" * 400, "too large"),
        ("a < " + "9" * 5000, "Exceeds the limit"),
        ("a < 1j", "found 1j"),
        ("not " * 60 + "f", "nested too deeply"),
        ("not " * 2400 + "f", "nested too deeply"),
        ("(" * 3000 + "f" + ")" * 3000, "too many nested parentheses"),
        ("-" * 3000 + "1 < a", "at character 1"),
        ("f or " * 2001 + "f", "10,006 characters, at most 10,000"),
        ("f\0", "null bytes"),
        ("s == '\\ud800'", "surrogates not allowed"),
        ("s == '\ud800'", "surrogates not allowed"),
        ("\x1b[31mf", r"\\x1b\[31mf"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    """Catches: a fault that is told as a traceback, at another place, or not before the work; code that is run."""
    with pytest.raises(UsageError, match=told):
        read_filter(text).check(KINDS)


def test_names_of_labels() -> None:
    """Catches: a label that no filter can name, because it is no word or a column has the name."""
    names = {label: label_name(label, KINDS) for label in ("source", "a", "kind-of", "in", "0")}
    assert names == {
        "source": "source",
        "a": 'label("a")',
        "kind-of": 'label("kind-of")',
        "in": 'label("in")',
        "0": 'label("0")',
    }
    assert [label_of(name) for name in names.values()] == list(names)
    found = read_filter(" and ".join(f"{name} == 'x'" for name in names.values()))
    assert found.names == list(names.values())


def test_hints_say_what_to_do() -> None:
    """Catches: a signal that was not computed told as a slip of the pen."""
    with pytest.raises(UsageError, match=r"there is no rsr; score it first\. Names here: a"):
        read_filter("rsr < 1").check(KINDS, {"rsr": "score it first"})


def test_columns_of_ranks() -> None:
    """Catches: a run that does not compute the signal that a filter names by its rank alone."""
    columns = read_filter("verified and rsr_rank < 0.5").columns
    assert columns == ["verified", "rsr_rank", "verified", "rsr"]
    assert signals_for([], columns) == ["surprisal"], "the signal that rsr comes from"
