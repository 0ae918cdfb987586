"""What makes the judge judge everything again, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from s2r_ray.config import load_config
from s2r_ray.models import ModelRef
from s2r_ray.signals import SIGNALS, difficulty
from s2r_ray.signals.base import Signal
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from tests.fakes import write_judge
from tests.stored import key_set


def judge_of(folder: Path, over: dict[str, Any] | None = None) -> Signal:
    """The difficulty signal with other settings laid over the judge's section or the whole."""
    settings: dict[str, Any] = {"judge": {"model": str(folder), "engine": "transformers"}}
    for name, value in (over or {}).items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    return SIGNALS["difficulty"](load_config(None, settings))


def code_version(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Signal:
    monkeypatch.setattr(difficulty, "_CODE_VERSION", difficulty._CODE_VERSION + 1)
    return judge_of(folder)


def weights_digest(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Signal:
    del monkeypatch
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return judge_of(folder)


def revision(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Signal:
    def found(model: str, revision: str | None, **_: Any) -> ModelRef:
        return ModelRef(model, folder, f"{model}@{revision}", commit=revision)

    monkeypatch.setattr(difficulty, "find_model", found)
    assert judge_of(folder, {"judge": {"revision": "a"}}).fingerprint()["model"].endswith("@a")
    return judge_of(folder, {"judge": {"revision": "b"}})


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Path], Signal]] = {
    "prompt": lambda _, folder: judge_of(folder, {"judge": {"prompt": {"user": "How hard is this? {question}"}}}),
    "system prompt": lambda _, folder: judge_of(folder, {"judge": {"prompt": {"system": "Judge."}}}),
    "labels": lambda _, folder: judge_of(folder, {"judge": {"labels": ["1", "0"]}}),
    "model": weights_digest,
    "revision": revision,
    "code": code_version,
}
HARMLESS: dict[str, dict[str, Any]] = {
    "weights": {"weights": {"difficulty": "1"}},
    "budgets": {"budgets": ["1", "50"]},
    "workers": {"workers": {"judge_batch": 7}},
}


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Path, Place]:
    """A judge's folder, and an output place with one score of that judge."""
    folder, out = write_judge(tmp_path / "judge"), Place.of(tmp_path / "out")
    store = ScoreStore.of(out, judge_of(folder))
    row = {"key": b"k" * 16, "value": 0.5, "label_mass": 1.0, "status": "ok", "detail": None}
    store.append(pa.Table.from_pylist([row], store.schema()))
    return folder, out


@pytest.mark.parametrize("change", CHANGES)
def test_what_can_change_a_score_misses_the_store(
    change: str, judged: tuple[Path, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: last night's scores given out under another prompt, model, revision, label or scoring code."""
    folder, out = judged
    assert not ScoreStore.of(out, CHANGES[change](monkeypatch, folder)).settled(key_set(b"k" * 16)).mask.any()


@pytest.mark.parametrize("change", HARMLESS)
def test_what_cannot_change_a_score_finds_the_store(change: str, judged: tuple[Path, Place]) -> None:
    """Catches: a pool judged again for other weights or budgets."""
    folder, out = judged
    assert ScoreStore.of(out, judge_of(folder, HARMLESS[change])).settled(key_set(b"k" * 16)).mask.all()
