"""From a question to the judge's prompt tokens.

The text of a pool is data. A question that contains `<|im_end|>` must not close its turn, so text and
template never meet as strings: the chat template is rendered once with a placeholder, cut at the
tokenizer's control tokens, and only the piece that holds the placeholder is filled in and encoded, by a
copy of the tokenizer that knows no control tokens at all. For a question without control tokens the ids
equal those of the ordinary way (render everything, then encode).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2r_ray.errors import UsageError

_PLACEHOLDER = "\u2063QUESTION\u2063"
_DAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%y": "24", "%Y": "2024", "%a": "Fri", "%A": "Friday"}
_CLOCK = "".join(
    (
        "{% macro strftime_now(format) %}{{ format",
        *(f" | replace('{sign}', '{text}')" for sign, text in _DAY.items()),
        " }}{% endmacro +%}",
    )
)
"""What templates that state today's date are told it is (Llama 3's own, where it cannot ask): else the scores of two
days would be those of two prompts. A function from outside is not let in by transformers, so it comes as a macro."""
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What the tokenizers library takes for white space (str.strip takes a little more)."""


@dataclass(frozen=True)
class JudgePrompt:
    """What the judge is told. `user` contains `{question}` exactly once; an empty `system` means no such turn."""

    system: str
    user: str = "{question}"

    def __post_init__(self) -> None:
        if self.user.count("{question}") != 1:
            raise UsageError(
                f"judge.prompt.user must contain {{question}} exactly once; found {self.user.count('{question}')}"
            )

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat turns for one question, in the form that chat templates take."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        return [*turns, {"role": "user", "content": self.user.replace("{question}", question)}]


PAPER_PROMPT = JudgePrompt(
    system="Please judge the difficulty of this instruction and return 1 if difficult or 0 if not."
)
"""The prompt of Select2Reason's published selection script (arXiv 2505.17266)."""


SOLVE_PROMPT = JudgePrompt(
    system="",
    user="{question}\n\nReason step by step, and put the final answer in \\boxed{}.",
)
"""What a base model is asked whose solutions are graded. The paper's words are not known; these are this project's."""


