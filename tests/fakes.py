"""Stand-ins that behave: a judge that needs no model, and a judge model too small to know anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, Resources, Scores, Status, Subject, SubjectKind

_CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class HashJudge:
    """A signal whose value is a hash of the question: the same everywhere, in no relation to length.

    It gives one of `levels` values, so that ties are the rule, and finds one question in twenty too long.
    """

    workers: int = 1
    batch: int = 64
    levels: int = 32

    name: ClassVar[str] = "difficulty"
    subject: ClassVar[SubjectKind] = "question"
    ranked: ClassVar[Mapping[str, Better]] = {"difficulty": "high"}
    extras: ClassVar[tuple[str, ...]] = ("label_mass",)
    fatal: ClassVar[tuple[type[BaseException], ...]] = (MemoryError,)

    def fingerprint(self) -> dict[str, Any]:
        """Neither workers nor batches can change a value."""
        return {"signal": self.name, "fake": "hash", "levels": self.levels}

    def resources(self, gpus_in_cluster: float) -> Resources:
        """Half a core for a worker, so that several fit beside the tasks that feed them."""
        del gpus_in_cluster
        return Resources(workers=(self.workers, self.workers), cpus=0.5, batch=self.batch)

    def open(self) -> None:
        """Nothing to load."""

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        values = np.array([self.value(subject.question) for subject in batch])
        silent = {
            i: Fault(Status.TOO_LONG, "a hash says so") for i, s in enumerate(batch) if self.is_silent(s.question)
        }
        return Scores(values, {"label_mass": np.full(len(batch), 0.75)}, silent)

    def value(self, question: str) -> float:
        """In 0..1, on the grid of stored scores."""
        return hashlib.sha256(question.encode()).digest()[0] % self.levels / self.levels

    @staticmethod
    def is_silent(question: str) -> bool:
        """Whether this judge finds a question too long."""
        return hashlib.sha256(question.encode()).digest()[1] % 20 == 0


def write_queries(folder: Path, count: int = 5) -> Path:
    """A query set in the columns that `rds` reads by default."""
    file = folder / f"queries-{count}.jsonl"
    rows = [
        {"question": f"{number} + 1 = ?", "response": f"So it is {number + 1}. " * number}
        for number in range(1, count + 1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@dataclass(frozen=True)
class DrawnJudge(HashJudge):
    """A signal that must see some of the pool first: 1 for questions that it has seen, else 0.

    What it has seen it leaves in a file, whose name does not depend on the pool.
    """

    file: str = ""
    wanted: int = 10

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`."""
        return {"signal": self.name, "fake": "drawn", "wanted": self.wanted}

    def to_prepare(self) -> int:
        """See `Signal`."""
        return 0 if Path(self.file).exists() else self.wanted

    def prepare(self, drawn: Sequence[Subject]) -> list[str]:
        """See `Signal`."""
        Path(self.file).write_text(json.dumps([subject.question for subject in drawn]))
        return [f"saw {len(drawn)} of them"]

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        seen = json.loads(Path(self.file).read_text())
        return Scores(np.array([float(s.question in seen) for s in batch]), {"label_mass": np.ones(len(batch))})


def write_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer of some hundred tokens with a chat template; "0" and "1" are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_CONTROL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Then the number is taken away and what is left is the answer."] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=_CHAT_TEMPLATE
    )
    fast.save_pretrained(str(folder))
    return folder


def write_judge(folder: Path, *, context: int = 2048, vocabulary: int = 512, width: int = 32) -> Path:
    """A random Qwen2 model of some thousand weights, the same each time, with the tokenizer above.

    vLLM on the CPU needs a width of 64.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    write_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(str(folder))
    return folder


def write_validation_sets(folder: Path) -> dict[str, str]:
    """Two files of questions with right responses, and wrong ones beside; what the configuration calls them."""
    for name, sign in (("fixed", "+"), ("broke", "-")):
        rows = [
            {"question": f"{n} {sign} 1 = ?", "response": str(n + 1 if sign == "+" else n - 1), "wrong": "7"}
            for n in range(20, 23)
        ]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in ("fixed", "broke")}
