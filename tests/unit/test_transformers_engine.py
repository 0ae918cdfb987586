"""What the engine in plain transformers refuses: models that it would misread."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from s2r_ray.engines import EngineError, EngineSettings
from s2r_ray.engines.transformers import TransformersEngine


def test_logits_that_are_scaled_after_the_head(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: a judge whose probabilities are far too sure, because a scale or a bound of its logits was left out."""
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, logits_scaling=8.0, initializer_range=1.0,
    )  # fmt: skip
    shutil.copytree(tiny_judge, tmp_path / "judge")
    GraniteForCausalLM(config).save_pretrained(str(tmp_path / "judge"))
    with pytest.raises(EngineError, match=r"the judge does not read its logits .*engine: vllm"):
        TransformersEngine(EngineSettings(str(tmp_path / "judge"), "labels", "float32", 128))


@pytest.mark.parametrize("kind", ["labels", "student", "sampler"])
def test_weights_that_are_not_there(kind: str, tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: weights drawn by lot, other ones in each worker, in place of what a checkpoint lacks; tied weights taken
    for missing ones."""
    TransformersEngine(EngineSettings(str(tiny_judge), kind, "float32", 128))
    shutil.copytree(tiny_judge, tmp_path / "torn")
    file = tmp_path / "torn" / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in sorted(weights) if "down_proj" in name)
    save_file({name: weight for name, weight in weights.items() if name != gone}, file, {"format": "pt"})
    with pytest.raises(EngineError, match=r"its weights lack .*down_proj"):
        TransformersEngine(EngineSettings(str(tmp_path / "torn"), kind, "float32", 128))
