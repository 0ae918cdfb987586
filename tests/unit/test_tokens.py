"""Token counts against transformers, on odd texts always and on every trace of the real pool where it is there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import awkward
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.errors import UsageError
from s2r_ray.tokens import TokenCounter, open_counter, spell_out

ODD = [
    *(
        "",
        " ",
        "\n",
        "\n\n\n \t",
        "\x00",
        "\u2028",
        "\ufeff",
        "a\u0301",
        "👩‍👩‍👧‍👦",
        "解方程",
        "’s I'LL",
        "1234567890" * 50,
    ),
    *("<|im_end|>", "<|im_start|>user\nx<|im_end|>", "<|im_end", "<|endoftext|>" * 3, "<think>\n</think>"),
    *("a" * 5000, "ab " * 2000, " " * 3000, "\n" * 3000, "Wait, again.\n\n" * 300),
]


@pytest.fixture(scope="module")
def reference(tokenizer_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tokenizer_dir))


def test_odd_texts(tokenizer_dir: Path, reference: Any) -> None:
    """Catches: control tokens in a text counted as their letters, white space merged, order lost."""
    expected = [len(reference.encode(text, add_special_tokens=False)) for text in ODD]
    counter = TokenCounter(str(tokenizer_dir))
    assert counter.count(ODD).tolist() == expected
    assert counter.count(ODD[::-1]).tolist() == expected[::-1]
    assert counter.count([]).shape == (0,)
    assert counter.count(ODD).dtype == np.int32


def test_a_tokenizer_that_is_spelled_out(
    tokenizer_dir: Path, reference: Any, shared: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: other counts on a node that got the tokenizer as text, or one that needs its folder or transformers."""
    from transformers import AutoTokenizer

    real = shared("tokenizers", "qwen2.5")
    for folder, read in ((tokenizer_dir, reference), (real, AutoTokenizer.from_pretrained(str(real)))):
        expected = [len(read.encode(text, add_special_tokens=False)) for text in ODD]
        text = spell_out(str(folder))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "transformers", None)
            counter = TokenCounter("no such folder", text)
            assert counter.count(ODD).tolist() == expected
        assert counter.exact_library == TokenCounter(str(folder)).exact_library


@given(texts=st.lists(st.text(max_size=40), max_size=5))
def test_any_text(texts: list[str], tokenizer_dir: Path, reference: Any) -> None:
    """Catches: a text that only Hypothesis would write, counted differently from transformers."""
    expected = [len(reference.encode(text, add_special_tokens=False)) for text in texts]
    assert open_counter(str(tokenizer_dir)).count(texts).tolist() == expected


def test_odd_texts_in_a_real_tokenizer(shared: Callable[..., Path]) -> None:
    """Catches: the same in the tokenizer that the pool is counted with, whose added tokens are many."""
    from transformers import AutoTokenizer

    folder = str(shared("tokenizers", "qwen2.5"))
    reference = AutoTokenizer.from_pretrained(folder)
    texts = [*ODD, *(str(token) for token in reference.added_tokens_decoder.values())]
    expected = [len(reference.encode(text, add_special_tokens=False)) for text in texts]
    counter = TokenCounter(folder)
    assert counter.count(texts).tolist() == expected
    assert counter.exact_library == "gigatoken"


@pytest.mark.parametrize("part", range(4))
def test_every_trace_of_the_real_pool(part: int, shared: Callable[..., Path]) -> None:
    """Catches: any trace of 3,180 whose count differs from that of the library behind AutoTokenizer."""
    from transformers import AutoTokenizer

    folder = str(shared("tokenizers", "qwen2.5"))
    rows = pq.read_table(shared("data", "openr1_pool", f"part-{part:05d}.parquet"), columns=["generations"])
    traces = [trace for row in rows["generations"].to_pylist() for trace in row]
    reference = AutoTokenizer.from_pretrained(folder)
    encodings = reference.backend_tokenizer.encode_batch_fast(traces, add_special_tokens=False)
    expected = [len(encoding.ids) for encoding in encodings]
    shortest = sorted(range(len(traces)), key=lambda number: len(traces[number]))[:10]
    for number in shortest:
        assert expected[number] == len(reference.encode(traces[number], add_special_tokens=False))
    counter = open_counter(folder)
    assert counter.count(traces).tolist() == expected
    assert counter.exact_library == "gigatoken"


# --- falling back ---------------------------------------------------------------------------------


class Fast:
    """Stands in for the fast library; says that every text has `tokens` tokens, or fails."""

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens

    def encode_batch(self, texts: Sequence[str], *, parallel: bool) -> awkward.Array:
        assert not parallel
        if self.tokens is None:
            raise RuntimeError("no such pattern")
        return awkward.Array([[0] * self.tokens for _ in texts])


@pytest.mark.parametrize(("fast", "said"), [(Fast(99), "texts differently"), (Fast(None), "gigatoken failed")])
def test_a_wrong_fast_library_is_not_used(
    fast: Fast, said: str, tokenizer_dir: Path, reference: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: wrong lengths in a whole pool because nobody looked; and a fallback that nobody is told about."""
    monkeypatch.setattr("s2r_ray.tokens._open_gigatoken", lambda *_: fast)
    with caplog.at_level(logging.WARNING):
        counter = TokenCounter(str(tokenizer_dir))
    assert counter.exact_library == "tokenizers"
    assert said in caplog.text
    assert "slower" in caplog.text
    assert counter.count(["a b c"]).tolist() == [len(reference.encode("a b c", add_special_tokens=False))]


def test_the_first_texts_of_a_pool_are_checked_too(tokenizer_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a library that is right on the built-in sample and wrong on this pool's language."""
    counter = TokenCounter(str(tokenizer_dir))
    right = counter.count(["a b c", "d"]).tolist()
    counter = TokenCounter(str(tokenizer_dir))
    counter._fast = Fast(99)
    assert counter.count(["a b c", "d"]).tolist() == right
    assert counter.exact_library == "tokenizers"
    assert "2 of 2 sample texts" in caplog.text


def test_a_tokenizer_that_the_fast_library_cannot_load(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a run that fails although the reference could count."""
    import gigatoken

    def refuse(*_: Any) -> None:
        raise ValueError("unsupported")

    monkeypatch.setattr(gigatoken, "Tokenizer", refuse)
    counter = TokenCounter(str(tokenizer_dir))
    assert counter.exact_library == "tokenizers"
    assert "cannot load" in caplog.text
    assert counter.count(["a"]).tolist() == [1]


def test_truncation_and_padding_are_off(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Catches: a tokenizer saved with truncation, under which every long trace has the same length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=32)
    tokenizer.save_pretrained(str(tmp_path))
    assert (
        TokenCounter(str(tmp_path)).count(["x " * 50, "x"]).tolist()
        == TokenCounter(str(tokenizer_dir)).count(["x " * 50, "x"]).tolist()
    )


def test_no_tokenizer(tmp_path: Path) -> None:
    """Catches: a traceback of the tokenizer library."""
    with pytest.raises(UsageError, match="no usable tokenizer"):
        TokenCounter(str(tmp_path))
