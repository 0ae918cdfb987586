"""Pass rates: an engine that says what it is told, real grading, and what makes a problem no problem."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2r_ray.config import load_config
from s2r_ray.engines import Sampled, Sampling
from s2r_ray.engines.transformers import TransformersEngine
from s2r_ray.errors import UsageError
from s2r_ray.signals import pass_rate
from s2r_ray.signals.base import Status, Subject
from s2r_ray.signals.pass_rate import PassRate
from s2r_ray.store import fingerprint_digest


def signal(model: Path, **settings: Any) -> PassRate:
    rollouts = {"model": str(model), "engine": "transformers", "n": 4, "max_tokens": 64, **settings}
    return PassRate.from_config(load_config(None, {"rollouts": rollouts}))


class Parrot:
    """An engine that gives each prompt the same answers in turn: right, wrong, cut off, a bomb."""

    def __init__(self, tokenizer: Any, answers: Sequence[tuple[str, bool]]) -> None:
        self._answers = [Sampled(tokenizer.encode(text), finished) for text, finished in answers]
        self.asked: list[tuple[int, Sampling, list[int]]] = []

    def sample(self, prompts: Sequence[Any], sampling: Sampling, seeds: Sequence[int]) -> list[list[Sampled]]:
        self.asked.append((len(prompts), sampling, list(seeds)))
        return [[self._answers[draw % len(self._answers)] for draw in range(sampling.count)] for _ in prompts]


def opened(signal: PassRate, monkeypatch: pytest.MonkeyPatch, answers: Sequence[tuple[str, bool]]) -> Parrot:
    parrot: list[Parrot] = []

    def open_engine(_name: str, settings: Any) -> Parrot:
        from s2r_ray.judge.prompt import load_tokenizer

        parrot.append(Parrot(load_tokenizer(settings.model), answers))
        return parrot[0]

    monkeypatch.setattr(pass_rate, "open_engine", open_engine)
    monkeypatch.setattr(pass_rate, "Graders", lambda count: pass_rate_graders(count))
    signal.open()
    return parrot[0]


def pass_rate_graders(count: int) -> Any:
    from s2r_ray.judge.grade import Graders

    return Graders(count, seconds=2.0)


def test_counts_and_faults(tiny_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a solution that was cut off counted as a pass, a hanging one that ends the batch, a problem without an
    answer that gets a pass rate of 0, draws paid for such problems."""
    judged = signal(tiny_judge, max_prompt_tokens=200)
    answers = [("\\boxed{4}", True), ("\\boxed{5}", True), ("\\boxed{4}", False), ("\\boxed{9^{9^{9^{9}}}}", True)]
    parrot = opened(judged, monkeypatch, answers)
    texts = [("2 + 2?", "4"), ("2 + 3?", "5"), ("prove", "proof"), ("2 + 2?", None), ("x " * 500, "4"), ("1?", "1")]
    batch = [Subject(number.to_bytes(16, "big"), q, answer=a) for number, (q, a) in enumerate(texts)]
    found = judged.score(batch)
    assert {place: fault.status for place, fault in found.faults.items()} == {
        2: Status.UNGRADABLE,
        3: Status.UNGRADABLE,
        4: Status.TOO_LONG,
    }
    fit = [0, 1, 5]
    assert found.values[fit].tolist() == [0.25, 0.25, 0.0]
    assert {name: values[fit].tolist() for name, values in found.extras.items()} == {
        "passes": [1, 1, 0],
        "cut_off": [1, 1, 1],
        "ungraded": [1, 1, 1],
    }
    ((prompts, sampling, seeds),) = parrot.asked
    assert (prompts, sampling.count, len(set(seeds))) == (3, 4, 3)


def test_draws_of_a_range_go_on_where_the_one_before_ended(tiny_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a larger n whose further draws are the first ones again."""
    from dataclasses import replace

    first = signal(tiny_judge)
    second = PassRate(replace(first.settings, samples=(4, 6)))
    assert fingerprint_digest(first.fingerprint()) != fingerprint_digest(second.fingerprint())
    seeds = []
    for judged in (first, second):
        parrot = opened(judged, monkeypatch, [("\\boxed{4}", True)])
        judged.score([Subject(b"k" * 16, "2 + 2?", answer="4")])
        seeds.append(parrot.asked[0][2][0])
        assert parrot.asked[0][1].count == judged.settings.samples[1] - judged.settings.samples[0]
    assert seeds[1] == seeds[0] + 4


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 5}, {"seed": 1}, {"prompt": {"user": "Q: {question}"}}],
    ids=str,
)
def test_what_can_change_a_pass_rate_changes_the_fingerprint(tiny_judge: Path, change: dict[str, Any]) -> None:
    """Catches: draws under one setting counted together with draws under another."""
    digests = {fingerprint_digest(signal(tiny_judge, **more).fingerprint()) for more in ({}, change)}
    assert len(digests) == 2
    same = signal(tiny_judge, batch=3, graders=7, questions=5, gpu_memory_utilization=0.3)
    assert same.fingerprint() == signal(tiny_judge).fingerprint()


def test_wrong_settings_are_told(tiny_judge: Path) -> None:
    """Catches: eight draws at temperature 0, which are one; a model nobody named."""
    with pytest.raises(UsageError, match="at temperature 0 all 4 solutions are the same"):
        signal(tiny_judge, temperature=0)
    with pytest.raises(UsageError, match="--base-model"):
        PassRate.from_config(load_config(None, {}))


def test_the_reference_engine_draws(tiny_judge: Path) -> None:
    """Catches: padding that leaks into what is drawn, answers of one prompt given to another, draws that are one."""
    judged = signal(tiny_judge, max_tokens=6)
    judged.open()
    engine = judged._engine
    assert isinstance(engine, TransformersEngine)
    prompts = judged._prompts.encode(["1 + 1 = ?", "x" * 60, "2"])
    drawn = engine.sample(prompts, Sampling(5, 1.0, 1.0, 6, judged.settings.stop), [1, 2, 3])
    assert [len(answers) for answers in drawn] == [5, 5, 5]
    assert all(len(answer.ids) <= 6 for answers in drawn for answer in answers)
    assert len({tuple(answer.ids) for answers in drawn for answer in answers}) > 10
    # The likeliest token after each prompt, as the engine's other method finds it, is what temperature 0 draws.
    greedy = engine.sample(prompts, Sampling(1, 0.0, 1.0, 1, (511,)), [0, 0, 0])
    likeliest = [max(row, key=lambda token: row[token]) for row in engine.top_two(prompts)]
    assert [answers[0].ids[0] for answers in greedy] == likeliest
    assert np.all([not answers[0].finished for answers in greedy])


def test_more_tokens_than_the_model_has_positions(tiny_judge: Path) -> None:
    """Catches: settings that the engine refuses after minutes, in words of its own."""
    with pytest.raises(UsageError, match=r"it has 2,048 positions, .* together are 2,049; lower them"):
        signal(tiny_judge, max_prompt_tokens=1024, max_tokens=1025)
    signal(tiny_judge, max_prompt_tokens=1024, max_tokens=1024)


def test_a_plain_prompt_begins_as_the_model_was_taught(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: a base model without a chat template that is asked without its token for the beginning of text."""
    from transformers import AutoTokenizer

    shutil.copytree(tiny_judge, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_judge))
    tokenizer.chat_template = None
    for first in (None, "<|endoftext|>"):
        tokenizer.bos_token = first
        tokenizer.save_pretrained(str(tmp_path / "base"))
        (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
        prompts = pass_rate._Prompts(tmp_path / "base", signal(tmp_path / "base").settings.rollouts)
        (ids,) = prompts.encode(["2 + 2?"])
        assert tokenizer.decode(ids).startswith(f"{first or ''}2 + 2?")