class QuestionEncoder:
    """Encodes questions into prompts of a chat model.

    Args:
        model_dir: folder with the model's tokenizer and chat template.
        prompt: what the model is told.
        role: what the model is called in errors.

    Raises:
        UsageError: no tokenizer, no chat template, or a template that leaves the question out.
    """

    def __init__(
        self, model_dir: str | Path, prompt: JudgePrompt, *, trust_remote_code: bool = False, role: str = "judge"
    ) -> None:
        tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
        if not tokenizer.chat_template:
            raise UsageError(
                f"{role} {model_dir}: its tokenizer has no chat template; expected one in "
                "tokenizer_config.json or chat_template.jinja"
            )
        rendered = _render(tokenizer, prompt, model_dir, role)
        if rendered.count(_PLACEHOLDER) != 1:
            raise UsageError(
                f"{role} {model_dir}: its chat template must show the user's text once; "
                f"found it {rendered.count(_PLACEHOLDER)} times"
            )
        self._plain = without_control_tokens(tokenizer)
        _check_plain(self._plain, tokenizer, model_dir, role)
        self._frame = _frame(rendered, list(tokenizer.added_tokens_decoder.values()))
        self._prefix: list[int] = self._encode_template(tokenizer, self._frame.before)
        self._suffix: list[int] = self._encode_template(tokenizer, self._frame.after)

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of one prompt per question, in the order given."""
        pieces = [self._frame.piece(question) for question in questions]
        encodings = self._plain.encode_batch_fast(pieces, add_special_tokens=False)
        return [[*self._prefix, *encoding.ids, *self._suffix] for encoding in encodings]

    @staticmethod
    def _encode_template(tokenizer: Any, text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
        return ids


class PromptEncoder(QuestionEncoder):
    """Encodes questions into judge prompts and knows the two label tokens.

    Args:
        labels: the answers for «not difficult» and «difficult», each one token of the tokenizer.

    Raises:
        UsageError: as QuestionEncoder; a label that is not one token.
    """

    def __init__(
        self,
        model_dir: str | Path,
        prompt: JudgePrompt,
        labels: tuple[str, str] = ("0", "1"),
        *,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model_dir, prompt, trust_remote_code=trust_remote_code)
        self.label_ids = (self._label_id(labels[0], model_dir), self._label_id(labels[1], model_dir))
        if self.label_ids[0] == self.label_ids[1]:
            raise UsageError(f"judge labels must differ; found {labels[0]!r} twice")

    def _label_id(self, label: str, model_dir: str | Path) -> int:
        ids: list[int] = self._plain.encode(label, add_special_tokens=False).ids
        if len(ids) != 1:
            raise UsageError(
                f"judge {model_dir}: label {label!r} is {len(ids)} tokens in its tokenizer; expected exactly one. "
                "Set judge.labels to two answers that are single tokens."
            )
        return ids[0]


def load_tokenizer(model_dir: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The folder's tokenizer (a transformers fast tokenizer).

    Raises:
        UsageError: it cannot be loaded, or it has no fast (Rust) form.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{model_dir}: no usable tokenizer ({reason}). Expected tokenizer.json and "
            "tokenizer_config.json beside the weights."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(f"{model_dir}: only fast tokenizers (tokenizer.json) are supported")
    return tokenizer


def _render(tokenizer: Any, prompt: JudgePrompt, model_dir: str | Path, role: str) -> str:
    from jinja2 import TemplateError

    messages = prompt.messages(_PLACEHOLDER)
    try:
        template = tokenizer.get_chat_template()
        dated = f"{_CLOCK}{template}" if "strftime_now" in template else template
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=dated, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise UsageError(
            f"{role} {model_dir}: its chat template refused the prompt ({error}). Some templates know no system turn: "
            "set judge.prompt.system to an empty text and say it in judge.prompt.user."
        ) from error
    return text


def beginning_of_text(tokenizer: Any) -> list[int]:
    """The token that plain text begins with, where a tokenizer has one; chat templates bring their own."""
    first = tokenizer.bos_token_id
    return [] if first is None else [first]


def without_control_tokens(tokenizer: Any, *, keep_others: bool = False) -> Any:
    """A copy of the Rust tokenizer in which no string is a control token.

    Args:
        keep_others: leave added tokens that are not special (such as `<think>` of some models) as they are.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if keep_others and not token["special"]]
    state["post_processor"] = None
    state["truncation"] = state["padding"] = None
    return Tokenizer.from_str(json.dumps(state))


def _check_plain(plain: Any, tokenizer: Any, model_dir: str | Path, role: str) -> None:
    """Some vocabularies hold their control tokens as ordinary words; no list can then be emptied to keep them out."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.discard(tokenizer.unk_token_id)
    for number in sorted(special):
        text = str(tokenizer.added_tokens_decoder[number])
        if special.intersection(plain.encode(text, add_special_tokens=False).ids):
            raise UsageError(
                f"{role} {model_dir}: its tokenizer reads control tokens in plain text (found {text!r}), so a question "
                "could pose as the judge; expected one that keeps them apart, such as a byte-level BPE"
            )


@dataclass(frozen=True)
class _Frame:
    """A rendered prompt cut at the control tokens nearest to the question.

    `lead` and `trail` are the template's plain text around the question, which may merge with it into one token and
    so must be encoded together with it. The strips are for control tokens that swallow white space beside them.
    """

    before: str
    lead: str
    trail: str
    after: str
    strip_left: bool
    strip_right: bool

    def piece(self, question: str) -> str:
        """The text between the two control tokens."""
        text = f"{self.lead}{question}{self.trail}"
        text = text.lstrip(_WHITE_SPACE) if self.strip_left else text
        return text.rstrip(_WHITE_SPACE) if self.strip_right else text


def _frame(rendered: str, control_tokens: Sequence[Any]) -> _Frame:
    """Cut a rendered prompt at the last control token before the placeholder and the first one after it."""
    left, right = rendered.split(_PLACEHOLDER)
    ends = [(left.rfind(str(token)) + len(str(token)), token) for token in control_tokens if str(token) in left]
    starts = [(right.find(str(token)), token) for token in control_tokens if str(token) in right]
    start, opening = max(ends, key=lambda end: end[0], default=(0, None))
    stop, closing = min(starts, key=lambda found: found[0], default=(len(right), None))
    return _Frame(
        before=left[:start],
        lead=left[start:],
        trail=right[:stop],
        after=right[stop:],
        strip_left=opening is not None and opening.rstrip,
        strip_right=closing is not None and closing.lstrip,
    )
