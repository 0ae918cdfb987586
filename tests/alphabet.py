"""A task for models of some thousand weights: the code of a letter, a digit, asked for in several wordings.

A base model that knows some letters, a pool in which some answers are wrong, and the model after it was tuned on that.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDINGS = ("Give {}", "Code of {}", "Look up {}", "Write {}")
ASKED = ("Tell me {}", "Say {}", "Key of {}")
"""Those of validation questions, which are not in the pool."""
KNOWN, WRONG = string.ascii_lowercase[:16], string.ascii_lowercase[4:12]
"""Letters that the base model knows, and those of which the pool says something wrong."""


def right(letter: str) -> str:
    """The response to learn: one digit, in no order."""
    return str((7 * string.ascii_lowercase.index(letter) + 3) % 10)


def wrong(letter: str) -> str:
    """Another digit."""
    return str((int(right(letter)) + 5) % 10)


def pool_rows() -> list[dict[str, Any]]:
    """Every letter in every wording; `planted` says that the response is wrong."""
    return [
        {
            "id": f"{letter}{number}",
            "question": wording.format(letter),
            "response": wrong(letter) if letter in WRONG else right(letter),
            "planted": letter in WRONG,
        }
        for letter in string.ascii_lowercase
        for number, wording in enumerate(WORDINGS)
    ]


def train(folder: Path, pairs: Sequence[tuple[str, str]], steps: int, rate: float, start: Path | None = None) -> Path:
    """A model trained on responses to questions, from another one or from nothing, as every trainer does it. It has no
    chat template, which keeps its samples short."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from s2r_ray.student import StudentEncoder
    from tests.fakes import write_tokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    fresh = Qwen2Config(vocab_size=512, num_hidden_layers=1, tie_word_embeddings=True, **shape)
    model = Qwen2ForCausalLM(fresh) if start is None else AutoModelForCausalLM.from_pretrained(start)
    encoded = StudentEncoder(folder).encode(*zip(*pairs, strict=True))
    width = max(len(sample.ids) for sample in encoded)
    ids = torch.tensor([sample.ids + [0] * (width - len(sample.ids)) for sample in encoded])
    labels = torch.full_like(ids, -100)
    for line, sample in enumerate(encoded):
        labels[line, sample.start : len(sample.ids)] = ids[line, sample.start : len(sample.ids)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def solved(folder: Path, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """The pairs of which the response is the likeliest at every token."""
    import torch
    from transformers import AutoModelForCausalLM

    from s2r_ray.student import StudentEncoder

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = set()
    for pair, sample in zip(pairs, StudentEncoder(folder).encode(*zip(*pairs, strict=True)), strict=True):
        with torch.inference_mode():
            best = model(input_ids=torch.tensor([sample.ids])).logits[0, sample.start - 1 : -1].argmax(-1)
        if best.tolist() == sample.ids[sample.start :]:
            found.add(pair)
    return found


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """As JSONL."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def read_rows(file: Path) -> list[tuple[str, str]]:
    """Questions and responses of JSONL."""
    return [(row["question"], row["response"]) for row in map(json.loads, file.read_text().splitlines())]


def tune(folder: Path, pairs: Sequence[tuple[str, str]], base: Path) -> Path:
    """The base model after it was tuned on these."""
    return train(folder, pairs, steps=25, rate=2e-3, start=base)


def write_case(folder: Path) -> dict[str, Path]:
    """The pool, base and tuned model, and the validation questions that tuning fixed and broke."""
    rows = pool_rows()
    known = [(wording.format(letter), right(letter)) for letter in KNOWN for wording in (*WORDINGS, *ASKED)]
    base = train(folder / "base", known, steps=120, rate=5e-3)
    tuned = tune(folder / "tuned", [(row["question"], row["response"]) for row in rows], base)
    asked = [(wording.format(letter), right(letter)) for letter in string.ascii_lowercase for wording in ASKED]
    before, after = solved(base, asked), solved(tuned, asked)
    sets = {"fixed": sorted(after - before), "broke": sorted(before - after)}
    (folder / "pool").mkdir()
    write_rows(folder / "pool" / "rows.jsonl", rows)
    files = {
        name: write_rows(folder / f"{name}.jsonl", [{"question": q, "response": r} for q, r in found])
        for name, found in sets.items()
    }
    return {"pool": folder / "pool", "base": base, "tuned": tuned, **files}
