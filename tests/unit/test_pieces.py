"""Tokens of response, trace and trace without repeats, added up from pieces, against counting each in whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.pieces import Terms, response_terms, unique_terms
from s2r_ray.tokens import TokenCounter, _can_cut, open_counter
from s2r_ray.trace import reasoning_span, steps, without_repeats

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = (
    *(
        "<think>",
        "</think>",
        "<think>\n",
        "\n</think>\n\n",
        "<|im_end|>",
        "\n",
        "\n\n",
        "\n \n",
        "\r\n\r\n",
        "\n\u00a0\n",
    ),
    *(
        "Wait.",
        "a b",
        "Wait.\n\n",
        "\n\nWait.\n\n",
        "ab!\n",
        "1.\n\n2.",
        "x?",
        " ",
        "\t",
        "\u2028",
        "\u3000",
        "\x1f",
        "\r",
    ),
    *("解方程", "e\u0301", "\u0338", "\u0301", "ſ", "👩‍👩‍👧‍👦", "''s", "I'LL", "!!\n", "\x85"),
)
RESPONSES = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small tokenizer that splits and normalises as Qwen2.5 does; <think> is no token of it, and </think> is one."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["\n\n".join(PIECES), "Wait. Wait.\n\nWait.\n\n!!\n\n..\n\n"] * 9, trainer)
    tokenizer.add_tokens([AddedToken("</think>", normalized=False), AddedToken("<|im_end|>", normalized=False)])
    folder = tmp_path_factory.mktemp("qwen2")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(folder))
    return str(folder)


def terms_of(response: str) -> dict[str, Terms]:
    """Text counted in whole -> its terms; of response, trace and trace without repeats, where there are any."""
    span = reasoning_span(response)
    trace = response[span[0] : span[1]]
    if not trace.strip():
        return {}
    found = response_terms(response, span)
    result = {} if found is None else {response: found[0], trace: found[1]}
    parts = steps(trace)
    kept = list(dict.fromkeys(parts))
    if len(kept) < len(parts):
        unique = unique_terms(trace, parts, kept, found[1] if found else [(trace, 1)])
        result |= {} if unique is None else {without_repeats(trace): unique}
    return result


def check(counter: TokenCounter, responses: list[str]) -> int:
    """How many texts had terms, each of which came to what the reference counts."""
    terms = [item for response in responses for item in terms_of(response).items()]
    wholes = [text for text, _ in terms]
    assert counter.count_sums([some for _, some in terms]).tolist() == counter._count_reference(wholes).tolist()
    return len(terms)


@given(responses=st.lists(RESPONSES, max_size=5))
def test_sums_of_pieces(responses: list[str], qwen2: str) -> None:
    """Catches: a cut through a pre-token, a repeat taken off twice, white space around steps that is forgotten."""
    counter = open_counter(qwen2)
    assert counter.can_cut
    check(counter, responses)


def test_loops_of_every_kind(qwen2: str) -> None:
    """Catches: a trace that ends in a repeat, in the last step that is kept, or in a step that was kept long before."""
    bodies = ["a\n\nb\n\nb", "a\n\nb\n\na", "a\n\na\n\nb", "a\n\na\n\na", "b\n\na\n\nb\n\na\n\nc", "a\n\na!"]
    ends = ["", "\n", "\n\n", " \n", "\n</think>\n\ny", "</think>y", "\n</think>"]
    starts = ["", "<think>\n", "<think>", "<think>\n\n", "x\n<think>\n ", "\n", " "]
    responses = [start + body + end for start in starts for body in bodies for end in ends]
    assert check(open_counter(qwen2), responses) > len(responses)


@pytest.mark.parametrize("part", range(4))
def test_every_trace_of_the_real_pool(part: int, shared: Callable[..., Path]) -> None:
    """Catches: a real trace whose pieces do not add up; and pieces that are hardly ever used."""
    counter = open_counter(str(shared("tokenizers", "qwen2.5")))
    rows = pq.read_table(shared("data", "openr1_pool", f"part-{part:05d}.parquet"), columns=["generations"])
    responses = [trace for row in rows["generations"].to_pylist() for trace in row]
    terms = [item for response in responses for item in terms_of(response).items()]
    sums = counter.count_sums([some for _, some in terms])
    assert sums.tolist() == counter.count([text for text, _ in terms]).tolist()
    assert len(terms) > len(responses)


class _State:
    """A normalizer or pre-tokenizer, as far as it says what it is."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> bytes:
        return json.dumps(self.state).encode()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"pattern": QWEN2.replace(r"\p{N}| ", r"\p{N}{1,3}| ")}, None),
        ({"normalizer": None}, None),
        ({"pattern": r"\s+(?!\S)|\s+|\S+"}, "another pattern"),
        ({"normalizer": {"type": "NFKC"}}, "another normalizer"),
        ({"behavior": "MergedWithPrevious"}, "splits that are joined"),
        ({"prefix": True}, "a space put before each piece"),
        ({"token": {"lstrip": True}}, "a token that takes white space"),
        ({"token": {"rstrip": True}}, "the same on its right"),
        ({"token": {"single_word": True}}, "a token that looks beside it"),
        ({"token": {"content": "\nx"}}, "a token across a cut"),
    ],
)
def test_which_tokenizers_can_be_cut(change: dict[str, Any], why: str | None) -> None:
    """Catches: lengths wrong by a few tokens under a tokenizer for which nobody has shown that cuts are safe."""
    from tokenizers import AddedToken

    class Fake:
        normalizer = _State(change.get("normalizer", {"type": "NFC"}))
        pre_tokenizer = _State(
            {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": change.get("pattern", QWEN2)},
                        "behavior": change.get("behavior", "Isolated"),
                        "invert": False,
                    },
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": change.get("prefix", False),
                        "trim_offsets": True,
                        "use_regex": False,
                    },
                ],
            }
        )

        def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
            return {0: AddedToken(**{"content": "<x>", **change.get("token", {})})}

    assert _can_cut(Fake()) == (why is None), why
