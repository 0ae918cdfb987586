"""A base model that the tests train themselves, which can partly do the short arithmetic of `s2r synth`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2r_ray.judge.prompt import JudgePrompt, QuestionEncoder
from s2r_ray.judge.train import TrainConfig, build_tokenizer
from s2r_ray.synth import make_rows

PROMPT = JudgePrompt(system="", user="{question}")
_CONTEXT = 128


def write_solver(folder: Path, seed: int = 0, steps: int = 450, batch: int = 64) -> Path:
    r"""A Qwen2 model of some hundred thousand weights that answers `\boxed{…}`; seconds on a CPU.

    It has read the problems of another pool of that kind, so that how often it is right depends on the operation and
    on how often it has met such numbers.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    rows = make_rows(seed, range(6000), "arithmetic").select(["problem", "answer"]).to_pylist()
    build_tokenizer([row["problem"] for row in rows[:2000]], folder, TrainConfig(vocabulary=512, context=_CONTEXT))
    encoder = QuestionEncoder(folder, PROMPT)
    prompts = encoder.encode([row["problem"] for row in rows])
    answers = _answers(folder, [row["answer"] for row in rows])
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    dice = np.random.default_rng(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is no faster with more, and much slower on a busy machine
    for _ in range(steps):
        chosen = dice.integers(len(rows), size=batch)
        ids, labels = _batch([(prompts[row], answers[row]) for row in chosen])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


def _answers(folder: Path, answers: Sequence[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = [f"\\boxed{{{answer}}}" for answer in answers]
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _batch(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Any, Any]:
    """Token ids, padded on the right, and the labels: the answer's tokens alone count."""
    import torch

    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros((len(pairs), width), dtype=torch.long)
    labels = torch.full((len(pairs), width), -100)
    for line, (prompt, answer) in enumerate(pairs):
        ids[line, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[line, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels
