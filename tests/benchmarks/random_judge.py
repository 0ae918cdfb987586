"""Judges of the shape of real ones with random weights: what they answer means nothing, what they cost is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2r_ray.judge import EMBEDDED_JUDGE

SHAPES = {
    "qwen2.5-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 8192,
    },
}  # fmt: skip
"""Dimensions from the model's public config.json."""


def write_judge(folder: Path, shape: str) -> None:
    """Random weights in bfloat16, and the tokenizer of the embedded judge, whose ids any of these shapes has."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, dtype="bfloat16")
    Qwen2ForCausalLM(config).save_pretrained(str(folder))
    torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(EMBEDDED_JUDGE).save_pretrained(str(folder))


def settings_for(model: Path) -> dict[str, Any]:
    """A configuration's words for such a judge, whose labels have next to no mass."""
    return {"judge": {"model": str(model), "min_label_mass": 0, "max_prompt_tokens": 4095}}
