"""A sample as the student would be trained on it: the question's turn, then the response, in token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s2r_ray.config import StudentSection
from s2r_ray.errors import UsageError
from s2r_ray.judge.prompt import JudgePrompt, QuestionEncoder, beginning_of_text, load_tokenizer, without_control_tokens
from s2r_ray.models import ModelRef, find_model, is_classifier
from s2r_ray.storage import DEFAULT_STORAGE, StorageOptions

_NO_SYSTEM = JudgePrompt(system="")
_BETWEEN = "\n\n"


@dataclass(frozen=True)
class EncodedSample:
    """`ids`: token ids of question and response; `start`: how many of them come before the response."""

    ids: list[int]
    start: int


class StudentEncoder:
    """Encodes samples for a student.

    The question stands in the model's chat template, as the user's turn and without a system turn of ours; for a model
    without a template it is plain text, with an empty line after it, and before it the tokenizer's token for the
    beginning of text, if it has one. The response follows, encoded by itself, so that
    where the question ends does not depend on how the response begins; no end-of-text token is added. Text of a pool
    never becomes a control token; added tokens that are not control tokens, such as some models' `<think>`, do stand
    for themselves in the response.

    Raises:
        UsageError: no tokenizer, or a template that leaves the question out.
    """

    def __init__(self, model_dir: str | Path, *, trust_remote_code: bool = False) -> None:
        tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
        self._text = without_control_tokens(tokenizer, keep_others=True)
        self._beginning = beginning_of_text(tokenizer)
        self._questions: QuestionEncoder | None = None
        if tokenizer.chat_template:
            self._questions = QuestionEncoder(
                model_dir, _NO_SYSTEM, trust_remote_code=trust_remote_code, role="student"
            )

    def encode(self, questions: Sequence[str], responses: Sequence[str]) -> list[EncodedSample]:
        """One per sample, in the order given."""
        if self._questions is not None:
            prompts = self._questions.encode(questions)
        else:
            texts = self._ids([question + _BETWEEN for question in questions])
            prompts = [[*self._beginning, *ids] for ids in texts]
        pairs = zip(prompts, self._ids(responses), strict=True)
        return [EncodedSample([*prompt, *response], len(prompt)) for prompt, response in pairs]

    def encode_alone(self, responses: Sequence[str]) -> list[EncodedSample]:
        """The responses without their questions, in the order given; before each the tokenizer's token for the
        beginning of text, if it has one."""
        return [EncodedSample([*self._beginning, *ids], len(self._beginning)) for ids in self._ids(responses)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._text.encode_batch_fast(list(texts), add_special_tokens=False)]


def find_student(student: StudentSection, storage: StorageOptions = DEFAULT_STORAGE) -> ModelRef:
    """The student that the configuration names.

    Raises:
        UsageError: it names none, or it is not a language model's folder with a tokenizer.
    """
    if not student.model:
        raise UsageError("no student; set student.model in the configuration to the model that is to be trained")
    found = find_model(
        student.model, student.revision, trust_remote_code=student.trust_remote_code, storage=storage, role="student"
    )
    if is_classifier(found.config()):
        raise UsageError(
            f"student {student.model}: it has a classification head ({found.config()['architectures'][0]}); expected a "
            "language model (…ForCausalLM), which gives tokens probabilities"
        )
    return found
