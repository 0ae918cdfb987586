"""Finding model and tokenizer folders, and digests that change when anything that matters does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from s2r_ray.errors import UsageError
from s2r_ray.models import fetch, find_model, find_tokenizer, is_classifier, stated_dtype


@pytest.fixture
def folder(tmp_path: Path, tokenizer_dir: Path) -> Path:
    """A folder that looks like a judge; no test loads its weights."""
    made = tmp_path / "judge"
    shutil.copytree(tokenizer_dir, made)
    (made / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}', encoding="utf-8")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def test_a_model_folder(folder: Path) -> None:
    """Catches: a location that means another folder elsewhere, or a configuration that is not the model's."""
    found = find_model(str(folder))
    assert (found.folder, found.commit, found.place) == (folder, None, None)
    assert fetch(found, weights=True) == folder
    assert found.config() == {"architectures": ["Qwen2ForCausalLM"]}
    assert found.identity.startswith("sha256:")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_identity_follows_the_content(folder: Path, name: str) -> None:
    """Catches: scores of an earlier checkpoint reused for a later one in the same folder."""
    before = find_model(str(folder)).identity
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    after = find_model(str(folder)).identity
    assert after != before
    (folder / "more.safetensors").write_bytes(b"")
    assert find_model(str(folder)).identity not in (before, after)


def test_identity_is_the_content_alone(folder: Path, tmp_path: Path) -> None:
    """Catches: everything judged again because a folder was moved, copied, touched or got a new README."""
    before = find_model(str(folder)).identity
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("new", encoding="utf-8")
    (tmp_path / "link").symlink_to("copy")
    assert find_model(str(tmp_path / "copy")).identity == before
    assert find_model(str(tmp_path / "link")).identity == before


def test_bytes_cannot_move_between_files(folder: Path) -> None:
    """Catches: a digest of all files run together."""
    (folder / "a.safetensors").write_bytes(b"12")
    (folder / "b.safetensors").write_bytes(b"3")
    before = find_model(str(folder)).identity
    (folder / "a.safetensors").write_bytes(b"1")
    (folder / "b.safetensors").write_bytes(b"23")
    assert find_model(str(folder)).identity != before


def test_a_tokenizer_folder(folder: Path) -> None:
    """Catches: lengths counted again because the weights beside a tokenizer changed, or not although it did."""
    before = find_tokenizer(str(folder))
    assert before.folder == folder
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert find_tokenizer(str(folder)).identity == before.identity
    (folder / "added_tokens.json").write_text('{"<x>": 999}', encoding="utf-8")
    added = find_tokenizer(str(folder)).identity
    assert added != before.identity
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert find_tokenizer(str(folder)).identity not in (before.identity, added)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json not found"),
        ("model.safetensors", "no weights"),
        ("model.safetensors", r"safetensors\) in it$"),
        ("tokenizer*", "a tokenizer not found"),
    ],
)
def test_an_incomplete_model(folder: Path, missing: str, said: str) -> None:
    """Catches: a judge path without a tokenizer or weights that fails in every worker instead of at the start."""
    for file in folder.glob(missing):
        file.unlink()
    with pytest.raises(UsageError, match=said):
        find_model(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "./judge", "~/judge", "judge", "a/b/c", ""])
def test_no_such_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a mistyped path asked of a model hub, which takes long and says something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for find in (find_model, find_tokenizer):
        with pytest.raises(UsageError, match=r"(there is no such folder|not found|no tokenizer in it)"):
            find(name)


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    """Catches: any folder taken for a tokenizer."""
    with pytest.raises(UsageError, match=r"no tokenizer in it; expected tokenizer\.json"):
        find_tokenizer(str(tmp_path))


def test_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the hub client's own exception, of which there are many, shown to a person."""
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UsageError, match=r"model owner/name: .* did not give it \(no route to host\)$"):
        find_model("owner/name")


def test_a_hub_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: weights downloaded where only the configuration is needed; an identity without the exact commit."""
    import huggingface_hub

    asked = []
    commit = tmp_path / "0123abcd"
    shutil.copytree(folder, commit)
    (commit / "model.safetensors").unlink()

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = find_model("owner/name", "main")
    assert (found.name, found.commit, found.identity) == ("owner/name", "0123abcd", "owner/name@0123abcd")
    assert asked[0][:2] == ("owner/name", "main")
    assert not any("safetensors" in pattern for pattern in asked[0][2])
    assert fetch(found, weights=True) == fetch(found, weights=True) == commit
    assert asked[1][:2] == ("owner/name", "0123abcd")
    assert any("safetensors" in pattern for pattern in asked[1][2])
    assert len(asked) == 2


def test_a_broken_configuration(folder: Path) -> None:
    """Catches: a traceback of the JSON parser."""
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"no readable config\.json"):
        find_model(str(folder)).config()


def test_what_a_configuration_states() -> None:
    """Catches: a reward model run as a language model; the old name of the dtype key passed over."""
    assert is_classifier({"architectures": ["Qwen2ForSequenceClassification"]})
    assert is_classifier({"architectures": ["Qwen2ForRewardModel"]})
    assert not is_classifier({"architectures": ["Qwen2ForCausalLM"]})
    assert not is_classifier({"architectures": None})
    assert not is_classifier({})
    for config in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}):
        assert stated_dtype(json.loads(json.dumps(config))) == "bfloat16"
    assert stated_dtype({}) is None
