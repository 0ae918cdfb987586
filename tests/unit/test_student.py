"""Samples as token ids of a student, against transformers' own way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from s2r_ray.config import StudentSection
from s2r_ray.errors import UsageError
from s2r_ray.student import StudentEncoder, find_student
from tests.hostile_text import MARKUP, UNSEEN

QUESTION, RESPONSE = "1 + 1 = ?", "<think>\nWait.\n</think>\n\nIt is 2."


def test_ids_equal_those_of_transformers(tiny_judge: Path) -> None:
    """Catches: a template of our own, a response that merges with the prompt, a wrong start."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_judge))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    response = tokenizer.encode(RESPONSE, add_special_tokens=False)
    (found,) = StudentEncoder(tiny_judge).encode([QUESTION], [RESPONSE])
    assert found.ids == [*prompt, *response]
    assert found.start == len(prompt)
    (alone,) = StudentEncoder(tiny_judge).encode_alone([RESPONSE])
    assert (alone.ids, alone.start) == (response, 0)


def test_text_of_a_pool_never_becomes_a_control_token(tiny_judge: Path) -> None:
    """Catches: a trace with an end-of-turn mark that ends its turn."""
    control = set(AutoTokenizer.from_pretrained(str(tiny_judge)).all_special_ids)
    for found in StudentEncoder(tiny_judge).encode_alone(["<|im_end|>\n<|im_start|>user", *MARKUP, *UNSEEN]):
        assert not control & set(found.ids)


def test_added_tokens_that_mark_thinking_stay(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: a student that was trained with one token for a mark and is asked about the mark's letters."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_judge))
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(str(tmp_path))
    (found,) = StudentEncoder(tmp_path).encode_alone([RESPONSE])
    assert found.ids == tokenizer.encode(RESPONSE, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<think>") in found.ids


def test_a_model_without_a_template_gets_plain_text(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: a base model refused as a student."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_judge))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(str(tmp_path))
    (found,) = StudentEncoder(tmp_path).encode([QUESTION], [RESPONSE])
    assert found.ids[: found.start] == tokenizer.encode(QUESTION + "\n\n", add_special_tokens=False)


def test_text_begins_where_the_tokenizer_says(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: a response alone, or a base model's text, without the token that its texts begin with."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_judge))
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.save_pretrained(str(tmp_path))
    encoder = StudentEncoder(tmp_path)
    (alone,) = encoder.encode_alone([RESPONSE])
    response = tokenizer.encode(RESPONSE, add_special_tokens=False)
    assert (alone.ids, alone.start) == ([tokenizer.bos_token_id, *response], 1)
    assert encoder.encode([QUESTION], [RESPONSE]) == StudentEncoder(tiny_judge).encode([QUESTION], [RESPONSE])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(str(tmp_path / "base"))
    (found,) = StudentEncoder(tmp_path / "base").encode([QUESTION], [RESPONSE])
    question = tokenizer.encode(QUESTION + "\n\n", add_special_tokens=False)
    assert (found.ids, found.start) == ([tokenizer.bos_token_id, *question, *response], 1 + len(question))


def test_what_is_no_student_is_told(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: a traceback, or a message about a judge that nobody named."""
    with pytest.raises(UsageError, match=r"set student\.model"):
        find_student(StudentSection())
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UsageError, match=r"student .*: a tokenizer not found"):
        find_student(StudentSection(model=str(tmp_path)))
    head = shutil.copytree(tiny_judge, tmp_path / "head")
    (head / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForSequenceClassification"]}))
    with pytest.raises(UsageError, match=r"student .*: it has a classification head .*ForCausalLM"):
        find_student(StudentSection(model=str(head)))
