"""Rethinking words, against a definition spelt out character by character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.rethinking import RETHINKING_WORDS, count_rethinking

LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def by_hand(text: str) -> int:
    """From left to right, the first word of the list that is here; words of A to Z only where they stand alone."""
    at = count = 0
    while at < len(text):
        for word in RETHINKING_WORDS:
            here = text[at : at + len(word)]
            same = here.isascii() == word.isascii() and here.lower() == word
            alone = not ({text[at - 1 : at] if at else "", text[at + len(word) : at + len(word) + 1]} & LETTERS)
            if same and (alone or not word.isascii()):
                count += 1
                at += len(word)
                break
        else:
            at += 1
    return count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Wait, wait. WAIT!", 3),
        ("waiting await wait_ 2wait waits", 0),
        ("(wait)wait-wait", 3),
        ("Hmm... hmmm", 1),
        ("However,\nmaybe\talternatively", 3),
        ("等等,让我想想。等等wait然后", 3),
        ("嗯嗯 或者 也许", 4),
        ("\u212aait \u0131 waıt wa\u0130t", 0),
        ("", 0),
    ],
)
def test_what_counts(text: str, count: int) -> None:
    """Catches: parts of words that count, words beside Chinese or punctuation that do not."""
    assert count_rethinking([text]).tolist() == [count] == [by_hand(text)]


PIECES = st.sampled_from(
    [*RETHINKING_WORDS, "Wait", "MAYBE", "s", "_", "7", " ", "\n", "é", "等", ",", "\0", "\U0001f914", "İ", "ſ"]
)


@given(st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=5))
def test_equals_by_hand(texts: list[str]) -> None:
    """Catches: a count in another row's place, and text of other scripts that moves the edges of words."""
    assert count_rethinking(texts).tolist() == [by_hand(text) for text in texts]


def test_other_words() -> None:
    """Catches: a list without words of one kind, and characters that a pattern gives a meaning to."""
    assert count_rethinking(["a.b acb 等等", "x"], ["a.b"]).tolist() == [1, 0]
    assert count_rethinking(["wait 等等"], ["等等"]).tolist() == [1]
