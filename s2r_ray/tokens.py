"""Counting tokens: exactly as transformers counts them, by the fastest library that can be relied on.

`gigatoken` counts; before a worker trusts it, it is held against `tokenizers` (what transformers itself uses) on a
built-in sample and on the first texts of the pool. One different count, or a tokenizer that gigatoken cannot load,
and the reference counts instead, with a warning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from s2r_ray.judge.prompt import load_tokenizer
from s2r_ray.pieces import Terms

logger = logging.getLogger(__name__)

_CUTTABLE = tuple(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
)
"""How Qwen2 and Llama 3 split text before they merge. See `_can_cut`."""
_CHECK_TEXTS = 64
_CHECK_CHARACTERS = 4096
_SHORT = 64
_SAMPLE = (
    "",
    " ",
    "\n\n\n",
    "Let $x^2 + \\frac{1}{2} = 3.14159$; then\n\n  \\boxed{42}.\tWait, alternatively",
    "I'm, you're; THEY'LL can't — “quotes” … ½ ② ﬁ",
    "def f(x):\n    return x**2  # comment\n\n\tprint(f(10000000000))",
    "解方程组,求所有实数解。因此答案是……",
    "Найдите все простые числа; पूर्णांक ; عدد صحيح ; 정수 ; ひらがな",
    "👩‍👩‍👧‍👦 e\u0301 \u00e9 \u200b\u200d \ufeff zero\u0000byte",
    "<think>a</think><|im_start|>user<|im_end|><|endoftext|>",
    "1234567890 " * 20 + "a" * 300,
)


class TokenCounter:
    """Counts tokens under one tokenizer. Open once per process (`open_counter` caches).

    `exact_library` names what counts: "gigatoken" or "tokenizers". `can_cut`: a text may be cut between a line end and
    what is not white space, and the tokens of its parts added up.

    Args:
        tokenizer_dir: the tokenizer's folder.
        spelled_out: what `spell_out` made of it; the folder is then not read, and transformers, whose import takes
            seconds, not needed.
    """

    def __init__(self, tokenizer_dir: str, spelled_out: str | None = None) -> None:
        self._reference = _read(spelled_out) if spelled_out else load_tokenizer(tokenizer_dir).backend_tokenizer
        self._reference.no_truncation()
        self._reference.no_padding()
        self._fast: Any = _open_gigatoken(tokenizer_dir, self._reference)
        self.can_cut = _can_cut(self._reference)
        self._unchecked = True
        if self._fast is not None:
            self._check(_SAMPLE)

    @property
    def exact_library(self) -> str:
        """Which library counts at present."""
        return "tokenizers" if self._fast is None else "gigatoken"

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Tokens of each text, without special tokens added: int32[len(texts)], in order."""
        if not texts:
            return np.zeros(0, np.int32)
        if self._fast is not None and self._unchecked:
            self._check([text[:_CHECK_CHARACTERS] for text in texts[:_CHECK_TEXTS]])
            self._unchecked = False
        return self._count_fast(texts) if self._fast is not None else self._count_reference(texts)

    def count_sums(self, sums: Sequence[Terms]) -> npt.NDArray[np.int32]:
        """The sum of tokens over the terms of each: int32[len(sums)].

        A text that is in several is counted once: a long one if it is the same object, which costs no look at it.
        """
        texts: list[str] = []
        places: dict[str | int, int] = {}
        numbers, factors, ends = [], [], [0]
        for terms in sums:
            for text, factor in terms:
                place = places.setdefault(text if len(text) < _SHORT else id(text), len(texts))
                if place == len(texts):
                    texts.append(text)
                numbers.append(place)
                factors.append(factor)
            ends.append(len(numbers))
        counts = self.count(texts)
        running = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(counts[numbers] * np.array(factors, np.int64), out=running[1:])
        return np.diff(running[ends]).astype(np.int32)

    def _check(self, texts: Sequence[str]) -> None:
        try:
            wrong = int((self._count_fast(texts) != self._count_reference(texts)).sum())
        except Exception as error:  # noqa: BLE001  # a fast library that fails is one that is not used
            logger.warning("gigatoken failed (%s); counting with tokenizers instead, which is slower", error)
            self._fast = None
            return
        if wrong:
            logger.warning(
                "gigatoken counts %d of %d sample texts differently; counting with tokenizers instead, which is slower",
                wrong,
                len(texts),
            )
            self._fast = None

    def _count_fast(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        encoded = self._fast.encode_batch(list(texts), parallel=False)
        return np.diff(np.asarray(encoded.layout.offsets)).astype(np.int32)

    def _count_reference(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        encodings = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.fromiter((len(encoding.ids) for encoding in encodings), np.int32, len(texts))


def _can_cut(tokenizer: Any) -> bool:
    """Whether it can be shown that texts may be cut after line ends.

    With the patterns of `_CUTTABLE` it may. Every alternative that matches a line end matches nothing but white space
    after it, so no match crosses such a cut. Nor does what lies behind the cut change a match before it: the one
    alternative that looks ahead is tried where no line end is in the white space to come, and the text before the cut
    ends with one. NFC joins nothing to a line end. Added tokens must not have a line end in them, nor take white space
    or look at words beside them.
    """
    try:
        normalizer = json.loads(tokenizer.normalizer.__getstate__()) if tokenizer.normalizer else None
        splitter = json.loads(tokenizer.pre_tokenizer.__getstate__()) if tokenizer.pre_tokenizer else None
        added = tokenizer.get_added_tokens_decoder().values()
    except (AttributeError, TypeError, ValueError):
        return False
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    known = [
        {"type": "Sequence", "pretokenizers": [{**split, "pattern": {"Regex": pattern}}, byte_level]}
        for pattern in _CUTTABLE
    ]
    plain = not any(t.lstrip or t.rstrip or t.single_word or "\n" in t.content for t in added)
    return plain and normalizer in (None, {"type": "NFC"}) and splitter in known


def _open_gigatoken(tokenizer_dir: str, reference: Any) -> Any:
    try:
        import gigatoken

        return gigatoken.Tokenizer(reference)
    except Exception as error:  # noqa: BLE001  # any failure to load means: use the reference
        logger.warning("gigatoken cannot load %s (%s); counting with tokenizers, which is slower", tokenizer_dir, error)
        return None


def spell_out(tokenizer_dir: str) -> str:
    """A tokenizer as transformers loads it, in the JSON of the tokenizers library; megabytes.

    Raises:
        UsageError: it cannot be loaded.
    """
    text: str = load_tokenizer(tokenizer_dir).backend_tokenizer.to_str()
    return text


def _read(spelled_out: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(spelled_out)


@lru_cache(maxsize=4)
def open_counter(tokenizer_dir: str, spelled_out: str | None = None) -> TokenCounter:
    """The process's counter for a tokenizer. Arguments are those of TokenCounter."""
    return TokenCounter(tokenizer_dir, spelled_out)
